"""Limits, and the reason that a crawl gives for its end."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from resources.crawler import request_manager
from resources.crawler.plan import CrawlPlan
from tests.support.crawling import crawl, make_crawl, make_job, results, stop_at
from tests.support.site import Page, Site

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("limit", [1, 7, 30])
def test_max_pages_is_exact(site: Site, database: Database, limit: int) -> None:
    site.chain(100)
    outcome = crawl(database, site.url, max_pages=limit, concurrency=32)
    site.requests.pop("/robots.txt")
    assert outcome.finish_reason == "max_pages"
    assert len(results(database)) == limit
    assert sum(site.requests.values()) == limit


def test_a_site_of_exactly_max_pages_is_exhausted(site: Site, database: Database) -> None:
    site.add("/", ["/a", "/b"])
    site.add("/a")
    site.add("/b")
    assert crawl(database, site.url, max_pages=3).finish_reason == "exhausted"


@pytest.mark.parametrize("reserved", [1, 2, 7])
def test_a_reserve_that_is_used_up_is_not_the_end_of_the_budget(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch, reserved: int
) -> None:
    """Pages one after another: each uses up what is reserved while the manager looks for more urls."""
    monkeypatch.setattr(request_manager, "RESERVE_PAGES", reserved)
    for number in range(30):
        site.add(f"/{number}", [f"/{number + 1}"] if number < 29 else [])
    assert crawl(database, site.url + "0", max_pages=100, max_depth=100).finish_reason == "exhausted"
    assert len(results(database)) == 30


def test_max_pages_holds_with_redirects(site: Site, database: Database) -> None:
    site.add("/", [f"/r{n}" for n in range(20)])
    for n in range(20):
        site.pages[f"/r{n}"] = Page(status=301, headers={"Location": f"/t{n}"})
        site.add(f"/t{n}")
    crawl(database, site.url, max_pages=10)
    assert len(results(database)) == 10


def test_depth_limits_what_is_followed_and_says_so(site: Site, database: Database) -> None:
    site.add("/", ["/one"])
    site.add("/one", ["/two"])
    site.add("/two", ["/three"])
    site.add("/three")
    outcome = crawl(database, site.url, max_depth=1)
    found = results(database)
    assert outcome.finish_reason == "exhausted"
    assert {path for path, row in found.items() if row["status"] == "success"} == {"/", "/one"}
    assert (found["/two"]["status"], found["/two"]["skip_reason"]) == ("skipped", "max_depth")
    assert site.requests["/two"] == 0


def test_a_shorter_way_reopens_a_url_that_was_too_deep(site: Site, database: Database) -> None:
    # /far is first seen beyond the depth (from the quick page), then within it (from the slow one).
    site.add("/", ["/quick", "/slow"])
    site.add("/quick", ["/deep"])
    site.add("/deep", ["/far"])
    site.add("/far")

    async def slow(request: object) -> object:
        import asyncio

        from aiohttp import web

        from tests.support.site import html

        await asyncio.sleep(0.6)
        return web.Response(body=html("Slow", ["/far"]), content_type="text/html")

    site.pages["/slow"] = slow
    crawl(database, site.url, max_depth=2)
    assert results(database)["/far"]["status"] == "success"


def test_include_and_exclude_globs(site: Site, database: Database) -> None:
    site.add("/", ["/docs/a", "/docs/private/b", "/blog/c"])
    for path in ("/docs/a", "/docs/private/b", "/blog/c"):
        site.add(path)
    crawl(database, site.url, include=("/docs/**",), exclude=("/docs/private/**",))
    found = results(database)
    assert found["/docs/a"]["status"] == "success"
    assert found["/blog/c"]["skip_reason"] == "excluded"
    assert found["/docs/private/b"]["skip_reason"] == "excluded"
    assert site.requests["/blog/c"] == 0


def test_the_crawl_stays_on_its_site(site: Site, database: Database) -> None:
    site.add("/", ["http://127.0.0.2:1/", f"http://localhost:{site.port}/other", "/here"])
    site.add("/here")
    site.add("/other")
    crawl(database, site.url)
    assert set(results(database)) == {"/", "/here"}


def test_single_page_fetches_one_page(site: Site, database: Database) -> None:
    site.chain(10)
    crawl(database, site.url, job_type="single_page")
    assert set(results(database)) == {"/"}


def test_max_seconds_ends_a_slow_crawl(site: Site, database: Database) -> None:
    site.chain(500)
    site.latency = 0.2
    started = time.monotonic()
    outcome = crawl(database, site.url, max_seconds=2, concurrency=2)
    assert outcome.finish_reason == "max_seconds"
    assert time.monotonic() - started < 15
    assert 0 < len(results(database)) < 100


def test_robots_txt_is_obeyed_for_our_agent(site: Site, database: Database) -> None:
    robots = b"User-agent: *\nDisallow: /\n\nUser-agent: OmniOpsBot\nDisallow: /private\n"
    site.pages["/robots.txt"] = Page(robots, headers={"Content-Type": "text/plain"})
    site.add("/", ["/private/x", "/open"])
    site.add("/private/x")
    site.add("/open")
    crawl(database, site.url)
    found = results(database)
    assert found["/open"]["status"] == "success"
    assert (found["/private/x"]["status"], found["/private/x"]["skip_reason"]) == ("skipped", "robots_txt")
    assert site.requests["/private/x"] == 0
    crawl(database, site.url, "impolite", respect_robots=False)
    assert results(database, "impolite")["/private/x"]["status"] == "success"


def test_a_crawl_delay_spaces_requests(site: Site, database: Database) -> None:
    site.pages["/robots.txt"] = Page(b"User-agent: *\nCrawl-delay: 0.3", headers={"Content-Type": "text/plain"})
    site.chain(5)
    started = time.monotonic()
    crawl(database, site.url)
    assert time.monotonic() - started >= 0.3 * 4
    assert site.most_at_once == 1


def test_a_site_that_forbids_everything_is_disallowed(site: Site, database: Database) -> None:
    site.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /", headers={"Content-Type": "text/plain"})
    site.add("/")
    assert crawl(database, site.url).finish_reason == "disallowed"


def test_an_unreadable_robots_txt_forbids_everything_and_says_so(site: Site, database: Database) -> None:
    site.pages["/robots.txt"] = Page(b"", 503)
    site.add("/")
    outcome = crawl(database, site.url)
    assert outcome.finish_reason == "disallowed"
    assert "503" in (outcome.detail or "")


def test_a_site_that_does_not_answer_is_unreachable(site: Site, database: Database) -> None:
    site.pages["/robots.txt"] = Page(b"", 404)

    async def hang_up(request: object) -> object:
        request.transport.abort()  # type: ignore[attr-defined]
        from aiohttp import web

        return web.Response()

    site.pages["/"] = hang_up
    outcome = crawl(database, site.url)
    assert outcome.finish_reason == "site_unreachable"
    assert site.url in (outcome.detail or "")


def test_retry_after_is_honoured(site: Site, database: Database) -> None:
    site.add("/", ["/busy"])
    moments: list[float] = []

    async def busy(request: object) -> object:
        from aiohttp import web

        moments.append(time.monotonic())
        if len(moments) == 1:
            return web.Response(status=429, headers={"Retry-After": "2"})
        return web.Response(text="<title>ok</title>", content_type="text/html")

    site.pages["/busy"] = busy
    crawl(database, site.url)
    assert moments[1] - moments[0] >= 1.9
    assert results(database)["/busy"]["status"] == "success"


def test_stopping_leaves_the_rest_in_the_frontier_and_resuming_is_exact(site: Site, database: Database) -> None:
    site.chain(200)
    site.latency = 0.02
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=4)
    make_job(database, "stopped", plan)
    run = make_crawl(database, "stopped", plan)
    stop_at(run, 20)
    assert run.run().finish_reason == "paused"
    part = len(results(database, "stopped"))
    assert 0 < part < 200
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0
    site.latency = 0
    assert make_crawl(database, "stopped", plan).run().finish_reason == "exhausted"
    assert len(results(database, "stopped")) == 200


def test_two_workers_share_a_job_and_its_budget(site: Site, database: Database) -> None:
    site.chain(400)
    site.latency = 0.05
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=4, max_pages=300)
    make_job(database, "shared", plan)
    runs = [make_crawl(database, "shared", plan) for _ in range(2)]
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda run=run: outcomes.append(run.run().finish_reason)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["max_pages", "max_pages"]
    assert len(results(database, "shared")) == 300
    finished_by = database.rows("SELECT worker_id, count(*) FROM crawl_frontier WHERE done GROUP BY 1")
    assert len(finished_by) == 2
    site.requests.pop("/robots.txt")
    assert sum(site.requests.values()) == 300


def test_two_workers_exhaust_a_site_together(site: Site, database: Database) -> None:
    site.chain(300)
    site.latency = 0.01
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=4)
    make_job(database, "shared", plan)
    outcomes: list[str] = []
    runs = [make_crawl(database, "shared", plan) for _ in range(2)]
    threads = [threading.Thread(target=lambda run=run: outcomes.append(run.run().finish_reason)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["exhausted", "exhausted"]
    assert len(results(database, "shared")) == 300
    assert {n for path, n in site.requests.items() if path != "/robots.txt"} == {1}


def test_bytes_are_limited_for_the_whole_job_whatever_run_or_worker_reads_them(
    site: Site, database: Database
) -> None:
    site.chain(60)
    first = crawl(database, site.url, max_pages=20, concurrency=2)
    assert first.finish_reason == "max_pages"
    of_a_page = database.manager.get_job_stats("job").total_bytes // 20
    assert of_a_page > 100
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=2, max_bytes=40 * of_a_page)
    second = make_crawl(database, "job", plan).run()
    assert (second.finish_reason, second.complete) == ("max_bytes", True)
    stats = database.manager.get_job_stats("job")
    # What was under way is cut off, or has just arrived.
    assert plan.max_bytes - 2 * of_a_page <= stats.total_bytes <= plan.max_bytes + 3 * of_a_page
    site.requests.clear()
    again = make_crawl(database, "job", plan).run()
    assert again.finish_reason == "max_bytes"
    assert sum(count for path, count in site.requests.items() if path != "/robots.txt") <= 3
    rest = make_crawl(database, "job", CrawlPlan(urls=(site.url,), allow_private=True)).run()
    assert rest.finish_reason == "exhausted"
    assert len(results(database)) == 60
    counted = database.value("SELECT sum(bytes) FROM scrape_job_results")
    assert database.manager.get_job_stats("job").total_bytes == counted


@pytest.mark.parametrize("status", ["paused", "cancelled"])
def test_a_job_that_another_program_stops_is_left_within_seconds(site: Site, database: Database, status: str) -> None:
    site.chain(500)
    site.latency = 0.05
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=2)
    make_job(database, "stopped", plan)
    run = make_crawl(database, "stopped", plan)
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(run.run().finish_reason))
    thread.start()
    while run.progress.total < 5:
        time.sleep(0.01)
    database.manager.update_job_status("stopped", status, finish_reason=status)
    thread.join(200)
    assert outcomes == [status]
    # All of it would have taken longer than the look at the job's status.
    assert len(results(database, "stopped")) < 400
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0


def test_a_second_worker_is_given_what_the_first_one_piled_up(site: Site, database: Database) -> None:
    # All of the site's links are on its first page, so that one worker owns them before the other comes.
    paths = [f"/p{n}" for n in range(400)]
    site.add("/", links=paths)
    for path in paths:
        site.add(path)
    site.latency = 0.05
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=4)
    make_job(database, "late", plan)
    runs = [make_crawl(database, "late", plan) for _ in range(2)]
    threads = [threading.Thread(target=run.run) for run in runs]
    threads[0].start()
    while runs[0].progress.total < 20:
        time.sleep(0.01)
    threads[1].start()
    for thread in threads:
        thread.join(200)
    assert len(results(database, "late")) == 401
    counts = sorted(
        int(str(row["n"]))
        for row in database.rows("SELECT count(*) AS n FROM crawl_frontier WHERE done GROUP BY worker_id")
    )
    assert len(counts) == 2
    assert counts[0] > 100
    assert {n for path, n in site.requests.items() if path != "/robots.txt"} == {1}
