"""The jobs about kept HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.postgres.page_html import FetchedHtml, keep_html
from tests.integration.content.test_page_history import URL, make_page
from tests.integration.jobs.conftest import failures, metadata
from tests.integration.retention.seeds import execute

if TYPE_CHECKING:
    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


def test_pages_are_read_again_and_their_html_goes_in_its_time(database: Database, run_job: RunJob) -> None:
    customer = make_page(database, "what an older extractor made of it")
    html = b"<html><title>Grinder</title><main><h1>Grinder</h1><p>It has forty steps and costs 129 euros.</p></main>"
    with database.engine.begin() as connection:
        keep_html(connection, customer, [FetchedHtml(URL, html, "text/html", None)], 7)
    said = "SELECT text LIKE '%129 euros%' FROM website_content"
    looked = metadata(run_job("reprocess", read_kept_pages={"customer": "acme"}), "read_kept_pages")
    assert (looked["dry_run"], looked["read"], looked["changed"], database.value(said)) == (True, 1, 1, False)
    result = run_job("reprocess", read_kept_pages={"customer": "acme", "dry_run": False})
    assert (result.success, database.value(said)) == (True, True)

    def remove(*, dry_run: bool) -> int:
        done = run_job("cleanup_page_html", remove_expired_page_html={"dry_run": dry_run})
        return int(metadata(done, "remove_expired_page_html")["pages"])

    assert remove(dry_run=False) == 0
    execute(database, "UPDATE omniops_meta.page_html SET expires_at = now()")
    assert remove(dry_run=True) == 1
    assert database.value("SELECT count(*) FROM omniops_meta.page_html") == 1
    assert remove(dry_run=False) == 1
    assert database.value("SELECT count(*) FROM omniops_meta.page_html") == 0


def test_an_unknown_customer_is_refused(database: Database, run_job: RunJob) -> None:
    result = run_job("reprocess", read_kept_pages={"customer": "nobody"})
    assert not result.success
    assert "nobody" in failures(result)["read_kept_pages"]
