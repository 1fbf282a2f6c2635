"""Redis in every kind of trouble: the caller sees none of it, waits once at most, and reads no old value after."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from resources.redis import AsyncRedisWithFallback, RedisWithFallback
from resources.redis.connections import InvalidRedisUrl
from resources.redis.fallback import Fallback, State
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS, CRON, RATE, SEARCH, UnknownKey, search_key
from resources.redis.memory import MemoryStore
from tests.support.valkey import SlowWay, Stranger, Valkey, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

JOB, RESULTS, COUNTER = CRAWL_JOB.key("j"), CRAWL_RESULTS.key("j"), CRON.key("counter")


def is_closed(client: RedisWithFallback | AsyncRedisWithFallback) -> Callable[[], bool]:
    return lambda: client.fallback.state is State.CLOSED


def work(client: RedisWithFallback, round_: int) -> None:
    """All operations, with their results, as they are without trouble."""
    job, results, counter = (pattern.key(f"work-{round_}") for pattern in (CRAWL_JOB, CRAWL_RESULTS, CRON))
    assert client.get(job) is None
    assert client.set(job, b"1")
    assert not client.set(job, b"2", nx=True)
    assert client.get(job) == b"1"
    assert client.mget([job, counter]) == [b"1", None]
    assert (client.incr(counter), client.incr(counter, 5)) == (1, 6)
    assert (client.rpush(results, b"a", "b"), client.rpush(results, 3)) == (2, 3)
    assert client.lrange(results, 0, -1) == [b"a", b"b", b"3"]
    assert client.lrange(results, -2, 1) == [b"b"]
    assert client.ttl(job) in range(3_590, 3_601)
    assert client.ttl(results) in range(86_390, 86_401)
    pipeline = client.pipeline()
    pipeline.set(job, b"3", 60).get(job).incr(counter).rpush(results, b"c").lrange(results, 3, 3).delete(job)
    assert pipeline.execute() == [True, b"3", 7, 4, [b"c"], 1]
    assert pipeline.execute() == []
    assert (client.setex(job, 60, b"4"), client.ttl(job), client.expire(job, 30)) == (True, 60, True)
    assert (client.ttl(job), client.delete(job), client.expire(job, 30)) == (30, 1, False)
    assert (client.exists(job), client.exists(counter), client.ttl(job)) == (False, True, -2)
    assert client.delete(counter, results) == 2


# --- troubles: each is made on a running server, and undone ---------------------------------------------------------


class Trouble:
    """Something wrong with a server, which can be put right again."""

    state = State.OPEN
    # What a client takes for silence: on a busy machine it opens the breaker as well, as has to happen anyway.
    socket_seconds = 0.3
    options: tuple[str, ...] = ()

    def __init__(self, server: Valkey) -> None:
        self.server = server

    def make(self) -> None:
        raise NotImplementedError

    def undo(self) -> None:
        raise NotImplementedError


class Refused(Trouble):
    def make(self) -> None:
        self.server.kill()

    def undo(self) -> None:
        self.server.start()


class Frozen(Trouble):
    def make(self) -> None:
        self.server.freeze()

    def undo(self) -> None:
        self.server.thaw()


class WrongPassword(Trouble):
    def make(self) -> None:
        with self.server.admin() as admin:
            admin.config_set("requirepass", "secret")
            admin.client_kill_filter(skipme=True, _type="normal")

    def undo(self) -> None:
        with self.server.admin("secret") as admin:
            admin.config_set("requirepass", "")


class TooManyConnections(Trouble):
    def make(self) -> None:
        self.admin = self.server.admin()
        self.admin.config_set("maxclients", 1)
        self.admin.client_kill_filter(skipme=True, _type="normal")

    def undo(self) -> None:
        self.admin.config_set("maxclients", 1_000)
        self.admin.close()


class RefusesWrites(Trouble):
    """It answers: a busy machine that keeps it waiting must not be taken for silence."""

    state = State.READ_ONLY
    socket_seconds = 10.0


class ReadOnly(RefusesWrites):
    def make(self) -> None:
        with self.server.admin() as admin:
            admin.replicaof("127.0.0.1", "1")  # nobody is there: it waits for its primary, and serves what it has

    def undo(self) -> None:
        with self.server.admin() as admin:
            admin.replicaof("NO", "ONE")


class OutOfMemory(RefusesWrites):
    def make(self) -> None:
        with self.server.admin() as admin:
            admin.config_set("maxmemory", "1")

    def undo(self) -> None:
        with self.server.admin() as admin:
            admin.config_set("maxmemory", "0")


class Loading(Trouble):
    """It reads its snapshot, slowly, and answers everything with LOADING meanwhile."""

    def make(self) -> None:
        with self.server.admin() as admin:
            pipeline = admin.pipeline()
            for n in range(2_000):
                pipeline.set(f"cron:ballast-{n}", "x" * 100, ex=3_600)
            pipeline.execute()
            admin.save()
        self.server.kill()
        slow = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
        self.server.start(*slow, wait=False)

    def undo(self) -> None:
        self.server.kill()
        self.server.start("--dbfilename", "none.rdb")


TROUBLES = [Refused, Frozen, WrongPassword, TooManyConnections, ReadOnly, OutOfMemory, Loading]


@pytest.fixture(params=TROUBLES, ids=lambda kind: kind.__name__)
def trouble(request: pytest.FixtureRequest, valkey: Valkey) -> Trouble:
    """Each kind of trouble, not made yet."""
    return request.param(valkey)


@pytest.fixture
def quick(request: pytest.FixtureRequest, valkey: Valkey) -> Iterator[RedisWithFallback]:
    """A client that takes little for silence."""
    kind = request.getfixturevalue("trouble") if "trouble" in request.fixturenames else Trouble
    made = RedisWithFallback(Fallback(valkey.url, socket_seconds=kind.socket_seconds))
    yield made
    made.close()


def test_trouble_reaches_no_caller_and_costs_one_call(trouble: Trouble, quick: RedisWithFallback) -> None:
    work(quick, 0)
    trouble.make()
    quick.set(COUNTER, b"0")
    assert quick.fallback.state is trouble.state
    wait_until(lambda: quick.snapshot().answered_here > 0)
    # The background asks meanwhile, less and less often; the callers do not.
    before = quick.fallback.calls
    for _ in range(200):
        quick.set(COUNTER, b"0")
        if trouble.state is State.OPEN:
            quick.get(JOB)
    assert quick.fallback.calls - before < 20
    work(quick, 1)
    assert quick.fallback.state is trouble.state


def test_redis_is_found_again_and_used(trouble: Trouble, quick: RedisWithFallback, valkey: Valkey) -> None:
    trouble.make()
    work(quick, 1)
    quick.set(JOB, b"meanwhile")
    trouble.undo()
    wait_until(is_closed(quick))
    work(quick, 2)
    quick.set(JOB, b"after")
    with valkey.admin() as admin:
        assert admin.get(JOB) == b"after"
    state = quick.snapshot()
    assert (state.state, state.outages >= 1, state.seconds_without > 0, state.memory_keys) == (
        "closed",
        True,
        True,
        0,
    )
    assert state.reason  # that of the last outage


def test_no_old_value_wins_over_a_newer_one(trouble: Trouble, quick: RedisWithFallback, valkey: Valkey) -> None:
    deleted, listed = CRAWL_JOB.key("deleted"), RESULTS
    for key in (JOB, deleted):
        quick.set(key, b"old")
    quick.rpush(listed, b"old")
    trouble.make()
    quick.set(JOB, b"newer")  # this one may reach a frozen server yet
    quick.set(JOB, b"newest")
    quick.delete(deleted)
    quick.rpush(listed, b"new")
    assert quick.get(JOB) == b"newest"
    assert quick.get(deleted) is None
    assert quick.lrange(listed, 0, -1) == [b"new"]
    # The background has asked meanwhile, in vain, and remembers what it could not say.
    asked = quick.fallback.calls
    wait_until(lambda: quick.fallback.calls >= asked + 2)
    trouble.undo()
    wait_until(is_closed(quick))
    # Neither for this process nor for another.
    other = RedisWithFallback(valkey.url)
    for client in (quick, other):
        assert client.get(JOB) is None
        assert client.get(deleted) is None
        assert client.lrange(listed, 0, -1) == []
    other.close()


@pytest.mark.parametrize("kind", TROUBLES, ids=lambda kind: kind.__name__)
def test_a_client_that_begins_in_trouble_sees_none(kind: type[Trouble], valkey: Valkey) -> None:
    wrong = kind(valkey)
    wrong.make()
    with closing(RedisWithFallback(Fallback(valkey.url, socket_seconds=kind.socket_seconds))) as client:
        work(client, 1)
        assert client.fallback.state is wrong.state
        wrong.undo()
        wait_until(is_closed(client))
        work(client, 2)


def test_an_event_loop_sees_no_trouble_either(trouble: Trouble, valkey: Valkey) -> None:
    async def use() -> None:
        client = AsyncRedisWithFallback(Fallback(valkey.url, socket_seconds=trouble.socket_seconds))
        await client.set(JOB, b"old")
        trouble.make()
        assert await asyncio.gather(*(client.set(JOB, b"new") for _ in range(20))) == [True] * 20
        assert await client.get(JOB) == b"new"
        assert await client.mget([JOB, COUNTER]) == [b"new", None]
        assert (await client.incr(COUNTER), await client.rpush(RESULTS, b"a")) == (1, 1)
        assert await client.lrange(RESULTS, 0, -1) == [b"a"]
        assert await client.pipeline().get(JOB).incr(COUNTER).execute() == [b"new", 2]
        assert (await client.setex(COUNTER, 60, b"9"), await client.expire(COUNTER, 30)) == (True, True)
        assert client.fallback.state is trouble.state
        trouble.undo()
        await asyncio.to_thread(wait_until, lambda: client.fallback.state is State.CLOSED)
        assert await client.get(JOB) is None
        assert await client.set(JOB, b"after")
        assert (await client.exists(JOB), await client.ttl(JOB) > 3_500, await client.delete(JOB)) == (True, True, 1)
        client.fallback.close()
        await client.aclose()

    asyncio.run(asyncio.wait_for(use(), 200))


# --- what is particular to one of them ------------------------------------------------------------------------------


def test_what_was_kept_in_one_outage_is_not_read_in_the_next(quick: RedisWithFallback, valkey: Valkey) -> None:
    valkey.kill()
    quick.set(JOB, b"of the first outage")
    valkey.start()
    wait_until(is_closed(quick))
    quick.set(JOB, b"between")
    valkey.kill()
    assert quick.get(JOB) is None


def test_a_connection_that_breaks_costs_nothing(client: RedisWithFallback, valkey: Valkey) -> None:
    client.set(JOB, b"1")
    with valkey.admin() as admin:
        admin.client_kill_filter(skipme=True, _type="normal")
    assert client.get(JOB) == b"1"
    assert client.snapshot().outages == 0


def test_a_server_that_answers_slowly_is_taken_to_be_away_until_it_is_quick_again(valkey: Valkey) -> None:
    way = SlowWay(valkey)
    client = RedisWithFallback(way.url)
    client.set(JOB, b"1")
    way.delay = 0.4
    for _ in range(20):
        client.get(JOB)
    assert client.fallback.state is State.OPEN
    assert client.snapshot().reason.startswith("3 answers in a row")
    asked = client.fallback.calls
    wait_until(lambda: client.fallback.calls >= asked + 2)
    assert client.fallback.state is State.OPEN
    way.delay = 0.0
    wait_until(is_closed(client))
    client.close()
    way.close()


def test_many_threads_wait_for_a_frozen_server_at_once_and_not_one_after_the_other(
    quick: RedisWithFallback, valkey: Valkey
) -> None:
    quick.set(JOB, b"1")
    valkey.freeze()
    before = quick.fallback.calls
    threads = [threading.Thread(target=lambda: [quick.get(JOB) for _ in range(100)]) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert quick.fallback.calls - before < 16 + 20
    valkey.thaw()


def test_without_writes_reads_go_on_and_others_learn_that_a_value_is_old(
    client: RedisWithFallback, valkey: Valkey
) -> None:
    kept = CRAWL_JOB.key("kept")
    client.set(kept, b"kept")
    client.set(JOB, b"old")
    OutOfMemory(valkey).make()
    client.set(JOB, b"new")
    assert client.fallback.state is State.READ_ONLY
    with valkey.admin() as admin:
        wait_until(lambda: admin.get(JOB) is None)  # deleting needs no memory
    assert client.get(kept) == b"kept"
    assert client.get(JOB) == b"new"
    assert client.mget([kept, JOB]) == [None, b"new"]  # missing at worst
    OutOfMemory(valkey).undo()
    wait_until(is_closed(client))
    assert (client.get(kept), client.get(JOB)) == (b"kept", None)
    # Nothing of it is left when writes are refused again.
    client.set(JOB, b"newest")
    OutOfMemory(valkey).make()
    client.set(kept, b"again")
    assert (client.get(kept), client.get(JOB)) == (b"again", b"newest")


def test_a_server_that_refuses_writes_and_then_dies_is_away_and_comes_back(
    quick: RedisWithFallback, valkey: Valkey
) -> None:
    OutOfMemory(valkey).make()
    quick.set(JOB, b"1")
    assert quick.fallback.state is State.READ_ONLY
    valkey.kill()
    quick.get(COUNTER)
    assert quick.fallback.state is State.OPEN
    valkey.start("--maxmemory", "1")
    wait_until(lambda: quick.fallback.state is State.READ_ONLY)
    assert quick.get(JOB) == b"1"
    OutOfMemory(valkey).undo()
    wait_until(is_closed(quick))
    assert quick.snapshot().outages == 1


def test_each_change_of_state_is_one_line_in_the_log(
    quick: RedisWithFallback, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("resources.redis")]

    with caplog.at_level(logging.INFO):
        work(quick, 0)
        assert lines() == []
        valkey.kill()
        work(quick, 1)
        work(quick, 2)
        assert [line[:13] for line in lines()] == ["Redis is away"]
        valkey.start()
        wait_until(is_closed(quick))
        OutOfMemory(valkey).make()
        work(quick, 3)
        OutOfMemory(valkey).undo()
        wait_until(is_closed(quick))
        work(quick, 4)
    assert [line.split(" (")[0].split(" after")[0] for line in lines()] == [
        "Redis is away", "Redis answers again", "Redis refuses writes", "Redis answers again",
    ]  # fmt: skip
    assert len({threading.current_thread(), *threading.enumerate()}) == threading.active_count()


def test_nobody_asks_while_redis_is_there_and_one_thread_does_while_it_is_away(
    quick: RedisWithFallback, valkey: Valkey
) -> None:
    # Clients of earlier tests in this process may still be asking for a server that is gone.
    others = set(threading.enumerate())

    def asking() -> int:
        return sum(t.name == "redis: asking again" for t in threading.enumerate() if t not in others)

    work(quick, 0)
    assert asking() == 0
    valkey.kill()
    threads = [threading.Thread(target=work, args=(quick, n)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asking() == 1
    valkey.start()
    wait_until(is_closed(quick))
    wait_until(lambda: asking() == 0)


def test_a_forked_process_goes_on_by_itself(quick: RedisWithFallback, valkey: Valkey) -> None:
    quick.set(JOB, b"old")
    valkey.freeze()
    quick.set(JOB, b"new")
    # Another thread is in the middle of something: its lock will never be released in the child.
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with quick.fallback.memory.lock:
            held.set()
            let_go.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        # No pytest in here: the exit status is the answer.
        try:
            known = quick.get(JOB) == b"new" and quick.incr(COUNTER) == 1
            wait_until(is_closed(quick), 20)
            os._exit(0 if known and quick.get(JOB) is None else 1)
        except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
            os._exit(2)
    let_go.set()
    holder.join()
    valkey.thaw()
    assert os.waitpid(child, 0)[1] == 0
    wait_until(is_closed(quick))


def test_a_value_of_another_kind_is_replaced(client: RedisWithFallback, valkey: Valkey) -> None:
    with valkey.admin() as admin:
        for key in (JOB, RESULTS):
            admin.hset(key, "field", "of another version")
        assert client.get(JOB) is None
        assert client.rpush(RESULTS, b"1") == 1
        assert admin.type(RESULTS) == b"list"
    assert client.snapshot().outages == 0


def test_scripts_are_loaded_again_when_the_server_has_lost_them(client: RedisWithFallback, valkey: Valkey) -> None:
    from resources.redis import commands

    client.set(JOB, b"1")
    for old, new in ((b"1", b"2"), (b"2", b"3")):
        with valkey.admin() as admin:
            admin.script_flush()
        assert client.run(commands.replace(JOB, old, new))
        assert not client.run(commands.replace(JOB, old, new))
    assert client.get(JOB) == b"3"


def test_a_customer_is_forgotten_in_redis_as_well_when_it_is_back(quick: RedisWithFallback, valkey: Valkey) -> None:
    acme, globex = (search_key(customer, "opening hours", 10) for customer in ("acme", "globex"))
    for key in (acme, globex):
        quick.set(key, b"[]")
    valkey.freeze()
    assert not quick.forget_tenant("acme")
    assert quick.get(acme) is None
    valkey.thaw()
    wait_until(is_closed(quick))
    assert (quick.get(acme), quick.get(globex)) == (None, b"[]")
    assert quick.forget_tenant("globex")
    assert quick.get(globex) is None


def test_more_changed_keys_than_are_remembered_are_all_deleted(
    quick: RedisWithFallback, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.redis.fallback._MAX_CHANGED", 50)
    keys = [CRAWL_JOB.key(f"many-{n}") for n in range(100)]
    with valkey.admin() as admin:
        admin.set("somebody:elses", "1", ex=60)
        for key in (*keys, SEARCH.key("x")):
            quick.set(key, b"old")
        admin.set(RATE.key("shop.example"), 1, ex=60)
        valkey.freeze()
        for key in keys:
            quick.set(key, b"new")
        valkey.thaw()
        wait_until(is_closed(quick))
        # All of ours, but for counters: forgetting those would make a limit laxer.
        assert sorted(admin.keys()) == [b"rate:shop.example", b"somebody:elses"]


def test_the_memory_of_a_long_outage_is_bounded(valkey: Valkey) -> None:
    memory = MemoryStore(max_entries=100, max_bytes=100_000)
    client = RedisWithFallback(Fallback(valkey.url, memory=memory))
    valkey.kill()
    for n in range(500):
        client.set(CRAWL_JOB.key(str(n)), b"x" * 500)
        client.rpush(RESULTS, b"y" * 900)
    state = client.snapshot()
    assert state.memory_keys <= 100
    assert state.memory_bytes <= 100_000
    assert client.get(CRAWL_JOB.key("499")) == b"x" * 500
    client.close()


def test_a_key_without_a_pattern_is_a_mistake_and_is_said(client: RedisWithFallback) -> None:
    with pytest.raises(UnknownKey, match="no pattern knows the key 'sessions:1'"):
        client.set("sessions:1", b"")
    with pytest.raises(TypeError, match="not dict"):
        client.set(JOB, {"status": "running"})
    with pytest.raises(ValueError, match="lives 1 to 3600 s, not 7200"):
        client.set(JOB, b"", 7_200)
    assert client.set("crawl:job:by-name", b"1")
    assert client.ttl("crawl:job:by-name") > 3_500


def test_a_life_is_shortened_by_chance_where_the_pattern_says_so(client: RedisWithFallback, valkey: Valkey) -> None:
    lives = set()
    with valkey.admin() as admin:
        for n in range(30):
            key = search_key("acme", n)
            client.set(key, b"[]", 1_000)
            lives.add(admin.ttl(key))
    assert len(lives) > 5
    assert all(899 <= life <= 1_000 for life in lives)


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis://u:secret@host:port/0", ""])
def test_an_address_that_is_none_is_refused_in_words_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRedisUrl, match="OMNIOPS_REDIS_URL") as refused:
        RedisWithFallback(url)
    assert "secret" not in str(refused.value)


def test_without_any_redis_the_memory_does_it_all(tmp_path: Path) -> None:
    client = RedisWithFallback(None)
    work(client, 0)
    assert (client.snapshot().state, client.snapshot().outages, client.ping()) == ("unused", 0, False)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xfe\x00\r\n", b"", b"+OK\r\n" * 9, b"$abc\r\n", b"_\r\n", b":x\r\n"],
    ids=repr,
)
def test_a_stranger_at_the_address_is_no_redis(answer: bytes) -> None:
    stranger = Stranger(answer)
    with closing(RedisWithFallback(Fallback(stranger.url, socket_seconds=0.2))) as client:
        work(client, 0)
        assert client.fallback.state is State.OPEN
        asked = client.fallback.calls
        wait_until(lambda: client.fallback.calls >= asked + 2)
        work(client, 1)
        assert client.fallback.state is State.OPEN
    stranger.close()


@pytest.mark.parametrize("options", ["protocol=2", "protocol=3", "decode_responses=true"])
def test_what_else_the_address_says_changes_no_answer(options: str, valkey: Valkey) -> None:
    client = RedisWithFallback(f"{valkey.url}&{options}")
    work(client, 0)
    assert client.snapshot().outages == 0
    client.close()


def test_an_answer_in_pieces_ends_patience_too(valkey: Valkey) -> None:
    way = SlowWay(valkey)
    client = RedisWithFallback(Fallback(way.url, socket_seconds=0.3))
    client.set(JOB, b"x" * 1_000)
    way.delay, way.piece = 0.25, 20  # each piece in time, all of them in 12 seconds
    before = way.pieces
    assert client.get(JOB) is None
    assert client.fallback.state is State.OPEN
    assert way.pieces - before < 12
    client.close()
    way.close()


def test_many_slow_answers_end_an_event_loops_patience(valkey: Valkey) -> None:
    way = SlowWay(valkey)

    async def use() -> None:
        client = AsyncRedisWithFallback(Fallback(way.url, socket_seconds=0.3))
        await client.set(JOB, b"x" * 14)
        way.delay, way.piece = 0.25, 21  # each answer in time, all of them in 15 seconds
        pipeline = client.pipeline()
        for _ in range(60):
            pipeline.get(JOB)
        assert await pipeline.execute() == [None] * 60
        assert client.fallback.state is State.OPEN
        client.fallback.close()
        await client.aclose()

    asyncio.run(asyncio.wait_for(use(), 8))
    way.close()


def test_a_ping_says_whether_redis_itself_answers(quick: RedisWithFallback, valkey: Valkey) -> None:
    assert quick.ping()
    valkey.kill()
    assert not quick.ping()
