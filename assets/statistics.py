"""Assets of the group `statistics`: each day's crawling, by customer and by domain, and what proves it.

Both tables are partitioned by day in UTC and computed together, since one reading of the results makes both: a
partition or a range of them is one run, one statement and one transaction. To compute a day again changes nothing but
the time that it bears.

A partition is a day that is over (`end_offset` 0): the running one would be materialised with figures that its
evening makes wrong. The first day is a setting, `OMNIOPS_STATISTICS_FIRST_DAY`; what came before has no statistics.

A backfill of a year is a run of 730 materialisations. Each has a few numbers only; tables and pictures hang on the
newest one. Dagster writes the events of an asset in batches where `DAGSTER_EVENT_BATCH_SIZE` says so.

No `from __future__ import annotations`: Dagster reads the annotations of assets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field
from sqlalchemy.exc import DBAPIError

from assets.html import Table, as_markdown_table
from assets.plots import Series, Svg, as_markdown, bars, line
from assets.publish import snapshot
from assets.specs import table_spec
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres import statistics
from resources.postgres.connection import DatabaseError, describe_error
from resources.postgres.resource import PostgresResource
from resources.postgres.statistics import ComputedStatistics, DayOverview, DomainDay, InvalidDays
from resources.services import ServiceError
from resources.settings import InvalidSetting, Settings

TABLES: Final = ("daily_job_stats", "daily_domain_stats")

# Changes with what the columns mean. (The functions are those of schema revision 0003.)
CODE_VERSION: Final = "3"

FIRST_DAY: Final = Settings.from_environment().statistics_first_day
PARTITIONS: Final = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), timezone="UTC", end_offset=0)

# Made at 00:30 of each day. The policy sees that something was materialised and not which partition; the check
# `newest_day_is_there` does.
_FRESH: Final = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26), warn_window=timedelta(hours=25))

# Yesterday's run begins at 00:30 UTC and has an hour.
_GRACE: Final = timedelta(minutes=90)

_PLOTTED_DAYS: Final = 30
_TABLE_DAYS: Final = 14
_DOMAINS: Final = 8
# Raw rows live for 90 days; what is older cannot be counted again.
_CHECKED_DAYS: Final = 90


def _refuse(error: Exception) -> dg.Failure:
    return dg.Failure(description=str(error), allow_retries=False)


def _days(context: dg.AssetExecutionContext) -> tuple[date, date]:
    keys = context.partition_key_range
    return date.fromisoformat(keys.start), date.fromisoformat(keys.end)


@dg.multi_asset(
    name="daily_statistics",
    specs=[
        table_spec(name, partitions_def=PARTITIONS, freshness_policy=_FRESH).replace_attributes(
            code_version=CODE_VERSION
        )
        for name in TABLES
    ],
    partitions_def=PARTITIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description="Computes the statistics of days, by customer and by domain. Days whose rows are gone stay as they "
    "are.",
)
def daily_statistics(
    context: dg.AssetExecutionContext, postgres: PostgresResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Compute the partition or range of partitions, both tables in one transaction.

    Raises:
        Failure: a day is not over; the database cannot be used; or all that there is of these days counts rows that
            are gone. Nothing was written.
    """
    first, last = _days(context)
    try:
        check_database(postgres.endpoints().database_url)
        computed = statistics.compute(postgres.engine(), first, last)
    except (InvalidDays, DatabaseError, ServiceError, RefusedOrder, InvalidSetting) as error:
        raise _refuse(error) from error
    if computed.nothing_may_be_written:
        raise dg.Failure(description=kept_sentence(computed), allow_retries=False)
    context.log.info(_sentence(computed))
    if computed.kept_days:
        context.log.warning(
            f"{_listed(computed.kept_days)}: kept as they were for some or all customers, because rows that they "
            "count have been removed since; the other days were computed"
        )
    if first == last == statistics.yesterday(datetime.now(UTC)):
        # The nightly run. A backfill need not ask what else has changed, which can cost as much as its own work.
        _note_watermark(context, postgres)
    with snapshot(postgres) as connection:
        counts = {name: statistics.count_rows(connection, name, first, last) for name in TABLES}
        newest = {
            "daily_job_stats": _pictures_of_days(
                statistics.overview(connection, last - timedelta(days=_PLOTTED_DAYS - 1), last)
            ),
            "daily_domain_stats": _pictures_of_domains(
                statistics.domain_overview(connection, last - timedelta(days=_PLOTTED_DAYS - 1), last, _DOMAINS)
            ),
        }
    for name in TABLES:
        by_day, total = counts[name]
        for day in computed.days:
            context.add_asset_metadata(
                asset_key=name, partition_key=day.day.isoformat(), metadata=_of_day(day, by_day.get(day.day, 0))
            )
        context.add_asset_metadata(
            asset_key=name,
            partition_key=last.isoformat(),
            metadata={
                "dagster/row_count": total,
                "days computed": len(computed.days) - len(computed.kept_days),
                "days kept": len(computed.kept_days),
                "seconds": round(computed.seconds, 3),
                **newest[name],
            },
        )
        yield dg.MaterializeResult(asset_key=name)


