"""Daily statistics: what was crawled on each day, by customer and by domain; they outlive what they are made from.

The figures are computed by one SQL function (`compute_daily_statistics` of revision 0003), one statement and one
transaction for any number of days, so that a computation that dies leaves what was there. What is here decides which
days to compute, tells what came of it, and proves a sample of it by another way of counting.

- A day is a day in UTC, and is computed once it is over.
- What cannot be counted again (its rows are gone) is left as it is: the database keeps it, the caller is told.
- Late rows are found from the rows themselves, not from what was asked for: whatever run was lost or failed, a day
  stays outdated until a computation of it has committed. The watermark only bounds how far back is looked.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

WATERMARK: Final = "statistics"

# For the sort of a year's results; the server's own setting is meant for many small queries at once.
_WORK_MEM: Final = "64MB"
# A year of a large platform takes minutes. Roles of hosted databases bring limits of seconds, meant for web requests.
_STATEMENT_TIMEOUT: Final = "3600s"

# deadlock_detected, serialization_failure, lock_not_available: another transaction was in the way.
# foreign_key_violation: a customer was erased while its rows were being counted.
_IN_THE_WAY: Final = frozenset({"40P01", "40001", "55P03", "23503"})
MAX_TRIES: Final = 4

# The watermark stays so far behind: rows of a transaction that was open for longer would be missed.
_MARGIN: Final = "1 hour"


class InvalidDays(ValueError):
    """A range of days is not one that statistics can be computed for."""


@dataclass(frozen=True, slots=True)
class DayStatistics:
    """What became of one day.

    Attributes:
        day: in UTC.
        customers: rows written to `daily_job_stats`.
        domains: rows written to `daily_domain_stats`.
        pages: that those count.
        kept: customers whose rows were left as they were, because what they count is gone.
    """

    day: date
    customers: int = 0
    domains: int = 0
    pages: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class ComputedStatistics:
    """What a computation did.

    Attributes:
        first_day: of the range, in UTC.
        last_day: of the range, included.
        days: every day of the range, in order; one without rows has zeros.
        seconds: wall time.
        retries: tries before the one that went through.
    """

    first_day: date
    last_day: date
    days: tuple[DayStatistics, ...]
    seconds: float
    retries: int = 0

    @property
    def rows(self) -> int:
        """Written, to both tables."""
        return sum(day.customers + day.domains for day in self.days)

    @property
    def pages(self) -> int:
        """Counted by what was written."""
        return sum(day.pages for day in self.days)

    @property
    def kept_days(self) -> tuple[date, ...]:
        """Days of which something was left as it was."""
        return tuple(day.day for day in self.days if day.kept)

    @property
    def nothing_may_be_written(self) -> bool:
        """True if all that there is of these days was kept."""
        return self.rows == 0 and bool(self.kept_days)


def yesterday(now: datetime) -> date:
    """The newest day that is over, in UTC."""
    return now.astimezone(UTC).date() - timedelta(days=1)


def check_days(first_day: date, last_day: date, now: datetime) -> None:
    """Refuse a range that cannot be computed.

    Raises:
        InvalidDays: it ends before it begins, or with a day that is not over.
    """
    if last_day < first_day:
        msg = f"statistics of {first_day} to {last_day} are refused: the range ends before it begins"
        raise InvalidDays(msg)
    if last_day > yesterday(now):
        msg = (
            f"statistics of {last_day} are refused: the day is not over in UTC, and what is computed now would be "
            f"wrong at its end; the newest day to compute is {yesterday(now)}"
        )
        raise InvalidDays(msg)


def compute(
    engine: Engine,
    first_day: date,
    last_day: date,
    *,
    now: datetime | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ComputedStatistics:
    """Compute the statistics of days from the rows that are there, in one transaction.

    What was computed before is replaced, but never by less than what is known: see `DayStatistics.kept`. It can be
    killed at any moment, done twice, and done twice at once.

    Args:
        engine: the permanent tier, as the role that runs the program.
        first_day: in UTC.
        last_day: included.
        now: the moment, with time zone; handed in by tests.
        clock: seconds; likewise.
        sleep: likewise.

    Raises:
        InvalidDays: the range cannot be computed; nothing was written.
        DatabaseError: the database cannot be used, or others stood in the way too often; nothing was written.
    """
    check_days(first_day, last_day, now or datetime.now(UTC))
    begun = clock()
    retries = 0
    while True:
        try:
            found = _compute(engine, first_day, last_day)
            break
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state not in _IN_THE_WAY or retries + 1 >= MAX_TRIES:
                raise describe_error(error, str(engine.url)) from error
            retries += 1
            sleep(random.uniform(0.1, 0.5) * 2**retries)  # noqa: S311 - two computations shall not meet again at once
    days = tuple(found.get(day) or DayStatistics(day) for day in days_between(first_day, last_day))
    return ComputedStatistics(first_day, last_day, days, clock() - begun, retries)


def _compute(engine: Engine, first_day: date, last_day: date) -> dict[date, DayStatistics]:
    # READ COMMITTED, whatever the pool's default: an upsert must see what another computation has committed.
    with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        connection.execute(
            text("SELECT set_config('work_mem', :memory, true), set_config('statement_timeout', :timeout, true)"),
            {"memory": _WORK_MEM, "timeout": _STATEMENT_TIMEOUT},
        )
        rows = connection.execute(
            text("SELECT day, customers, domains, pages, kept FROM compute_daily_statistics(:first, :last)"),
            {"first": first_day, "last": last_day},
        ).all()
    return {row.day: DayStatistics(*row) for row in rows}


def days_between(first_day: date, last_day: date) -> list[date]:
    """All days of a range, both ends included."""
    return [first_day + timedelta(days=n) for n in range((last_day - first_day).days + 1)]


def spans(days: Iterable[date], at_most: int | None = None) -> list[tuple[date, date]]:
    """Contiguous stretches of days, in order: first and last day of each.

    Args:
        days: in any order.
        at_most: so many stretches; where there are more, the smallest gaps are filled (to compute a day once more
            changes nothing).
    """
    found: list[tuple[date, date]] = []
    for day in sorted(set(days)):
        if found and found[-1][1] + timedelta(days=1) == day:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    while at_most is not None and len(found) > max(at_most, 1):
        _, i = min((found[i + 1][0] - found[i][1], i) for i in range(len(found) - 1))
        found[i : i + 2] = [(found[i][0], found[i + 1][1])]
    return found


# --- which days ---------------------------------------------------------------------------------------------------

_SINCE: Final = """
    (SELECT coalesce(max(w.at), '-infinity') FROM omniops_meta.watermarks AS w
     -- A watermark that was made for later days says nothing of earlier ones.
     WHERE w.name = :name AND w.value ->> 'first_day' <= CAST(:first AS text))
