"""Erasure: everything of a customer in every tier, by the catalogue, with a proof that names nobody.

The tables go in the catalogue's order, children first, in batches with a commit after each; the customer's own row
goes last, together with the entry's completion. Each batch's transaction first takes the customer's row, which keeps
a legal hold from coming in between, then asks for holds and live crawl workers, and adds what it erased to the entry
in `gdpr_audit_log`: a kill at any moment leaves an entry that is exact, and the next call goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.catalogue import KEYS, erasure_order
from resources.postgres.compliance import PROGRAM, log_action
from resources.postgres.customer_rows import (
    CustomerRows,
    UnknownCustomer,
    condition,
    count_customer_rows,
    customer_id_of,
)
from resources.postgres.customers import find_customer
from resources.redis.fallback import State
from resources.redis.keys import KEY_PATTERNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.redis.client import RedisWithFallback

BATCH_ROWS: Final = 5_000
_LOCK_TIMEOUT: Final = "5s"
_STATEMENT_TIMEOUT: Final = "300s"
MAX_TRIES: Final = 6
# lock_not_available, deadlock_detected, serialization_failure: another transaction was in the way.
_IN_THE_WAY: Final = frozenset({"55P03", "40P01", "40001"})
_FOREIGN_KEY: Final = "23503"

# No role may delete these: they go with their parent by the key's cascade, and are counted before.
_WITH_PARENT: Final[Mapping[str, str]] = {"scrape_job_stats": "scrape_jobs"}

# Keys whose field is a job's id are the customer's of that job.
JOB_KEYS: Final = tuple(p for p in KEY_PATTERNS if p.pattern in KEYS and "{job_id}" in p.pattern)


class ErasureRefused(RuntimeError):
    """A customer's rows may not be erased at this moment; what had been erased before stays erased.

    Attributes:
        reason: in two or three words, for the audit log.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ErasureResult:
    """What an erasure did.

    Attributes:
        customer_id: whose rows they were.
        entry: id in `gdpr_audit_log`; None where nothing was done.
        rows: erased by all calls together, by table, in the order of the erasure.
        already_done: True if it had been completed before, at `completed_at`.
        completed_at: when the last row went.
        batches: transactions of this call that erased something.
        cache_reached: False if Redis was away: its keys of the customer expire within their 24 hours.
    """

    customer_id: UUID
    entry: int
    rows: dict[str, int]
    already_done: bool
    completed_at: datetime
    batches: int = 0
    cache_reached: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def preview_erasure(engine: Engine, slug: str) -> list[CustomerRows]:
    """What an erasure would take, by table, in its order.

    Raises:
        UnknownCustomer: there is no such customer.
    """
    with engine.execution_options(isolation_level="REPEATABLE READ").begin() as connection:
        customer_id = customer_id_of(connection, slug)
        rows = count_customer_rows(connection, customer_id, [entry.name for entry in erasure_order()])
        details = {"rows": {row.table: row.rows for row in rows}}
        log_action(connection, customer_id, "erasure_preview", "completed", details=details)
        return rows


