"""The jobs that remove what has expired: one for each policy, and `retention`, which runs them all.

What goes is decided and removed by `resources.postgres.retention`; here it meets Dagster: configuration, the run's
page, cancellation. In the Launchpad a run only looks (`dry_run`) until somebody says otherwise; the schedules do.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

from datetime import UTC
from typing import Any, Final

import dagster as dg
from pydantic import Field
from sqlalchemy import Engine, text

from omniops_pipelines.run_metadata import table
from resources.crawler.crawl_order import RefusedOrder, check_database
from resources.postgres.catalogue import POLICIES
from resources.postgres.connection import DatabaseError
from resources.postgres.resource import PostgresResource
from resources.postgres.retention import (
    REMOVABLE,
    InvalidRetentionDays,
    RetentionResult,
    check_days,
    run,
)
from resources.services import ServiceError

# Removals are the heaviest writers that there are. One at a time leaves the disk to the crawls; the pool's limit is
# in dagster.yaml.
RETENTION_POOL: Final = "retention"

# A run whose process died (out of memory, a lost node) is started again; what it had removed is recorded. A run that
# failed by itself is not: the next tick is soon enough, and somebody is told.
RETRY_TAGS: Final = {"dagster/max_retries": "2"}

_ROWS: Final = {
    "customer": "string", "table": "string", "rows": "int", "bytes": "int", "oldest": "string", "unprocessed": "int",
}  # fmt: skip

# How far back an op tells of its policy's earlier runs: a month and its longest weekend, for the monthly audit.
_HISTORY_DAYS: Final = 35


class ExpiryConfig(dg.Config):
    """Whether to remove or to look."""

    dry_run: bool = Field(
        default=True,
        description="Look only: count what would go, by the very predicate of the removal. "
        "Turn it off to remove; there is no way back.",
    )


class RetentionConfig(ExpiryConfig):
    """Whether to remove or to look, and from which age on."""

    days: int | None = Field(
        default=None,
        description="Another age in days than the policy's own, 1 to 36500. Younger rows go with a smaller one.",
    )


def refuse(error: Exception) -> dg.Failure:
    """A clear end of the run, without retries: the same request would be refused again."""
    return dg.Failure(description=str(error), allow_retries=False)


def apply_policy(
    context: dg.OpExecutionContext, postgres: PostgresResource, policy: str, *, dry_run: bool, days: int | None
) -> dict[str, Any]:
    """Remove (or count) what has expired by a policy, and put the figures on the run's page.

    Raises:
        Failure: the days are out of range or the database cannot be used; or the removal stopped, and what it had
            removed is recorded.
    """
    try:
        check_days(policy, days)
        check_database(postgres.endpoints().database_url)
        result = run(postgres.engine(), policy, days, dry_run=dry_run, run_id=context.run_id)
    except (InvalidRetentionDays, DatabaseError, ServiceError, RefusedOrder) as error:
        raise refuse(error) from error
    except dg.DagsterExecutionInterruptedError:
        _say_cancelled(postgres.engine(), policy, context.run_id)
        raise
    context.log.info(_sentence(result))
    context.add_output_metadata(_metadata(postgres.engine(), result))
    if not dry_run:
        _observe(context, result)
    return {"policy": policy, "dry_run": dry_run, "rows": result.rows_removed, "record": result.record_id}


def _say_cancelled(engine: Engine, policy: str, run_id: str) -> None:
    """The record is closed as failed already, by the name of Dagster's exception; a person reads this better."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                UPDATE retention_runs
                SET error_message = 'the run was cancelled; what it had removed is counted, the next run goes on'
                WHERE policy = :policy AND run_id = :run_id AND status = 'failed'
            """),
            {"policy": policy, "run_id": run_id},
        )


def _sentence(result: RetentionResult) -> str:
    count = result.rows_removed
    if not count:
        said = "nothing has expired"
    elif result.dry_run:
        said = f"{count:,} rows would be removed; turn dry_run off to remove them"
    else:
        said = f"{count:,} rows removed in {result.batches} batches"
    held = f"; under a legal hold, so left alone: {len(result.held)} customers" if result.held else ""
    return f"{result.policy}: {said}{held}"


def _metadata(engine: Engine, result: RetentionResult) -> dict[str, Any]:
    rows = sorted((row.as_dict() for row in result.rows), key=lambda row: -row["rows"])
    totals: dict[str, int] = {}
    for row in result.rows:
        totals[row.table] = totals.get(row.table, 0) + row.rows
    days = {} if result.days is None else {"days": result.days}
    return {
        "dry_run": result.dry_run,
        "rows": result.rows_removed,
        "bytes": sum(row.bytes for row in result.rows),
        **{f"rows of {name}": count for name, count in totals.items()},
        **days,
        "kept": POLICIES[result.policy].keeps,
        "cutoff": dg.MetadataValue.timestamp(result.cutoff),
        "by table and customer": table(_ROWS, rows),
        "customers under a legal hold": ", ".join(result.held[:100]) or "none",
        "batches": result.batches,
        "retries": result.retries,
        "seconds": round(result.seconds, 3),
        "record in retention_runs": result.record_id,
        **_history(engine, result.policy),
    }


def _history(engine: Engine, policy: str) -> dict[str, Any]:
    """What the policy's runs of the last weeks did, dry runs left out."""
    with engine.connect() as connection:
        row = connection.execute(
            text("""
                SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
                       count(*) FILTER (WHERE status = 'failed') AS failed,
                       coalesce(sum(rows_removed), 0)::bigint AS rows,
                       max(completed_at) FILTER (WHERE status = 'completed') AS last
                FROM retention_runs
                WHERE policy = :policy AND NOT dry_run AND started_at > now() - make_interval(days => :days)
            """),
            {"policy": policy, "days": _HISTORY_DAYS},
        ).one()
    last = row.last.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if row.last else "never"
    return {
        f"removals of the last {_HISTORY_DAYS} days": f"{row.completed} completed, {row.failed} failed, "
        f"{row.rows:,} rows; the last one completed: {last}"
    }


