"""Draining the queue: a worker takes messages of many sessions, of one customer or of all, and has them handled.

A worker has slots (threads, or tasks). Each goes round: customer after customer, and within a customer session after
session in the order of their names, a second or so for each before it is the next one's turn. So nobody waits for
somebody else's backlog, and what is done is not walked over again, which an old snapshot elsewhere would make dear.
Within a session messages are handled in order, one at a time, whoever else is at work.

What is handled is claimed as its customer, one message at a time and together with the acknowledgement of the one
before: a transaction for each message, and a program that dies has begun exactly one message in each slot.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg

from resources.awaited_thread import AwaitedThread
from resources.postgres.connection import DatabaseUnreachable
from resources.postgres.queue_async import AsyncConnections, AsyncHeartbeat, AsyncRunner, plain_url
from resources.postgres.queue_core import (
    LISTEN,
    Flow,
    GoOn,
    PostgresStore,
    Wait,
    attend,
    customers_with_messages,
)
from resources.postgres.queue_messages import check_customer
from resources.postgres.queue_sync import Heartbeat, SyncRunner
from resources.settings import QueueSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

logger = logging.getLogger(__name__)

# A session's turn, and a customer's, where others wait.
TURN_SECONDS: Final = 1.0
# A worker that was woken and finds nothing looks once more after that: see `Throttle`.
_SECOND_LOOK: Final = 0.1


@dataclass(frozen=True, slots=True)
class DrainResult:
    """What a worker did.

    Attributes:
        handled: messages that were handled.
        failed: tries that failed and are to be repeated.
        given_up: messages that went to the dead letters.
        lost: messages whose lease was lost while they were handled.
        next_try_at: when the next message that waits can be had, as far as is known; None if none is left.
    """

    handled: int = 0
    failed: int = 0
    given_up: int = 0
    lost: int = 0
    next_try_at: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Board:
    """What the slots of a worker share."""

    customer_id: UUID | None
    settings: QueueSettings
    transactional: bool
    stopped: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    counts: Counter[str] = field(default_factory=Counter)
    waiting: list[datetime] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, outcome: str, number: int = 1) -> None:
        with self.lock:
            self.counts[outcome] += number

    def result(self) -> DrainResult:
        return DrainResult(
            self.counts["handled"], self.counts["retry"], self.counts["dead"], self.counts["lost"],
            min(self.waiting, default=None),
        )  # fmt: skip


def _serve(board: _Board, slot: int, *, until_idle: bool) -> Flow[None]:
    """One slot's work, until it is stopped, or until there is nothing to be had."""
    cursors: dict[UUID, str] = {}
    woken = False
    while not board.stopped():
        begun = board.clock()
        if board.customer_id is None:
            customers = yield from customers_with_messages()
        else:
            customers = [board.customer_id]
        begin = slot % max(1, len(customers))
        busy, soonest = False, None
        for customer in customers[begin:] + customers[:begin]:
            if board.stopped():
                return
            worked, free = yield from _turn(board, customer, cursors, alone=len(customers) == 1)
            busy = busy or worked
            soonest = min(filter(None, (soonest, free)), default=None)
        if busy:
            continue
        if until_idle:
            if soonest is not None:
                with board.lock:
                    board.waiting.append(soonest)
            return
        pause = board.settings.poll_seconds
        if woken:
            pause = min(pause, _SECOND_LOOK)
        if soonest is not None:
            pause = min(pause, max(0.02, (soonest - datetime.now(UTC)).total_seconds()))
        # Where very many sessions wait, looking at all of them must not become all that is done.
        pause = max(pause, 4 * (board.clock() - begun))
        woken = yield Wait(pause)


def _turn(
    board: _Board, customer: UUID, cursors: dict[UUID, str], *, alone: bool
) -> Flow[tuple[bool, datetime | None]]:
    """One customer's turn: whether anything was handled, and when one of the sessions passed over comes free."""
    store = PostgresStore(customer, board.settings)
    cursor = cursors.get(customer, "")
    # Whether all sessions have been looked at since one had something.
    from_start = cursor == ""
    worked, soonest = False, None
    ends = board.clock() + TURN_SECONDS
    session, session_ends = None, 0.0
    claim = yield from store.claim_next(cursor)
    while True:
        board.count("dead", len(claim.dead))
        message = claim.message
        if message is None:
            soonest = min(filter(None, (soonest, claim.soonest)), default=None)
            cursor = claim.cursor
            if claim.outcome == "end":
                cursor = ""
                if from_start:
                    break
                from_start, soonest = True, None
            if board.stopped():
                break
            claim = yield from store.claim_next(cursor)
            continue
        if board.stopped():
            yield from store.fail(message, None, 0.0, board.settings.max_tries, counted=False)
            break
        worked, from_start, cursor = True, False, claim.cursor
        if message.session_id != session:
            session, session_ends = message.session_id, board.clock() + TURN_SECONDS
        now = board.clock()
        go_on = None
        if alone or now < ends:
            go_on = GoOn(own_session=now < session_ends, others=True, cursor=cursor)
        if now >= session_ends:
            session = None
        attended = yield from attend(store, message, board.settings, transactional=board.transactional, go_on=go_on)
        board.count(attended.outcome)
        if attended.outcome == "lost":
            logger.warning("%s", attended.error)
        if go_on is None:
            break
        claim = attended.following or (yield from store.claim_next(cursor))
    cursors[customer] = cursor
    return worked, soonest


