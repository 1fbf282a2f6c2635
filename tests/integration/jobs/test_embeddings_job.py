"""The asset `page_embeddings` and its job: what is missing, of all customers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from resources.postgres.embeddings import prepare_model
from tests.integration.jobs.conftest import failures
from tests.support.embedding_server import EmbeddingServer, serve_embeddings
from tests.support.pages import SHOP, add_customer, add_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

MODEL = "test-48"


@pytest.fixture
def server(database: Database, defs: dg.Definitions, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    with serve_embeddings() as served:
        for name, value in served.environment(MODEL, batch=5, concurrency=1, max_tries=1).items():
            monkeypatch.setenv(name, value)
        prepare_model(database.owner_url, MODEL, served.dimensions)
        yield served


def shown(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("page_embeddings")
    return {name: value.value for name, value in event.metadata.items()}


def test_what_is_missing_of_all_customers_is_embedded_and_said_by_customer(
    database: Database, run_job: RunJob, server: EmbeddingServer
) -> None:
    for slug in ("acme", "bolt"):
        add_pages(database, add_customer(database, slug), SHOP)
    result = run_job("embeddings")
    assert result.success, failures(result)
    said = shown(result)
    assert (said["model"], said["dimensions"], said["pages"], said["pages waiting"]) == (MODEL, 48, 2 * len(SHOP), 0)
    assert said["dagster/row_count"] == len(server.texts) == said["chunks embedded"]
    assert "acme" in said["by customer"]
    assert "bolt" in said["by customer"]
    assert "svg" in said["pieces"]
    assert said["seconds"] >= 0
    asked = len(server.texts)
    again = shown(run_job("embeddings"))
    assert (again["pages"], len(server.texts), again["dagster/row_count"]) == (0, asked, asked)


def test_one_customer_and_a_number_of_pages(database: Database, run_job: RunJob, server: EmbeddingServer) -> None:
    for slug in ("acme", "bolt"):
        add_pages(database, add_customer(database, slug), SHOP)
    said = shown(run_job("embeddings", page_embeddings={"customer": "bolt", "max_pages": 2}))
    assert (said["pages"], said["pages waiting"]) == (2, 2 * len(SHOP) - 2)
    assert "limit of 2 pages" in said["stopped"]
    slugs = database.rows("SELECT DISTINCT slug FROM page_embeddings AS e JOIN customers AS c ON c.id = customer_id")
    assert [row["slug"] for row in slugs] == ["bolt"]


def test_trouble_in_the_middle_fails_the_run_and_the_next_one_goes_on(
    database: Database, run_job: RunJob, server: EmbeddingServer
) -> None:
    add_pages(database, add_customer(database, "acme"), {f"/{n}": f"# {n}\n\nPage {n} says {n}." for n in range(30)})
    server.answer = lambda number, _: (500, {}, {}) if number >= 2 else None
    result = run_job("embeddings")
    assert "answered 500" in failures(result)["page_embeddings"]
    assert "What is embedded is kept" in failures(result)["page_embeddings"]
    stored = database.value("SELECT count(*) FROM page_embeddings")
    assert stored == 10
    server.answer = lambda *_: None
    assert shown(run_job("embeddings"))["pages"] == 20


@pytest.mark.parametrize(
    ("environment", "config", "words"),
    [
        ({}, {"customer": "nobody"}, "no customer 'nobody'"),
        ({}, {"customer": "No Slug"}, "No Slug"),
        ({}, {"max_pages": -1}, "max_pages is -1"),
        ({"OMNIOPS_EMBEDDINGS_MODEL": "never-prepared"}, {}, "omniops embed --prepare"),
        ({"OMNIOPS_EMBEDDINGS": "word2vec"}, {}, "must be one of"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    environment: dict[str, str], config: dict[str, Any], words: str, database: Database, run_job: RunJob,
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in failures(run_job("embeddings", page_embeddings=config))["page_embeddings"]
    assert server.asked == []
    assert database.value("SELECT count(*) FROM omniops_meta.embedding_models") == 0


def test_without_a_model_there_is_nothing_to_do_and_no_failure_every_night(
    database: Database, run_job: RunJob, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIOPS_EMBEDDINGS", "none")
    add_pages(database, add_customer(database, "acme"), SHOP)
    said = shown(run_job("embeddings"))
    assert (said["model"], said["pages"]) == ("none", 0)


def test_lineage_leads_from_what_pages_say_to_their_vectors(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    key = dg.AssetKey("page_embeddings")
    assert {parent.to_user_string() for parent in graph.get(key).parent_keys} == {"scraped_pages", "website_content"}
    assert graph.get(key).is_materializable
