"""Sensors as the daemon evaluates them: a real Dagster instance, its storage in the test's database."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from sqlalchemy import text

from omniops_pipelines.definitions import defs
from omniops_pipelines.instance import open_stack
from resources import stack
from resources.postgres.customers import ensure_customer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

RUN_KEY = "dagster/run_key"
CRAWL = {"ops": {"plan_crawl": {"config": {"urls": ["https://shop.example/"]}}}}
ORIGIN = RemoteRepositoryOrigin(
    InProcessCodeLocationOrigin(
        loadable_target_origin=LoadableTargetOrigin(module_name="omniops_pipelines.definitions"),
        location_name="omniops_pipelines.definitions",
    ),
    "__repository__",
)


@pytest.fixture
def database(stored_database: Database) -> Database:
    """A database of this test's own, with Dagster's storage."""
    return stored_database


@pytest.fixture
def instance(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster as the program has it."""
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("OMNIOPS_DAGSTER_DATABASE_URL", "")
    open_stack()
    with dg.DagsterInstance.get() as opened:
        yield opened
    os.environ.pop("DAGSTER_HOME", None)
    stack.release()


@dataclass
class Daemon:
    """What Dagster's daemon does with sensors, without its loop.

    Attributes:
        cursors: what each sensor left for its next tick.
    """

    instance: dg.DagsterInstance
    cursors: dict[str, str | None]

    def tick(self, name: str) -> Any:
        """Evaluate a sensor once; what it asks for is returned, and nothing is done with it."""
        repository = defs.get_repository_def()
        sensor = repository.get_sensor_def(name)
        # `build_sensor_context` knows no code location, and a failed run is matched by its own.
        with dg.SensorEvaluationContext(
            instance_ref=None,
            instance=self.instance,
            cursor=self.cursors.get(name),
            repository_def=repository,
            repository_name=ORIGIN.repository_name,
            code_location_origin=ORIGIN.code_location_origin,
            resources=repository.get_top_level_resources(),
            sensor_name=name,
        ) as context:
            result = sensor.evaluate_tick(context)
        self.cursors[name] = result.cursor
        return result

    def submit(self, request: dg.RunRequest, sensor: str) -> str | None:
        """Make the run of a request, unless there is one with its key; returns its id if it was made."""
        known = self.instance.get_runs(filters=dg.RunsFilter(tags={RUN_KEY: request.run_key or ""}))
        if known:
            return None
        return self.make_run(
            "crawl",
            dg.DagsterRunStatus.QUEUED,
            config=request.run_config,
            tags={**request.tags, RUN_KEY: request.run_key or "", "dagster/sensor_name": sensor},
        )

    def make_run(
        self,
        job: str,
        status: dg.DagsterRunStatus,
        *,
        config: Any = None,
        tags: dict[str, str] | None = None,
        by_daemon: bool = True,
    ) -> str:
        """A run in this state, as the daemon (or the command line) leaves one."""
        run = self.instance.create_run_for_job(
            job_def=defs.resolve_job_def(job),
            run_config=config or (CRAWL if job == "crawl" else {}),
            tags=tags,
            status=dg.DagsterRunStatus.NOT_STARTED,
            remote_job_origin=RemoteJobOrigin(ORIGIN, job) if by_daemon else None,
        )
        events = {
            dg.DagsterRunStatus.QUEUED: dg.DagsterEventType.RUN_ENQUEUED,
            dg.DagsterRunStatus.STARTING: dg.DagsterEventType.RUN_STARTING,
            dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
            dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
            dg.DagsterRunStatus.CANCELED: dg.DagsterEventType.RUN_CANCELED,
        }
        if status is dg.DagsterRunStatus.FAILURE:
            self.instance.report_run_failed(run, message="the process is gone")
        elif status in events:
            self.instance.report_dagster_event(
                dg.DagsterEvent(event_type_value=events[status].value, job_name=job), run_id=run.run_id
            )
        return run.run_id


@pytest.fixture
def daemon(instance: dg.DagsterInstance) -> Daemon:
    return Daemon(instance, {})


def queue(database: Database, job_id: str, **columns: Any) -> None:
    """What another program does: one INSERT."""
    customer = columns.pop("customer", "acme")
    values = {
        "domain": "shop.example", "job_type": "full_crawl", "config": "{}", "status": "queued", "run_id": None,
        "created_at": datetime.now(UTC), **columns,
    }  # fmt: skip
    with database.engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config, status, run_id, created_at)
                VALUES (:job_id, :customer_id, :domain, :job_type, CAST(:config AS jsonb), :status, :run_id,
                        :created_at)
            """),
            {"job_id": job_id, "customer_id": ensure_customer(connection, customer), **values},
        )


def execute(database: Database, sql: str, **values: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(sql), values)
