"""The job `purge_runs`: keeps Dagster's own history from growing for ever.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from omniops_pipelines.run_metadata import table
from omniops_pipelines.run_purge import purge_runs as purge

# Jobs of ops, whose runs are history and no more. Asset jobs are not among them: their runs are the assets' history.
PURGED_JOBS: Final = (
    "crawl",
    "control_crawl",
    "refresh",
    "reprocess",
    "retention",
    "cleanup_message_queue",
    "cleanup_scrape_jobs",
    "cleanup_conversations",
    "cleanup_analytics",
    "cleanup_page_html",
    "erase_customer",
    "purge_runs",
)

# As long as the record of a crawl itself is kept.
DEFAULT_DAYS: Final = 90
_MAX_DAYS: Final = 36_500

# Half an hour's work; the next week goes on.
DEFAULT_MAX_RUNS: Final = 20_000
_MAX_MAX_RUNS: Final = 1_000_000


class PurgeConfig(dg.Config):
    """Which runs go."""

    dry_run: bool = Field(default=True, description="Look only: say how many runs would go. Turn it off to delete.")
    days: int = Field(
        default=DEFAULT_DAYS, description=f"Runs that ended more than so many days ago go, 1 to {_MAX_DAYS}."
    )
    max_runs: int = Field(
        default=DEFAULT_MAX_RUNS,
        description=f"At most so many runs are deleted, 1 to {_MAX_MAX_RUNS:,}; the next purge goes on.",
    )


def check_bounds(days: int, max_runs: int) -> None:
    """Refuse what is out of range.

    Raises:
        ValueError: with what it was and what it may be.
    """
    if not 1 <= days <= _MAX_DAYS:
        msg = f"days is {days}, but it must be between 1 and {_MAX_DAYS}"
        raise ValueError(msg)
    if not 1 <= max_runs <= _MAX_MAX_RUNS:
        msg = f"max_runs is {max_runs}, but it must be between 1 and {_MAX_MAX_RUNS:,} runs"
        raise ValueError(msg)


@dg.op(description="Deletes old runs of op jobs, but none that has the latest materialisation of an asset.")
def purge_old_runs(context: dg.OpExecutionContext, config: PurgeConfig) -> dict[str, Any]:
    """Delete, or count, and say by job what went and what stays for its assets' sake."""
    try:
        check_bounds(config.days, config.max_runs)
    except ValueError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    before = datetime.now(UTC) - timedelta(days=config.days)
    result = purge(context.instance, PURGED_JOBS, before, dry_run=config.dry_run, max_runs=config.max_runs)
    gone, spared = result.purged.total(), result.spared.total()
    said = "would be deleted; turn dry_run off to delete them" if config.dry_run else "deleted"
    context.log.info(f"{gone:,} runs {said}; {spared:,} stay, since an asset's latest event is theirs")
    context.add_output_metadata({
        "dry_run": config.dry_run,
        "runs": gone,
        "spared": spared,
        "folders": result.folders,
        "more left": result.bounded,
        "ended before": dg.MetadataValue.timestamp(before),
        "by job": table(
            {"job": "string", "deleted": "int", "spared": "int"},
            [
                {"job": job, "deleted": result.purged[job], "spared": result.spared[job]}
                for job in PURGED_JOBS
                if result.purged[job] or result.spared[job]
            ],
        ),
    })  # fmt: skip
    return {"dry_run": config.dry_run, "runs": gone, "spared": spared}


@dg.job(
    description="Deletes runs of op jobs that ended more than 90 days ago, with their events and files, but none "
    "that has the latest materialisation of an asset. In the Launchpad it only looks; turn dry_run off to delete.",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_retries": "2"},
)
def purge_runs() -> None:
    """Once a week, by `purge_runs_weekly`."""
    purge_old_runs()