def _of_day(day: statistics.DayStatistics, rows: int) -> dict[str, Any]:
    # Of each of hundreds of events: short.
    kept = {"customers kept": day.kept} if day.kept else {}
    return {"dagster/partition_row_count": rows, "pages": day.pages, **kept}


def _note_watermark(context: dg.AssetExecutionContext, postgres: PostgresResource) -> None:
    """What is committed is committed: without the note the next night only looks further back."""
    try:
        with postgres.engine().begin() as connection:
            statistics.advance_watermark(connection, FIRST_DAY, datetime.now(UTC))
    except DBAPIError as error:
        sentence = describe_error(error, postgres.endpoints().database_url)
        context.log.warning(f"the watermark of the statistics stays where it was: {sentence}")


def _sentence(computed: ComputedStatistics) -> str:
    days = f"{computed.first_day}" if len(computed.days) == 1 else f"{computed.first_day} to {computed.last_day}"
    again = f", after {computed.retries} tries that met another transaction" if computed.retries else ""
    return f"{days}: {computed.rows:,} rows of {computed.pages:,} pages in {computed.seconds:.1f} s{again}"


def kept_sentence(computed: ComputedStatistics) -> str:
    """Why nothing of a range was computed, and what to do."""
    days = _listed(computed.kept_days)
    return (
        f"the statistics of {days} were not computed again: results or jobs that they count have been removed "
        "(by retention, or by hand), and what is left would say less than what is known. Nothing was changed. "
        "Leave these days out of the backfill; to give their statistics up on purpose, delete their rows from "
        "daily_job_stats and daily_domain_stats first"
    )


def _listed(days: Sequence[date]) -> str:
    stretches = [f"{a}" if a == b else f"{a} to {b}" for a, b in statistics.spans(days)]
    more = f" and {len(stretches) - 5} more stretches" if len(stretches) > 5 else ""
    return ", ".join(stretches[:5]) + more


# --- tables and pictures ------------------------------------------------------------------------------------------


def _pictures_of_days(days: Sequence[DayOverview]) -> dict[str, Any]:
    if not days:
        return {"days": f"Nothing was crawled in the {_PLOTTED_DAYS} days up to this one."}
    shown = Table(
        "Days",
        ["day", "customers", "successful", "failed", "skipped", "p95 ms", "jobs completed", "jobs failed",
         "jobs cancelled", "jobs unfinished", "customers kept"],
        [
            [d.day, d.customers, d.successful, d.failed, d.skipped, d.p95_ms, d.completed, d.failed_jobs, d.cancelled,
             d.unfinished, d.kept]
            for d in reversed(days[-_TABLE_DAYS:])
        ],
        note="p95: of each customer's, weighted by pages.",
    )  # fmt: skip
    return {
        "days": dg.MetadataValue.md(as_markdown_table(shown)),
        "pages": _shown(pages_by_status(days)),
        "latency": _shown(latency(days)),
        "jobs": _shown(jobs_by_status(days)),
    }


