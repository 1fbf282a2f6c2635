"""`capacity_sensor`: storage, Redis memory and connections, before they run out.

An alert opens at 80 % and is over below 75 %, so that a figure that wavers at the mark is one episode. What could not
be read is not zero: an alert stays as it is, and that Redis is away is an alert of its own. If Postgres cannot be
read, the tick fails.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import dagster as dg
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.pool import QueuePool

from resources.alerts import Alert
from resources.postgres.resource import PostgresResource
from resources.settings import Settings
from sensors.alerting import Over, alerts_of, in_words, report

INTERVAL_SECONDS: Final = 60
OPEN_AT: Final = 0.80
CLOSE_BELOW: Final = 0.75
CRITICAL_AT: Final = 0.95
# Ticks in a row: a Redis that is restarted is away for one.
AWAY_TICKS: Final = 2
# Messages of a customer that were given up, or sessions whose first message fails again and again.
BLOCKED_RETRIES: Final = 3

STORAGE: Final = "storage_over_budget"
REDIS_MEMORY: Final = "redis_memory_high"
REDIS_AWAY: Final = "redis_away"
CONNECTIONS: Final = "connections_exhausted"
POOL: Final = "pool_exhausted"
QUEUE_BLOCKED: Final = "queue_blocked"


@dataclass(frozen=True, slots=True)
class Gauge:
    """How much of something is used.

    Attributes:
        alert: which alert it may raise.
        episode: what it is about.
        used: of `limit`.
        limit: what there is; 0 or less is taken for one that is not known.
        what: for people: `the database takes {used} of {limit}`, filled in already.
        what_to_do: where it is too full.
    """

    alert: str
    episode: str
    used: float
    limit: float
    what: str
    what_to_do: str

    @property
    def share(self) -> float | None:
        """0 to 1, or more; None where there is no limit."""
        return self.used / self.limit if self.limit > 0 else None


def judge(gauge: Gauge) -> Alert | Over | None:
    """What a figure says. Between the two marks it says nothing, and what is open stays open."""
    share = gauge.share
    if share is None:
        return None
    if share >= OPEN_AT:
        return Alert(
            alert=gauge.alert,
            episode=gauge.episode,
            severity="critical" if share >= CRITICAL_AT else "warning",
            message=f"{gauge.what} ({share:.0%})",
            what_to_do=gauge.what_to_do,
            details={"used": gauge.used, "limit": gauge.limit, "share": round(share, 4)},
        )
    return Over(gauge.alert, gauge.episode) if share < CLOSE_BELOW else None


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


# --- reading ----------------------------------------------------------------------------------------------------


def storage_gauge(used: int, budget: int) -> Gauge:
    """The database against its budget."""
    return Gauge(
        STORAGE, "database", used, budget,
        f"the database takes {size(used)} of its budget of {size(budget)}",
        "See which tables grow (asset `storage_snapshots`), run `omniops cleanup`, or raise "
        "OMNIOPS_STORAGE_BUDGET_BYTES if there is more room.",
    )  # fmt: skip


def connections_gauge(used: int, allowed: int) -> Gauge:
    """Connections to the server against those that are not reserved."""
    return Gauge(
        CONNECTIONS, "postgres", used, allowed,
        f"{used:,} of {allowed:,} connections to Postgres are in use",
        "See who holds them (pg_stat_activity, by application_name), end what is idle, put a pooler in front, or "
        "raise max_connections.",
    )  # fmt: skip


def pool_gauge(used: int, allowed: int) -> Gauge:
    """This process's own pool."""
    return Gauge(
        POOL, "omniops", used, allowed,
        f"{used} of the {allowed} connections of the pool are checked out",
        "Something keeps connections: look for long transactions in pg_stat_activity, and restart the code location.",
    )  # fmt: skip


def redis_gauge(info: dict[str, Any]) -> Gauge:
    """Redis against its `maxmemory`, or against the machine's memory where it has none."""
    used = float(info.get("used_memory") or 0)
    limit = float(info.get("maxmemory") or 0)
    of = "its maxmemory"
    if limit <= 0:
        limit, of = float(info.get("total_system_memory") or 0), "the machine's memory"
    return Gauge(
        REDIS_MEMORY, "redis", used, limit,
        f"Redis uses {size(used)} of {of} of {size(limit)}",
        "Every key has a TTL, so it shrinks by itself when crawls are over; else raise maxmemory. Losing keys loses "
        "no data.",
    )  # fmt: skip


_FIGURES = text("""
    SELECT pg_database_size(current_database()) AS bytes,
           -- Of other roles' connections no more than this is shown; background processes have no role or database.
           (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL) AS connections,
           current_setting('max_connections')::integer
               - coalesce(current_setting('superuser_reserved_connections', true)::integer, 0)
               - coalesce(current_setting('reserved_connections', true)::integer, 0) AS allowed
""")


def read_postgres(connection: Connection, budget: int) -> list[Gauge]:
    """Size and connections.

    Raises:
        DBAPIError: they cannot be read.
    """
    row = connection.execute(_FIGURES).one()
    return [storage_gauge(row.bytes, budget), connections_gauge(row.connections, row.allowed)]


