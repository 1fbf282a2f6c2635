"""The queue's steps, done asynchronously: psycopg's own asynchronous connections, a task that renews leases."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import dict_row

from resources.postgres.connection import APPLICATION_NAME, describe_error, driver_url, is_connection_lost
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
from resources.postgres.queue_messages import LeaseLost
from resources.postgres.tenancy import become_statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from resources.postgres.queue_core import Row
    from resources.postgres.queue_messages import QueuedMessage
    from resources.settings import QueueSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A connection whose rows are dictionaries.
AsyncConnection = psycopg.AsyncConnection[dict[str, Any]]

_throttle = Throttle()
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncConnections]] = WeakKeyDictionary()


def plain_url(url: str) -> str:
    """A url as libpq reads it."""
    return driver_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class AsyncConnections:
    """A few connections of one event loop, opened when they are needed.

    Args:
        url: a `postgresql://` url.
        size: how many there are at most; who comes later waits.
    """

    def __init__(self, url: str, size: int = 10) -> None:
        self.url = url
        self._conninfo = plain_url(url)
        self._idle: list[AsyncConnection] = []
        self._free = asyncio.Semaphore(size)

    @classmethod
    def shared(cls, url: str) -> AsyncConnections:
        """Those of the running event loop."""
        of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
        if url not in of_loop:
            of_loop[url] = cls(url)
        return of_loop[url]

    async def take(self) -> AsyncConnection:
        """A connection, outside of a transaction."""
        await self._free.acquire()
        try:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
            return await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, row_factory=dict_row, connect_timeout=10,
                application_name=APPLICATION_NAME,
            )  # fmt: skip
        except BaseException:
            self._free.release()
            raise

    async def give_back(self, connection: AsyncConnection) -> None:
        """It is free again; one that is in the middle of something is closed."""
        try:
            if connection.closed or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                await connection.close()
            else:
                self._idle.append(connection)
        finally:
            self._free.release()

    async def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            await self._idle.pop().close()


async def dispose_async_connections() -> None:
    """Close the connections of the running event loop that nobody uses."""
    for connections in _shared.pop(asyncio.get_running_loop(), {}).values():
        await connections.close()


async def rows_of(connection: AsyncConnection, query: Query) -> list[Row]:
    """Run a query's statement in whatever transaction the connection is in."""
    cursor = await connection.execute(query.statement, query.parameters)
    return list(await cursor.fetchall())


@asynccontextmanager
async def transaction_as(connection: AsyncConnection, customer: UUID | None) -> AsyncIterator[None]:
    """A transaction as the customer, or (None) as the service."""
    statement, parameters = become_statement(customer)
    async with connection.transaction():
        await connection.execute(statement, parameters)
        yield


async def query_as(connection: AsyncConnection, query: Query) -> list[Row]:
    """A query in a transaction of its own, in one round trip."""
    if query.by_itself is not None:
        cursor = await connection.execute(query.by_itself, query.parameters)
        return list(await cursor.fetchall())
    statement, parameters = become_statement(query.customer)
    async with connection.pipeline(), connection.transaction():
        await connection.execute(statement, parameters)
        cursor = await connection.execute(query.statement, query.parameters)
    return list(await cursor.fetchall())


def explained(error: psycopg.Error, url: str) -> Exception:
    """The driver's error in words."""
    return known_error(error.sqlstate, str(error)) or describe_error(error, url)


