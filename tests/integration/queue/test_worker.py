"""Workers: many sessions, of one customer or of all; each in order, each in its turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from resources.postgres.connection import DatabaseUnreachable, engine_for
from resources.postgres.message_queue import PersistentMessageQueue
from resources.postgres.queue_worker import AsyncQueueWorker, QueueWorker
from resources.settings import QueueSettings
from tests.integration.queue.conftest import STILL, make_customer, message, pass_backoff, states

if TYPE_CHECKING:
    from uuid import UUID

    from resources.postgres.queue_messages import QueuedMessage
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


class Worker:
    """Both faces under one."""

    def __init__(self, kind: str, database: Database) -> None:
        self.kind = kind
        self.database = database

    def drain(self, handler: Any, **options: Any) -> Any:
        options = {"settings": STILL, **options}
        if self.kind == "sync":
            return QueueWorker(handler, engine=self.database.engine, **options).drain()
        return asyncio.run(AsyncQueueWorker(handler, database_url=self.database.url, **options).drain())


@pytest.fixture(params=["sync", "async"])
def worker(request: pytest.FixtureRequest, database: Database) -> Worker:
    return Worker(request.param, database)


class Seen:
    """Notes what it is given, by session, and whether a session was ever handled by two at once."""

    def __init__(self, **failures: int) -> None:
        self.order: list[tuple[str, str]] = []
        self.by_session: dict[tuple[UUID, str], list[str]] = defaultdict(list)
        self.together = False
        self.failures = failures
        self._busy: set[tuple[UUID, str]] = set()
        self._lock = threading.Lock()

    def __call__(self, given: QueuedMessage, connection: Any = None) -> None:
        session = (given.customer_id, given.session_id)
        with self._lock:
            self.together |= session in self._busy
            self._busy.add(session)
            self.order.append((given.session_id, given.key))
            self.by_session[session].append(given.key)
            fails = self.failures.get(given.key, 0) > 0
            self.failures[given.key] = self.failures.get(given.key, 0) - 1
        time.sleep(0.001)
        with self._lock:
            self._busy.remove(session)
        if fails:
            msg = "not now"
            raise ValueError(msg)


def fill(database: Database, customer: UUID, sessions: int, messages: int) -> None:
    for n in range(sessions):
        queue = PersistentMessageQueue(True, customer, f"s{n:03}", engine=database.engine, settings=STILL)
        queue.enqueue_many([message(str(k)) for k in range(messages)])


@pytest.mark.parametrize("transactional", [False, True])
def test_a_worker_drains_all_sessions_of_all_customers_each_in_order(
    worker: Worker, database: Database, transactional: bool
) -> None:
    customers = [make_customer(database, slug) for slug in ("acme", "globex", "initech")]
    for customer in customers:
        fill(database, customer, 7, 5)
    seen = Seen()
    result = worker.drain(seen, concurrency=4, transactional=transactional)
    assert (result.handled, result.failed, result.given_up, result.lost) == (105, 0, 0, 0)
    assert len(seen.by_session) == 21
    assert all(keys == list("01234") for keys in seen.by_session.values())
    assert not seen.together
    assert database.value("SELECT count(*) FROM message_queue WHERE status = 'completed'") == 105
    assert worker.drain(seen).handled == 0


def test_several_workers_share_the_sessions_and_never_one_at_once(database: Database, customer: UUID) -> None:
    fill(database, customer, 10, 6)
    seen = Seen()
    workers = [QueueWorker(seen, concurrency=3, settings=STILL, engine=database.engine) for _ in range(3)]
    results: list[Any] = []
    threads = [threading.Thread(target=lambda w=w: results.append(w.drain())) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.handled for result in results) == 60
    assert all(keys == list("012345") for keys in seen.by_session.values())
    assert not seen.together


def test_a_failing_session_holds_up_itself_and_no_other(worker: Worker, database: Database, customer: UUID) -> None:
    fill(database, customer, 3, 3)
    queue = PersistentMessageQueue(True, customer, "s001x", engine=database.engine, settings=STILL)
    queue.enqueue_many([message("bad"), message("after")])
    seen = Seen(bad=9)
    result = worker.drain(seen)
    assert (result.handled, result.failed) == (9, 1)
    assert result.next_try_at is not None
    assert states(database, "s001x") == [("bad", "pending", 1), ("after", "pending", 0)]
    for _ in range(2):
        pass_backoff(database)
        result = worker.drain(seen)
    assert (result.handled, result.given_up) == (1, 1)
    assert states(database, "s001x") == [("bad", "failed", 3), ("after", "completed", 0)]


def test_a_worker_of_one_customer_leaves_the_others_alone(worker: Worker, database: Database) -> None:
    one, other = make_customer(database, "acme"), make_customer(database, "globex")
    fill(database, one, 2, 2)
    fill(database, other, 2, 2)
    seen = Seen()
    assert worker.drain(seen, customer_id=str(one)).handled == 4
    assert {customer for customer, _ in seen.by_session} == {one}


def test_sessions_and_customers_take_turns(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a turn of no time at all, nobody has a second message before everybody has had a first."""
    from resources.postgres import queue_worker

    monkeypatch.setattr(queue_worker, "TURN_SECONDS", 0.0)
    acme, globex = make_customer(database, "acme"), make_customer(database, "globex")
    fill(database, acme, 1, 4)
    fill(database, globex, 2, 4)
    seen: list[tuple[UUID, str]] = []
    worker = QueueWorker(
        lambda m: seen.append((m.customer_id, m.session_id)), concurrency=1, settings=STILL, engine=database.engine
    )
    assert worker.drain().handled == 12
    first, second = sorted((acme, globex))
    assert [customer for customer, _ in seen[:8]] == [first, second] * 4
    of_globex = [session for customer, session in seen if customer == globex]
    assert of_globex == ["s000", "s001"] * 4


