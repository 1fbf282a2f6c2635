"""Retention: what has expired is shown, and removed in bounded batches.

What has expired is decided in SQL (`expired_…` of revision 0002), by one predicate for the preview and the removal.
A run takes one batch after the other (`remove_expired_…`), each in a transaction of its own together with the run's
own record, so that a kill loses nothing but the batch under way and the record tells exactly what is gone.

- Legal holds, leased messages and unfinished jobs are asked about again under each batch's locks.
- Two runs at once share the work: each passes over what the other has locked.
- A session-level advisory lock says that a run is alive. A record without one is closed as failed by the next run.
"""

from __future__ import annotations

import json
import logging
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.catalogue import POLICIES, TABLES
from resources.postgres.connection import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

# Rows of a batch: a fraction of a second's work, so that locks are short and a cancelled run ends soon.
BATCH_ROWS: Final = 20_000
LOCK_TIMEOUT_MS: Final = 5_000
# A batch takes a fraction of a second; the first one of a day computes that day's statistics too. A preview reads all
# that has expired.
STATEMENT_TIMEOUT_MS: Final = 300_000

# So many failures in a row are no passing ones.
MAX_TRIES: Final = 6
_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 5.0

# lock_not_available, deadlock_detected, serialization_failure: another transaction was in the way.
_IN_THE_WAY: Final = frozenset({"55P03", "40P01", "40001"})

MAX_DAYS: Final = 36_500


class UnknownPolicy(ValueError):
    """There is no such retention policy, or it removes nothing by itself."""


class InvalidRetentionDays(ValueError):
    """A number of days is not one that rows can be kept for."""


class RetentionFailed(DatabaseError):
    """A run stopped before it was through; what it had removed is recorded and stays removed."""


