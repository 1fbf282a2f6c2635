"""Rows that have lost what they belong to, where no foreign key says so: what they are, how many, and some of them.

Foreign keys that there are guard the rest; the asset checks look at those all the same (`quality`). Some references
are kept without a key on purpose, because what they lead to is removed earlier: of those, only the ones that cannot
be explained so are counted. Samples are keys, never texts: they hold no personal data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from resources.postgres.reports.sampling import Sampler

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Enough to go and look.
MAX_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Orphans:
    """What was found of one kind.

    Attributes:
        kind: its name.
        table: whose rows.
        meaning: what it says, and what to do.
        rows: how many.
        estimated: True if counted on a sample of a large table.
        samples: keys of some.
    """

    kind: str
    table: str
    meaning: str
    rows: int
    estimated: bool
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One question. `rows`: SQL from FROM on, with `{sample}` behind the table; `key`: what a sample shows."""

    name: str
    table: str
    meaning: str
    rows: str
    key: str


_KINDS: Final = (
    _Kind(
        "page_without_content",
        "scraped_pages",
        "A page that answered and is not gone, whose text is not kept: nothing finds it. Crawl it again "
        "(single_page with its url).",
        """FROM scraped_pages AS x {sample} WHERE x.removed_at IS NULL AND x.http_status BETWEEN 200 AND 299
           AND NOT EXISTS (SELECT 1 FROM website_content AS w WHERE w.page_id = x.id)""",
        "'page ' || x.id",
    ),
    _Kind(
        "content_without_page",
        "website_content",
        "A text whose page is gone, or another customer's. A foreign key forbids it: the database was changed around "
        "it; delete the text.",
        """FROM website_content AS x {sample} WHERE NOT EXISTS (
               SELECT 1 FROM scraped_pages AS p WHERE p.id = x.page_id AND p.customer_id = x.customer_id)""",
        "'page ' || x.page_id",
    ),
    _Kind(
        "content_not_indexed",
        "website_content",
        "A text that waits to be indexed for more than an hour: full-text search does not find it. The next crawl "
        "indexes it; if it does not, look at its log.",
        "FROM website_content AS x WHERE x.search IS NULL AND x.updated_at < now() - interval '1 hour'",
        "'page ' || x.page_id",
    ),
    _Kind(
        "embedding_without_page",
        "page_embeddings",
        "A vector whose page is gone, or another customer's. A foreign key forbids it: the database was changed "
        "around it; delete the vector.",
        """FROM page_embeddings AS x {sample} WHERE NOT EXISTS (
               SELECT 1 FROM scraped_pages AS p WHERE p.id = x.page_id AND p.customer_id = x.customer_id)""",
        "'page ' || x.page_id || ' chunk ' || x.chunk_index",
    ),
    _Kind(
        "embedding_of_another_model",
        "page_embeddings",
        "A vector of a model that is no longer the one embedded with (that of the newest vector): no search compares "
        "it. Delete the model's vectors once all pages have new ones.",
        """FROM page_embeddings AS x {sample} WHERE x.model <> (
               SELECT e.model FROM page_embeddings AS e {sample} ORDER BY e.created_at DESC, e.model LIMIT 1)""",
        "'page ' || x.page_id || ' model ' || x.model",
    ),
    _Kind(
        "page_of_another_customers_job",
        "scraped_pages",
        "A page that names a job of another customer as the last to see it: one of the two has the wrong customer.",
        """FROM scraped_pages AS x {sample} JOIN scrape_jobs AS j ON j.job_id = x.last_job_id
           WHERE j.customer_id <> x.customer_id""",
        "'page ' || x.id || ' job ' || x.last_job_id",
    ),
    _Kind(
        "page_of_a_lost_job",
        "scraped_pages",
        "A page seen in the last 89 days by a job that is not there: its audit trail was removed before its time.",
        """FROM scraped_pages AS x {sample} WHERE x.last_seen_at > now() - interval '89 days'
           AND x.last_job_id IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM scrape_jobs AS j WHERE j.job_id = x.last_job_id)""",
        "'page ' || x.id || ' job ' || x.last_job_id",
    ),
    _Kind(
        "message_of_another_customers_conversation",
        "message_queue",
        "A queued message that names a conversation of another customer: whoever enqueued it mixed up two customers.",
        """FROM message_queue AS x {sample} JOIN conversations AS c ON c.id = x.conversation_id
           WHERE c.customer_id <> x.customer_id""",
        "'message ' || x.id",
    ),
    _Kind(
        "message_without_conversation",
        "message_queue",
        "A message that was handled more than an hour ago and names a conversation that is not there: its handler "
        "did not make it, or it was erased since.",
        """FROM message_queue AS x {sample} WHERE x.conversation_id IS NOT NULL AND x.status = 'completed'
           AND x.completed_at < now() - interval '1 hour'
           AND NOT EXISTS (SELECT 1 FROM conversations AS c WHERE c.id = x.conversation_id)""",
        "'message ' || x.id",
    ),
    _Kind(
        "order_of_another_customers_conversation",
        "orders",
        "An order that names a conversation of another customer: whoever wrote it mixed up two customers.",
        """FROM orders AS x {sample} JOIN conversations AS c ON c.id = x.conversation_id
           WHERE c.customer_id <> x.customer_id""",
        "'order ' || x.id",
    ),
    _Kind(
        "funnel_step_of_another_customers_conversation",
        "conversation_funnel",
        "A step that names a conversation of another customer: whoever wrote it mixed up two customers.",
        """FROM conversation_funnel AS x {sample} JOIN conversations AS c ON c.id = x.conversation_id
           WHERE c.customer_id <> x.customer_id""",
        "'step ' || x.id",
    ),
    _Kind(
        "funnel_step_without_conversation",
        "conversation_funnel",
        "A step of the last 29 days whose conversation is not there, though no configuration removes any so early: "
        "it was erased, or never made.",
        # Whoever keeps conversations for less has his steps left behind, by design.
        """FROM conversation_funnel AS x {sample} WHERE x.conversation_id IS NOT NULL
           AND x.created_at > now() - interval '29 days'
           AND NOT EXISTS (SELECT 1 FROM conversations AS c WHERE c.id = x.conversation_id)
           AND NOT EXISTS (SELECT 1 FROM conversation_retention_overrides() AS o
                           WHERE o.customer_id = x.customer_id AND o.days <= 29)""",
        "'step ' || x.id",
    ),
    _Kind(
        "frontier_held_by_nobody",
        "crawl_frontier",
        "A url that a worker took and that no live worker has, while its job is running: the job's worker died. "
        "Resume the job (launch `crawl` with its job_id).",
        """FROM scrape_jobs AS j JOIN crawl_frontier AS x ON x.job_id = j.job_id
           WHERE j.status = 'running' AND x.worker_id IS NOT NULL AND NOT x.done
           AND NOT EXISTS (SELECT 1 FROM omniops_meta.crawl_workers AS w
                           WHERE w.worker_id = x.worker_id AND w.leased_until > now())""",
        "'job ' || x.job_id || ' url ' || x.url_hash",
    ),
    _Kind(
        "worker_of_a_finished_job",
        "scrape_jobs",
        "A crawl worker's lease whose job has ended: its run was killed while it ended. The next takeover of a job "
        "clears dead leases; delete the row of omniops_meta.crawl_workers otherwise.",
        """FROM omniops_meta.crawl_workers AS w JOIN scrape_jobs AS x ON x.job_id = w.job_id
           WHERE x.status IN ('completed', 'failed', 'cancelled') AND w.leased_until < now()""",
        "'job ' || x.job_id",
    ),
)

