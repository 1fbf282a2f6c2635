"""`cleanup_failure_sensor`: a cleanup that failed, and one that did not run, are alerts.

What ran is read from `retention_runs`, whoever started it: a schedule, the Launchpad, `omniops cleanup`. What did not
run leaves no trace, so each policy has a time by which it has to have run (its schedule's period and some grace),
counted from its last completed run; before the first one, from when this sensor first looked.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from sqlalchemy import Connection, text

from resources.alerts import Alert
from resources.postgres.catalogue import POLICIES, RetentionPolicy
from resources.postgres.resource import PostgresResource
from resources.postgres.watermarks import read_watermark
from sensors.alerting import Over, alerts_of, in_words, report
from sensors.run_failures import CLEANUP_FAILED

CLEANUP_DID_NOT_RUN: Final = "cleanup_did_not_run"
INTERVAL_SECONDS: Final = 300
WATERMARK: Final = "cleanups_first_seen"

# Period and grace of each schedule in the catalogue: a day's run may wait for the queue or a restart, a week's for
# the next morning.
DUE_WITHIN: Final[Mapping[str, tuple[timedelta, timedelta]]] = {
    "daily": (timedelta(days=1), timedelta(hours=6)),
    "weekly": (timedelta(days=7), timedelta(days=1)),
    "monthly": (timedelta(days=31), timedelta(days=2)),
}


@dataclass(frozen=True, slots=True)
class CleanupRuns:
    """What `retention_runs` says of a policy; previews do not count.

    Attributes:
        completed_at: end of the last run that was completed.
        completed_start: its start.
        failed_at: end of the last run that failed.
        failed_start: its start.
        failures: runs that failed since the last one that was completed.
        error: why the last one failed.
        run_id: its Dagster run.
        record_id: its row.
    """

    completed_at: datetime | None = None
    completed_start: datetime | None = None
    failed_at: datetime | None = None
    failed_start: datetime | None = None
    failures: int = 0
    error: str | None = None
    run_id: str | None = None
    record_id: int | None = None


def judge(
    policy: RetentionPolicy,
    runs: CleanupRuns,
    first_seen: datetime,
    now: datetime,
    open_since: datetime | None = None,
) -> list[Alert | Over]:
    """What there is to say of a policy. Pure.

    Args:
        policy: of the catalogue.
        runs: what there was.
        first_seen: when this installation was first looked at.
        now: the time.
        open_since: when the open alert of a failure was last seen; None: there is none.
    """
    findings: list[Alert | Over] = []
    failed = runs.failed_start is not None and (
        runs.completed_start is None or runs.failed_start > runs.completed_start
    )
    if failed:
        findings.append(
            Alert(
                alert=CLEANUP_FAILED,
                episode=policy.name,
                severity="critical",
                message=f"cleanup of {policy.name} failed: {runs.error or 'the run left no reason'}",
                what_to_do=f"Mend what the message says, then run `omniops cleanup {policy.name}`: it goes on where "
                "it stopped.",
                run_id=runs.run_id,
                details={"policy": policy.name, "failures_in_a_row": runs.failures, "record": runs.record_id},
                # One row of retention_runs is one failure, however often it is looked at; a Dagster run that failed
                # with it has been counted under its own id.
                occurrence=runs.run_id or f"retention_runs/{runs.record_id}",
                at=runs.failed_at,
            )
        )
    elif runs.completed_start is not None and (open_since is None or runs.completed_start >= open_since):
        # A run that began before the failure says nothing of it: some runs fail before they leave a row.
        findings.append(Over(CLEANUP_FAILED, policy.name))
    if policy.schedule is None:
        return findings
    period, grace = DUE_WITHIN[policy.schedule]
    # A row in the future (a clock that was wrong) proves no run.
    last = min(runs.completed_at, now) if runs.completed_at else None
    since = last or first_seen
    late = now - since - period - grace
    if late > timedelta(0):
        ran = f"ran last at {last:%Y-%m-%d %H:%M} UTC" if last else "has never run to its end"
        findings.append(
            Alert(
                alert=CLEANUP_DID_NOT_RUN,
                episode=policy.name,
                severity="critical",
                message=f"cleanup of {policy.name} is due {policy.schedule} and {ran}: rows are kept longer than "
                "they may be",
                what_to_do="Look whether its schedule is switched on and the Dagster daemon runs, and run "
                f"`omniops cleanup {policy.name}` now.",
                details={
                    "policy": policy.name,
                    "last_completed": last.isoformat() if last else None,
                    "overdue_hours": round(late.total_seconds() / 3600, 1),
                },
            )
        )
    else:
        findings.append(Over(CLEANUP_DID_NOT_RUN, policy.name))
    return findings


_RUNS = text("""
    SELECT p.name AS policy,
           c.completed_at, c.started_at AS completed_start,
           coalesce(f.completed_at, f.started_at) AS failed_at, f.started_at AS failed_start,
           (SELECT count(*) FROM retention_runs AS r
            WHERE r.policy = p.name AND NOT r.dry_run AND r.status = 'failed'
              AND (c.started_at IS NULL OR r.started_at > c.started_at)) AS failures,
           f.error_message AS error, f.run_id, f.id AS record_id
    FROM unnest(CAST(:policies AS text[])) AS p (name)
    LEFT JOIN LATERAL (SELECT r.started_at, r.completed_at FROM retention_runs AS r
                       WHERE r.policy = p.name AND NOT r.dry_run AND r.status = 'completed'
                       ORDER BY r.started_at DESC LIMIT 1) AS c ON true
    LEFT JOIN LATERAL (SELECT r.id, r.started_at, r.completed_at, r.error_message, r.run_id FROM retention_runs AS r
                       WHERE r.policy = p.name AND NOT r.dry_run AND r.status = 'failed'
                       ORDER BY r.started_at DESC LIMIT 1) AS f ON true
""")


def read_runs(connection: Connection, policies: list[str]) -> dict[str, CleanupRuns]:
    """What `retention_runs` says of these policies; every policy has an entry."""
    return {row.policy: CleanupRuns(*list(row)[1:]) for row in connection.execute(_RUNS, {"policies": policies})}


def first_seen(connection: Connection) -> datetime:
    """When this installation was first looked at: now, if that is now."""
    return read_watermark(connection, WATERMARK)


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it nobody notices that what must go stays.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts of cleanups that failed and of cleanups that did not run; the next one that is completed "
    "ends both.",
)
def cleanup_failure_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
    """Look at every policy that removes by a schedule."""
    del context
    policies = [policy for policy in POLICIES.values() if policy.schedule is not None]
    alerts = alerts_of(postgres)
    with postgres.engine().begin() as connection:
        seen = first_seen(connection)
        runs = read_runs(connection, [policy.name for policy in policies])
    open_failures = alerts.open_episodes(CLEANUP_FAILED)
    now = datetime.now(UTC)
    findings = [
        finding
        for policy in policies
        for finding in judge(policy, runs[policy.name], seen, now, open_failures.get((CLEANUP_FAILED, policy.name)))
    ]
    return dg.SkipReason(in_words(*report(alerts, findings)))
