"""How often sites are asked, judged by the times at which a real server was asked."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from resources.crawler.discovery import USUAL_PLACES
from resources.crawler.plan import CrawlOutcome, CrawlPlan
from resources.crawler.politeness import BACKOFF_SECONDS, FAILURES_IN_A_ROW, backoff
from resources.redis import AsyncRateLimiter, AsyncRedisWithFallback, RateLimiter, RedisWithFallback
from tests.support.crawling import crawl, make_crawl, make_job, results
from tests.support.site import Page, Site, html, serve_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.crawler.crawl import Crawl
    from resources.services import Endpoints
    from tests.support.databases import Database

Answer = Callable[[web.Request], Awaitable[web.Response]]

pytestmark = pytest.mark.integration

ROBOTS = "/robots.txt"


def asked(site: Site) -> list[float]:
    """When pages were asked for."""
    return [moment for moment, path in site.moments if path != ROBOTS and path not in USUAL_PLACES]


def gaps(moments: list[float]) -> list[float]:
    """Seconds between each moment and the next."""
    return [after - before for before, after in itertools.pairwise(moments)]


def most_in_a_minute(moments: list[float]) -> int:
    """The most that any 60 s have."""
    return max(sum(start <= moment < start + 60 for moment in moments) for start in moments)


def robots(text: str) -> Page:
    """A robots.txt."""
    return Page(text.encode(), headers={"Content-Type": "text/plain"})


@pytest.fixture
def limiters(cluster: Endpoints) -> Iterator[Callable[[], AsyncRateLimiter]]:
    """Makes limiters that know of each other through Redis alone, as those of several processes do."""
    made: list[AsyncRedisWithFallback] = []

    def make() -> AsyncRateLimiter:
        made.append(AsyncRedisWithFallback(cluster.redis_url))
        return AsyncRateLimiter(made[-1])

    yield make
    for client in made:
        client.fallback.close()


def started(*crawls: Crawl) -> list[tuple[threading.Thread, list[CrawlOutcome]]]:
    """Each crawl in a thread."""
    running = []
    for run in crawls:
        outcomes: list[CrawlOutcome] = []
        thread = threading.Thread(target=lambda run=run, outcomes=outcomes: outcomes.append(run.run()))
        thread.start()
        running.append((thread, outcomes))
    return running


def ended(running: list[tuple[threading.Thread, list[CrawlOutcome]]]) -> list[CrawlOutcome]:
    """How they ended."""
    for thread, _ in running:
        thread.join(200)
        assert not thread.is_alive()
    return [outcomes[0] for _, outcomes in running]


def a_crawl(database: Database, site: Site, job_id: str, limiter: AsyncRateLimiter | None, **fields: Any) -> Crawl:
    """A job for the site and a run of it, not started; each job is another customer's."""
    plan = CrawlPlan(urls=(site.url,), allow_private=True, **fields)
    make_job(database, job_id, plan, customer=job_id)
    return make_crawl(database, job_id, plan, limiter=limiter)


# --- limits for each minute -----------------------------------------------------------------------------------------


