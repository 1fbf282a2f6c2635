"""Vectors in the permanent tier: models, what is not embedded yet, and what a page's pieces are replaced by.

What a page has been embedded with stands beside its text (`website_content.embedded_models`) and is emptied by
triggers when its text or title changes, so what is missing is found by a partial index and never by comparing. Each
batch is a transaction: whoever is killed has lost the batch that was under way, and no more. Vectors of a page that
is not embedded whole yet wait in `omniops_meta.waiting_vectors`, where no search sees them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from psycopg import sql
from sqlalchemy import column, create_engine, exists, func, literal, not_, select, table, text, union_all
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.pool import NullPool

from resources.postgres.connection import DatabaseError, driver_url
from resources.postgres.models import (
    EMBEDDED_MODEL,
    customers,
    page_embeddings,
    scrape_job_results,
    scraped_pages,
    website_content,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement, Connection

_MODELS: Final = table(
    "embedding_models",
    *(column(name) for name in ("model", "provider", "dimensions", "created_at")),
    schema="omniops_meta",
)
_WAITING: Final = table(
    "waiting_vectors", *(column(name) for name in ("page_id", "model", "chunk_hash")), schema="omniops_meta"
)


class ModelRefused(DatabaseError):
    """A model cannot be used as it is set; nothing was written."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it is registered.

    Attributes:
        model: its id.
        provider: who runs it.
        dimensions: width of its vectors.
        created_at: when it was first used.
        indexed: its indexes are there.
    """

    model: str
    provider: str
    dimensions: int
    created_at: datetime
    indexed: bool


@dataclass(frozen=True, slots=True)
class WaitingPage:
    """A page that is not embedded by a model.

    Attributes:
        page_id: of the page.
        customer_id: whose it is.
        title: of the page.
        markdown: what it says; None where there is no form to it.
        text: what it says.
        version: of title and text: if it is another one when the vectors are stored, they are of an old text.
    """

    page_id: int
    customer_id: UUID
    title: str | None
    markdown: str | None
    text: str
    version: int


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A piece of a page as it is stored.

    Attributes:
        index: its place in the page.
        heading: under which it stands.
        text: what it says.
        hash: of what the model reads.
        vector: as pgvector writes it; None: its vector is stored already, wherever in the page, or waits.
    """

    index: int
    heading: str
    text: str
    hash: str
    vector: str | None


@dataclass(frozen=True, slots=True)
class CustomerEmbeddings:
    """What a customer has of a model.

    Attributes:
        customer: slug.
        chunks: pieces with a vector.
        waiting_pages: pages that are not embedded as they are now.
    """

    customer: str
    chunks: int
    waiting_pages: int


# --- models ----------------------------------------------------------------------------------------------------


def index_names(model: str) -> tuple[str, str]:
    """The model's index of vectors, and that of pages that it has not embedded."""
    if model == EMBEDDED_MODEL:
        return "page_embeddings_nearest", "website_content_unembedded"
    mark = hashlib.blake2b(model.encode(), digest_size=4).hexdigest()
    return f"page_embeddings_nearest_{mark}", f"website_content_unembedded_{mark}"


def list_models(connection: Connection) -> list[Model]:
    """The models that were used in this database, oldest first."""
    rows = connection.execute(select(_MODELS).order_by(_MODELS.c.created_at, _MODELS.c.model)).mappings()
    return [Model(**row, indexed=has_indexes(connection, row["model"])) for row in rows]


def has_indexes(connection: Connection, model: str) -> bool:
    """Whether both of a model's indexes are there and whole."""
    found = connection.scalar(
        text("""SELECT count(*) FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
                WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (:names) AND x.indisvalid"""),
        {"names": list(index_names(model))},
    )
    return bool(found == len(index_names(model)))


