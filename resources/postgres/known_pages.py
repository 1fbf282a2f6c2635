"""What earlier crawls know of a customer's pages: read in batches, beside the urls that a worker takes.

A crawl asks for the pages behind the urls that it has just leased, so that a page costs no query; and an incremental
crawl begins with the pages that are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Engine

_PART = 1_000


@dataclass(frozen=True, slots=True)
class KnownPage:
    """A page as it was read last.

    Attributes:
        etag, last_modified: what the server called it then.
        source_hash: of what it showed.
        content_hash: of its main text.
        last_seen_at: the last time that it answered, changed or not.
        next_check_at: when it is due.
        depth: links from a start url, by the crawl that saw it last; None where that is not known any more.
        has_content: its text is kept.
        links: packed; None where they are not known.
    """

    etag: str | None
    last_modified: str | None
    source_hash: str | None
    content_hash: str | None
    last_seen_at: datetime
    next_check_at: datetime
    depth: int | None
    has_content: bool
    links: bytes | None


class KnownPages:
    """Pages of one customer.

    Args:
        engine: the permanent tier.
        customer_id: whose.
    """

    def __init__(self, engine: Engine, customer_id: UUID | str) -> None:
        self._engine = engine
        self._customer_id = str(customer_id)

    def any_on(self, domains: Sequence[str]) -> bool:
        """True if a page of one of the sites is known: else there is nothing to look up."""
        with self._engine.connect() as connection:
            return bool(
                connection.scalar(
                    text("""
                        SELECT EXISTS (SELECT 1 FROM scraped_pages
                                       WHERE customer_id = :customer_id AND domain = ANY (:domains))
                    """),
                    {"customer_id": self._customer_id, "domains": list(domains)},
                )
            )

    def lookup(self, urls: Sequence[str]) -> dict[str, KnownPage]:
        """What is known of these urls, by url. Removed pages too: they may be back, and unchanged."""
        if not urls:
            return {}
        with self._engine.connect() as connection:
            rows = connection.execute(
                text("""
                    SELECT p.url, p.etag, p.last_modified, p.source_hash, p.content_hash, p.last_seen_at,
                           p.next_check_at, r.depth,
                           EXISTS (SELECT 1 FROM website_content AS w WHERE w.page_id = p.id) AS has_content, k.links
                    FROM unnest(CAST(:urls AS text[])) AS u (url)
                    JOIN scraped_pages AS p ON p.customer_id = CAST(:customer_id AS uuid) AND p.url = u.url
                    LEFT JOIN omniops_meta.page_links AS k ON k.page_id = p.id
                    LEFT JOIN scrape_job_results AS r ON r.job_id = p.last_job_id AND r.url = p.url
                """),
                {"customer_id": self._customer_id, "urls": list(urls)},
            ).all()
        return {row[0]: KnownPage(*row[1:]) for row in rows}

    def due_first(self, domains: Sequence[str], limit: int) -> Iterator[list[str]]:
        """Urls of the sites' pages that are there, those that are due first, in parts.

        Args:
            domains: sites.
            limit: at most so many urls.

        Yields:
            At most 1,000 urls at a time. What a crawl changes meanwhile is not seen.
        """
        with self._engine.connect() as connection:
            rows = connection.execution_options(stream_results=True, yield_per=_PART).execute(
                text("""
                    SELECT url FROM scraped_pages
                    WHERE customer_id = :customer_id AND domain = ANY (:domains) AND removed_at IS NULL
                    ORDER BY next_check_at, url LIMIT :limit
                """),
                {"customer_id": self._customer_id, "domains": list(domains), "limit": limit},
            )
            for part in rows.scalars().partitions(_PART):
                yield list(part)
