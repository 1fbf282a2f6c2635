"""The job `refresh`: queues a crawl for each customer's website that is due.

It starts no crawl: `queued_jobs_sensor` makes runs of what is queued, whoever queued it.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from dataclasses import asdict
from typing import Any, Final

import dagster as dg
from pydantic import Field

from omniops_pipelines.run_metadata import table
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.crawler.refresh import DEFAULT_MAX_JOBS, MAX_JOBS, InvalidRefresh, RefreshResult, check_max_jobs
from resources.crawler.refresh import refresh as queue_due_sites
from resources.postgres.connection import DatabaseError
from resources.postgres.resource import PostgresResource
from resources.services import ServiceError

_COLUMNS: Final = {
    "outcome": "string", "customer": "string", "domain": "string", "job_id": "string", "reason": "string",
}  # fmt: skip

# Each line of a run's log costs a connection; the table has more of them.
_LOGGED: Final = 20


class RefreshConfig(dg.Config):
    """What a refresh may do."""

    dry_run: bool = Field(
        default=True, description="Look only: say which websites are due, and queue nothing. Turn it off to queue."
    )
    max_jobs: int = Field(
        default=DEFAULT_MAX_JOBS,
        description=f"At most so many jobs are queued, 1 to {MAX_JOBS:,}; the next refresh goes on with the rest.",
    )


@dg.op(description="Queues a job for each enabled website whose last one is older than its interval.")
def queue_due_websites(
    context: dg.OpExecutionContext, config: RefreshConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """Queue what is due; report every configuration that cannot be read, with its reason."""
    try:
        check_max_jobs(config.max_jobs)
        check_database(postgres.endpoints().database_url)
        result = queue_due_sites(
            postgres.engine(), postgres.job_manager(), dry_run=config.dry_run, max_jobs=config.max_jobs
        )
    except (InvalidRefresh, DatabaseError, ServiceError, RefusedOrder) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    _log(context, result)
    context.add_output_metadata({
        "dry_run": result.dry_run,
        **{f"websites: {outcome}": result.counts[outcome] for outcome in result.counts},
        "queued": result.counts["queued"],
        "invalid": result.counts["invalid"],
        "websites": table(
            _COLUMNS,
            [asdict(outcome) for outcome in result.sorted()],
            left_out=result.counts.total() - len(result.named),
        ),
    })  # fmt: skip
    return {"dry_run": result.dry_run, **result.counts}


def _log(context: dg.OpExecutionContext, result: RefreshResult) -> None:
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(result.counts.items()))
    context.log.info(f"enabled websites: {said}" if said else "no website is configured and enabled")
    invalid = [outcome for outcome in result.sorted() if outcome.outcome == "invalid"]
    for outcome in invalid[:_LOGGED]:
        context.log.warning(f"{outcome.customer}, {outcome.domain}: not queued: {outcome.reason}")
    hidden = result.counts["invalid"] - len(invalid[:_LOGGED])
    if hidden:
        context.log.warning(f"and {hidden:,} more configurations that cannot be read: see the table of websites")


@dg.job(
    description="Queues a crawl for each customer's website that is due by its configuration. In the Launchpad it "
    "only looks; turn dry_run off to queue.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_retries": "2"},
)
def refresh() -> None:
    """Once an hour, by `refresh_hourly`."""
    queue_due_websites()