def check_model(connection: Connection, model: str, dimensions: int) -> bool:
    """Refuse a model whose vectors would not be comparable with those that are stored. Writes nothing.

    Returns:
        Whether it is registered.

    Raises:
        ModelRefused: it is registered with another width.
    """
    known = connection.scalar(select(_MODELS.c.dimensions).where(_MODELS.c.model == model))
    if known is not None and known != dimensions:
        msg = (
            f"model {model} has vectors of {known} dimensions in this database, not of {dimensions}: nothing was "
            f"written. Set OMNIOPS_EMBEDDINGS_DIMENSIONS to {known}, or remove its vectors "
            f"(`omniops embed --forget {model}`)"
        )
        raise ModelRefused(msg)
    return known is not None


def check_usable(connection: Connection, model: str, dimensions: int) -> bool:
    """Refuse a model that cannot be embedded with as things stand. Writes nothing.

    Returns:
        Whether it is registered.

    Raises:
        ModelRefused: it is registered with another width, or its indexes are missing.
    """
    if check_model(connection, model, dimensions):
        return True
    if not has_indexes(connection, model):
        msg = (
            f"model {model} is new to this database and has no index yet: nothing was written. Run "
            "`omniops embed --prepare` with the same settings, as the role that migrates"
        )
        raise ModelRefused(msg)
    return False


def register_model(connection: Connection, model: str, provider: str, dimensions: int) -> None:
    """Write down a model before its first vector is stored.

    Raises:
        ModelRefused: it is registered with another width, or its indexes are missing.
    """
    if not check_usable(connection, model, dimensions):
        connection.execute(
            text("""INSERT INTO omniops_meta.embedding_models (model, provider, dimensions)
                    VALUES (:model, :provider, :dimensions) ON CONFLICT (model) DO NOTHING"""),
            {"model": model, "provider": provider, "dimensions": dimensions},
        )
        # Somebody else may have been faster, with another width.
        check_model(connection, model, dimensions)


