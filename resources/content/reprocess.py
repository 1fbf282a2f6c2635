"""Reads kept pages again, with today's extractor and without a single request.

The page has not changed, only what is understood of it: `last_changed_at` stays, no version is put down. What comes
out otherwise is written, be it the text, its markdown or what the page says of itself; a page whose text, markdown or
title it is is embedded again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from resources.content.pool import ExtractionPool
from resources.content.search_cache import forget_searches
from resources.postgres.content import index_waiting_content, storable
from resources.postgres.page_html import StoredPage, kept_pages
from resources.postgres.site_blocks import load_site_blocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from resources.content.pool import ReadPage
    from resources.postgres.page_html import KeptPage
    from resources.redis.client import RedisWithFallback

# Texts that are indexed in one transaction.
_INDEX_PAGES = 200


@dataclass(slots=True)
class Reprocessed:
    """What another reading brought.

    Attributes:
        read: pages whose HTML was read.
        changed: pages of which something came out otherwise, and was written (in a dry run: would be).
        methods: pages by how their text was found.
        failures: pages that were read for their plain text alone, by reason.
    """

    read: int = 0
    changed: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {
            "read": self.read,
            "changed": self.changed,
            "methods": dict(self.methods),
            "failures": dict(self.failures),
        }


def reprocess(
    engine: Engine,
    customer_id: UUID | str,
    *,
    domain: str | None = None,
    dry_run: bool = False,
    pool: ExtractionPool | None = None,
    cache: RedisWithFallback | None = None,
    on_batch: Callable[[Reprocessed], None] | None = None,
) -> Reprocessed:
    """Read all pages of a customer whose HTML is kept, write what comes out otherwise, and index it.

    Each batch is one transaction: an interrupted run has done what it has done, and another one begins again.

    Args:
        engine: the permanent tier.
        customer_id: whose pages.
        domain: one site's alone.
        dry_run: count what would be written.
        pool: processes to read in; some of its own by default.
        cache: where searches are cached; those of the customer are forgotten.
        on_batch: told after each batch; an exception from it ends the run.
    """
    result = Reprocessed()
    known: dict[str, frozenset[int]] = {}
    own = pool is None
    pool = pool or ExtractionPool()
    try:
        with asyncio.Runner() as runner:
            for batch in kept_pages(engine, customer_id, domain):
                for page in batch:
                    if page.domain not in known:
                        known[page.domain] = load_site_blocks(engine, customer_id, page.domain) or frozenset()
                read = runner.run(_read(pool, batch, known))
                changed = [
                    (page, found) for page, new in zip(batch, read, strict=True)
                    if new.failure is None and (found := _understood(page.stored, new)) != page.stored
                ]  # fmt: skip
                if changed and not dry_run:
                    _write(engine, changed)
                    while index_waiting_content(engine, _INDEX_PAGES) == _INDEX_PAGES:
                        pass  # some may have waited before
                    if cache is not None:
                        forget_searches(cache, customer_id)
                result.read += len(batch)
                result.changed += len(changed)
                result.methods.update(new.extracted.method for new in read)
                result.failures.update(new.failure for new in read if new.failure)
                if on_batch is not None:
                    on_batch(result)
    finally:
        if own:
            pool.close()
    return result


async def _read(pool: ExtractionPool, batch: list[KeptPage], known: dict[str, frozenset[int]]) -> list[ReadPage]:
    return await asyncio.gather(*(pool.extract(page.html, known[page.domain]) for page in batch))


def _understood(stored: StoredPage, new: ReadPage) -> StoredPage:
    """What would be stored of a page by this reading of it."""
    extracted = new.extracted
    # A page that could not be taken apart has not lost what was known of it.
    failed = extracted.method == "fallback"
    return StoredPage(
        title=storable(extracted.title) or (stored.title if failed else None),
        description=storable(extracted.description) or (stored.description if failed else None),
        canonical_url=storable(extracted.canonical_url) or (stored.canonical_url if failed else None),
        language=storable(extracted.language) or (stored.language if failed else None),
        published_at=extracted.published_at or (stored.published_at if failed else None),
        text=storable(extracted.text),
        markdown=storable(extracted.markdown),
        content_hash=new.fingerprint.content_hash,
        folded_hash=new.fingerprint.folded_hash,
        simhash=new.fingerprint.simhash,
    )


def _write(engine: Engine, changed: list[tuple[KeptPage, StoredPage]]) -> None:
    pages = [new for _, new in changed]
    with engine.begin() as connection:
        connection.execute(text("SELECT set_config('omniops.same_page', 'on', true)"))
        connection.execute(
            text("""
                WITH new AS MATERIALIZED (
                    -- A crawl that has seen the page since has the last word.
                    SELECT n.*, p.customer_id, p.last_changed_at
                    FROM unnest(
                        CAST(:ids AS bigint[]), CAST(:fetched AS timestamptz[]), CAST(:titles AS text[]),
                        CAST(:descriptions AS text[]), CAST(:canonical AS text[]), CAST(:languages AS text[]),
                        CAST(:published AS timestamptz[]), CAST(:texts AS text[]), CAST(:markdowns AS text[]),
                        CAST(:words AS integer[]), CAST(:hashes AS text[]), CAST(:folded AS text[]),
                        CAST(:simhashes AS bigint[]))
                        AS n (id, fetched_at, title, description, canonical_url, lang, published_at, text, markdown,
                              words, hash, folded, simhash)
                    JOIN scraped_pages AS p ON p.id = n.id
                    JOIN omniops_meta.page_html AS k ON k.page_id = n.id AND k.fetched_at = n.fetched_at
                    WHERE k.source_hash IS NULL OR k.source_hash = p.source_hash
                    ORDER BY p.url FOR NO KEY UPDATE OF p
                ), content AS (
                    INSERT INTO website_content AS w (page_id, customer_id, text, markdown, word_count, updated_at)
                    SELECT n.id, n.customer_id, n.text, n.markdown, n.words, n.last_changed_at FROM new AS n
                    ON CONFLICT (page_id) DO UPDATE SET
                        text = EXCLUDED.text, markdown = EXCLUDED.markdown, word_count = EXCLUDED.word_count,
                        search = NULL
                        WHERE w.text IS DISTINCT FROM EXCLUDED.text OR w.markdown IS DISTINCT FROM EXCLUDED.markdown
                )
                UPDATE scraped_pages AS p
                SET title = n.title, description = n.description, canonical_url = n.canonical_url, lang = n.lang,
                    published_at = n.published_at, content_hash = n.hash, folded_hash = n.folded, simhash = n.simhash
                FROM new AS n WHERE p.id = n.id
            """),
            {
                "ids": [page.page_id for page, _ in changed],
                "fetched": [page.fetched_at for page, _ in changed],
                "titles": [new.title for new in pages],
                "descriptions": [new.description for new in pages],
                "canonical": [new.canonical_url for new in pages],
                "languages": [new.language for new in pages],
                "published": [new.published_at for new in pages],
                "texts": [new.text for new in pages],
                "markdowns": [new.markdown for new in pages],
                "words": [len((new.text or "").split()) for new in pages],
                "hashes": [new.content_hash for new in pages],
                "folded": [new.folded_hash for new in pages],
                "simhashes": [new.simhash for new in pages],
            },
        )
