"""One session's messages: taken, kept, handled in order, tried again, given up."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.connection import DatabaseUnreachable, engine_for
from resources.postgres.message_queue import COPIED, AsyncPersistentMessageQueue, PersistentMessageQueue
from resources.postgres.queue_messages import MessageConflict, NoSuchCustomer, QueuedMessage, RejectMessage
from resources.postgres.retention import run
from resources.postgres.tenancy import service_connection, tenant_connection
from resources.settings import QueueSettings
from tests.integration.queue.conftest import (
    STILL,
    end_leases,
    execute,
    expire,
    message,
    pass_backoff,
    states,
)

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


class Face:
    """Both faces under one: what is promised of one is promised of the other, and of memory as far as it goes."""

    def __init__(self, kind: str, database: Database, customer: UUID) -> None:
        self.kind = kind
        arguments = (kind != "memory", customer, "s")
        self.queue: Any
        if kind == "async":
            self.queue = AsyncPersistentMessageQueue(*arguments, database_url=database.url, settings=STILL)
        else:
            self.queue = PersistentMessageQueue(*arguments, engine=database.engine, settings=STILL)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.queue, name)
        if self.kind != "async" or not callable(method):
            return method
        return lambda *args, **kwargs: asyncio.run(method(*args, **kwargs))

    def end_backoff(self, database: Database) -> None:
        pass_backoff(database)
        for one in self.queue._memory.messages():
            one.available_at = None


@pytest.fixture(params=["sync", "async", "memory"])
def face(request: pytest.FixtureRequest, database: Database, customer: UUID) -> Face:
    return Face(request.param, database, customer)


class Seen:
    """A handler that notes what it is given, and fails as it is told."""

    def __init__(self, **failures: int) -> None:
        self.keys: list[str] = []
        self.failures = failures

    def __call__(self, given: QueuedMessage, connection: Any = None) -> None:
        self.keys.append(given.key)
        if self.failures.get(given.key, 0) > 0:
            self.failures[given.key] -= 1
            msg = f"no {given.key}"
            raise ValueError(msg)


def test_messages_are_handled_in_the_order_in_which_they_came(face: Face) -> None:
    taken = [face.enqueue(message("b")), *face.enqueue_many([message(k) for k in "ca"])]
    assert [(t.key, t.new, t.persisted) for t in taken] == [(k, True, face.kind != "memory") for k in "bca"]
    assert [t.position for t in taken] == sorted(t.position for t in taken)
    assert face.load_persisted_messages() == [message(k) for k in "bca"]
    assert list(face.in_memory) == [message(k) for k in "bca"]
    seen = Seen()
    result = face.replay_with_persistence(seen)
    assert seen.keys == ["b", "c", "a"]
    assert (result.handled, result.finished, result.blocked_by) == (("b", "c", "a"), True, None)
    assert face.load_persisted_messages() == []
    assert list(face.in_memory) == []
    assert face.replay_with_persistence(seen).handled == ()


def test_one_key_is_one_message_and_another_body_is_an_error(face: Face) -> None:
    first = face.enqueue(message("a", {"x": 1}))
    again = face.enqueue({**message("a", {"x": 1.0}), "timestamp": "later"})
    assert (again.id, again.new, again.position) == (first.id, False, first.position)
    with pytest.raises(MessageConflict, match="message 'a' is refused: session 's' has this key with another body"):
        face.enqueue(message("a", {"x": True}))
    with pytest.raises(MessageConflict):
        face.enqueue_many([message("b"), message("a", 2)])
    assert [m.key for m in face.load_persisted_messages()] == ["a"]
    face.replay_with_persistence(Seen())
    assert not face.enqueue(message("a", {"x": 1})).new
    assert face.replay_with_persistence(Seen()).handled == ()


def test_a_failing_head_holds_the_rest_and_the_replay_says_so(face: Face, database: Database) -> None:
    face.enqueue_many([message(k) for k in "abc"])
    seen = Seen(b=1)
    result = face.replay_with_persistence(seen)
    assert (result.handled, result.blocked_by, result.reason) == (("a",), "b", "failed")
    assert result.error == "ValueError: no b"
    assert result.next_try_at is not None
    again = face.replay_with_persistence(seen)
    assert (again.handled, again.blocked_by, again.reason, again.error) == ((), "b", "waiting", "ValueError: no b")
    assert again.next_try_at == result.next_try_at
    assert seen.keys == ["a", "b"]
    face.end_backoff(database)
    assert face.replay_with_persistence(seen).handled == ("b", "c")


def test_after_the_last_try_a_message_is_given_up_and_the_rest_goes_on(face: Face, database: Database) -> None:
    face.enqueue_many([message(k) for k in "ab"])
    seen = Seen(a=9)
    for _ in range(2):
        assert face.replay_with_persistence(seen).reason == "failed"
        face.end_backoff(database)
    result = face.replay_with_persistence(seen)
    assert [(dead.key, dead.reason) for dead in result.given_up] == [("a", "ValueError: no a")]
    assert (result.handled, result.finished) == (("b",), True)
    assert seen.keys == ["a", "a", "a", "b"]
    if face.kind != "memory":
        assert states(database) == [("a", "failed", 3), ("b", "completed", 0)]
        assert database.value("SELECT error_message FROM message_queue WHERE status = 'failed'") == "ValueError: no a"


def test_a_handler_may_say_that_a_message_will_never_succeed(face: Face) -> None:
    face.enqueue_many([message(k) for k in "ab"])

    def handler(given: QueuedMessage) -> None:
        if given.key == "a":
            msg = "the shop is closed"
            raise RejectMessage(msg)

    result = face.replay_with_persistence(handler)
    assert [(dead.key, dead.reason) for dead in result.given_up] == [("a", "RejectMessage: the shop is closed")]
    assert result.handled == ("b",)


def test_an_interrupted_program_gives_its_message_back_and_counts_nothing(face: Face) -> None:
    face.enqueue(message("a"))

    def handler(_: QueuedMessage) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        face.replay_with_persistence(handler)
    (left,) = face.load_persisted_messages()
    assert (left.status, left.retry_count) == ("pending", 0)
    assert face.replay_with_persistence(Seen()).handled == ("a",)


def test_a_cancelled_task_gives_its_message_back_and_rolls_its_writes_back(
    database: Database, customer: UUID
) -> None:
    queue = AsyncPersistentMessageQueue(True, customer, "s", database_url=database.url, settings=STILL)

    async def play(transactional: bool) -> None:
        begun = asyncio.Event()

        async def handler(given: QueuedMessage, connection: Any = None) -> None:
            if connection is not None:
                await _writes_too(given, connection)
            begun.set()
            await asyncio.sleep(30)

        task = asyncio.create_task(queue.replay_with_persistence(handler, transactional=transactional))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(queue.enqueue(message("a")))
    for transactional in (False, True):
        asyncio.run(play(transactional))
        assert states(database) == [("a", "pending", 0)]
        assert _effects(database) == []


def test_a_replay_can_be_limited(face: Face) -> None:
    face.enqueue_many([message(k) for k in "abc"])
    result = face.replay_with_persistence(Seen(), limit=2)
    assert (result.handled, result.reason, result.finished) == (("a", "b"), "limit", False)
    assert face.replay_with_persistence(Seen()).handled == ("c",)
    with pytest.raises(ValueError, match="a replay of 0 messages is refused"):
        face.replay_with_persistence(Seen(), limit=0)


def test_what_has_expired_is_not_handled_and_its_key_is_free(face: Face, database: Database) -> None:
    old = face.enqueue(message("a", "old"))
    expire(database)
    for one in face.queue._memory.messages():
        one.expires_at = one.created_at
    assert face.load_persisted_messages() == []
    new = face.enqueue(message("a", "new"))
    assert new.new
    assert new.id != old.id
    assert face.load_persisted_messages() == [message("a", "new")]


def test_the_handler_sees_whose_message_it_is(database: Database, customer: UUID) -> None:
    conversation = uuid4()
    queue = PersistentMessageQueue(
        True, str(customer), "s", str(conversation), engine=database.engine, settings=STILL
    )
    queue.enqueue(message("a", {"text": "hi"}))
    seen: list[QueuedMessage] = []
    queue.replay_with_persistence(seen.append)
    (given,) = seen
    assert given == message("a", {"text": "hi"})
    assert (given.type, given.key, given.value, given.timestamp) == ("chat", "a", {"text": "hi"}, 1_700_000_000)
    assert (given.customer_id, given.session_id, given.conversation_id) == (customer, "s", conversation)
    assert (given.status, given.retry_count) == ("processing", 0)


def test_while_it_is_handled_a_message_is_processing_and_nobody_else_gets_it(
    database: Database, queue: PersistentMessageQueue, customer: UUID
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])
    other = PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=STILL)
    results = []

    def handler(given: QueuedMessage) -> None:
        assert states(database)["ab".index(given.key)][1] == "processing"
        results.append(other.replay_with_persistence(Seen()))

    assert queue.replay_with_persistence(handler).handled == ("a", "b")
    assert [(r.handled, r.blocked_by, r.reason) for r in results] == [((), "a", "leased"), ((), "b", "leased")]
    assert all(r.next_try_at is not None for r in results)


def test_a_handler_that_dies_gives_its_message_back_and_that_counts_as_a_try(
    database: Database, queue: PersistentMessageQueue
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])
    for tries in range(3):
        # A program that dies leaves nothing but its claim.
        claimed = _claim(database, queue)
        assert (claimed["key"], claimed["retry_count"]) == ("a", tries)
        end_leases(database)
    result = queue.replay_with_persistence(Seen())
    assert [dead.key for dead in result.given_up] == ["a"]
    assert result.handled == ("b",)
    reason = str(database.value("SELECT error_message FROM message_queue WHERE status = 'failed'"))
    assert reason.startswith("given up after 3 tries: the last handler's lease ran out at ")


def _claim(database: Database, queue: PersistentMessageQueue) -> dict[str, Any]:
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        row = connection.execute(
            text("SELECT * FROM message_queue_claim(:c, :s, gen_random_uuid(), interval '1 hour', 3)"),
            {"c": queue.customer_id, "s": queue.session_id},
        )
        return dict(row.mappings().one())


@pytest.mark.parametrize("taken_over", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_acknowledgement_after_the_lease_was_lost_changes_nothing(
    database: Database, customer: UUID, kind: str, taken_over: bool
) -> None:
    face = Face(kind, database, customer)
    face.enqueue_many([message(k) for k in "ab"])
    other = PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=STILL)

    def handler(_: QueuedMessage) -> None:
        end_leases(database)
        if taken_over:
            assert other.replay_with_persistence(Seen(), limit=1).handled == ("a",)

    result = face.replay_with_persistence(handler)
    assert (result.handled, result.blocked_by, result.reason) == ((), "a", "lost")
    assert "lease" in str(result.error)
    assert states(database)[0] == (("a", "completed", 1) if taken_over else ("a", "processing", 0))
    assert states(database)[1] == ("b", "pending", 0)


def test_a_failure_after_the_lease_was_lost_changes_nothing(
    database: Database, queue: PersistentMessageQueue
) -> None:
    queue.enqueue(message("a"))

    def handler(_: QueuedMessage) -> None:
        end_leases(database)
        msg = "too late"
        raise ValueError(msg)

    assert queue.replay_with_persistence(handler).reason == "lost"
    assert states(database) == [("a", "processing", 0)]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_lease_is_renewed_while_a_handler_runs_longer_than_it(
    database: Database, customer: UUID, kind: str
) -> None:
    settings = QueueSettings(lease_seconds=0.6, notify=False)
    arguments = (True, customer, "s")
    handled = threading.Event()

    async def slow(_: QueuedMessage) -> None:
        await asyncio.sleep(1.5)

    queue: Any
    if kind == "sync":
        queue = PersistentMessageQueue(*arguments, engine=database.engine, settings=settings)
        queue.enqueue(message("a"))
        result = queue.replay_with_persistence(lambda _: handled.wait(1.5))
    else:
        queue = AsyncPersistentMessageQueue(*arguments, database_url=database.url, settings=settings)
        asyncio.run(queue.enqueue(message("a")))
        result = asyncio.run(queue.replay_with_persistence(slow))
    assert result.handled == ("a",)
    assert states(database) == [("a", "completed", 0)]


def test_a_coroutine_whose_lease_is_lost_is_cancelled(database: Database, customer: UUID) -> None:
    settings = QueueSettings(lease_seconds=0.3, notify=False)
    queue = AsyncPersistentMessageQueue(True, customer, "s", database_url=database.url, settings=settings)
    ended: list[str] = []

    async def handler(_: QueuedMessage) -> None:
        execute(database, "UPDATE message_queue SET lease_token = gen_random_uuid()")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def play() -> Any:
        await queue.enqueue(message("a"))
        return await queue.replay_with_persistence(handler)

    assert asyncio.run(play()).reason == "lost"
    assert ended == ["cancelled"]


# --- one transaction with the handler's writes ------------------------------------------------------------------

_EFFECT = "INSERT INTO conversations (customer_id, session_id) VALUES (:c, :s)"


def _writes(given: QueuedMessage, connection: Connection) -> None:
    connection.execute(text(_EFFECT), {"c": given.customer_id, "s": given.key})


async def _writes_too(given: QueuedMessage, connection: Any) -> None:
    await connection.execute(_EFFECT.replace(":c", "%s").replace(":s", "%s"), (given.customer_id, given.key))


def _effects(database: Database) -> list[str]:
    return [
        str(row["session_id"]) for row in database.rows("SELECT session_id FROM conversations ORDER BY created_at")
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handlers_writes_and_the_mark_are_one_transaction(database: Database, customer: UUID, kind: str) -> None:
    face = Face(kind, database, customer)
    face.enqueue_many([message(k) for k in "abc"])
    fail = {"b"}

    def handler(given: QueuedMessage, connection: Any) -> Any:
        if given.key in fail:
            fail.remove(given.key)
            if kind == "sync":
                _writes(given, connection)
            msg = "after its writes"
            raise ValueError(msg)
        return _writes(given, connection) if kind == "sync" else _writes_too(given, connection)

    assert face.replay_with_persistence(handler, transactional=True).blocked_by == "b"
    assert _effects(database) == ["a"]
    pass_backoff(database)
    assert face.replay_with_persistence(handler, transactional=True).handled == ("b", "c")
    assert _effects(database) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_writes_of_a_handler_that_lost_its_lease_are_rolled_back(
    database: Database, customer: UUID, kind: str
) -> None:
    face = Face(kind, database, customer)
    face.enqueue(message("a"))

    def handler(given: QueuedMessage, connection: Any) -> Any:
        end_leases(database)
        return _writes(given, connection) if kind == "sync" else _writes_too(given, connection)

    assert face.replay_with_persistence(handler, transactional=True).reason == "lost"
    assert _effects(database) == []


def test_a_handler_writes_as_the_customer_and_not_for_others(
    database: Database, queue: PersistentMessageQueue
) -> None:
    from tests.integration.queue.conftest import make_customer

    other = make_customer(database, "globex")
    queue.enqueue(message("a"))

    def handler(_: QueuedMessage, connection: Connection) -> None:
        connection.execute(text(_EFFECT), {"c": other, "s": "x"})

    result = queue.replay_with_persistence(handler, transactional=True)
    assert result.reason == "failed"
    assert "row-level security" in str(result.error)


def test_without_persistence_there_is_no_transaction_to_share(database: Database, customer: UUID) -> None:
    with pytest.raises(ValueError, match="only where messages are persisted"):
        Face("memory", database, customer).replay_with_persistence(_writes, transactional=True)


@pytest.mark.parametrize("answer_is_lost", ["before the commit", "after the commit"])
def test_when_the_answer_to_a_commit_is_lost_the_effect_is_there_exactly_once(
    database: Database, queue: PersistentMessageQueue, monkeypatch: pytest.MonkeyPatch, answer_is_lost: str
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])
    from resources.postgres import queue_sync

    once = [True]
    check = queue_sync.check_acknowledged

    def check_and_lose(given: QueuedMessage, rows: Any) -> None:
        check(given, rows)
        if once:
            once.clear()
            backend = int(str(held[0].exec_driver_sql("SELECT pg_backend_pid()").scalar()))
            if answer_is_lost == "after the commit":
                held[0].exec_driver_sql("COMMIT")
            with engine_for(database.admin_url).connect() as administrator:
                administrator.execute(text("SELECT pg_terminate_backend(:p, 5000)"), {"p": backend})

    held: list[Connection] = []

    def handler(given: QueuedMessage, connection: Connection) -> None:
        held[:] = [connection]
        _writes(given, connection)

    monkeypatch.setattr(queue_sync, "check_acknowledged", check_and_lose)
    result = queue.replay_with_persistence(handler, transactional=True)
    if answer_is_lost == "before the commit":
        assert (result.blocked_by, result.reason) == ("a", "failed")
        pass_backoff(database)
        queue.replay_with_persistence(handler, transactional=True)
    assert _effects(database) == ["a", "b"]
    assert [s[1] for s in states(database)] == ["completed", "completed"]


# --- the caller's own transaction -------------------------------------------------------------------------------


def test_messages_can_be_taken_in_the_callers_own_transaction(
    database: Database, queue: PersistentMessageQueue
) -> None:
    def taken_back() -> None:
        with tenant_connection(queue.customer_id, engine=database.engine) as connection:
            assert queue.enqueue(message("a"), connection=connection).new
            msg = "never mind"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="never mind"):
        taken_back()
    assert states(database) == []
    with service_connection(engine=database.engine) as connection:
        queue.enqueue(message("a"), connection=connection)
        with pytest.raises(MessageConflict):
            queue.enqueue_many([message("b"), message("a", 2)], connection=connection)
        # The transaction goes on.
        queue.enqueue(message("c"), connection=connection)
    assert [key for key, _, _ in states(database)] == ["a", "c"]


def test_positions_are_committed_in_their_order_whoever_writes(
    database: Database, queue: PersistentMessageQueue, customer: UUID
) -> None:
    other = PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=STILL)
    with tenant_connection(customer, engine=database.engine) as connection:
        queue.enqueue(message("first"), connection=connection)
        thread = threading.Thread(target=other.enqueue, args=(message("second"),))
        thread.start()
        # What came second waits: were it there first, it would be handled first.
        assert _waits_for_a_lock(database)
        assert other.replay_with_persistence(Seen()).handled == ()
    thread.join(200)
    assert queue.replay_with_persistence(Seen()).handled == ("first", "second")


def _waits_for_a_lock(database: Database) -> bool:
    for _ in range(200):
        if database.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            return True
        time.sleep(0.01)
    return False


# --- trouble ------------------------------------------------------------------------------------------------------


def test_a_customer_that_there_is_not_is_named(database: Database) -> None:
    queue = PersistentMessageQueue(True, uuid4(), "s", engine=database.engine, settings=STILL)
    with pytest.raises(NoSuchCustomer, match="there is no customer with this id"):
        queue.enqueue(message("a"))
    assert list(queue.in_memory) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_database_that_is_away_is_an_error_and_the_message_is_not_acknowledged(kind: str, customer: UUID) -> None:
    settings = QueueSettings(reconnect_seconds=0.1)
    url = "postgresql://nobody@127.0.0.1:1/none"
    queue: Any
    if kind == "sync":
        queue = PersistentMessageQueue(True, customer, "s", engine=engine_for(url), settings=settings)
        enqueue = queue.enqueue
    else:
        queue = AsyncPersistentMessageQueue(True, customer, "s", database_url=url, settings=settings)
        enqueue = lambda given: asyncio.run(queue.enqueue(given))  # noqa: E731 - the same call for both
    with pytest.raises(DatabaseUnreachable, match="cannot be reached"):
        enqueue(message("a"))
    assert list(queue.in_memory) == []


def test_a_connection_that_is_lost_in_the_middle_of_a_replay_is_no_error(
    database: Database, queue: PersistentMessageQueue
) -> None:
    queue.enqueue_many([message(str(n)) for n in range(5)])
    killed: list[str] = []

    def handler(given: QueuedMessage) -> None:
        if given.key in ("1", "3"):
            killed.append(given.key)
            with engine_for(database.admin_url).connect() as administrator:
                administrator.execute(
                    text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                         "WHERE datname = current_database() AND pid <> pg_backend_pid()")
                )  # fmt: skip

    assert queue.replay_with_persistence(handler).handled == tuple("01234")
    assert killed == ["1", "3"]


def test_what_a_batch_repairs_is_said(queue: PersistentMessageQueue) -> None:
    assert [t.repairs for t in queue.enqueue_many([message("a", "x\0y"), message("b", "\ud800")])] == [1, 1]
    assert [m.value for m in queue.load_persisted_messages()] == ["xy", "�"]


def test_memory_keeps_the_newest_of_what_is_persisted(queue: PersistentMessageQueue) -> None:
    queue.enqueue_many([message(str(n)) for n in range(COPIED + 5)])
    assert len(queue.in_memory) == COPIED
    assert queue.in_memory[-1]["key"] == str(COPIED + 4)
    assert len(queue.load_persisted_messages()) == COPIED + 5


def test_postgres_refuses_names_that_are_too_long_for_its_index(database: Database, customer: UUID) -> None:
    for column in ("session_id", "message_key"):
        other = "message_key" if column == "session_id" else "session_id"
        with pytest.raises(DBAPIError, match=f"message_queue_{column}_length"):
            execute(
                database,
                f"INSERT INTO message_queue (customer_id, {column}, {other}, message_data) "
                "VALUES (:c, :x, 'a', '{}')",
                c=customer, x="x" * 513,
            )  # fmt: skip


# --- retention ---------------------------------------------------------------------------------------------------


def test_cleanup_removes_what_has_expired_counts_what_nobody_handled_and_spares_the_leased(
    database: Database, customer: UUID
) -> None:
    def session(name: str) -> PersistentMessageQueue:
        made = PersistentMessageQueue(True, customer, name, engine=database.engine, settings=STILL)
        made.enqueue(message("a"))
        return made

    session("pending")
    session("done").replay_with_persistence(Seen())
    session("tried").replay_with_persistence(Seen(a=1))
    _claim(database, session("died"))
    end_leases(database)
    _claim(database, session("leased"))
    for _ in range(3):
        pass_backoff(database)
        session("given up").replay_with_persistence(Seen(a=1))
    expire(database)
    result = run(database.engine, "message_queue")
    # Never handled: pending, tried and waiting, and the one whose handler died. Given up is handled, badly.
    assert (result.rows_removed, sum(row.unprocessed for row in result.rows)) == (5, 3)
    assert database.value("SELECT expired_unprocessed FROM retention_runs") == 3
    assert [r["session_id"] for r in database.rows("SELECT session_id FROM message_queue")] == ["leased"]


def test_a_message_that_expires_while_it_is_handled_is_handled_to_its_end(
    database: Database, queue: PersistentMessageQueue
) -> None:
    queue.enqueue_many([message(k) for k in "ab"])

    def handler(_: QueuedMessage) -> None:
        expire(database)
        with database.engine.begin() as connection:
            # `a` is leased; `b` is gone.
            assert connection.scalar(text("SELECT cleanup_expired_message_queue()")) == 1

    result = queue.replay_with_persistence(handler)
    assert (result.handled, result.finished) == (("a",), True)
    assert states(database) == [("a", "completed", 0)]


def test_a_key_that_a_legal_hold_keeps_is_refused_with_the_reason(
    database: Database, queue: PersistentMessageQueue
) -> None:
    from resources.postgres.compliance import place_hold

    queue.enqueue(message("a", "old"))
    expire(database)
    place_hold(database.engine, "acme", "case 1")
    with pytest.raises(MessageConflict, match="the customer is under a legal hold: use another key"):
        queue.enqueue(message("a", "new"))
    assert database.value("SELECT message_data ->> 'value' FROM message_queue") == "old"


# --- how it is kept ----------------------------------------------------------------------------------------------


def test_a_claim_and_its_renewal_are_heap_only_updates(database: Database, queue: PersistentMessageQueue) -> None:
    queue.enqueue_many([message(str(n)) for n in range(20)])
    with database.engine.connect() as connection:
        for call in (
            "message_queue_claim(:c, 's', CAST(:t AS uuid), interval '1 hour', 3)",
            "message_queue_renew(:c, (SELECT array_agg(id) FROM message_queue WHERE status = 'processing'),"
            " ARRAY[CAST(:t AS uuid)], interval '2 hours')",
        ):
            connection.execute(
                text(f"SELECT * FROM {call}"), {"c": queue.customer_id, "t": "00000000-0000-4000-8000-000000000001"}
            ).one()
        updated = connection.execute(
            text("SELECT pg_stat_get_xact_tuples_hot_updated('message_queue'::regclass), "
                 "pg_stat_get_xact_tuples_updated('message_queue'::regclass)")
        ).one()  # fmt: skip
        assert tuple(updated) == (2, 2)
        connection.rollback()


def test_a_claim_reads_one_message_however_many_are_done_or_waiting(
    database: Database, queue: PersistentMessageQueue
) -> None:
    execute(
        database,
        """INSERT INTO message_queue (customer_id, session_id, message_key, message_data, status)
           SELECT :c, 's' || (n % 3), n::text, '{}', CASE WHEN n <= 3000 THEN 'completed' ELSE 'pending' END
           FROM generate_series(1, 6000) AS n""",
        c=queue.customer_id,
    )
    with tenant_connection(queue.customer_id, engine=database.engine) as connection:
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        for call in (
            "message_queue_claim(:c, 's1', gen_random_uuid(), interval '1 hour', 3)",
            "message_queue_claim_next(:c, '', gen_random_uuid(), interval '1 hour', 3)",
        ):
            before = _reads(connection)
            assert connection.scalar(text(f"SELECT outcome FROM {call}"), {"c": queue.customer_id}) == "claimed"
            assert _reads(connection) - before < 15


def _reads(connection: Connection) -> int:
    return int(
        connection.scalar(
            text("SELECT pg_stat_get_xact_tuples_fetched(c.oid) + pg_stat_get_xact_tuples_returned(c.oid) "
                 "FROM pg_class AS c WHERE c.oid = 'message_queue'::regclass")
        ) or 0
    )  # fmt: skip


def test_a_message_costs_the_same_however_many_its_session_has_had(
    queue: PersistentMessageQueue, database: Database, customer: UUID
) -> None:
    execute(
        database,
        """INSERT INTO message_queue (customer_id, session_id, message_key, message_data)
           SELECT :c, 's', 'old' || n, '{}' FROM generate_series(1, 5000) AS n""",
        c=customer,
    )  # fmt: skip
    read = text("""SELECT coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) FROM pg_stat_xact_user_tables
                   WHERE relname = 'message_queue'""")
    with service_connection(engine=database.engine) as connection:
        before = connection.scalar(read) or 0
        queue.enqueue(message("new"), connection=connection)
        assert (connection.scalar(read) or 0) - before < 50