"""


def outdated_days(connection: Connection, first_day: date, last_day: date) -> list[date]:
    """Days whose rows changed since they were computed, or that have rows and were never computed; in order.

    Args:
        connection: as the service.
        first_day: the first day that statistics are kept of.
        last_day: the newest to be asked about, included.
    """
    rows = connection.execute(
        text(f"SELECT day FROM outdated_statistics_days(CAST(:first AS date), :last, {_SINCE}) ORDER BY day"),  # noqa: S608
        {"first": first_day.isoformat(), "last": last_day, "name": WATERMARK},
    )
    return list(rows.scalars())


def advance_watermark(connection: Connection, first_day: date, now: datetime) -> datetime:
    """Note up to which change of the rows all days are computed, and return it.

    That is the first change that no computation has seen yet, today's among them; without one, the present. So it
    may be called at any time and by several at once: what has not been computed keeps it back.

    Args:
        connection: as the service.
        first_day: the first day that statistics are kept of.
        now: the moment, with time zone.
    """
    moment: datetime = connection.execute(
        text(f"""
            INSERT INTO omniops_meta.watermarks AS w (name, at, value)
            SELECT :name, least(min(o.touched_at), now()) - CAST(:margin AS interval),
                   jsonb_build_object('first_day', CAST(:first AS text))
            FROM outdated_statistics_days(CAST(:first AS date), :last, {_SINCE}) AS o
            ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, at = CASE
                WHEN w.value ->> 'first_day' <= EXCLUDED.value ->> 'first_day'
                THEN greatest(w.at, EXCLUDED.at) ELSE EXCLUDED.at END
            RETURNING w.at
        """),  # noqa: S608 - a constant of this module
        {
            "name": WATERMARK,
            "margin": _MARGIN,
            "first": first_day.isoformat(),
            "last": now.astimezone(UTC).date() + timedelta(days=1),
        },
    ).scalar_one()
    return moment


def days_to_compute(connection: Connection, first_day: date, now: datetime) -> list[date]:
    """What the nightly computation is for: yesterday, and every day before it that is outdated; in order.

    Nights that were missed are among them, since their days have rows and were never computed.

    Args:
        connection: as the service.
        first_day: the first day that statistics are kept of.
        now: the moment, with time zone.
    """
    newest = yesterday(now)
    if newest < first_day:
        return []
    return sorted({*outdated_days(connection, first_day, newest), newest})


def days_without_statistics(connection: Connection, first_day: date, last_day: date) -> list[date]:
    """Days that have results or jobs, and nothing in `daily_job_stats`; in order."""
    rows = connection.execute(
        text("""
            WITH missing AS MATERIALIZED (
                SELECT CAST(g AS date) AS day, CAST(g AS timestamp) AT TIME ZONE 'UTC' AS begins,
                       CAST(g AS timestamp) AT TIME ZONE 'UTC' + interval '24 hours' AS ends
                FROM generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), interval '1 day') AS g
                WHERE NOT EXISTS (SELECT 1 FROM daily_job_stats AS s WHERE s.day = CAST(g AS date))
            )
            -- Counted, since for EXISTS the planner hopes to meet a row soon, and reads the whole table for a day
            -- that has none.
            SELECT d.day FROM missing AS d
            WHERE (SELECT count(*) FROM scrape_jobs AS j
                   WHERE coalesce(j.completed_at, j.created_at) >= d.begins
                     AND coalesce(j.completed_at, j.created_at) < d.ends) > 0
               OR (SELECT count(*) FROM scrape_job_results AS r
                   WHERE r.created_at >= d.begins AND r.created_at < d.ends) > 0
            ORDER BY d.day
        """),
        {"first": first_day, "last": last_day},
    )
    return list(rows.scalars())


# --- proofs -------------------------------------------------------------------------------------------------------

_COMPARED: Final = (
    "jobs_completed", "jobs_failed", "jobs_cancelled", "jobs_unfinished", "total_pages", "successful_pages",
    "failed_pages", "skipped_pages", "changed_pages", "unchanged_pages", "retries", "bytes", "p50_ms", "p95_ms",
    "p99_ms", "active_seconds", "pages_per_second", "pages_by_reason", "pages_by_http_status",
)  # fmt: skip

# Which rows are looked at: the same seed gives the same ones. Frozen ones cannot be counted again.
_SAMPLES: Final = {
    "daily_job_stats": """
        SELECT s.*, CAST(NULL AS text) AS domain, CAST(NULL AS bigint) AS jobs FROM daily_job_stats AS s
        WHERE s.day BETWEEN :first AND :last AND s.frozen_at IS NULL
        ORDER BY md5(concat_ws('/', CAST(:seed AS text), s.day, s.customer_id)) LIMIT :size
    """,
    "daily_domain_stats": """
        SELECT s.* FROM daily_domain_stats AS s
        WHERE s.day BETWEEN :first AND :last AND s.frozen_at IS NULL
        ORDER BY md5(concat_ws('/', CAST(:seed AS text), s.day, s.customer_id, s.domain)) LIMIT :size
    """,
}

# Counted in another way than the function does: one customer's (or domain's) day at a time, percentiles by place.
_COUNTED_AGAIN: Final = """
    SELECT j.jobs_completed, j.jobs_failed, j.jobs_cancelled, j.jobs_unfinished, r.jobs, r.total_pages,
           r.successful_pages, r.failed_pages, r.skipped_pages, r.changed_pages, r.unchanged_pages, r.retries,
           least(r.bytes, 9223372036854775807) AS bytes,
           r.times[ceil(CAST(0.5 AS float8) * cardinality(r.times))] AS p50_ms,
           r.times[ceil(CAST(0.95 AS float8) * cardinality(r.times))] AS p95_ms,
           r.times[ceil(CAST(0.99 AS float8) * cardinality(r.times))] AS p99_ms,
           j.active_seconds, r.total_pages / nullif(j.active_seconds, 0) AS pages_per_second,
           r.pages_by_reason, r.pages_by_http_status
    FROM (
        SELECT coalesce(sum(CASE j.status WHEN 'completed' THEN 1 END), 0) AS jobs_completed,
               coalesce(sum(CASE j.status WHEN 'failed' THEN 1 END), 0) AS jobs_failed,
               coalesce(sum(CASE j.status WHEN 'cancelled' THEN 1 END), 0) AS jobs_cancelled,
               coalesce(sum(CASE WHEN j.status NOT IN ('completed', 'failed', 'cancelled') THEN 1 END), 0)
                   AS jobs_unfinished,
               coalesce(sum(CASE WHEN j.status IN ('completed', 'failed', 'cancelled') THEN greatest(0,
                   extract(epoch FROM j.completed_at - j.started_at) - j.paused_seconds) END), 0) AS active_seconds
        FROM scrape_jobs AS j
        WHERE j.customer_id = :customer AND (CAST(:domain AS text) IS NULL OR j.domain = :domain)
          AND date_trunc('day', coalesce(j.completed_at, j.created_at), 'UTC') = :begins
    ) AS j, (
        WITH pages AS MATERIALIZED (
            SELECT r.*, CASE WHEN r.status = 'success' THEN NULL
                             WHEN r.skip_reason <> '' THEN substr(r.skip_reason, 1, 80)
                             WHEN substring(r.error_message FROM '^[^:]+') <> ''
                                 THEN substr(substring(r.error_message FROM '^[^:]+'), 1, 80)
                             ELSE 'unknown' END AS reason
            FROM scrape_job_results AS r
            WHERE r.customer_id = :customer AND r.created_at >= :begins AND r.created_at < :ends
              AND (CAST(:domain AS text) IS NULL
                   OR r.job_id IN (SELECT j.job_id FROM scrape_jobs AS j
                                   WHERE j.customer_id = :customer AND j.domain = :domain))
        )
        SELECT count(*) AS total_pages, (SELECT count(*) FROM (SELECT DISTINCT job_id FROM pages) AS d) AS jobs,
               count(CASE status WHEN 'success' THEN 1 END) AS successful_pages,
               count(CASE status WHEN 'failed' THEN 1 END) AS failed_pages,
               count(CASE status WHEN 'skipped' THEN 1 END) AS skipped_pages,
               count(nullif(changed, false)) AS changed_pages,
               count(CASE WHEN changed = false OR reason = 'not_modified' THEN 1 END) AS unchanged_pages,
               coalesce(sum(CASE WHEN tries > 1 THEN tries - 1 END), 0) AS retries, coalesce(sum(bytes), 0) AS bytes,
               array_agg(processing_time_ms ORDER BY processing_time_ms)
                   FILTER (WHERE processing_time_ms IS NOT NULL) AS times,
               (SELECT coalesce(jsonb_object_agg(n.reason, n.pages), '{}') FROM (
                    SELECT reason, count(*) AS pages FROM pages WHERE reason IS NOT NULL GROUP BY reason) AS n
               ) AS pages_by_reason,
               (SELECT coalesce(jsonb_object_agg(n.http_status, n.pages), '{}') FROM (
                    SELECT http_status, count(*) AS pages FROM pages
                    WHERE http_status IS NOT NULL GROUP BY http_status) AS n
               ) AS pages_by_http_status
        FROM pages
    ) AS r
