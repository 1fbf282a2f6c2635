"""What becomes of each kind of answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.crawling import crawl, results
from tests.support.site import Page, Site, html

if TYPE_CHECKING:
    from aiohttp import web

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


def test_every_reachable_page_has_one_result_and_its_content(site: Site, database: Database) -> None:
    site.chain(40)
    outcome = crawl(database, site.url)
    found = results(database)
    assert outcome.finish_reason == "exhausted"
    assert set(found) == {"/", *(f"/p{n}" for n in range(1, 40))} | {"/p0"} - ({"/p0"} - set(found))
    assert all(row["status"] == "success" for row in found.values())
    assert database.value("SELECT count(*) FROM scraped_pages") == len(found)
    assert database.value("SELECT count(*) FROM website_content WHERE word_count > 0") == len(found)
    assert database.value("SELECT title FROM scraped_pages WHERE url LIKE '%/p7'") == "Page 7"


def test_no_url_is_fetched_twice(site: Site, database: Database) -> None:
    site.chain(60)
    crawl(database, site.url)
    site.requests.pop("/robots.txt")
    assert set(site.requests.values()) == {1}


def test_client_errors_fail_once_and_gone_pages_are_marked(site: Site, database: Database) -> None:
    site.add("/", ["/gone", "/missing", "/forbidden", "/teapot"])
    for path, status in (("/gone", 410), ("/forbidden", 403), ("/teapot", 418)):
        site.pages[path] = Page(b"no", status)
    crawl(database, site.url)
    found = results(database)
    assert {path: found[path]["http_status"] for path in ("/gone", "/missing", "/forbidden", "/teapot")} == {
        "/gone": 410,
        "/missing": 404,
        "/forbidden": 403,
        "/teapot": 418,
    }
    assert {found[p]["status"] for p in ("/gone", "/missing", "/forbidden", "/teapot")} == {"failed"}
    assert all(site.requests[path] == 1 for path in ("/gone", "/missing", "/forbidden", "/teapot"))


def test_a_page_that_is_gone_later_gets_removed_at_and_returns(site: Site, database: Database) -> None:
    site.add("/", ["/a"])
    site.add("/a")
    crawl(database, site.url, "first")
    kept = site.pages.pop("/a")
    crawl(database, site.url, "second")
    assert database.value("SELECT removed_at IS NOT NULL FROM scraped_pages WHERE url LIKE '%/a'") is True
    site.pages["/a"] = kept
    crawl(database, site.url, "third")
    assert database.value("SELECT removed_at IS NULL FROM scraped_pages WHERE url LIKE '%/a'") is True


def test_server_errors_are_tried_three_times_with_backoff(site: Site, database: Database) -> None:
    site.add("/", ["/broken", "/flaky"])
    site.pages["/broken"] = Page(b"oops", 503)
    asked = iter([Page(b"", 500), Page(b"", 429), Page(html("Flaky"))])

    async def flaky(_: web.Request) -> web.Response:
        from aiohttp import web

        page = next(asked)
        return web.Response(status=page.status, body=page.body, headers=page.headers)

    site.pages["/flaky"] = flaky
    outcome = crawl(database, site.url)
    found = results(database)
    assert (found["/broken"]["status"], found["/broken"]["http_status"]) == ("failed", 503)
    assert site.requests["/broken"] == 3
    assert (found["/flaky"]["status"], found["/flaky"]["tries"]) == ("success", 3)
    assert outcome.progress.retries == 4


def test_what_is_no_html_is_skipped_with_its_type(site: Site, database: Database) -> None:
    site.add("/", ["/list.pdf", "/data.json", "/notes.txt", "/logo.png"])
    site.pages["/list.pdf"] = Page(b"%PDF-1.4", headers={"Content-Type": "application/pdf"})
    site.pages["/data.json"] = Page(b"{}", headers={"Content-Type": "application/json"})
    site.pages["/notes.txt"] = Page(b"plain notes", headers={"Content-Type": "text/plain"})
    crawl(database, site.url)
    found = results(database)
    assert found["/list.pdf"]["skip_reason"] == "content_type"
    assert "application/pdf" in found["/list.pdf"]["error_message"]
    assert found["/data.json"]["skip_reason"] == "content_type"
    assert found["/notes.txt"]["status"] == "success"
    assert "/logo.png" not in found
    assert site.requests["/logo.png"] == 0


def test_an_empty_page_is_a_success_without_words(site: Site, database: Database) -> None:
    site.add("/", ["/empty"])
    site.pages["/empty"] = Page(b"")
    crawl(database, site.url)
    assert results(database)["/empty"]["status"] == "success"
    assert database.value("SELECT word_count FROM website_content ORDER BY word_count LIMIT 1") == 0


def test_a_redirect_is_skipped_and_its_target_kept_under_its_own_url(site: Site, database: Database) -> None:
    site.add("/", ["/old", "/older"])
    site.pages["/old"] = Page(status=301, headers={"Location": "/new"})
    site.pages["/older"] = Page(status=302, headers={"Location": "/old"})
    site.add("/new", title="New")
    crawl(database, site.url)
    found = results(database)
    assert found["/old"]["skip_reason"] == "redirect"
    assert found["/older"]["skip_reason"] == "redirect"
    assert found["/old"]["redirected_to"].endswith(("/new",))
    assert found["/new"]["status"] == "success"
    assert database.value("SELECT count(*) FROM scraped_pages WHERE title = 'New'") == 1


def test_redirects_that_lead_nowhere_fail_with_their_reason(site: Site, database: Database) -> None:
    site.add("/", ["/loop", "/off", "/empty", "/long0"])
    site.pages["/loop"] = Page(status=302, headers={"Location": "/loop2"})
    site.pages["/loop2"] = Page(status=302, headers={"Location": "/loop"})
    site.pages["/off"] = Page(status=302, headers={"Location": "http://169.254.169.254/latest/"})
    site.pages["/empty"] = Page(status=302, headers={})
    for n in range(15):
        site.pages[f"/long{n}"] = Page(status=302, headers={"Location": f"/long{n + 1}"})
    crawl(database, site.url)
    found = results(database)
    reasons = {path: row["error_message"].split(":")[0] for path, row in found.items() if row["status"] == "failed"}
    assert reasons == {
        "/loop": "redirect_loop",
        "/off": "redirect_off_site",
        "/empty": "redirect_invalid",
        "/long0": "too_many_redirects",
    }


def test_a_loop_of_linked_redirects_is_seen(site: Site, database: Database) -> None:
    site.add("/", ["/a", "/b"])
    site.pages["/a"] = Page(status=302, headers={"Location": "/b"})
    site.pages["/b"] = Page(status=302, headers={"Location": "/a"})
    crawl(database, site.url)
    found = results(database)
    assert "failed" in {found["/a"]["status"], found["/b"]["status"]}
    assert any("redirect_loop" in (found[p]["error_message"] or "") for p in ("/a", "/b"))


def test_a_page_that_is_hard_to_read_is_cleaned_and_counted(site: Site, database: Database) -> None:
    site.add("/", ["/nul", "/charset", "http://[bad", "/surrogate", "/fine"])
    site.pages["/nul"] = Page(b"<title>A\x00B</title><p>with \x00 in it</p>")
    site.pages["/charset"] = Page(b"<title>\xff\xfe\xe9</title><p>caf\xe9 \x80</p>")
    site.pages["/surrogate"] = Page(b"<title>x &#xD800; y</title><p>\xed\xa0\x80 half</p>")
    site.add("/fine")
    crawl(database, site.url)
    found = results(database)
    assert {row["status"] for row in found.values()} == {"success"}
    assert found["/"]["repairs"] >= 1
    assert found["/nul"]["repairs"] >= 1
    assert database.value("SELECT title FROM scraped_pages WHERE url LIKE '%/nul'") in ("AB", "A\ufffdB")


def test_noindex_and_nofollow_are_obeyed(site: Site, database: Database) -> None:
    site.add("/", ["/hidden", "/closed"])
    site.add("/hidden", ["/behind"], head="<meta name=robots content=noindex>")
    site.add("/behind")
    site.add("/closed", ["/never"], head="<meta name=robots content=nofollow>")
    site.add("/never")
    crawl(database, site.url)
    found = results(database)
    assert found["/hidden"]["skip_reason"] == "noindex"
    assert found["/behind"]["status"] == "success"
    assert "/never" not in found


def test_private_addresses_are_refused_unless_allowed(site: Site, database: Database) -> None:
    site.add("/")
    outcome = crawl(database, site.url, allow_private=False)
    assert outcome.finish_reason in ("site_unreachable", "disallowed")
    assert sum(site.requests.values()) == 0


def test_the_cache_has_the_results(site: Site, database: Database) -> None:
    site.chain(5)
    from resources.crawler.plan import CrawlPlan
    from tests.support.crawling import make_crawl, make_job

    plan = CrawlPlan(urls=(site.url,), allow_private=True)
    make_job(database, "cached", plan)
    manager = database.manager
    seen: list[str] = []
    make_crawl(database, "cached", plan, on_committed=lambda batch: seen.extend(f.url for f in batch)).run()
    assert sorted(seen) == sorted(r["url"] for r in manager.get_job_results_from_postgres("cached"))
