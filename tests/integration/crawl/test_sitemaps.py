"""What sitemaps bring to a crawl, in every form that sites give them."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from resources.crawler import crawl as crawl_module
from resources.crawler.plan import CrawlPlan
from resources.postgres.discovery import read_discovery
from tests.support.crawling import crawl, make_crawl, make_job, results, stop_at
from tests.support.site import Page, html, serve_site

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

XML = {"Content-Type": "application/xml"}


def urlset(site: Site, *paths: str) -> bytes:
    entries = "".join(f"<url><loc>{site.url.rstrip('/')}{path}</loc></url>" for path in paths)
    return f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'.encode()


def index(site: Site, *paths: str) -> bytes:
    entries = "".join(f"<sitemap><loc>{site.url.rstrip('/')}{path}</loc></sitemap>" for path in paths)
    return f'<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</sitemapindex>'.encode()


def sitemaps_of(database: Database, job_id: str = "job") -> dict[str, Any]:
    found = read_discovery(database.engine, job_id)["sitemaps"]
    assert isinstance(found, dict)
    return found


def test_pages_that_only_a_sitemap_names_are_crawled(site: Site, database: Database) -> None:
    site.add("/", ["/linked"])
    for path in ("/linked", "/hidden", "/deeper"):
        site.add(path)
    site.add("/hidden", ["/deeper"])
    site.pages["/sitemap.xml"] = Page(urlset(site, "/", "/hidden"), headers=XML)
    outcome = crawl(database, site.url)
    assert outcome.finish_reason == "exhausted"
    assert {path for path, row in results(database).items() if row["status"] == "success"} == {
        "/", "/linked", "/hidden", "/deeper",
    }  # fmt: skip
    assert (sitemaps_of(database)["files"], site.requests["/sitemap.xml"]) == (1, 1)
    found = dict(
        database.engine.connect().exec_driver_sql("SELECT url, found_by FROM crawl_frontier").all()  # type: ignore[arg-type]
    )
    assert found[f"{site.url}hidden"] == "sitemap"


def test_a_job_of_type_sitemap_fetches_what_they_list_and_follows_no_link(site: Site, database: Database) -> None:
    for path in ("/", "/a", "/b", "/c"):
        site.add(path, ["/c"])
    site.pages["/robots.txt"] = Page(f"Sitemap: {site.url}maps/index.xml\n".encode(), headers={})
    site.pages["/maps/index.xml"] = Page(index(site, "/maps/one.xml.gz", "/maps/index.xml"), headers=XML)
    site.pages["/maps/one.xml.gz"] = Page(gzip.compress(urlset(site, "/a", "/b")), headers={})
    outcome = crawl(database, site.url, job_type="sitemap")
    assert outcome.finish_reason == "exhausted"
    assert set(results(database)) == {"/a", "/b"}
    assert site.requests["/maps/index.xml"] == 1


def test_a_job_of_type_sitemap_without_any_says_so(site: Site, database: Database) -> None:
    site.add("/", ["/a"])
    outcome = crawl(database, site.url, job_type="sitemap")
    assert outcome.progress.total == 0
    assert outcome.detail is not None
    assert "sitemap" in outcome.detail


@pytest.mark.parametrize(
    "broken",
    [
        b"<html><body>Not found, with status 200</body></html>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>',
        b"<urlset><url><loc>http://[broken</loc></url",
        b"",
        gzip.compress(b"\0" * 70_000_000),
    ],
    ids=["html", "entities", "cut", "empty", "bomb"],
)
def test_a_broken_sitemap_is_noted_and_the_site_is_crawled(site: Site, database: Database, broken: bytes) -> None:
    site.chain(6)
    site.pages["/robots.txt"] = Page(f"Sitemap: {site.url}map.xml\n".encode(), headers={})
    site.pages["/map.xml"] = Page(broken, headers=XML)
    assert crawl(database, site.url).finish_reason == "exhausted"
    assert {row["status"] for row in results(database).values()} == {"success"}
    assert len(results(database)) >= 6
    assert any("map.xml" in problem for problem in sitemaps_of(database)["problems"])


def test_every_url_that_was_met_and_not_fetched_is_accounted_for(site: Site, database: Database) -> None:
    site.add("/", ["/a", "/private/x", "https://elsewhere.example/", "/picture.png", "/deep1"])
    site.add("/a")
    site.add("/deep1", ["/deep2"])
    site.add("/deep2")
    crawl(database, site.url, exclude=("/private/**",), max_depth=1)
    counts = read_discovery(database.engine, "job")["not_followed"]
    assert {name: counts.get(name) for name in ("excluded", "off_site", "binary", "max_depth")} == {
        "excluded": 1, "off_site": 1, "binary": 1, "max_depth": 1,
    }  # fmt: skip


TEXT = {"Content-Type": "text/plain"}


def serve_all(site: Site) -> None:
    """Every path is a page without links."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(body=html(request.path), content_type="text/html")

    site.fallback = page


