"""Purging Dagster's own runs: what is old goes, and the assets look the same before and after.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import Field
from sqlalchemy import create_engine, text

from omniops_pipelines.instance import dagster_database_url, open_stack
from omniops_pipelines.run_purge import PurgeResult, purge_runs
from tests.integration.jobs.conftest import QUIET, RunJob, failures, metadata
from tests.support.databases import Database

pytestmark = pytest.mark.integration


class Told(dg.Config):
    """What a run says of which assets."""

    made: list[str] = Field(default=[])
    seen: list[str] = Field(default=[])
    partition: str | None = None


@dg.op
def tell(context: dg.OpExecutionContext, config: Told) -> int:
    """Materialise and observe what the configuration says, as the ops of the project do."""
    for name in config.made:
        context.log_event(dg.AssetMaterialization(asset_key=name, partition=config.partition))
    for name in config.seen:
        context.log_event(dg.AssetObservation(asset_key=name, partition=config.partition))
    return 1


@dg.job(executor_def=dg.in_process_executor)
def telling() -> None:
    tell()


@dg.asset
def table() -> None:
    """An asset of an asset job."""


@dg.asset_check(asset=table)
def right() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


DEFS = dg.Definitions(
    assets=[table],
    asset_checks=[right],
    jobs=[telling, dg.define_asset_job("assets", [table], executor_def=dg.in_process_executor)],
)


@pytest.fixture
def instance(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster as the program has it, its storage in the test's database."""
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("OMNIOPS_DAGSTER_DATABASE_URL", "")
    open_stack()
    with dg.DagsterInstance.get() as opened:
        yield opened
    os.environ.pop("DAGSTER_HOME", None)


def run(instance: dg.DagsterInstance, *made: str, seen: tuple[str, ...] = (), partition: str | None = None) -> str:
    """A run that materialises and observes these; returns its id."""
    told = {"made": list(made), "seen": list(seen), "partition": partition}
    config = {"ops": {"tell": {"config": told}}, **QUIET}
    return DEFS.resolve_job_def("telling").execute_in_process(run_config=config, instance=instance).run_id


def age(database: Database, run_id: str, days: int) -> None:
    """Let a run have ended so long ago."""
    engine = create_engine(dagster_database_url(database.url))
    with engine.begin() as connection:
        changed = connection.execute(
            text("UPDATE runs SET update_timestamp = now() - make_interval(days => :d) WHERE run_id = :r"),
            {"d": days, "r": run_id},
        )
        assert changed.rowcount == 1
    engine.dispose()


def purge(instance: dg.DagsterInstance, jobs: tuple[str, ...] = ("telling",), **options: Any) -> PurgeResult:
    before = datetime.now(UTC) - timedelta(days=90)
    return purge_runs(instance, jobs, before, **{"dry_run": False, "max_runs": 1_000, **options})


def runs(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def folder(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.storage_directory()) / run_id


def test_old_runs_go_with_their_events_and_files_and_younger_ones_stay(
    database: Database, instance: dg.DagsterInstance
) -> None:
    old, older, young = run(instance), run(instance), run(instance)
    age(database, old, 91)
    age(database, older, 400)
    age(database, young, 89)
    assert folder(instance, old).is_dir()
    looked = purge(instance, dry_run=True)
    assert (looked.purged.total(), runs(instance)) == (2, {old, older, young})
    assert folder(instance, old).is_dir()
    done = purge(instance)
    assert (done.purged, done.folders, done.bounded) == ({"telling": 2}, 2, False)
    assert runs(instance) == {young}
    assert [folder(instance, run_id).exists() for run_id in (old, older, young)] == [False, False, True]
    assert database.value("SELECT count(*) FROM dagster.event_logs WHERE run_id <> :r", r=young) == 0
    assert purge(instance).purged.total() == 0


def test_a_run_with_the_latest_materialisation_or_observation_of_an_asset_or_partition_stays(
    database: Database, instance: dg.DagsterInstance
) -> None:
    first = run(instance, "a", "b")
    second = run(instance, "a")
    of_day_1 = run(instance, "c", partition="1")
    again_day_1 = run(instance, "c", partition="1")
    of_day_2 = run(instance, "c", partition="2")
    nothing = run(instance)
    newest = run(instance, "a")
    for run_id in runs(instance):
        age(database, run_id, 200)
    done = purge(instance)
    # `first` has the latest of b; the first run of day 1 was followed by another.
    assert runs(instance) == {first, again_day_1, of_day_2, newest}
    assert (done.purged["telling"], done.spared["telling"]) == (3, 4)
    assert not {second, of_day_1, nothing} & runs(instance)
    for name in ("a", "b"):
        assert instance.get_latest_materialization_event(dg.AssetKey(name)) is not None
    assert set(instance.get_materialized_partitions(dg.AssetKey("c"))) == {"1", "2"}
    # A newer one of b sets the first run free.
    run(instance, "b")
    assert purge(instance).purged["telling"] == 1
    assert first not in runs(instance)


def test_a_newer_observation_does_not_stand_for_a_materialisation(
    database: Database, instance: dg.DagsterInstance
) -> None:
    made = run(instance, "a")
    seen = run(instance, seen=("a",))
    seen_again = run(instance, seen=("a",))
    for run_id in runs(instance):
        age(database, run_id, 200)
    assert purge(instance).purged.total() == 1
    assert runs(instance) == {made, seen_again}
    assert seen not in runs(instance)


def test_runs_of_asset_jobs_and_unfinished_runs_are_never_touched(
    database: Database, instance: dg.DagsterInstance
) -> None:
    asset_runs = [
        DEFS.resolve_job_def("assets").execute_in_process(instance=instance, run_config=QUIET).run_id
        for _ in range(3)
    ]
    waiting = instance.create_run_for_job(DEFS.resolve_job_def("telling")).run_id
    for run_id in runs(instance):
        age(database, run_id, 1_000)
    assert purge(instance).purged.total() == 0
    assert runs(instance) == {*asset_runs, waiting}
    # Even if its job is named: the latest check result and materialisation stay.
    assert purge(instance, ("assets",)).purged["assets"] == 2
    assert asset_runs[-1] in runs(instance)
    key = dg.AssetCheckKey(dg.AssetKey("table"), "right")
    assert instance.event_log_storage.get_asset_check_execution_history(key, limit=1)[0].run_id == asset_runs[-1]


def test_a_purge_is_bounded_and_can_be_interrupted_and_the_next_one_goes_on(
    database: Database, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omniops_pipelines import run_purge

    monkeypatch.setattr(run_purge, "_PAGE", 2)
    kept = run(instance, "a")
    gone = [run(instance) for _ in range(7)]
    for run_id in runs(instance):
        age(database, run_id, 100)
    bounded = purge(instance, max_runs=3)
    assert (bounded.purged.total(), bounded.bounded) == (3, True)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purge(instance, on_run=stop)
    assert len(runs(instance)) == 3
    assert purge(instance).purged.total() == 2
    assert runs(instance) == {kept}
    assert gone


def test_the_job_refuses_bad_bounds_and_says_what_stays(instance: dg.DagsterInstance, run_job: RunJob) -> None:
    for config, words in (({"days": 0}, "days is 0"), ({"max_runs": 0}, "max_runs is 0"), ({"days": 10**9}, "36500")):
        result = run_job("purge_runs", instance=instance, purge_old_runs={**config, "dry_run": False})
        assert words in failures(result)["purge_old_runs"]
    shown = metadata(run_job("purge_runs", instance=instance), "purge_old_runs")
    assert (shown["dry_run"], shown["runs"], shown["spared"]) == (True, 0, 0)
