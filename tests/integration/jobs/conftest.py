"""Jobs in this process, on the test's own database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from omniops_pipelines.definitions import build_defs
from resources import stack
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

RunJob = Callable[..., dg.ExecuteInProcessResult]

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def database(stored_database: Database) -> Database:
    """A database of this test's own, with Dagster's storage."""
    return stored_database


@pytest.fixture
def defs(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.Definitions]:
    """The project's definitions on the test's database."""
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    yield build_defs({"postgres": PostgresResource(database_url=database.url)})
    stack.release()


@pytest.fixture
def ephemeral() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def run_job(defs: dg.Definitions, ephemeral: dg.DagsterInstance) -> RunJob:
    """Run a job with the configuration of its ops; `instance` for another one than that in memory."""

    def run(job: str, instance: dg.DagsterInstance | None = None, **configs: Any) -> dg.ExecuteInProcessResult:
        ops = {"ops": {op: {"config": config} for op, config in configs.items()}}
        return defs.resolve_job_def(job).execute_in_process(
            run_config={**ops, **QUIET}, instance=instance or ephemeral, raise_on_error=False
        )

    return run


def failures(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """What each failed op said."""
    found = {}
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            found[event.step_key or ""] = said or str(data.error)
    return found


def metadata(result: dg.ExecuteInProcessResult, op: str) -> dict[str, Any]:
    """The metadata of an op's output, as plain values; tables as lists of rows."""
    (event,) = (e for e in result.all_events if e.is_successful_output and e.step_key == op)
    plain: dict[str, Any] = {}
    for name, value in event.step_output_data.metadata.items():
        plain[name] = [r.data for r in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
    return plain