def test_every_form_is_read(site: Site, database: Database) -> None:
    site.add("/")
    maps = {
        "t.txt": f"{site.url}t1\nhttps://other.example/x\n{site.url}t2.png",
        "r.rss": f"<rss><channel><item><link>{site.url}r1</link></item></channel></rss>",
        "x.xml": f"<urlset xmlns:x='x'><url><loc>{site.url}x1</loc><x:link rel='alternate' hreflang='de'"
        f" href='{site.url}de/x1'/></url></urlset>",
        "loop.xml": f"<sitemapindex><sitemap><loc>{site.url}loop.xml</loc></sitemap><sitemap><loc>{site.url}t.txt"
        f"</loc></sitemap><sitemap><loc>http://127.0.0.3:{site.port}/other.xml</loc></sitemap></sitemapindex>",
    }
    for name, body in maps.items():
        site.pages[f"/{name}"] = Page(body.encode(), headers=XML)
    site.pages["/g.xml"] = Page(gzip.compress(urlset(site, "/g1")), headers={**XML, "Content-Encoding": "gzip"})
    robots = "".join(f"Sitemap: {site.url}{name}\n" for name in (*maps, "g.xml", "none.xml"))
    site.pages["/robots.txt"] = Page(robots.encode(), headers=TEXT)
    for path in ("/t1", "/r1", "/x1", "/de/x1", "/g1"):
        site.add(path)
    crawl(database, site.url)
    assert set(results(database)) == {"/", "/t1", "/r1", "/x1", "/de/x1", "/g1"}
    found = read_discovery(database.engine, "job")
    assert found["not_followed"] == {"binary": 1, "off_site": 1}
    assert any("none.xml: HTTP 404" in problem for problem in found["sitemaps"]["problems"])
    assert any("127.0.0.3" in problem for problem in found["sitemaps"]["problems"])


def test_robots_txt_may_name_a_sitemap_on_another_host(database: Database) -> None:
    with serve_site("127.0.0.2") as site:
        serve_all(site)
        site.pages["/robots.txt"] = Page(f"Sitemap: http://127.0.0.2:{site.port}/c.xml\n".encode(), headers=TEXT)
        site.pages["/c.xml"] = Page(urlset(site, "/listed"), headers=XML)
        crawl(database, site.url)
    assert "/listed" in results(database)


def test_robots_txt_names_sitemaps_even_where_its_rules_are_not_obeyed(site: Site, database: Database) -> None:
    serve_all(site)
    robots = f"User-agent: *\nDisallow: /\nSitemap: {site.url}m.xml"
    site.pages["/robots.txt"] = Page(robots.encode(), headers=TEXT)
    site.pages["/m.xml"] = Page(urlset(site, "/listed"), headers=XML)
    crawl(database, site.url, respect_robots=False)
    assert results(database)["/listed"]["status"] == "success"
    assert crawl(database, site.url, "polite").finish_reason == "disallowed"


def test_a_start_url_may_be_a_sitemap(site: Site, database: Database) -> None:
    site.pages["/my/feed.xml"] = Page(urlset(site, "/a", "/b"), headers=XML)
    for path in ("/a", "/b", "/c"):
        site.add(path, ["/c"])
    assert crawl(database, site.url + "my/feed.xml", job_type="sitemap").finish_reason == "exhausted"
    assert set(results(database)) == {"/a", "/b"}


