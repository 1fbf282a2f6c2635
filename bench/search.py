"""What does a search cost the database, and does it find what is nearest?

    python -m bench.search [--chunks 100000] [--tenants 50] [--searches 200] [--keep FOLDER] [--json FILE]

An embedded Postgres of its own is filled by COPY: pages of five chunks each, whose words are as frequent as those of
a language are (Zipf), and whose vectors are random directions around a few hundred centres, as those of real pages
are, so that neighbours are no accident. It is done twice: with tenants of one size, and with tenants of very unlike
sizes (one has 30 % of everything, others 10 %, 5 % and 3 %). With `--keep` the filled databases stay in that folder
and are used again.

A search is asked as a program asks it (`Search.search`, without the cache), for a passage of the customer's: half of
the questions in three words that the passage has, half in two words that may stand nowhere together. Only the model
is left out: the question's vector is given. One question is asked after the other, of a server that has answered some
other questions before. Two times are measured of each search:

- `search`: all of it, from the call of `Search.search` until its results are there.
- `database`: of that, the waits for the database (`bench/database_time.py`): every statement from before it is sent
  until its whole result is there, with the pool's ping, BEGIN, role and claims under row-level security, and COMMIT.
  It holds the way through the socket and the time until this process is run again; what is left out is the client's
  own work alone. This is what `wanted` is about. It is also given by parts, each with the BEGIN or COMMIT that is
  sent with it: `count` (of the customer's vectors), `arms` (the nearest pieces and the words, which are waited for
  together), `shown` (passages and their marks), `other` (pings).

`nearest` and `words` are each of the arms alone, in a transaction of its own.

The nearest ten pages that the vectors find are compared with the exact nearest ten, computed as the owner without any
index. A loop of plain Python (`bench/measure.py`) says how fast the machine is that day.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import numpy as np
import psycopg

from bench.copies import Copied
from bench.database_time import DatabaseTime
from bench.measure import machine_speed
from resources.content.embed import as_vector
from resources.content.hybrid_search import CHUNK_CANDIDATES, Search
from resources.postgres import search as database
from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.content import index_waiting_content
from resources.postgres.migrate import migrate
from resources.postgres.models import EMBEDDED_MODEL, EMBEDDING_DIMENSIONS
from resources.postgres.tenancy import tenant_pipeline
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from resources.content.embeddings import Keep

_WANTED_MS = 20.0
_CHUNKS_OF_A_PAGE = 5
_WORDS_OF_A_CHUNK = 90
_CENTRES = 300
# Searches before the first that is measured.
_WARMING = 1_500
# What an index of words leaves out, or finds everywhere.
_EVERYWHERE = 40
_SYLLABLES = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
_WORDS = [f"{first}{second}{end}" for end in ("rel", "mon", "dex", "los", "wick", "tan") for first in _SYLLABLES
          for second in _SYLLABLES]  # fmt: skip
# Text of a statement → part of the search.
_PARTS = {"reltuples": "count", "<=>": "arms", "enable_sort": "arms", "search_pages": "arms", "ts_headline": "shown"}
# Shares of the tenants that have more than the others.
_LAYOUTS: dict[str, tuple[float, ...]] = {"even": (), "skewed": (0.3, 0.1, 0.05, 0.03)}


def customer_of(number: int) -> str:
    """Ids that can be read."""
    return f"00000000-0000-4000-8000-{number:012d}"


def sizes_of(chunks: int, tenants: int, large: Sequence[float]) -> list[int]:
    """Chunks of each tenant: some have these shares, and the others the rest in equal parts."""
    first = [int(chunks * share) for share in large]
    return [*first, *[(chunks - sum(first)) // (tenants - len(first))] * (tenants - len(first))]


class Corpus:
    """The generated content, the same each time."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.numbers = np.random.default_rng(7)
        self.sizes = sizes
        self.centres = self.numbers.normal(size=(_CENTRES, EMBEDDING_DIMENSIONS)).astype(np.float32)
        weights = 1 / np.arange(1, len(_WORDS) + 1)
        self.cumulative = np.cumsum(weights / weights.sum())
        self.first_pages = list(accumulate((size // _CHUNKS_OF_A_PAGE for size in sizes), initial=1))

    def words(self, count: int, least_rank: int = 0) -> list[str]:
        """So many words, as frequent as their ranks say."""
        floor = self.cumulative[least_rank - 1] if least_rank else 0.0
        drawn = self.numbers.uniform(floor, 1.0, size=count)
        return [_WORDS[i] for i in np.minimum(np.searchsorted(self.cumulative, drawn), len(_WORDS) - 1)]

    def vectors(self, count: int) -> NDArray[np.float32]:
        around = self.numbers.integers(0, _CENTRES, size=count)
        noise = self.numbers.normal(size=(count, EMBEDDING_DIMENSIONS)).astype(np.float32)
        return self.centres[around] + np.float32(0.7) * noise


def fill(url: str, corpus: Corpus) -> None:
    """Tenants, pages, texts and chunks, by COPY as the superuser; the vectors' index is made afterwards."""
    with psycopg.connect(url) as connection:
        definition = connection.execute("SELECT pg_get_indexdef('page_embeddings_nearest'::regclass)").fetchone()
        connection.execute("DROP INDEX page_embeddings_nearest")
        for tenant, size in enumerate(corpus.sizes):
            customer = customer_of(tenant)
            connection.execute(
                "INSERT INTO customers (id, name, slug) VALUES (%s, %s, %s)", (customer, f"c{tenant}", f"c{tenant}")
            )
            first = corpus.first_pages[tenant]
            _copy(connection, corpus, customer, range(first, first + size // _CHUNKS_OF_A_PAGE))
        connection.execute("SET maintenance_work_mem = '1GB'")
        assert definition is not None
        connection.execute(definition[0])


def _copy(connection: psycopg.Connection[Any], corpus: Corpus, customer: str, pages: range) -> None:
    words = corpus.words(len(pages) * _CHUNKS_OF_A_PAGE * _WORDS_OF_A_CHUNK)
    chunks = [" ".join(words[at : at + _WORDS_OF_A_CHUNK]) for at in range(0, len(words), _WORDS_OF_A_CHUNK)]
    texts = [chunks[at : at + _CHUNKS_OF_A_PAGE] for at in range(0, len(chunks), _CHUNKS_OF_A_PAGE)]
    cursor = connection.cursor()
    with cursor.copy(
        "COPY scraped_pages (id, customer_id, domain, url, title, lang, http_status) FROM STDIN"
    ) as copy:
        for page, of_page in zip(pages, texts, strict=True):
            domain = f"{'shop' if page % 4 else 'help'}.example"
            title = " ".join(of_page[0].split()[:4])
            copy.write_row((page, customer, domain, f"https://{domain}/{page}", title, "en", 200))
    with cursor.copy(
        "COPY website_content (page_id, customer_id, text, word_count, embedded_models) FROM STDIN"
    ) as copy:
        for page, of_page in zip(pages, texts, strict=True):
            copy.write_row((page, customer, "\n".join(of_page), len(of_page) * _WORDS_OF_A_CHUNK, [EMBEDDED_MODEL]))
    # As pgvector sends it: width, nothing, numbers.
    head = EMBEDDING_DIMENSIONS.to_bytes(2, "big") + b"\0\0"
    with cursor.copy(
        "COPY page_embeddings (page_id, customer_id, model, chunk_index, heading, chunk_text, chunk_hash, embedding) "
        "FROM STDIN (FORMAT binary)"
    ) as copy:
        copy.set_types(["int8", "uuid", "text", "int4", "text", "text", "text", "bytea"])
        for number, vector in enumerate(corpus.vectors(len(chunks)).astype(">f2")):
            page, index = pages[number // _CHUNKS_OF_A_PAGE], number % _CHUNKS_OF_A_PAGE
            copy.write_row((page, UUID(customer), EMBEDDED_MODEL, index, "Heading", chunks[number], f"{page}-{index}",
                            head + vector.tobytes()))  # fmt: skip


class Given:
    """A provider whose vector for a question is already there."""

    name = "given"
    model = EMBEDDED_MODEL
    dimensions = EMBEDDING_DIMENSIONS
    max_tokens = 256
    batch_size = 32

    def __init__(self) -> None:
        self.vector = np.zeros(EMBEDDING_DIMENSIONS, dtype=np.float32)

    def count_tokens(self, text: str) -> int:
        return len(text)

    def embed(
        self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None, keep: Keep | None = None
    ) -> NDArray[np.float32]:
        del stop, keep
        return np.stack([self.vector] * len(texts))


_EXACT = """
    SELECT page_id FROM page_embeddings WHERE customer_id = %s GROUP BY page_id
    ORDER BY min(embedding::halfvec(384) <=> %s::halfvec(384)) + 0.0 LIMIT 10"""
_PASSAGE = """
    SELECT chunk_text, embedding::halfvec(384)::real[] FROM page_embeddings
    WHERE customer_id = %s AND page_id = %s AND chunk_index = %s"""


class Question(NamedTuple):
    """What is asked of one tenant, and the exact nearest ten of its pages."""

    customer: str
    query: str
    vector: NDArray[np.float32]
    nearest: list[int]


def questions(exact: psycopg.Connection[Any], corpus: Corpus, tenants: Sequence[int], count: int) -> list[Question]:
    """So many questions, by turns to these tenants. All are made before one is asked."""
    made: list[Question] = []
    for number in range(count):
        tenant = tenants[number % len(tenants)]
        customer = customer_of(tenant)
        at = int(corpus.numbers.integers(corpus.sizes[tenant] // _CHUNKS_OF_A_PAGE)) + corpus.first_pages[tenant]
        row = exact.execute(_PASSAGE, (customer, at, int(corpus.numbers.integers(_CHUNKS_OF_A_PAGE)))).fetchone()
        assert row is not None
        near = np.array(row[1], dtype=np.float32)
        vector = near + np.float32(0.5) * corpus.numbers.normal(size=near.shape).astype(np.float32)
        own = list(corpus.numbers.choice(row[0].split(), size=3, replace=False))
        query = " ".join(own if number // len(tenants) % 2 else corpus.words(2, _EVERYWHERE))
        nearest = [row[0] for row in exact.execute(_EXACT, (customer, as_vector(vector.tolist())))]
        made.append(Question(customer, query, vector, nearest))
    return made


def measure(engine: Engine, database_time: DatabaseTime, asked: Sequence[Question]) -> dict[str, Any]:
    """Times and recall over these questions."""
    times: list[float] = []
    of_database: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in (*_PARTS.values(), "other")}
    found = few = full = 0
    provider = Given()
    search = Search(engine, provider)
    for question in asked:
        provider.vector = question.vector
        database_time.clear()
        started = time.perf_counter()
        results = search.search(question.query, question.customer)
        times.append((time.perf_counter() - started) * 1_000)
        of_database.append(database_time.total())
        for part, of_part in parts.items():
            of_part.append(database_time.milliseconds[part])
        assert results.mode == "hybrid"
        few += len(results) < min(10, len(question.nearest))
    alone: dict[str, list[float]] = {"nearest": [], "words": []}
    for question in asked:
        near = _nearest(engine, database_time, question)
        alone["nearest"].append(database_time.total())
        _words(engine, database_time, question)
        alone["words"].append(database_time.total())
        right = len(set(question.nearest) & set(near))
        found += right
        full += right == len(question.nearest)
    return {
        "searches": len(asked),
        "search": _percentiles(times),
        "database": _percentiles(of_database),
        **{part: _percentiles(of_part) for part, of_part in parts.items()},
        **{arm: _percentiles(of_arm) for arm, of_arm in alone.items()},
        "client": _percentiles([all_of_it - part for all_of_it, part in zip(times, of_database, strict=True)]),
        "recall_at_10": round(found / sum(len(question.nearest) for question in asked), 4),
        "searches_with_all_ten_nearest": full,
        "searches_with_too_few_results": few,
    }


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(times), 2),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 2),
    }


def _line(figures: dict[str, Any]) -> str:
    """One for people: p50/p95 in milliseconds, then what was found."""
    times = ", ".join(
        f"{name} {value['p50_ms']:.1f}/{value['p95_ms']:.1f}"
        for name, value in figures.items()
        if isinstance(value, dict)
    )
    return (
        f"p50/p95 ms: {times}; recall {figures['recall_at_10']}, "
        f"all ten in {figures['searches_with_all_ten_nearest']} of {figures['searches']}, "
        f"too few in {figures['searches_with_too_few_results']}"
    )


def _warm(engine: Engine, corpus: Corpus, tenants: Sequence[int], count: int) -> None:
    """Ask other questions, so that the server is one that has run for a while: what is read is in its memory."""
    provider = Given()
    search = Search(engine, provider)
    for number, vector in enumerate(corpus.vectors(count)):
        provider.vector = vector
        search.search(" ".join(corpus.words(2, _EVERYWHERE)), customer_of(tenants[number % len(tenants)]))


def _nearest(engine: Engine, database_time: DatabaseTime, question: Question) -> list[int]:
    """The first ten pages of the vectors' arm, as the search has them."""
    with tenant_pipeline(question.customer, engine=engine) as connection:
        few = database.vectors_of(connection, EMBEDDED_MODEL)().few
        database_time.clear()
        near = database.nearest_chunks(
            connection,
            EMBEDDED_MODEL,
            question.vector.tolist(),
            domain=None,
            limit=CHUNK_CANDIDATES,
            one_by_one=few,
        )
    return list(dict.fromkeys(chunk.page_id for chunk in near()))[:10]


def _words(engine: Engine, database_time: DatabaseTime, question: Question) -> None:
    """The arm of words."""
    with tenant_pipeline(question.customer, engine=engine) as connection:
        database.customer_exists(connection)()
        database_time.clear()
        database.pages_with_words(connection, question.query, domain=None, limit=50)


def measured(folder: Path, layout: str, chunks: int, tenants: int, searches: int) -> dict[str, Any]:
    """Fill a database in this folder, or use the one that is there, and search it."""
    corpus = Corpus(sizes_of(chunks, tenants, _LAYOUTS[layout]))
    filled = folder / f"filled-{chunks}-{tenants}"
    settings = Settings(home=folder, database_url=None, owner_database_url=None, redis_url=None)
    figures: dict[str, Any] = {"chunks": sum(corpus.sizes), "tenants": tenants}
    with acquire(settings, redis=False) as endpoints:
        migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
        copied = Copied(endpoints, settings)
        engine = engine_for(endpoints.database_url)
        database_time = DatabaseTime(engine, _PARTS)
        admin = copied.admin(copied.template)
        if not filled.exists():
            started = time.perf_counter()
            fill(admin, corpus)
            while index_waiting_content(engine, 1_000):
                pass
            copied.settle()
            filled.touch()
            figures["fill_seconds"] = round(time.perf_counter() - started, 1)
        corpus.numbers = np.random.default_rng(11)
        with psycopg.connect(admin, autocommit=True) as exact:
            exact.execute("SET jit = off")
            large = len(_LAYOUTS[layout])
            groups = [[number] for number in range(large)] + [list(range(large, tenants))]
            asked = [questions(exact, corpus, group, searches) for group in groups]
        _warm(engine, corpus, [tenant for group in groups for tenant in group[:5]], _WARMING)
        for group, of_group in zip(groups, asked, strict=True):
            name = f"{'a tenant' if len(group) == 1 else f'{len(group)} tenants'} of {corpus.sizes[group[0]]:,}"
            figures[name] = measure(engine, database_time, of_group)
            print(f"{layout}, {name}: {_line(figures[name])}", flush=True)
        dispose_engines()
    return figures


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--layout", choices=_LAYOUTS, action="append", help="only this one")
    parser.add_argument("--keep", type=Path, help="folder for the filled databases, to be used again")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    speeds = [machine_speed()]
    print(f"the machine: {speeds[0]}", flush=True)
    for layout in arguments.layout or _LAYOUTS:
        with ExitStack() as stack:
            folder = arguments.keep or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True))
            )
            (folder / layout).mkdir(parents=True, exist_ok=True)
            report[layout] = measured(
                folder / layout, layout, arguments.chunks, arguments.tenants, arguments.searches
            )
            if "fill_seconds" in report[layout]:
                print(f"{layout}: filled in {report[layout]['fill_seconds']} s")
    speeds.append(machine_speed())
    print(f"the machine: {speeds[1]}")
    worst = max(
        value["database"]["p95_ms"]
        for of_one in report.values()
        for value in of_one.values()
        if isinstance(value, dict)
    )
    print(f"worst p95 of the database's part {worst} ms; wanted under {_WANTED_MS} ms")
    report["machine"] = [speed._asdict() for speed in speeds]
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
