"""The job `statistics`, and the schedule that keeps the daily statistics fresh.

Each night at 00:30 UTC there is one run for yesterday, and one for each stretch of earlier days that are outdated:
whose rows changed after they were computed (a crawl that went on after midnight, a job that ended, results that came
late), or that were never computed (the daemon was down). Which days those are is asked of the rows each time, so a
tick that is lost, or a run that fails, loses nothing: the next tick finds the same days.

The schedule is on from the first start. Retention freezes a day's statistics before it removes the day's rows, but
reports and alerts want yesterday's figures today; and a day without rows costs nothing.

No `from __future__ import annotations`: Dagster reads the annotations of schedules.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Final

import dagster as dg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from assets.statistics import FIRST_DAY, STATISTICS_CHECKS, TABLES
from resources.postgres.connection import DatabaseError, describe_error
from resources.postgres.resource import PostgresResource
from resources.postgres.statistics import days_to_compute, spans, yesterday
from resources.services import ServiceError
from resources.settings import InvalidSetting

SCHEDULE: Final = "statistics_daily"
# After midnight, with time for the last batches of the day; before the cleanups of the night.
CRON: Final = "30 0 * * *"

# Stretches of outdated days in one tick. More are joined: a run costs more than a day that is computed once more.
MAX_STRETCHES: Final = 10

# A tick that waits for long is given up by the daemon, and then requests nothing at all.
_READ_TIMEOUT: Final = "20s"

LATE_DAYS_TAG: Final = "omniops/late_days"

# Checks of the rows that statistics are made from; they stand in assets/checks.py.
RESULTS_CHECKS: Final = (
    dg.AssetCheckKey(dg.AssetKey("scrape_job_results"), "results_have_a_job"),
    dg.AssetCheckKey(dg.AssetKey("scrape_job_results"), "same_customer_as_parent"),
)

statistics_job = dg.define_asset_job(
    "statistics",
    # The checks of tenancy and retention that these tables share with all others are the job `reports`' work.
    # Those of the results come first and block: a wrong result would be counted, and frozen with its day one day.
    selection=dg.AssetSelection.assets(*TABLES).without_checks()
    | dg.AssetSelection.checks(*STATISTICS_CHECKS, *RESULTS_CHECKS),
    # Both tables are one op; a process for it and one for its checks would cost more than they do.
    executor_def=dg.in_process_executor,
    # A run whose process died is started again; what it had committed is computed once more, to the same figures.
    tags={"dagster/max_retries": "2"},
    description="Computes the daily statistics of a partition or a range of them, and checks them. A backfill is one "
    "run, whatever its length.",
)


def requests(days: Sequence[date], newest: date, tick: datetime, trouble: str = "") -> list[dg.RunRequest]:
    """The runs of a tick: the newest day alone, then the earlier ones by stretches.

    Args:
        days: to be computed; the newest is computed whether it is among them or not.
        newest: yesterday, in UTC.
        tick: when the tick was due; the same tick gives the same run keys.
        trouble: why late days are not known, for the run's tags.
    """
    prefix = f"{SCHEDULE}:{tick.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
    late = {LATE_DAYS_TAG: f"not known: {trouble}"[:250]} if trouble else {}
    made = [dg.RunRequest(run_key=prefix, partition_key=newest.isoformat(), tags=late)]
    for first, last in spans((day for day in days if day < newest), MAX_STRETCHES):
        made.append(
            dg.RunRequest(
                run_key=f"{prefix}:{first}",
                tags={
                    "dagster/asset_partition_range_start": first.isoformat(),
                    "dagster/asset_partition_range_end": last.isoformat(),
                    LATE_DAYS_TAG: "yes",
                },
            )
        )
    return made


@dg.schedule(
    name=SCHEDULE,
    job=statistics_job,
    cron_schedule=CRON,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday's statistics, and those of earlier days whose rows changed or were never counted.",
)
def statistics_daily(
    context: dg.ScheduleEvaluationContext, postgres: PostgresResource
) -> list[dg.RunRequest] | dg.SkipReason:
    """Request yesterday, and what is outdated; if that cannot be read, yesterday all the same."""
    tick = context.scheduled_execution_time
    newest = yesterday(tick)
    if newest < FIRST_DAY:
        return dg.SkipReason(
            f"statistics begin with {FIRST_DAY} (OMNIOPS_STATISTICS_FIRST_DAY), which is not over yet"
        )
    try:
        days = _outdated(postgres, tick)
    except (DatabaseError, ServiceError, InvalidSetting) as error:
        # A failed read is not an empty answer: the run itself fails in words, or the database is back by then.
        context.log.warning(f"which earlier days are outdated is not known, the next tick finds them: {error}")
        return requests([], newest, tick, trouble=str(error))
    return requests(days, newest, tick)


def _outdated(postgres: PostgresResource, tick: datetime) -> list[date]:
    try:
        with postgres.engine().begin() as connection:
            connection.execute(
                text("SELECT set_config('statement_timeout', :timeout, true)"), {"timeout": _READ_TIMEOUT}
            )
            return days_to_compute(connection, FIRST_DAY, tick)
    except DBAPIError as error:
        raise describe_error(error, postgres.endpoints().database_url) from error
