"""The database's part of search: pages that contain the words, pieces that are nearest, what is shown of them.

All of it runs as the customer, under row-level security. Full text is two functions with their owner's rights (see
`0007_search_functions.sql` for why, and why that is no way around the policies).

Each function sends its statement and gives an `Answer`. In a pipeline (`tenant_pipeline`) the answer is waited for
when it is called, so what does not need another's answer is sent with it; outside of one, it is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import psycopg

    T = TypeVar("T")
    Answer = Callable[[], T]

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


@dataclass(frozen=True, slots=True)
class Vectors:
    """A customer's vectors of a model.

    Attributes:
        any: there are some.
        few: so few that the index of everybody's would only be slower than comparing them one by one.
    """

    any: bool
    few: bool


def customer_exists(connection: psycopg.Connection[Any]) -> Answer[bool]:
    """Whether there is the transaction's customer."""
    cursor = connection.execute("SELECT EXISTS (SELECT FROM customers)")
    return lambda: cursor.fetchone() == (True,)


def pages_with_words(
    connection: psycopg.Connection[Any], query: str, *, domain: str | None, limit: int, any_word: bool = False
) -> Answer[list[int]]:
    """Pages of the transaction's customer that contain the words, best first.

    Args:
        connection: as the customer.
        query: as typed: words, "phrases", -words that shall not be there.
        domain: only this website's.
        limit: at most so many.
        any_word: one of the words is enough.
    """
    cursor = connection.execute(_WORDS, {"query": query, "any_word": any_word, "domain": domain, "limit": limit})
    return lambda: [page_id for (page_id,) in cursor.fetchall()]


def vectors_of(connection: psycopg.Connection[Any], model: str) -> Answer[Vectors]:
    """What the transaction's customer has of this model."""
    cursor = connection.execute(_FEW, {"model": model, "few": _FEW_VECTORS, "even": _EVEN_COST})

    def answer() -> Vectors:
        row = cursor.fetchone()
        return Vectors(*row) if row else Vectors(any=False, few=True)

    return answer


