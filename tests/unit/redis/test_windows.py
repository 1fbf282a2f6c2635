"""The rule of a limit, against a clock of the test's own."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from resources.redis.windows import DomainWindow, LocalRates, decide

_GAPS = st.lists(st.floats(0, 30, allow_nan=False).map(lambda s: round(s, 3)), max_size=150)


@given(gaps=_GAPS, limit=st.integers(1, 20), spacing=st.sampled_from([0.0, 0.25, 2.0, 7.5]), start=st.floats(0, 1e6))
def test_no_minute_ever_has_more_than_the_limit_and_no_two_requests_are_too_close(
    gaps: list[float], limit: int, spacing: float, start: float
) -> None:
    window, now, granted = DomainWindow(), start, []
    for gap in gaps:
        now += gap
        decision = decide(window, now, limit, spacing)
        assert decision.permitted == (decision.wait_seconds == 0)
        if decision.permitted:
            granted.append(now)
    for n, moment in enumerate(granted):
        assert sum(moment - 60 < earlier <= moment for earlier in granted[: n + 1]) <= limit
    # The clock's own rounding: a millionth of a second is none.
    assert all(after - before >= spacing - 1e-6 for before, after in itertools.pairwise(granted))


@given(gaps=_GAPS, limit=st.integers(1, 20), spacing=st.sampled_from([0.0, 0.25, 2.0, 7.5]))
def test_who_waits_as_long_as_was_said_is_permitted_and_nobody_waits_for_more_than_it_takes(
    gaps: list[float], limit: int, spacing: float
) -> None:
    window, now, granted = DomainWindow(), 1_000.0, []
    for gap in gaps:
        now += gap
        decision = decide(window, now, limit, spacing)
        if not decision.permitted:
            assert decision.wait_seconds <= 61
            # Refused for a reason: the minute (and the second that is still counted) is full, or it is too early.
            full = sum(moment > now - 61 - 1 for moment in granted) >= limit
            assert full or now - granted[-1] < spacing
            now += decision.wait_seconds + 1e-6
            again = decide(window, now, limit, spacing)
            if not again.permitted:  # the minute was full, and now it is too early, or the other way round
                now += again.wait_seconds + 1e-6
                assert decide(window, now, limit, spacing).permitted
        granted.append(now)


def test_a_second_is_counted_until_all_of_it_is_a_minute_old() -> None:
    window = DomainWindow()
    assert decide(window, 10.9, 1, 0).permitted
    assert not decide(window, 70.95, 1, 0).permitted
    assert decide(window, 71.0, 1, 0).permitted


def test_a_clock_that_was_put_back_holds_nobody_for_more_than_a_minute() -> None:
    window = DomainWindow()
    decide(window, 10_000, 0, 5)
    assert decide(window, 5_000, 0, 5).wait_seconds <= 60


def test_windows_in_use_are_never_dropped_for_want_of_room() -> None:
    rates = LocalRates(max_domains=3)
    for domain in "abc":
        window = rates.window(domain, 0)
        assert window is not None
        decide(window, 0, 1, 0)
    assert rates.window("d", 30) is None
    assert rates.window("a", 30) is not None
    assert rates.window("d", 62) is not None
    assert len(rates) == 1


def test_what_redis_was_told_is_not_told_again() -> None:
    rates = LocalRates()
    window = rates.window("a", 0)
    assert window is not None
    for _ in range(3):
        decide(window, 5, 0, 0)
    ((domain, reported),) = rates.reports(6)
    assert (domain, reported.untold) == ("a", {5: 3})
    decide(window, 5.5, 0, 0)  # while the report is on its way
    window.reported({5: 3}, "since")
    assert (window.told, window.untold, window.used(), window.since) == ({5: 3}, {5: 1}, 4, "since")
    window.reported({5: 1}, "since")
    assert rates.reports(6) == []
