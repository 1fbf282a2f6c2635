"""Reading through the cache: once from the source, never an old value for a newer one, and right without Redis."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from resources.redis import AsyncReadThroughCache, AsyncRedisWithFallback, ReadThroughCache, RedisWithFallback
from resources.redis.fallback import State
from resources.redis.keys import CRAWL_JOB, search_key
from tests.support.valkey import Valkey, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = search_key("acme", "opening hours", 10)
JOB = CRAWL_JOB.key("j")


class Source:
    """What is cached, and how often it was asked for."""

    def __init__(self, value: Any = None, seconds: float = 0.0) -> None:
        self.value = value
        self.seconds = seconds
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        time.sleep(self.seconds)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    async def load(self) -> Any:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def never_early() -> float:
    return 1.0


def always_early() -> float:
    return 1e-300


@pytest.fixture
def cache(client: RedisWithFallback) -> ReadThroughCache:
    return ReadThroughCache(client, chance=never_early)


def test_a_value_is_loaded_once_and_lives_as_long_as_was_asked(cache: ReadThroughCache, valkey: Valkey) -> None:
    source = Source([{"url": "https://x/", "title": "ä" * 2_000}])
    for _ in range(3):
        assert cache.get_or_load(KEY, source, seconds=600) == source.value
    assert source.asked == 1
    with valkey.admin() as admin:
        stored = admin.get(KEY)
        assert len(stored) < 500  # type: ignore[arg-type]
        assert 539 <= admin.ttl(KEY) <= 600  # type: ignore[operator]


def test_customers_do_not_share_an_answer(cache: ReadThroughCache) -> None:
    for customer, answer in (("acme", ["a"]), ("globex", ["g"])):
        assert cache.get_or_load(search_key(customer, "opening hours", 10), lambda answer=answer: answer) == answer


def test_what_the_source_does_not_have_is_asked_again_and_an_empty_answer_is_kept(cache: ReadThroughCache) -> None:
    nothing, empty = Source(None), Source([])
    for _ in range(2):
        assert cache.get_or_load(JOB, nothing) is None
        assert cache.get_or_load(KEY, empty) == []
    assert (nothing.asked, empty.asked) == (2, 1)


def test_many_threads_that_miss_at_once_ask_the_source_once(cache: ReadThroughCache) -> None:
    source = Source(["v"], seconds=0.3)
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(lambda _: cache.get_or_load(KEY, source), range(20)))
    assert found == [["v"]] * 20
    assert source.asked == 1


def test_an_error_of_the_source_reaches_all_who_wait_and_is_not_kept(cache: ReadThroughCache) -> None:
    source = Source(LookupError("no such site"), seconds=0.3)

    def ask(_: int) -> str:
        with pytest.raises(LookupError) as error:
            cache.get_or_load(KEY, source)
        return str(error.value)

    with ThreadPoolExecutor(5) as threads:
        assert set(threads.map(ask, range(5))) == {"no such site"}
    assert source.asked == 1
    source.value = ["v"]
    assert cache.get_or_load(KEY, source) == ["v"]


def test_who_loads_and_never_ends_holds_nobody_for_ever(
    cache: ReadThroughCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.redis.cache.PATIENCE_SECONDS", 0.1)
    let_go = threading.Event()
    stuck = threading.Thread(target=cache.get_or_load, args=(KEY, lambda: let_go.wait(20)))
    stuck.start()
    wait_until(lambda: cache._loads)
    assert cache.get_or_load(KEY, Source(["v"])) == ["v"]
    let_go.set()
    stuck.join()


def test_a_value_near_its_end_is_loaded_again_by_one_while_the_others_have_the_old_one(
    client: RedisWithFallback, valkey: Valkey
) -> None:
    cache = ReadThroughCache(client, chance=always_early)
    source = Source(["old"], seconds=0.05)
    cache.get_or_load(KEY, source)
    with valkey.admin() as admin:
        admin.pexpire(KEY, 5_000)
        source.value, source.seconds = ["new"], 0.5
        with ThreadPoolExecutor(8) as threads:
            found = sorted(threads.map(lambda _: cache.get_or_load(KEY, source), range(8)))
        assert found == [["new"]] + [["old"]] * 7
        assert source.asked == 2
        assert admin.pttl(KEY) > 100_000  # type: ignore[operator]
        admin.pexpire(KEY, 5_000)
    source.value = OSError("the source is away")
    assert cache.get_or_load(KEY, source) == ["new"]


def test_a_value_far_from_its_end_is_not_loaded_again(client: RedisWithFallback) -> None:
    cache, source = ReadThroughCache(client), Source(["v"], seconds=0.001)
    for _ in range(200):
        cache.get_or_load(KEY, source)
    assert source.asked == 1


def test_what_was_written_while_a_value_was_loaded_stays(cache: ReadThroughCache, client: RedisWithFallback) -> None:
    def slow_source() -> list[str]:
        client.set(KEY, KEY.pattern.encode(["newer"]))
        return ["older"]

    assert cache.get_or_load(KEY, slow_source) == ["older"]
    assert cache.get_or_load(KEY, Source()) == ["newer"]

    def not_believed(value: Any, _age: float) -> bool:
        return value != ["newer"]

    def slower_source() -> list[str]:
        client.set(KEY, KEY.pattern.encode(["newest"]))
        return ["older"]

    assert cache.get_or_load(KEY, slower_source, believed=not_believed) == ["older"]
    assert cache.get_or_load(KEY, Source()) == ["newest"]


def test_a_value_that_is_not_believed_is_loaded_and_replaced(cache: ReadThroughCache, valkey: Valkey) -> None:
    ages: list[float] = []

    def believed(_value: Any, age: float) -> bool:
        ages.append(age)
        return age < 5

    cache.get_or_load(JOB, Source({"status": "running"}), believed=believed)
    assert cache.get_or_load(JOB, Source(), believed=believed) == {"status": "running"}
    with valkey.admin() as admin:
        admin.expire(JOB, 3_590)
    assert cache.get_or_load(JOB, Source({"status": "completed"}), believed=believed) == {"status": "completed"}
    assert cache.get_or_load(JOB, Source(), believed=believed) == {"status": "completed"}
    assert [round(age) for age in ages] == [0, 10, 0]


@pytest.mark.parametrize("damaged", [b"", b"{", b"\x78\x9cgarbage", b"\xff\xfe"])
def test_a_damaged_value_is_loaded_again(cache: ReadThroughCache, client: RedisWithFallback, damaged: bytes) -> None:
    client.set(KEY, damaged)
    source = Source(["v"])
    assert [cache.get_or_load(KEY, source) for _ in range(2)] == [["v"], ["v"]]
    assert source.asked == 1


def test_a_value_that_is_too_large_is_given_and_not_kept(cache: ReadThroughCache, client: RedisWithFallback) -> None:
    from random import Random

    source = Source([Random(1).randbytes(1_500_000).hex()])
    assert cache.get_or_load(KEY, source) == source.value
    assert not client.exists(KEY)


def test_without_redis_values_come_from_the_source_and_then_from_memory(valkey: Valkey) -> None:
    client = RedisWithFallback(valkey.url)
    cache = ReadThroughCache(client, chance=never_early)
    cache.get_or_load(KEY, Source(["old"]))
    valkey.kill()
    source = Source(["v"])
    assert [cache.get_or_load(KEY, source) for _ in range(3)] == [["v"]] * 3
    assert source.asked == 1
    valkey.start()
    wait_until(lambda: client.fallback.state is State.CLOSED)
    assert cache.get_or_load(KEY, Source(["after"])) == ["after"]
    client.close()


def test_an_event_loop_loads_once_and_outlives_those_who_are_cancelled(valkey: Valkey) -> None:
    async def use() -> None:
        client = AsyncRedisWithFallback(valkey.url)
        cache = AsyncReadThroughCache(client, chance=never_early)
        source = Source(["v"], seconds=0.2)
        first = asyncio.create_task(cache.get_or_load(KEY, source.load))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(cache.get_or_load(KEY, source.load)) for _ in range(10)]
        await asyncio.sleep(0.05)
        first.cancel()
        assert await asyncio.gather(*others) == [["v"]] * 10
        assert await cache.get_or_load(KEY, source.load) == ["v"]
        assert source.asked == 1
        assert await cache.get_or_load(JOB, Source(None).load) is None
        with pytest.raises(LookupError):
            await cache.get_or_load(JOB, Source(LookupError("none")).load)
        early = AsyncReadThroughCache(client, chance=always_early)
        slow = Source({"n": 1}, seconds=0.01)
        assert await early.get_or_load(JOB, slow.load) == {"n": 1}
        with valkey.admin() as admin:
            admin.pexpire(JOB, 1_000)
        slow.value = OSError("away")
        assert await early.get_or_load(JOB, slow.load) == {"n": 1}
        slow.value = {"n": 2}
        assert await early.get_or_load(JOB, slow.load) == {"n": 2}
        await client.aclose()

    asyncio.run(asyncio.wait_for(use(), 30))


def test_nothing_is_left_behind_by_loads(cache: ReadThroughCache) -> None:
    calls: list[Callable[[], Any]] = [Source(["v"]), Source(None), Source(ValueError("bad"))]
    for n, source in enumerate(calls):
        try:
            cache.get_or_load(search_key("acme", n), source)
        except ValueError:
            continue
    assert cache._loads == {}
