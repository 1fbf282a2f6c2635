"""`stalled_jobs_sensor`: a job whose worker is gone goes on in another run, or fails after several.

A crawl that is killed leaves its job `running`, and its urls leased. Leases decide whether somebody is at it: what
Dagster says of a run is only what it heard last, and of a run of the command line it hears nothing more. A job with a
live lease is never touched; one that is `paused` waits for a person.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg
from sqlalchemy import Connection, Engine, text

from resources.crawler.urls import InvalidUrl, normalise, site_of
from resources.postgres.jobs import PersistentJobManager
from resources.postgres.resource import PostgresResource
from sensors.crawl_jobs import (
    CRAWL_JOB,
    MAX_CONFIG_BYTES,
    WAITING,
    Decision,
    End,
    JobRun,
    Launch,
    Status,
    Tick,
    Wait,
    close_dead_run,
    end_job,
    next_attempt,
    request_run,
    runs_of,
)

INTERVAL_SECONDS: Final = 30
# After a lease ran out: a worker that was held up (a suspended laptop, a slow database) may still renew it.
LEASE_GRACE_SECONDS: Final = 60.0
# After a run's end: whoever ends a job does so before its run ends.
END_GRACE_SECONDS: Final = 30.0
# Without a worker a run is before its crawl or after it, where texts are embedded and rows counted. It says something
# in its log all the time, so one that has been silent for so long is dead.
SILENCE_SECONDS: Final = 1_800.0
# So many runs that died are no accident: something about the job kills them.
MAX_ATTEMPTS: Final = 5
# After the first attempt, the second, …: a site or a disk that is away for some minutes must not use them all up.
BACKOFF_SECONDS: Final = (60.0, 300.0, 1_200.0, 3_600.0)
MAX_ROWS: Final = 200


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that is `running` and has no live worker.

    Attributes:
        job_id: its key.
        customer: slug.
        domain: as the row has it.
        run_id: of the run that claimed it.
        started_at: when it was claimed first.
        leased_until: when the last lease ran out; None: no worker has left one.
        config: JSON text of the plan that was kept with it; None: too long to be read.
    """

    job_id: str
    customer: str
    domain: str
    run_id: str | None
    started_at: datetime | None
    leased_until: datetime | None
    config: str | None


def decide(  # noqa: PLR0911 - one for each reason
    job: RunningJob, runs: Sequence[JobRun], own: JobRun | None, last_word: datetime | None, now: datetime
) -> Decision:
    """What becomes of a job that has no live worker. Pure: of what was read and the time alone.

    Args:
        job: the row and its lease.
        runs: its runs by tag, oldest first.
        own: the run that claimed it; None: the instance does not know it, or as another job's.
        last_word: the last event of that run, where that was asked for.
        now: the time.
    """
    if job.leased_until is not None and _seconds(job.leased_until, now) < LEASE_GRACE_SECONDS:
        return Wait("a lease has just run out")
    for run in runs:
        if own is not None and run.run_id == own.run_id:
            continue
        if run.unsubmitted:
            return _resume(job, run.attempt or 1)
        if run.status in WAITING:
            return Wait(f"run {run.run_id} is about to resume it")
        # One that is older than the run that has the job is not about to claim it: it was killed.
        newer = own is None or run.created_at > own.created_at
        if run.status is Status.STARTED and newer and not run.has_had_its_time(now):
            return Wait(f"run {run.run_id} is about to claim it")
    if own is not None:
        verdict = _judge(job, own, last_word, now)
        if verdict is not None:
            return verdict
    elif job.leased_until is None and job.started_at and _seconds(job.started_at, now) < SILENCE_SECONDS:
        return Wait("its run is unknown, and it was claimed lately")
    attempts = [run for run in runs if run.attempt is not None]
    if len(attempts) >= MAX_ATTEMPTS:
        return End(
            job.job_id,
            "failed",
            f"{len(attempts)} runs of it died before it was done, the last is {attempts[-1].run_id}: what they kept "
            "is there; find out what kills them (memory is the usual reason), and start a new job",
        )
    if attempts:
        last = attempts[-1]
        pause = BACKOFF_SECONDS[min(len(attempts), len(BACKOFF_SECONDS)) - 1]
        if _seconds(last.ended_at or last.started_at or last.created_at, now) < pause:
            return Wait(f"{len(attempts)} attempts failed, the next one comes {pause:.0f} s after the last")
    return _resume(job, next_attempt(runs))


def _judge(job: RunningJob, own: JobRun, last_word: datetime | None, now: datetime) -> Decision | None:
    """What the job's own run says; None: it is dead, and the job is stalled."""
    if own.status is Status.CANCELED or (own.status is Status.CANCELING and job.leased_until is not None):
        if own.ended_at is not None and _seconds(own.ended_at, now) < END_GRACE_SECONDS:
            return Wait("its run was cancelled in this moment")
        # Somebody wanted it to stop, and the run could not write that down.
        return End(job.job_id, "paused" if own.pauses else "cancelled", f"its run {own.run_id} was cancelled")
    if own.status in WAITING:
        return Wait(f"run {own.run_id} is about to begin")
    if own.status in (Status.STARTED, Status.CANCELING):
        # A worker that ends takes its lease with it, so one that was left behind was killed.
        if job.leased_until is None:
            heard = max(filter(None, (last_word, own.started_at, own.created_at)))
            if _seconds(heard, now) < SILENCE_SECONDS:
                return Wait(f"run {own.run_id} is at it, outside of the crawl itself")
    elif own.ended_at is not None and _seconds(own.ended_at, now) < END_GRACE_SECONDS:
        return Wait("its run has just ended")
    return None


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()


