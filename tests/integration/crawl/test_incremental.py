"""A second crawl of a site that is known: what it asks for, what it writes, what it removes."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from sqlalchemy import text

from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import url_hash
from resources.postgres.frontier import FrontierUrl
from resources.postgres.removals import NothingHeldBack, settle_held_back
from tests.support.crawling import crawl, make_crawl, make_job, results, stop_at
from tests.support.site import Handler, Page, Site, html

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


class Versioned:
    """Pages that have an ETag and answer 304 to whoever has it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.asked: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.answered: dict[str, list[int]] = defaultdict(list)

    def add(self, path: str, links: Iterable[str] = (), *, body: str = "", etag: str | None = None) -> None:
        page = html(path, links, body=body)
        tag = etag or f'"{blake2b(page, digest_size=8).hexdigest()}"'

        async def answer(request: web.Request) -> web.Response:
            self.asked[path].append(dict(request.headers))
            same = request.headers.get("If-None-Match") == tag
            self.answered[path].append(304 if same else 200)
            headers = {"ETag": tag, "Content-Type": "text/html; charset=utf-8"}
            return web.Response(status=304, headers=headers) if same else web.Response(body=page, headers=headers)

        self.site.pages[path] = answer

    def chain(self, count: int) -> None:
        for n in range(count):
            children = [f"/p{child}" for child in (2 * n + 1, 2 * n + 2) if child < count]
            self.add(f"/p{n}" if n else "/", ["/", *children], body=f"Page {n}")


@pytest.fixture
def pages(site: Site) -> Versioned:
    return Versioned(site)


def _rows(database: Database, query: str) -> list[Any]:
    with database.engine.connect() as connection:
        return list(connection.execute(text(query)).all())


def _page(database: Database, path: str) -> Any:
    (row,) = _rows(database, f"SELECT * FROM scraped_pages WHERE url ~ '[0-9]{path}$'")
    return row


def _contents(database: Database) -> set[Any]:
    return set(_rows(database, "SELECT page_id, xmin::text, md5(text) FROM website_content")) | set(
        _rows(database, "SELECT page_id, xmin::text, md5(links) FROM omniops_meta.page_links")
    )


def test_nothing_is_written_again_of_a_site_that_has_not_changed(pages: Versioned, database: Database) -> None:
    pages.chain(40)
    crawl(database, pages.site.url, "first")
    before, seen = (
        _contents(database),
        _rows(database, "SELECT url, last_seen_at, last_changed_at FROM scraped_pages"),
    )
    outcome = crawl(database, pages.site.url, "second", job_type="incremental")
    found = results(database, "second")
    assert outcome.finish_reason == "exhausted"
    assert len(found) == 40
    assert {(r["status"], r["skip_reason"], r["http_status"]) for r in found.values()} == {
        ("skipped", "not_modified", 304)
    }
    assert all(answers == [200, 304] for answers in pages.answered.values())
    assert _contents(database) == before
    after = {row.url: row for row in _rows(database, "SELECT url, last_seen_at, last_changed_at FROM scraped_pages")}
    assert all(after[row.url].last_seen_at > row.last_seen_at for row in seen)
    assert all(after[row.url].last_changed_at == row.last_changed_at for row in seen)
    depths = {path: row["depth"] for path, row in results(database, "first").items()}
    assert {path: row["depth"] for path, row in found.items()} == depths
    assert database.value("SELECT count(*) FROM scraped_pages WHERE missing_crawls > 0") == 0


def test_with_nothing_known_it_is_a_full_crawl(pages: Versioned, database: Database) -> None:
    pages.chain(12)
    crawl(database, pages.site.url, "first", job_type="incremental")
    assert {row["status"] for row in results(database, "first").values()} == {"success"}
    assert len(results(database, "first")) == 12


def test_a_full_crawl_asks_without_conditions_and_writes_nothing_that_is_the_same(
    pages: Versioned, database: Database
) -> None:
    pages.chain(8)
    crawl(database, pages.site.url, "first")
    before = _contents(database)
    crawl(database, pages.site.url, "second")
    assert all(answers == [200, 200] for answers in pages.answered.values())
    assert {(r["status"], r["http_status"]) for r in results(database, "second").values()} == {("success", 200)}
    assert database.value("SELECT count(*) FROM scrape_job_results WHERE job_id = 'second' AND NOT changed") == 8
    assert _contents(database) == before


def test_a_page_without_validators_is_told_by_what_it_shows(site: Site, database: Database) -> None:
    site.chain(6)
    crawl(database, site.url, "first")
    before = _contents(database)
    crawl(database, site.url, "second", job_type="incremental")
    assert {(r["status"], r["skip_reason"]) for r in results(database, "second").values()} == {
        ("skipped", "not_modified")
    }
    assert _contents(database) == before


