"""Reads kept pages again, with today's extractor and without a single request.

The page has not changed, only what is understood of it: `last_changed_at` stays, no version is put down, and only
texts that come out otherwise are written (and so indexed and embedded again).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from resources.content.pool import ExtractionPool
from resources.content.search_cache import forget_searches
from resources.postgres.content import index_waiting_content
from resources.postgres.page_html import kept_pages
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
        changed: pages whose text came out otherwise, and was written (in a dry run: would be).
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
                    (page, new) for page, new in zip(batch, read, strict=True)
                    if new.fingerprint.content_hash != page.content_hash and new.failure is None
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


def _write(engine: Engine, changed: list[tuple[KeptPage, ReadPage]]) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT set_config('omniops.same_page', 'on', true)"))
        connection.execute(
            text("""
                WITH new AS (
                    SELECT * FROM unnest(
                        CAST(:ids AS bigint[]), CAST(:texts AS text[]), CAST(:markdowns AS text[]),
                        CAST(:words AS integer[]), CAST(:hashes AS text[]), CAST(:folded AS text[]),
                        CAST(:simhashes AS bigint[]), CAST(:fetched AS timestamptz[]))
                        AS n (id, text, markdown, words, hash, folded, simhash, fetched_at)
                ), content AS (
                    -- A crawl that has seen the page since has the last word.
                    UPDATE website_content AS w
                    SET text = n.text, markdown = n.markdown, word_count = n.words, search = NULL
                    FROM new AS n JOIN omniops_meta.page_html AS k ON k.page_id = n.id AND k.fetched_at = n.fetched_at
                    WHERE w.page_id = n.id
                    RETURNING w.page_id
                )
                UPDATE scraped_pages AS p SET content_hash = n.hash, folded_hash = n.folded, simhash = n.simhash
                FROM new AS n JOIN content ON content.page_id = n.id WHERE p.id = n.id
            """),
            {
                "ids": [page.page_id for page, _ in changed],
                "texts": [new.extracted.text for _, new in changed],
                "markdowns": [new.extracted.markdown for _, new in changed],
                "words": [new.extracted.word_count for _, new in changed],
                "hashes": [new.fingerprint.content_hash for _, new in changed],
                "folded": [new.fingerprint.folded_hash for _, new in changed],
                "simhashes": [new.fingerprint.simhash for _, new in changed],
                "fetched": [page.fetched_at for page, _ in changed],
            },
        )