def erase_customer(
    engine: Engine,
    slug: str,
    *,
    cache: RedisWithFallback | None,
    actor: str = PROGRAM,
    batch_rows: int = BATCH_ROWS,
    on_batch: Callable[[str, int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ErasureResult:
    """Erase everything of a customer, in batches, and prove it. It can be killed at any moment and called again.

    Args:
        engine: the permanent tier, as the role that runs the program.
        slug: the customer.
        cache: the ephemeral tier; it may be away.
        actor: the role or program that asked.
        batch_rows: rows of a batch.
        on_batch: called after each batch with the table and the rows it lost.
        sleep: handed in by tests.

    Raises:
        UnknownCustomer: there is no such customer, and none was erased under this slug.
        ErasureRefused: a legal hold is in force, or a crawl of the customer is under way.
    """
    with engine.connect() as connection:
        customer_id = find_customer(connection, slug)
        if customer_id is None:
            done = _completed_before(connection, slug)
            if done is None:
                raise UnknownCustomer(slug)
            return done
    work = _Erasure(engine, slug, customer_id, cache, actor, batch_rows, on_batch, sleep)
    return work.run()


class _Erasure:
    def __init__(
        self,
        engine: Engine,
        slug: str,
        customer_id: UUID,
        cache: RedisWithFallback | None,
        actor: str,
        batch_rows: int,
        on_batch: Callable[[str, int], None] | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._slug = slug
        self._customer_id = customer_id
        self._cache = cache
        self._actor = actor
        self._batch_rows = batch_rows
        self._on_batch = on_batch
        self._sleep = sleep
        self._batches = 0
        self._cache_reached = True

    def run(self) -> ErasureResult:
        """All tables, then the customer's own row."""
        try:
            entry = self._with_retries(self._begin)
            if entry is not None:
                for table in erasure_order():
                    if table.name != "customers" and table.name not in _WITH_PARENT:
                        while self._with_retries(partial(self._batch, entry, table.name)):
                            self._batches += 1
                self._with_retries(partial(self._finish, entry))
        except ErasureRefused as refusal:
            self._log_refusal(refusal)
            raise
        with self._engine.connect() as connection:
            done = _completed_before(connection, self._slug)
        if done is None:  # pragma: no cover - the entry is never deleted
            msg = f"the erasure of customer {self._customer_id} has no entry in gdpr_audit_log any more"
            raise RuntimeError(msg)
        return ErasureResult(
            done.customer_id, done.entry, done.rows, entry is None, done.completed_at, self._batches,
            self._cache_reached,
        )  # fmt: skip

    # --- steps, each a transaction --------------------------------------------------------------------------

    def _begin(self) -> int | None:
        """The entry of this erasure, or the unfinished one of an earlier call; None: another call has finished."""
        with self._engine.begin() as connection:
            if not self._lock_customer(connection):
                return None
            self._refuse_if_kept(connection)
            entry: int | None = connection.scalar(
                text("""
                    SELECT id FROM gdpr_audit_log
                    WHERE customer_id = :id AND action = 'erasure' AND status = 'started' ORDER BY id LIMIT 1
                """),
                {"id": self._customer_id},
            )
            if entry is None:
                details = {"rows": {}, "slug_digest": _slug_digest(self._slug, self._customer_id)}
                entry = log_action(
                    connection, self._customer_id, "erasure", "started", actor=self._actor, details=details
                )
            return entry

    def _batch(self, entry: int, table: str) -> bool:
        """Erase up to a batch of a table's rows; False when there are none."""
        jobs: list[str] = []
        with self._engine.begin() as connection:
            if not self._lock_customer(connection):
                return False
            self._refuse_if_kept(connection)
            rows = connection.scalars(
                text(f"""
                    SELECT CAST(x.ctid AS text) FROM {table} AS x WHERE {condition(table)}
                    LIMIT :limit FOR UPDATE OF x
                """),  # noqa: S608 - names of the catalogue
                {"customer_id": self._customer_id, "limit": self._batch_rows},
            ).all()
            if not rows:
                return False
            counts: dict[str, int] = {}
            if table == "scrape_jobs":
                jobs = list(
                    connection.scalars(
                        text("SELECT job_id FROM scrape_jobs WHERE ctid = ANY (CAST(:rows AS tid[]))"),
                        {"rows": list(rows)},
                    )
                )
                # Before the ids are gone; the keys of a job that comes back into the cache meanwhile go below.
                self._forget(jobs)
            for child, parent in _WITH_PARENT.items():
                if parent == table:
                    counts[child] = connection.execute(
                        text(f"SELECT count(*) FROM {child} WHERE job_id = ANY (:jobs)"),  # noqa: S608
                        {"jobs": jobs},
                    ).scalar_one()
            counts[table] = connection.execute(
                text(f"DELETE FROM {table} WHERE ctid = ANY (CAST(:rows AS tid[]))"),  # noqa: S608
                {"rows": list(rows)},
            ).rowcount
            _add_to_entry(connection, entry, counts)
        self._forget(jobs)
        if self._on_batch is not None:
            self._on_batch(table, counts[table])
        return True

    def _finish(self, entry: int) -> bool:
        """What came in while the batches went, and the customer's own row, in one transaction."""
        with self._engine.begin() as connection:
            # FOR UPDATE keeps new children out: their foreign keys ask for this row.
            if not self._lock_customer(connection, "FOR UPDATE"):
                return False
            self._refuse_if_kept(connection)
            jobs = list(
                connection.scalars(
                    text("SELECT job_id FROM scrape_jobs WHERE customer_id = :customer_id FOR UPDATE"),
                    {"customer_id": self._customer_id},
                )
            )
            counts: dict[str, int] = {}
            for table in erasure_order():
                if table.name in _WITH_PARENT:
                    (child,) = count_customer_rows(connection, self._customer_id, [table.name]) or (None,)
                    counts[table.name] = child.rows if child else 0
            for table in erasure_order():
                if table.name not in _WITH_PARENT:
                    counts[table.name] = connection.execute(
                        text(f"DELETE FROM {table.name} AS x WHERE {condition(table.name)}"),  # noqa: S608
                        {"customer_id": self._customer_id},
                    ).rowcount
            _add_to_entry(connection, entry, counts)
            connection.execute(
                text("UPDATE gdpr_audit_log SET status = 'completed', completed_at = now() WHERE id = :id"),
                {"id": entry},
            )
        self._forget(jobs)
        if self._cache is not None and not self._cache.forget_tenant(self._customer_id):
            self._cache_reached = False
        return True

    def _log_refusal(self, refusal: ErasureRefused) -> None:
        with self._engine.begin() as connection:
            details = {"reason": refusal.reason}
            log_action(connection, self._customer_id, "erasure", "refused", actor=self._actor, details=details)

    # --- inside a step --------------------------------------------------------------------------------------

    def _lock_customer(self, connection: Connection, strength: str = "FOR NO KEY UPDATE") -> bool:
        """Take the customer's row against a new hold and another erasure; False if it is gone."""
        connection.execute(
            text("SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"),
            {"lock": _LOCK_TIMEOUT, "statement": _STATEMENT_TIMEOUT},
        )
        found = connection.scalar(
            text(f"SELECT 1 FROM customers WHERE id = :id {strength}"),  # noqa: S608 - one of two constants
            {"id": self._customer_id},
        )
        return found is not None

    def _refuse_if_kept(self, connection: Connection) -> None:
        held = connection.execute(
            text("SELECT count(*), min(placed_at) FROM legal_holds WHERE customer_id = :id AND released_at IS NULL"),
            {"id": self._customer_id},
        ).one()
        if held[0]:
            msg = (
                f"customer {self._slug} is under a legal hold since {held[1]:%Y-%m-%d}: nothing of theirs may be "
                f"erased before `omniops holds release {self._slug}`"
            )
            raise ErasureRefused("legal hold", msg)
        crawl = connection.execute(
            text("""
                SELECT job_id FROM omniops_meta.crawl_workers
                WHERE customer_id = :id AND leased_until > clock_timestamp() ORDER BY job_id LIMIT 1
            """),
            {"id": self._customer_id},
        ).one_or_none()
        if crawl is not None:
            msg = (
                f"job {crawl.job_id} of customer {self._slug} is being crawled: cancel it "
                f"(`omniops jobs cancel {crawl.job_id}`), and erase when its worker has stopped"
            )
            raise ErasureRefused("crawl under way", msg)

    def _forget(self, jobs: Iterable[str]) -> None:
        keys = [pattern.key(job) for job in jobs for pattern in JOB_KEYS]
        if not keys or self._cache is None:
            return
        for start in range(0, len(keys), 500):
            self._cache.delete(*keys[start : start + 500])
        if self._cache.fallback.state is not State.CLOSED:
            self._cache_reached = False

    def _with_retries(self, step: Callable[[], Any]) -> Any:
        for tries in range(1, MAX_TRIES + 1):
            try:
                return step()
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state == _FOREIGN_KEY and "legal_holds" in str(error.orig):
                    msg = f"customer {self._slug} has been put under a legal hold at this moment"
                    raise ErasureRefused("legal hold", msg) from error
                if state not in _IN_THE_WAY or tries == MAX_TRIES:
                    raise
                self._sleep(min(5.0, 0.2 * 2 ** (tries - 1)) * random.uniform(0.5, 1.0))  # noqa: S311
        return None  # pragma: no cover - the loop returns or raises


def _add_to_entry(connection: Connection, entry: int, counts: Mapping[str, int]) -> None:
    details = connection.execute(
        text("SELECT details FROM gdpr_audit_log WHERE id = :id FOR UPDATE"), {"id": entry}
    ).scalar_one()
    rows = details["rows"]
    for table, count in counts.items():
        if count:
            rows[table] = rows.get(table, 0) + count
    connection.execute(
        text("UPDATE gdpr_audit_log SET details = CAST(:details AS jsonb) WHERE id = :id"),
        {"id": entry, "details": json.dumps(details)},
    )


def _slug_digest(slug: str, customer_id: UUID) -> str:
    """Lets a second request for the same slug be answered; the slug cannot be read from it."""
    return hashlib.blake2b(slug.encode(), key=customer_id.bytes, digest_size=16).hexdigest()


def _completed_before(connection: Connection, slug: str) -> ErasureResult | None:
    """The latest erasure that was completed for this slug."""
    for row in connection.execute(
        text("""
            SELECT id, customer_id, details, completed_at FROM gdpr_audit_log
            WHERE action = 'erasure' AND status = 'completed' ORDER BY id DESC
        """)
    ):
        if row.details.get("slug_digest") == _slug_digest(slug, row.customer_id):
            order = [entry.name for entry in erasure_order()]
            rows = dict(sorted(row.details["rows"].items(), key=lambda item: order.index(item[0])))
            return ErasureResult(row.customer_id, row.id, rows, True, row.completed_at)
    return None
