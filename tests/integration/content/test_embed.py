"""Embedding what is missing: only changed pieces, resumed after a kill, models side by side, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from resources.content.chunks import chunk_page
from resources.content.embed import embed_missing
from resources.content.embeddings import EmbeddingError
from resources.content.embeddings.openai_compatible import OpenAICompatible
from resources.postgres import embeddings as store
from resources.postgres.embeddings import ModelRefused, prepare_model
from resources.postgres.migrate import verify_database
from resources.settings import EmbeddingSettings
from tests.support.embedding_server import EmbeddingServer, serve_embeddings
from tests.support.pages import SHOP, add_customer, add_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from tests.support.databases import Database

MODEL = "test-48"
LONG = "\n\n".join(f"Paragraph {n} tells of thing {n} and of nothing else, in words enough." for n in range(120))


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as served:
        yield served


def provider_of(server: EmbeddingServer, model: str = MODEL, **settings: Any) -> OpenAICompatible:
    given = {"dimensions": server.dimensions, "allow_private": True, "batch": 8, "concurrency": 2, **settings}
    return OpenAICompatible(EmbeddingSettings(provider="openai", url=server.url, model=model, **given))


@pytest.fixture
def provider(server: EmbeddingServer, database: Database) -> OpenAICompatible:
    prepare_model(database.owner_url, MODEL, server.dimensions)
    return provider_of(server)


@pytest.fixture
def shop(database: Database) -> UUID:
    customer = add_customer(database, "shop")
    add_pages(database, customer, SHOP)
    return customer


def rows_of(database: Database) -> list[dict[str, Any]]:
    return database.rows("SELECT * FROM page_embeddings ORDER BY page_id, model, chunk_index")


def test_a_second_run_embeds_nothing(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer, shop: UUID
) -> None:
    done = embed_missing(database.engine, provider)
    assert done.pages == len(SHOP)
    assert done.embedded == done.chunks == len(server.texts) == len(rows_of(database))
    assert done.stopped is None
    again = embed_missing(database.engine, provider)
    assert (again.pages, again.embedded, len(server.texts)) == (0, 0, done.embedded)
    assert {row["customer_id"] for row in rows_of(database)} == {shop}


def test_only_pieces_whose_text_changed_are_embedded(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer, shop: UUID
) -> None:
    page = "# Guide\n\n" + "\n\n".join(f"## Part {n}\n\n{LONG[n * 200 : n * 200 + 900]}" for n in range(8))
    add_pages(database, shop, {"/guide": page})
    embed_missing(database.engine, provider)
    before = {row["chunk_hash"]: row["embedding"] for row in rows_of(database)}
    asked = len(server.texts)
    # A new part at the front moves all others; one of them is another one.
    changed = page.replace(
        "# Guide\n", "# Guide\n\n## News\n\n" + "Fresh words of some length. " * 30 + "\n"
    ).replace("## Part 5\n", "## Part 5\n\nA sentence that was not there.\n")
    add_pages(database, shop, {"/guide": changed})
    done = embed_missing(database.engine, provider)
    new = server.texts[asked:]
    assert done.pages == 1
    assert 2 <= len(new) == done.embedded <= 4 < done.chunks
    assert all("Fresh words" in text or "not there" in text or "Part 5" in text for text in new)
    after = rows_of(database)
    assert all(row["embedding"] == before[row["chunk_hash"]] for row in after if row["chunk_hash"] in before)
    indexes = [row["chunk_index"] for row in after if "Guide" in str(row["heading"])]
    assert indexes == list(range(len(indexes)))


def test_one_page_in_a_hundred_changed_costs_its_pieces_alone(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "large")
    add_pages(database, customer, {f"/{n}": f"# Page {n}\n\nIt says {n}." for n in range(100)})
    embed_missing(database.engine, provider)
    asked = len(server.texts)
    add_pages(database, customer, {f"/{n}": f"# Page {n}\n\nIt says {n}." for n in range(100)})
    add_pages(database, customer, {"/7": "# Page 7\n\nIt says something else."})
    done = embed_missing(database.engine, provider)
    assert (done.pages, done.embedded, server.texts[asked:]) == (1, 1, ["Page 7\n\nIt says something else."])


def test_pages_that_shrank_or_went_leave_no_vectors(
    database: Database, provider: OpenAICompatible, shop: UUID
) -> None:
    add_pages(database, shop, {"/long": f"# Long\n\n{LONG}"})
    embed_missing(database.engine, provider)
    assert len([row for row in rows_of(database) if row["heading"] == "Long"]) > 3
    add_pages(database, shop, {"/long": "# Long\n\nShort now."})
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET removed_at = now() WHERE url LIKE '%/returns'"))
    done = embed_missing(database.engine, provider)
    assert done.removed == 1
    assert [row["chunk_text"] for row in rows_of(database) if row["heading"] == "Long"] == ["Short now."]
    assert not [row for row in rows_of(database) if "Returns" in str(row["heading"])]
    # It comes back, and so do its vectors.
    add_pages(database, shop, {"/returns": SHOP["/returns"]})
    assert embed_missing(database.engine, provider).pages == 1
    assert [row for row in rows_of(database) if "Returns" in str(row["heading"])]


def test_a_title_alone_that_changed_is_embedded_again(
    database: Database, provider: OpenAICompatible, shop: UUID
) -> None:
    embed_missing(database.engine, provider)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET title = 'Money back' WHERE url LIKE '%/returns'"))
    assert embed_missing(database.engine, provider).pages == 1


def test_a_page_that_changed_while_it_was_embedded_waits_for_its_next_turn(
    database: Database, server: EmbeddingServer, provider: OpenAICompatible, shop: UUID
) -> None:
    def change(number: int, texts: list[str]) -> None:
        if number == 0:
            add_pages(database, shop, {"/shipping": "# Shipping\n\nBy boat."}, index=False)

    server.answer = change
    done = embed_missing(database.engine, provider)
    assert done.pages == len(SHOP) - 1
    assert embed_missing(database.engine, provider).pages == 1
    assert "By boat." in [row["chunk_text"] for row in rows_of(database)]


def test_a_limit_and_one_customer(database: Database, provider: OpenAICompatible, shop: UUID) -> None:
    other = add_customer(database, "other")
    add_pages(database, other, SHOP)
    done = embed_missing(database.engine, provider, customer_id=shop, limit=3)
    assert done.pages == 3
    assert done.stopped is not None
    assert "limit" in done.stopped
    embed_missing(database.engine, provider, customer_id=shop)
    assert {row["customer_id"] for row in rows_of(database)} == {shop}
    with database.engine.begin() as connection:
        assert store.count_waiting(connection, MODEL) == len(SHOP)
        assert store.count_waiting(connection, MODEL, customer_id=shop) == 0


def test_stopped_and_continued(
    database: Database, server: EmbeddingServer, provider: OpenAICompatible, shop: UUID
) -> None:
    add_pages(database, shop, {f"/{n}": f"# {n}\n\n{LONG}" for n in range(6)})
    done = embed_missing(database.engine, provider, stop=lambda: len(server.asked) >= 3)
    assert done.stopped == "asked to stop"
    with database.engine.begin() as connection:
        waiting = store.count_waiting(connection, MODEL)
    assert waiting > 0
    assert embed_missing(database.engine, provider).pages == waiting


def test_another_program_at_the_same_customer_is_not_disturbed(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer, shop: UUID
) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert store.try_lock(connection, MODEL, shop)
        done = embed_missing(database.engine, provider)
        assert (done.pages, done.skipped_customers, server.asked) == (0, 1, [])
        store.unlock(connection, MODEL, shop)
    assert embed_missing(database.engine, provider).pages == len(SHOP)


# --- vectors that were paid for ---------------------------------------------------------------------------------


def pieces_of(provider: OpenAICompatible, markdown: str) -> int:
    return len(
        chunk_page(
            title="Long", markdown=markdown, text="", max_tokens=provider.max_tokens,
            count_tokens=provider.count_tokens,
        ).chunks
    )  # fmt: skip


def waiting_vectors(database: Database) -> int:
    return int(str(database.value("SELECT count(*) FROM omniops_meta.waiting_vectors")))


def small(server: EmbeddingServer, **settings: Any) -> OpenAICompatible:
    """A run that may send two pieces or three."""
    given = {"max_tokens": 64, "max_run_tokens": 150, "batch": 8, "concurrency": 2, **settings}
    return provider_of(server, **given)


def test_a_page_that_is_larger_than_a_runs_budget_is_embedded_by_several_and_no_piece_is_sent_twice(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "small")
    page = f"# Long\n\n{LONG[:2500]}"
    add_pages(database, customer, {"/long": page})
    pieces = pieces_of(small(server), page)
    runs, sent = 0, -1
    while True:
        runs += 1
        done = embed_missing(database.engine, small(server))
        assert len(server.texts) > sent
        sent = len(server.texts)
        if done.stopped is None:
            break
        assert done.bounded
        assert "may send 150 tokens" in done.stopped
        assert "MAX_RUN_TOKENS" in done.stopped
        assert "of one page a part is embedded and kept" in done.stopped
        assert (done.pages, done.unfinished) == (0, 1)
        # Nothing half is found.
        assert rows_of(database) == []
        assert waiting_vectors(database) == sent
    assert runs > 3
    assert len(server.texts) == len(set(server.texts)) == pieces
    assert len(rows_of(database)) == pieces
    assert waiting_vectors(database) == 0
    assert [row["embedding"] for row in rows_of(database)] == vectors_of(database, server)


def vectors_of(database: Database, server: EmbeddingServer) -> list[object]:
    """What the same texts have when they are embedded at once."""
    with database.engine.begin() as connection:
        while store.forget_model(connection, MODEL):
            pass
    embed_missing(database.engine, small(server, max_run_tokens=100_000))
    return [row["embedding"] for row in rows_of(database)]


def test_of_several_pages_those_that_are_whole_are_stored_when_the_budget_ends(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "several")
    add_pages(database, customer, {f"/{n}": f"# Page {n}\n\n{LONG[:150]}" for n in range(6)})
    done = embed_missing(database.engine, small(server))
    assert 0 < done.pages < 6
    assert done.pages == len(server.texts) == len(rows_of(database))
    assert (done.unfinished, waiting_vectors(database)) == (0, 0)
    for _ in range(6):
        done = embed_missing(database.engine, small(server))
    assert done.stopped is None
    assert len(server.texts) == len(set(server.texts)) == 6


@pytest.mark.parametrize("end", ["error", "stop"])
def test_what_came_before_an_error_or_a_stop_is_not_paid_for_again(
    end: str, database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "cut-off")
    add_pages(database, customer, {"/long": f"# Long\n\n{LONG}"})
    bounded = {"max_run_tokens": 100_000, "batch": 2, "concurrency": 1, "max_tries": 1}
    if end == "error":
        server.answer = lambda number, _: (500, {}, {}) if number == 3 else None
    done = embed_missing(
        database.engine, small(server, **bounded), stop=lambda: end == "stop" and len(server.asked) >= 4
    )
    assert done.stopped is not None
    assert (done.pages, done.unfinished, done.bounded) == (0, 1, False)
    came = len(server.texts) - (2 if end == "error" else 0)
    assert done.embedded == came == waiting_vectors(database)
    refused = server.texts[came:]
    server.answer = lambda *_: None
    assert embed_missing(database.engine, small(server, **bounded)).pages == 1
    again = [text for text in set(server.texts) if server.texts.count(text) > 1]
    assert sorted(again) == sorted(refused)
    assert waiting_vectors(database) == 0


def test_a_page_that_changes_between_two_runs_pays_for_its_new_pieces_alone(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "changing")
    page = "# Guide\n\n" + "\n\n".join(f"## Part {n}\n\n{LONG[n * 200 : n * 200 + 180]}" for n in range(8))
    add_pages(database, customer, {"/guide": page})
    embed_missing(database.engine, small(server))
    begun = len(server.texts)
    assert 0 < begun == waiting_vectors(database)
    add_pages(database, customer, {"/guide": page.replace("## Part 7\n", "## Part 7\n\nNew words.\n")})
    embed_missing(database.engine, small(server, max_run_tokens=100_000))
    assert len(server.texts) == len(set(server.texts)) == len(rows_of(database))
    assert waiting_vectors(database) == 0


def test_vectors_that_wait_go_with_their_page_their_model_and_their_customer(
    database: Database, provider: OpenAICompatible, server: EmbeddingServer
) -> None:
    customer = add_customer(database, "gone")

    def begin() -> None:
        add_pages(database, customer, {"/long": f"# Long\n\n{LONG}"})
        embed_missing(database.engine, small(server))
        assert waiting_vectors(database) > 0

    begin()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE scraped_pages SET removed_at = now()"))
    embed_missing(database.engine, small(server))
    assert waiting_vectors(database) == 0
    begin()
    with database.engine.begin() as connection:
        assert store.forget_model(connection, MODEL) == 0
    assert waiting_vectors(database) == 0
    begin()
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM customers"))
    assert waiting_vectors(database) == 0


# --- kills -----------------------------------------------------------------------------------------------------

_PROGRAM = """
from resources.content.embed import embed_missing
from resources.content.embeddings import provider_from_settings
from resources import stack
embed_missing(stack.database_engine(), provider_from_settings())
"""


@pytest.mark.parametrize(
    "pages",
    [{f"/{n}": f"# Page {n}\n\nIt says {n} and nothing else." for n in range(60)}, {"/long": f"# Long\n\n{LONG}"}],
    ids=["many pages", "one page"],
)
def test_killed_in_the_middle_it_goes_on_where_it_was(
    pages: dict[str, str], database: Database, provider: OpenAICompatible, server: EmbeddingServer, tmp_path: Path
) -> None:
    customer = add_customer(database, "killed")
    add_pages(database, customer, pages)
    after = small(server, max_run_tokens=100_000)
    total = sum(pieces_of(after, page) for page in pages.values())
    server.hold_after = 3
    environment = {
        **database.environment(tmp_path),
        "OMNIOPS_EMBEDDINGS": "openai",
        "OMNIOPS_EMBEDDINGS_URL": server.url,
        "OMNIOPS_EMBEDDINGS_MODEL": MODEL,
        "OMNIOPS_EMBEDDINGS_DIMENSIONS": str(server.dimensions),
        "OMNIOPS_EMBEDDINGS_ALLOW_PRIVATE": "1",
        "OMNIOPS_EMBEDDINGS_BATCH": "5",
        "OMNIOPS_EMBEDDINGS_CONCURRENCY": "1",
        "OMNIOPS_EMBEDDINGS_MAX_TOKENS": "64",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], env=environment)
    try:
        while len(server.asked) <= 3 or len(rows_of(database)) + waiting_vectors(database) < 10:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    server.hold_after = None
    kept = len(rows_of(database)) + waiting_vectors(database)
    assert 10 <= kept < total
    done = embed_missing(database.engine, after, wait=True)
    assert done.embedded == total - kept
    assert len({(row["page_id"], row["chunk_index"]) for row in rows_of(database)}) == total


# --- models ----------------------------------------------------------------------------------------------------


def test_two_models_stand_side_by_side_and_one_is_forgotten(
    database: Database, server: EmbeddingServer, provider: OpenAICompatible, shop: UUID
) -> None:
    embed_missing(database.engine, provider)
    with serve_embeddings(dimensions=96) as wider:
        prepare_model(database.owner_url, "test-96", 96)
        other = provider_of(wider, "test-96")
        done = embed_missing(database.engine, other)
        assert done.pages == len(SHOP)
        assert done.embedded == len(wider.texts)
    by_model = database.rows(
        "SELECT model, vector_dims(embedding) AS width, count(*) AS n FROM page_embeddings GROUP BY 1, 2 ORDER BY 1"
    )
    assert [(row["model"], row["width"]) for row in by_model] == [(MODEL, 48), ("test-96", 96)]
    assert by_model[0]["n"] == by_model[1]["n"]
    with database.engine.begin() as connection:
        assert [(m.model, m.dimensions, m.indexed) for m in store.list_models(connection)] == [
            (MODEL, 48, True),
            ("test-96", 96, True),
        ]
        while store.forget_model(connection, MODEL):
            pass
        assert [m.model for m in store.list_models(connection)] == ["test-96"]
        assert store.count_waiting(connection, MODEL) == len(SHOP)
        assert store.count_waiting(connection, "test-96") == 0
    # Its indexes are nobody's surprise.
    assert verify_database(database.owner_url, runtime_url=database.url) == []


def test_another_width_is_refused_before_anything_is_written(
    database: Database, server: EmbeddingServer, provider: OpenAICompatible, shop: UUID
) -> None:
    embed_missing(database.engine, provider)
    before = rows_of(database)
    with pytest.raises(ModelRefused, match="48 dimensions in this database, not of 96"):
        embed_missing(database.engine, provider_of(server, dimensions=96))
    assert rows_of(database) == before
    # What the endpoint gives is checked too.
    add_pages(database, shop, {"/new": "# New\n\nNew."})
    server.dimensions = 96
    with pytest.raises(EmbeddingError, match=r"96 dimensions .*DIMENSIONS is 48"):
        embed_missing(database.engine, provider)
    assert rows_of(database) == before


def test_a_model_without_an_index_is_refused_with_what_to_do(
    database: Database, server: EmbeddingServer, shop: UUID
) -> None:
    with pytest.raises(ModelRefused, match="omniops embed --prepare"):
        embed_missing(database.engine, provider_of(server))
    assert not server.asked
    assert set(prepare_model(database.owner_url, MODEL, 48)) == set(store.index_names(MODEL))
    assert prepare_model(database.owner_url, MODEL, 48) == []


def test_what_is_missing_is_found_by_its_index(database: Database, provider: OpenAICompatible, shop: UUID) -> None:
    embed_missing(database.engine, provider)
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        seen: list[str] = []
        event.listen(connection, "before_cursor_execute", lambda *a: seen.append(a[2]))
        store.next_customer(connection, MODEL, None)
        statement = re.sub(r"%\(\w+\)s", "1", seen[-1])
        plan = "\n".join(str(row[0]) for row in connection.exec_driver_sql(f"EXPLAIN {statement}"))
    assert store.index_names(MODEL)[1] in plan


def test_erasing_a_customer_leaves_nothing(database: Database, provider: OpenAICompatible, shop: UUID) -> None:
    embed_missing(database.engine, provider)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM customers WHERE id = :id"), {"id": shop})
    assert rows_of(database) == []
    assert database.value("SELECT count(*) FROM omniops_meta.search_configurations") == 0


def test_pieces_fit_the_models_length(provider: OpenAICompatible) -> None:
    page = (
        f"# {'Very long heading ' * 60}\n\n## Below\n\n{LONG}\n\n{'nospaces' * 4000}\n\n{'日本語の文章です。' * 300}"
    )
    chunked = chunk_page(
        title="T", markdown=page, text="", max_tokens=provider.max_tokens, count_tokens=provider.count_tokens
    )
    assert max(provider.count_tokens(chunk.model_input) for chunk in chunked.chunks) <= provider.max_tokens
