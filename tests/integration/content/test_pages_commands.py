"""`omniops pages`: what a page says and said, and reading it again."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources import stack
from resources.content.fingerprints import fingerprint
from resources.content.search_cache import result_key
from resources.postgres.page_html import FetchedHtml, keep_html
from tests.integration.content.test_page_history import URL, make_page
from tests.support.crawling import crawl
from tests.support.site import Page

if TYPE_CHECKING:
    from tests.integration.content.conftest import Call
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

OF = ("--customer", "acme")


def test_a_page_is_shown_as_it_is_and_as_it_was(database: Database, omniops: Call) -> None:
    make_page(database, "19 euros")
    make_page(database, "29 euros")
    status, out, err = omniops("pages", "show", URL, *OF)
    # Markdown alone on standard output, and since when on the other one.
    assert (status, out) == (0, "# 29 euros\n")
    assert URL in err
    versions = json.loads(omniops("pages", "history", URL, *OF, "--json")[1])
    assert [version["text"] for version in versions] == ["29 euros", "19 euros"]
    assert "19 euros" in omniops("pages", "history", URL, *OF)[1]
    assert (versions[0]["published_at"], versions[0]["language"]) == (None, None)
    with database.engine.begin() as connection:
        connection.execute(
            text("""UPDATE scraped_pages SET title = '[b]Price', description = 'What it costs', lang = 'en',
                           canonical_url = 'https://shop.example/prices', published_at = '2026-11-24T15:30+01:00'""")
        )
    err = omniops("pages", "show", URL, *OF)[2]
    for said in ("title: [b]Price", "description: What it costs", "canonical url: https://shop.example/prices",
                 "language: en", "published: 2026-11-24 14:30 UTC"):  # fmt: skip
        assert said in err.splitlines()
    then = versions[1]["valid_from"]
    assert "# 19 euros" in omniops("pages", "show", URL, *OF, "--at", then)[1]
    before = (datetime.fromisoformat(then) - timedelta(days=1)).isoformat()
    for arguments, words in (
        (("show", URL, *OF, "--at", before), "nothing is known"),
        (("show", URL, *OF, "--at", "yesterday"), "no moment"),
        (("show", "https://shop.example/elsewhere", *OF), "elsewhere"),
        (("history", URL, "--customer", "nobody"), "nobody"),
    ):
        status, out, err = omniops("pages", *arguments)
        assert (status > 0, out, words in err, "Traceback" in err) == (True, "", True, False), err


def test_the_time_that_a_page_was_away_stands_in_its_history(database: Database, omniops: Call) -> None:
    customer = make_page(database, "19 euros")
    with database.engine.begin() as connection:
        gone, back = connection.execute(
            text("""
                WITH away AS (
                    UPDATE website_content SET updated_at = now() + interval '2 hours'
                    WHERE customer_id = :customer RETURNING page_id, customer_id, text, markdown, updated_at
                ), version AS (
                    INSERT INTO omniops_meta.page_versions
                        (page_id, customer_id, valid_from, valid_to, markdown, text)
                    SELECT page_id, customer_id, now(), now() + interval '1 hour', markdown, text FROM away
                    RETURNING valid_to
                )
                SELECT version.valid_to, away.updated_at FROM version, away
            """),
            {"customer": customer},
        ).one()
    status, out, _ = omniops("pages", "history", URL, *OF)
    assert (status, [("away" in line) for line in out.splitlines() if "20" in line]) == (0, [False, True, False])
    status, out, err = omniops("pages", "show", URL, *OF, "--at", (gone + (back - gone) / 2).isoformat())
    assert (status, out, "was away" in err) == (1, "", True)


def test_pages_that_say_nearly_the_same_are_listed(database: Database, omniops: Call) -> None:
    customer = make_page(database, "19 euros")
    assert "No two pages" in omniops("pages", "duplicates", *OF)[1]
    words = " ".join(f"word{number}" for number in range(400))
    said = {"one": words, "two": f"{words} more", "three": " ".join(f"other{n}" for n in range(400)), "gone": words}
    with database.engine.begin() as connection:
        for domain in ("shop.example", "blog.example"):
            for name, page in said.items():
                connection.execute(
                    text("""INSERT INTO scraped_pages (customer_id, domain, url, simhash, removed_at)
                            VALUES (:customer, :domain, :url, :simhash, CASE WHEN :gone THEN now() END)"""),
                    {
                        "customer": customer,
                        "domain": domain,
                        "url": f"https://{domain}/{name}",
                        "simhash": fingerprint(page).simhash,
                        "gone": name == "gone",
                    },
                )
    status, out, _ = omniops("pages", "duplicates", *OF, "--json")
    groups = [
        {"domain": domain, "urls": [f"https://{domain}/one", f"https://{domain}/two"]}
        for domain in ("blog.example", "shop.example")
    ]
    assert (status, json.loads(out)) == (0, groups)
    assert json.loads(omniops("pages", "duplicates", *OF, "--domain", "shop.example", "--json")[1]) == groups[1:]
    assert "https://shop.example/two" in omniops("pages", "duplicates", *OF)[1]
    assert omniops("pages", "duplicates", "--customer", "nobody")[:2] == (1, "")


def test_kept_pages_are_read_again(database: Database, omniops: Call) -> None:
    customer = make_page(database, "what an older extractor made of it")
    assert "No HTML is kept" in omniops("pages", "reprocess", *OF)[1]
    html = b"<html><title>Grinder</title><main><h1>Grinder</h1><p>It has forty steps and costs 129 euros.</p></main>"
    with database.engine.begin() as connection:
        keep_html(connection, customer, [FetchedHtml(URL, html, "text/html", None)], 7)
    assert "1 would be written anew" in omniops("pages", "reprocess", *OF, "--dry-run")[1]
    assert database.value("SELECT text FROM website_content") == "what an older extractor made of it"
    status, out, _ = omniops("pages", "reprocess", *OF, "--json")
    assert (status, json.loads(out)["changed"]) == (0, 1)
    assert "129 euros" in str(database.value("SELECT text FROM website_content"))
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM omniops_meta.page_versions")) == 0


def test_a_page_cannot_speak_to_the_terminal(database: Database, omniops: Call) -> None:
    """Crawled text is shown, not obeyed: neither escape sequences nor what looks like markup of our own tables."""
    make_page(database, "old")
    make_page(database, "[/bold] 19\x1b[2J\x1b]0;owned\x07 \x9b31m euros [red]only\u202e today")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET title = :title"), {"title": "\x1b[5mPrice[/x]\x9b"})
        connection.execute(text("SELECT index_website_content(10)"))
    outputs = [
        omniops("pages", "show", URL, *OF),
        omniops("pages", "history", URL, *OF),
        omniops("search", "euros", *OF, OMNIOPS_EMBEDDINGS="none"),
        omniops("search", "euros", *OF, "--json", OMNIOPS_EMBEDDINGS="none"),
    ]
    for status, out, err in outputs:
        assert (status, "Traceback" in err) == (0, False), err
        assert [character for character in out + err if not character.isprintable() and character != "\n"] == []
    assert all("[/bold] 19" in out for _, out, _ in outputs[:3])
    # A program gets the text as it is.
    assert json.loads(outputs[3][1])["results"][0]["title"] == "\x1b[5mPrice[/x]\x9b"


def test_a_page_that_is_gone_says_until_when_it_was_there(database: Database, omniops: Call) -> None:
    make_page(database, "19 euros")
    make_page(database, "29 euros")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET removed_at = clock_timestamp()"))
    gone = json.loads(omniops("pages", "history", URL, *OF, "--json")[1])[0]["valid_to"]
    assert gone is not None
    status, out, err = omniops("pages", "show", URL, *OF)
    assert (status, out, "until" in err, "and still" in err) == (0, "# 29 euros\n", True, False)
    status, out, err = omniops("pages", "show", URL, *OF, "--at", gone)
    assert (status, out, "was gone" in err) == (1, "", True)


def test_removing_what_a_crawl_held_back_makes_cached_searches_old(
    site: Site, database: Database, omniops: Call
) -> None:
    site.chain(8)
    crawl(database, site.url, "first")
    site.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /p", headers={"Content-Type": "text/plain"})
    crawl(database, site.url, "second", job_type="incremental")
    customer = str(database.value("SELECT id FROM customers"))
    before = result_key(stack.cache(), customer, "pumps")
    assert omniops("jobs", "settle", "second")[0] == 0
    assert result_key(stack.cache(), customer, "pumps") == before
    status, out, _ = omniops("jobs", "settle", "second", "--accept-removals", "--yes", "--json")
    assert (status, json.loads(out)["disallowed"]) == (0, 7)
    assert result_key(stack.cache(), customer, "pumps") != before