def pages_by_status(days: Sequence[DayOverview]) -> Svg:
    """A bar a day."""
    return bars(
        [day.day for day in days],
        [
            Series("successful", [d.successful for d in days]),
            Series("failed", [d.failed for d in days]),
            Series("skipped", [d.skipped for d in days]),
        ],
        title="Pages by status",
        unit="pages",
    )


def latency(days: Sequence[DayOverview]) -> Svg:
    """A line over the days."""
    return line(
        [day.day for day in days], [Series("p95", [d.p95_ms for d in days])], title="p95 of a page", unit="ms"
    )


def jobs_by_status(days: Sequence[DayOverview]) -> Svg:
    """A bar a day."""
    return bars(
        [day.day for day in days],
        [
            Series("completed", [d.completed for d in days]),
            Series("failed", [d.failed_jobs for d in days]),
            Series("cancelled", [d.cancelled for d in days]),
            Series("unfinished", [d.unfinished for d in days]),
        ],
        title="Jobs by status",
        unit="jobs",
    )


def _pictures_of_domains(rows: Sequence[DomainDay]) -> dict[str, Any]:
    if not rows:
        return {"domains": f"Nothing was crawled in the {_PLOTTED_DAYS} days up to this one."}
    days = sorted({row.day for row in rows})
    domains = sorted({row.domain for row in rows})

    def series(value: Callable[[DomainDay], float | None]) -> list[Series]:
        by_cell = {(row.domain, row.day): value(row) for row in rows}
        return [Series(domain, [by_cell.get((domain, day)) for day in days]) for domain in domains]

    return {
        "pages": _shown(bars(days, series(lambda r: r.pages), title="Pages by domain", unit="pages")),
        "latency": _shown(line(days, series(lambda r: r.p95_ms), title="p95 of a page by domain", unit="ms")),
    }


def _shown(plot: Svg) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(as_markdown(plot))


# --- checks -------------------------------------------------------------------------------------------------------


class SampleConfig(dg.Config):
    """How much is counted again."""

    seed: str = Field(
        default="", description="Gives the same sample again; an earlier check's metadata has it. Empty: a new one."
    )
    sample: int = Field(default=10, description="How many rows of each table are counted again, 1 to 1000.")


_WRONG: Final = (
    "Compute the days named again (materialise their partitions). If they differ again, the function "
    "compute_daily_statistics is wrong: do not trust what is derived from it, and run `omniops migrate --verify`."
)

# Without a report of wrong figures nobody decides anything by them: what depends on the tables waits.
CHECKS: Final = (
    *(
        dg.AssetCheckSpec(
            "matches_its_rows",
            asset=name,
            blocking=True,
            description="A sample of the rows that can be counted again equals what another query counts, so a "
            "failure means that figures are wrong. To do: materialise the days named again; if they differ again, "
            "run `omniops migrate --verify`.",
        )
        for name in TABLES
    ),
    dg.AssetCheckSpec(
        "adds_up_to_customers",
        asset="daily_domain_stats",
        blocking=True,
        description="The domains of each customer and day together say what the customer's row says. A failure means "
        "that one of the two tables was changed by somebody else. To do: materialise the days named again.",
    ),
    dg.AssetCheckSpec(
        "newest_day_is_there",
        asset="daily_job_stats",
        description="Every day that is due (yesterday from 01:30 UTC on) and has rows has statistics. A failure "
        "means that statistics_daily did not run or failed. To do: see why; its next run makes up for it.",
    ),
)


