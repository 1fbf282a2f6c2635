"""One worker of a job that is recorded: says "ready", waits for a line, crawls, and prints what it did."""

from __future__ import annotations

import argparse
import json
import sys

from bench.contenders.stores import open_connections
from omniops_pipelines.jobs.crawl import _result_cache, _run_interruptibly
from resources import stack
from resources.crawler.crawl import Crawl
from resources.crawler.plan import CrawlPlan
from resources.crawler.politeness import shared_limiter
from resources.postgres.frontier import CrawlFrontier


def main() -> None:
    """Be a worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job_id")
    options = parser.parse_args()
    manager = stack.get_persistent_job_manager()
    job = manager.get_job_from_postgres(options.job_id)
    if job is None:
        sys.exit(f"there is no job {options.job_id}")
    open_connections()
    crawl = Crawl(
        CrawlPlan.from_config(job["config"]),
        CrawlFrontier(stack.database_engine(), options.job_id, job["customer_id"]),
        on_committed=_result_cache(manager, options.job_id, job["customer_id"]),
        reconnect=stack.endpoints().ensure_running,
        limiter=shared_limiter(manager.cache),
    )
    print("ready", flush=True)
    sys.stdin.readline()
    outcome = _run_interruptibly(crawl, "cancelled", lambda: None)
    done = {
        "pages": outcome.progress.fetched,
        "politeness": outcome.progress.phases["politeness"],
        "finish_reason": outcome.finish_reason,
    }
    print(json.dumps(done), flush=True)
    stack.release()


if __name__ == "__main__":
    main()
