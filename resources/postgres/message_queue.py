"""The persistent message queue: a chat message written while the connection is down is not lost.

What is promised, for the messages of one session (`customer_id`, `session_id`):

- a message that was acknowledged (`enqueue` returned) survives kill -9 of the program and of Postgres;
- one key is one message; the same key with another body (`type`, `value`) is an error;
- messages are handled in the order of their arrival, one at a time, whoever replays, in whatever process. A message
  that failed holds the rest until it is done or given up, and `ReplayResult` says so;
- a handler has a lease, which is renewed while it is at work. When it dies the lease runs out, the message is handled
  again, and that counts as a try. What a handler acknowledges after its lease was lost changes nothing;
- each message is handled at least once. With `transactional=True` the handler gets a connection, and what it writes
  there and the acknowledgement are one transaction: the effect is there exactly once;
- every statement runs as the customer, under row-level security.

`PersistentMessageQueue` is synchronous, `AsyncPersistentMessageQueue` the same for asynchronous programs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import psycopg
from sqlalchemy.exc import DBAPIError

from resources.postgres import queue_async, queue_sync
from resources.postgres.connection import engine_for
from resources.postgres.queue_core import MemoryStore, PostgresStore, Store, replay
from resources.postgres.queue_messages import (
    MAX_SESSION_BYTES,
    CheckedMessage,
    Enqueued,
    QueuedMessage,
    ReplayResult,
    check_batch,
    check_conversation,
    check_customer,
    check_name,
)
from resources.settings import QueueSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

# With persistence on, memory is only a copy of what this object has taken: the newest so many are kept in it.
COPIED: Final = 1_000


class _MessageQueue:
    """What both faces share: whose messages, with which settings, and the copy in memory."""

    def __init__(
        self,
        enable_persistence: bool,
        customer_id: UUID | str,
        session_id: str,
        conversation_id: UUID | str | None = None,
        *,
        lease_seconds: float | None = None,
        max_tries: int | None = None,
        backoff_seconds: float | None = None,
        settings: QueueSettings | None = None,
        engine: Engine | None = None,
        database_url: str | None = None,
    ) -> None:
        given = {"lease_seconds": lease_seconds, "max_tries": max_tries, "backoff_seconds": backoff_seconds}
        self.settings = replace(
            settings or QueueSettings.from_environment(),
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        self.enable_persistence = bool(enable_persistence)
        self.customer_id = check_customer(customer_id)
        self.session_id = check_name(session_id, "session_id", MAX_SESSION_BYTES)
        self.conversation_id = check_conversation(conversation_id)
        self._memory = MemoryStore(self.customer_id, self.session_id, self.conversation_id)
        self._postgres = PostgresStore(self.customer_id, self.settings, self.session_id, self.conversation_id)
        self._copies: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._engine = engine
        self._url = database_url or (engine and engine.url.render_as_string(hide_password=False)) or None

    @property
    def in_memory(self) -> list[Mapping[str, Any]]:
        """What this object has taken and not seen handled, in order (with persistence on, the newest 1,000)."""
        return list(self._copies.values()) if self.enable_persistence else list(self._memory.messages())

    @property
    def _store(self) -> Store:
        return self._postgres if self.enable_persistence else self._memory

    def _taken(self, messages: Sequence[CheckedMessage]) -> None:
        for message in messages:
            self._copies[message.key] = message.body
        while len(self._copies) > COPIED:
            self._copies.popitem(last=False)

    def _done(self, message: QueuedMessage) -> None:
        self._copies.pop(message.key, None)

    def _loaded(self, messages: Sequence[QueuedMessage]) -> None:
        if self.enable_persistence:
            self._copies = OrderedDict((message.key, message) for message in messages[-COPIED:])

    def _check_replay(self, transactional: bool, limit: int | None) -> None:
        if transactional and not self.enable_persistence:
            msg = "a handler can share a transaction only where messages are persisted (enable_persistence=True)"
            raise ValueError(msg)
        if limit is not None and limit < 1:
            msg = f"a replay of {limit} messages is refused: leave limit out, or give at least 1"
            raise ValueError(msg)


class PersistentMessageQueue(_MessageQueue):
    """The messages of one session.

    Args:
        enable_persistence: whether messages go to Postgres; without, they are in this process's memory alone, with
            the same order, keys, tries and expiry.
        customer_id: the tenant.
        session_id: of the chat; text of 1 to 512 bytes.
        conversation_id: of the conversation, if there is one already.
        lease_seconds: another lease than the settings'.
        max_tries: another number of tries.
        backoff_seconds: another wait before the second try.
        settings: others than the environment's.
        engine: another database than the configured one.
        database_url: likewise, by its url.

    Raises:
        InvalidMessage: an id is none.
        InvalidSetting: a setting is out of range.
    """

    def enqueue(self, message: Mapping[str, Any], *, connection: Connection | None = None) -> Enqueued:
        """Take a message: into memory, and into Postgres before this returns.

        Args:
            message: `type`, `key`, `value`, `timestamp`.
            connection: the caller's own transaction, for whom the message is there when that commits (and which keeps
                other writers of the session waiting until then). Workers are not woken by it.

        Raises:
            InvalidMessage: it cannot be queued.
            MessageConflict: its key belongs to another message already.
            NoSuchCustomer: there is no such customer.
            DatabaseError: Postgres cannot be reached; send it again, it will be one message.
        """
        return self.enqueue_many([message], connection=connection)[0]

    def enqueue_many(
        self, messages: Iterable[Mapping[str, Any]], *, connection: Connection | None = None
    ) -> list[Enqueued]:
        """Take messages in this order, in one transaction: all or none. Errors are those of `enqueue`."""
        checked = check_batch(messages)
        if not checked:
            return []
        if self.enable_persistence and connection is not None:
            return self._enqueue_in(connection, checked)
        if not self.enable_persistence:
            return queue_sync.finish_in_memory(self._memory.enqueue(checked))
        with queue_sync.SyncRunner(self._database(), self.settings) as runner:
            taken = runner.run(self._postgres.enqueue(checked))
            self._taken(checked)
            runner.wake()
        return taken

    def _enqueue_in(self, connection: Connection, checked: list[CheckedMessage]) -> list[Enqueued]:
        query = self._postgres.enqueue_query(checked)
        for _ in range(3):
            try:
                rows = queue_sync.rows_of(connection, query)
            except DBAPIError as error:
                raise queue_sync.explained(error, connection.engine) from error
            taken = self._postgres.enqueued(checked, rows)
            if taken is not None:
                return taken
        msg = "messages were written and removed by somebody else at the same time"
        raise RuntimeError(msg)

    def load_persisted_messages(self) -> list[QueuedMessage]:
        """What is unprocessed for this customer and session, in order; memory is brought up to it.

        Raises:
            DatabaseError: Postgres cannot be reached.
        """
        if not self.enable_persistence:
            return self._memory.messages()
        with queue_sync.SyncRunner(self._database(), self.settings) as runner:
            found = runner.run(self._postgres.unprocessed())
        self._loaded(found)
        return found

    def replay_with_persistence(
        self, handler: Callable[..., object], *, transactional: bool = False, limit: int | None = None
    ) -> ReplayResult:
        """Hand each message to the handler, in order, until none is left or one holds up the rest.

        A handler that raises has failed: the message is tried again after a while (`next_try_at`), and given up after
        its last try, or at once if it raises `RejectMessage`. What interrupts the program (Ctrl-C) gives the message
        back and counts nothing.

        Args:
            handler: called with each message; with `transactional`, with the message and a SQLAlchemy Connection that
                is in the transaction of the acknowledgement, as the customer. It must not commit it.
            transactional: share that transaction.
            limit: handle so many at most.

        Raises:
            DatabaseError: Postgres cannot be reached. What was handled before is done.
        """
        self._check_replay(transactional, limit)
        flow = replay(self._store, self.settings, transactional=transactional, limit=limit, on_handled=self._done)
        if not self.enable_persistence:
            return queue_sync.finish_in_memory(flow, handler)
        engine = self._database()
        with (
            queue_sync.Heartbeat(engine, self.settings) as heartbeat,
            queue_sync.SyncRunner(engine, self.settings, handler, heartbeat) as runner,
        ):
            return runner.run(flow)

    def _database(self) -> Engine:
        if self._engine is None and self._url is not None:
            self._engine = engine_for(self._url)
        elif self._engine is None:
            from resources.stack import database_engine  # noqa: PLC0415 - the stack is above the database's modules

            self._engine = database_engine()
        return self._engine


class AsyncPersistentMessageQueue(_MessageQueue):
    """The messages of one session, for asynchronous programs. Everything is as for `PersistentMessageQueue`.

    Connections are psycopg's own, a few for each event loop; `queue_async.dispose_async_connections` closes them.
    """

    async def enqueue(
        self, message: Mapping[str, Any], *, connection: queue_async.AsyncConnection | None = None
    ) -> Enqueued:
        """Take a message; the caller's own transaction is one of psycopg's AsyncConnection."""
        return (await self.enqueue_many([message], connection=connection))[0]

    async def enqueue_many(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        connection: queue_async.AsyncConnection | None = None,
    ) -> list[Enqueued]:
        """Take messages in this order, in one transaction: all or none."""
        checked = check_batch(messages)
        if not checked:
            return []
        if self.enable_persistence and connection is not None:
            return await self._enqueue_in(connection, checked)
        if not self.enable_persistence:
            return queue_sync.finish_in_memory(self._memory.enqueue(checked))
        async with queue_async.AsyncRunner(self._database(), self.settings) as runner:
            taken = await runner.run(self._postgres.enqueue(checked))
            self._taken(checked)
            await runner.wake()
        return taken

    async def _enqueue_in(
        self, connection: queue_async.AsyncConnection, checked: list[CheckedMessage]
    ) -> list[Enqueued]:
        query = self._postgres.enqueue_query(checked)
        for _ in range(3):
            try:
                rows = await queue_async.rows_of(connection, query)
            except psycopg.Error as error:
                raise queue_async.explained(error, self._database().url) from error
            taken = self._postgres.enqueued(checked, rows)
            if taken is not None:
                return taken
        msg = "messages were written and removed by somebody else at the same time"
        raise RuntimeError(msg)

    async def load_persisted_messages(self) -> list[QueuedMessage]:
        """What is unprocessed for this customer and session, in order."""
        if not self.enable_persistence:
            return self._memory.messages()
        async with queue_async.AsyncRunner(self._database(), self.settings) as runner:
            found = await runner.run(self._postgres.unprocessed())
        self._loaded(found)
        return found

    async def replay_with_persistence(
        self, handler: Callable[..., object], *, transactional: bool = False, limit: int | None = None
    ) -> ReplayResult:
        """Hand each message to the handler (a function or coroutine function), in order.

        A coroutine is cancelled when its lease is lost. With `transactional` the handler gets psycopg's
        AsyncConnection, rows as dictionaries.
        """
        self._check_replay(transactional, limit)
        flow = replay(self._store, self.settings, transactional=transactional, limit=limit, on_handled=self._done)
        if not self.enable_persistence:
            return await queue_async.finish_in_memory(flow, handler)
        connections = self._database()
        async with (
            queue_async.AsyncHeartbeat(connections, self.settings) as heartbeat,
            queue_async.AsyncRunner(connections, self.settings, handler, heartbeat) as runner,
        ):
            return await runner.run(flow)

    def _database(self) -> queue_async.AsyncConnections:
        if self._url is None:
            from resources.stack import endpoints  # noqa: PLC0415 - the stack is above the database's own modules

            self._url = endpoints().database_url
        return queue_async.AsyncConnections.shared(self._url)
