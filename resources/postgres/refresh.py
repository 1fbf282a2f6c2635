"""Which customers' websites are due to be crawled again, asked in one statement, however many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

# A site is crawled once a day where its configuration does not say otherwise.
DEFAULT_EVERY_HOURS: Final = 24
# The schedule looks once an hour; a job's record is kept for 90 days, and then nobody knows when the last one was.
MIN_EVERY_HOURS: Final = 1
MAX_EVERY_HOURS: Final = 90 * 24
# A tick may come some seconds earlier in its hour than the one that made yesterday's job; without this, a site that
# is due every 24 hours would be due an hour later every day.
SLACK_MINUTES: Final = 10


@dataclass(frozen=True, slots=True)
class SiteDue:
    """An enabled configuration, and whether its site is due.

    Attributes:
        config_id: its row.
        customer_id: whose it is.
        customer: slug.
        domain: as the configuration has it.
        state: `due`; or why not: `never` (it asks for no refresh), `recent` (a job was made within its interval),
            `unfinished` (a job waits or is under way); `invalid` where the interval cannot be read.
        every_hours: its interval; None where it is `never` or `invalid`.
        job_id: the job that stands in the way, where one does.
        since: when that job was made.
        settings: of the configuration, where it is `due` or `invalid`.
    """

    config_id: UUID
    customer_id: UUID
    customer: str
    domain: str
    state: str
    every_hours: float | None
    job_id: str | None
    since: datetime | None
    settings: Mapping[str, Any] | None


# `every_hours` is read by its JSON type first: a cast of something else would end the statement for everybody.
# A job is the site's by its domain (whoever made it), or by the configuration that it was made from.
_SITES = text("""
    WITH configured AS (
        SELECT k.id, k.customer_id, c.slug, k.domain, k.settings,
               CASE
                   WHEN NOT k.settings ? 'schedule' THEN :default
                   WHEN jsonb_typeof(k.settings -> 'schedule') <> 'object' THEN -1
                   WHEN NOT k.settings -> 'schedule' ? 'every_hours' THEN :default
                   WHEN k.settings #> '{schedule,every_hours}' IN ('false', '0') THEN 0
                   WHEN jsonb_typeof(k.settings #> '{schedule,every_hours}') <> 'number' THEN -1
                   WHEN (k.settings #> '{schedule,every_hours}')::numeric BETWEEN :low AND :high
                       THEN (k.settings #> '{schedule,every_hours}')::double precision
                   ELSE -1
               END AS hours
        FROM customer_configs AS k JOIN customers AS c ON c.id = k.customer_id
        WHERE k.enabled
    ), unfinished AS MATERIALIZED (
        SELECT job_id, customer_id, domain, created_at, metadata ->> 'config_id' AS config_id
        FROM scrape_jobs WHERE status IN ('queued', 'running', 'paused')
    ), in_the_way AS (
        SELECT DISTINCT ON (w.id) w.id, w.job_id, w.created_at FROM (
            SELECT k.id, u.job_id, u.created_at FROM configured AS k
            JOIN unfinished AS u ON u.customer_id = k.customer_id AND u.domain = k.domain
            UNION ALL
            SELECT k.id, u.job_id, u.created_at FROM configured AS k
            JOIN unfinished AS u ON u.customer_id = k.customer_id AND u.domain = lower(k.domain)
            UNION ALL
            SELECT k.id, u.job_id, u.created_at FROM configured AS k
            JOIN unfinished AS u ON u.customer_id = k.customer_id AND u.config_id = k.id::text
        ) AS w ORDER BY w.id, w.created_at DESC
    )
    SELECT s.id AS config_id, s.customer_id, s.slug AS customer, s.domain, s.state,
           CASE WHEN s.hours > 0 THEN s.hours END AS every_hours, s.job_id, s.since,
           CASE WHEN s.state IN ('due', 'invalid') THEN s.settings END AS settings
    FROM (
        SELECT k.*, coalesce(u.job_id, r.job_id) AS job_id, coalesce(u.created_at, r.created_at) AS since,
               CASE WHEN k.hours < 0 THEN 'invalid' WHEN k.hours = 0 THEN 'never'
                    WHEN u.job_id IS NOT NULL THEN 'unfinished' WHEN r.job_id IS NOT NULL THEN 'recent'
                    ELSE 'due' END AS state
        FROM configured AS k
        LEFT JOIN in_the_way AS u ON u.id = k.id AND k.hours > 0
        LEFT JOIN LATERAL (
            SELECT j.job_id, j.created_at FROM scrape_jobs AS j
            WHERE k.hours > 0 AND u.job_id IS NULL AND j.customer_id = k.customer_id
              AND j.created_at > CAST(:now AS timestamptz) - make_interval(secs => k.hours * 3600 - :slack)
              AND (j.domain IN (k.domain, lower(k.domain)) OR j.metadata ->> 'config_id' = k.id::text)
            ORDER BY j.created_at DESC LIMIT 1
        ) AS r ON true
    ) AS s
    ORDER BY s.customer_id, s.domain
""")


def sites(connection: Connection, now: datetime) -> Iterator[SiteDue]:
    """Every enabled configuration, with whether its site is due at this moment.

    Args:
        connection: as the service; the rows come in portions.
        now: the moment that is asked about.
    """
    rows = connection.execution_options(yield_per=2_000).execute(
        _SITES,
        {
            "now": now,
            "default": DEFAULT_EVERY_HOURS,
            "low": MIN_EVERY_HOURS,
            "high": MAX_EVERY_HOURS,
            "slack": SLACK_MINUTES * 60,
        },
    )
    for row in rows:
        yield SiteDue(**row._mapping)
