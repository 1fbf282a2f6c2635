"""Everything that happens by the clock, in UTC, with its reason and its minute.

| schedule | job | when (UTC) |
|---|---|---|
| `statistics_daily` (stands with its assets) | `statistics` | 00:30 |
| `page_embeddings_daily` | `embeddings` | 00:50 |
| `message_queue_cleanup_daily` | `cleanup_message_queue` | 01:05 |
| `scrape_jobs_cleanup_weekly` | `cleanup_scrape_jobs` | Sunday 01:35 |
| `conversations_retention_weekly` | `cleanup_conversations` | Sunday 02:05 |
| `analytics_retention_weekly` | `cleanup_analytics` | Sunday 02:35 |
| `page_html_cleanup_daily` | `cleanup_page_html` | 03:05 |
| `purge_runs_weekly` | `purge_runs` | Sunday 03:35 |
| `reports_weekly` | `reports` | Monday 04:05 |
| `retention_audit_monthly` | `retention`, looking only | the 1st, 05:05 |
| `refresh_hourly` | `refresh` | minute 20 of each hour |

No two of them fall on the same minute, ever: each minute of the hour belongs to one kind. Statistics come before the
removals of the same night, so that a day is computed before its rows go (the removal computes what is missing itself;
this only saves it the work).

All of them are on from the first start. Retention that somebody has to remember to switch on does not happen, and
rows that are kept too long are a breach; a removal asks the same predicate as its preview, passes over legal holds,
and can be switched off in the UI for as long as somebody needs. The refresh is on as well: which sites are crawled,
and how often, is each configuration's own business (`enabled`, `schedule.every_hours`), and a second switch would be
one more thing to forget.

A tick has one run, however often it is evaluated: the run key is the schedule's name and the tick's time. After an
outage Dagster makes the newest missed tick only, which is enough for all of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from omniops_pipelines.jobs.retention import POLICY_OPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Timetable:
    """One schedule.

    Attributes:
        name: of the schedule.
        job: what it runs.
        cron: when, in UTC.
        why: what it is for.
        run_config: of each run.
    """

    name: str
    job: str
    cron: str
    why: str
    run_config: Mapping[str, Any] = field(default_factory=dict)


def ops_config(**configs: Mapping[str, Any]) -> dict[str, Any]:
    """Run configuration from each op's own."""
    return {"ops": {op: {"config": dict(config)} for op, config in configs.items()}}


def _removing(policy: str) -> dict[str, Any]:
    """In the Launchpad a removal only looks; a schedule means it."""
    return ops_config(**{POLICY_OPS[policy].name: {"dry_run": False}})


TIMETABLES: Final = (
    Timetable(
        "page_embeddings_daily",
        "embeddings",
        "50 0 * * *",
        "Pages that their crawl did not embed: it was not asked to, or met an endpoint in trouble or a spent budget.",
    ),
    Timetable(
        "message_queue_cleanup_daily",
        "cleanup_message_queue",
        "5 1 * * *",
        "Messages expire 24 hours after they came; daily, so that none is kept for more than two days.",
        _removing("message_queue"),
    ),
    Timetable(
        "scrape_jobs_cleanup_weekly",
        "cleanup_scrape_jobs",
        "35 1 * * 0",
        "Jobs of more than 90 days. After the statistics, which are made from their results.",
        _removing("scrape_jobs"),
    ),
    Timetable(
        "conversations_retention_weekly",
        "cleanup_conversations",
        "5 2 * * 0",
        "Conversations of more than 90 days, or as old as their customer's configuration says.",
        _removing("conversations"),
    ),
    Timetable(
        "analytics_retention_weekly",
        "cleanup_analytics",
        "35 2 * * 0",
        "Analytics of more than a year.",
        _removing("analytics"),
    ),
    Timetable(
        "page_html_cleanup_daily",
        "cleanup_page_html",
        "5 3 * * *",
        "HTML that was kept as long as its customer asked for; daily, so that a day means a day.",
        ops_config(remove_expired_page_html={"dry_run": False}),
    ),
    Timetable(
        "purge_runs_weekly",
        "purge_runs",
        "35 3 * * 0",
        "Dagster's own runs of more than 90 days, but none that an asset's latest event stands on.",
        ops_config(purge_old_runs={"dry_run": False}),
    ),
    Timetable(
        "retention_audit_monthly",
        "retention",
        "5 5 1 * *",
        "Looks, and removes nothing: after a month of removals little may be left that has expired. The run's page "
        "shows what each policy has removed and what it would, and retention_runs keeps the four dry runs as proof.",
        ops_config(**{op.name: {"dry_run": True} for op in POLICY_OPS.values()}),
    ),
    Timetable(
        "refresh_hourly",
        "refresh",
        "20 * * * *",
        "Queues a crawl for each website that is due by its configuration.",
        ops_config(queue_due_websites={"dry_run": False}),
    ),
)

REPORTS_WEEKLY: Final = Timetable(
    "reports_weekly",
    "reports",
    "5 4 * * 1",
    "Retention, health and crawl performance, on Monday before work begins, after the weekend's removals.",
)


def run_key(name: str, tick: datetime) -> str:
    """One for each tick: the same however often, and on whichever machine, the tick is evaluated."""
    return f"{name}:{tick.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def make_schedule(timetable: Timetable) -> dg.ScheduleDefinition:
    """The Dagster schedule of a timetable."""

    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(
            run_key=run_key(timetable.name, context.scheduled_execution_time), run_config=timetable.run_config
        )

    return dg.ScheduleDefinition(
        name=timetable.name,
        job_name=timetable.job,
        cron_schedule=timetable.cron,
        execution_timezone="UTC",
        execution_fn=request,
        description=timetable.why,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def schedules() -> Sequence[dg.ScheduleDefinition]:
    """All that this module names."""
    return [make_schedule(timetable) for timetable in TIMETABLES]
