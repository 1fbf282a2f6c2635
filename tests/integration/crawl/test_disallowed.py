"""Pages that robots.txt forbids since they were read leave search and embeddings, and come back when it lets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from resources.content.embed import embed_missing
from resources.content.embeddings.openai_compatible import OpenAICompatible
from resources.content.hybrid_search import Search
from resources.crawler.completion import settle
from resources.crawler.plan import CrawlPlan
from resources.postgres.embeddings import prepare_model
from resources.postgres.removals import settle_held_back
from resources.settings import EmbeddingSettings
from tests.support.crawling import crawl, make_crawl, make_job, results
from tests.support.embedding_server import serve_embeddings
from tests.support.site import Page, Site, serve_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

SECTION = ("/internal/wages", "/internal/holidays")
UNREADABLE = Page(b"", 500)


def robots(*lines: str) -> Page:
    body = "\n".join(("User-agent: *", *lines, "")).encode()
    return Page(body, headers={"Content-Type": "text/plain"})


def removed(database: Database) -> dict[str, Any]:
    rows = database.rows("SELECT url, removed_reason FROM scraped_pages WHERE removed_at IS NOT NULL")
    return {"/" + str(row["url"]).split("/", 3)[3]: row["removed_reason"] for row in rows}


@pytest.fixture
def company(site: Site) -> Site:
    site.add("/", ["/products", "/contact", *SECTION], body="We build pumps for every garden.")
    site.add("/products", body="The pump KX lifts forty litres in a minute.")
    site.add("/contact", body="Write to us or ring the bell at the gate.")
    site.add("/internal/wages", body="Wages are paid on the last friday of a month.")
    site.add("/internal/holidays", body="Holidays are asked for with the green form.")
    return site


@pytest.fixture
def provider(database: Database) -> Iterator[OpenAICompatible]:
    with serve_embeddings() as server:
        prepare_model(database.owner_url, "test-48", server.dimensions)
        yield OpenAICompatible(
            EmbeddingSettings(
                provider="openai", url=server.url, model="test-48", dimensions=server.dimensions, allow_private=True
            )
        )


@pytest.mark.parametrize("job_type", ["incremental", "full_crawl"])
def test_a_section_that_is_forbidden_leaves_search_and_embeddings_and_comes_back_when_it_is_allowed(
    job_type: str, company: Site, database: Database, provider: OpenAICompatible
) -> None:
    def found(words: str) -> set[str]:
        answer = Search(database.engine, provider).search(words, customer)
        assert answer.mode == "hybrid", answer.notice
        return {"/" + one.url.split("/", 3)[3] for one in answer.results}

    def embedded() -> set[str]:
        rows = database.rows(
            "SELECT DISTINCT p.url FROM page_embeddings AS e JOIN scraped_pages AS p ON p.id = e.page_id"
        )
        return {"/" + str(row["url"]).split("/", 3)[3] for row in rows}

    crawl(database, company.url, "first")
    customer = str(database.value("SELECT id FROM customers"))
    embed_missing(database.engine, provider)
    everything = {"/", "/products", "/contact", *SECTION}
    assert embedded() == everything
    assert "/internal/wages" in found("wages friday")

    company.pages["/robots.txt"] = robots("Disallow: /internal/")
    crawl(database, company.url, "second", job_type=job_type)
    rows = results(database, "second")
    assert {rows[path]["skip_reason"] for path in SECTION} == {"robots_txt"}
    assert removed(database) == dict.fromkeys(SECTION, "disallowed")
    settled = database.value("SELECT removals FROM scrape_jobs WHERE job_id = 'second'")
    assert (settled["disallowed"], settled["alive"], settled["held_back"]) == (2, 5, False)
    assert found("wages friday").isdisjoint(SECTION)
    assert "/products" in found("pump litres minute")
    assert embed_missing(database.engine, provider).removed == 2
    assert embedded() == everything - set(SECTION)

    del company.pages["/robots.txt"]
    crawl(database, company.url, "third", job_type=job_type)
    assert removed(database) == {}
    embed_missing(database.engine, provider)
    assert embedded() == everything
    assert "/internal/wages" in found("wages friday")


def test_a_page_that_changed_and_was_forbidden_before_it_was_embedded_again_leaves_no_vectors(
    company: Site, database: Database, provider: OpenAICompatible
) -> None:
    crawl(database, company.url, "first")
    embed_missing(database.engine, provider)
    company.add("/internal/wages", body="Wages are paid on mondays from now on.")
    crawl(database, company.url, "second", job_type="incremental")
    company.pages["/robots.txt"] = robots("Disallow: /internal/wages")
    crawl(database, company.url, "third", job_type="incremental")
    assert embed_missing(database.engine, provider).removed == 1
    assert database.value("SELECT count(*) FROM page_embeddings WHERE chunk_text LIKE '%Wages%'") == 0
    assert embed_missing(database.engine, provider).removed == 0


def test_a_robots_txt_that_cannot_be_read_removes_nothing(company: Site, database: Database) -> None:
    crawl(database, company.url, "first")
    company.pages["/robots.txt"] = UNREADABLE
    outcome = crawl(database, company.url, "second", job_type="incremental")
    assert outcome.finish_reason == "disallowed"
    assert len(results(database, "second")) == 5
    assert {row["skip_reason"] for row in results(database, "second").values()} == {"robots_txt"}
    assert removed(database) == {}
    assert database.value("SELECT max(missing_crawls) FROM scraped_pages") == 0


@pytest.mark.parametrize("job_type", ["incremental", "full_crawl"])
def test_of_two_sites_the_one_whose_robots_txt_cannot_be_read_loses_nothing(
    job_type: str, database: Database
) -> None:
    unreadable = False

    async def robots_of(request: web.Request) -> web.Response:
        if request.host.startswith("127.0.0.2"):
            return web.Response(status=500 if unreadable else 404)
        return web.Response(text="User-agent: *\nDisallow: /p5\n" if unreadable else "")

    with serve_site("127.0.0.2") as site:
        site.chain(6)
        site.pages["/robots.txt"] = robots_of
        plan = CrawlPlan(
            urls=(site.url, site.url.replace("127.0.0.1", "127.0.0.2")), job_type=job_type, allow_private=True
        )
        for n in range(2):
            make_job(database, f"j{n}", plan)
            outcome = make_crawl(database, f"j{n}", plan).run()
            assert outcome.finish_reason == "exhausted"
            settle(plan, database.frontier(f"j{n}"), outcome.finish_reason)
            unreadable = True
        # What the other one forbids is removed all the same.
        assert removed(database) == {"/p5": "disallowed"}
        assert database.value("SELECT max(missing_crawls) FROM scraped_pages WHERE domain LIKE '127.0.0.2%'") == 0
        assert database.value("SELECT removals -> 'whole_sites' FROM scrape_jobs WHERE job_id = 'j1'") == [
            f"127.0.0.1:{site.port}"
        ]


def test_a_page_that_leads_to_a_forbidden_one_has_moved(company: Site, database: Database) -> None:
    crawl(database, company.url, "first")
    company.pages["/robots.txt"] = robots("Disallow: /internal/", "Disallow: /login")
    company.pages["/products"] = Page(status=302, headers={"Location": "/login"})
    crawl(database, company.url, "second", job_type="incremental")
    row = results(database, "second")["/products"]
    assert (row["skip_reason"], row["redirected_to"]) == ("robots_txt", f"{company.url}login")
    assert removed(database) == {**dict.fromkeys(SECTION, "disallowed"), "/products": "moved"}


@pytest.mark.parametrize("rule", ["Disallow: /p", "Disallow: /"])
def test_where_most_of_a_site_is_forbidden_it_is_kept_until_somebody_has_looked(
    rule: str, site: Site, database: Database
) -> None:
    site.chain(9)
    crawl(database, site.url, "first")
    forbidden = 9 if rule == "Disallow: /" else 8
    site.pages["/robots.txt"] = robots(rule)
    crawl(database, site.url, "second", job_type="incremental")
    settled = database.value("SELECT removals FROM scrape_jobs WHERE job_id = 'second'")
    assert (settled["held_back"], settled["disallowed"], settled["alive"]) == (True, forbidden, 9)
    assert removed(database) == {}
    shown = settle_held_back(database.engine, "second", accept=False)
    assert (shown.total, shown.disallowed, {reason for _, reason in shown.pages}) == (
        forbidden,
        forbidden,
        {"disallowed"},
    )
    assert removed(database) == {}
    settle_held_back(database.engine, "second", accept=True)
    assert set(removed(database).values()) == {"disallowed"}
    assert len(removed(database)) == forbidden
