"""One crawl in a process of its own, so that its memory can be measured: `python -m tests.support.hostile_crawl`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from resources.crawler.client import FetchLimits
from tests.support.crawling import make_crawl, make_job
from tests.support.databases import Database


def peak_kb() -> int:
    """The most memory that this process had; getrusage would give what it inherited from its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


if __name__ == "__main__":
    from resources.crawler.plan import CrawlPlan

    url, *fields = sys.argv[1:]
    database = Database(*fields)
    plan = CrawlPlan(urls=(url,), allow_private=True, concurrency=32, max_seconds=120)
    make_job(database, "job", plan)
    limits = FetchLimits(max_body_bytes=8 * 2**20, page_seconds=3.0, connect_seconds=1.0, first_byte_seconds=1.0)
    before = peak_kb()
    started = time.monotonic()
    outcome = make_crawl(database, "job", plan, limits=limits).run()
    said = {"finish_reason": outcome.finish_reason, "seconds": time.monotonic() - started}
    print(json.dumps({**said, "grown_mb": (peak_kb() - before) // 1024}))