KINDS: Final = tuple(kind.name for kind in _KINDS)


def orphaned_rows(connection: Connection, *, max_rows: int | None = None) -> list[Orphans]:
    """Every kind of orphan, in a fixed order, those that there are none of included.

    Args:
        connection: as the service.
        max_rows: of a table of more rows than this, a sample of about so many is read.
    """
    tables = {kind.table for kind in _KINDS}
    sampler = Sampler.over(connection, tables) if max_rows is None else Sampler.over(connection, tables, max_rows)
    return [_count(connection, kind, sampler) for kind in _KINDS]


def _count(connection: Connection, kind: _Kind, sampler: Sampler) -> Orphans:
    sampled = "{sample}" in kind.rows and sampler.share(kind.table) < 1
    source = kind.rows.replace("{sample}", sampler.clause(kind.table))
    row = connection.execute(
        text(f"""
            WITH found AS MATERIALIZED (SELECT {kind.key} AS key {source})
            SELECT (SELECT count(*) FROM found), ARRAY(SELECT f.key FROM found AS f ORDER BY f.key LIMIT :samples)
        """),  # noqa: S608 - constants of this module
        {"samples": MAX_SAMPLES},
    ).one()
    return Orphans(
        kind.name,
        kind.table,
        kind.meaning,
        sampler.scaled(kind.table, row[0]) if sampled else row[0],
        sampled,
        tuple(row[1]),
    )
