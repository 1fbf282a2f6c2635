"""What stands of a page after each of several crawls: its text, its hashes, its versions and its embeddings agree."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from sqlalchemy import text

from resources.content.fingerprints import fingerprint
from resources.postgres.page_history import PageVersion, UnknownPage, page_at, page_versions
from tests.support.crawling import crawl, results
from tests.support.site import Page, Site, html

if TYPE_CHECKING:
    from datetime import datetime

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

PATH = "/page"
_numbers = itertools.count()


def stored(database: Database) -> dict[str, Any]:
    """The page; whatever has happened to it, its hashes are those of its text."""
    (row,) = database.rows(
        """
        SELECT p.*, w.text, w.markdown, w.word_count, w.updated_at, w.embedded_models, w.search::text AS search,
               w.xmin::text AS written,
               (SELECT count(*) FROM omniops_meta.page_versions AS v WHERE v.page_id = p.id) AS versions
        FROM scraped_pages AS p JOIN website_content AS w ON w.page_id = p.id WHERE p.url ~ '/page$'
        """
    )
    row = dict(row)
    of_text = fingerprint(str(row["text"]))
    assert row["content_hash"] == of_text.content_hash
    assert row["folded_hash"] == of_text.folded_hash
    assert row["simhash"] == of_text.simhash
    return row


def visit(
    database: Database, site: Site, body: str | None = None, *, head: str = "", **fields: Any
) -> dict[str, Any]:
    """Crawl the site once more, with this on the page, and look at what is stored then."""
    if body is not None:
        site.pages[PATH] = Page(html("Opening", body=body, head=head))
    crawl(database, site.url, f"job{next(_numbers)}", **fields)
    return stored(database)


def embed(database: Database) -> None:
    """As if a model had read all texts."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE website_content SET embedded_models = ARRAY['some-model']"))


def history(database: Database, site: Site) -> list[PageVersion]:
    with database.engine.connect() as connection:
        return page_versions(connection, _customer(database), f"{site.url}page")


def said_at(database: Database, site: Site, moment: datetime) -> str:
    with database.engine.connect() as connection:
        return page_at(connection, _customer(database), f"{site.url}page", moment).text


def _customer(database: Database) -> Any:
    return database.value("SELECT id FROM customers WHERE slug = 'acme'")


@pytest.fixture(autouse=True)
def root(site: Site) -> None:
    site.add("/", [PATH, "/other"])
    site.add("/other")


def hours(until: int, day: int) -> str:
    return f"We are open from 9:00 to {until}:00, and closed on holidays. Last updated on Nov {day}, 2026."


def test_cosmetic_changes_however_many_leave_text_hashes_and_embeddings(site: Site, database: Database) -> None:
    first = visit(database, site, hours(17, 1))
    embed(database)
    before = stored(database)
    # The second 2 is read because of its head: what it says has been seen, and was not kept.
    for day, head in ((2, ""), (2, "<meta name=description content=new>"), (3, ""), (4, ""), (20, ""), (1, "")):
        after = visit(database, site, hours(17, day), head=head)
        for name in (
            "text",
            "markdown",
            "content_hash",
            "last_changed_at",
            "updated_at",
            "embedded_models",
            "written",
        ):
            assert after[name] == before[name], name
        assert after["versions"] == 0
    assert after["last_changed_at"] == first["last_changed_at"]
    assert database.value("SELECT count(*) FROM scrape_job_results WHERE url ~ '/page$' AND changed") == 1


def test_what_is_said_after_cosmetic_changes_is_a_change(site: Site, database: Database) -> None:
    first = visit(database, site, hours(17, 1))
    visit(database, site, hours(17, 2))
    embed(database)
    changed = visit(database, site, hours(18, 2))
    assert "18:00" in changed["text"]
    assert changed["last_changed_at"] == changed["updated_at"] > first["updated_at"]
    assert (changed["versions"], changed["embedded_models"]) == (1, [])
    again = visit(database, site, hours(18, 3))
    assert (again["text"], again["last_changed_at"], again["versions"]) == (
        changed["text"], changed["last_changed_at"], 1,
    )  # fmt: skip
    present, before = history(database, site)
    assert (present.text, before.text) == (changed["text"], first["text"])
    assert (before.valid_from, before.valid_to) == (first["updated_at"], present.valid_from)


def test_many_small_changes_do_not_leave_the_first_text(site: Site, database: Database) -> None:
    """Each text is nearly the one before it, and no fact is overlooked for that."""
    words = [f"word{number}" for number in range(200)]
    last = visit(database, site, " ".join(words))
    for number in range(0, 60, 10):
        words[number] = f"other{number}"
        after = visit(database, site, " ".join(words))
        assert f"other{number}" in after["text"]
        assert after["last_changed_at"] > last["last_changed_at"]
        last = after
    assert last["versions"] == 6
    assert [version.text.count("other") for version in history(database, site)] == [6, 5, 4, 3, 2, 1, 0]


