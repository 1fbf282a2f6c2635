"""What a page said before, and the HTML that it was read from."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.postgres.customers import ensure_customer
from resources.postgres.page_history import UnknownPage, page_at, page_versions
from resources.postgres.page_html import MAX_BYTES, FetchedHtml, keep_html, kept_pages, remove_expired_html
from resources.postgres.site_blocks import keep_site_blocks, load_site_blocks, replace_site_blocks

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

URL = "https://shop.example/price"


def make_page(database: Database, said: str, customer: str = "acme") -> UUID:
    """A page that says this; again: it says this now."""
    with database.engine.begin() as connection:
        customer_id = ensure_customer(connection, customer)
        page_id = connection.scalar(
            text("""
                INSERT INTO scraped_pages (customer_id, domain, url) VALUES (:customer, 'shop.example', :url)
                ON CONFLICT (customer_id, url) DO UPDATE SET url = EXCLUDED.url RETURNING id
            """),
            {"customer": customer_id, "url": URL},
        )
        connection.execute(
            text("""
                INSERT INTO website_content AS w (page_id, customer_id, text, markdown, word_count)
                VALUES (:page, :customer, CAST(:text AS text), '# ' || CAST(:text AS text), 1)
                ON CONFLICT (page_id) DO UPDATE SET text = EXCLUDED.text, markdown = EXCLUDED.markdown, search = NULL,
                    updated_at = clock_timestamp()
            """),
            {"page": page_id, "customer": customer_id, "text": said},
        )
    return customer_id


def test_each_version_is_found_by_its_time(database: Database) -> None:
    for said in ("19 euros", "29 euros", "39 euros"):
        customer = make_page(database, said)
    with database.engine.connect() as connection:
        versions = page_versions(connection, customer, URL)
        assert [v.text for v in versions] == ["39 euros", "29 euros", "19 euros"]
        assert [v.markdown for v in versions] == ["# 39 euros", "# 29 euros", "# 19 euros"]
        assert versions[0].valid_to is None
        for newer, older in itertools.pairwise(versions):
            assert older.valid_to == newer.valid_from
        for version in versions:
            assert page_at(connection, customer, URL, version.valid_from).text == version.text
        with pytest.raises(UnknownPage, match="nothing is known"):
            page_at(connection, customer, URL, versions[-1].valid_from - timedelta(seconds=1))


def test_no_version_without_a_change_of_what_is_said(database: Database) -> None:
    customer = make_page(database, "19 euros")
    make_page(database, "19 euros")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT index_website_content(10)"))
        connection.execute(text("SELECT set_config('omniops.same_page', 'on', true)"))
        connection.execute(text("UPDATE website_content SET text = 'read otherwise'"))
        assert [v.text for v in page_versions(connection, customer, URL)] == ["read otherwise"]


def test_ten_versions_are_kept(database: Database) -> None:
    for n in range(14):
        customer = make_page(database, f"price {n}")
    with database.engine.connect() as connection:
        assert [v.text for v in page_versions(connection, customer, URL)] == [f"price {n}" for n in range(13, 2, -1)]


def test_another_customers_page_is_unknown(database: Database) -> None:
    make_page(database, "19 euros")
    other = make_page(database, "ours", "rival")
    with database.engine.connect() as connection:
        assert [v.text for v in page_versions(connection, other, URL)] == ["ours"]
        with pytest.raises(UnknownPage):
            page_versions(connection, other, "https://shop.example/elsewhere")


def test_versions_html_and_blocks_go_with_the_customer(database: Database) -> None:
    customer = make_page(database, "one")
    make_page(database, "two")
    with database.engine.begin() as connection:
        keep_html(connection, customer, [FetchedHtml(URL, b"<p>one</p>", "text/html", None)], 7)
    keep_site_blocks(database.engine, customer, "shop.example", frozenset({1, 2}), 20)
    tables = ("page_versions", "page_html", "site_blocks")
    counts = "SELECT " + " + ".join(f"(SELECT count(*) FROM omniops_meta.{table})" for table in tables)
    assert database.value(counts) == 3
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM customers WHERE id = :id"), {"id": customer})
    assert database.value(counts) == 0


def test_html_is_kept_for_its_time_and_given_back_as_it_was(database: Database) -> None:
    customer = make_page(database, "one")
    body = b"<html>\x00\xff" + b"a" * 100_000
    with database.engine.begin() as connection:
        keep_html(
            connection,
            customer,
            [
                FetchedHtml(URL, body, "text/html", "latin1"),
                FetchedHtml("https://shop.example/unknown", b"x", None, None),
            ],
            7,
        )
    [[page]] = list(kept_pages(database.engine, customer))
    assert page.html == FetchedHtml(URL, body, "text/html", "latin1")
    assert database.value("SELECT octet_length(body) < 2000 FROM omniops_meta.page_html") is True
    assert list(kept_pages(database.engine, customer, "other.example")) == []
    assert remove_expired_html(database.engine) == 0
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE omniops_meta.page_html SET expires_at = now()"))
    assert list(kept_pages(database.engine, customer)) == []
    assert remove_expired_html(database.engine) == 1


def test_a_page_of_more_than_four_megabytes_is_not_kept(database: Database) -> None:
    customer = make_page(database, "one")
    with database.engine.begin() as connection:
        keep_html(connection, customer, [FetchedHtml(URL, b"a" * (MAX_BYTES + 1), "text/html", None)], 7)
    assert list(kept_pages(database.engine, customer)) == []


def test_the_first_to_learn_a_site_speaks_for_all(database: Database) -> None:
    customer = make_page(database, "one")
    assert load_site_blocks(database.engine, customer, "shop.example") is None
    assert keep_site_blocks(database.engine, customer, "shop.example", frozenset({1, 2}), 20) == {1, 2}
    assert keep_site_blocks(database.engine, customer, "shop.example", frozenset({3}), 20) == {1, 2}
    replace_site_blocks(database.engine, customer, "shop.example", frozenset({3}), 20)
    assert load_site_blocks(database.engine, customer, "shop.example") == {3}
