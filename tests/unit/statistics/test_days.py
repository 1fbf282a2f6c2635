"""Which days are computed when: pure functions of days and ticks."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.statistics import newest_day_due
from omniops_pipelines.jobs.statistics import CRON, MAX_STRETCHES, requests, statistics_daily
from resources.postgres.statistics import InvalidDays, check_days, days_between, spans, yesterday
from resources.settings import InvalidSetting, Settings

_FIRST = date(2026, 1, 1)
_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_DAYS = st.sets(st.integers(0, 400).map(lambda n: _FIRST + timedelta(days=n)), max_size=60)


@given(days=_DAYS)
def test_spans_hold_the_days_and_nothing_else(days: set[date]) -> None:
    found = spans(days)
    assert sorted(day for first, last in found for day in days_between(first, last)) == sorted(days)
    assert all(b[0] - a[1] > timedelta(days=1) for a, b in itertools.pairwise(found))


@given(days=_DAYS, at_most=st.integers(1, 12))
def test_bounded_spans_fill_the_smallest_gaps_only(days: set[date], at_most: int) -> None:
    every, found = spans(days), spans(days, at_most)
    assert len(found) == min(len(every), at_most)
    assert {day for first, last in found for day in days_between(first, last)} >= days
    assert (found[0][0], found[-1][1]) == (min(days), max(days)) if days else found == []
    gaps = sorted((b[0] - a[1] for a, b in itertools.pairwise(every)), reverse=True)
    left = sorted((b[0] - a[1] for a, b in itertools.pairwise(found)), reverse=True)
    assert left == gaps[: max(at_most - 1, 0)]


def test_yesterday_is_the_newest_day_that_is_over_in_utc() -> None:
    assert yesterday(datetime(2026, 3, 2, 0, 0, tzinfo=UTC)) == date(2026, 3, 1)
    assert yesterday(datetime(2026, 3, 2, 23, 59, tzinfo=UTC)) == date(2026, 3, 1)
    # Half past one in Berlin is half past eleven of the day before.
    assert yesterday(datetime(2026, 3, 2, 0, 30, tzinfo=timezone(timedelta(hours=1)))) == date(2026, 2, 28)


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-03-02T00:00+00:00", date(2026, 2, 28)),
        ("2026-03-02T01:29:59+00:00", date(2026, 2, 28)),
        ("2026-03-02T01:30+00:00", date(2026, 3, 1)),
        ("2026-03-02T23:00+00:00", date(2026, 3, 1)),
    ],
)
def test_yesterday_is_due_from_half_past_one_on(now: str, due: date) -> None:
    assert newest_day_due(datetime.fromisoformat(now)) == due


def test_a_day_that_is_not_over_is_refused_with_the_newest_that_is() -> None:
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    check_days(date(2026, 2, 1), date(2026, 3, 1), now)
    for last in (date(2026, 3, 2), date(2027, 1, 1)):
        with pytest.raises(InvalidDays, match=r"not over in UTC.*the newest day to compute is 2026-03-01"):
            check_days(date(2026, 2, 1), last, now)
    with pytest.raises(InvalidDays, match="ends before it begins"):
        check_days(date(2026, 3, 1), date(2026, 2, 1), now)


def test_a_year_of_ticks_requests_every_day_once_and_has_a_run_key_for_each() -> None:
    assert (statistics_daily.cron_schedule, statistics_daily.execution_timezone) == (CRON, "UTC")
    # Half past midnight, through both changes of the clock elsewhere and a leap day.
    ticks = [datetime(2027, 6, 1, 0, 30, tzinfo=UTC) + timedelta(days=n) for n in range(366)]
    made = [request for tick in ticks for request in requests([], yesterday(tick), tick)]
    assert [r.partition_key for r in made] == [
        d.isoformat() for d in days_between(date(2027, 5, 31), date(2028, 5, 30))
    ]
    assert len({r.run_key for r in made}) == 366


@given(days=_DAYS, newest=st.integers(0, 400).map(lambda n: _FIRST + timedelta(days=n)))
def test_a_tick_requests_the_newest_day_alone_and_earlier_ones_by_stretches(days: set[date], newest: date) -> None:
    tick = datetime(newest.year, newest.month, newest.day, 0, 30, tzinfo=UTC) + timedelta(days=1)
    made = requests(sorted(days), newest, tick)
    assert made[0].partition_key == newest.isoformat()
    ranges = [tuple(date.fromisoformat(r.tags[tag]) for tag in _RANGE) for r in made[1:]]
    assert ranges == spans({day for day in days if day < newest}, MAX_STRETCHES)
    assert len({r.run_key for r in made}) == len(made) <= MAX_STRETCHES + 1
    # The same tick, evaluated again, asks for the same runs.
    assert [r.run_key for r in requests(sorted(days), newest, tick)] == [r.run_key for r in made]


def test_what_could_not_be_read_is_said_on_the_run() -> None:
    tick = datetime(2026, 3, 3, 0, 30, tzinfo=UTC)
    (only,) = requests([], date(2026, 3, 2), tick, trouble="the database is away " * 30)
    assert only.tags["omniops/late_days"].startswith("not known: the database is away")
    assert len(only.tags["omniops/late_days"]) <= 255


def test_the_first_day_is_a_setting() -> None:
    assert Settings.from_environment({}).statistics_first_day == date(2025, 1, 1)
    env = {"OMNIOPS_STATISTICS_FIRST_DAY": " 2026-02-28 "}
    assert Settings.from_environment(env).statistics_first_day == date(2026, 2, 28)


@pytest.mark.parametrize("value", ["yesterday", "2026-02-30", "1999-12-31", "2101-01-01", "28.02.2026", "20260"])
def test_a_first_day_that_cannot_be_meant_is_refused(value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"OMNIOPS_STATISTICS_FIRST_DAY is .* must be a day like 2025-01-01"):
        Settings.from_environment({"OMNIOPS_STATISTICS_FIRST_DAY": value})
