"""`dead_runs_sensor`: a run whose process was killed is ended, so that nothing waits for it.

Dagster's run monitoring asks a launcher whether a run's process lives, and the default launcher, which starts
processes on its own machine, does not answer. Such a run is `STARTED` for ever: it takes up one of the places of the
run queue, and its website's only one.

A run's processes write their numbers into its events. The sensor is evaluated in the code location that started them,
on the same machine, so it can look.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import dagster as dg
import psutil

from sensors.crawl_jobs import Status, close_dead_run, job_run

INTERVAL_SECONDS: Final = 30
# A run says something when it starts and ends a step; a minute is long for a process that has just begun.
SILENCE_SECONDS: Final = 60.0
MAX_RUNS: Final = 200
MAX_EVENTS: Final = 1_000

# Events that nobody but a run's own processes writes: of the run, of the workers of its steps, of its steps.
_OF_PROCESSES: Final = frozenset({
    dg.DagsterEventType.RUN_START, dg.DagsterEventType.STEP_WORKER_STARTED, dg.DagsterEventType.STEP_START,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signs:
    """What a run has left in its log.

    Attributes:
        processes: numbers of its processes, each with the moment of its first event.
        last_word: its last event.
    """

    processes: Mapping[int, datetime]
    last_word: datetime


def is_dead(signs: Signs | None, now: datetime, lives: Callable[[int, datetime], bool]) -> bool:
    """True if all of a run's processes are known to be gone. Pure, given `lives`.

    Args:
        signs: what it has left in its log; None: nothing.
        now: the time.
        lives: whether the process with this number lives that wrote an event at that moment.
    """
    if signs is None or not signs.processes or (now - signs.last_word).total_seconds() < SILENCE_SECONDS:
        return False
    return not any(lives(pid, wrote_at) for pid, wrote_at in signs.processes.items())


def process_lives(pid: int, wrote_at: datetime) -> bool:
    """True if the process lives. One that has its number now and began later is another one."""
    try:
        process = psutil.Process(pid)
        # Two seconds of slack, for clocks that are read differently.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= wrote_at.timestamp() + 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it is there, and is not ours to look at


def started_here(instance: dg.DagsterInstance, location: str | None) -> list[dg.RunRecord]:
    """Runs that are under way and that this code location started as processes of its own."""
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return []  # another launcher's runs are its own to watch
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=[Status.STARTED, Status.CANCELING]), limit=MAX_RUNS, ascending=True
    )
    return [record for record in records if _location(record.dagster_run) == location and location is not None]


def _location(run: dg.DagsterRun) -> str | None:
    """The code location of a run; None for one of the command line, whose machine nobody knows."""
    origin = run.remote_job_origin
    return None if origin is None else origin.repository_origin.code_location_origin.location_name


def read_signs(instance: dg.DagsterInstance, run_id: str) -> Signs | None:
    """What a run has left in its log; None: nothing that has a process's number."""
    newest = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    if not newest:
        return None
    records: Sequence[dg.EventLogRecord] = instance.get_records_for_run(
        run_id, of_type=set(_OF_PROCESSES), limit=MAX_EVENTS, ascending=False
    ).records
    processes: dict[int, datetime] = {}
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is not None and event.pid is not None:
            moment = datetime.fromtimestamp(record.timestamp, UTC)
            processes[event.pid] = min(moment, processes.get(event.pid, moment))
    return Signs(processes, datetime.fromtimestamp(newest[0].timestamp, UTC))


def close_dead_runs(
    instance: dg.DagsterInstance,
    location: str | None,
    now: datetime,
    lives: Callable[[int, datetime], bool] = process_lives,
) -> list[str]:
    """End the runs whose processes are gone; returns their ids."""
    closed = []
    for record in started_here(instance, location):
        run = job_run(record, "")
        if is_dead(read_signs(instance, run.run_id), now, lives) and close_dead_run(
            instance, run, "it is ended, so that nothing waits for it"
        ):
            closed.append(run.run_id)
    return closed


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it a run that was killed keeps its place in the run queue for ever.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs whose process was killed are ended: the default launcher does not tell Dagster of them, and "
    "they would hold up the run queue.",
)
def dead_runs_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look for the processes of the runs that are under way."""
    origin = context.code_location_origin
    closed = close_dead_runs(context.instance, None if origin is None else origin.location_name, datetime.now(UTC))
    for run_id in closed:
        context.log.warning("run %s is ended: its process was killed", run_id)
    return dg.SkipReason(f"{len(closed)} runs ended whose process was killed")
