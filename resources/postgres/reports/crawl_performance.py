"""How crawling went over some weeks, by customer and website, against the same time before.

All of it is read from the daily statistics, which outlive the results: a few rows for each day and site, whatever the
number of pages. Percentiles of days do not add up to those of a month; what is told is the typical day (the median of
the days) and the worst one, and is named so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.statistics import DayOverview, days_without_statistics, overview, yesterday

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

MAX_DAYS: Final = 365


class InvalidPeriod(ValueError):
    """A period is not one that can be reported on."""


@dataclass(frozen=True, slots=True)
class Site:
    """A customer's website over one period.

    Attributes:
        customer: slug.
        domain: host.
        current: True for the period, False for the one before.
        days: with any statistics.
        pages, successful, failed, skipped: of all outcomes, and by outcome.
        changed, unchanged: pages that were read and known before.
        retries: tries after the first.
        bytes: on the wire.
        jobs_completed, jobs_failed: that ended in the period.
        active_seconds: of those jobs, pauses left out.
        p50_ms, p95_ms, p99_ms: of the typical day; None where no page was timed.
        worst_p95_ms: of the slowest day.
    """

    customer: str
    domain: str
    current: bool
    days: int
    pages: int
    successful: int
    failed: int
    skipped: int
    changed: int
    unchanged: int
    retries: int
    bytes: int
    jobs_completed: int
    jobs_failed: int
    active_seconds: float
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None
    worst_p95_ms: int | None


@dataclass(frozen=True, slots=True)
class Count:
    """Pages of a period with one reason or status code.

    Attributes:
        customer: slug.
        domain: host.
        what: the reason, or the code.
        pages: how many.
    """

    customer: str
    domain: str
    what: str
    pages: int


@dataclass(frozen=True, slots=True)
class CrawlPerformance:
    """What the report is made of.

    Attributes:
        at: when it was read.
        first_day: of the period, in UTC.
        last_day: included; the newest day that is over.
        before: first day of the period before, which is as long.
        sites: of both periods.
        days: of both periods, all customers together.
        reasons: why pages failed or were skipped, in the period.
        codes: HTTP status codes, in the period.
        missing: days of the period that have rows and no statistics.
    """

    at: datetime
    first_day: date
    last_day: date
    before: date
    sites: Sequence[Site]
    days: Sequence[DayOverview]
    reasons: Sequence[Count]
    codes: Sequence[Count]
    missing: Sequence[date]


_SITES: Final = """
    SELECT c.slug, s.domain, s.day >= :first AS current, count(*), sum(s.total_pages)::bigint,
           sum(s.successful_pages)::bigint, sum(s.failed_pages)::bigint, sum(s.skipped_pages)::bigint,
           sum(s.changed_pages)::bigint, sum(s.unchanged_pages)::bigint, sum(s.retries)::bigint, sum(s.bytes)::float8,
           sum(s.jobs_completed)::bigint, sum(s.jobs_failed)::bigint, sum(s.active_seconds),
           percentile_disc(0.5) WITHIN GROUP (ORDER BY s.p50_ms),
           percentile_disc(0.5) WITHIN GROUP (ORDER BY s.p95_ms),
           percentile_disc(0.5) WITHIN GROUP (ORDER BY s.p99_ms), max(s.p95_ms)
    FROM daily_domain_stats AS s JOIN customers AS c ON c.id = s.customer_id
    WHERE s.day BETWEEN :before AND :last GROUP BY c.slug, s.domain, current ORDER BY 5 DESC, 1, 2, 3
"""

_COUNTS: Final = {
    "reasons": """
        SELECT c.slug, s.domain, n.key, sum(n.value::bigint)::bigint FROM daily_domain_stats AS s
        JOIN customers AS c ON c.id = s.customer_id CROSS JOIN LATERAL jsonb_each_text(s.pages_by_reason) AS n
        WHERE s.day BETWEEN :first AND :last GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
    """,
    "codes": """
        SELECT c.slug, s.domain, n.key, sum(n.value::bigint)::bigint FROM daily_domain_stats AS s
        JOIN customers AS c ON c.id = s.customer_id CROSS JOIN LATERAL jsonb_each_text(s.pages_by_http_status) AS n
        WHERE s.day BETWEEN :first AND :last GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
    """,
}


def check_period(days: int) -> int:
    """Return the number of days.

    Raises:
        InvalidPeriod: it is not from 1 to 365.
    """
    if not 1 <= days <= MAX_DAYS:
        msg = (
            f"a report of {days} days is refused: daily statistics are kept for a year, so it must be 1 to {MAX_DAYS}"
        )
        raise InvalidPeriod(msg)
    return days


def crawl_performance(connection: Connection, days: int, now: datetime | None = None) -> CrawlPerformance:
    """Read the last days that are over, and as many before them.

    Args:
        connection: as the service, one snapshot.
        days: length of the period, 1 to 365.
        now: the moment, with time zone.

    Raises:
        InvalidPeriod: the days are out of range.
    """
    at = now or datetime.now(UTC)
    last = yesterday(at)
    first = last - timedelta(days=check_period(days) - 1)
    before = first - timedelta(days=days)
    period: dict[str, Any] = {"before": before, "first": first, "last": last}
    return CrawlPerformance(
        at,
        first,
        last,
        before,
        [Site(*row) for row in connection.execute(text(_SITES), period)],
        overview(connection, before, last),
        [Count(*row) for row in connection.execute(text(_COUNTS["reasons"]), {"first": first, "last": last})],
        [Count(*row) for row in connection.execute(text(_COUNTS["codes"]), {"first": first, "last": last})],
        days_without_statistics(connection, first, last),
    )
