"""What a figure says, and what no figure says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.alerts import Alert
from sensors.alerting import Over
from sensors.capacity import (
    REDIS_AWAY,
    REDIS_MEMORY,
    _away_ticks,
    connections_gauge,
    judge,
    judge_redis,
    pool_gauge,
    redis_gauge,
    size,
    storage_gauge,
)


def severity(finding: Alert | Over | None) -> str | None:
    if isinstance(finding, Alert):
        return finding.severity
    return "over" if finding else None


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (0, "over"), (74, "over"), (75, None), (79, None), (80, "warning"), (94, "warning"), (95, "critical"),
        (100, "critical"), (250, "critical"),
    ],
)  # fmt: skip
def test_an_alert_opens_at_80_percent_and_is_over_below_75(used: int, expected: str | None) -> None:
    for gauge in (storage_gauge(used, 100), connections_gauge(used, 100), pool_gauge(used, 100)):
        assert severity(judge(gauge)) == expected


@given(st.lists(st.integers(0, 120), max_size=40))
def test_a_figure_that_wavers_at_the_mark_is_one_episode(figures: list[int]) -> None:
    is_open, opened = False, 0
    for figure in figures:
        found = judge(storage_gauge(figure, 100))
        if isinstance(found, Alert) and not is_open:
            is_open, opened = True, opened + 1
        elif isinstance(found, Over):
            is_open = False
    crossings = sum(
        1 for n, figure in enumerate(figures) if figure < 75 and any(later >= 80 for later in figures[n:])
    )
    assert opened <= crossings + 1
    if not any(figure < 75 for figure in figures):
        assert opened <= 1


@pytest.mark.parametrize("limit", [0, -3])
def test_what_has_no_limit_cannot_be_full(limit: int) -> None:
    assert judge(connections_gauge(50, limit)) is None


def test_an_alert_says_how_much_of_how_much_and_what_to_do() -> None:
    found = judge(storage_gauge(9 * 1024**3, 10 * 1024**3))
    assert isinstance(found, Alert)
    assert found.message == "the database takes 9.0 GiB of its budget of 10.0 GiB (90%)"
    assert "OMNIOPS_STORAGE_BUDGET_BYTES" in found.what_to_do
    assert found.details == {"used": 9 * 1024**3, "limit": 10 * 1024**3, "share": 0.9}


def test_redis_is_measured_by_its_maxmemory_or_else_by_the_machine() -> None:
    own = redis_gauge({"used_memory": 81, "maxmemory": 100, "total_system_memory": 1_000})
    machine = redis_gauge({"used_memory": 81, "maxmemory": 0, "total_system_memory": 1_000})
    unknown = redis_gauge({"used_memory": 81})
    assert (own.share, machine.share, unknown.share) == (0.81, 0.081, None)
    assert judge(unknown) is None


def test_a_redis_that_is_away_says_nothing_of_its_memory_and_is_an_alert_the_second_time() -> None:
    first, away = judge_redis(None, 0)
    assert (first, away) == ([], 1)
    second, away = judge_redis(None, away)
    assert [(type(found), found.alert) for found in second] == [(Alert, REDIS_AWAY)]
    assert away == 2
    back, away = judge_redis({"used_memory": 1, "maxmemory": 100}, away)
    assert back == [Over(REDIS_AWAY, "redis"), Over(REDIS_MEMORY, "redis")]
    assert away == 0


@pytest.mark.parametrize(
    ("cursor", "ticks"),
    [(None, 0), ("", 0), ('{"redis_away": 2}', 2), ("[]", 0), ('{"redis_away": "x"}', 0), ("{", 0)],
)
def test_a_cursor_of_another_version_is_a_beginning(cursor: Any, ticks: int) -> None:
    assert _away_ticks(cursor) == ticks


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 1_023, 1_024, 5 * 1024**2, 3 * 1024**4)] == [
        "0 bytes", "1,023 bytes", "1.0 KiB", "5.0 MiB", "3.0 TiB",
    ]  # fmt: skip
