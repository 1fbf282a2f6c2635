"""Where a person meets the ephemeral tier: Dagster's resource and run page, `omniops doctor`, `omniops env`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from click.testing import CliRunner

from omniops_pipelines.cli import cli
from omniops_pipelines.definitions import build_defs
from omniops_pipelines.health import _redis
from resources import stack
from resources.postgres.resource import PostgresResource
from resources.redis import RedisResource, get_async_redis_client_with_fallback, get_redis_client_with_fallback
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.site import Site
    from tests.support.valkey import Valkey


@pytest.fixture(autouse=True)
def environment(valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that name this test's server, and no client of another test's."""
    monkeypatch.setenv("OMNIOPS_HOME", str(tmp_path))
    monkeypatch.setenv("OMNIOPS_REDIS_URL", valkey.url)
    for name in ("OMNIOPS_SEARCH_CACHE_SECONDS", "OMNIOPS_RATE_LIMIT_SHARES"):
        monkeypatch.delenv(name, raising=False)
    yield
    stack.release()


def test_all_clients_of_a_process_share_one_state(valkey: Valkey) -> None:
    client, there = get_redis_client_with_fallback(), get_async_redis_client_with_fallback()
    assert get_redis_client_with_fallback() is client
    assert there.fallback is client.fallback
    client.set("cron:x", b"1")
    valkey.kill()
    client.set("cron:x", b"2")

    async def read() -> bytes | None:
        return await there.get("cron:x")

    assert asyncio.run(read()) == b"2"
    assert there.snapshot().outages == 1


def test_an_embedded_server_that_cannot_start_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = tmp_path / "file"
    home.write_text("in the way")
    client = get_redis_client_with_fallback(Settings(home, None, None, None))
    assert client.set("cron:x", b"1")
    assert client.get("cron:x") == b"1"
    assert client.snapshot().state in ("open", "half-open")
    assert "the embedded Valkey is not there" in caplog.text


def test_the_resource_is_the_configured_redis_or_the_one_that_it_names(valkey: Valkey) -> None:
    assert build_defs().resources is not None
    for resource in (RedisResource(), RedisResource(redis_url=valkey.url)):
        resource.client().set("cron:resource", b"1")
        assert resource.rate_limiter().acquire("shop.example", 5).permitted
        assert resource.async_client().fallback is resource.client().fallback
    with valkey.admin() as admin:
        assert admin.get("cron:resource") == b"1"


def test_an_op_may_ask_for_redis() -> None:
    @dg.op
    def remember(redis: RedisResource) -> bool:
        return redis.client().set("cron:remember", b"1")

    @dg.job
    def remembering() -> None:
        remember()

    assert "redis" in (build_defs().resources or {})
    resources: Any = {"redis": (build_defs().resources or {})["redis"]}
    assert remembering.execute_in_process(resources=resources).output_for_node("remember") is True


@pytest.mark.parametrize("lost", [False, True])
def test_the_page_of_a_run_says_how_redis_was(lost: bool, database: Database, site: Site, valkey: Valkey) -> None:
    site.chain(5)
    if lost:
        valkey.kill()
    job = build_defs({"postgres": PostgresResource(database_url=database.url)}).resolve_job_def("crawl")
    config = {"ops": {"plan_crawl": {"config": {"urls": [site.url], "allow_private": True, "job_id": "shown"}}}}
    run = job.execute_in_process(run_config=config, instance=dg.DagsterInstance.ephemeral())
    (output,) = [
        event.event_specific_data
        for event in run.all_events
        if event.event_type_value == "STEP_OUTPUT" and event.step_key == "complete_crawl"
    ]
    shown: Any = output.metadata["redis"].value  # type: ignore[union-attr]
    assert (shown["state"] == "closed", shown["outages"]) == (not lost, int(lost))
    assert run.output_for_node("complete_crawl")["total_pages"] == 5


def test_the_doctor_says_what_is_wrong_with_redis_and_what_to_do(valkey: Valkey) -> None:
    well = _redis(valkey.url, embedded=False)
    assert well.ok
    assert "valkey" in well.found
    assert "in use" in well.found
    with valkey.admin() as admin:
        admin.config_set("maxmemory", "1")
    full = _redis(valkey.url, embedded=False)
    assert not full.ok
    assert "read-only" in full.found
    assert "maxmemory" in full.what_to_do
    with valkey.admin() as admin:
        admin.config_set("requirepass", "secret")
    locked = _redis(valkey.url, embedded=False)
    assert (locked.ok, "password" in locked.found, "OMNIOPS_REDIS_URL" in locked.what_to_do) == (
        False,
        True,
        True,
    )
    valkey.kill()
    gone = _redis(valkey.url, embedded=True)
    assert (gone.ok, "away" in gone.found) == (False, True)
    wrong = _redis("http://u:secret@x/", embedded=False)
    assert not wrong.ok
    assert "secret" not in wrong.what_to_do


def test_env_prints_the_settings_of_the_ephemeral_tier(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIOPS_SEARCH_CACHE_SECONDS", "60")
    lines = CliRunner().invoke(cli, ["env"]).stdout.splitlines()
    assert f"export OMNIOPS_REDIS_URL='{valkey.url}'" in lines
    assert "export OMNIOPS_SEARCH_CACHE_SECONDS=60" in lines
    assert "export OMNIOPS_RATE_LIMIT_SHARES=4" in lines
