"""Whether the retention policies are kept: what they removed, what is still there, and what should not be.

A policy runs by a schedule, so a row may be past its age for as long as a period of it. A *violation* is a row that
was past its age before the last period began: a run has passed it over, or there was none. Rows of a customer under a
legal hold are none, and neither are those of a customer whose hold was released within the period.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from resources.postgres.catalogue import POLICIES, TABLES
from resources.postgres.reports.quality import MAX_SAMPLES, Violations
from resources.postgres.reports.retention_forecast import DueRows, due_rows
from resources.postgres.reports.storage import row_estimates, table_bytes
from resources.postgres.retention import REMOVABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection

# Period and grace by the schedule's word in the catalogue: a run that waits for its turn, or takes long, is not late.
DUE_WITHIN: Final[Mapping[str, tuple[timedelta, timedelta]]] = {
    "daily": (timedelta(days=1), timedelta(hours=6)),
    "weekly": (timedelta(days=7), timedelta(days=1)),
}

# A table below this size is counted; a larger one's statistics are taken.
_COUNTED_BYTES: Final = 16_000_000

HISTORY_DAYS: Final = 90


@dataclass(frozen=True, slots=True)
class PolicyAudit:
    """A policy, and its runs (dry runs left out).

    Attributes:
        policy: its name.
        keeps: in words.
        schedule: in words.
        last_success: end of the last run that was completed; None if there was none.
        last_failure: start of the last run that failed.
        last_error: what it said.
        runs_30: in the last 30 days.
        failures_30: of them.
        removed_30: rows removed in the last 30 days, by failed runs too.
        removed_90: in the last 90.
        overdue: True if no run was completed within its period.
    """

    policy: str
    keeps: str
    schedule: str
    last_success: datetime | None
    last_failure: datetime | None
    last_error: str | None
    runs_30: int
    failures_30: int
    removed_30: int
    removed_90: int
    overdue: bool


@dataclass(frozen=True, slots=True)
class TableAudit:
    """A table that a policy removes from.

    Attributes:
        table: in schema `public`.
        policy: that removes its rows.
        rows: kept now.
        estimated: True if `rows` is by the table's statistics.
        oldest: time of the oldest row by the policy's own measure of age; None where it is empty, or goes with a
            parent.
        expired: rows that the next run removes.
        violations: rows that an earlier run should have removed.
    """

    table: str
    policy: str
    rows: int
    estimated: bool
    oldest: datetime | None
    expired: int
    violations: int


@dataclass(frozen=True, slots=True)
class HeldCustomer:
    """A customer under a legal hold; the reason stays in the database."""

    customer: str
    holds: int
    since: datetime


@dataclass(frozen=True, slots=True)
class RetentionAudit:
    """The whole.

    Attributes:
        at: when it was made.
        policies: those that remove by age.
        tables: that they remove from.
        violations: by table and customer.
        excused: past their age, of customers whose hold was released within the period.
        held: customers under a legal hold.
        overrides: customers who keep conversations for another time: slug, domain, days.
        removed_by_day: rows removed of the last 90 days: day, policy, rows.
        compliance: entries of the audit log of the last 90 days: action, status, how many.
    """

    at: datetime
    policies: tuple[PolicyAudit, ...]
    tables: tuple[TableAudit, ...]
    violations: tuple[DueRows, ...]
    excused: tuple[DueRows, ...]
    held: tuple[HeldCustomer, ...]
    overrides: tuple[tuple[str, str, int], ...]
    removed_by_day: tuple[tuple[datetime, str, int], ...]
    compliance: tuple[tuple[str, str, int], ...]

    @property
    def overdue(self) -> tuple[str, ...]:
        """Policies that did not run in time."""
        return tuple(policy.policy for policy in self.policies if policy.overdue)

    @property
    def violating_rows(self) -> int:
        """Rows that should have been removed, of all tables."""
        return sum(row.rows for row in self.violations)


def allowed_delay(policy: str) -> timedelta:
    """How long a row of a policy may be past its age: the period of its schedule, and some grace.

    Raises:
        ValueError: the policy has no schedule.
    """
    schedule = POLICIES[policy].schedule
    if schedule is None or schedule not in DUE_WITHIN:
        msg = f"policy {policy} is removed {schedule or 'when asked for'}: there is no period to measure it by"
        raise ValueError(msg)
    period, grace = DUE_WITHIN[schedule]
    return period + grace


def violations(connection: Connection, policy: str, table: str | None = None) -> tuple[list[DueRows], list[DueRows]]:
    """Rows that an earlier run should have removed, and those among them that a released hold excuses.

    By the predicate that removes, asked for the moment before the last period; of all the policy's tables, or of one
    with what goes with it.
    """
    since = connection.execute(
        text("SELECT now() - CAST(:delay AS interval)"), {"delay": allowed_delay(policy)}
    ).scalar_one()
    released = set(
        connection.scalars(text("SELECT customer_id FROM legal_holds WHERE released_at >= :since"), {"since": since})
    )
    wrong: list[DueRows] = []
    excused: list[DueRows] = []
    for row in due_rows(connection, policy, [since], table=table):
        (excused if row.customer_id in released else wrong).append(row)
    return wrong, excused


def violations_of_table(connection: Connection, table: str) -> Violations:
    """Rows of one table that an earlier run should have removed, as a check sees them."""
    wrong = [row for row in violations(connection, TABLES[table].policy, table)[0] if row.table == table]
    return Violations(
        row_estimates(connection, [table])[table],
        sum(row.rows for row in wrong),
        tuple({"customer": row.customer or "(platform)", "rows": row.rows} for row in wrong[:MAX_SAMPLES]),
    )


def retention_audit(connection: Connection) -> RetentionAudit:
    """Whether the policies are kept, now."""
    at = connection.execute(text("SELECT now()")).scalar_one()
    wrong: list[DueRows] = []
    excused: list[DueRows] = []
    expired: list[DueRows] = []
    for policy in REMOVABLE:
        found = violations(connection, policy)
        wrong += found[0]
        excused += found[1]
        expired += due_rows(connection, policy, [at])
    return RetentionAudit(
        at,
        tuple(_policies(connection, at)),
        tuple(_tables(connection, expired, wrong)),
        tuple(sorted(wrong, key=lambda row: (-row.rows, row.table, row.customer or ""))),
        tuple(excused),
        tuple(_held(connection)),
        tuple(
            (row[0], row[1], row[2])
            for row in connection.execute(
                text("""
                    SELECT c.slug, o.domain, o.days FROM conversation_retention_overrides() AS o
                    JOIN customers AS c ON c.id = o.customer_id WHERE o.days IS NOT NULL ORDER BY 1, 2
                """)
            )
        ),
        tuple(
            (row[0], row[1], row[2])
            for row in connection.execute(
                text("""
                    SELECT date_trunc('day', r.started_at, 'UTC') AS day, r.policy, sum(r.rows_removed)::bigint
                    FROM retention_runs AS r
                    WHERE NOT r.dry_run AND r.started_at >= now() - make_interval(days => :days)
                    GROUP BY 1, 2 ORDER BY 1, 2
                """),
                {"days": HISTORY_DAYS},
            )
        ),
        tuple(
            (row[0], row[1], row[2])
            for row in connection.execute(
                text("""
                    SELECT g.action, g.status, count(*) FROM gdpr_audit_log AS g
                    WHERE g.created_at >= now() - make_interval(days => :days) GROUP BY 1, 2 ORDER BY 1, 2
                """),
                {"days": HISTORY_DAYS},
            )
        ),
    )


def _policies(connection: Connection, at: datetime) -> list[PolicyAudit]:
    found = []
    for name in REMOVABLE:
        policy = POLICIES[name]
        # By the index of policy and start: the newest rows, never all of the log.
        row = connection.execute(
            text("""
                SELECT (SELECT r.completed_at FROM retention_runs AS r
                        WHERE r.policy = :policy AND NOT r.dry_run AND r.status = 'completed'
                        ORDER BY r.started_at DESC LIMIT 1) AS last_success,
                       f.started_at AS last_failure, f.error_message AS last_error, n.*
                FROM (SELECT count(*) FILTER (WHERE r.started_at >= now() - interval '30 days') AS runs_30,
                             count(*) FILTER (WHERE r.started_at >= now() - interval '30 days'
                                                AND r.status = 'failed') AS failures_30,
                             coalesce(sum(r.rows_removed) FILTER (
                                 WHERE r.started_at >= now() - interval '30 days'), 0)::bigint AS removed_30,
                             coalesce(sum(r.rows_removed), 0)::bigint AS removed_90
                      FROM retention_runs AS r
                      WHERE r.policy = :policy AND NOT r.dry_run AND r.started_at >= now() - interval '90 days') AS n
                LEFT JOIN LATERAL (SELECT r.started_at, r.error_message FROM retention_runs AS r
                                   WHERE r.policy = :policy AND NOT r.dry_run AND r.status = 'failed'
                                   ORDER BY r.started_at DESC LIMIT 1) AS f ON true
            """),
            {"policy": name},
        ).one()
        overdue = row.last_success is None or at - row.last_success > allowed_delay(name)
        found.append(
            PolicyAudit(
                name,
                policy.keeps,
                policy.schedule or "",
                row.last_success,
                row.last_failure,
                row.last_error,
                row.runs_30,
                row.failures_30,
                row.removed_30,
                row.removed_90,
                overdue,
            )
        )
    return found


# The oldest row of each table by its policy's measure of age, found by index. What goes with a parent has none.
_OLDEST: Final[Mapping[str, str]] = {
    "message_queue": "SELECT min(expires_at) - interval '24 hours' FROM message_queue",
    "scrape_jobs": """SELECT min(coalesce(completed_at, created_at)) FROM scrape_jobs
                      WHERE status IN ('completed', 'failed', 'cancelled')""",
    "conversations": """SELECT min(o.at) FROM customers AS c CROSS JOIN LATERAL (
                            SELECT v.updated_at AS at FROM conversations AS v WHERE v.customer_id = c.id
                            ORDER BY v.updated_at LIMIT 1) AS o""",
    "conversation_funnel": """SELECT min(o.at) FROM customers AS c CROSS JOIN LATERAL (
                                  SELECT f.created_at AS at FROM conversation_funnel AS f WHERE f.customer_id = c.id
                                  ORDER BY f.created_at LIMIT 1) AS o""",
    "alert_history": "SELECT min(opened_at) FROM alert_history",
    "storage_snapshots": "SELECT min(taken_at) FROM storage_snapshots",
    "daily_job_stats": "SELECT min(day)::timestamp AT TIME ZONE 'UTC' FROM daily_job_stats",
    "daily_domain_stats": "SELECT min(day)::timestamp AT TIME ZONE 'UTC' FROM daily_domain_stats",
}


def _tables(connection: Connection, expired: list[DueRows], wrong: list[DueRows]) -> list[TableAudit]:
    names = [name for name, entry in TABLES.items() if entry.policy in REMOVABLE]
    estimates = row_estimates(connection, names)
    sizes = table_bytes(connection, names)
    found = []
    for name in names:
        counted = sizes[name] <= _COUNTED_BYTES
        rows = (
            connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()  # noqa: S608 - the catalogue's
            if counted
            else estimates[name]
        )
        found.append(
            TableAudit(
                name,
                TABLES[name].policy,
                rows,
                not counted,
                connection.scalar(text(_OLDEST[name])) if name in _OLDEST else None,
                sum(row.rows for row in expired if row.table == name),
                sum(row.rows for row in wrong if row.table == name),
            )
        )
    return sorted(found, key=lambda table: (REMOVABLE.index(table.policy), table.table))


def _held(connection: Connection) -> list[HeldCustomer]:
    rows = connection.execute(
        text("""
            SELECT c.slug AS customer, count(*) AS holds, min(h.placed_at) AS since
            FROM legal_holds AS h JOIN customers AS c ON c.id = h.customer_id
            WHERE h.released_at IS NULL GROUP BY c.slug ORDER BY 1
        """)
    ).mappings()
    return [HeldCustomer(**row) for row in rows]