def test_what_has_changed_is_read_and_what_is_new_is_found_behind_unmodified_pages(
    pages: Versioned, database: Database
) -> None:
    pages.add("/", ["/list"])
    pages.add("/list", ["/price", "/broken"])
    pages.add("/price", body="It costs 19 EUR.")
    pages.site.pages["/broken"] = Page(b"", 403)
    crawl(database, pages.site.url, "first")
    changed_at = _page(database, "/price").last_changed_at
    pages.add("/price", ["/new"], body="It costs 29 EUR.")
    pages.add("/broken", body="It is mended.")
    pages.add("/new", body="It is new.")
    crawl(database, pages.site.url, "second", job_type="incremental")
    found = {path: (row["status"], row["skip_reason"]) for path, row in results(database, "second").items()}
    assert found == {
        "/": ("skipped", "not_modified"),
        "/list": ("skipped", "not_modified"),
        "/price": ("success", None),
        "/broken": ("success", None),  # never kept before, and linked only from a page that was not read again
        "/new": ("success", None),
    }
    assert _page(database, "/price").last_changed_at > changed_at
    assert database.value("SELECT count(*) FROM website_content WHERE text LIKE '%29 EUR%'") == 1


def test_a_cosmetic_change_moves_no_content_and_a_number_is_none(site: Site, database: Database) -> None:
    site.add("/", body="Open 9:00 to 17:00. Last updated on Nov 28, 2026.")
    crawl(database, site.url, "first")
    before = _contents(database)
    changed_at = _page(database, "/").last_changed_at
    site.pages["/"] = Page(
        html(
            "/", body="Open 9:00 to 17:00. Last updated on Nov 29, 2026.", head="<meta name=description content=new>"
        )
    )
    crawl(database, site.url, "second", job_type="incremental")
    page = _page(database, "/")
    assert page.description == "new"
    assert page.last_changed_at == changed_at
    assert _contents(database) == before
    assert results(database, "second")["/"]["status"] == "success"
    site.add("/", body="Open 9:00 to 18:00. Last updated on Nov 29, 2026.")
    crawl(database, site.url, "third", job_type="incremental")
    assert _page(database, "/").last_changed_at > changed_at
    assert database.value("SELECT text LIKE '%18:00%' FROM website_content") is True


@pytest.mark.parametrize("tag", ["*", "x" * 600, '"a", "b"', '""', "W/"])
def test_a_validator_that_is_none_is_not_sent(pages: Versioned, database: Database, tag: str) -> None:
    pages.add("/", etag=tag)
    crawl(database, pages.site.url, "first")
    crawl(database, pages.site.url, "second", job_type="incremental")
    assert all("If-None-Match" not in headers for headers in pages.asked["/"])
    assert results(database, "second")["/"]["skip_reason"] == "not_modified"  # by what it shows