def read_pool(engine: Engine) -> Gauge | None:
    """The pool of this process; None where it has no limit."""
    pool = engine.pool
    # Not public in SQLAlchemy, and there is no other way to ask how many more it would open.
    overflow = getattr(pool, "_max_overflow", -1)
    if not isinstance(pool, QueuePool) or overflow < 0:
        return None
    return pool_gauge(pool.checkedout(), pool.size() + overflow)


def read_redis(url: str) -> dict[str, Any] | None:
    """Redis's own figures; None if it does not answer."""
    try:
        client = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        try:
            info: dict[str, Any] = client.info("memory")
        finally:
            client.close()
    except (RedisError, OSError):
        return None
    return info


# The heads of sessions are few and stand in an index; messages that were given up are looked for among a day's.
_BLOCKED = text("""
    WITH heads AS (
        SELECT DISTINCT ON (q.customer_id, q.session_id) q.customer_id, q.retry_count
        FROM message_queue AS q WHERE q.status IN ('pending', 'processing')
        ORDER BY q.customer_id, q.session_id, q.position
    ), blocked AS (
        SELECT h.customer_id, count(*) AS sessions, 0 AS dead FROM heads AS h
        WHERE h.retry_count >= :retries GROUP BY h.customer_id
        UNION ALL
        SELECT q.customer_id, 0, count(*) FROM message_queue AS q WHERE q.status = 'failed' GROUP BY q.customer_id
    )
    SELECT b.customer_id, c.slug, sum(b.sessions)::bigint AS sessions, sum(b.dead)::bigint AS dead
    FROM blocked AS b JOIN customers AS c ON c.id = b.customer_id GROUP BY 1, 2 ORDER BY 2 LIMIT 1000
""")


def read_queue(connection: Connection) -> list[Alert]:
    """An alert for each customer whose messages do not get through.

    Raises:
        DBAPIError: they cannot be read.
    """
    return [
        Alert(
            alert=QUEUE_BLOCKED,
            episode=row.slug,
            severity="critical" if row.dead else "warning",
            message=f"messages of {row.slug} do not get through: {row.sessions:,} sessions wait for a message that "
            f"fails again and again, {row.dead:,} messages were given up",
            what_to_do="Read their error_message in message_queue (`omniops queue`), mend their handler, and replay "
            "them within 24 hours: then they expire.",
            details={"customer": row.slug, "blocked_sessions": row.sessions, "given_up": row.dead},
        )
        for row in connection.execute(_BLOCKED, {"retries": BLOCKED_RETRIES})
    ]


def judge_redis(info: dict[str, Any] | None, away_before: int) -> tuple[list[Alert | Over], int]:
    """What Redis's answer, or its silence, says; and for how many ticks in a row it has been away now."""
    if info is not None:
        found = judge(redis_gauge(info))
        return [Over(REDIS_AWAY, "redis"), *([found] if found else [])], 0
    away = away_before + 1
    if away < AWAY_TICKS:
        return [], away
    alert = Alert(
        alert=REDIS_AWAY,
        episode="redis",
        severity="warning",
        message="Redis does not answer: crawls go on without a cache, and limits count for each process alone",
        what_to_do="Start it, or correct OMNIOPS_REDIS_URL (`omniops doctor` tells which it is). No data is lost.",
        details={"ticks": away},
    )
    return [alert], away


def _away_ticks(cursor: str | None) -> int:
    try:
        return int(json.loads(cursor or "{}").get("redis_away", 0))
    except (ValueError, TypeError, AttributeError):
        return 0


def over_unless_found(alert: str, open_episodes: Sequence[str], found: Sequence[Alert]) -> list[Over]:
    """Episodes that were open and were not found any more, in a reading that was whole."""
    still = {finding.episode for finding in found}
    return [Over(alert, episode) for episode in open_episodes if episode not in still]


@dg.sensor(
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it a full disk is noticed by those who cannot write.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Alerts at 80 % of the storage budget, of Redis's memory, of Postgres's connections and of the pool; "
    "over below 75 %. Also: Redis is away, messages do not get through.",
)
def capacity_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
    """Read every figure, and report."""
    alerts = alerts_of(postgres)
    engine = postgres.engine()
    pool = read_pool(engine)  # before this tick takes a connection itself
    with engine.connect() as connection:
        gauges = read_postgres(connection, Settings.from_environment().storage_budget_bytes)
        blocked = read_queue(connection)
    findings: list[Alert | Over] = [found for gauge in (*gauges, pool) if gauge and (found := judge(gauge))]
    open_queues = [episode for _, episode in alerts.open_episodes(QUEUE_BLOCKED)]
    findings += [*blocked, *over_unless_found(QUEUE_BLOCKED, open_queues, blocked)]
    url = postgres.endpoints().redis_url
    if url is not None:
        said, away = judge_redis(read_redis(url), _away_ticks(context.cursor))
        findings += said
        context.update_cursor(json.dumps({"redis_away": away}))
    return dg.SkipReason(in_words(*report(alerts, findings)))