def test_the_same_text_with_another_markdown_is_written_and_is_no_version(site: Site, database: Database) -> None:
    first = visit(database, site, "</p><p>Opening hours</p><p>We are open from 9:00 to 17:00, on all days.")
    embed(database)
    # Markup alone is nothing that a crawl looks at; where a page is read for something else it is taken over.
    head = "<meta name=description content={}>"
    body = "</p><h2>Opening hours</h2><p>We are open from 9:00 to 17:00, on all days."
    after = visit(database, site, body, head=head.format("one"))
    assert (after["text"], after["content_hash"]) == (first["text"], first["content_hash"])
    assert "## Opening hours" in after["markdown"]
    assert (after["last_changed_at"], after["updated_at"]) == (first["last_changed_at"], first["updated_at"])
    assert (after["versions"], after["embedded_models"]) == (0, [])
    # Other lines, the same words.
    body = "</p><p>Opening hours We are open from 9:00 to 17:00, on all days."
    lines = visit(database, site, body, head=head.format("two"))
    assert lines["text"] != after["text"]
    assert (lines["content_hash"], lines["versions"]) == (first["content_hash"], 0)
    assert (lines["last_changed_at"], lines["updated_at"]) == (first["last_changed_at"], first["updated_at"])
    assert said_at(database, site, first["updated_at"]) == lines["text"]


def test_a_crawl_that_keeps_no_texts_leaves_the_text_and_what_describes_it(site: Site, database: Database) -> None:
    shown = {"until": 17}
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("If-None-Match"))
        tag = f'"{shown["until"]}"'
        headers = {"ETag": tag, "Content-Type": "text/html"}
        if asked[-1] == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=html("Opening", body=hours(shown["until"], 1)), headers=headers)

    site.pages[PATH] = answer
    first = visit(database, site)
    shown["until"] = 18
    between = visit(database, site, keep_text=False)
    for name in ("text", "source_hash", "etag", "last_changed_at", "written"):
        assert between[name] == first[name], name
    # The next one that keeps texts asks for what it has, and not for what nobody has read.
    last = visit(database, site, job_type="incremental")
    assert asked == [None, None, '"17"']
    assert "18:00" in last["text"]
    assert (last["versions"], last["last_changed_at"] > first["last_changed_at"]) == (1, True)


@pytest.mark.parametrize("back", ["unread", "unchanged", "cosmetic", "changed"])
def test_a_page_that_was_away_has_a_gap_in_its_history(site: Site, database: Database, back: str) -> None:
    first = visit(database, site, hours(17, 1))
    embed(database)
    del site.pages[PATH]
    gone = visit(database, site)
    assert gone["removed_at"] is not None
    day, until, head = {
        "unread": (1, 17, ""), "unchanged": (1, 17, "<meta name=description content=new>"), "cosmetic": (2, 17, ""),
        "changed": (1, 18, ""),
    }[back]  # fmt: skip
    again = visit(database, site, hours(until, day), head=head)
    assert again["removed_at"] is None
    assert (again["last_changed_at"] == first["last_changed_at"]) is (back != "changed")
    assert (again["embedded_models"] == ["some-model"]) is (back != "changed")
    present, before = history(database, site)
    assert (before.text, before.valid_from, before.valid_to) == (
        first["text"],
        first["updated_at"],
        gone["removed_at"],
    )
    assert before.valid_to is not None
    assert present.valid_from > before.valid_to
    assert ("18:00" in present.text) is (back == "changed")
    assert present.valid_to is None
    assert said_at(database, site, before.valid_from) == first["text"]
    assert said_at(database, site, present.valid_from) == again["text"]
    with pytest.raises(UnknownPage, match="was away"):
        said_at(database, site, before.valid_to)
    # It stays so: nothing is put down for being there.
    assert visit(database, site)["versions"] == 1


def test_coming_and_going_is_bounded(site: Site, database: Database) -> None:
    visit(database, site, hours(17, 1))
    for _ in range(12):
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE scraped_pages SET removed_at = clock_timestamp() WHERE url ~ '/page$'"))
        last = visit(database, site, max_pages=3)
    assert last["versions"] == 10
    assert len(history(database, site)) == 11


def test_what_a_page_says_of_itself_is_read_from_all_of_its_head(site: Site, database: Database) -> None:
    site.pages[PATH] = Page(
        b"<html><head><meta property='og:title' content='Opening hours'><meta property='og:locale' content='de_AT'>"
        b"<meta name=description content='When we are there.'><link rel=canonical href='/opening'>"
        b"<meta property='article:published_time' content='2026-11-24T15:30:00+01:00'></head>"
        b"<body><main><p>We are open from 9:00 to 17:00, on all days.</p></main></body></html>"
    )
    crawl(database, site.url, "first")
    page = stored(database)
    assert (page["title"], page["lang"], page["description"]) == ("Opening hours", "de-AT", "When we are there.")
    assert page["canonical_url"] == f"{site.url}opening"
    assert page["published_at"].isoformat(timespec="minutes") in ("2026-11-24T14:30+00:00", "2026-11-24T15:30+01:00")
    [present] = history(database, site)
    assert (present.published_at, present.language) == (page["published_at"], "de-AT")
    site.pages[PATH] = Page(
        b"<html><head><meta name=date content=2026-11-25></head><body><main><p>We are closed.</p>"
    )
    crawl(database, site.url, "second")
    page = stored(database)
    assert (page["title"], page["lang"]) == (None, None)
    assert page["published_at"].timestamp() == 1_795_564_800
    assert results(database, "second")[PATH]["content_hash"] == page["content_hash"]


def test_a_page_in_another_language_is_indexed_by_its_rules(site: Site, database: Database) -> None:
    page = "<html lang={}><title>Houses</title><main><p>The houses were opened for visitors.</p></main></html>"
    site.pages[PATH] = Page(page.format("en").encode())
    crawl(database, site.url, "first")
    embed(database)
    assert "'hous':" in stored(database)["search"]
    site.pages[PATH] = Page(page.format("fr").encode())
    crawl(database, site.url, "second")
    again = stored(database)
    assert "'the':" in again["search"]  # a stop word in English alone
    assert (again["embedded_models"], again["versions"]) == (["some-model"], 0)