def nearest_chunks(
    connection: psycopg.Connection[Any],
    model: str,
    vector: Sequence[float],
    *,
    domain: str | None,
    limit: int,
    one_by_one: bool,
) -> Answer[list[NearChunk]]:
    """The pieces nearest to a vector, nearest first.

    Args:
        connection: as the customer.
        model: whose vectors.
        vector: the question's.
        domain: only this website's.
        limit: at most so many; a third of it where the index is asked, which costs milliseconds for each round.
        one_by_one: all of the customer's vectors are compared (`Vectors.few`); else the index is asked.
    """
    if not one_by_one:
        limit = -(-limit // 3)
        connection.execute(_BY_INDEX, {"ef": str(max(_EF_SEARCH, limit))})
    # The model stands in the statement itself: a partial index is used for a constant only.
    statement = _NEAREST.format(
        width=len(vector),
        model="'" + model.replace("'", "''").replace("%", "%%") + "'",
        # A sum is in no index.
        plus=" + 0.0" if one_by_one else "",
        of_domain="" if domain is None else "AND p.domain = %(domain)s",
    )
    given = "[" + ",".join(map("{:.6g}".format, vector)) + "]"
    cursor = connection.execute(
        statement.encode(), {"given": given, "limit": limit} | ({} if domain is None else {"domain": domain})
    )
    if not one_by_one:
        connection.execute("SELECT set_config('enable_sort', 'on', true)")

    def answer() -> list[NearChunk]:
        found = [NearChunk(page_id, index, float(distance)) for page_id, index, distance in cursor.fetchall()]
        # The index gives its order only roughly.
        return sorted(found, key=lambda chunk: (chunk.distance, chunk.page_id, chunk.chunk_index))

    return answer


_WORDS: Final = """
    SELECT page_id FROM search_pages(search_query(%(query)s, %(any_word)s), %(domain)s, %(limit)s::integer)
"""
_FEW: Final = """
    WITH most AS (
        SELECT greatest(%(few)s, sqrt(%(even)s * greatest(c.reltuples, 0)))::bigint AS vectors
        FROM pg_catalog.pg_class AS c WHERE c.oid = 'public.page_embeddings'::regclass
    ), counted AS MATERIALIZED (
        SELECT count(*) AS vectors
        FROM (SELECT FROM page_embeddings WHERE model = %(model)s LIMIT (SELECT m.vectors + 1 FROM most AS m)) AS few
    )
    SELECT c.vectors > 0, c.vectors <= m.vectors FROM counted AS c, most AS m
"""
# Without sorting off, the planner thinks too little of the index, and compares all of a large customer's.
_BY_INDEX: Final = """
    SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', %(ef)s, true),
           set_config('enable_sort', 'off', true)
"""
_NEAREST: Final = """
    SELECT e.page_id, e.chunk_index,
           (e.embedding::halfvec({width}) <=> CAST(%(given)s AS halfvec({width}))){plus} AS distance
    FROM page_embeddings AS e JOIN scraped_pages AS p ON p.id = e.page_id
    WHERE e.model = {model} AND p.removed_at IS NULL {of_domain}
    ORDER BY distance LIMIT %(limit)s
"""


def shown_pages(
    connection: psycopg.Connection[Any], query: str, model: str | None, pages: Mapping[int, int | None]
) -> Answer[dict[int, dict[str, Any]]]:
    """What is shown of pages that were found: url, title, heading, a passage with the question's words marked.

    Args:
        connection: as the customer.
        query: as typed.
        model: whose pieces are passages; None: there are none.
        pages: id of each page → the piece that was near, or None: the passage with the most of the words is looked
            for, in the pieces if there are any, else in the text.
    """
    cursor = connection.cursor(row_factory=dict_row).execute(
        _SHOWN,
        {
            "query": query,
            "model": model,
            "pages": list(pages),
            "indexes": list(pages.values()),
            "options": f"StartSel={MARK}, StopSel={MARK}, MaxWords=45, MinWords=25, ShortWord=2, HighlightAll=false",
        },
    )
    return lambda: {row["id"]: row for row in cursor.fetchall()}


# Headlines are made of a passage of some thousand characters at most: they cost a millisecond for each ten thousand.
# The words are looked for as their stems, which most of their forms begin with.
_SHOWN: Final = """
    WITH wanted AS MATERIALIZED (
        SELECT p.id, p.url, p.title, p.domain, g.chunk_index, public.text_search_config(p.lang) AS configuration
        FROM unnest(CAST(%(pages)s AS bigint[]), CAST(%(indexes)s AS integer[])) AS g (id, chunk_index)
        JOIN scraped_pages AS p ON p.id = g.id
    ), asked AS MATERIALIZED (
        SELECT c.configuration, tsvector_to_array(to_tsvector(c.configuration, %(query)s)) AS words,
               websearch_to_tsquery(c.configuration, %(query)s) AS query
        FROM (SELECT DISTINCT w.configuration FROM wanted AS w) AS c
    )
    SELECT w.id, w.url, w.title, w.domain, coalesce(found.heading, '') AS heading,
           ts_headline(w.configuration,
               regexp_replace(translate(coalesce(found.passage, ''), '*`|#', '    '), '\\s+', ' ', 'g'),
               CASE WHEN strpos(a.query::text, '!') > 0 THEN a.query
                    ELSE CAST(replace(replace(a.query::text, ' & ', ' | '), ' <-> ', ' | ') AS tsquery) END,
               %(options)s) AS snippet
    FROM wanted AS w JOIN asked AS a ON a.configuration = w.configuration
    LEFT JOIN LATERAL (
        SELECT * FROM (
            SELECT e.heading, left(e.chunk_text, 4000) AS passage
            FROM page_embeddings AS e
            WHERE e.page_id = w.id AND e.model = %(model)s
              AND (w.chunk_index IS NULL OR e.chunk_index = w.chunk_index)
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
