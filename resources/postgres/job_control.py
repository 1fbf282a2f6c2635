"""Jobs that are crawled elsewhere are paused or cancelled by their record: whoever works on them looks at it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resources.postgres.frontier import CrawlFrontier
from resources.postgres.job_status import InvalidJobTransition
from resources.postgres.jobs import UnknownJob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from resources.postgres.jobs import PersistentJobManager

# What may be asked for, and the status that it brings.
ACTIONS: Final = {"pause": "paused", "cancel": "cancelled"}

# A worker looks every two seconds, and then commits what it has finished.
DEFAULT_WAIT_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class StoppedJob:
    """What became of one job.

    Attributes:
        job_id: as it was named.
        status: of the job now; None: there is no such job.
        workers: that were still at it when the wait was over.
        changed: False where the job had that status already, or could not get it.
        error: why it could not.
    """

    job_id: str
    status: str | None
    workers: int = 0
    changed: bool = False
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def stop_jobs(
    manager: PersistentJobManager,
    engine: Engine,
    job_ids: Sequence[str],
    action: str,
    *,
    wait_seconds: float = DEFAULT_WAIT_SECONDS,
) -> list[StoppedJob]:
    """Pause or cancel jobs, and wait until their workers have left. What cannot be done to one stops no other.

    Args:
        manager: the audit trail.
        engine: the permanent tier.
        job_ids: in the order of the answer; one that is named twice counts once.
        action: of `ACTIONS`.
        wait_seconds: for all of them together; 0 does not wait.

    Raises:
        ValueError: there is no such action.
    """
    if action not in ACTIONS:
        msg = f"action {action!r} is unknown; it is one of {', '.join(ACTIONS)}"
        raise ValueError(msg)
    stopped = [_stop(manager, job_id, ACTIONS[action]) for job_id in dict.fromkeys(job_ids)]
    until = time.monotonic() + wait_seconds
    return [_awaited(manager, engine, job, until) for job in stopped]


def _stop(manager: PersistentJobManager, job_id: str, status: str) -> StoppedJob:
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        return StoppedJob(job_id, None, error=str(UnknownJob(job_id)))
    if job["status"] == status:
        return StoppedJob(job_id, status)
    try:
        now = manager.update_job_status(job_id, status, finish_reason=status)
    except InvalidJobTransition as error:
        # It may have ended in this moment.
        job = manager.get_job_from_postgres(job_id)
        return StoppedJob(job_id, job["status"] if job else None, error=str(error))
    return StoppedJob(job_id, now["status"], changed=True)


def _awaited(manager: PersistentJobManager, engine: Engine, stopped: StoppedJob, until: float) -> StoppedJob:
    job = None if stopped.error else manager.get_job_from_postgres(stopped.job_id)
    if job is None:
        return stopped
    frontier = CrawlFrontier(engine, stopped.job_id, job["customer_id"])
    while (workers := frontier.live_workers()) and time.monotonic() < until:
        if not frontier.take_over_dead_workers():
            time.sleep(_POLL_SECONDS)
    return StoppedJob(stopped.job_id, job["status"], workers, stopped.changed)