class _Bell:
    """Wakes those who wait; whoever comes too late for a ring does not wait at all."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = 0

    def ring(self) -> None:
        with self._condition:
            self._rung += 1
            self._condition.notify_all()

    def waiter(self) -> Callable[[float], bool]:
        """A function that waits so many seconds at most; true if the bell rang since its last call."""
        heard = self._rung

        def wait(seconds: float) -> bool:
            nonlocal heard
            with self._condition:
                rung = self._condition.wait_for(lambda: self._rung != heard, timeout=seconds)
                heard = self._rung
            return rung

        return wait


class QueueWorker:
    """Handles messages of many sessions, in threads.

    Args:
        handler: called with each message, as by `PersistentMessageQueue.replay_with_persistence`, from several
            threads at once.
        customer_id: of one customer only; None: of all (the list of customers is read as the service, messages as
            their customers).
        concurrency: threads, and with them sessions that are handled at once. Each uses a connection of the pool,
            which has 15.
        transactional: the handler gets the connection of the acknowledgement's transaction.
        settings: others than the environment's.
        engine: another database than the configured one.

    Raises:
        InvalidMessage: the customer's id is no uuid.
        ValueError: the concurrency is out of range.
    """

    def __init__(
        self,
        handler: Callable[..., object],
        *,
        customer_id: UUID | str | None = None,
        concurrency: int = 4,
        transactional: bool = False,
        settings: QueueSettings | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._handler = handler
        self._customer_id = _checked(customer_id, concurrency, 12)
        self._concurrency = concurrency
        self._transactional = transactional
        self._settings = settings or QueueSettings.from_environment()
        self._engine = engine

    def drain(self) -> DrainResult:
        """Handle what can be had now, and return. What waits for its next try is left.

        Raises:
            DatabaseError: the database cannot be reached; what was handled is done.
        """
        return self._work(threading.Event(), until_idle=True)

    def run(self, stop: threading.Event) -> DrainResult:
        """Handle messages as they come, until `stop` is set. A database that is away is waited for.

        Messages that are being handled at that moment are finished.
        """
        return self._work(stop, until_idle=False)

    def _work(self, stop: threading.Event, *, until_idle: bool) -> DrainResult:
        engine = self._database()
        ended = threading.Event()
        bell = _Bell()
        board = _Board(
            self._customer_id, self._settings, self._transactional, lambda: stop.is_set() or ended.is_set()
        )
        errors: list[BaseException] = []

        def slot(number: int) -> None:
            try:
                while True:
                    try:
                        with SyncRunner(engine, self._settings, self._handler, heartbeat, bell.waiter()) as runner:
                            runner.run(_serve(board, number, until_idle=until_idle))
                        return
                    except DatabaseUnreachable as error:
                        if until_idle or board.stopped():
                            raise
                        logger.warning("%s; trying again", error)
                        ended.wait(self._settings.poll_seconds)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                errors.append(error)
                ended.set()

        with Heartbeat(engine, self._settings) as heartbeat:
            threads = [
                AwaitedThread(slot, f"omniops-queue-{number}", (number,)) for number in range(self._concurrency)
            ]
            if not until_idle:
                url = plain_url(engine.url.render_as_string(hide_password=False))
                threads.append(AwaitedThread(_listen, "omniops-queue-listen", (url, bell, board)))
            for thread in threads:
                thread.start()
            try:
                while not all(thread.wait(0.2) for thread in threads):
                    if board.stopped():
                        bell.ring()
            except BaseException:
                ended.set()
                bell.ring()
                for thread in threads:
                    thread.wait()
                raise
        if errors and not (stop.is_set() and isinstance(errors[0], DatabaseUnreachable)):
            raise errors[0]
        return board.result()

    def _database(self) -> Engine:
        if self._engine is None:
            from resources.stack import database_engine  # noqa: PLC0415 - the stack is above the database's modules

            self._engine = database_engine()
        return self._engine


def _listen(url: str, bell: _Bell, board: _Board) -> None:
    """Ring the bell for each notification. Without a connection that can listen, the slots look by themselves."""
    while not board.stopped():
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
                connection.execute(LISTEN)
                # What came before it listened.
                bell.ring()
                while not board.stopped():
                    for _ in connection.notifies(timeout=0.2, stop_after=1):
                        bell.ring()
        except psycopg.Error as error:
            logger.info("not listening for messages (%s); looking every %g s", error, board.settings.poll_seconds)
            bell.waiter()(max(1.0, board.settings.poll_seconds))


class AsyncQueueWorker:
    """Handles messages of many sessions, in tasks of one event loop. Everything is as for `QueueWorker`.

    Args:
        handler: a function, or a coroutine function, which is cancelled when its lease is lost.
        concurrency: tasks. Each keeps a connection.
        database_url: another database than the configured one.
    """

    def __init__(
        self,
        handler: Callable[..., object],
        *,
        customer_id: UUID | str | None = None,
        concurrency: int = 4,
        transactional: bool = False,
        settings: QueueSettings | None = None,
        database_url: str | None = None,
    ) -> None:
        self._handler = handler
        self._customer_id = _checked(customer_id, concurrency, 1_000)
        self._concurrency = concurrency
        self._transactional = transactional
        self._settings = settings or QueueSettings.from_environment()
        self._url = database_url

    async def drain(self) -> DrainResult:
        """Handle what can be had now, and return."""
        return await self._work(asyncio.Event(), until_idle=True)

    async def run(self, stop: asyncio.Event) -> DrainResult:
        """Handle messages as they come, until `stop` is set."""
        return await self._work(stop, until_idle=False)

    async def _work(self, stop: asyncio.Event, *, until_idle: bool) -> DrainResult:
        url = self._database()
        # Two more than the slots: one renews, one listens.
        connections = AsyncConnections(url, self._concurrency + 2)
        board = _Board(self._customer_id, self._settings, self._transactional, stop.is_set)
        bell = asyncio.Event()

        async def wait(seconds: float) -> bool:
            try:
                await asyncio.wait_for(bell.wait(), seconds)
            except TimeoutError:
                return False
            bell.clear()
            return True

        async def slot(number: int) -> None:
            while True:
                try:
                    async with AsyncRunner(connections, self._settings, self._handler, heartbeat, wait) as runner:
                        await runner.run(_serve(board, number, until_idle=until_idle))
                    return
                except DatabaseUnreachable as error:
                    if until_idle or board.stopped():
                        raise
                    logger.warning("%s; trying again", error)
                    await asyncio.sleep(self._settings.poll_seconds)

        async with AsyncHeartbeat(connections, self._settings) as heartbeat:
            listener = None if until_idle else asyncio.create_task(self._listen(connections, bell))
            ringer = asyncio.create_task(_ring_when(stop, bell))
            try:
                async with asyncio.TaskGroup() as slots:
                    for number in range(self._concurrency):
                        slots.create_task(slot(number))
            except* DatabaseUnreachable as group:
                if not stop.is_set():
                    raise group.exceptions[0] from None
            finally:
                for task in (listener, ringer):
                    if task is not None:
                        task.cancel()
                        await asyncio.wait([task])
                await connections.close()
        return board.result()

    async def _listen(self, connections: AsyncConnections, bell: asyncio.Event) -> None:
        while True:
            try:
                connection = await connections.take()
                try:
                    await connection.execute(LISTEN)
                    bell.set()
                    async for _ in connection.notifies():
                        bell.set()
                finally:
                    # It listens for good: not for another use.
                    await connection.close()
                    await connections.give_back(connection)
            except psycopg.Error as error:
                logger.info("not listening for messages (%s); looking by themselves", error)
                await asyncio.sleep(max(1.0, self._settings.poll_seconds))

    def _database(self) -> str:
        if self._url is None:
            from resources.stack import endpoints  # noqa: PLC0415 - the stack is above the database's own modules

            self._url = endpoints().database_url
        return self._url


async def _ring_when(stop: asyncio.Event, bell: asyncio.Event) -> None:
    await stop.wait()
    while True:
        bell.set()
        await asyncio.sleep(0.02)


def _checked(customer_id: UUID | str | None, concurrency: int, most: int) -> UUID | None:
    if not 1 <= concurrency <= most:
        msg = f"a worker with a concurrency of {concurrency} is refused: it has 1 to {most} slots"
        raise ValueError(msg)
    return None if customer_id is None else check_customer(customer_id)
