"""What retention will remove, and when, by the very predicates that remove it (`expired_…`, asked for later moments).

A row falls due at the first of the moments asked about at which its predicate holds. Children are counted through
their parents, and a job's results by its counters, so that no large table is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.retention import REMOVABLE, check_days, check_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

HORIZON_DAYS: Final = 30

# The predicates are asked once for each moment. With more rows to fall due than this, by week instead of by day.
MAX_ROWS_BY_DAY: Final = 200_000


@dataclass(frozen=True, slots=True)
class DueRows:
    """Rows that fall due by a moment, and did not by the one before.

    Attributes:
        policy: that removes them.
        table: in schema `public`.
        customer_id: whose; None for rows of the platform.
        customer: slug; None for rows of the platform.
        by: the moment.
        rows: how many.
    """

    policy: str
    table: str
    customer_id: UUID | None
    customer: str | None
    by: datetime
    rows: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What will be removed.

    Attributes:
        now: when it was asked.
        moments: ends of the days or weeks; the first is now: what has expired already.
        step_days: between two moments.
        due: by policy, table, customer and moment.
        held: customers under a legal hold, of whom nothing falls due.
    """

    now: datetime
    moments: tuple[datetime, ...]
    step_days: int
    due: tuple[DueRows, ...]
    held: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Root:
    """A table whose rows fall due by themselves, and what goes with them."""

    table: str
    predicate: str
    key: tuple[str, ...]
    # By table: SQL on `d`, a row that is due, that gives customer, moment and count.
    children: tuple[tuple[str, str], ...] = ()
    customer: str = "e.customer_id"


_BY_JOB: Final = (
    "SELECT d.customer_id, d.by, count(*) FROM due AS d JOIN {} AS x ON x.job_id = d.job_id GROUP BY 1, 2"
)
_BY_CONVERSATION: Final = (
    "SELECT d.customer_id, d.by, count(*) FROM due AS d JOIN {} AS x ON x.conversation_id = d.id GROUP BY 1, 2"
)
_ROOTS: Final[Mapping[str, tuple[_Root, ...]]] = {
    "message_queue": (_Root("message_queue", "expired_messages(s.at)", ("id",)),),
    "scrape_jobs": (
        _Root(
            "scrape_jobs",
            "expired_scrape_jobs(:days, s.at)",
            ("job_id",),
            (
                (
                    "scrape_job_results",
                    "SELECT d.customer_id, d.by, sum(t.total_pages)::bigint FROM due AS d "
                    "JOIN scrape_job_stats AS t USING (job_id) GROUP BY 1, 2",
                ),
                ("scrape_job_stats", _BY_JOB.format("scrape_job_stats")),
                ("crawl_frontier", _BY_JOB.format("crawl_frontier")),
            ),
        ),
    ),
    "conversations": (
        _Root(
            "conversations",
            "expired_conversations(:days, s.at)",
            ("id",),
            (
                ("messages", _BY_CONVERSATION.format("messages")),
                ("conversation_metadata", _BY_CONVERSATION.format("conversation_metadata")),
            ),
        ),
    ),
    "analytics": (
        _Root("conversation_funnel", "expired_conversation_funnel(:days, s.at)", ("id",)),
        _Root("alert_history", "expired_alert_history(:days, s.at)", ("id",)),
        _Root("storage_snapshots", "expired_storage_snapshots(:days, s.at)", ("id",), customer="CAST(NULL AS uuid)"),
        _Root("daily_job_stats", "expired_daily_job_stats(:days, s.at)", ("day", "customer_id")),
        _Root("daily_domain_stats", "expired_daily_domain_stats(:days, s.at)", ("day", "customer_id", "domain")),
    ),
}


def tables_by_age(policy: str) -> tuple[str, ...]:
    """Tables of a policy whose rows have an age of their own; those of the others go with a parent."""
    return tuple(root.table for root in _ROOTS[check_policy(policy)])


def due_rows(
    connection: Connection,
    policy: str,
    moments: Sequence[datetime],
    days: int | None = None,
    *,
    table: str | None = None,
) -> list[DueRows]:
    """Rows that fall due by each of the moments and not by an earlier one of them.

    Args:
        connection: as the service.
        policy: a policy that removes by age.
        moments: with time zone, in order; a single one gives all that has expired by then.
        days: another age than the policy's own.
        table: only this one of `tables_by_age` and what goes with it.

    Raises:
        UnknownPolicy: there is no such policy.
        InvalidRetentionDays: the days are out of range.
    """
    days = check_days(policy, days)
    found: list[DueRows] = []
    for root in (root for root in _ROOTS[policy] if table in (None, root.table)):
        parameters: dict[str, Any] = {"moments": list(moments)}
        if ":days" in root.predicate:
            parameters["days"] = days
        for of_table, row in _ask(connection, root, parameters):
            found.append(DueRows(policy, of_table, row.customer_id, row.customer, row.by, row.rows))
    return sorted(found, key=lambda due: (due.by, due.customer or "", due.table))


def _ask(connection: Connection, root: _Root, parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
    own = "SELECT d.customer_id, d.by, count(*) FROM due AS d GROUP BY 1, 2"
    parts = " UNION ALL ".join(
        f"SELECT '{table}' AS of_table, n.* FROM ({counted}) AS n (customer_id, by, rows)"  # noqa: S608 - constants
        for table, counted in ((root.table, own), *root.children)
    )
    keys = ", ".join(f"e.{column}" for column in root.key if column != "customer_id")
    rows = connection.execute(
        text(f"""
            WITH due AS MATERIALIZED (
                SELECT {keys}, {root.customer} AS customer_id, min(s.at) AS by
                FROM unnest(CAST(:moments AS timestamptz[])) AS s (at) CROSS JOIN LATERAL {root.predicate} AS e
                GROUP BY {keys}, {root.customer}
            )
            SELECT p.of_table, p.customer_id, c.slug AS customer, p.by, p.rows
            FROM ({parts}) AS p LEFT JOIN customers AS c ON c.id = p.customer_id WHERE p.rows > 0
        """),  # noqa: S608 - constants of this module
        parameters,
    )
    return [(row.of_table, row) for row in rows]


def forecast(connection: Connection, horizon_days: int = HORIZON_DAYS) -> Forecast:
    """What every policy will remove of the rows that there are, day by day (or week by week, where it is much).

    Args:
        connection: as the service.
        horizon_days: how far to look, at least 1.
    """
    now = connection.execute(text("SELECT now()")).scalar_one()
    horizon = now + timedelta(days=horizon_days)
    total = sum(
        connection.execute(
            text(f"SELECT count(*) FROM {root.predicate.replace('s.at', ':horizon')} AS e"),  # noqa: S608 - constants
            {"horizon": horizon, **({"days": check_days(policy, None)} if ":days" in root.predicate else {})},
        ).scalar_one()
        for policy, roots in _ROOTS.items()
        for root in roots
    )
    step = 1 if total <= MAX_ROWS_BY_DAY else 7
    moments = [now + timedelta(days=day) for day in range(0, horizon_days, step)]
    moments.append(horizon)
    due = [row for policy in REMOVABLE for row in due_rows(connection, policy, moments)]
    return Forecast(now, tuple(moments), step, tuple(due), held_customers(connection))


def held_customers(connection: Connection) -> tuple[str, ...]:
    """Slugs of the customers under a legal hold."""
    rows = connection.scalars(
        text("""
            SELECT DISTINCT c.slug FROM legal_holds AS h JOIN customers AS c ON c.id = h.customer_id
            WHERE h.released_at IS NULL ORDER BY 1
        """)
    )
    return tuple(rows)