"""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A row that does not say what its rows say.

    Attributes:
        day: in UTC.
        customer_id: whose.
        domain: None in `daily_job_stats`.
        column: which.
        stored: what stands there.
        counted: what was counted again.
    """

    day: date
    customer_id: UUID
    domain: str | None
    column: str
    stored: Any
    counted: Any


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """A sample of rows, counted again.

    Attributes:
        table: which.
        seed: that gives the same sample again.
        compared: rows.
        mismatches: what differs, by column.
        late: rows that differ because their day's rows changed after the computation; the next night's work.
    """

    table: str
    seed: str
    compared: int
    mismatches: tuple[Mismatch, ...]
    late: int


def check_sample(
    connection: Connection, table: str, *, seed: str, size: int, first_day: date, last_day: date
) -> SampleCheck:
    """Count a sample of a table's rows again, from the results and jobs of their days.

    Args:
        connection: as the service, at REPEATABLE READ.
        table: `daily_job_stats` or `daily_domain_stats`.
        seed: decides which rows.
        size: how many at most.
        first_day: in UTC.
        last_day: included.
    """
    sample = connection.execute(
        text(_SAMPLES[table]), {"first": first_day, "last": last_day, "seed": seed, "size": size}
    ).mappings().all()  # fmt: skip
    columns = _COMPARED if table == "daily_job_stats" else ("jobs", *_COMPARED)
    mismatches: list[Mismatch] = []
    late = 0
    for stored in sample:
        counted = _count_again(connection, stored)
        differing = [c for c in columns if not _same(stored[c], counted[c])]
        if differing and _is_late(connection, stored["day"], stored["computed_at"]):
            late += 1
            continue
        mismatches += [
            Mismatch(stored["day"], stored["customer_id"], stored["domain"], c, stored[c], counted[c])
            for c in differing
        ]
    return SampleCheck(table, seed, len(sample), tuple(mismatches), late)


