"""Who interrupts a crawl gets the process back when the job is in order, and not before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from omniops_pipelines.jobs.crawl import _run_interruptibly
from resources.crawler.completion import settle
from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import normalise
from tests.support.crawling import make_crawl, make_job, results
from tests.support.interruption import hears_interruptions, interrupt_after

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

PAGES = 200


def test_an_interrupted_crawl_has_no_worker_left_and_is_resumed_at_once(site: Site, database: Database) -> None:
    site.chain(PAGES)
    site.latency = 0.1
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True, concurrency=2)
    make_job(database, "job", plan)
    crawl = make_crawl(database, "job", plan)
    # What is given back has to wait for somebody else's transaction, for longer than the interruption takes.
    other = psycopg.connect(database.admin_url)
    held = False

    def interrupt_soon() -> None:
        nonlocal held
        if not held and len(results(database)) >= 3:
            other.execute("SELECT 1 FROM omniops_meta.crawl_workers FOR UPDATE")
            held = True
            interrupt_after(0.3)
            threading.Timer(1.5, other.rollback).start()

    with hears_interruptions(), pytest.raises(KeyboardInterrupt):
        _run_interruptibly(crawl, "paused", interrupt_soon)
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0
    assert database.value("SELECT count(*) FROM crawl_frontier WHERE worker_id IS NOT NULL AND NOT done") == 0
    assert 3 <= len(results(database)) < PAGES

    site.latency = 0.0
    outcome = make_crawl(database, "job", plan).run()
    assert outcome.complete
    settle(plan, database.frontier("job"), outcome.finish_reason)
    assert len(results(database)) == PAGES
    other.close()
