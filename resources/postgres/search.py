"""The database's part of search: pages that contain the words, pieces that are nearest, what is shown of them.

All of it runs as the customer (`tenant_connection`), under row-level security. Full text is two functions with their
owner's rights (see `0007_search_functions.sql` for why, and why that is no way around the policies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

# A customer's vectors are compared one by one where that costs less than the index, which holds everybody's and is
# searched on until enough of them are the customer's: 1.5 µs for each of the customer's, against 0.7 ms divided by
# the customer's share of all. One by one is the nearest for certain, too.
_FEW_VECTORS: Final = 2_000
_EVEN_COST: Final = 450
# What the index looks at before it filters; it goes on (`iterative_scan`) until there are enough of the customer's.
_EF_SEARCH: Final = 100

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


def has_vectors(connection: Connection, model: str) -> bool:
    """Whether anything of the transaction's customer is embedded with this model."""
    return (
        connection.scalar(text("SELECT EXISTS (SELECT FROM page_embeddings WHERE model = :m)"), {"m": model}) is True
    )


def is_compared_one_by_one(connection: Connection, model: str) -> bool:
    """Whether the customer has so few vectors that the index would only be slower."""
    return connection.scalar(text(_FEW), {"model": model, "few": _FEW_VECTORS, "even": _EVEN_COST}) is True


def nearest_chunks(
    connection: Connection, model: str, vector: Sequence[float], *, domain: str | None, limit: int
) -> list[NearChunk]:
    """The pieces nearest to a vector, nearest first.

    Args:
        connection: as the customer.
        model: whose vectors.
        vector: the question's.
        domain: only this website's.
        limit: at most so many; a third of it where the index is asked, which costs milliseconds for each round.
    """
    exact = is_compared_one_by_one(connection, model)
    if not exact:
        limit = -(-limit // 3)
        connection.execute(text(_BY_INDEX), {"ef": str(max(_EF_SEARCH, limit))})
    # The model stands in the statement itself: a partial index is used for a constant only.
    statement = _NEAREST.format(
        width=len(vector),
        model="'" + model.replace("'", "''").replace(":", "\\:") + "'",
        # A sum is in no index.
        plus=" + 0.0" if exact else "",
        of_domain="" if domain is None else "AND p.domain = :domain",
    )
    given = "[" + ",".join(map("{:.6g}".format, vector)) + "]"
    found = [
        NearChunk(page_id, chunk_index, float(distance))
        for page_id, chunk_index, distance in connection.execute(
            text(statement), {"given": given, "limit": limit} | ({} if domain is None else {"domain": domain})
        )
    ]
    if not exact:
        connection.execute(text("SELECT set_config('enable_sort', 'on', true)"))
    # The index gives its order only roughly.
    return sorted(found, key=lambda chunk: (chunk.distance, chunk.page_id, chunk.chunk_index))


_FEW: Final = """
    WITH most AS (
        SELECT greatest(:few, sqrt(:even * greatest(c.reltuples, 0)))::bigint AS vectors
        FROM pg_catalog.pg_class AS c WHERE c.oid = 'public.page_embeddings'::regclass
    )
    SELECT (SELECT count(*) FROM (SELECT FROM page_embeddings WHERE model = :model
                                  LIMIT (SELECT m.vectors + 1 FROM most AS m)) AS counted) <= m.vectors
    FROM most AS m
"""
# Without sorting off, the planner thinks too little of the index, and compares all of a large customer's.
_BY_INDEX: Final = """
    SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', :ef, true),
           set_config('enable_sort', 'off', true)
"""
_NEAREST: Final = """
    SELECT e.page_id, e.chunk_index,
           (e.embedding::halfvec({width}) <=> CAST(:given AS halfvec({width}))){plus} AS distance
    FROM page_embeddings AS e JOIN scraped_pages AS p ON p.id = e.page_id
    WHERE e.model = {model} AND p.removed_at IS NULL {of_domain}
    ORDER BY distance LIMIT :limit
"""


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