def _count_again(connection: Connection, row: Mapping[Any, Any]) -> Mapping[Any, Any]:
    begins = datetime(row["day"].year, row["day"].month, row["day"].day, tzinfo=UTC)
    return connection.execute(
        text(_COUNTED_AGAIN),
        {"customer": row["customer_id"], "domain": row["domain"], "begins": begins,
         "ends": begins + timedelta(days=1)},
    ).mappings().one()  # fmt: skip


def _same(stored: Any, counted: Any) -> bool:
    if isinstance(stored, float) and counted is not None:
        return math.isclose(stored, float(counted), rel_tol=1e-9, abs_tol=1e-6)
    return bool(stored == counted)


def _is_late(connection: Connection, day: date, computed_at: datetime) -> bool:
    # The function looks ten minutes further back than it is asked to.
    since = computed_at + timedelta(minutes=10)
    found = connection.execute(
        text("SELECT count(*) FROM outdated_statistics_days(:day, :day, :since)"), {"day": day, "since": since}
    )
    return bool(found.scalar())


def domains_that_do_not_add_up(connection: Connection, first_day: date, last_day: date) -> list[dict[str, Any]]:
    """Days and customers whose domains together say something else than the customer's row; at most 100.

    Frozen rows are compared by pages only: those of earlier revisions hold no jobs by domain.
    """
    rows = connection.execute(
        text("""
            SELECT coalesce(c.day, d.day) AS day, coalesce(c.customer_id, d.customer_id) AS customer_id,
                   c.total_pages AS pages, d.total_pages AS pages_of_domains,
                   c.jobs AS jobs, d.jobs AS jobs_of_domains
            FROM (
                SELECT day, customer_id, total_pages, frozen_at IS NOT NULL AS frozen,
                       jobs_completed + jobs_failed + jobs_cancelled + jobs_unfinished AS jobs,
                       ROW(total_pages, successful_pages, failed_pages, skipped_pages, retries, bytes) AS counts,
                       ROW(jobs_completed, jobs_failed, jobs_cancelled, jobs_unfinished, changed_pages,
                           unchanged_pages) AS more, active_seconds
                FROM daily_job_stats WHERE day BETWEEN :first AND :last
            ) AS c
            FULL JOIN (
                SELECT day, customer_id, sum(total_pages)::bigint AS total_pages,
                       sum(jobs_completed + jobs_failed + jobs_cancelled + jobs_unfinished)::bigint AS jobs,
                       ROW(sum(total_pages)::bigint, sum(successful_pages)::bigint, sum(failed_pages)::bigint,
                           sum(skipped_pages)::bigint, sum(retries)::bigint,
                           least(sum(bytes), 9223372036854775807)::bigint) AS counts,
                       ROW(sum(jobs_completed)::bigint, sum(jobs_failed)::bigint, sum(jobs_cancelled)::bigint,
                           sum(jobs_unfinished)::bigint, sum(changed_pages)::bigint, sum(unchanged_pages)::bigint
                       ) AS more, sum(active_seconds) AS active_seconds
                FROM daily_domain_stats WHERE day BETWEEN :first AND :last GROUP BY day, customer_id
            ) AS d ON d.day = c.day AND d.customer_id = c.customer_id
            WHERE (c.counts IS DISTINCT FROM d.counts AND (c.total_pages > 0 OR d.total_pages > 0))
               OR (NOT coalesce(c.frozen, false)
                   AND (c.more IS DISTINCT FROM d.more OR abs(c.active_seconds - d.active_seconds) > 0.001))
            ORDER BY 1, 2 LIMIT 100
        """),
        {"first": first_day, "last": last_day},
    )
    return [dict(row) for row in rows.mappings()]


