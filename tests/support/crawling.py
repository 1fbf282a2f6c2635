"""Running a crawl as the job's op does, without Dagster."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from resources.crawler.completion import settle
from resources.crawler.crawl import Crawl
from resources.crawler.plan import CrawlOutcome, CrawlPlan, CrawlProgress
from resources.crawler.urls import normalise
from resources.postgres.content import index_waiting_content
from resources.postgres.customers import ensure_customer

if TYPE_CHECKING:
    from tests.support.databases import Database


def make_job(database: Database, job_id: str, plan: CrawlPlan, customer: str = "acme") -> None:
    """Record a job, running."""
    with database.engine.begin() as connection:
        customer_id = ensure_customer(connection, customer)
    database.manager.create_job(
        job_id,
        None,
        {"customer_id": customer_id, "domain": "test", "job_type": plan.job_type, "config": plan.as_config()},
    )
    database.manager.update_job_status(job_id, "running")


def make_crawl(database: Database, job_id: str, plan: CrawlPlan, **options: Any) -> Crawl:
    """One run of a job that exists."""
    stats = database.manager.get_job_stats(job_id)
    progress = CrawlProgress(stats.total_pages, stats.successful_pages, stats.failed_pages, stats.skipped_pages)
    index = partial(index_waiting_content, database.engine)
    return Crawl(plan, database.frontier(job_id), start_from=progress, index=index, **options)


def stop_at(crawl: Crawl, pages: int) -> None:
    """Pause a crawl that is about to run as soon as it has results of so many pages."""

    def wait() -> None:
        while crawl.progress.total < pages:
            time.sleep(0.005)
        crawl.stop("paused")

    threading.Thread(target=wait, daemon=True).start()


def crawl(database: Database, url: str, job_id: str = "job", **fields: Any) -> CrawlOutcome:
    """Record a job for one url and run it to its end."""
    options = {"allow_private": True, **fields}
    plan = CrawlPlan(urls=(normalise(url),), **options)
    make_job(database, job_id, plan)
    outcome = make_crawl(database, job_id, plan).run()
    if outcome.complete:
        settle(plan, database.frontier(job_id), outcome.finish_reason)
    return outcome


def results(database: Database, job_id: str = "job") -> dict[str, dict[str, Any]]:
    """The job's results by path."""
    rows = database.manager.get_job_results_from_postgres(job_id, limit=10_000)
    return {"/" + row["url"].split("/", 3)[3]: row for row in rows}