@dg.multi_asset_check(name="daily_statistics_checks", specs=CHECKS, can_subset=True)
def daily_statistics_checks(
    context: dg.AssetCheckExecutionContext, config: SampleConfig, postgres: PostgresResource
) -> Iterator[dg.AssetCheckResult]:
    """Count a sample again, add domains up, and look for days that are missing."""
    if not 1 <= config.sample <= 1000:
        msg = (
            f"sample is {config.sample}: it must be from 1 to 1000; each row of it is counted again from its results"
        )
        raise dg.Failure(description=msg, allow_retries=False)
    now = datetime.now(UTC)
    last = statistics.yesterday(now)
    first = max(FIRST_DAY, last - timedelta(days=_CHECKED_DAYS - 1))
    seed = config.seed or context.run.run_id
    selected = {(key.asset_key.to_user_string(), key.name) for key in context.selected_asset_check_keys}
    with snapshot(postgres) as connection:
        for name in TABLES:
            if (name, "matches_its_rows") in selected:
                yield result_of_sample(
                    statistics.check_sample(
                        connection, name, seed=seed, size=config.sample, first_day=first, last_day=last
                    )
                )
        if ("daily_domain_stats", "adds_up_to_customers") in selected:
            yield result_of_sums(statistics.domains_that_do_not_add_up(connection, first, last), first, last)
        if ("daily_job_stats", "newest_day_is_there") in selected:
            due = newest_day_due(now)
            yield result_of_days(statistics.days_without_statistics(connection, first, due), due)


def newest_day_due(now: datetime) -> date:
    """The newest day whose statistics have to be there."""
    return statistics.yesterday(now - _GRACE)


def result_of_sample(found: statistics.SampleCheck) -> dg.AssetCheckResult:
    """Passed if the sample holds what was counted again."""
    table = Table(
        "Differences",
        ["day", "customer", "domain", "column", "stored", "counted again"],
        [
            [m.day, str(m.customer_id), m.domain, m.column, str(m.stored), str(m.counted)]
            for m in found.mismatches[:50]
        ],
    )
    differing = len({(m.day, m.customer_id, m.domain) for m in found.mismatches})
    return dg.AssetCheckResult(
        asset_key=found.table,
        check_name="matches_its_rows",
        passed=not found.mismatches,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{differing} of {found.compared} rows differ" if differing else f"{found.compared} rows agree",
        metadata=_told(
            {
                "rows compared": found.compared,
                "rows that differ": differing,
                "rows with late results (computed again in the night)": found.late,
                "seed": found.seed,
            },
            table,
            _WRONG,
        ),
    )


def result_of_sums(rows: Sequence[Mapping[str, Any]], first: date, last: date) -> dg.AssetCheckResult:
    """Passed if there is no row."""
    table = Table(
        "Differences",
        ["day", "customer", "pages", "pages of domains", "jobs", "jobs of domains"],
        [
            [r["day"], str(r["customer_id"]), r["pages"], r["pages_of_domains"], r["jobs"], r["jobs_of_domains"]]
            for r in rows[:50]
        ],
    )
    return dg.AssetCheckResult(
        asset_key="daily_domain_stats",
        check_name="adds_up_to_customers",
        passed=not rows,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{len(rows)} days of customers differ" if rows else "all customers' domains add up",
        metadata=_told({"from": str(first), "to": str(last), "that differ": len(rows)}, table, _WRONG),
    )


def result_of_days(missing: Sequence[date], due: date) -> dg.AssetCheckResult:
    """Passed if no day is missing."""
    table = Table("Missing", ["day"], [[day] for day in missing])
    return dg.AssetCheckResult(
        asset_key="daily_job_stats",
        check_name="newest_day_is_there",
        passed=not missing,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"missing: {_listed(missing)}" if missing else f"nothing is missing up to {due}",
        metadata=_told(
            {"newest day due": str(due), "days missing": len(missing)},
            table,
            "See why statistics_daily did not run (is the daemon up, is the schedule on, did the run fail?); its "
            "next run makes up for what is missing, or materialise the days by hand.",
        ),
    )


def _told(figures: dict[str, Any], table: Table, what_to_do: str) -> dict[str, Any]:
    if not table.rows:
        return figures
    return {**figures, table.title: dg.MetadataValue.md(as_markdown_table(table)), "what to do": what_to_do}


STATISTICS_ASSETS: Final = (daily_statistics,)
STATISTICS_CHECKS: Final = (daily_statistics_checks,)