def test_no_minute_has_more_requests_than_the_limit(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(60)
    run = a_crawl(database, site, "limited", limiters(), requests_per_minute=12, max_seconds=3)
    outcome = run.run()
    assert outcome.finish_reason == "max_seconds"
    assert len(site.moments) == 12  # robots.txt is a request like any other
    assert len(results(database, "limited")) == len(asked(site))
    assert outcome.progress.phases["politeness"] > 1
    assert run.politeness.in_force() == {f"127.0.0.1:{site.port}": {"requests_per_minute": 12.0}}


def test_the_workers_of_a_job_have_one_limit(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(60)
    plan = CrawlPlan(urls=(site.url,), allow_private=True, requests_per_minute=12, max_seconds=3, shards=2)
    make_job(database, "shared", plan)
    runs = [make_crawl(database, "shared", plan, limiter=limiters()) for _ in range(2)]
    assert [outcome.finish_reason for outcome in ended(started(*runs))] == ["max_seconds"] * 2
    assert len(site.moments) == most_in_a_minute([moment for moment, _ in site.moments]) == 12
    assert sum(site.requests[path] for path in site.requests if path != ROBOTS) == len(results(database, "shared"))


def test_each_hop_of_a_redirect_is_a_request(site: Site, database: Database) -> None:
    site.add("/", [f"/r{n}" for n in range(20)])
    for n in range(20):
        site.pages[f"/r{n}"] = Page(status=302, headers={"Location": f"/s{n}"})
        site.pages[f"/s{n}"] = Page(status=302, headers={"Location": f"/t{n}"})
        site.add(f"/t{n}")
    assert crawl(database, site.url, requests_per_minute=14, max_seconds=2).finish_reason == "max_seconds"
    assert len(site.moments) == 14
    # What was waiting in the middle of its redirects was cut off, and is not lost.
    assert not [row for row in results(database).values() if row["status"] == "failed"]


def test_a_waiting_crawl_stops_at_once_and_resumes_exactly(site: Site, database: Database) -> None:
    site.chain(30)
    run = a_crawl(database, site, "waits", None, requests_per_minute=5)
    running = started(run)
    while len(site.moments) < 5:
        time.sleep(0.05)
    run.stop("paused")
    assert ended(running)[0].finish_reason == "paused"
    assert len(results(database, "waits")) == len(asked(site)) < 5
    plan = CrawlPlan(urls=(site.url,), allow_private=True)
    assert make_crawl(database, "waits", plan).run().finish_reason == "exhausted"
    assert len(results(database, "waits")) == 30
    assert {n for path, n in site.requests.items() if path != ROBOTS} == {1}


def test_the_strictest_customer_decides_for_all(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(200)
    strict = a_crawl(database, site, "strict", limiters(), requests_per_minute=10, max_seconds=4)
    lax = a_crawl(database, site, "lax", limiters(), requests_per_minute=100, max_seconds=3)
    free = a_crawl(database, site, "free", limiters(), max_seconds=3)
    running = started(strict)
    while not asked(site):
        time.sleep(0.02)
    assert [o.finish_reason for o in ended(running + started(lax, free))] == ["max_seconds"] * 3
    assert len(site.moments) == most_in_a_minute([moment for moment, _ in site.moments]) == 10


def test_who_runs_freely_hears_of_another_ones_limit(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(2_000)
    site.latency = 0.05
    running = started(a_crawl(database, site, "free", limiters(), max_seconds=7, concurrency=2))
    while len(asked(site)) < 20:
        time.sleep(0.05)
    running += started(a_crawl(database, site, "strict", limiters(), requests_per_minute=5, max_seconds=4))
    time.sleep(3)
    so_far = len(site.moments)
    ended(running)
    # The free one was counted, so the minute was full for both.
    assert len(site.moments) == so_far


# --- delays ---------------------------------------------------------------------------------------------------------


def test_a_crawl_delay_is_shared_by_the_workers_of_a_domain(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.pages[ROBOTS] = robots("User-agent: *\nCrawl-delay: 0.3\n")
    site.chain(12)
    plan = CrawlPlan(urls=(site.url,), allow_private=True)
    make_job(database, "shared", plan)
    outcomes = ended(started(*(make_crawl(database, "shared", plan, limiter=limiters()) for _ in range(2))))
    assert {outcome.finish_reason for outcome in outcomes} == {"exhausted"}
    assert len(results(database, "shared")) == len(asked(site)) == 12
    assert min(gaps(asked(site))) > 0.25
    assert sum(outcome.progress.phases["politeness"] for outcome in outcomes) > 2


def test_max_pages_is_exact_where_urls_are_put_back(site: Site, database: Database) -> None:
    site.pages[ROBOTS] = robots("User-agent: *\nCrawl-delay: 0.15\n")
    # Of all that are taken at the start, one may be fetched at a time; the others are put back.
    urls = tuple(f"{site.url}p{n}" for n in range(20))
    site.chain(20)
    plan = CrawlPlan(urls=urls, allow_private=True, max_pages=15)
    make_job(database, "exact", plan)
    assert make_crawl(database, "exact", plan).run().finish_reason == "max_pages"
    assert len(results(database, "exact")) == len(asked(site)) == 15


def test_what_is_not_fetched_costs_no_delay(site: Site, database: Database) -> None:
    site.pages[ROBOTS] = robots("User-agent: *\nCrawl-delay: 2\nDisallow: /private\n")
    site.add("/", [f"/private/{n}" for n in range(30)])
    assert crawl(database, site.url, max_seconds=20).finish_reason == "exhausted"
    assert len(results(database)) == 31


def test_a_slow_domain_does_not_hold_up_another(database: Database) -> None:
    with serve_site("127.0.0.2") as site:

        async def by_host(request: web.Request) -> web.StreamResponse:
            delay = "Crawl-delay: 20" if request.host.startswith("127.0.0.1") else ""
            return web.Response(text=f"User-agent: *\n{delay}\n", content_type="text/plain")

        site.chain(60)
        site.pages[ROBOTS] = by_host
        urls = (site.url, f"http://127.0.0.2:{site.port}/")
        plan = CrawlPlan(urls=urls, allow_private=True, concurrency=2, max_seconds=4)
        make_job(database, "both", plan)
        assert make_crawl(database, "both", plan).run().finish_reason == "max_seconds"
    rows = database.manager.get_job_results_from_postgres("both", limit=1_000)
    assert sum("127.0.0.2" in row["url"] for row in rows) == 60


def test_a_robots_txt_that_fails_once_is_asked_for_again(site: Site, database: Database) -> None:
    answers = iter((503, 200))

    async def once(request: web.Request) -> web.StreamResponse:
        return web.Response(status=next(answers), text="User-agent: *\nDisallow: /b\n")

    site.pages[ROBOTS] = once
    site.add("/", ["/a", "/b"])
    site.add("/a")
    site.add("/b")
    assert crawl(database, site.url).finish_reason == "exhausted"
    assert site.requests[ROBOTS] == 2
    assert results(database)["/b"]["skip_reason"] == "robots_txt"


# --- what the site answers ------------------------------------------------------------------------------------------


def busy_once(retry_after: str, status: int, moments: list[float]) -> Answer:
    """Answers the first request with a Retry-After, and the others well."""

    async def answer(request: web.Request) -> web.Response:
        moments.append(time.monotonic())
        if len(moments) == 1:
            value = formatdate(time.time() + 3, usegmt=True) if retry_after == "date" else retry_after
            return web.Response(status=status, headers={"Retry-After": value})
        return web.Response(body=html("ok"), content_type="text/html")

    return answer


@pytest.mark.parametrize(
    ("retry_after", "status", "at_least"),
    [
        ("2", 429, 1.9), ("2", 503, 1.9), ("date", 429, 1.5), ("soon", 429, 0.2), ("-5", 503, 0.2), ("", 429, 0.2),
        ("1.5", 429, 0.2), ("Wed, 21 Oct 2015 07:28:00 GMT", 503, 0.2),
    ],
)  # fmt: skip
def test_retry_after_in_all_its_spellings(
    site: Site, database: Database, retry_after: str, status: int, at_least: float
) -> None:
    moments: list[float] = []
    site.add("/", ["/busy"])
    site.pages["/busy"] = busy_once(retry_after, status, moments)
    crawl(database, site.url)
    assert results(database)["/busy"]["status"] == "success"
    assert len(moments) == 2
    assert moments[1] - moments[0] >= at_least


@pytest.mark.parametrize("retry_after", ["999999999999999999999", "86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_huge_retry_after_is_bounded_by_max_seconds(site: Site, database: Database, retry_after: str) -> None:
    moments: list[float] = []
    site.add("/", ["/busy", "/other"])
    site.add("/other")
    site.pages["/busy"] = busy_once(retry_after, 429, moments)
    begun = time.monotonic()
    assert crawl(database, site.url, max_seconds=2, concurrency=1).finish_reason == "max_seconds"
    assert time.monotonic() - begun < 30
    assert "/busy" not in results(database)  # it is left for the next run


def test_all_workers_of_a_domain_wait_when_one_is_told_to(
    site: Site, database: Database, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(1_000)
    site.latency = 0.03
    running = started(a_crawl(database, site, "runs", limiters(), max_seconds=7, concurrency=2))
    while len(asked(site)) < 20:
        time.sleep(0.05)
    told: list[float] = []
    site.pages["/busy"] = busy_once("4", 429, told)
    plan = CrawlPlan(urls=(site.url + "busy",), allow_private=True, job_type="single_page")
    make_job(database, "told", plan, customer="other")
    ended(started(make_crawl(database, "told", plan, limiter=limiters())))
    ended(running)
    # Between a second (until it is heard) and the fourth nobody asks.
    assert not [moment for moment in asked(site) if told[0] + 2 < moment < told[0] + 3.9]
    assert max(asked(site)) > told[0] + 3.9


def test_a_site_that_bears_so_many_requests_a_second_and_no_more_is_crawled_whole(
    site: Site, database: Database
) -> None:
    site.chain(25)
    last = [0.0]

    def guarded(path: str) -> Answer:
        kept = site.pages[path]
        assert isinstance(kept, Page)

        async def answer(request: web.Request) -> web.Response:
            now = time.monotonic()
            too_soon, last[0] = now - last[0] < 0.1, now
            if too_soon:
                return web.Response(status=429)
            return web.Response(body=kept.body, content_type="text/html")

        return answer

    site.pages = {path: guarded(path) for path in site.pages}
    outcome = crawl(database, site.url)
    assert outcome.finish_reason == "exhausted"
    statuses = [row["status"] for row in results(database).values()]
    assert statuses.count("success") > 20
    assert outcome.progress.retries > 0


def test_the_delay_rises_while_a_site_is_overloaded_and_falls_again(
    site: Site, database: Database, cluster: Endpoints, limiters: Callable[[], AsyncRateLimiter]
) -> None:
    site.chain(40)
    bad = iter([True] * 3)
    good = site.pages["/p3"]
    assert isinstance(good, Page)

    async def overloaded(request: web.Request) -> web.Response:
        if next(bad, False):
            return web.Response(status=503)
        return web.Response(body=good.body, content_type="text/html")

    site.pages["/p3"] = overloaded
    domain = f"127.0.0.1:{site.port}"
    client = RedisWithFallback(cluster.redis_url)
    look = RateLimiter(client)
    seen: list[float] = []
    running = started(a_crawl(database, site, "slows", limiters()))
    while running[0][0].is_alive():
        seen.append(look.delay(domain))
        time.sleep(0.05)
    assert ended(running)[0].finish_reason == "exhausted"
    assert max(seen) >= 0.5
    assert look.delay(domain) < 0.5 * max(seen)
    client.close()


def test_a_site_that_is_merely_far_away_is_not_slowed_down(site: Site, database: Database) -> None:
    site.chain(60)
    site.latency = 0.2
    run = a_crawl(database, site, "far", None)
    assert run.run().finish_reason == "exhausted"
    assert run.politeness.in_force() == {}
    assert site.most_at_once > 8


def test_a_site_that_becomes_slow_is_asked_less_at_once(site: Site, database: Database) -> None:
    site.chain(400)
    site.latency = 0.02
    run = a_crawl(database, site, "slow", None, max_seconds=9)
    running = started(run)
    while len(asked(site)) < 40:
        time.sleep(0.02)
    site.latency = 1.0
    time.sleep(4)
    site.most_at_once = 0
    ended(running)
    assert run.politeness.in_force()[f"127.0.0.1:{site.port}"]["delay"] > 0.1
    assert 0 < site.most_at_once < 8


def test_a_domain_that_keeps_failing_is_not_hammered(site: Site, database: Database) -> None:
    site.add("/", [f"/broken{n}" for n in range(300)])
    for n in range(300):
        site.pages[f"/broken{n}"] = Page(status=500)
    run = a_crawl(database, site, "broken", None, max_seconds=5)
    assert run.run().finish_reason == "max_seconds"
    # All tries of all pages would be 900.
    assert FAILURES_IN_A_ROW < site.requests.total() < 120
    assert run.politeness.in_force()[f"127.0.0.1:{site.port}"]["delay"] >= 0.5


def test_what_will_not_change_is_not_tried_again(site: Site, database: Database) -> None:
    site.add("/", ["/gone", "/teapot", "/broken", "/missing"])
    site.pages["/gone"] = Page(status=410)
    site.pages["/teapot"] = Page(status=418)
    site.pages["/broken"] = Page(status=500)
    crawl(database, site.url)
    tries = {path: n for path, n in site.requests.items() if path not in (ROBOTS, "/")}
    assert tries == {"/gone": 1, "/teapot": 1, "/missing": 1, "/broken": 3}


def test_backoff_grows_with_jitter_and_honours_the_site() -> None:
    first = {backoff(1, None) for _ in range(50)}
    assert len(first) > 40
    assert all(0.5 * BACKOFF_SECONDS <= seconds <= 1.5 * BACKOFF_SECONDS for seconds in first)
    assert min(backoff(2, None) for _ in range(50)) >= BACKOFF_SECONDS
    assert backoff(1, 30.0) == 30.0


# --- what it costs --------------------------------------------------------------------------------------------------


def test_a_site_that_asks_for_nothing_costs_no_call_for_each_page(
    site: Site, database: Database, cluster: Endpoints
) -> None:
    site.chain(400)
    client = AsyncRedisWithFallback(cluster.redis_url)
    outcome = a_crawl(database, site, "free", AsyncRateLimiter(client)).run()
    assert (outcome.finish_reason, outcome.progress.successful) == ("exhausted", 400)
    assert client.fallback.calls <= 3 + outcome.progress.seconds
    assert outcome.progress.phases["politeness"] < 0.5
    look = RedisWithFallback(cluster.redis_url)
    # And yet all are counted, for whoever has a limit.
    assert RateLimiter(look).look(f"127.0.0.1:{site.port}").used == 401 + len(USUAL_PLACES)
    look.close()
    client.fallback.close()