def test_weak_validators_and_dates_are_sent_as_they_came(site: Site, database: Database) -> None:
    date = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    asked: list[tuple[str | None, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")))
        status = 304 if asked[-1] == ('W/"1"', date) else 200
        headers = {"ETag": 'W/"1"', "Last-Modified": date, "Content-Type": "text/html"}
        return web.Response(status=status, body=html("x") if status == 200 else None, headers=headers)

    site.pages["/"] = answer
    crawl(database, site.url, "first")
    crawl(database, site.url, "second", job_type="incremental")
    assert asked == [(None, None), ('W/"1"', date)]
    assert results(database, "second")["/"]["http_status"] == 304


def _always_304(bodies: list[int]) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        bodies.append(1 if "If-None-Match" in request.headers else 0)
        return web.Response(status=304)

    return answer


def test_not_modified_that_nobody_asked_for_is_asked_once_more_and_fails(site: Site, database: Database) -> None:
    bodies: list[int] = []
    site.add("/", ["/liar"])
    site.pages["/liar"] = _always_304(bodies)
    crawl(database, site.url, "first")
    row = results(database, "first")["/liar"]
    assert (row["status"], row["error_message"]) == ("failed", "HTTP 304")
    assert bodies == [0, 0]


def test_a_condition_is_not_carried_to_where_a_redirect_leads(pages: Versioned, database: Database) -> None:
    pages.add("/", ["/old"])
    pages.add("/old")
    crawl(database, pages.site.url, "first")
    asked: list[dict[str, str]] = []

    async def moved(request: web.Request) -> web.Response:
        asked.append(dict(request.headers))
        return web.Response(status=301, headers={"Location": "/new"})

    pages.site.pages["/old"] = moved
    pages.add("/new", body="It moved.")
    crawl(database, pages.site.url, "second", job_type="incremental")
    assert "If-None-Match" in asked[0]
    assert "If-None-Match" not in pages.asked["/new"][0]
    assert results(database, "second")["/new"]["status"] == "success"
    assert _page(database, "/old").removed_reason == "moved"


def test_a_page_whose_content_is_missing_is_fetched_whole(pages: Versioned, database: Database) -> None:
    pages.add("/")
    crawl(database, pages.site.url, "first", keep_text=False)
    crawl(database, pages.site.url, "second", job_type="incremental")
    assert pages.answered["/"] == [200, 200]
    assert database.value("SELECT count(*) FROM website_content") == 1
    crawl(database, pages.site.url, "third", job_type="incremental")
    assert pages.answered["/"] == [200, 200, 304]


def test_a_sitemap_date_before_the_last_visit_spares_the_request(pages: Versioned, database: Database) -> None:
    pages.chain(3)
    crawl(database, pages.site.url, "first")
    plan = CrawlPlan(urls=(pages.site.url,), job_type="incremental", allow_private=True)
    make_job(database, "second", plan)
    old, new = datetime.now(UTC) - timedelta(days=30), datetime.now(UTC) + timedelta(minutes=1)
    urls = [(f"{pages.site.url}p1", old), (f"{pages.site.url}p2", new)]
    database.frontier("second").seed([FrontierUrl(url_hash(u), u, 0, "sitemap", at) for u, at in urls])
    make_crawl(database, "second", plan).run()
    assert (pages.answered["/p1"], pages.answered["/p2"]) == ([200], [200, 304])
    assert {row["skip_reason"] for row in results(database, "second").values()} == {"not_modified"}
    # Due by its own interval, it is asked for all the same.
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET next_check_at = now() - interval '1 hour'"))
    make_job(database, "third", plan)
    database.frontier("third").seed([FrontierUrl(url_hash(urls[0][0]), urls[0][0], 0, "sitemap", old)])
    make_crawl(database, "third", plan).run()
    assert pages.answered["/p1"] == [200, 304]


# --- removal ----------------------------------------------------------------------------------------------------


def test_a_page_that_nothing_links_to_is_removed_after_three_crawls_and_comes_back(
    pages: Versioned, database: Database
) -> None:
    pages.add("/", ["/kept", "/orphan"])
    pages.add("/kept")
    pages.add("/orphan")
    crawl(database, pages.site.url, "j0")
    pages.add("/", ["/kept"])
    for n in (1, 2):
        crawl(database, pages.site.url, f"j{n}", job_type="incremental")
        page = _page(database, "/orphan")
        assert (page.missing_crawls, page.removed_at) == (n, None)
        assert results(database, f"j{n}")["/orphan"]["skip_reason"] == "not_modified"  # visited though unlinked
    crawl(database, pages.site.url, "j3")  # a full crawl does not even visit it
    assert _page(database, "/orphan").removed_reason == "unlinked"
    assert _page(database, "/kept").missing_crawls == 0
    pages.add("/", ["/kept", "/orphan"])
    crawl(database, pages.site.url, "j4", job_type="incremental")
    page = _page(database, "/orphan")
    assert (page.removed_at, page.removed_reason, page.missing_crawls) == (None, None, 0)


@pytest.mark.parametrize("cut", [{"max_pages": 1}, {"max_depth": 0}, {"exclude": ("/nothing/**",)}])
def test_a_crawl_that_did_not_see_the_whole_site_counts_no_page_as_missing(
    pages: Versioned, database: Database, cut: dict[str, Any]
) -> None:
    pages.add("/", ["/a", "/orphan"])
    pages.add("/a")
    pages.add("/orphan")
    crawl(database, pages.site.url, "first")
    pages.add("/", ["/a"])
    crawl(database, pages.site.url, "second", **cut)
    assert database.value("SELECT max(missing_crawls) FROM scraped_pages") == 0


def test_a_page_that_fails_today_still_leads_to_what_it_led_to(pages: Versioned, database: Database) -> None:
    pages.add("/", ["/list"])
    pages.add("/list", ["/deep"])
    pages.add("/deep")
    crawl(database, pages.site.url, "first")
    pages.site.pages["/list"] = Page(b"", 403)
    crawl(database, pages.site.url, "second")
    assert results(database, "second")["/deep"]["status"] == "success"
    assert database.value("SELECT max(missing_crawls) FROM scraped_pages") == 0


def test_a_site_that_loses_most_of_its_pages_keeps_them_until_somebody_has_looked(
    pages: Versioned, database: Database
) -> None:
    pages.chain(12)
    crawl(database, pages.site.url, "first")
    for n in range(5, 12):
        del pages.site.pages[f"/p{n}"]
    crawl(database, pages.site.url, "second", job_type="incremental")
    assert database.value("SELECT count(*) FROM scraped_pages WHERE removed_at IS NOT NULL") == 0
    settled = database.value("SELECT removals FROM scrape_jobs WHERE job_id = 'second'")
    assert (settled["held_back"], settled["gone"], settled["alive"]) == (True, 7, 12)
    frontier = database.frontier("second")
    assert frontier.settle_pages([]) == settled  # said once
    shown = settle_held_back(database.engine, "second", accept=False, limit=3)
    gone = [(f"{pages.site.url}p{n}", "gone") for n in (10, 11, 5)]
    assert (shown.accepted, shown.total, shown.alive, list(shown.pages)) == (False, 7, 12, gone)
    assert database.value("SELECT count(*) FROM scraped_pages WHERE removed_at IS NOT NULL") == 0
    assert frontier.settle_pages([]) == settled
    accepted = settle_held_back(database.engine, "second", accept=True)
    assert (accepted.accepted, accepted.gone, len(accepted.pages)) == (True, 7, 7)
    assert database.value("SELECT count(*) FROM scraped_pages WHERE removed_reason = 'gone'") == 7
    with pytest.raises(NothingHeldBack, match="held back nothing"):
        settle_held_back(database.engine, "second", accept=True)


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_crawl_that_did_not_come_to_its_end_decides_about_no_page(
    status: str, pages: Versioned, database: Database
) -> None:
    pages.chain(12)
    crawl(database, pages.site.url, "first")
    for n in range(5, 12):
        del pages.site.pages[f"/p{n}"]
    plan = CrawlPlan(urls=(pages.site.url,), allow_private=True, job_type="incremental")
    make_job(database, "second", plan)
    make_crawl(database, "second", plan).run()
    database.manager.update_job_status("second", status, finish_reason="error" if status == "failed" else status)
    with pytest.raises(NothingHeldBack, match=f"is {status} and has decided about no page"):
        settle_held_back(database.engine, "second", accept=True)
    assert (
        database.value("SELECT count(*) FROM scraped_pages WHERE removed_at IS NOT NULL OR missing_crawls > 0") == 0
    )


# --- intervals --------------------------------------------------------------------------------------------------


def test_intervals_shorten_with_changes_and_lengthen_without(pages: Versioned, database: Database) -> None:
    pages.add("/", ["/calm", "/busy"])
    pages.add("/calm")
    for n in range(4):
        pages.add("/busy", body=f"Version {n}")
        crawl(database, pages.site.url, f"j{n}", job_type="incremental")
    calm, busy = _page(database, "/calm"), _page(database, "/busy")
    assert (busy.check_interval, calm.check_interval) == (timedelta(hours=3), timedelta(days=3.375))
    assert calm.next_check_at - calm.last_seen_at == calm.check_interval
    for n in range(4, 8):
        pages.add("/busy", body=f"Version {n}")
        crawl(database, pages.site.url, f"j{n}", job_type="incremental")
    assert _page(database, "/busy").check_interval == timedelta(hours=1)


def test_where_pages_are_limited_those_that_are_due_come_first(pages: Versioned, database: Database) -> None:
    pages.chain(20)
    crawl(database, pages.site.url, "first")
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE scraped_pages SET next_check_at = now() - interval '2 days' WHERE url LIKE '%/p1_'")
        )
    outcome = crawl(database, pages.site.url, "second", job_type="incremental", max_pages=11)
    assert outcome.finish_reason == "max_pages"
    assert set(results(database, "second")) == {"/", *(f"/p{n}" for n in range(10, 20))}


# --- interrupted, shared ----------------------------------------------------------------------------------------


def test_one_that_is_stopped_in_the_middle_goes_on_exactly(pages: Versioned, database: Database) -> None:
    pages.chain(60)
    crawl(database, pages.site.url, "first")
    before = _contents(database)
    pages.site.latency = 0.02
    plan = CrawlPlan(urls=(pages.site.url,), job_type="incremental", allow_private=True, concurrency=2)
    make_job(database, "second", plan)
    run = make_crawl(database, "second", plan)
    stop_at(run, 10)
    assert run.run().finish_reason == "paused"
    done = len(results(database, "second"))
    assert 0 < done < 60
    pages.site.latency = 0.0
    assert make_crawl(database, "second", plan).run().finish_reason == "exhausted"
    assert len(results(database, "second")) == 60
    assert {row["skip_reason"] for row in results(database, "second").values()} == {"not_modified"}
    assert _contents(database) == before


def test_two_workers_share_one(pages: Versioned, database: Database) -> None:
    pages.chain(150)
    crawl(database, pages.site.url, "first")
    pages.site.latency = 0.005
    plan = CrawlPlan(urls=(pages.site.url,), job_type="incremental", allow_private=True, concurrency=4)
    make_job(database, "second", plan)
    workers = [threading.Thread(target=make_crawl(database, "second", plan).run) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert len(results(database, "second")) == 150
    assert all(answers == [200, 304] for answers in pages.answered.values())
    assert database.value("SELECT count(*) FROM crawl_frontier WHERE job_id = 'second' AND found_by = 'known'") == 0