def _observe(context: dg.OpExecutionContext, result: RetentionResult) -> None:
    """Say at each table's asset what it lost. Its rows are not counted: that would read all of it."""
    lost: dict[str, list[int]] = {}
    for row in result.rows:
        part = lost.setdefault(row.table, [0, 0])
        part[0] += row.rows
        part[1] += row.bytes
    for name, (rows, size) in lost.items():
        context.log_event(
            dg.AssetObservation(
                asset_key=name,
                description=f"{rows:,} rows removed by the policy {result.policy}",
                metadata={
                    "rows_removed": rows,
                    "bytes_removed": size,
                    "policy": result.policy,
                    "cutoff": dg.MetadataValue.timestamp(result.cutoff),
                },
            )
        )


@dg.op(
    pool=RETENTION_POOL,
    description="Removes queued messages that are past their 24 hours, handled or not; leased ones stay.",
)
def remove_expired_messages(
    context: dg.OpExecutionContext, config: ExpiryConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """The policy `message_queue`: each message has its own time, so there are no days to set."""
    return apply_policy(context, postgres, "message_queue", dry_run=config.dry_run, days=None)


@dg.op(
    pool=RETENTION_POOL,
    description="Removes finished scrape jobs with their results, statistics and frontier. The daily statistics of "
    "their days are computed first.",
)
def remove_expired_scrape_jobs(
    context: dg.OpExecutionContext, config: RetentionConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """The policy `scrape_jobs`."""
    return apply_policy(context, postgres, "scrape_jobs", dry_run=config.dry_run, days=config.days)


@dg.op(
    pool=RETENTION_POOL,
    description="Removes conversations with their messages and metadata, by age of the last message; a customer's "
    "configuration may say another age.",
)
def remove_expired_conversations(
    context: dg.OpExecutionContext, config: RetentionConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """The policy `conversations`."""
    return apply_policy(context, postgres, "conversations", dry_run=config.dry_run, days=config.days)


@dg.op(
    pool=RETENTION_POOL,
    description="Removes analytics that are past their year: funnels, alerts, snapshots, daily statistics.",
)
def remove_expired_analytics(
    context: dg.OpExecutionContext, config: RetentionConfig, postgres: PostgresResource
) -> dict[str, Any]:
    """The policy `analytics`."""
    return apply_policy(context, postgres, "analytics", dry_run=config.dry_run, days=config.days)


# The op of each policy, for jobs and schedules.
POLICY_OPS: Final = {
    "message_queue": remove_expired_messages,
    "scrape_jobs": remove_expired_scrape_jobs,
    "conversations": remove_expired_conversations,
    "analytics": remove_expired_analytics,
}
if set(POLICY_OPS) != set(REMOVABLE):  # pragma: no cover - a new policy without its op
    msg = f"every policy needs its op: {set(REMOVABLE) ^ set(POLICY_OPS)}"
    raise RuntimeError(msg)


@dg.job(
    description="Removes expired messages of the queue. In the Launchpad it only looks; turn dry_run off to remove.",
    executor_def=dg.in_process_executor,
    tags=RETRY_TAGS,
)
def cleanup_message_queue() -> None:
    """The policy `message_queue`."""
    remove_expired_messages()


@dg.job(
    description="Removes finished scrape jobs of more than 90 days. In the Launchpad it only looks; turn dry_run off "
    "to remove.",
    executor_def=dg.in_process_executor,
    tags=RETRY_TAGS,
)
def cleanup_scrape_jobs() -> None:
    """The policy `scrape_jobs`."""
    remove_expired_scrape_jobs()


@dg.job(
    description="Removes conversations whose last message is more than 90 days old. In the Launchpad it only looks; "
    "turn dry_run off to remove.",
    executor_def=dg.in_process_executor,
    tags=RETRY_TAGS,
)
def cleanup_conversations() -> None:
    """The policy `conversations`."""
    remove_expired_conversations()


@dg.job(
    description="Removes analytics of more than 365 days. In the Launchpad it only looks; turn dry_run off to "
    "remove.",
    executor_def=dg.in_process_executor,
    tags=RETRY_TAGS,
)
def cleanup_analytics() -> None:
    """The policy `analytics`."""
    remove_expired_analytics()


@dg.job(
    description="All retention policies, one op each: where one fails the others still run, and the run fails at the "
    "end. In the Launchpad it only looks; turn dry_run off, op by op, to remove.",
    executor_def=dg.in_process_executor,
    tags=RETRY_TAGS,
)
def retention() -> None:
    """Every policy; none waits for another one's success."""
    for op in POLICY_OPS.values():
        op()


RETENTION_JOBS: Final = (
    cleanup_message_queue,
    cleanup_scrape_jobs,
    cleanup_conversations,
    cleanup_analytics,
    retention,
)
