"""What a crawl keeps of what pages say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import text

from resources.content.reprocess import reprocess
from resources.crawler import reading
from resources.crawler.plan import CrawlOutcome, CrawlPlan
from resources.crawler.reading import SiteMemory
from resources.crawler.urls import normalise
from resources.postgres.page_history import page_versions
from tests.support.crawling import crawl, make_crawl, make_job, results
from tests.support.site import Page

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

BANNER = "We use cookies to improve your visit and remember what you like"


def shop_page(n: int, said: str, links: str = "") -> Page:
    return Page(
        f"""<!doctype html><html lang="en"><head><title>Product {n}</title></head><body>
        <div class="bar"><p>{BANNER}</p></div>
        <div class="content"><h1>Product {n}</h1>
        <p>{said} It is made of steel, weighs {n} kilograms and fits every kitchen of number {n}.</p>
        <table><tr><th>Article</th><td>A-{n:04}</td></tr><tr><th>Price</th><td>{n}.50 euros</td></tr></table>
        {links}</div>
        <div class="foot"><p>Call us any day from nine to five, the kettle is always on for you</p></div>
        </body></html>""".encode()
    )


def make_shop(site: Site, pages: int) -> None:
    for n in range(pages):
        following = "".join(f'<a href="/p{m}">next {m}</a>' for m in (2 * n + 1, 2 * n + 2) if m < pages)
        site.pages[f"/p{n}"] = shop_page(n, f"The machine {n} grinds and brews.", following)
    site.pages["/"] = site.pages["/p0"]


def customer_of(database: Database) -> UUID:
    found: UUID = database.value("SELECT id FROM customers WHERE slug = 'acme'")
    return found


def run(database: Database, site: Site, job_id: str, **fields: object) -> CrawlOutcome:
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True, **fields)  # type: ignore[arg-type]
    make_job(database, job_id, plan)
    memory = SiteMemory.of_customer(database.engine, customer_of(database))
    return make_crawl(database, job_id, plan, memory=memory).run()


def test_what_stands_on_every_page_is_left_out_and_facts_are_kept(site: Site, database: Database) -> None:
    make_shop(site, 30)
    run(database, site, "one")
    rows = database.engine.connect().execute(
        text("SELECT p.url, w.text, w.markdown FROM website_content AS w JOIN scraped_pages AS p ON p.id = w.page_id")
    ).all()  # fmt: skip
    assert len(rows) == 30  # the root, and p1 to p29
    for row in rows:
        name = row.url.rsplit("/", 1)[1]
        n = int(name[1:]) if name else 0
        assert BANNER not in row.text
        assert "kettle" not in row.text
        assert f"{n}.50 euros" in row.text
        assert f"A-{n:04}" in row.markdown
    assert database.value("SELECT pages >= 8 FROM omniops_meta.site_blocks") is True


def test_a_site_of_one_page_is_read_at_once(site: Site, database: Database) -> None:
    site.pages["/"] = shop_page(1, "One page alone.")
    crawl(database, site.url)
    assert database.value("SELECT text LIKE '%One page alone.%' FROM website_content") is True
    assert database.value("SELECT simhash IS NOT NULL AND folded_hash IS NOT NULL FROM scraped_pages") is True


def test_the_last_pages_of_the_budget_do_not_wait_for_more(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More urls wait in the frontier, and none of them will be fetched."""
    monkeypatch.setattr(reading, "WARM_UP_SECONDS", 1_000.0)
    make_shop(site, 40)
    assert crawl(database, site.url, max_pages=5, max_seconds=60).finish_reason == "max_pages"
    assert database.value("SELECT count(*) FROM website_content") == 5


def test_a_changed_footer_is_no_change_and_a_changed_price_is_one(site: Site, database: Database) -> None:
    make_shop(site, 25)
    run(database, site, "one")
    before = dict(database.engine.connect().execute(text("SELECT url, last_changed_at FROM scraped_pages")).all())
    for path, page in list(site.pages.items()):
        assert isinstance(page, Page)
        body = page.body.replace(b"nine to five", b"ten to six")
        site.pages[path] = Page(body.replace(b"7.50 euros", b"8.25 euros") if path == "/p7" else body)
    run(database, site, "two")
    after = dict(database.engine.connect().execute(text("SELECT url, last_changed_at FROM scraped_pages")).all())
    assert [url.rsplit("/", 1)[1] for url in after if after[url] != before[url]] == ["p7"]
    with database.engine.connect() as connection:
        versions = page_versions(connection, customer_of(database), f"{site.url}p7")
    assert ["8.25 euros" in version.text for version in versions] == [True, False]


def test_what_has_not_changed_is_not_read_again(site: Site, database: Database) -> None:
    make_shop(site, 9)
    assert run(database, site, "one").progress.phases["read"] > 0
    # The same bytes, since this site answers no conditions; asked for by both kinds of crawl.
    for job_type in ("incremental", "full_crawl"):
        again = run(database, site, job_type, job_type=job_type)
        assert (again.progress.total, again.progress.phases["read"]) == (9, 0.0)


