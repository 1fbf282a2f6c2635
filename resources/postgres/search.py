"""The database's part of search: pages that contain the words, pieces that are nearest, what is shown of them.

All of it runs as the customer, under row-level security. Full text is two functions with their owner's rights (see
`0007_search_functions.sql` for why, and why that is no way around the policies).

Each function sends its statement and gives an `Answer`. In a pipeline (`tenant_pipeline`) the answer is waited for
when it is called, so what does not need another's answer is sent with it; outside of one, it is there at once.
"""

from __future__ import annotations

import re
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
# What stands in a snippet for its marks, and where a dot or slash parts words, until it is here.
_BREAK, _START, _STOP = "\x02", "\x03", "\x04"
_MARKUP: Final = str.maketrans(dict.fromkeys("*`|#", " ") | {_BREAK: None})


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
        query: as `websearch_to_tsquery` reads it (`SearchWords.query`).
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


def pages_without(connection: psycopg.Connection[Any], excluded: str, pages: Sequence[int]) -> Answer[set[int]]:
    """Those of the transaction's customer's pages that have none of the words that shall not be there.

    Args:
        connection: as the customer.
        excluded: -words (`SearchWords.excluded`).
        pages: their ids.
    """
    cursor = connection.execute(_WITHOUT, {"excluded": excluded, "pages": list(pages)})
    return lambda: {page_id for (page_id,) in cursor.fetchall()}


_WITHOUT: Final = """
    SELECT w.page_id FROM website_content AS w
    WHERE w.page_id = ANY(CAST(%(pages)s AS bigint[])) AND w.search @@ search_query(%(excluded)s, false)
"""


@dataclass(frozen=True, slots=True)
class Searchable:
    """What there is to be searched, where nothing was found.

    Attributes:
        words: something is left of the question for full text.
        pages: the customer has pages.
        of_domain: some are of the website that was asked for.
        indexed: some are indexed.
        domains: websites that they are of, some of them.
    """

    words: bool
    pages: bool
    of_domain: bool
    indexed: bool
    domains: Sequence[str]


def searchable(connection: psycopg.Connection[Any], query: str, domain: str | None) -> Answer[Searchable]:
    """What the transaction's customer has to be searched.

    Args:
        connection: as the customer.
        query: as `pages_with_words` takes it.
        domain: the website; None: all.
    """
    cursor = connection.execute(_SEARCHABLE, {"query": query, "domain": domain})

    def answer() -> Searchable:
        row = cursor.fetchone()
        return Searchable(*row) if row else Searchable(True, False, False, False, ())

    return answer


_SEARCHABLE: Final = """
    WITH sample AS MATERIALIZED (SELECT p.domain FROM scraped_pages AS p WHERE p.removed_at IS NULL LIMIT 10000)
    SELECT search_query(%(query)s, true) IS NOT NULL, EXISTS (SELECT FROM sample),
           %(domain)s::text IS NULL OR EXISTS (
               SELECT FROM scraped_pages AS p WHERE p.removed_at IS NULL AND p.domain = %(domain)s
           ),
           EXISTS (SELECT FROM website_content AS w WHERE w.search IS NOT NULL),
           ARRAY(SELECT DISTINCT s.domain FROM sample AS s ORDER BY s.domain LIMIT 5)
"""


def shown_pages(
    connection: psycopg.Connection[Any], words: str, model: str | None, pages: Mapping[int, int | None]
) -> Answer[dict[int, dict[str, Any]]]:
    """What is shown of pages that were found: url, title, heading, a passage with the question's words marked.

    Args:
        connection: as the customer.
        words: those that a page shall have.
        model: whose pieces are passages; None: there are none.
        pages: id of each page → the piece that was near, or None: the passage with the most of the words is looked
            for, in the pieces if there are any, else in the text.
    """
    cursor = connection.cursor(row_factory=dict_row).execute(
        _SHOWN,
        {
            "words": re.sub(r"[_\"]", " ", words),
            "model": model,
            "pages": list(pages),
            "indexes": list(pages.values()),
            "break": "\\1" + _BREAK,
            "options": f"StartSel={_START}, StopSel={_STOP}, MaxWords=45, MinWords=25, ShortWord=2",
        },
    )
    return lambda: {row["id"]: {**row, "snippet": _marked(row["snippet"])} for row in cursor.fetchall()}


def _marked(snippet: str) -> str:
    """A snippet as it is shown: no markup but the marks, and names that a dot joins marked as one."""
    plain = " ".join(snippet.translate(_MARKUP).split())
    joined = re.sub(f"{_STOP}([./_]){_START}", r"\1", plain)
    return joined.replace(_START, MARK).replace(_STOP, MARK)


# A headline costs by the length of its text, so it is made of the 420 characters around the place where most of the
# words stand first, from the first whole word to the last. They are looked for as their stems, which most of their
# forms begin with.
_SHOWN: Final = """
    WITH wanted AS MATERIALIZED (
        SELECT p.id, p.url, p.title, p.domain, g.chunk_index, public.text_search_config(p.lang) AS configuration
        FROM unnest(CAST(%(pages)s AS bigint[]), CAST(%(indexes)s AS integer[])) AS g (id, chunk_index)
        JOIN scraped_pages AS p ON p.id = g.id
    ), asked AS MATERIALIZED (
        SELECT c.configuration, tsvector_to_array(to_tsvector(c.configuration, %(words)s)) AS words,
               replace(plainto_tsquery(c.configuration, %(words)s)::text, ' & ', ' | ')::tsquery AS query
        FROM (SELECT DISTINCT w.configuration FROM wanted AS w) AS c
    )
    SELECT w.id, w.url, w.title, w.domain, coalesce(found.heading, '') AS heading,
           ts_headline(w.configuration, regexp_replace(
               coalesce(substring(part.text FROM '^\\S{0,40}\\s(.*)\\s\\S{0,40}$'), part.text, ''),
               '(\\.(?=[[:alpha:]_]\\w)|/)', %(break)s, 'g'), a.query, %(options)s) AS snippet
    FROM wanted AS w JOIN asked AS a ON a.configuration = w.configuration
    LEFT JOIN LATERAL (
        SELECT * FROM (
            SELECT e.heading, e.chunk_text AS passage
            FROM page_embeddings AS e
            WHERE e.page_id = w.id AND e.model = %(model)s
              AND (w.chunk_index IS NULL OR e.chunk_index = w.chunk_index)
            ORDER BY (SELECT count(*) FROM unnest(a.words) AS o (word)
                      WHERE strpos(lower(e.heading || ' ' || e.chunk_text), o.word) > 0) DESC, e.chunk_index
            LIMIT 1) AS chunk
        UNION ALL
        SELECT NULL, left(c.text, 100000) FROM website_content AS c WHERE c.page_id = w.id
        LIMIT 1
    ) AS found ON true
    LEFT JOIN LATERAL (
        SELECT substr(' ' || found.passage || ' ', greatest(1, coalesce(min(best.at), 1) - 100), 420) AS text
        FROM (
            SELECT t.at FROM (
                SELECT coalesce(nullif(strpos(f.text, ' ' || o.word), 0), strpos(f.text, o.word)) AS at
                FROM (SELECT ' ' || lower(found.passage) AS text OFFSET 0) AS f, unnest(a.words) AS o (word)
            ) AS t
            WHERE t.at > 0
            ORDER BY count(*) OVER (ORDER BY t.at RANGE BETWEEN CURRENT ROW AND 300 FOLLOWING) DESC, t.at LIMIT 1
        ) AS best
    ) AS part ON true
"""
