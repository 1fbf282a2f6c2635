"""A run whose process was killed is ended, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from sensors.dead_runs import SILENCE_SECONDS, Signs, close_dead_runs, is_dead, process_lives, read_signs
from tests.integration.sensors.conftest import ORIGIN, Daemon

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

LOCATION = ORIGIN.code_location_origin.location_name
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def a_dead_process() -> int:
    """The number of a process that was, and is not."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def started(daemon: Daemon, pid: int, *, by_daemon: bool = True) -> str:
    """A run that says that it is executed by this process."""
    run_id = daemon.make_run("crawl", dg.DagsterRunStatus.NOT_STARTED, by_daemon=by_daemon)
    daemon.instance.report_dagster_event(
        dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name="crawl", pid=pid),
        run_id=run_id,
    )
    return run_id


def later(seconds: float = SILENCE_SECONDS + 5) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def status(daemon: Daemon, run_id: str) -> dg.DagsterRunStatus:
    run = daemon.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.parametrize(
    ("signs", "alive", "dead"),
    [
        (None, set(), False),
        (Signs({}, NOW - timedelta(hours=9)), set(), False),
        (Signs({1: NOW}, NOW - timedelta(seconds=SILENCE_SECONDS - 1)), set(), False),
        (Signs({1: NOW}, NOW - timedelta(seconds=SILENCE_SECONDS + 1)), set(), True),
        (Signs({1: NOW, 2: NOW}, NOW - timedelta(hours=9)), {2}, False),
        (Signs({1: NOW, 2: NOW}, NOW - timedelta(hours=9)), set(), True),
    ],
)
def test_a_run_is_dead_when_it_is_silent_and_none_of_its_processes_lives(
    signs: Signs | None, alive: set[int], dead: bool
) -> None:
    assert is_dead(signs, NOW, lambda pid, _: pid in alive) is dead


def test_a_process_is_told_from_another_one_that_has_its_number_now() -> None:
    assert process_lives(os.getpid(), datetime.now(UTC))
    assert not process_lives(os.getpid(), datetime.now(UTC) - timedelta(days=9))
    assert not process_lives(a_dead_process(), datetime.now(UTC))


def test_a_killed_run_is_ended_and_a_living_one_is_not(database: Database, daemon: Daemon) -> None:
    killed, living = started(daemon, a_dead_process()), started(daemon, os.getpid())
    signs = read_signs(daemon.instance, living)
    assert signs is not None
    assert set(signs.processes) == {os.getpid()}
    # It may have begun a moment ago.
    assert close_dead_runs(daemon.instance, LOCATION, datetime.now(UTC)) == []
    assert close_dead_runs(daemon.instance, LOCATION, later()) == [killed]
    assert status(daemon, killed) is dg.DagsterRunStatus.FAILURE
    assert status(daemon, living) is dg.DagsterRunStatus.STARTED
    assert close_dead_runs(daemon.instance, LOCATION, later()) == []
    assert daemon.tick("dead_runs_sensor").skip_message.startswith("0 runs")


def test_a_killed_run_that_was_being_cancelled_is_cancelled(database: Database, daemon: Daemon) -> None:
    run_id = started(daemon, a_dead_process())
    run = daemon.instance.get_run_by_id(run_id)
    assert run is not None
    daemon.instance.report_run_canceling(run)
    assert close_dead_runs(daemon.instance, LOCATION, later()) == [run_id]
    assert status(daemon, run_id) is dg.DagsterRunStatus.CANCELED


def test_runs_whose_processes_cannot_be_looked_at_are_left_alone(database: Database, daemon: Daemon) -> None:
    by_hand = started(daemon, a_dead_process(), by_daemon=False)
    elsewhere = started(daemon, a_dead_process())
    assert close_dead_runs(daemon.instance, "another location", later()) == []
    assert close_dead_runs(daemon.instance, None, later()) == []
    assert close_dead_runs(daemon.instance, LOCATION, later()) == [elsewhere]
    assert status(daemon, by_hand) is dg.DagsterRunStatus.STARTED
    waits = daemon.make_run("crawl", dg.DagsterRunStatus.QUEUED)
    assert close_dead_runs(daemon.instance, LOCATION, later(9_999)) == []
    assert status(daemon, waits) is dg.DagsterRunStatus.QUEUED
