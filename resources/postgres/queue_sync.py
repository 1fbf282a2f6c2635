"""The queue's steps, done synchronously: one connection for each flow, a thread that renews leases."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import describe_error, is_connection_lost
from resources.postgres.queue_core import (
    WAKE,
    Flow,
    Handle,
    Held,
    Pauses,
    Query,
    Step,
    Throttle,
    check_acknowledged,
    known_error,
    renewal,
)
from resources.postgres.tenancy import call_functions, query_as, service_transaction, tenant_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.postgres.queue_core import Row
    from resources.postgres.queue_messages import QueuedMessage
    from resources.settings import QueueSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")

# SQLAlchemy's, and the driver's own.
_ERRORS: Final = (DBAPIError, psycopg.Error)

_throttle = Throttle()


def rows_of(connection: Connection, query: Query) -> list[Row]:
    """Run a query's statement in whatever transaction the connection is in."""
    return [dict(row) for row in connection.exec_driver_sql(query.statement, query.parameters).mappings()]


def run_alone(connection: Connection, query: Query) -> list[Row]:
    """Run a query in a transaction of its own."""
    if query.by_itself is not None:
        return [*call_functions(connection, query.by_itself, query.parameters)]
    return [*query_as(connection, query.customer, query.statement, query.parameters)]


def explained(error: DBAPIError | psycopg.Error, engine: Engine) -> Exception:
    """A driver's error in words."""
    original = error.orig if isinstance(error, DBAPIError) else error
    known = known_error(getattr(original, "sqlstate", None), str(original))
    return known or describe_error(error, engine.url.render_as_string(hide_password=False))


class SyncRunner:
    """Runs flows, one after the other, on a connection that it keeps. For one thread.

    Args:
        engine: the permanent tier.
        settings: how long a lost database is waited for.
        handler: what `Handle` calls: with the message, and with the transaction's connection where it shares one.
        heartbeat: keeps leases meanwhile.
        wait: what `Wait` does.
    """

    def __init__(
        self,
        engine: Engine,
        settings: QueueSettings,
        handler: Callable[..., object] | None = None,
        heartbeat: Heartbeat | None = None,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._handler = handler
        self._heartbeat = heartbeat
        self._wait = wait
        self._connection: Connection | None = None

    def __enter__(self) -> SyncRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back to the pool."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def run(self, flow: Flow[T]) -> T:
        """Do the flow's steps and return its result.

        Raises:
            DatabaseError: the database cannot be reached, or refused.
        """
        answer: Any = None
        failure: BaseException | None = None
        while True:
            try:
                step = flow.send(answer) if failure is None else flow.throw(failure)
            except StopIteration as ended:
                result: T = ended.value
                return result
            except _ERRORS as error:
                raise explained(error, self._engine) from error
            answer, failure = None, None
            try:
                answer = self._do(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides what it means
                failure = error

    def wake(self) -> None:
        """Wake the workers, if none was woken a moment ago. They look by themselves too, so a failure is no error."""
        if not self._settings.notify or not _throttle.may(str(self._engine.url)):
            return
        try:
            connection = self._connect()
            with connection.begin():
                connection.exec_driver_sql(WAKE)
        except _ERRORS as error:
            self._drop()
            logger.info("workers were not woken (%s); they will look by themselves", error)

    def _do(self, step: Step) -> Any:
        if isinstance(step, Query):
            return self._patiently(lambda: self._query(step))
        if isinstance(step, Handle):
            return self._handle(step)
        if self._wait is None:
            time.sleep(step.seconds)
            return False
        return self._wait(step.seconds)

    def _query(self, query: Query) -> list[Row]:
        return run_alone(self._connect(), query)

    def _handle(self, step: Handle) -> list[Row] | None:
        if self._handler is None:
            msg = "this flow has messages to be handled, and its runner has no handler"
            raise TypeError(msg)
        with ExitStack() as around:
            if self._heartbeat is not None:
                around.enter_context(self._heartbeat.keeping(step.message))
            finish = step.finish
            if finish is None:
                self._handler(step.message)
                return None
            try:
                with ExitStack() as transaction:
                    connection = self._patiently(lambda: self._begin(transaction, finish.customer))
                    self._handler(step.message, connection)
                    rows = rows_of(connection, finish)
                    check_acknowledged(step.message, rows)
            except _ERRORS as error:
                if is_connection_lost(error):
                    self._drop()
                raise
            return rows

    def _begin(self, transaction: ExitStack, customer: UUID | None) -> Connection:
        connection = self._connect()
        transaction.enter_context(self._as(connection, customer))
        return connection

    def _as(self, connection: Connection, customer: UUID | None) -> AbstractContextManager[None]:
        return service_transaction(connection) if customer is None else tenant_transaction(connection, customer)

    def _connect(self) -> Connection:
        if self._connection is None:
            # A claim asks again what has been committed while it waited for its lock.
            self._connection = self._engine.connect().execution_options(isolation_level="READ COMMITTED")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()

    def _patiently(self, once: Callable[[], T]) -> T:
        pauses = Pauses(self._settings.reconnect_seconds)
        while True:
            try:
                return once()
            except _ERRORS as error:
                if not is_connection_lost(error):
                    raise
                self._drop()
                pause = pauses.next()
                if pause is None:
                    raise
                time.sleep(pause)


def finish_in_memory(flow: Flow[T], handler: Callable[..., object] | None = None) -> T:
    """Do a flow whose messages are in memory alone."""
    answer: None = None
    failure: BaseException | None = None
    while True:
        try:
            step = flow.send(answer) if failure is None else flow.throw(failure)
        except StopIteration as ended:
            result: T = ended.value
            return result
        failure = None
        if not isinstance(step, Handle) or handler is None:
            msg = f"a queue in memory was asked to do {step}"
            raise TypeError(msg)
        try:
            handler(step.message)
        except BaseException as error:  # noqa: BLE001 - the flow decides what it means
            failure = error


class Heartbeat:
    """Renews the leases of messages that are being handled, from a thread of its own, until it is closed."""

    def __init__(self, engine: Engine, settings: QueueSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._held = Held(settings)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def keeping(self, message: QueuedMessage) -> Iterator[None]:
        """Keep this message's lease until the block ends."""
        with self._lock:
            self._held.add(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="omniops-queue-leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(message)

    def _beat(self) -> None:
        while not self._ended.wait(self._settings.lease_seconds / 3):
            with self._lock:
                due = self._held.due()
            for messages in due:
                self._renew(messages)

    def _renew(self, messages: list[QueuedMessage]) -> None:
        query = renewal(messages, self._settings.lease_seconds)
        try:
            with self._engine.connect() as connection:
                rows = run_alone(connection, query)
        except _ERRORS as error:
            # Tried again at the next beat; if that is too late, the acknowledgement is refused.
            logger.warning("leases of %d messages were not renewed: %s", len(messages), error)
            return
        with self._lock:
            self._held.renewed(messages, {row["id"] for row in rows})
