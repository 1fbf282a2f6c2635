"""Schedules: a year of ticks of each."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import dagster as dg
import pytest

from omniops_pipelines.definitions import defs
from omniops_pipelines.schedules import REPORTS_WEEKLY, TIMETABLES, make_schedule, run_key

# A leap year, with the change to summer time and back.
START = datetime(2028, 1, 1, tzinfo=UTC)
END = datetime(2029, 1, 1, tzinfo=UTC)

SCHEDULES = {
    schedule.name: schedule for schedule in (*(make_schedule(t) for t in TIMETABLES), make_schedule(REPORTS_WEEKLY))
}
TICKS_OF_A_YEAR = {
    "page_embeddings_daily": 366,
    "page_html_cleanup_daily": 366,
    "message_queue_cleanup_daily": 366,
    "scrape_jobs_cleanup_weekly": 53,
    "conversations_retention_weekly": 53,
    "analytics_retention_weekly": 53,
    "purge_runs_weekly": 53,
    "reports_weekly": 52,
    "retention_audit_monthly": 12,
    "refresh_hourly": 366 * 24,
}
REMOVALS = (
    "message_queue_cleanup_daily", "scrape_jobs_cleanup_weekly", "conversations_retention_weekly",
    "analytics_retention_weekly",
)  # fmt: skip


def ticks(schedule: dg.ScheduleDefinition, start: datetime = START, end: datetime = END) -> list[datetime]:
    """When Dagster itself would evaluate it, from `start` until before `end`."""
    from dagster._utils.schedules import schedule_execution_time_iterator

    found = []
    timezone_ = schedule.execution_timezone
    for tick in schedule_execution_time_iterator(
        (start - timedelta(seconds=1)).timestamp(), schedule.cron_schedule, timezone_
    ):
        if tick >= end:
            return found
        if tick >= start:
            found.append(tick)
    raise AssertionError


def evaluate(schedule: dg.ScheduleDefinition, tick: datetime) -> dg.RunRequest:
    """The one run that a tick asks for."""
    context = dg.build_schedule_context(scheduled_execution_time=tick, repository_def=defs.get_repository_def())
    (request,) = schedule.evaluate_tick(context).run_requests or []
    return request


def test_every_schedule_of_this_module_is_loaded() -> None:
    loaded = {schedule.name for schedule in defs.get_repository_def().schedule_defs}
    assert loaded >= set(SCHEDULES) - {REPORTS_WEEKLY.name}
    assert set(SCHEDULES) == set(TICKS_OF_A_YEAR)


@pytest.mark.parametrize("name", TICKS_OF_A_YEAR)
def test_a_year_has_its_ticks_each_at_the_same_minute_of_the_day_in_utc(name: str) -> None:
    schedule = SCHEDULES[name]
    assert schedule.execution_timezone == "UTC"
    year = ticks(schedule)
    assert len(year) == TICKS_OF_A_YEAR[name]
    times = {(tick.astimezone(UTC).hour, tick.minute) for tick in year}
    assert len(times) == (24 if name == "refresh_hourly" else 1), "summer time moves nothing"
    assert {tick.second for tick in year} == {0}


def test_no_two_schedules_ever_fall_on_the_same_minute() -> None:
    statistics = [START + timedelta(days=day, minutes=30) for day in range(366)]
    minutes = Counter(tick for schedule in SCHEDULES.values() for tick in ticks(schedule))
    minutes.update(statistics)
    assert [tick for tick, schedules in minutes.items() if schedules > 1] == []


def test_statistics_come_before_the_removals_of_the_same_night() -> None:
    for name in REMOVALS:
        for tick in ticks(SCHEDULES[name]):
            assert tick - tick.replace(hour=0, minute=0) > timedelta(minutes=30), name


@pytest.mark.parametrize("name", TICKS_OF_A_YEAR)
def test_each_tick_of_a_year_asks_for_one_run_of_its_own_with_a_configuration_that_is_valid(name: str) -> None:
    schedule = SCHEDULES[name]
    # The hourly one: a month has every hour, and the days on which clocks change.
    year = ticks(schedule, START, END if name != "refresh_hourly" else START + timedelta(days=31))
    requests = [evaluate(schedule, tick) for tick in year]
    assert len({request.run_key for request in requests}) == len(year)
    assert all(dict(request.run_config) == dict(requests[0].run_config) for request in requests)
    if name != REPORTS_WEEKLY.name:
        assert dg.validate_run_config(defs.resolve_job_def(schedule.job_name), dict(requests[0].run_config))


def test_a_tick_that_is_evaluated_twice_is_one_run_wherever_it_is_evaluated() -> None:
    tick = datetime(2028, 7, 2, 1, 35, tzinfo=UTC)
    elsewhere = tick.astimezone(timezone(timedelta(hours=2)))
    assert run_key("x", tick) == run_key("x", elsewhere) == "x:2028-07-02T01:35Z"
    schedule = SCHEDULES["scrape_jobs_cleanup_weekly"]
    assert evaluate(schedule, tick).run_key == evaluate(schedule, elsewhere).run_key


def test_removals_mean_it_and_the_audit_only_looks() -> None:
    for name in (*REMOVALS, "purge_runs_weekly", "refresh_hourly"):
        request = evaluate(SCHEDULES[name], START)
        assert [op["config"]["dry_run"] for op in request.run_config["ops"].values()] == [False], name
    audit = evaluate(SCHEDULES["retention_audit_monthly"], START).run_config["ops"]
    assert [op["config"]["dry_run"] for op in audit.values()] == [True] * 4


def test_all_are_on_from_the_start() -> None:
    assert {s.default_status for s in SCHEDULES.values()} == {dg.DefaultScheduleStatus.RUNNING}
