"""How the message queue is: how deep, how old, who holds what, what has failed and what holds others up.

The table holds 24 hours, so its sums are counted and not estimated. No message, session or customer's text is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from sqlalchemy import Connection

# A list of more is not read by anybody.
MAX_BLOCKED_SESSIONS: Final = 100
EXPIRED_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class CustomerQueue:
    """A customer's part of the queue.

    Attributes:
        customer: slug.
        pending: waiting, those in backoff included.
        leased: a handler has them.
        lease_expired: a handler had them, and did not come back in time.
        completed: done, and not yet expired.
        dead: failed for good.
        retries: failures counted on what is still open or dead.
        oldest_open: arrival of the oldest that is not done; None if all are.
    """

    customer: str
    pending: int
    leased: int
    lease_expired: int
    completed: int
    dead: int
    retries: int
    oldest_open: datetime | None


@dataclass(frozen=True, slots=True)
class BlockedSession:
    """A session whose first message fails, so that the others wait.

    Attributes:
        customer: slug.
        message_id: of the failing one.
        state: `failing` (it will be tried again) or `lease_expired` (its handler is gone).
        retries: of the failing one.
        waiting: messages behind it.
        since: arrival of the failing one.
        next_try: when it may be tried again.
    """

    customer: str
    message_id: UUID
    state: str
    retries: int
    waiting: int
    since: datetime
    next_try: datetime


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """The queue at one moment.

    Attributes:
        at: the moment.
        customers: those with messages, the deepest backlog first.
        blocked: sessions that do not move, the longest-blocked first.
        blocked_total: how many there are; `blocked` is cut.
        dead_by_error: dead messages by the kind of their error (what stands before the first colon).
        expired_unprocessed: by retention run that found any: when, and how many nobody had handled in time.
    """

    at: datetime
    customers: tuple[CustomerQueue, ...]
    blocked: tuple[BlockedSession, ...]
    blocked_total: int
    dead_by_error: tuple[tuple[str, int, datetime], ...]
    expired_unprocessed: tuple[tuple[datetime, int], ...]

    def total(self, field: str) -> int:
        """Of all customers."""
        return sum(int(getattr(customer, field)) for customer in self.customers)

    @property
    def open(self) -> int:
        """Messages that are not done: waiting or held."""
        return self.total("pending") + self.total("leased") + self.total("lease_expired")

    @property
    def oldest_open_age(self) -> timedelta | None:
        """How long the oldest message that is not done has waited."""
        times = [customer.oldest_open for customer in self.customers if customer.oldest_open is not None]
        return self.at - min(times) if times else None


def queue_health(connection: Connection) -> QueueHealth:
    """How the queue is now."""
    at = connection.execute(text("SELECT now()")).scalar_one()
    customers = connection.execute(
        text("""
            SELECT c.slug AS customer,
                   count(*) FILTER (WHERE q.status = 'pending') AS pending,
                   count(*) FILTER (WHERE q.status = 'processing' AND q.leased_until > now()) AS leased,
                   count(*) FILTER (WHERE q.status = 'processing' AND coalesce(q.leased_until, '-infinity') <= now())
                       AS lease_expired,
                   count(*) FILTER (WHERE q.status = 'completed') AS completed,
                   count(*) FILTER (WHERE q.status = 'failed') AS dead,
                   coalesce(sum(q.retry_count) FILTER (WHERE q.status <> 'completed'), 0)::bigint AS retries,
                   min(q.created_at) FILTER (WHERE q.status IN ('pending', 'processing')) AS oldest_open
            FROM message_queue AS q JOIN customers AS c ON c.id = q.customer_id
            GROUP BY c.slug ORDER BY count(*) FILTER (WHERE q.status IN ('pending', 'processing')) DESC, c.slug
        """)
    ).mappings()
    found = tuple(CustomerQueue(**row) for row in customers)
    blocked = [
        (row.pop("total"), BlockedSession(**row))
        for row in (dict(row) for row in connection.execute(text(_BLOCKED), _blocked_bounds()).mappings())
    ]
    dead = connection.execute(
        text("""
            SELECT left(split_part(coalesce(q.error_message, 'unknown'), ':', 1), 80) AS error, count(*),
                   max(q.created_at)
            FROM message_queue AS q WHERE q.status = 'failed' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20
        """)
    )
    expired = connection.execute(
        text("""
            SELECT r.started_at, r.expired_unprocessed FROM retention_runs AS r
            WHERE r.policy = 'message_queue' AND NOT r.dry_run AND r.expired_unprocessed > 0
              AND r.started_at >= now() - make_interval(days => :days)
            ORDER BY r.started_at
        """),
        {"days": EXPIRED_DAYS},
    )
    return QueueHealth(
        at,
        found,
        tuple(session for _, session in blocked),
        blocked[0][0] if blocked else 0,
        tuple((row[0], row[1], row[2]) for row in dead),
        tuple((row[0], row[1]) for row in expired),
    )


def _blocked_bounds() -> dict[str, Any]:
    return {"sessions": MAX_BLOCKED_SESSIONS}


# The first open message of each session decides: nothing behind it moves before it is done or dead.
_BLOCKED: Final = """
    WITH heads AS (
        SELECT DISTINCT ON (q.customer_id, q.session_id) q.customer_id, q.id, q.status, q.retry_count, q.created_at,
               greatest(q.available_at, q.leased_until) AS next_try, q.leased_until,
               count(*) OVER (PARTITION BY q.customer_id, q.session_id) - 1 AS waiting
        FROM message_queue AS q WHERE q.status IN ('pending', 'processing')
        ORDER BY q.customer_id, q.session_id, q.position
    ), blocked AS (
        SELECT h.*, CASE WHEN h.status = 'processing' THEN 'lease_expired' ELSE 'failing' END AS state
        FROM heads AS h
        WHERE (h.status = 'pending' AND h.retry_count > 0)
           OR (h.status = 'processing' AND coalesce(h.leased_until, '-infinity') <= now())
    )
    SELECT c.slug AS customer, b.id AS message_id, b.state, b.retry_count AS retries, b.waiting,
           b.created_at AS since, b.next_try, count(*) OVER () AS total
    FROM blocked AS b JOIN customers AS c ON c.id = b.customer_id
    ORDER BY b.created_at, b.id LIMIT :sessions
"""
