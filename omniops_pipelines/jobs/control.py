"""The job `control_crawl`: pauses or cancels crawls, wherever they run.

Cancelling a run in the UI cancels its job too; this is for pausing one, and for crawls of the command line.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from omniops_pipelines.run_metadata import table
from resources.postgres.job_control import DEFAULT_WAIT_SECONDS, stop_jobs
from resources.postgres.resource import PostgresResource

_COLUMNS = {"job_id": "string", "status": "string", "changed": "bool", "workers": "int", "error": "string"}


class Action(str, Enum):  # noqa: UP042 - Dagster's Launchpad types enums by member name; both are the same here
    """What is done to the jobs."""

    pause = "pause"
    cancel = "cancel"


class ControlConfig(dg.Config):
    """Which jobs, and what is done to them."""

    job_ids: list[str] = Field(description="Ids of crawl jobs. The only required field.")
    action: Action = Field(
        default=Action.pause,
        description="pause: what is finished is kept, and launching `crawl` with the job's id goes on. cancel: the "
        "job is over, for good.",
    )


@dg.op(description="Pauses or cancels crawl jobs, and waits some seconds for their workers to leave.")
def control_jobs(
    context: dg.OpExecutionContext, config: ControlConfig, postgres: PostgresResource
) -> list[dict[str, Any]]:
    """Stop each, say what became of it, and fail if one could not be stopped."""
    if not config.job_ids:
        raise dg.Failure(description="no job was named: job_ids is empty", allow_retries=False)
    stopped = stop_jobs(
        postgres.job_manager(),
        postgres.engine(),
        config.job_ids,
        config.action.value,
        wait_seconds=DEFAULT_WAIT_SECONDS,
    )
    rows = [job.as_dict() for job in stopped]
    context.add_output_metadata({"jobs": table(_COLUMNS, rows)})
    refused = [job.error for job in stopped if job.error]
    if refused:
        raise dg.Failure(description="; ".join(refused), allow_retries=False)
    for job in stopped:
        still = f", {job.workers} workers have not left yet" if job.workers else ""
        context.log.info(f"job {job.job_id} is {job.status}{still}")
    return rows


@dg.job(
    name="control_crawl",
    description="Pauses or cancels crawls, wherever they run. A paused one goes on when `crawl` is launched with its "
    "job_id.",
    executor_def=dg.in_process_executor,
)
def control_crawl() -> None:
    """Stop crawls."""
    control_jobs()
