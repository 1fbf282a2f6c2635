"""What `queued_jobs_sensor` and `stalled_jobs_sensor` share: a job's runs, its run request, its end; a tick.

A job's row says what is asked for and how far it is; the instance says which runs there were. The two are read one
after the other, so each decision holds whatever happened in between: a run request has a run key, and a job is ended
only from the very status that was read.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import is_connection_lost
from resources.run_tags import TAG_CUSTOMER, TAG_DOMAIN, TAG_JOB, TAG_ON_INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine

    from resources.postgres.jobs import PersistentJobManager

CRAWL_JOB: Final = "crawl"
RUN_KEY_TAG: Final = "dagster/run_key"

Status = dg.DagsterRunStatus

# A run that waits for its turn, or has begun.
WAITING: Final = (Status.NOT_STARTED, Status.QUEUED, Status.STARTING)
IN_FLIGHT: Final = (*WAITING, Status.STARTED, Status.CANCELING)

# Another program's JSON; what is longer is no configuration.
MAX_CONFIG_BYTES: Final = 256 * 1024

# The first op claims the job, within seconds of the run's start. A run that has not done so by then never will.
CLAIM_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class JobRun:
    """A run of a job.

    Attributes:
        run_id: its id.
        status: as Dagster has it; a run whose process was killed may be `STARTED` for ever.
        attempt: its number, where one of the sensors asked for it.
        created_at: when it was made.
        started_at: when it began.
        ended_at: when it ended.
        pauses: an interruption pauses the job (a run of the command line), and does not cancel it.
    """

    run_id: str
    status: dg.DagsterRunStatus
    attempt: int | None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    pauses: bool = False

    @property
    def unsubmitted(self) -> bool:
        """Made for a request and never submitted: the daemon died in between. Asking again submits it."""
        return self.status is Status.NOT_STARTED and self.attempt is not None

    def has_had_its_time(self, now: datetime) -> bool:
        """Begun so long ago that it would have claimed its job."""
        begun = self.started_at or self.created_at
        return self.status in (Status.STARTED, Status.CANCELING) and (now - begun).total_seconds() > CLAIM_SECONDS


@dataclass(frozen=True, slots=True)
class Launch:
    """A run is to be started."""

    request: dg.RunRequest


@dataclass(frozen=True, slots=True)
class End:
    """The job is to be ended (or paused), with the reason."""

    job_id: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done now."""

    why: str


Decision = Launch | End | Wait


def run_key(job_id: str, attempt: int) -> str:
    """The key of an attempt: Dagster starts one run for it, ever."""
    return f"job-{job_id}-attempt-{attempt}"


def attempt_of(key: str | None, job_id: str) -> int | None:
    """The number of an attempt at this job; None for any other key."""
    prefix = run_key(job_id, 0).removesuffix("0")
    if key is None or not key.startswith(prefix):
        return None
    number = key.removeprefix(prefix)
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def next_attempt(runs: Iterable[JobRun]) -> int:
    """The number of the next attempt: higher than any that was ever used, since a used key starts nothing."""
    return 1 + max((run.attempt for run in runs if run.attempt is not None), default=0)


def request_run(job_id: str, attempt: int, config: Mapping[str, Any], *, domain: str, customer: str) -> dg.RunRequest:
    """The request for an attempt. Its tags stand before the run starts, so the run queue's limits hold already."""
    return dg.RunRequest(
        run_key=run_key(job_id, attempt),
        run_config={"ops": {"plan_crawl": {"config": dict(config)}}},
        tags={TAG_JOB: job_id, TAG_DOMAIN: domain, TAG_CUSTOMER: customer},
    )


def runs_in_flight(instance: dg.DagsterInstance) -> list[dg.RunRecord]:
    """Every run of the crawl that has not ended, as Dagster has it."""
    return list(instance.get_run_records(filters=dg.RunsFilter(job_name=CRAWL_JOB, statuses=list(IN_FLIGHT))))


def runs_of(instance: dg.DagsterInstance, job_ids: Sequence[str]) -> dict[str, list[JobRun]]:
    """The runs of these jobs, oldest first; every job has an entry."""
    found: dict[str, list[JobRun]] = {job_id: [] for job_id in job_ids}
    if not job_ids:
        return found
    # One question for all of them.
    for record in instance.get_run_records(filters=dg.RunsFilter(tags={TAG_JOB: list(job_ids)})):
        job_id = record.dagster_run.tags[TAG_JOB]
        found[job_id].append(job_run(record, job_id))
    for runs in found.values():
        runs.sort(key=lambda run: (run.created_at, run.attempt or 0))
    return found