@pytest.mark.usefixtures("mischief")
def test_a_page_that_crashes_its_reader_is_kept_and_counted(site: Site, database: Database) -> None:
    make_shop(site, 9)
    site.pages["/crash"] = shop_page(50, "The machine of doom grinds and brews.")
    site.pages["/p8"] = shop_page(8, "The machine 8 grinds and brews.", '<a href="/crash">next</a>')
    outcome = run(database, site, "job")
    assert (outcome.finish_reason, outcome.progress.successful, outcome.progress.unread) == ("exhausted", 10, 1)
    assert database.value("SELECT w.text FROM website_content AS w JOIN scraped_pages AS p ON p.id = w.page_id "
                          "WHERE p.url LIKE '%/crash' AND w.text LIKE '%machine of doom%'")  # fmt: skip
    reasons = {row["reason"]: row["pages"] for row in database.manager.count_by_reason("job")}
    assert reasons["its main text could not be told (crash): all that is visible is kept"] == 1


@pytest.mark.parametrize("keep_text", [True, False])
def test_pages_are_read_in_other_processes_and_only_where_text_is_kept(
    site: Site, database: Database, keep_text: bool
) -> None:
    make_shop(site, 9)
    real, readers = site.pages["/p8"], []

    async def looking(request: object) -> object:
        from aiohttp import web

        children = psutil.Process().children(recursive=True)
        readers.extend(c for c in children if "resources.content.worker" in " ".join(c.cmdline()))
        assert isinstance(real, Page)
        return web.Response(body=real.body, headers=real.headers)

    site.pages["/p8"] = looking  # type: ignore[assignment]
    assert run(database, site, "job", keep_text=keep_text).progress.successful == 9
    assert bool(readers) is keep_text
    assert database.value("SELECT count(*) FROM website_content") == (9 if keep_text else 0)


def test_kept_html_is_read_again_without_a_request(site: Site, database: Database) -> None:
    make_shop(site, 9)
    run(database, site, "one", keep_html_days=3)
    assert database.value("SELECT count(*) FROM omniops_meta.page_html") == database.value(
        "SELECT count(*) FROM website_content"
    )
    asked = site.requests.total()
    customer = customer_of(database)
    again = reprocess(database.engine, customer)
    assert (again.read > 0, again.changed, again.failures.total()) == (True, 0, 0)
    # An older extractor had lost something.
    with database.engine.begin() as connection:
        changed = connection.scalar(text("SELECT last_changed_at FROM scraped_pages WHERE url LIKE '%/p4'"))
        connection.execute(text("SELECT set_config('omniops.same_page', 'on', true)"))
        connection.execute(
            text("""
                WITH page AS (UPDATE scraped_pages SET content_hash = 'old' WHERE url LIKE '%/p4' RETURNING id)
                UPDATE website_content AS w SET text = 'old' FROM page WHERE w.page_id = page.id
            """)
        )
    assert reprocess(database.engine, customer, dry_run=True).changed == 1
    assert database.value("SELECT count(*) FROM website_content WHERE text = 'old'") == 1
    assert reprocess(database.engine, customer).changed == 1
    assert database.value("SELECT count(*) FROM website_content WHERE text = 'old' OR search IS NULL") == 0
    assert reprocess(database.engine, customer).changed == 0
    assert site.requests.total() == asked
    assert database.value("SELECT last_changed_at FROM scraped_pages WHERE url LIKE '%/p4'") == changed
    assert database.value("SELECT count(*) FROM omniops_meta.page_versions") == 0