@pytest.mark.parametrize("notify", [True, False])
def test_a_running_worker_handles_what_comes_and_ends_when_it_is_told(
    database: Database, customer: UUID, notify: bool
) -> None:
    # Woken, it does not wait for its next look; without wake-ups it looks by itself.
    settings = QueueSettings(notify=notify, poll_seconds=30 if notify else 0.05)
    seen, stop, done = Seen(), threading.Event(), []
    worker = QueueWorker(seen, settings=settings, engine=database.engine)
    thread = threading.Thread(target=lambda: done.append(worker.run(stop)))
    thread.start()
    if notify:
        _until(lambda: database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"
        ))  # fmt: skip
    time.sleep(0.2)
    queue = PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=settings)
    for n in range(3):
        queue.enqueue(message(str(n)))
        _until(lambda n=n: len(seen.order) == n + 1)
        time.sleep(0.15)
    stop.set()
    thread.join(200)
    assert not thread.is_alive()
    assert [result.handled for result in done] == [3]


def test_an_asynchronous_worker_is_woken_too_and_ends_when_it_is_told(database: Database, customer: UUID) -> None:
    settings = QueueSettings(poll_seconds=30)
    queue = PersistentMessageQueue(True, customer, "s", engine=database.engine, settings=settings)
    seen = Seen()

    async def play() -> Any:
        stop = asyncio.Event()
        worker = AsyncQueueWorker(seen, settings=settings, database_url=database.url)
        task = asyncio.create_task(worker.run(stop))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(queue.enqueue, message("a"))
        await asyncio.to_thread(_until, lambda: seen.order)
        stop.set()
        return await task

    assert asyncio.run(asyncio.wait_for(play(), 20)).handled == 1


def test_an_interrupted_worker_gives_back_what_it_has_claimed_and_not_begun(
    database: Database, customer: UUID
) -> None:
    fill(database, customer, 1, 3)
    stop = threading.Event()
    worker = QueueWorker(lambda _: stop.set(), concurrency=1, settings=STILL, engine=database.engine)
    assert worker.run(stop).handled == 1
    assert states(database, "s000") == [("0", "completed", 0), ("1", "pending", 0), ("2", "pending", 0)]


def test_a_worker_lives_on_while_its_connections_are_ended_again_and_again(
    database: Database, customer: UUID
) -> None:
    fill(database, customer, 4, 10)
    kills = threading.Semaphore(5)

    def handler(given: QueuedMessage, connection: Any) -> None:
        connection.execute(
            text("INSERT INTO cart_operations (customer_id, session_id, operation, product_id) "
                 "VALUES (:c, :s, 'add', :k)"),
            {"c": given.customer_id, "s": given.session_id, "k": given.key},
        )  # fmt: skip
        if given.key in ("3", "7") and kills.acquire(blocking=False):
            with engine_for(database.admin_url).connect() as administrator:
                administrator.execute(
                    text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                         "WHERE datname = current_database() AND pid <> pg_backend_pid()")
                )  # fmt: skip

    settings = QueueSettings(backoff_seconds=0.01, max_tries=100, notify=False, poll_seconds=0.02, lease_seconds=2)
    stop = threading.Event()
    worker = QueueWorker(handler, concurrency=2, transactional=True, settings=settings, engine=database.engine)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        _until(lambda: not _open(database), 60)
    finally:
        stop.set()
        thread.join(200)
    rows = database.rows(
        "SELECT session_id, array_agg(product_id ORDER BY id) AS keys FROM cart_operations GROUP BY 1"
    )
    assert {str(r["session_id"]): r["keys"] for r in rows} == {f"s{n:03}": list("0123456789") for n in range(4)}


def _open(database: Database) -> object:
    from sqlalchemy.exc import DBAPIError

    try:
        return database.value("SELECT count(*) FROM message_queue WHERE is_open")
    except DBAPIError:
        return True


def test_a_database_that_is_away_ends_a_drain_with_its_name() -> None:
    engine = engine_for("postgresql://nobody@127.0.0.1:1/none")
    settings = QueueSettings(reconnect_seconds=0.05)
    with pytest.raises(DatabaseUnreachable, match="cannot be reached"):
        QueueWorker(lambda _: None, engine=engine, settings=settings).drain()


def test_a_worker_without_slots_is_refused(database: Database) -> None:
    for concurrency in (0, 13):
        with pytest.raises(ValueError, match=f"a concurrency of {concurrency} is refused: it has 1 to 12 slots"):
            QueueWorker(lambda _: None, concurrency=concurrency, engine=database.engine)


def _until(what: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
