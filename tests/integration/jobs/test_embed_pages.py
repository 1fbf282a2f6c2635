"""A crawl with `embed`: pages of the job whose text changed, at the end, and never at the pages' cost."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from resources.content.hybrid_search import Search
from resources.content.search_cache import forget_searches, result_key
from resources.postgres.embeddings import prepare_model
from sensors.run_failures import alert_for, read_failure
from tests.acceptance.program import Program, finish, wait_until
from tests.integration.jobs.conftest import failures, metadata
from tests.support.embedding_server import EmbeddingServer, serve_embeddings
from tests.support.site import Page, html

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import dagster as dg

    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

MODEL = "test-48"


@pytest.fixture
def server(database: Database, defs: dg.Definitions, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddingServer]:
    """An endpoint that is the configured provider of this process, and a database that is ready for its model."""
    with serve_embeddings() as served:
        for name, value in served.environment(MODEL, batch=5, concurrency=1, max_tries=1).items():
            monkeypatch.setenv(name, value)
        prepare_model(database.owner_url, MODEL, served.dimensions)
        yield served


def serve_pages(site: Site, count: int, changed: frozenset[int] = frozenset()) -> None:
    """A front page and so many others, of a few paragraphs each; the changed ones have another last paragraph."""
    numbers = range(count)
    site.add("/", [f"/{n}" for n in numbers], title="Front")
    for n in numbers:
        said = [f"Paragraph {part} of page {n}. " + f"It says thing {part} of page {n}. " * 30 for part in range(3)]
        if n in changed:
            said[-1] += "Now it says something new."
        body = "".join(f"<h2>Part {part} of {n}</h2><p>{one}</p>" for part, one in enumerate(said))
        site.pages[f"/{n}"] = Page(html(f"Page {n}", body=body))


def crawl(run_job: RunJob, site: Site, job_id: str, **config: Any) -> dg.ExecuteInProcessResult:
    given = {"urls": [site.url], "customer": "acme", "job_id": job_id, "allow_private": True, "embed": True}
    return run_job("crawl", plan_crawl={**given, **config})


def vectors(database: Database) -> int:
    found = database.value("SELECT count(*) FROM page_embeddings WHERE model = :m", m=MODEL)
    assert isinstance(found, int)
    return found


def status(database: Database, job_id: str) -> object:
    return database.value("SELECT status FROM scrape_jobs WHERE job_id = :j", j=job_id)


@pytest.mark.parametrize("job_type", ["full_crawl", "incremental"])
def test_a_second_crawl_where_one_page_in_a_hundred_changed_embeds_only_its_changed_pieces(
    job_type: str, database: Database, site: Site, run_job: RunJob, server: EmbeddingServer, ephemeral: Any
) -> None:
    serve_pages(site, 100)
    first = crawl(run_job, site, "first")
    assert first.success, failures(first)
    said = metadata(first, "embed_pages")
    assert (said["model"], said["dimensions"], said["pages"], said["left"]) == (MODEL, 48, 101, 0)
    assert said["embedded"] == said["chunks"] == len(server.texts) == vectors(database)
    asked = len(server.texts)
    serve_pages(site, 100, changed=frozenset({42}))
    second = crawl(run_job, site, "second", job_type=job_type)
    assert second.success, failures(second)
    new = server.texts[asked:]
    assert 1 <= len(new) <= 2, new
    assert all("page 42" in text for text in new)
    assert any("something new" in text for text in new)
    again = metadata(second, "embed_pages")
    assert (again["pages"], again["embedded"], again["left"]) == (1, len(new), 0)
    materialised = ephemeral.get_latest_materialization_event(_key("page_embeddings"))
    assert materialised.asset_materialization.metadata["dagster/row_count"].value == vectors(database)


def _key(name: str) -> dg.AssetKey:
    import dagster

    return dagster.AssetKey(name)


def test_without_embed_the_op_is_skipped_and_a_job_that_is_named_again_with_it_does_what_is_missing(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer
) -> None:
    serve_pages(site, 3)
    plain = crawl(run_job, site, "plain", embed=False)
    assert plain.success
    assert [e.step_key for e in plain.all_events if e.is_step_skipped] == ["embed_pages"]
    assert server.asked == []
    before = dict(site.requests)
    assert crawl(run_job, site, "plain").success
    assert dict(site.requests) == before
    assert vectors(database) == len(server.texts) > 0


def test_only_the_jobs_own_pages_are_embedded(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer
) -> None:
    serve_pages(site, 3)
    assert crawl(run_job, site, "other", embed=False, urls=[f"{site.url}1"], job_type="single_page").success
    assert crawl(run_job, site, "mine", urls=[f"{site.url}2"], job_type="single_page").success
    assert server.texts
    assert all("page 2" in text.lower() for text in server.texts)


def test_an_endpoint_that_is_away_fails_the_op_and_costs_no_page(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer, ephemeral: dg.DagsterInstance
) -> None:
    serve_pages(site, 8)
    # Trouble after the first batches: what they brought stays.
    server.answer = lambda number, _: (503, {}, {}) if number >= 3 else None
    result = crawl(run_job, site, "away")
    assert not result.success
    (said,) = failures(result).items()
    assert said[0] == "embed_pages"
    assert "answered 503" in said[1]
    assert "its pages are stored" in said[1]
    assert "omniops embed --missing" in said[1]
    assert status(database, "away") == "completed"
    run = ephemeral.get_run_by_id(result.run_id)
    assert run is not None
    alert = alert_for(read_failure(ephemeral, database.engine, run, datetime.now(UTC)))
    assert (alert.severity, "omniops embed --missing" in (alert.what_to_do or "")) == ("warning", True)
    assert database.value("SELECT count(*) FROM website_content") == 9
    stored = vectors(database)
    assert stored > 0
    server.answer = lambda *_: None
    asked = len(server.texts)
    requests = dict(site.requests)
    again = crawl(run_job, site, "away")
    assert again.success, failures(again)
    assert dict(site.requests) == requests
    assert vectors(database) == stored + len(server.texts) - asked


def test_a_run_that_may_send_no_more_leaves_the_rest_and_is_no_failure(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_pages(site, 10)
    monkeypatch.setenv("OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS", "3000")
    result = crawl(run_job, site, "budget")
    assert result.success, failures(result)
    said = metadata(result, "embed_pages")
    assert said["left"] > 0
    assert "3,000 tokens" in said["stopped"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OMNIOPS_EMBEDDINGS": "none"}, "OMNIOPS_EMBEDDINGS is none"),
        ({"OMNIOPS_EMBEDDINGS_MODEL": "never-prepared"}, "omniops embed --prepare"),
        ({"OMNIOPS_EMBEDDINGS_DIMENSIONS": "many"}, "whole number"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_anything_is_fetched(
    environment: dict[str, str], words: str, database: Database, site: Site, run_job: RunJob, server: EmbeddingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    serve_pages(site, 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = crawl(run_job, site, "refused")
    assert f"embed is on, but {failures(result)['plan_crawl'].split('but ', 1)[1]}" == failures(result)["plan_crawl"]
    assert words in failures(result)["plan_crawl"]
    assert sum(site.requests.values()) == 0
    assert status(database, "refused") is None


def test_a_queued_job_says_that_its_pages_are_embedded(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer
) -> None:
    from tests.integration.jobs.test_queued_crawl import queue

    serve_pages(site, 2)
    queue(database, "q", {"urls": [site.url], "embed": True})
    given = {"urls": [site.url], "customer": "acme", "job_id": "q", "allow_private": True}
    result = run_job("crawl", plan_crawl=given)
    assert result.success, failures(result)
    assert metadata(result, "embed_pages")["pages"] == 3


# --- the cache of searches --------------------------------------------------------------------------------------


def test_a_crawl_that_changes_pages_makes_cached_searches_old_and_one_that_does_not_keeps_them(
    database: Database, site: Site, run_job: RunJob, server: EmbeddingServer
) -> None:
    serve_pages(site, 4)
    assert crawl(run_job, site, "one", embed=False).success
    customer = str(database.value("SELECT id FROM customers"))
    cache = database.manager.cache
    assert cache is not None
    search = Search(database.engine, cache=cache)
    assert len(search.search("something new", customer)) == 0
    assert len(search.search("thing", customer)) == 4
    key = result_key(cache, customer, "x")
    assert crawl(run_job, site, "same", embed=False, job_type="incremental").success
    assert result_key(cache, customer, "x") == key, "nothing changed, and what was found is still right"
    serve_pages(site, 4, changed=frozenset({2}))
    assert crawl(run_job, site, "changed", embed=False, job_type="incremental").success
    assert result_key(cache, customer, "x") != key
    assert [found.url for found in search.search("something new", customer)] == [f"{site.url}2"]
    # A page that is gone is found no more.
    site.pages["/1"] = Page(b"", 410)
    assert len(search.search("thing", customer)) == 4
    assert crawl(run_job, site, "gone", embed=False, job_type="incremental").success
    assert len(search.search("thing", customer)) == 3
    forget_searches(cache, customer)


# --- processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def program(database: Database, tmp_path: Path, server: EmbeddingServer) -> Iterator[Program]:
    environment = {**database.environment(tmp_path / "home"), **server.environment(MODEL, batch=5, concurrency=1)}
    made = Program({**environment, "OMNIOPS_EMBEDDINGS_MAX_TRIES": "1", "OMNIOPS_EMBEDDINGS_TIMEOUT_SECONDS": "600"})
    yield made
    made.close()


def test_killed_while_it_embeds_the_same_job_does_the_rest(
    database: Database, site: Site, server: EmbeddingServer, program: Program
) -> None:
    serve_pages(site, 12)
    server.hold_after = 1
    order = ("crawl", site.url, "--allow-private", "--embed", "--job-id", "killed", "--json")
    process = program.start(*order)
    wait_until(lambda: vectors(database) > 0)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    server.hold_after = None
    stored = vectors(database)
    assert status(database, "killed") == "completed"
    requests, asked = dict(site.requests), len(server.texts)
    program.run("crawl", "--job-id", "killed", "--json").expect(0)
    assert dict(site.requests) == requests
    assert len(server.texts) - asked == vectors(database) - stored > 0
    assert database.value("SELECT count(*) FROM website_content WHERE embedded_models = '{}'") == 0
    # Complete in all: there is nothing more to do.
    assert "already" in program.run("crawl", "--job-id", "killed").expect(0).err


def test_interrupted_while_it_embeds_it_ends_at_once_and_says_how_to_go_on(
    database: Database, site: Site, server: EmbeddingServer, program: Program
) -> None:
    serve_pages(site, 12)
    # Longer than anybody waits here: who waited for the answer would be killed.
    server.hold_after = 1
    process = program.start("crawl", site.url, "--allow-private", "--embed", "--job-id", "stopped")
    wait_until(lambda: vectors(database) > 0 and len(server.asked) > 1)
    process.send_signal(signal.SIGINT)
    ended = finish(process).expect(1)
    assert "omniops crawl --job-id stopped" in ended.err
    assert status(database, "stopped") == "completed"
    server.hold_after = None
    program.run("embed", "--missing", "--json").expect(0)
    assert database.value("SELECT count(*) FROM website_content WHERE embedded_models = '{}'") == 0


def test_several_workers_pages_are_embedded_once(
    database: Database, site: Site, server: EmbeddingServer, program: Program
) -> None:
    serve_pages(site, 20)
    program.run("crawl", site.url, "--allow-private", "--embed", "--job-id", "shards", "--shards", "2").expect(0)
    assert status(database, "shards") == "completed"
    assert vectors(database) == len(server.texts) == len(set(server.texts))
    assert database.value("SELECT count(*) FROM website_content WHERE embedded_models = '{}'") == 0
