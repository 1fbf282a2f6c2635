"""This project's crawl: frontier, results, statistics and pages in Postgres, the copy of the results in Valkey.

It is wired as the op `crawl_pages` wires it (the same cache writer, the same thread, Dagster imported), without
Dagster's log lines, which come every few seconds and not for each page.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from bench.contenders.stores import meter, new_job, open_connections
from omniops_pipelines.jobs.crawl import _result_cache, _run_interruptibly
from resources import stack
from resources.crawler.crawl import Crawl
from resources.crawler.plan import CrawlPlan
from resources.crawler.politeness import shared_limiter
from resources.crawler.reading import SiteMemory
from resources.postgres.content import index_waiting_content
from resources.postgres.frontier import CrawlFrontier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.postgres.frontier import FinishedUrl


def main() -> None:
    """Crawl once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--text", action="store_true", help="keep the pages' main texts, full-text indexed")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--no-cache", action="store_true", help="copy no results to Valkey")
    parser.add_argument("--job-type", default="full_crawl")
    options = parser.parse_args()
    plan = CrawlPlan(
        urls=(options.url,),
        job_type=options.job_type,
        max_pages=1_000_000,
        concurrency=options.concurrency,
        allow_private=True,
        keep_text=options.text,
    )
    order = new_job(plan)
    open_connections()
    measure = meter("omniops-text" if options.text else "omniops")
    copy = _result_cache(order.manager, order.job_id, order.customer_id)
    committed = batches = 0

    def on_committed(finished: Sequence[FinishedUrl]) -> None:
        nonlocal committed, batches
        if not options.no_cache:
            copy(finished)
        committed += len(finished)
        batches += 1
        measure.page_count(committed)

    crawl = Crawl(
        plan,
        CrawlFrontier(stack.database_engine(), order.job_id, order.customer_id),
        on_committed=on_committed,
        index=partial(index_waiting_content, stack.database_engine()),
        reconnect=stack.endpoints().ensure_running,
        memory=SiteMemory.of_customer(stack.database_engine(), order.customer_id),
        limiter=shared_limiter(order.manager.cache),
    )
    measure.start()
    outcome = _run_interruptibly(crawl, "cancelled", lambda: None)
    measured = measure.stop(outcome.progress.successful + outcome.progress.skipped)
    order.manager.update_job_status(order.job_id, "completed", finish_reason=outcome.finish_reason)
    measured.job_id = order.job_id
    measured.details = {
        "concurrency": options.concurrency,
        "batches": batches,
        "phases": outcome.progress.phases,
    }
    measured.print()
    stack.release()


if __name__ == "__main__":
    main()
