"""`page_loss_sensor`: a site that lost more than half of its pages in one crawl is an alert.

At its end a crawl removes the pages that are gone, moved or linked from nowhere any more. That most of a site is gone
at once is more often a mistake (a broken deployment, a moved shop, a login before everything) than what its owner
wanted: then nothing is removed (`crawl_settle_pages` holds it back, and writes it to `scrape_jobs.removals`), and
this sensor tells somebody.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import dagster as dg
from sqlalchemy import Connection, text

from resources.alerts import Alert, Alerts
from resources.postgres.resource import PostgresResource
from resources.postgres.watermarks import advance_watermark, read_watermark
from sensors.alerting import alerts_of

SITE_LOST_PAGES: Final = "site_lost_pages"
INTERVAL_SECONDS: Final = 60
WATERMARK: Final = "page_losses"
# A job's end is written by a transaction that may be seen later than a newer one's.
OVERLAP: Final = timedelta(minutes=2)
MAX_JOBS: Final = 200


@dataclass(frozen=True, slots=True)
class CompletedJob:
    """A completed crawl, and what it found of its site.

    Attributes:
        job_id: its key.
        customer_id: whose.
        customer: slug.
        domain: the site.
        run_id: its Dagster run.
        completed_at: its end.
        alive: pages of the site that were there before.
        lost: pages that this job did not find any more.
        held_back: they were too many to be removed, and none was.
    """

    job_id: str
    customer_id: UUID
    customer: str
    domain: str
    run_id: str | None
    completed_at: datetime
    alive: int
    lost: int
    held_back: bool

    @property
    def episode(self) -> str:
        """What an alert is about."""
        return f"{self.customer}/{self.domain}"


def judge(job: CompletedJob) -> Alert | None:
    """The alert of a crawl that found most of its site gone; None: it did not. Pure."""
    if not job.held_back:
        return None
    return Alert(
        alert=SITE_LOST_PAGES,
        episode=job.episode,
        severity="warning",
        message=f"{job.domain} of {job.customer} lost {job.lost:,} of {job.alive:,} pages in one crawl; "
        "none was removed",
        what_to_do="Open some of them in a browser. If the site is broken or was moved, mend that and crawl it "
        f"again. If it is meant, remove them: omniops jobs settle {job.job_id} --accept-removals",
        customer_id=job.customer_id,
        run_id=job.run_id,
        details={"job_id": job.job_id, "lost": job.lost, "before": job.alive},
        occurrence=job.job_id,
        at=job.completed_at,
    )


_COMPLETED = text("""
    WITH done AS (
        SELECT j.job_id, j.customer_id, j.domain, j.run_id, j.completed_at, j.removals AS r FROM scrape_jobs AS j
        WHERE j.status = 'completed' AND coalesce(j.completed_at, j.created_at) > :since
        ORDER BY coalesce(j.completed_at, j.created_at) LIMIT :limit
    )
    SELECT d.job_id, d.customer_id, c.slug AS customer, d.domain, d.run_id, d.completed_at,
           coalesce((d.r ->> 'alive')::bigint, 0) AS alive,
           coalesce((d.r ->> 'gone')::bigint + (d.r ->> 'moved')::bigint + (d.r ->> 'noindex')::bigint
                    + coalesce((d.r ->> 'disallowed')::bigint, 0) + (d.r ->> 'unlinked')::bigint, 0) AS lost,
           coalesce((d.r ->> 'held_back')::boolean, false) AS held_back
    FROM done AS d JOIN customers AS c ON c.id = d.customer_id
    ORDER BY d.completed_at, d.job_id
""")


def read_completed(connection: Connection, since: datetime, *, limit: int = MAX_JOBS) -> list[CompletedJob]:
    """Jobs that were completed after a moment, oldest first.

    Args:
        connection: as the service.
        since: the moment.
        limit: at most so many.
    """
    return [CompletedJob(*row) for row in connection.execute(_COMPLETED, {"since": since, "limit": limit})]


def look_at_completed_jobs(alerts: Alerts, connection: Connection) -> tuple[int, int, int]:
    """Report what the jobs found that were completed since the last time: how many jobs, losses and recoveries.

    The watermark moves with the connection's transaction, so what is not reported is looked at again.

    Raises:
        DBAPIError: something cannot be read or written.
    """
    since = read_watermark(connection, WATERMARK)
    jobs = read_completed(connection, since - OVERLAP)
    is_open = alerts.open_episodes(SITE_LOST_PAGES)
    lost = over = 0
    for job in jobs:
        alert = judge(job)
        key = (SITE_LOST_PAGES, job.episode)
        if alert is not None:
            lost += alerts.open(alert).outcome != "known"
            is_open[key] = job.completed_at
        elif key in is_open:
            over += alerts.close(*key, unless_seen_after=job.completed_at) is not None
    if jobs:
        advance_watermark(connection, WATERMARK, jobs[-1].completed_at)
    return len(jobs), lost, over


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it an assistant forgets a whole site over night, and nobody knows why.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="An alert where a crawl found more than half of its site's pages gone; the next one that does not "
    "ends it.",
)
def page_loss_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
    """Look at the crawls that were completed."""
    del context
    with postgres.engine().begin() as connection:
        jobs, lost, over = look_at_completed_jobs(alerts_of(postgres), connection)
    return dg.SkipReason(f"{jobs} completed jobs looked at: {lost} lost most of their pages, {over} are back")
