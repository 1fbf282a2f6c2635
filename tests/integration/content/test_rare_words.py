"""A search for a rare word reads the few rows that have it, and not all that a large customer has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import create_engine, text

from resources.postgres import search
from resources.postgres.connection import driver_url
from resources.postgres.content import index_waiting_content
from resources.postgres.models import EMBEDDED_MODEL
from resources.postgres.tenancy import tenant_connection
from tests.support.pages import add_customer

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg
    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

PAGES = 3_000
RARE = 7
TABLES = ("website_content", "page_embeddings")


@pytest.fixture
def large(database: Database) -> UUID:
    """A customer with many pages and a piece for each; every 500th or so has a word of its own."""
    customer = add_customer(database, "large")
    owner = create_engine(driver_url(database.admin_url), isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(
            text("""
                WITH page AS (
                    INSERT INTO scraped_pages (customer_id, domain, url, title, lang, http_status)
                    SELECT :customer, 'x.example', 'https://x.example/' || n, 'Page ' || n, 'en', 200
                    FROM generate_series(1, :pages) AS n RETURNING id
                ), numbered AS (
                    SELECT id, row_number() OVER (ORDER BY id) AS n FROM page
                ), said AS (
                    SELECT id, 'Common words stand on every page, and so does this sentence of page ' || n
                        || CASE WHEN n % (:pages / :rare) = 1 AND n < :pages - 10 THEN ' quokka' ELSE '' END AS says
                    FROM numbered
                ), piece AS (
                    INSERT INTO page_embeddings
                        (page_id, customer_id, model, chunk_index, chunk_text, chunk_hash, embedding)
                    SELECT id, :customer, :model, 0, says, md5(says), array_fill(1, ARRAY[384])::real[]::halfvec
                    FROM said
                )
                INSERT INTO website_content (page_id, customer_id, text, word_count, embedded_models)
                SELECT id, :customer, says, 12, ARRAY[:model] FROM said"""),
            {"customer": customer, "pages": PAGES, "rare": RARE, "model": EMBEDDED_MODEL},
        )
        while index_waiting_content(database.engine, 1_000):
            pass
        connection.execute(text("VACUUM ANALYZE website_content, scraped_pages, page_embeddings"))
    owner.dispose()
    return customer


def rows_read(connection: Connection) -> dict[str, int]:
    """Rows of each table that this transaction has read so far, by index or without."""
    return {
        table: connection.scalar(
            text("SELECT pg_stat_get_xact_tuples_returned(t) + pg_stat_get_xact_tuples_fetched(t) "
                 "FROM CAST(CAST(:table AS regclass) AS oid) AS t"),
            {"table": f"public.{table}"},
        ) or 0
        for table in TABLES
    }  # fmt: skip


def test_a_rare_word_reads_its_pages_alone_however_large_the_customer_is(database: Database, large: UUID) -> None:
    with tenant_connection(large, engine=database.engine) as connection:
        driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
        # More often than a plan is made anew: a general one must not read everything either.
        for _ in range(8):
            before = rows_read(connection)
            found = search.pages_with_words(driver, "quokka", domain=None, limit=50)()
            assert RARE - 1 <= len(found) <= RARE
            search.shown_pages(driver, "quokka", EMBEDDED_MODEL, dict.fromkeys(found))
            after = rows_read(connection)
            for table in TABLES:
                assert after[table] - before[table] <= 10 * RARE, table


def test_the_measure_sees_a_search_that_reads_everything(database: Database, large: UUID) -> None:
    with tenant_connection(large, engine=database.engine) as connection:
        before = rows_read(connection)
        connection.execute(
            text("SELECT count(*) FROM website_content WHERE search @@ to_tsquery('english', 'quokka')")
        )
        assert rows_read(connection)["website_content"] - before["website_content"] >= PAGES