def _resume(job: RunningJob, attempt: int) -> Decision:
    """The plan that was kept with the job counts; what the run's configuration says is only its key and its urls."""
    config: Any = None
    if job.config is not None:
        try:
            config = json.loads(job.config)
        except (ValueError, RecursionError):
            config = None
    urls = config.get("urls") if isinstance(config, dict) else None
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
        return End(job.job_id, "failed", "its plan cannot be read, so it cannot be resumed: start a new job")
    resumed: dict[str, Any] = {"urls": urls, "customer": job.customer, "job_id": job.job_id}
    if config.get("allow_private") is True:
        resumed["allow_private"] = True
    shards = config.get("shards")
    if isinstance(shards, int) and shards > 1:
        resumed["shards"] = shards
    try:
        domain = site_of(normalise(urls[0]))
    except InvalidUrl:
        domain = job.domain  # the run will say what is wrong
    return Launch(request_run(job.job_id, attempt, resumed, domain=domain, customer=job.customer))


# A job that no run has claimed is another program's own, however long it runs.
_STALLED = text("""
    SELECT j.job_id, c.slug AS customer, j.domain, j.run_id, j.started_at, w.leased_until,
           CASE WHEN octet_length(CAST(j.config AS text)) <= :longest THEN CAST(j.config AS text) END AS config
    FROM scrape_jobs AS j JOIN customers AS c ON c.id = j.customer_id
    LEFT JOIN LATERAL (SELECT max(k.leased_until) AS leased_until FROM omniops_meta.crawl_workers AS k
                       WHERE k.job_id = j.job_id) AS w ON true
    WHERE j.status = 'running' AND (j.run_id IS NOT NULL OR w.leased_until IS NOT NULL)
      AND (w.leased_until IS NULL OR w.leased_until <= clock_timestamp())
    ORDER BY coalesce(w.leased_until, j.started_at) NULLS FIRST, j.job_id LIMIT :limit
""")


def read_running_without_worker(connection: Connection, *, limit: int = MAX_ROWS) -> list[RunningJob]:
    """Jobs that are `running` and have no live worker, those that have waited longest first.

    Args:
        connection: as the service.
        limit: at most so many.
    """
    rows = connection.execute(_STALLED, {"limit": limit, "longest": MAX_CONFIG_BYTES})
    return [RunningJob(*row) for row in rows]


def look_at_running_jobs(
    engine: Engine, manager: PersistentJobManager, instance: dg.DagsterInstance, now: datetime
) -> Tick:
    """Read the jobs without a live worker, and decide for each on its own.

    Raises:
        DBAPIError: they cannot be read.
    """
    tick = Tick()
    with engine.connect() as connection:
        jobs = read_running_without_worker(connection)
    runs = runs_of(instance, [job.job_id for job in jobs])
    for job in jobs:
        with tick.one_job(job.job_id):
            own = _own_run(job, runs[job.job_id])
            decision = decide(job, runs[job.job_id], own, _last_word(instance, job, own), now)
            if isinstance(decision, Wait):
                tick.waiting[decision.why] += 1
                continue
            if isinstance(decision, Launch):
                tick.requests.append(decision.request)
            elif end_job(engine, manager, decision, expected="running"):
                tick.ended.append(decision)
            else:
                continue  # a worker came back in this moment
            if own is not None:
                close_dead_run(instance, own, f"its job {job.job_id} is resumed or ended")
    return tick


def _own_run(job: RunningJob, runs: Sequence[JobRun]) -> JobRun | None:
    """The run that claimed the job. Its tag has to say so too: the row is its customer's to write, the tag is not."""
    return next((run for run in runs if run.run_id == job.run_id), None)


def _last_word(instance: dg.DagsterInstance, job: RunningJob, own: JobRun | None) -> datetime | None:
    """When the run said something last; asked only where it decides."""
    if own is None or job.leased_until is not None or own.status not in (Status.STARTED, Status.CANCELING):
        return None
    events = instance.get_records_for_run(own.run_id, limit=1, ascending=False).records
    return datetime.fromtimestamp(events[0].timestamp, UTC) if events else None


@dg.sensor(
    job_name=CRAWL_JOB,
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it a crawl whose machine was restarted waits for a person.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Crawls whose worker is gone go on in another run; after several that died the job fails, with the "
    "reason. A job with a live lease is never touched.",
)
def stalled_jobs_sensor(
    context: dg.SensorEvaluationContext, postgres: PostgresResource
) -> dg.SensorResult | dg.SkipReason:
    """Resume what was left behind."""
    tick = look_at_running_jobs(postgres.engine(), postgres.job_manager(), context.instance, datetime.now(UTC))
    return tick.answer(context)