def prepare_model(owner_url: str, model: str, dimensions: int) -> list[str]:
    """Make a model's two indexes, without holding up whoever reads or writes.

    Args:
        owner_url: the role that owns the tables.
        model: its id.
        dimensions: width of its vectors.

    Returns:
        Names of the indexes that were made; those that were there and whole are left as they are.

    Raises:
        ModelRefused: it is registered with another width.
    """
    nearest, unembedded = index_names(model)
    statements = {
        nearest: sql.SQL(
            "CREATE INDEX CONCURRENTLY {name} ON public.page_embeddings USING hnsw "
            "((embedding::halfvec({dimensions})) halfvec_cosine_ops) WHERE model = {model}"
        ),
        unembedded: sql.SQL(
            "CREATE INDEX CONCURRENTLY {name} ON public.website_content (customer_id, page_id) "
            "WHERE NOT embedded_models @> ARRAY[{model}]"
        ),
    }
    engine = create_engine(driver_url(owner_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    made = []
    try:
        with engine.connect() as connection:
            check_model(connection, model, dimensions)
            for name, statement in statements.items():
                valid = connection.scalar(
                    text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
                    {"name": f"public.{name}"},
                )
                if valid:
                    continue
                driver: Any = connection.connection.driver_connection
                if valid is not None:  # left by somebody who was interrupted
                    driver.execute(sql.SQL("DROP INDEX public.{}").format(sql.Identifier(name)))
                driver.execute(
                    statement.format(
                        name=sql.Identifier(name), dimensions=sql.Literal(dimensions), model=sql.Literal(model)
                    )
                )
                made.append(name)
    finally:
        engine.dispose()
    return made


# --- what is missing -------------------------------------------------------------------------------------------


def _not_embedded(model: str) -> ColumnElement[bool]:
    # The model stands in the statement itself: a partial index is used for a constant only.
    holds = website_content.c.embedded_models.op("@>", is_comparison=True)
    return cast("ColumnElement[bool]", not_(holds(array([literal(model, literal_execute=True)]))))


def _read_by(job_id: str) -> ColumnElement[bool]:
    # By the results, not by the page's last job: a later crawl, which may not embed, may have passed by since.
    results = scrape_job_results.c
    return exists().where(results.job_id == job_id, results.url == scraped_pages.c.url)


def next_customer(connection: Connection, model: str, after: UUID | None) -> UUID | None:
    """The next customer with pages that are not embedded, by id; None: there is none any more."""
    query = select(website_content.c.customer_id).where(_not_embedded(model))
    if after is not None:
        query = query.where(website_content.c.customer_id > after)
    found: UUID | None = connection.scalar(query.order_by(website_content.c.customer_id).limit(1))
    return found


_VERSION = func.hashtextextended(
    func.coalesce(scraped_pages.c.title, "")
    + literal("\x01")
    + func.coalesce(website_content.c.markdown, "")
    + literal("\x01")
    + website_content.c.text,
    0,
)


def waiting_pages(
    connection: Connection,
    model: str,
    customer_id: UUID,
    *,
    domain: str | None = None,
    job_id: str | None = None,
    after: int = 0,
    limit: int = 16,
) -> list[WaitingPage]:
    """A customer's pages that are not embedded by a model, in order of their ids; removed ones never are.

    Args:
        connection: as the service.
        model: its id.
        customer_id: whose.
        domain: only this website's.
        job_id: only pages that this crawl has read.
        after: id of the last page that was seen.
        limit: at most so many.
    """
    query = (
        select(
            website_content.c.page_id,
            website_content.c.customer_id,
            scraped_pages.c.title,
            website_content.c.markdown,
            website_content.c.text,
            _VERSION.label("version"),
        )
        .join(scraped_pages, scraped_pages.c.id == website_content.c.page_id)
        .where(
            website_content.c.customer_id == customer_id,
            website_content.c.page_id > after,
            _not_embedded(model),
            scraped_pages.c.removed_at.is_(None),
        )
    )
    if domain is not None:
        query = query.where(scraped_pages.c.domain == domain)
    if job_id is not None:
        query = query.where(_read_by(job_id))
    rows = connection.execute(query.order_by(website_content.c.page_id).limit(limit)).mappings()
    return [WaitingPage(**row) for row in rows]


def has_pages(connection: Connection, domain: str, customer_id: UUID | None = None) -> bool:
    """Whether any page of a website was ever read, for a customer or for anybody."""
    query = select(literal(1)).where(scraped_pages.c.domain == domain)
    if customer_id is not None:
        query = query.where(scraped_pages.c.customer_id == customer_id)
    return connection.scalar(query.limit(1)) is not None


def count_waiting(
    connection: Connection,
    model: str,
    *,
    customer_id: UUID | None = None,
    domain: str | None = None,
    job_id: str | None = None,
    most: int = 100_000,
) -> int:
    """How many pages are not embedded, up to `most`."""
    query = (
        select(literal(1))
        .select_from(website_content)
        .join(scraped_pages, scraped_pages.c.id == website_content.c.page_id)
        .where(_not_embedded(model), scraped_pages.c.removed_at.is_(None))
    )
    if customer_id is not None:
        query = query.where(website_content.c.customer_id == customer_id)
    if domain is not None:
        query = query.where(scraped_pages.c.domain == domain)
    if job_id is not None:
        query = query.where(_read_by(job_id))
    return connection.scalar(select(func.count()).select_from(query.limit(most).subquery())) or 0


def count_chunks(connection: Connection, model: str, customer_id: UUID) -> int:
    """How many pieces of a customer's pages have a vector of a model."""
    rows = page_embeddings.c
    query = select(func.count()).where(rows.customer_id == customer_id, rows.model == model)
    return connection.scalar(query) or 0


def by_customer(connection: Connection, model: str) -> list[CustomerEmbeddings]:
    """What each customer that has pages has of a model, most pieces first."""
    pieces = (
        select(page_embeddings.c.customer_id, func.count().label("chunks"))
        .where(page_embeddings.c.model == model)
        .group_by(page_embeddings.c.customer_id)
        .subquery()
    )
    waiting = (
        select(website_content.c.customer_id, func.count().label("pages"))
        .join(scraped_pages, scraped_pages.c.id == website_content.c.page_id)
        .where(_not_embedded(model), scraped_pages.c.removed_at.is_(None))
        .group_by(website_content.c.customer_id)
        .subquery()
    )
    chunks, pages = func.coalesce(pieces.c.chunks, 0), func.coalesce(waiting.c.pages, 0)
    rows = connection.execute(
        select(customers.c.slug, chunks, pages)
        .outerjoin(pieces, pieces.c.customer_id == customers.c.id)
        .outerjoin(waiting, waiting.c.customer_id == customers.c.id)
        .where(chunks + pages > 0)
        .order_by(chunks.desc(), customers.c.slug)
    )
    return [CustomerEmbeddings(*row) for row in rows]


def stored_hashes(connection: Connection, model: str, page_ids: Sequence[int]) -> dict[int, set[str]]:
    """Hashes of the pieces whose vectors are there, stored or waiting, by page."""
    rows = connection.execute(
        union_all(
            *(
                select(of.c.page_id, of.c.chunk_hash).where(
                    of.c.page_id == func.any(literal(list(page_ids))), of.c.model == model
                )
                for of in (page_embeddings, _WAITING)
            )
        )
    )
    found: dict[int, set[str]] = {page_id: set() for page_id in page_ids}
    for page_id, chunk_hash in rows:
        found[page_id].add(chunk_hash)
    return found


# --- storing ---------------------------------------------------------------------------------------------------


def store_pages(
    connection: Connection, model: str, pages: Sequence[tuple[WaitingPage, Sequence[StoredChunk]]]
) -> tuple[int, int]:
    """Replace the pieces of pages by new ones. What has not changed keeps its vector, wherever it now stands.

    A page that says something else by now is left as it is: it waits for its next turn, and new vectors wait with it.

    Args:
        connection: as the service, in a transaction.
        model: its id, registered.
        pages: each with all of its pieces.

    Returns:
        How many pages were stored, and how many pieces they have.
    """
    by_id = {page.page_id: page for page, _ in pages}
    current = connection.execute(
        select(website_content.c.page_id, _VERSION)
        .join(scraped_pages, scraped_pages.c.id == website_content.c.page_id)
        .where(website_content.c.page_id == func.any(literal(sorted(by_id))), scraped_pages.c.removed_at.is_(None))
        .order_by(website_content.c.page_id)
        .with_for_update(of=website_content)
    )
    fresh = {page_id for page_id, version in current if version == by_id[page_id].version}
    rows = list(_rows(pages, fresh))
    connection.execute(text(_STORE), {"model": model, "pages": sorted(fresh), **_columns(rows)})
    keep_vectors(connection, model, [(page, chunks) for page, chunks in pages if page.page_id not in fresh])
    return len(fresh), len(rows)


def keep_vectors(
    connection: Connection, model: str, pages: Sequence[tuple[WaitingPage, Sequence[StoredChunk]]]
) -> None:
    """Keep the new vectors of pages that are not embedded whole: the next run need not pay for them again.

    Args:
        connection: as the service, in a transaction.
        model: its id, registered.
        pages: each with all of its pieces; those without a vector are yet to come, or there already.
    """
    found = {
        (page.page_id, chunk.hash): chunk.vector
        for page, chunks in pages
        for chunk in chunks
        if chunk.vector is not None
    }
    if not found:
        return
    connection.execute(
        text("""
            INSERT INTO omniops_meta.waiting_vectors (page_id, customer_id, model, chunk_hash, embedding)
            SELECT p.id, p.customer_id, :model, w.chunk_hash, CAST(w.vector AS halfvec)
            FROM unnest(CAST(:pages AS bigint[]), CAST(:hashes AS text[]), CAST(:vectors AS text[]))
                 AS w (page_id, chunk_hash, vector)
            JOIN scraped_pages AS p ON p.id = w.page_id AND p.removed_at IS NULL
            ORDER BY p.id, w.chunk_hash
            FOR KEY SHARE OF p
            ON CONFLICT (page_id, model, chunk_hash) DO NOTHING"""),
        {
            "model": model,
            "pages": [page_id for page_id, _ in found],
            "hashes": [chunk_hash for _, chunk_hash in found],
            "vectors": list(found.values()),
        },
    )


def _rows(
    pages: Sequence[tuple[WaitingPage, Sequence[StoredChunk]]], fresh: set[int]
) -> Iterator[tuple[WaitingPage, StoredChunk]]:
    for page, chunks in pages:
        if page.page_id in fresh:
            for chunk in chunks:
                yield page, chunk


def _columns(rows: Sequence[tuple[WaitingPage, StoredChunk]]) -> Mapping[str, list[Any]]:
    return {
        "page_ids": [page.page_id for page, _ in rows],
        "customers": [page.customer_id for page, _ in rows],
        "indexes": [chunk.index for _, chunk in rows],
        "headings": [chunk.heading for _, chunk in rows],
        "texts": [chunk.text for _, chunk in rows],
        "hashes": [chunk.hash for _, chunk in rows],
        "vectors": [chunk.vector for _, chunk in rows],
    }


# The order of the parts is that of their data: what is wanted, what of it stands at its place already, what has its
# vector elsewhere in its page, and what goes.
_STORE: Final = """
    WITH wanted AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:page_ids AS bigint[]), CAST(:customers AS uuid[]), CAST(:indexes AS integer[]),
            CAST(:headings AS text[]), CAST(:texts AS text[]), CAST(:hashes AS text[]), CAST(:vectors AS text[]))
            AS w (page_id, customer_id, chunk_index, heading, chunk_text, chunk_hash, vector)
    ), stored AS MATERIALIZED (
        SELECT e.page_id, e.chunk_index, e.chunk_hash, e.embedding FROM page_embeddings AS e
        WHERE e.page_id = ANY (CAST(:pages AS bigint[])) AND e.model = :model
    ), kept AS (
        SELECT s.page_id, s.chunk_index FROM stored AS s
        JOIN wanted AS w ON w.page_id = s.page_id AND w.chunk_index = s.chunk_index AND w.chunk_hash = s.chunk_hash
    ), removed AS (
        DELETE FROM page_embeddings AS e USING stored AS s
        WHERE e.page_id = s.page_id AND e.chunk_index = s.chunk_index AND e.model = :model
          AND NOT EXISTS (SELECT 1 FROM wanted AS w WHERE w.page_id = s.page_id AND w.chunk_index = s.chunk_index)
        RETURNING 1
    ), written AS (
        INSERT INTO page_embeddings AS e
            (page_id, customer_id, model, chunk_index, heading, chunk_text, chunk_hash, embedding)
        SELECT w.page_id, w.customer_id, :model, w.chunk_index, w.heading, w.chunk_text, w.chunk_hash,
               coalesce(CAST(w.vector AS halfvec), (
                   SELECT s.embedding FROM stored AS s
                   WHERE s.page_id = w.page_id AND s.chunk_hash = w.chunk_hash ORDER BY s.chunk_index LIMIT 1), (
                   SELECT v.embedding FROM omniops_meta.waiting_vectors AS v
                   WHERE v.page_id = w.page_id AND v.model = :model AND v.chunk_hash = w.chunk_hash))
        FROM wanted AS w
        WHERE NOT EXISTS (SELECT 1 FROM kept AS k WHERE k.page_id = w.page_id AND k.chunk_index = w.chunk_index)
        ORDER BY w.page_id, w.chunk_index
        ON CONFLICT (page_id, model, chunk_index) DO UPDATE SET
            heading = EXCLUDED.heading, chunk_text = EXCLUDED.chunk_text, chunk_hash = EXCLUDED.chunk_hash,
            embedding = EXCLUDED.embedding, created_at = now()
        RETURNING 1
    ), used AS (
        DELETE FROM omniops_meta.waiting_vectors AS v
        WHERE v.page_id = ANY (CAST(:pages AS bigint[])) AND v.model = :model
    )
    UPDATE website_content AS c
    SET embedded_models = array_append(array_remove(c.embedded_models, CAST(:model AS text)), CAST(:model AS text))
    WHERE c.page_id = ANY (CAST(:pages AS bigint[]))
"""


def remove_vectors_of_removed_pages(
    connection: Connection, *, customer_id: UUID | None = None, limit: int = 500
) -> tuple[int, set[UUID]]:
    """Remove the vectors of pages that are gone, of all models, for up to `limit` pages.

    Returns:
        For how many pages (fewer than `limit`: no more are left), and whose they were.
    """
    rows = connection.execute(
        text("""
            WITH gone AS MATERIALIZED (
                SELECT p.id, p.customer_id FROM scraped_pages AS p JOIN website_content AS w ON w.page_id = p.id
                WHERE p.removed_at IS NOT NULL
                  -- Its text may have changed before it went: then its vectors are of no text that there is.
                  AND (w.embedded_models <> '{}'
                       OR EXISTS (SELECT 1 FROM page_embeddings AS e WHERE e.page_id = p.id))
                  AND (CAST(:customer AS uuid) IS NULL OR p.customer_id = :customer)
                ORDER BY p.id LIMIT :limit FOR UPDATE OF w
            ), removed AS (
                DELETE FROM page_embeddings AS e USING gone AS g WHERE e.page_id = g.id RETURNING 1
            ), waiting AS (
                DELETE FROM omniops_meta.waiting_vectors AS v USING scraped_pages AS p
                WHERE p.id = v.page_id AND p.removed_at IS NOT NULL
                  AND (CAST(:customer AS uuid) IS NULL OR p.customer_id = :customer)
            )
            UPDATE website_content AS w SET embedded_models = '{}' FROM gone AS g WHERE w.page_id = g.id
            RETURNING g.customer_id"""),
        {"customer": customer_id, "limit": limit},
    ).scalars()
    whose = list(rows)
    return len(whose), set(whose)


def forget_model(connection: Connection, model: str, *, limit: int = 1_000) -> int:
    """Remove a model's vectors, for up to `limit` pages.

    Returns:
        For how many pages; 0: none has any more, and the model's registration is gone too.
    """
    pages = list(
        connection.execute(
            text("""
                WITH chosen AS MATERIALIZED (
                    SELECT DISTINCT e.page_id FROM (
                        SELECT x.page_id FROM page_embeddings AS x WHERE x.model = :model LIMIT :limit) AS e
                ), removed AS (
                    DELETE FROM page_embeddings AS e USING chosen AS s
                    WHERE e.page_id = s.page_id AND e.model = :model RETURNING 1
                )
                UPDATE website_content AS w
                SET embedded_models = array_remove(w.embedded_models, CAST(:model AS text))
                FROM chosen AS s WHERE w.page_id = s.page_id RETURNING w.page_id"""),
            {"model": model, "limit": limit},
        ).scalars()
    )
    if not pages:
        connection.execute(
            text(
                "UPDATE website_content SET embedded_models = array_remove(embedded_models, CAST(:model AS text)) "
                "WHERE embedded_models @> ARRAY[CAST(:model AS text)]"
            ),
            {"model": model},
        )  # pages without any piece
        connection.execute(text("DELETE FROM omniops_meta.waiting_vectors WHERE model = :model"), {"model": model})
        connection.execute(text("DELETE FROM omniops_meta.embedding_models WHERE model = :model"), {"model": model})
    return len(pages)


def try_lock(connection: Connection, model: str, customer_id: UUID) -> bool:
    """Be the only one that embeds a customer's pages with a model, for as long as the connection lives.

    Embedding twice would be right too, and cost twice.
    """
    return bool(
        connection.scalar(
            text("SELECT pg_try_advisory_lock(hashtext('embed ' || :model), hashtext(CAST(:customer AS text)))"),
            {"model": model, "customer": str(customer_id)},
        )
    )


def unlock(connection: Connection, model: str, customer_id: UUID) -> None:
    """Give a lock back."""
    connection.execute(
        text("SELECT pg_advisory_unlock(hashtext('embed ' || :model), hashtext(CAST(:customer AS text)))"),
        {"model": model, "customer": str(customer_id)},
    )