@dataclass(frozen=True, slots=True)
class ExpiredRows:
    """Rows of one table and customer that have expired, or have been removed.

    Attributes:
        table: in schema `public`.
        customer_id: whose; None for rows of the platform.
        customer: slug; None for rows of the platform.
        rows: how many.
        bytes: of the rows themselves, without indexes and page overhead.
        oldest: time of the oldest, where the table has one.
        unprocessed: queued messages among them that nobody had handled.
    """

    table: str
    customer_id: UUID | None
    customer: str | None
    rows: int
    bytes: int
    oldest: datetime | None
    unprocessed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """What a run did.

    Attributes:
        policy: its name in the catalogue.
        dry_run: True if it only looked.
        record_id: its row in `retention_runs`.
        days: age at which rows go; None where it is not a number of days.
        cutoff: what is older goes.
        rows: what was removed (or would be), by table and customer.
        batches: transactions that removed something.
        retries: batches that were tried again because another transaction was in the way.
        held: customers under a legal hold, of whom nothing was removed.
        seconds: wall time.
    """

    policy: str
    dry_run: bool
    record_id: int
    days: int | None
    cutoff: datetime
    rows: tuple[ExpiredRows, ...]
    batches: int
    retries: int
    held: tuple[str, ...]
    seconds: float

    @property
    def rows_removed(self) -> int:
        """Of all tables; in a dry run, rows that would be."""
        return sum(row.rows for row in self.rows)

    def count(self, table: str) -> int:
        """Rows of one table."""
        return sum(row.rows for row in self.rows if row.table == table)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("rows", "held")}
        return {
            **plain,
            "rows_removed": self.rows_removed,
            "held": list(self.held),
            "rows": [row.as_dict() for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class _Removal:
    """How a policy is carried out. `previews`: table, its age, and where its expired rows are, as `x`."""

    function: str
    previews: tuple[tuple[str, str, str], ...]
    unprocessed: str = "false"


# The moment that is asked about: now, or the forecast's.
_AT = "coalesce(CAST(:at AS timestamptz), now())"
_OF_JOBS = f"AS x JOIN expired_scrape_jobs(:days, {_AT}) AS e ON e.job_id = x.job_id"
_OF_CONVERSATIONS = f"AS x JOIN expired_conversations(:days, {_AT}) AS e ON e.id = x.conversation_id"
# The columns of a job's statistics that stay as wide as they are while its results go.
_STATISTICS = f"""(
    SELECT x.job_id, x.customer_id, x.total_pages, x.successful_pages, x.failed_pages, x.skipped_pages, x.updated_at,
           x.timed_pages, x.total_processing_time_ms
    FROM scrape_job_stats {_OF_JOBS}) AS x"""  # noqa: S608 - constants of this module
_DAY = "x.day::timestamp AT TIME ZONE 'UTC'"

_REMOVALS: Final[Mapping[str, _Removal]] = {
    "message_queue": _Removal(
        "remove_expired_messages(:max_rows)",
        (("message_queue", "x.created_at", f"expired_messages({_AT}) AS x"),),
        "x.status IN ('pending', 'processing')",
    ),
    "scrape_jobs": _Removal(
        "remove_expired_scrape_jobs(:days, :max_rows)",
        (
            ("scrape_jobs", "coalesce(x.completed_at, x.created_at)", f"expired_scrape_jobs(:days, {_AT}) AS x"),
            ("scrape_job_results", "x.created_at", f"scrape_job_results {_OF_JOBS}"),
            ("scrape_job_stats", "CAST(NULL AS timestamptz)", _STATISTICS),
            ("crawl_frontier", "CAST(NULL AS timestamptz)", f"crawl_frontier {_OF_JOBS}"),
        ),
    ),
    "conversations": _Removal(
        "remove_expired_conversations(:days, :max_rows)",
        (
            ("conversations", "greatest(x.updated_at, x.ended_at)", f"expired_conversations(:days, {_AT}) AS x"),
            ("messages", "x.created_at", f"messages {_OF_CONVERSATIONS}"),
            ("conversation_metadata", "x.updated_at", f"conversation_metadata {_OF_CONVERSATIONS}"),
        ),
    ),
    "analytics": _Removal(
        "remove_expired_analytics(:days, :max_rows)",
        (
            ("conversation_funnel", "x.created_at", f"expired_conversation_funnel(:days, {_AT}) AS x"),
            ("alert_history", "x.opened_at", f"expired_alert_history(:days, {_AT}) AS x"),
            ("storage_snapshots", "x.taken_at", f"expired_storage_snapshots(:days, {_AT}) AS x"),
            ("daily_job_stats", _DAY, f"expired_daily_job_stats(:days, {_AT}) AS x"),
            ("daily_domain_stats", _DAY, f"expired_daily_domain_stats(:days, {_AT}) AS x"),
        ),
    ),
}

# What `omniops cleanup` runs, in this order.
REMOVABLE: Final = tuple(_REMOVALS)


def check_policy(name: str) -> str:
    """Return the name.

    Raises:
        UnknownPolicy: no policy of that name removes rows by age.
    """
    if name in _REMOVALS:
        return name
    if name in POLICIES:
        msg = f"policy {name} keeps its rows {POLICIES[name].keeps}: cleanup has nothing to do with it"
    else:
        msg = f"retention policy {name!r} is unknown; the policies are {', '.join(REMOVABLE)}"
    raise UnknownPolicy(msg)


def check_days(policy: str, days: int | None) -> int | None:
    """The days in force: those given, else the policy's own.

    Raises:
        UnknownPolicy: there is no such policy.
        InvalidRetentionDays: it is no whole number from 1 to 36500, or the policy does not go by days.
    """
    default = POLICIES[check_policy(policy)].days
    if days is None:
        return default
    if default is None:
        msg = f"policy {policy} keeps its rows {POLICIES[policy].keeps}, by each row's own time: it takes no days"
        raise InvalidRetentionDays(msg)
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= MAX_DAYS:
        msg = f"retention of {days!r} days is refused ({policy}): it must be a whole number from 1 to {MAX_DAYS}"
        raise InvalidRetentionDays(msg)
    return days


def preview(
    connection: Connection, policy: str, days: int | None = None, at: datetime | None = None
) -> list[ExpiredRows]:
    """What a run would remove at this moment (or at another), by table and customer.

    Args:
        connection: as the service; one snapshot where it stands at REPEATABLE READ.
        policy: a policy that removes by age.
        days: another age than the policy's own.
        at: the moment, with time zone: what will have expired then, as things stand now. None: the database's now.

    Raises:
        UnknownPolicy: there is no such policy.
        InvalidRetentionDays: the days are out of range.
    """
    days = check_days(policy, days)
    removal = _REMOVALS[policy]
    if days is not None:
        # Said by the database as well, whether or not there are rows to ask about.
        connection.execute(text("SELECT retention_cutoff(:days)"), {"days": days})
    found = []
    # A row's size is taken of ROW(x.*), made on the spot: that of x itself depends on the plan that it came through.
    for table, age, source in removal.previews:
        customer = "x.customer_id" if TABLES[table].tenant_column else "CAST(NULL AS uuid)"
        rows = connection.execute(
            text(f"""
                SELECT {customer} AS customer_id, count(*) AS removed, sum(pg_column_size(ROW(x.*)))::bigint AS bytes,
                       min({age}) AS oldest, count(*) FILTER (WHERE {removal.unprocessed}) AS unprocessed
                FROM {source} GROUP BY 1
            """),  # noqa: S608 - constants of this module
            {"at": at, **({"days": days} if ":days" in source else {})},
        )
        found += [(table, r.customer_id, r.removed, r.bytes, r.oldest, r.unprocessed) for r in rows]
    return _named(connection, found)


def _named(
    connection: Connection, counted: Iterable[tuple[str, UUID | None, int, int, datetime | None, int]]
) -> list[ExpiredRows]:
    counted = list(counted)
    names = {
        row.id: row.slug
        for row in connection.execute(
            text("SELECT id, slug FROM customers WHERE id = ANY (:ids)"),
            {"ids": list({c[1] for c in counted if c[1] is not None})},
        )
    }
    rows = [
        ExpiredRows(table, customer, names.get(customer) if customer else None, count, size, oldest, unprocessed)
        for table, customer, count, size, oldest, unprocessed in counted
    ]
    return sorted(rows, key=lambda row: (row.customer or "", row.table))


@dataclass(slots=True)
class _Tally:
    """What a run has removed so far."""

    parts: dict[tuple[str, UUID | None], tuple[int, int, datetime | None, int]] = field(default_factory=dict)

    def add(self, table: str, customer: UUID | None, rows: int, size: int, oldest: Any, unprocessed: int) -> None:
        before = self.parts.get((table, customer), (0, 0, None, 0))
        times = [time_ for time_ in (before[2], oldest) if time_ is not None]
        self.parts[table, customer] = (
            before[0] + rows,
            before[1] + size,
            min(times) if times else None,
            before[3] + unprocessed,
        )

    def merged_with(self, other: _Tally) -> _Tally:
        merged = _Tally(dict(self.parts))
        for (table, customer), part in other.parts.items():
            merged.add(table, customer, *part)
        return merged

    def counted(self) -> list[tuple[str, UUID | None, int, int, datetime | None, int]]:
        return [(table, customer, *part) for (table, customer), part in self.parts.items()]

    def record(self) -> dict[str, Any]:
        """For `retention_runs`: ids only, because the record outlives its customers."""
        return {
            "rows": sum(part[0] for part in self.parts.values()),
            "unprocessed": sum(part[3] for part in self.parts.values()),
            "details": json.dumps(
                {
                    "removed": [
                        {
                            "table": table,
                            "customer_id": str(customer) if customer else None,
                            "rows": rows,
                            "bytes": size,
                            "oldest": oldest.isoformat() if oldest else None,
                        }
                        for (table, customer), (rows, size, oldest, _) in sorted(
                            self.parts.items(), key=lambda item: (item[0][0], str(item[0][1]))
                        )
                    ]
                }
            ),
        }


def run(
    engine: Engine,
    policy: str,
    days: int | None = None,
    *,
    dry_run: bool = False,
    run_id: str | None = None,
    batch_rows: int = BATCH_ROWS,
    pace: float = 0.0,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    on_batch: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RetentionResult:
    """Remove what has expired by a policy, in batches, until nothing is left; leave a row in `retention_runs`.

    It can be killed at any moment and run again, and run twice at once.

    Args:
        engine: the permanent tier, as the role that runs the program.
        policy: a policy that removes by age.
        days: another age than the policy's own.
        dry_run: count only, by the very same predicate.
        run_id: of the Dagster run, for the record.
        batch_rows: rows of a batch, about; halved where a batch runs into `statement_timeout_ms`.
        pace: after each batch, rest for so many times as long as it took; leaves the disk to others.
        lock_timeout_ms: a batch waits so long for a lock, and is then tried again.
        statement_timeout_ms: bound of one batch.
        on_batch: called after each batch with the rows removed so far; an exception from it stops the run.
        clock: seconds; handed in by tests.
        sleep: likewise.

    Raises:
        UnknownPolicy: there is no such policy; nothing was done.
        InvalidRetentionDays: the days are out of range; nothing was done.
        RetentionFailed: the database stood in the way too often; what was removed is recorded.
    """
    days = check_days(policy, days)
    if batch_rows < 1:
        msg = f"batches of {batch_rows} rows are refused: a batch has at least 1 row"
        raise ValueError(msg)
    started = clock()
    with _record(engine, policy, days, dry_run=dry_run, run_id=run_id) as (record_id, cutoff):
        work = _Run(engine, policy, days, record_id, batch_rows, pace, lock_timeout_ms, statement_timeout_ms)
        if dry_run:
            work.look()
        else:
            work.remove(on_batch, clock, sleep)
        with engine.begin() as connection:
            rows = _named(connection, work.tally.counted())
            held = connection.scalars(
                text("""SELECT DISTINCT c.slug FROM legal_holds AS h JOIN customers AS c ON c.id = h.customer_id
                        WHERE h.released_at IS NULL ORDER BY 1""")
            ).all()
            connection.execute(
                text(
                    "UPDATE retention_runs SET status = 'completed', completed_at = clock_timestamp() WHERE id = :id"
                ),
                {"id": record_id},
            )
    return RetentionResult(
        policy, dry_run, record_id, days, cutoff, tuple(rows), work.batches, work.retries, tuple(held),
        clock() - started,
    )  # fmt: skip


@dataclass(slots=True)
class _Run:
    engine: Engine
    policy: str
    days: int | None
    record_id: int
    batch_rows: int
    pace: float
    lock_timeout_ms: int
    statement_timeout_ms: int
    tally: _Tally = field(default_factory=_Tally)
    batches: int = 0
    retries: int = 0

    def look(self) -> None:
        """Count what has expired, in one snapshot, and record it."""
        snapshot = self.engine.execution_options(isolation_level="REPEATABLE READ")
        with snapshot.begin() as connection:
            self._limit(connection)
            for row in preview(connection, self.policy, self.days):
                self.tally.add(row.table, row.customer_id, row.rows, row.bytes, row.oldest, row.unprocessed)
            self._write_record(connection, self.tally)

    def remove(
        self,
        on_batch: Callable[[int], None] | None,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        """Batch after batch, until one finds nothing."""
        tries = 0
        while True:
            begun = clock()
            try:
                removed = self._batch()
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                tries += 1
                if state == "57014" and self.batch_rows > 100 and tries < MAX_TRIES:
                    # It ran into the statement's time limit (or was cancelled by hand): less at a time.
                    self.batch_rows //= 2
                elif state not in _IN_THE_WAY or tries >= MAX_TRIES:
                    raise
                self.retries += 1
                longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (tries - 1))
                sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - two runs shall not meet again at once
                continue
            tries = 0
            if not removed:
                return
            self.batches += 1
            if on_batch is not None:
                on_batch(sum(part[0] for part in self.tally.parts.values()))
            if self.pace > 0:
                sleep(self.pace * (clock() - begun))

    def _batch(self) -> bool:
        removal = _REMOVALS[self.policy]
        parameters: dict[str, Any] = {"max_rows": self.batch_rows}
        if self.days is not None:
            parameters["days"] = self.days
        gone = _Tally()
        # READ COMMITTED, whatever the pool's default: what the batch asks again under its locks must be new.
        with self.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            self._limit(connection)
            for row in connection.execute(text(f"SELECT * FROM {removal.function}"), parameters):  # noqa: S608
                gone.add(*row)
            after = self.tally.merged_with(gone)
            if gone.parts:
                self._write_record(connection, after)
        self.tally = after
        return bool(gone.parts)

    def _limit(self, connection: Connection) -> None:
        connection.execute(
            text("SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"),
            {"lock": f"{self.lock_timeout_ms}ms", "statement": f"{self.statement_timeout_ms}ms"},
        )

    def _write_record(self, connection: Connection, tally: _Tally) -> None:
        connection.execute(
            text("""
                UPDATE retention_runs SET rows_removed = :rows, expired_unprocessed = :unprocessed,
                    details = CAST(:details AS jsonb) WHERE id = :id
            """),
            {**tally.record(), "id": self.record_id},
        )


# The advisory lock of a run: the first number says what it is about, the second is the record's id.
_RUN_LOCK: Final = 0x72657465
_SENTENCE: Final = (
    "the program ended before the run was through; what it had removed is counted, the next run goes on"
)


@contextmanager
def _record(
    engine: Engine, policy: str, days: int | None, *, dry_run: bool, run_id: str | None
) -> Iterator[tuple[int, datetime]]:
    """The run's row in `retention_runs`, and the lock that says that the run is alive.

    The lock has a connection of its own, idle between its first and its last statement: the server notices at once
    when the program at its other end is gone.
    """
    with engine.connect() as guard:
        _close_crashed_runs(guard, policy)
        row = guard.execute(
            text("""
                INSERT INTO retention_runs (policy, dry_run, status, cutoff, run_id)
                VALUES (:policy, :dry_run, 'running',
                        CASE WHEN CAST(:days AS integer) IS NULL THEN now() ELSE retention_cutoff(:days) END, :run_id)
                RETURNING id, cutoff
            """),
            {"policy": policy, "dry_run": dry_run, "days": days, "run_id": run_id},
        ).one()
        lock = {"kind": _RUN_LOCK, "id": row.id % 2**31}
        # Before the row can be seen by others.
        guard.execute(text("SELECT pg_advisory_lock(:kind, :id)"), lock)
        guard.commit()
        try:
            yield row.id, row.cutoff
        except BaseException as error:
            _close_as_failed(engine, row.id, error)
            if isinstance(error, DBAPIError):
                msg = (
                    f"retention of {policy} stopped: {_first_line(error)}; what it removed is recorded, run it again"
                )
                raise RetentionFailed(msg) from error
            raise
        finally:
            _unlock(guard, lock)


def _close_crashed_runs(connection: Connection, policy: str) -> None:
    for (record_id,) in connection.execute(
        text("SELECT id FROM retention_runs WHERE policy = :policy AND status = 'running' ORDER BY id"),
        {"policy": policy},
    ).all():
        connection.execute(
            text("""
                UPDATE retention_runs SET status = 'failed', completed_at = clock_timestamp(), error_message = :why
                WHERE id = :id AND status = 'running' AND pg_try_advisory_xact_lock(:kind, :lock)
            """),
            {"id": record_id, "kind": _RUN_LOCK, "lock": record_id % 2**31, "why": _SENTENCE},
        )
    connection.commit()


def _close_as_failed(engine: Engine, record_id: int, error: BaseException) -> None:
    try:
        with engine.begin() as connection:
            connection.execute(
                text("""
                    UPDATE retention_runs
                    SET status = 'failed', completed_at = clock_timestamp(), error_message = :why
                    WHERE id = :id AND status = 'running'
                """),
                {"id": record_id, "why": _first_line(error)},
            )
    except DBAPIError as second:
        # The first error is the one to be told; the next run of the policy closes the record.
        logger.warning("the record of retention run %s stays open: %s", record_id, _first_line(second))


def _unlock(guard: Connection, lock: Mapping[str, int]) -> None:
    try:
        guard.execute(text("SELECT pg_advisory_unlock(:kind, :id)"), lock)
        guard.commit()
    except DBAPIError:
        # The connection is gone, and its lock with it; it must not go back into the pool.
        guard.invalidate()


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return lines[0] if lines else type(original).__name__