class AsyncRunner:
    """Runs flows, one after the other, on a connection that it keeps. For one task.

    Args are those of `SyncRunner`, but for the connections; the handler may be a coroutine function.
    """

    def __init__(
        self,
        connections: AsyncConnections,
        settings: QueueSettings,
        handler: Callable[..., object] | None = None,
        heartbeat: AsyncHeartbeat | None = None,
        wait: Callable[[float], Awaitable[bool]] | None = None,
    ) -> None:
        self._connections = connections
        self._settings = settings
        self._handler = handler
        self._heartbeat = heartbeat
        self._wait = wait
        self._connection: AsyncConnection | None = None

    async def __aenter__(self) -> AsyncRunner:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._connections.give_back(connection)

    async def run(self, flow: Flow[T]) -> T:
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
            except psycopg.Error as error:
                raise explained(error, self._connections.url) from error
            answer, failure = None, None
            try:
                answer = await self._do(step)
            except BaseException as error:  # noqa: BLE001 - the flow decides what it means
                failure = error

    async def wake(self) -> None:
        """Wake the workers, if none was woken a moment ago. They look by themselves too, so a failure is no error."""
        if not self._settings.notify or not _throttle.may(self._connections.url):
            return
        try:
            await (await self._connect()).execute(WAKE)
        except psycopg.Error as error:
            await self._drop()
            logger.info("workers were not woken (%s); they will look by themselves", error)

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Query):
            return await self._patiently(lambda: self._query(step))
        if isinstance(step, Handle):
            return await self._handle(step)
        if self._wait is None:
            await asyncio.sleep(step.seconds)
            return False
        return await self._wait(step.seconds)

    async def _query(self, query: Query) -> list[Row]:
        return await query_as(await self._connect(), query)

    async def _handle(self, step: Handle) -> list[Row] | None:
        async with AsyncExitStack() as around:
            watch = None
            if self._heartbeat is not None:
                watch = await around.enter_async_context(self._heartbeat.keeping(step.message))
            finish = step.finish
            if finish is None:
                await self._call(watch, step.message)
                return None
            try:
                async with AsyncExitStack() as transaction:
                    connection = await self._patiently(lambda: self._begin(transaction, finish.customer))
                    await self._call(watch, step.message, connection)
                    rows = await rows_of(connection, finish)
                    check_acknowledged(step.message, rows)
            except psycopg.Error as error:
                if is_connection_lost(error):
                    await self._drop()
                raise
            return rows

    async def _call(self, watch: Watch | None, *arguments: object) -> None:
        """Call the handler; it is cancelled when its lease is lost, because somebody else may have begun."""
        if self._handler is None:
            msg = "this flow has messages to be handled, and its runner has no handler"
            raise TypeError(msg)
        called = self._handler(*arguments)
        if not inspect.isawaitable(called):
            return
        task = asyncio.ensure_future(called)
        if watch is not None:
            watch.task = task
        try:
            await task
        except asyncio.CancelledError:
            if watch is not None and watch.lost:
                msg = f"the lease of message {watch.message.key!r} was lost while it was handled"
                raise LeaseLost(msg) from None
            raise
        finally:
            if watch is not None:
                watch.task = None

    async def _begin(self, transaction: AsyncExitStack, customer: UUID | None) -> AsyncConnection:
        connection = await self._connect()
        await transaction.enter_async_context(transaction_as(connection, customer))
        return connection

    async def _connect(self) -> AsyncConnection:
        if self._connection is None:
            self._connection = await self._connections.take()
        return self._connection

    async def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()
            await self._connections.give_back(connection)

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        pauses = Pauses(self._settings.reconnect_seconds)
        while True:
            try:
                return await once()
            except psycopg.Error as error:
                if not is_connection_lost(error):
                    raise
                await self._drop()
                pause = pauses.next()
                if pause is None:
                    raise
                await asyncio.sleep(pause)


async def finish_in_memory(flow: Flow[T], handler: Callable[..., object]) -> T:
    """Do a flow whose messages are in memory alone."""
    failure: BaseException | None = None
    while True:
        try:
            step = flow.send(None) if failure is None else flow.throw(failure)
        except StopIteration as ended:
            result: T = ended.value
            return result
        failure = None
        if not isinstance(step, Handle):
            msg = f"a queue in memory was asked to do {step}"
            raise TypeError(msg)
        try:
            called = handler(step.message)
            if inspect.isawaitable(called):
                await called
        except BaseException as error:  # noqa: BLE001 - the flow decides what it means
            failure = error


class Watch:
    """A message that is being handled, the handler's task, and whether its lease was lost."""

    def __init__(self, message: QueuedMessage) -> None:
        self.message = message
        self.task: asyncio.Future[Any] | None = None
        self.lost = False


class AsyncHeartbeat:
    """Renews the leases of messages that are being handled, from a task of its own, until it is closed."""

    def __init__(self, connections: AsyncConnections, settings: QueueSettings) -> None:
        self._connections = connections
        self._settings = settings
        self._held = Held(settings)
        self._watches: dict[UUID, Watch] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncHeartbeat:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @asynccontextmanager
    async def keeping(self, message: QueuedMessage) -> AsyncIterator[Watch]:
        """Keep this message's lease until the block ends."""
        watch = self._watches[message.id] = Watch(message)
        self._held.add(message)
        if self._task is None:
            self._task = asyncio.create_task(self._beat(), name="omniops-queue-leases")
        try:
            yield watch
        finally:
            self._held.remove(message)
            del self._watches[message.id]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            for messages in self._held.due():
                for message in await self._renew(messages):
                    watch = self._watches.get(message.id)
                    if watch is not None:
                        watch.lost = True
                        if watch.task is not None:
                            watch.task.cancel()

    async def _renew(self, messages: list[QueuedMessage]) -> list[QueuedMessage]:
        query = renewal(messages, self._settings.lease_seconds)
        try:
            connection = await self._connections.take()
            try:
                found = {row["id"] for row in await query_as(connection, query)}
            finally:
                await self._connections.give_back(connection)
        except psycopg.Error as error:
            # Tried again at the next beat; if that is too late, the acknowledgement is refused.
            logger.warning("leases of %d messages were not renewed: %s", len(messages), error)
            return []
        return self._held.renewed(messages, found)
