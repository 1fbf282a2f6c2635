"""The nightly tick: yesterday always, and what is outdated, whatever was lost before."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from sqlalchemy import text

from omniops_pipelines.definitions import defs
from omniops_pipelines.jobs.statistics import statistics_daily
from resources.postgres.resource import PostgresResource
from resources.postgres.statistics import compute
from tests.integration.statistics.test_assets import QUIET
from tests.integration.statistics.world import DAY, Page, add_pages, expected, fill, on, rounded, stored

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


def tick(moment: datetime, url: str) -> list[dg.RunRequest]:
    """Evaluate the schedule as Dagster's daemon does."""
    with dg.build_schedule_context(
        scheduled_execution_time=moment,
        resources={"postgres": PostgresResource(database_url=url)},
        repository_def=defs.get_repository_def(),
    ) as context:
        return list(statistics_daily.evaluate_tick(context).run_requests or [])


def days_of(request: dg.RunRequest) -> tuple[str, str]:
    tags = request.tags
    single = tags.get("dagster/partition") or request.partition_key
    return (
        tags.get("dagster/asset_partition_range_start") or single or "",
        tags.get("dagster/asset_partition_range_end") or single or "",
    )


def half_past_midnight(day: int) -> datetime:
    """Of so many days after DAY."""
    moment = DAY + timedelta(days=day)
    return datetime(moment.year, moment.month, moment.day, 0, 30, tzinfo=UTC)


def asked(requests: list[dg.RunRequest]) -> list[tuple[int, int]]:
    """Ranges as days after DAY."""
    return [
        tuple((date.fromisoformat(end) - DAY).days for end in days_of(request))  # type: ignore[misc]
        for request in requests
    ]


def execute(instance: dg.DagsterInstance, request: dg.RunRequest) -> bool:
    job: dict[str, Any] = {"partition_key": request.partition_key} if request.partition_key else {}
    return (
        defs.resolve_job_def("statistics")
        .execute_in_process(instance=instance, tags=request.tags, run_config=QUIET, raise_on_error=False, **job)
        .success
    )


def test_the_schedule_is_on_and_starts_the_job() -> None:
    schedule = next(s for s in defs.schedules or () if s.name == "statistics_daily")  # type: ignore[union-attr]
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING  # type: ignore[union-attr]
    assert schedule.job_name == "statistics"  # type: ignore[union-attr]


def test_a_quiet_night_asks_for_yesterday_alone(database: Database) -> None:
    assert asked(tick(half_past_midnight(5), database.url)) == [(4, 4)]


def test_three_missed_nights_are_made_up_for_in_one_ranged_run(
    database: Database, instance: dg.DagsterInstance
) -> None:
    jobs = [on(d, Page(0)) for d in range(8)]
    fill(database, jobs)
    compute(database.engine, DAY, DAY + timedelta(days=3))
    with database.engine.begin() as connection:
        # Long ago: what was computed is not touched since.
        connection.execute(text("UPDATE daily_job_stats SET computed_at = now() + interval '1 hour'"))
    made = tick(half_past_midnight(8), database.url)
    assert asked(made) == [(7, 7), (4, 6)]
    assert all(execute(instance, request) for request in made)
    assert rounded(stored(database)) == rounded(expected(jobs))


def test_late_rows_are_asked_for_by_stretches(database: Database, instance: dg.DagsterInstance) -> None:
    ids = fill(database, [on(d, Page(0)) for d in range(10)])
    compute(database.engine, DAY, DAY + timedelta(days=9))
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE daily_job_stats SET computed_at = now() + interval '1 hour'"))
    assert asked(tick(half_past_midnight(10), database.url)) == [(9, 9)]
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE daily_job_stats SET computed_at = now() - interval '1 minute' "
                                "WHERE day = ANY (:days)"),
                           {"days": [DAY + timedelta(days=d) for d in (1, 2, 6)]})  # fmt: skip
        for d in (1, 2, 6):
            add_pages(connection, f"j{d}", ids["acme"], on(d, Page(7)).pages, start=5)
    made = tick(half_past_midnight(10), database.url)
    assert asked(made) == [(9, 9), (1, 2), (6, 6)]
    assert all(execute(instance, request) for request in made)
    assert [row["total_pages"] for row in database.rows("SELECT total_pages FROM daily_job_stats ORDER BY day")] == [
        1, 2, 2, 1, 1, 1, 2, 1, 1, 1,
    ]  # fmt: skip


def test_a_night_that_failed_is_asked_for_again(database: Database) -> None:
    fill(database, [on(d, Page(0)) for d in range(2)])
    compute(database.engine, DAY, DAY)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE daily_job_stats SET computed_at = now() + interval '1 hour'"))
    # Yesterday's run of the first tick never came to an end.
    for day in (2, 3, 4):
        assert asked(tick(half_past_midnight(day), database.url)) == [(day - 1, day - 1), *([(1, 1)] * (day > 2))]


def test_a_database_that_cannot_be_read_is_no_empty_answer() -> None:
    made = tick(half_past_midnight(5), "postgresql://omniops@127.0.0.1:1/omniops")
    assert asked(made) == [(4, 4)]
    assert made[0].tags["omniops/late_days"].startswith("not known: the database")
    assert "cannot be reached" in made[0].tags["omniops/late_days"]


def test_a_tick_before_the_first_day_is_skipped_with_the_reason(database: Database) -> None:
    with dg.build_schedule_context(
        scheduled_execution_time=datetime(2025, 1, 1, 0, 30, tzinfo=UTC),
        resources={"postgres": PostgresResource(database_url=database.url)},
        repository_def=defs.get_repository_def(),
    ) as context:
        outcome = statistics_daily.evaluate_tick(context)
    assert not outcome.run_requests
    assert "2025-01-01" in (outcome.skip_message or "")