def test_a_huge_sitemap_is_read_while_pages_are_fetched_and_the_budget_holds(site: Site, database: Database) -> None:
    serve_all(site)
    sent = 0

    async def huge(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse(headers=XML)
        await answer.prepare(request)
        await answer.write(b"<urlset>")
        while sent < 10**7:  # without end, as far as this crawl is concerned
            urls = b"".join(b"<url><loc>/h/%d</loc></url>" % n for n in range(sent, sent + 1_000))
            try:
                await answer.write(urls)
            except ConnectionError:
                break
            sent += 1_000
        return answer

    site.pages["/sitemap.xml"] = huge
    assert crawl(database, site.url, max_pages=200).finish_reason == "max_pages"
    assert len(results(database)) == 200
    assert read_discovery(database.engine, "job")["not_followed"]["waiting"] > 0
    assert sent < 10**6  # what stands in the sockets, and no more


def test_a_slow_sitemap_holds_up_nothing_but_the_end(site: Site, database: Database) -> None:
    site.chain(20)
    site.add("/late")
    answered: list[float] = []

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(1.5)
        answered.append(time.monotonic())
        return web.Response(body=urlset(site, "/late"), headers=XML)

    site.pages["/sitemap.xml"] = slow
    assert crawl(database, site.url).finish_reason == "exhausted"
    assert results(database)["/late"]["status"] == "success"
    assert next(moment for moment, path in site.moments if path == "/p19") < answered[0]


def test_a_sitemap_without_end_does_not_outlive_the_crawl(site: Site, database: Database) -> None:
    site.add("/")

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers=XML)
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b" ")
                await asyncio.sleep(0.05)
        except ConnectionError:
            return answer

    site.pages["/sitemap.xml"] = drip
    assert crawl(database, site.url, max_seconds=2).finish_reason == "max_seconds"


def test_a_resumed_job_does_not_read_them_again(site: Site, database: Database) -> None:
    site.chain(60)
    site.latency = 0.05
    listed = [f"/only{n}" for n in range(30)]
    for path in listed:
        site.add(path)
    site.pages["/sitemap.xml"] = Page(urlset(site, *listed), headers=XML)
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=2)
    make_job(database, "job", plan)
    run = make_crawl(database, "job", plan)
    stop_at(run, 20)
    assert run.run().finish_reason == "paused"
    site.latency = 0.0
    assert make_crawl(database, "job", plan).run().finish_reason == "exhausted"
    assert set(listed) < set(results(database))
    assert site.requests["/sitemap.xml"] == 1


def test_one_of_two_workers_reads_them_and_both_wait(site: Site, database: Database) -> None:
    site.chain(60)
    site.latency = 0.02
    listed = [f"/only{n}" for n in range(50)]
    for path in listed:
        site.add(path)

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(1.0)
        return web.Response(body=urlset(site, *listed), headers=XML)

    site.pages["/sitemap.xml"] = slow
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=4)
    make_job(database, "job", plan)
    outcomes: list[str] = []
    runs = [make_crawl(database, "job", plan) for _ in range(2)]
    threads = [threading.Thread(target=lambda run=run: outcomes.append(run.run().finish_reason)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert outcomes == ["exhausted", "exhausted"]
    assert set(listed) < set(results(database))
    assert site.requests["/sitemap.xml"] == 1


def test_a_reader_that_died_is_replaced(site: Site, database: Database) -> None:
    site.add("/")
    plan = CrawlPlan(urls=(site.url,), allow_private=True)
    make_job(database, "job", plan)
    store = database.frontier("job").discovery
    dead = database.frontier("job").register_worker()
    assert store.claim_sitemaps(dead) == "mine"
    other = database.frontier("job").register_worker()
    assert store.claim_sitemaps(other) == "taken"
    database.frontier("job").release_worker(dead)
    assert store.claim_sitemaps(other) == "mine"
    store.finish_sitemaps({"files": 1, "urls": 0, "problems": []})
    assert store.claim_sitemaps(other) == "read"


def test_no_reason_takes_the_rows_of_another(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl_module, "MAX_UNFOLLOWED_ROWS", 20)
    site.add("/", [*(f"/out/{n}" for n in range(200)), "/deep"])
    site.add("/deep", [f"/deep/{n}" for n in range(5)])
    crawl(database, site.url, exclude=("/out/**",), max_depth=1)
    reasons = [row["skip_reason"] for row in results(database).values()]
    assert (reasons.count("excluded"), reasons.count("max_depth")) == (15, 5)
    assert read_discovery(database.engine, "job")["not_followed"] == {"excluded": 200, "max_depth": 5}
