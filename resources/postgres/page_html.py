"""Pages as they were fetched, kept compressed for a while, so that a better extractor needs no second visit.

Off unless a customer's configuration asks for it: HTML is ten times its text.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

# Pages with more are not kept: they are archives and dumps, and the few that there are would be most of the table.
MAX_BYTES: Final = 4 * 2**20
# Pages read at once for another extraction.
_READ_PAGES: Final = 50
# Rows of one removal.
_REMOVE_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True)
class FetchedHtml:
    """A page's bytes, decompressed, and what its server said of them."""

    url: str
    body: bytes
    content_type: str | None
    charset: str | None


@dataclass(frozen=True, slots=True)
class StoredPage:
    """What is stored of a page, as its HTML was read last.

    Attributes:
        title, description, canonical_url, language, published_at: what it says of itself.
        text, markdown: its main text; None where none is stored.
        content_hash, folded_hash, simhash: of the text.
    """

    title: str | None
    description: str | None
    canonical_url: str | None
    language: str | None
    published_at: datetime | None
    text: str | None
    markdown: str | None
    content_hash: str | None
    folded_hash: str | None
    simhash: int | None


@dataclass(frozen=True, slots=True)
class KeptPage:
    """A page whose HTML is kept, with what was read of it last.

    Attributes:
        page_id: of `scraped_pages`.
        customer_id: whose.
        domain: its site.
        html: as it was fetched.
        fetched_at: when.
        stored: what was read of it last.
    """

    page_id: int
    customer_id: UUID
    domain: str
    html: FetchedHtml
    fetched_at: datetime
    stored: StoredPage


def keep_html(connection: Connection, customer_id: UUID | str, pages: Sequence[FetchedHtml], days: float) -> None:
    """Keep pages, in the transaction that keeps what they say.

    Args:
        connection: of the batch.
        customer_id: whose.
        pages: pages of `scraped_pages`; others, and pages of more than 4 MiB, are left out.
        days: for so long.
    """
    small = [page for page in pages if len(page.body) <= MAX_BYTES]
    if not small:
        return
    connection.execute(
        text("""
            INSERT INTO omniops_meta.page_html AS k
                (page_id, customer_id, url, body, content_type, charset, fetched_at, expires_at, source_hash)
            SELECT p.id, p.customer_id, p.url, h.body, h.content_type, h.charset, now(),
                   now() + make_interval(secs => :seconds), p.source_hash
            FROM unnest(CAST(:urls AS text[]), CAST(:bodies AS bytea[]), CAST(:types AS text[]),
                        CAST(:charsets AS text[])) AS h (url, body, content_type, charset)
            JOIN scraped_pages AS p ON p.customer_id = :customer_id AND p.url = h.url
            ORDER BY p.id
            ON CONFLICT (page_id) DO UPDATE SET
                body = EXCLUDED.body, content_type = EXCLUDED.content_type, charset = EXCLUDED.charset,
                fetched_at = EXCLUDED.fetched_at, expires_at = EXCLUDED.expires_at,
                source_hash = EXCLUDED.source_hash
        """),
        {
            "customer_id": customer_id,
            "urls": [page.url for page in small],
            "bodies": [zlib.compress(page.body, 6) for page in small],
            "types": [page.content_type for page in small],
            "charsets": [page.charset for page in small],
            "seconds": days * 86_400,
        },
    )


def kept_pages(engine: Engine, customer_id: UUID | str, domain: str | None = None) -> Iterator[list[KeptPage]]:
    """All pages of a customer whose HTML is kept, some at a time, each batch read by a query of its own.

    HTML is left out that is older than what was read of its page last: the customer has turned keeping off since, or
    the page has become too large.
    """
    after = 0
    while True:
        with engine.connect() as connection:
            rows = connection.execute(
                text("""
                    SELECT k.page_id, k.customer_id, p.domain, k.url, k.body, k.content_type, k.charset, k.fetched_at,
                           p.title, p.description, p.canonical_url, p.lang, p.published_at, w.text, w.markdown,
                           p.content_hash, p.folded_hash, p.simhash
                    FROM omniops_meta.page_html AS k JOIN scraped_pages AS p ON p.id = k.page_id
                    LEFT JOIN website_content AS w ON w.page_id = p.id
                    WHERE k.customer_id = :customer_id AND k.page_id > :after AND k.expires_at > now()
                      AND (CAST(:domain AS text) IS NULL OR p.domain = :domain) AND p.removed_at IS NULL
                      AND (k.source_hash IS NULL OR k.source_hash = p.source_hash)
                    ORDER BY k.page_id LIMIT :limit
                """),
                {"customer_id": customer_id, "after": after, "domain": domain, "limit": _READ_PAGES},
            ).all()
        if not rows:
            return
        after = rows[-1].page_id
        yield [
            KeptPage(
                row.page_id,
                row.customer_id,
                row.domain,
                FetchedHtml(row.url, zlib.decompress(row.body), row.content_type, row.charset),
                row.fetched_at,
                StoredPage(*row[8:]),
            )
            for row in rows
        ]


def count_expired_html(engine: Engine) -> int:
    """Of how many pages the HTML was kept long enough."""
    with engine.connect() as connection:
        expired = "SELECT count(*) FROM omniops_meta.page_html WHERE expires_at <= now()"
        return int(connection.execute(text(expired)).scalar_one())


def remove_expired_html(engine: Engine) -> int:
    """Remove what was kept long enough, in bounded transactions; returns how many pages."""
    removed = 0
    while True:
        with engine.begin() as connection:
            batch = connection.execute(
                text("""
                    DELETE FROM omniops_meta.page_html WHERE page_id IN (
                        SELECT page_id FROM omniops_meta.page_html WHERE expires_at <= now()
                        ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED)
                """),
                {"limit": _REMOVE_ROWS},
            ).rowcount
        removed += batch
        if batch < _REMOVE_ROWS:
            return removed