def job_run(record: dg.RunRecord, job_id: str) -> JobRun:
    """A record of the instance, as a run of a job."""
    run = record.dagster_run
    return JobRun(
        run_id=run.run_id,
        status=run.status,
        attempt=attempt_of(run.tags.get(RUN_KEY_TAG), job_id),
        created_at=_aware(record.create_timestamp),
        started_at=_moment(record.start_time),
        ended_at=_moment(record.end_time),
        pauses=run.tags.get(TAG_ON_INTERRUPT) == "paused",
    )


def close_dead_run(instance: dg.DagsterInstance, dead: JobRun, what_happens: str) -> bool:
    """Say of a run whose process was killed that it is over; False if it is already.

    While Dagster believes that it is under way, it takes up its website's place in the run queue, and the run that is
    to go on would wait for it for ever.
    """
    run = instance.get_run_by_id(dead.run_id)
    if run is None or run.status not in (Status.STARTED, Status.CANCELING):
        return False
    if run.status is Status.CANCELING:
        instance.report_run_canceled(run, message=f"the run's process was gone before it could stop; {what_happens}")
    else:
        instance.report_run_failed(run, message=f"the run's process was killed; {what_happens}")
    return True


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


_END = text("""
    UPDATE scrape_jobs SET status = :status, error_message = coalesce(:reason, error_message),
        finish_reason = :finish_reason
    WHERE job_id = :job_id AND status = :expected
      AND NOT EXISTS (SELECT 1 FROM omniops_meta.crawl_workers AS w
                      WHERE w.job_id = :job_id AND w.leased_until > clock_timestamp())
""")


def end_job(engine: Engine, manager: PersistentJobManager, end: End, *, expected: str) -> bool:
    """End a job, if it still has the status that was read and nobody works on it; False if not.

    Raises:
        DBAPIError: the database refuses or cannot be reached.
    """
    finish_reason = end.status if end.status in ("cancelled", "paused") else "error"
    with engine.begin() as connection:
        # FOR UPDATE keeps new workers out: their foreign key asks for a lock on this row.
        locked = connection.scalar(
            text("SELECT status FROM scrape_jobs WHERE job_id = :job_id FOR UPDATE"), {"job_id": end.job_id}
        )
        if locked != expected:
            return False
        ended = connection.execute(
            _END,
            {
                "job_id": end.job_id,
                "status": end.status,
                "reason": end.reason,
                "finish_reason": finish_reason,
                "expected": expected,
            },
        ).rowcount
    if not ended:
        return False
    # The same status again changes nothing but the copy in the cache.
    manager.update_job_status(end.job_id, end.status)
    return True


@dataclass(slots=True)
class Tick:
    """What a tick found: runs to start, jobs that were ended with the reason, why others wait, what went wrong."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    ended: list[End] = field(default_factory=list)
    waiting: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def one_job(self, job_id: str) -> Iterator[None]:
        """What goes wrong with one job is noted and does not stop the others; a lost database does.

        Raises:
            DBAPIError: the database is lost.
        """
        try:
            yield
        except DBAPIError as error:
            if is_connection_lost(error):
                raise
            self.errors.append(f"job {job_id}: {str(error.orig).splitlines()[0]}")
        except Exception as error:  # noqa: BLE001 - one row that nobody thought of must not stop the others
            self.errors.append(f"job {job_id}: {type(error).__name__}: {error}")

    def summary(self) -> str:
        """One sentence."""
        parts = [f"{len(self.requests)} runs to start", f"{len(self.ended)} jobs ended"]
        if self.waiting:
            parts.append(f"{self.waiting.total()} wait")
        if self.errors:
            parts.append(f"{len(self.errors)} could not be looked at: {self.errors[0]}")
        return ", ".join(parts)

    def answer(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """For Dagster, with what a person should read in the tick's log."""
        for end in self.ended:
            context.log.warning("job %s is %s: %s", end.job_id, end.status, end.reason)
        for error in self.errors:
            context.log.error("%s", error)
        if self.requests:
            return dg.SensorResult(run_requests=self.requests)
        return dg.SkipReason(self.summary())
