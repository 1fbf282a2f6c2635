"""The database's part of search: pages that contain the words, pieces that are nearest, what is shown of them.

All of it runs as the customer (`tenant_connection`), under row-level security. Full text is two functions with their
owner's rights (see `0007_search_functions.sql` for why, and why that is no way around the policies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import cast, func, literal, literal_column, select, text

from resources.postgres.models import HalfVector, page_embeddings, scraped_pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection

# Up to so many vectors of a customer are compared one by one, which finds the nearest for certain; beyond, the index
# is asked. `bench/search.py` has both.
EXACT_VECTORS: Final = 2_000
# What the index looks at before it filters; it goes on (`iterative_scan`) until there are enough of the customer's.
_EF_SEARCH: Final = 200

# Marks around the words of the question in a snippet.
MARK: Final = "**"


@dataclass(frozen=True, slots=True)
class NearChunk:
    """A piece near to a question.

    Attributes:
        page_id: of its page.
        chunk_index: its place there.
        distance: cosine distance, 0 to 2.
    """

    page_id: int
    chunk_index: int
    distance: float


def pages_with_words(
    connection: Connection, query: str, *, domain: str | None, limit: int, any_word: bool = False
) -> list[int]:
    """Pages of the transaction's customer that contain the words, best first.

    Args:
        connection: as the customer.
        query: as typed: words, "phrases", -words that shall not be there.
        domain: only this website's.
        limit: at most so many.
        any_word: one of the words is enough.
    """
    return list(
        connection.scalars(
            text("SELECT page_id FROM search_pages(search_query(:query, :any_word), :domain, :limit)"),
            {"query": query, "any_word": any_word, "domain": domain, "limit": limit},
        )
    )


def count_vectors(connection: Connection, model: str) -> int:
    """How many vectors the transaction's customer has, up to one more than are compared one by one."""
    some = select(literal(1)).select_from(page_embeddings).where(page_embeddings.c.model == model)
    return connection.scalar(select(func.count()).select_from(some.limit(EXACT_VECTORS + 1).subquery())) or 0


def nearest_chunks(
    connection: Connection, model: str, vector: Sequence[float], *, domain: str | None, limit: int, vectors: int
) -> list[NearChunk]:
    """The pieces nearest to a vector, nearest first.

    Args:
        connection: as the customer.
        model: whose vectors.
        vector: the question's.
        domain: only this website's.
        limit: at most so many.
        vectors: how many the customer has (`count_vectors`).
    """
    wide = HalfVector(len(vector))
    exact = vectors <= EXACT_VECTORS
    given = "[" + ",".join(f"{number:.6g}" for number in vector) + "]"
    distance: ColumnElement[Any] = cast(page_embeddings.c.embedding, wide).op("<=>")(cast(given, wide))
    if not exact:
        connection.execute(
            # Without sorting off, the planner thinks too little of the index, and compares all of a large customer's.
            text("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), "
                 "set_config('hnsw.ef_search', :ef, true), set_config('enable_sort', 'off', true)"),
            {"ef": str(max(_EF_SEARCH, limit))},
        )  # fmt: skip
    query = (
        select(page_embeddings.c.page_id, page_embeddings.c.chunk_index, distance.label("distance"))
        .join(scraped_pages, scraped_pages.c.id == page_embeddings.c.page_id)
        .where(
            # In the statement itself: a partial index is used for a constant only.
            page_embeddings.c.model == literal(model, literal_execute=True),
            scraped_pages.c.removed_at.is_(None),
        )
        # A sum is in no index.
        .order_by(distance + literal_column("0.0") if exact else distance)
        .limit(limit)
    )
    if domain is not None:
        query = query.where(scraped_pages.c.domain == domain)
    found = [NearChunk(row.page_id, row.chunk_index, float(row.distance)) for row in connection.execute(query)]
    if not exact:
        connection.execute(text("SELECT set_config('enable_sort', 'on', true)"))
    # The index gives its order only roughly.
    return sorted(found, key=lambda chunk: (chunk.distance, chunk.page_id, chunk.chunk_index))


def shown_pages(
    connection: Connection, query: str, model: str | None, pages: Mapping[int, int | None]
) -> dict[int, dict[str, Any]]:
    """What is shown of pages that were found: url, title, heading, a passage with the question's words marked.

    Args:
        connection: as the customer.
        query: as typed.
        model: whose pieces are passages; None: there are none.
        pages: id of each page → the piece that was near, or None: the passage with the most of the words is looked
            for, in the pieces if there are any, else in the text.
    """
    rows = connection.execute(
        text(_SHOWN),
        {
            "query": query,
            "model": model,
            "pages": list(pages),
            "indexes": list(pages.values()),
            "options": f"StartSel={MARK}, StopSel={MARK}, MaxWords=45, MinWords=25, ShortWord=2, HighlightAll=false",
        },
    ).mappings()
    return {row["id"]: dict(row) for row in rows}


# Headlines are made of a passage of some thousand characters at most: they cost a millisecond for each ten thousand.
# The words are looked for as their stems, which most of their forms begin with.
_SHOWN: Final = """
    WITH wanted AS MATERIALIZED (
        SELECT p.id, p.url, p.title, p.domain, g.chunk_index, public.text_search_config(p.lang) AS configuration
        FROM unnest(CAST(:pages AS bigint[]), CAST(:indexes AS integer[])) AS g (id, chunk_index)
        JOIN scraped_pages AS p ON p.id = g.id
    ), asked AS MATERIALIZED (
        SELECT c.configuration, tsvector_to_array(to_tsvector(c.configuration, :query)) AS words,
               websearch_to_tsquery(c.configuration, :query) AS query
        FROM (SELECT DISTINCT w.configuration FROM wanted AS w) AS c
    )
    SELECT w.id, w.url, w.title, w.domain, coalesce(found.heading, '') AS heading,
           ts_headline(w.configuration,
               regexp_replace(translate(coalesce(found.passage, ''), '*`|#', '    '), '\\s+', ' ', 'g'),
               CASE WHEN strpos(a.query::text, '!') > 0 THEN a.query
                    ELSE CAST(replace(replace(a.query::text, ' & ', ' | '), ' <-> ', ' | ') AS tsquery) END,
               :options) AS snippet
    FROM wanted AS w JOIN asked AS a ON a.configuration = w.configuration
    LEFT JOIN LATERAL (
        SELECT * FROM (
            SELECT e.heading, left(e.chunk_text, 4000) AS passage
            FROM page_embeddings AS e
            WHERE e.page_id = w.id AND e.model = :model AND (w.chunk_index IS NULL OR e.chunk_index = w.chunk_index)
            ORDER BY (SELECT count(*) FROM unnest(a.words) AS o (word)
                      WHERE strpos(lower(e.heading || ' ' || e.chunk_text), o.word) > 0) DESC, e.chunk_index
            LIMIT 1) AS chunk
        UNION ALL
        SELECT NULL, substr(c.text, greatest(1, t.at - 250), 1500)
        FROM website_content AS c, LATERAL (
            SELECT coalesce(max(strpos(lower(left(c.text, 100000)), o.word)), 1) AS at
            FROM unnest(a.words) AS o (word)
        ) AS t
        WHERE c.page_id = w.id
        LIMIT 1
    ) AS found ON true
"""
