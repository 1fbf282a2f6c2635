"""Sites without end: each crawl ends by itself, and the rest of the site is complete."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from resources.crawler import traps
from tests.support.crawling import crawl, results
from tests.support.site import Page, Site, html

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

HONEST = [f"/docs/{n}" for n in range(30)]


def serve(site: Site, entrance: str, links: Callable[[str], list[str] | None]) -> None:
    """An honest site of 31 pages, and behind `entrance` what `links` says that each path links to."""
    site.add("/", [*HONEST, entrance])
    for path in HONEST:
        site.add(path, ["/"])

    async def answer(request: web.Request) -> web.Response:
        path = request.raw_path
        found = links(path)
        if found is None:
            return web.Response(status=404)
        return web.Response(body=html(path, found), content_type="text/html")

    site.fallback = answer


def ended(site: Site, database: Database, **options: int) -> dict[str, int]:
    """Crawl; everything honest must be there. Gives the skipped rows by reason."""
    outcome = crawl(database, site.url, max_pages=5_000, max_depth=10_000, **options)
    assert outcome.finish_reason == "exhausted"
    found = results(database)
    assert all(found[path]["status"] == "success" for path in HONEST)
    reasons: dict[str, int] = {}
    for row in found.values():
        if row["skip_reason"]:
            reasons[row["skip_reason"]] = reasons.get(row["skip_reason"], 0) + 1
    return reasons


def test_paths_that_repeat(site: Site, database: Database) -> None:
    serve(site, "/wiki/a/", lambda path: [path + "b/a/"] if path.startswith("/wiki/") else None)
    assert ended(site, database) == {"repeating_path": 1}
    assert sum(site.requests.values()) < 50


def test_session_ids_are_no_pages_of_their_own(site: Site, database: Database) -> None:
    visits = iter(range(10**9))

    def links(path: str) -> list[str] | None:
        match = re.match(r"/shop/(\d)", path)
        if match is None:
            return None
        return [f"/shop/{n};jsessionid={next(visits):032X}?PHPSESSID={next(visits)}" for n in range(10)]

    serve(site, "/shop/0", links)
    assert ended(site, database) == {}
    paths = {path for path in results(database) if path.startswith("/shop")}
    assert paths == {f"/shop/{n}" for n in range(10)}


def test_a_redirect_that_only_adds_a_session_id_is_the_page(site: Site, database: Database) -> None:
    site.add("/", ["/start"])

    async def start(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/start;jsessionid=00FF"})

    site.pages["/start"] = start
    site.add("/start;jsessionid=00FF", ["/next;jsessionid=00FF"], title="Start")
    site.add("/next")
    crawl(database, site.url)
    assert {path: row["status"] for path, row in results(database).items()} == {
        "/": "success",
        "/start": "success",
        "/next": "success",
    }
    assert database.value("SELECT title FROM scraped_pages WHERE url LIKE '%/start'") == "Start"


def test_what_may_be_a_session_id(site: Site, database: Database) -> None:
    visits = iter(range(10**9))
    serve(
        site, "/p", lambda path: [f"/p?sid={next(visits):032x}" for _ in range(5)] if path.startswith("/p") else None
    )
    assert set(ended(site, database)) == {"session_id"}
    assert sum(1 for path in site.requests if path.startswith("/p")) <= 1 + traps.SESSION_VARIANTS


def test_an_endless_calendar(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "CALENDAR_BUDGET", 20)

    def links(path: str) -> list[str] | None:
        match = re.fullmatch(r"/calendar/(\d+)-(\d+)", path)
        if match is None:
            return None
        month = int(match[1]) * 12 + int(match[2]) - 1
        return [f"/calendar/{m // 12:04d}-{m % 12 + 1:02d}" for m in (month - 1, month + 1)]

    today = date.today()  # noqa: DTZ011
    serve(site, f"/calendar/{today:%Y-%m}", links)
    assert set(ended(site, database)) == {"calendar"}
    assert 26 < sum(1 for path in site.requests if path.startswith("/calendar")) < 26 + 30


def test_a_newspaper_is_read_back_to_its_beginning(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traps, "CALENDAR_HORIZON_DAYS", 20)
    monkeypatch.setattr(traps, "CALENDAR_BUDGET", 20)
    monkeypatch.setattr(traps, "UNSURE_BUDGET", 20)
    first = date.today() - timedelta(days=120)  # noqa: DTZ011

    def links(path: str) -> list[str] | None:
        match = re.fullmatch(r"/archive/(\d+)/(\d+)/(\d+)/", path)
        if match is None:
            return ["/"] if path.startswith("/article/") else None
        day = date(*map(int, match.groups()))
        before = [f"/archive/{day - timedelta(days=1):%Y/%m/%d}/"] if day > first else []
        return [*before, f"/article/{day.toordinal()}"]

    serve(site, f"/archive/{date.today():%Y/%m/%d}/", links)  # noqa: DTZ011
    assert ended(site, database) == {}
    assert sum(1 for path in site.requests if path.startswith("/article/")) == 121


def test_filters_times_filters(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "FACET_BUDGET", 40)

    def links(path: str) -> list[str] | None:
        head, _, query = path.partition("?")
        if head != "/shoes":
            return ["/"] if head.startswith("/shoe/") else None
        chosen = query.split("&") if query else []
        more = [f"{name}={n}" for name in ("color", "size", "brand", "sort") for n in range(8)]
        return [
            *(f"/shoe/{n}" for n in range(12)),
            *(f"/shoes?{'&'.join([*chosen, facet])}" for facet in more if facet not in chosen),
        ]

    serve(site, "/shoes", links)
    assert set(ended(site, database)) == {"facets"}
    assert sum(1 for path in site.requests if path.startswith("/shoe/")) == 12
    assert 40 <= sum(1 for path in site.requests if path.startswith("/shoes?")) <= 60


def test_pages_that_all_say_the_same(site: Site, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "DUPLICATES_FROM", 60)
    serve(site, "/echo/0", lambda _: None)

    async def echo(request: web.Request) -> web.Response:
        if not request.path.startswith("/echo/"):
            return web.Response(status=404)
        n = int(request.path.rpartition("/")[2])
        body = html("Echo").replace(
            b"<ul>", b"".join(b"<a href=/echo/%d></a>" % (3 * n + m) for m in (1, 2, 3)) + b"<ul>"
        )
        return web.Response(body=body, content_type="text/html")

    site.fallback = echo
    assert set(ended(site, database)) == {"url_pattern"}
    assert 60 <= sum(1 for path in site.requests if path.startswith("/echo/")) < 600


def test_a_large_honest_site_is_crawled_whole(site: Site, database: Database) -> None:
    site.add("/", [f"/list?page={n}" for n in range(40)])

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/list":
            page = int(request.query["page"])
            return web.Response(
                body=html(f"List {page}", [f"/product/{page * 50 + n}" for n in range(50)]), content_type="text/html"
            )
        return web.Response(body=html(f"Product {request.path}", ["/"]), content_type="text/html")

    site.fallback = answer
    outcome = crawl(database, site.url, max_pages=10_000, concurrency=32)
    assert outcome.finish_reason == "exhausted"
    assert len(results(database)) == 2_041


@pytest.mark.parametrize(
    ("head", "body", "reached"),
    [
        ("<base href='/deep/er/'>", "<a href=x>", "/deep/er/x"),
        ("<link rel=canonical href=/canonical>", "", "/canonical"),
        ("<link rel=alternate hreflang=de href=/de>", "", "/de"),
        ("<link rel=next href=/page2>", "", "/page2"),
        ("<meta http-equiv=refresh content='5; url=/later'>", "", "/later"),
        ("", "<iframe src=/framed></iframe>", "/framed"),
        ("", "<map><area href=/area></map>", "/area"),
    ],
)
def test_every_kind_of_link_is_followed(site: Site, database: Database, head: str, body: str, reached: str) -> None:
    site.add("/", head=head, body=body)
    site.add(reached)
    crawl(database, site.url)
    assert results(database)[reached]["status"] == "success"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("", "<form action=/no><input></form>"),
        ("<link rel=alternate type=application/rss+xml href=/no>", ""),
        ("<link rel=stylesheet href=/no>", "<img src=/no><script src=/no></script>"),
        ("", "<a rel='noopener nofollow' href=/no>"),
        ("<meta name=robots content='noindex, nofollow'>", "<a href=/no><iframe src=/no></iframe>"),
        ("<meta name=OmniOpsBot content=none><link rel=canonical href=/no>", ""),
    ],
)
def test_what_is_not_followed(site: Site, database: Database, head: str, body: str) -> None:
    site.add("/", head=head, body=body)
    site.add("/no")
    crawl(database, site.url)
    assert "/no" not in results(database)
    assert site.requests["/no"] == 0


def test_a_page_with_another_canonical_url_is_kept_under_its_own(site: Site, database: Database) -> None:
    site.add("/", ["/red?variant=1"])
    site.add("/red?variant=1", head="<link rel=canonical href=/red>")
    site.add("/red", head="<link rel=canonical href=/red>")
    crawl(database, site.url)
    found = results(database)
    assert found["/red?variant=1"]["status"] == found["/red"]["status"] == "success"
    assert database.value("SELECT canonical_url FROM scraped_pages WHERE url LIKE '%variant=1'") == site.url + "red"


def test_nofollow_and_noindex_are_followed_when_robots_are_not_respected(site: Site, database: Database) -> None:
    site.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /shut", headers={"Content-Type": "text/plain"})
    site.add("/", ["/hidden", "/shut"], body="<a rel=nofollow href=/unloved>")
    site.add("/hidden", ["/behind"], head="<meta name=robots content='noindex, nofollow'>")
    for path in ("/behind", "/shut", "/unloved"):
        site.add(path)
    crawl(database, site.url, respect_robots=False)
    assert {path: row["status"] for path, row in results(database).items()} == dict.fromkeys(
        ("/", "/hidden", "/behind", "/shut", "/unloved"), "success"
    )