# --- pictures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DayOverview:
    """All customers' figures of a day.

    Attributes:
        day: in UTC.
        customers: with anything on that day.
        successful, failed, skipped: pages.
        completed, failed_jobs, cancelled, unfinished: jobs.
        p95_ms: of the pages of all customers, weighted by their pages; an estimate, since percentiles do not add up.
        kept: of how many customers the rows are gone, so that their figures stay.
    """

    day: date
    customers: int
    successful: int
    failed: int
    skipped: int
    completed: int
    failed_jobs: int
    cancelled: int
    unfinished: int
    p95_ms: float | None
    kept: int


def overview(connection: Connection, first_day: date, last_day: date) -> Sequence[DayOverview]:
    """The days of a range that have statistics, in order."""
    rows = connection.execute(
        text("""
            SELECT day, count(*), sum(successful_pages)::bigint, sum(failed_pages)::bigint,
                   sum(skipped_pages)::bigint, sum(jobs_completed)::bigint, sum(jobs_failed)::bigint,
                   sum(jobs_cancelled)::bigint, sum(jobs_unfinished)::bigint,
                   CAST(sum(p95_ms * total_pages)
                        / nullif(sum(total_pages) FILTER (WHERE p95_ms IS NOT NULL), 0) AS float8),
                   count(frozen_at)
            FROM daily_job_stats WHERE day BETWEEN :first AND :last GROUP BY day ORDER BY day
        """),
        {"first": first_day, "last": last_day},
    )
    return [DayOverview(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class DomainDay:
    """A domain's figures of a day, of whichever customers.

    Attributes:
        day: in UTC.
        domain: a host.
        pages: of all outcomes.
        p95_ms: of its customers' pages, weighted by pages.
    """

    day: date
    domain: str
    pages: int
    p95_ms: float | None


def domain_overview(connection: Connection, first_day: date, last_day: date, largest: int) -> Sequence[DomainDay]:
    """The days of the domains with the most pages in a range, in order of day."""
    rows = connection.execute(
        text("""
            WITH largest AS (
                SELECT domain FROM daily_domain_stats WHERE day BETWEEN :first AND :last
                GROUP BY domain ORDER BY sum(total_pages) DESC, domain LIMIT :largest
            )
            SELECT day, domain, CAST(sum(total_pages) AS bigint),
                   CAST(sum(p95_ms * total_pages)
                        / nullif(sum(total_pages) FILTER (WHERE p95_ms IS NOT NULL), 0) AS float8)
            FROM daily_domain_stats JOIN largest USING (domain)
            WHERE day BETWEEN :first AND :last GROUP BY day, domain ORDER BY day, domain
        """),
        {"first": first_day, "last": last_day, "largest": largest},
    )
    return [DomainDay(*row) for row in rows]


_ROW_COUNTS: Final = {
    "daily_job_stats": "SELECT day, count(*) FROM daily_job_stats GROUP BY day",
    "daily_domain_stats": "SELECT day, count(*) FROM daily_domain_stats GROUP BY day",
}


def count_rows(connection: Connection, table: str, first_day: date, last_day: date) -> tuple[dict[date, int], int]:
    """Rows of a table by day of a range, and in all."""
    counts: dict[date, int] = {row.day: row[1] for row in connection.execute(text(_ROW_COUNTS[table]))}
    return {day: n for day, n in counts.items() if first_day <= day <= last_day}, sum(counts.values())