def test_all_that_another_reading_brings_is_written_and_nothing_else(site: Site, database: Database) -> None:
    """An older extractor had each of these wrong, on another page each."""
    make_shop(site, 8)
    for n in range(8):
        page = site.pages[f"/p{n}"]
        assert isinstance(page, Page)
        head = (
            b"<meta name=description content=machine><meta name=date content=2026-11-24><link rel=canonical href=/>"
        )
        site.pages[f"/p{n}"] = Page(page.body.replace(b"<title>", head + b"<title>", 1))
    run(database, site, "one", keep_html_days=3)
    customer = customer_of(database)
    look = """SELECT p.url, p.title, p.description, p.canonical_url, p.lang, p.published_at, p.content_hash,
                     p.folded_hash, p.simhash, p.last_changed_at, w.updated_at, w.text, w.markdown, w.word_count
              FROM scraped_pages AS p JOIN website_content AS w ON w.page_id = p.id
              WHERE p.url ~ '/p[0-9]$' ORDER BY p.url"""
    before = database.rows(look)
    assert {row["published_at"] is None for row in before} == {False}
    wrong = {
        "/p1": "UPDATE scraped_pages SET title = 'wrong'",
        "/p2": "UPDATE scraped_pages SET description = NULL",
        "/p3": "UPDATE scraped_pages SET canonical_url = 'http://elsewhere.example/'",
        "/p4": "UPDATE scraped_pages SET lang = 'xx'",
        "/p5": "UPDATE scraped_pages SET published_at = NULL",
        "/p6": "UPDATE website_content SET markdown = 'wrong'",
        "/p7": "DELETE FROM website_content",
    }
    with database.engine.begin() as connection:
        for path, statement in wrong.items():
            key = "id" if "scraped_pages" in statement else "page_id"
            connection.execute(
                text(f"{statement} WHERE {key} = (SELECT id FROM scraped_pages WHERE url ~ :path)"),
                {"path": f"{path}$"},
            )
        connection.execute(text("UPDATE website_content SET embedded_models = ARRAY['some-model']"))
    assert reprocess(database.engine, customer, dry_run=True).changed == len(wrong)
    assert database.rows(look) != before
    assert reprocess(database.engine, customer).changed == len(wrong)
    after = database.rows(look)
    assert [{**row, "updated_at": None} for row in after] == [{**row, "updated_at": None} for row in before]
    assert [row["updated_at"] for row in after[:7]] == [row["updated_at"] for row in before[:7]]
    assert database.value("SELECT count(*) FROM omniops_meta.page_versions") == 0
    assert database.value("SELECT count(*) FROM website_content WHERE search IS NULL") == 0
    again = database.rows("""SELECT p.url FROM scraped_pages AS p JOIN website_content AS w ON w.page_id = p.id
                             WHERE w.embedded_models = '{}' ORDER BY p.url""")
    assert [str(row["url"])[-2:] for row in again] == ["p1", "p6", "p7"]
    assert reprocess(database.engine, customer).changed == 0


def test_html_that_is_older_than_what_was_read_last_is_not_read_again(site: Site, database: Database) -> None:
    make_shop(site, 3)
    run(database, site, "one", keep_html_days=3)
    assert reprocess(database.engine, customer_of(database)).read == 3
    site.pages["/p1"] = shop_page(1, "The machine 1 grinds no more.")
    run(database, site, "two")
    again = reprocess(database.engine, customer_of(database))
    assert (again.read, again.changed) == (2, 0)
    assert database.value("SELECT count(*) FROM website_content WHERE text LIKE '%grinds no more%'") == 1


def test_after_a_cosmetic_change_another_reading_brings_the_text_up_to_date(site: Site, database: Database) -> None:
    site.pages["/"] = shop_page(1, "The machine grinds. Last updated on Nov 28, 2026.")
    run(database, site, "one", keep_html_days=3)
    look = "SELECT last_changed_at FROM scraped_pages"
    changed = database.value(look)
    site.pages["/"] = shop_page(1, "The machine grinds. Last updated on Nov 29, 2026.")
    run(database, site, "two", keep_html_days=3)
    assert database.value("SELECT text LIKE '%Nov 28%' FROM website_content") is True
    assert reprocess(database.engine, customer_of(database)).changed == 1
    assert database.value("SELECT text LIKE '%Nov 29%' FROM website_content") is True
    site.pages["/"] = shop_page(1, "The machine grinds. Last updated on Nov 30, 2026.")
    run(database, site, "three", keep_html_days=3)
    assert database.value("SELECT text LIKE '%Nov 29%' FROM website_content") is True
    assert database.value(look) == changed
    assert database.value("SELECT count(*) FROM omniops_meta.page_versions") == 0


def test_nothing_is_kept_of_html_unless_asked_for(site: Site, database: Database) -> None:
    make_shop(site, 3)
    crawl(database, site.url)
    assert database.value("SELECT count(*) FROM omniops_meta.page_html") == 0


def test_a_stop_reads_what_is_fetched_and_loses_nothing(
    site: Site, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody has time to read anything before the stop.
    monkeypatch.setattr(reading, "STOP_SECONDS", 0.0)
    make_shop(site, 60)
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True)
    make_job(database, "job", plan)
    first = make_crawl(database, "job", plan)

    real = site.pages["/p5"]

    async def stopping(request: object) -> object:
        from aiohttp import web

        first.stop("paused")
        assert isinstance(real, Page)
        return web.Response(body=real.body, headers=real.headers)

    site.pages["/p5"] = stopping  # type: ignore[assignment]
    assert first.run().finish_reason == "paused"
    site.pages["/p5"] = real
    outcome = make_crawl(database, "job", plan).run()
    assert outcome.finish_reason == "exhausted"
    found = results(database)
    assert {row["status"] for row in found.values()} == {"success"}
    assert {f"/p{n}" for n in range(1, 60)} <= set(found)
    assert database.value("SELECT count(*) FROM website_content") == len(found)
