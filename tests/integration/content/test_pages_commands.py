"""`omniops pages`: what a page says and said, and reading it again."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.postgres.page_html import FetchedHtml, keep_html
from tests.integration.content.test_page_history import URL, make_page

if TYPE_CHECKING:
    from tests.integration.content.conftest import Call
    from tests.support.databases import Database

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
