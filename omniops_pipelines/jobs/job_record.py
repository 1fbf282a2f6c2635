"""The job's record where the run ends before its job does."""

from __future__ import annotations

import os
from typing import Final

import dagster as dg
from pydantic import Field

from resources.postgres.resource import PostgresResource
from resources.run_tags import TAG_JOB, TAG_ON_INTERRUPT

# Set in a run's process whose ops have processes of their own: there the run's end is not the op's.
STEPS_OF_RUN: Final = "OMNIOPS_STEPS_OF_RUN"


def settle_job(instance: dg.DagsterInstance, run_id: str, postgres: PostgresResource, *, fail: bool) -> None:
    """Cancel or pause a job that this run had and left unfinished when it was interrupted.

    Args:
        instance: that has the run.
        run_id: of the run that ends now.
        postgres: the permanent tier.
        fail: without an interruption too, fail the job; else it stays `running`, to be resumed.
    """
    run = instance.get_run_by_id(run_id)
    job_id = run.tags.get(TAG_JOB) if run else None
    if run is None or job_id is None:
        return  # it was refused, or interrupted before it had a job
    try:
        manager = postgres.job_manager()
        job = manager.get_job_from_postgres(job_id)
        if job is None or job["status"] not in ("queued", "running") or job["run_id"] not in (None, run.run_id):
            return
        frontier = postgres.frontier(job_id, job["customer_id"])
        frontier.take_over_dead_workers()
        if frontier.live_workers():
            return  # another run is at it
        interrupted = run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
        if run.tags.get(TAG_ON_INTERRUPT, "cancelled") == "paused" and (interrupted or fail):
            if job["status"] == "running":  # a queued one waits already
                manager.update_job_status(job_id, "paused", finish_reason="paused")
        elif interrupted:
            manager.update_job_status(job_id, "cancelled", finish_reason="cancelled")
        elif fail:
            manager.fail_job(job_id, f"run {run.run_id} ended before the job did: its log says why")
    except Exception as error:  # noqa: BLE001 - the database is away: the run's own error is the one to report
        dg.get_dagster_logger().warning("job %s keeps its status: %s", job_id, error)


class JobRecord(dg.ConfigurableResource[None]):
    """Ends the job's record where the run ends before its job does, at whatever moment it is interrupted.

    Dagster hands an interruption to the code of an op, and one that arrives between two ops reaches none of ours.
    What a run has set up it also takes down, so that is where the record is looked at last.

    It has the database's url and not the resource itself: for a resource inside another one Dagster calls what it has
    deprecated, and warns of it.
    """

    database_url: str = Field(default="", description="As the resource `postgres` has it.")

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Cancel, pause or fail a job that this run had and left unfinished."""
        # Not `context.run_id`: Dagster's own property reads an attribute that Dagster has deprecated.
        if context.instance is None or context.run is None:
            return
        run_id = context.run.run_id
        if os.environ.get(STEPS_OF_RUN) != run_id:
            settle_job(context.instance, run_id, PostgresResource(database_url=self.database_url), fail=True)
