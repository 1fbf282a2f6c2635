"""Limits of domains: exact over threads, processes and event loops; stricter without Redis, and never laxer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resources.redis import AsyncRateLimiter, AsyncRedisWithFallback, RateLimiter, RedisWithFallback
from resources.redis.fallback import Fallback, State
from resources.redis.keys import RATE, RATE_DELAY
from resources.redis.rate_limit import MAX_DELAY
from resources.redis.rate_scripts import ACQUIRE_BODY
from resources.redis.windows import Decision, DomainWindow, decide
from resources.settings import PROJECT_ROOT
from tests.support.valkey import Valkey, wait_until

if TYPE_CHECKING:
    import redis

DOMAIN = "shop.example"

_WORKER = """
import json, sys, threading
from resources.redis import RateLimiter, RedisWithFallback
limiter = RateLimiter(RedisWithFallback(sys.argv[1]))
permitted = []
def work():
    for _ in range(60):
        permitted.append(limiter.acquire("shop.example", 100).permitted)
threads = [threading.Thread(target=work) for _ in range(4)]
sys.stdin.readline()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(sum(permitted)))
"""


def acquire_all(limiter: RateLimiter, limit: int, tries: int | None = None) -> int:
    return sum(limiter.acquire(DOMAIN, limit).permitted for _ in range(tries or 2 * limit))


def counted(admin: redis.Redis) -> int:
    fields = admin.hgetall(RATE.key(DOMAIN))
    return sum(int(value) for name, value in fields.items() if name.isdigit())  # type: ignore[union-attr]


@pytest.fixture
def limiter(client: RedisWithFallback) -> RateLimiter:
    return RateLimiter(client)


# --- with Redis -----------------------------------------------------------------------------------------------------


def test_a_limit_is_reached_exactly_and_the_wait_is_said(limiter: RateLimiter, valkey: Valkey) -> None:
    decisions = [limiter.acquire(DOMAIN, 5) for _ in range(8)]
    assert [d.permitted for d in decisions] == [True] * 5 + [False] * 3
    assert [d.used for d in decisions] == [1, 2, 3, 4, 5, 5, 5, 5]
    assert all(55 < d.wait_seconds <= 61 for d in decisions[5:])
    with valkey.admin() as admin:
        assert 55_000 < admin.pttl(RATE.key(DOMAIN)) <= 60_000  # type: ignore[operator]
    assert limiter.acquire("other.example", 5).permitted


def test_the_strictest_limit_that_is_known_holds_for_all(limiter: RateLimiter, valkey: Valkey) -> None:
    others = RateLimiter(RedisWithFallback(valkey.url))
    assert acquire_all(limiter, 5, 3) == 3
    refused = [others.acquire(DOMAIN, 100) for _ in range(4)][2:]
    assert [(d.permitted, d.limit) for d in refused] == [(False, 5)] * 2
    assert not others.acquire(DOMAIN).permitted
    assert (others.look(DOMAIN).limit, others.look("other.example").limit) == (5, 0)
    with valkey.admin() as admin:
        # A minute after the last crawl with that limit.
        admin.hset(RATE.key(DOMAIN), "limit_until", str(time.time() - 1))
    assert others.acquire(DOMAIN, 100).limit == 100
    assert limiter.acquire(DOMAIN, 5).limit == 5
    assert limiter.acquire("other.example", None, 3.0).permitted
    assert 2 < others.acquire("other.example", None, 1.0).wait_seconds <= 3
    assert others.look("other.example").spacing == 3


def test_who_asks_for_nothing_looks_and_is_counted(limiter: RateLimiter, valkey: Valkey) -> None:
    assert limiter.look(DOMAIN) == Decision(True, 0.0, 0)
    with valkey.admin() as admin:
        assert admin.exists(RATE.key(DOMAIN)) == 0  # nothing was sent, nothing is written
        assert limiter.look(DOMAIN, 7).used == 7
        assert 55_000 < admin.pttl(RATE.key(DOMAIN)) <= 60_000  # type: ignore[operator]
        others = RateLimiter(RedisWithFallback(valkey.url))
        assert acquire_all(others, 10) == 3
        assert (limiter.look(DOMAIN).limit, limiter.look(DOMAIN).used) == (10, 10)
        others.raise_delay(DOMAIN, retry_after=20)
        seen = limiter.look(DOMAIN)
        assert (seen.delay, 19 < seen.wait_seconds <= 20) == (0.5, True)
        # What was counted by looking is told again to a server that lost it.
        admin.flushall()
        assert limiter.look(DOMAIN, 1).used == 8
    assert limiter.slow_down(DOMAIN, 2.0) == 2.0
    assert limiter.slow_down(DOMAIN, 1.0) == 2.0
    with pytest.raises(ValueError, match="cannot have been sent"):
        limiter.look(DOMAIN, -1)


def test_what_was_seen_by_looking_holds_without_redis(valkey: Valkey) -> None:
    client = RedisWithFallback(valkey.url)
    limiter = RateLimiter(client, shares=2)
    RateLimiter(RedisWithFallback(valkey.url)).acquire(DOMAIN, 10, 1.0)
    assert limiter.look(DOMAIN, 2).limit == 10
    valkey.kill()
    seen = limiter.look(DOMAIN, 1)
    assert (seen.limit, seen.spacing, seen.used) == (10, 2.0, 3)
    assert not limiter.acquire(DOMAIN).permitted
    client.close()


def test_processes_and_threads_together_never_exceed_a_limit(valkey: Valkey) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, valkey.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT,
        )
        for _ in range(4)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert sum(json.loads(worker.communicate(timeout=60)[0]) for worker in workers) == 100


def test_event_loops_share_the_same_limit(valkey: Valkey, limiter: RateLimiter) -> None:
    async def use() -> int:
        client = AsyncRedisWithFallback(valkey.url)
        others = AsyncRateLimiter(client)
        decisions = await asyncio.gather(*(others.acquire(DOMAIN, 30) for _ in range(40)))
        delay = await others.raise_delay(DOMAIN)
        assert await others.delay(DOMAIN) == delay == pytest.approx(0.5)
        assert await others.lower_delay(DOMAIN) == pytest.approx(0.45)
        await client.aclose()
        return sum(d.permitted for d in decisions)

    assert acquire_all(limiter, 30, 10) == 10
    assert asyncio.run(use()) == 20


def test_between_two_requests_passes_the_least_time(limiter: RateLimiter) -> None:
    assert limiter.acquire(DOMAIN, None, 10.0).permitted
    refused = limiter.acquire(DOMAIN, None, 10.0)
    assert not refused.permitted
    assert 9 < refused.wait_seconds <= 10


def test_the_permission_comes_when_the_wait_is_over(limiter: RateLimiter) -> None:
    assert limiter.acquire(DOMAIN, None, 0.2).permitted
    wait = limiter.acquire(DOMAIN, None, 0.2).wait_seconds
    time.sleep(wait)
    assert limiter.acquire(DOMAIN, None, 0.2).permitted


def test_an_overloaded_domain_gets_a_longer_delay_once_for_all_that_was_under_way(
    limiter: RateLimiter, valkey: Valkey
) -> None:
    assert limiter.delay(DOMAIN) == 0
    assert [limiter.raise_delay(DOMAIN) for _ in range(16)] == [0.5] * 16
    assert limiter.delay(DOMAIN) == 0.5
    refused = limiter.acquire(DOMAIN)
    assert (refused.permitted, refused.delay) == (False, 0.5)
    assert 0 < refused.wait_seconds <= 0.5
    with valkey.admin() as admin:
        assert 295 < admin.ttl(RATE_DELAY.key(DOMAIN)) <= 300  # type: ignore[operator]
        admin.hset(RATE.key(DOMAIN), "raised", "0")
    assert limiter.raise_delay(DOMAIN) == 1.0


def test_a_delay_is_bounded_above_and_ends_below(limiter: RateLimiter, valkey: Valkey) -> None:
    with valkey.admin() as admin:
        for _ in range(12):
            delay = limiter.raise_delay(DOMAIN)
            admin.hset(RATE.key(DOMAIN), "raised", "0")
    assert delay == MAX_DELAY
    assert limiter.raise_delay(DOMAIN, at_least=1_000) == MAX_DELAY
    delays = [limiter.lower_delay(DOMAIN) for _ in range(100)]
    assert delays[0] == pytest.approx(54)
    assert delays[-1] == 0
    assert limiter.delay(DOMAIN) == 0


def test_a_retry_after_keeps_everybody_away_for_so_long_and_a_minute_at_most(limiter: RateLimiter) -> None:
    limiter.raise_delay(DOMAIN, retry_after=30)
    assert 29 < limiter.acquire(DOMAIN).wait_seconds <= 30
    limiter.raise_delay(DOMAIN, retry_after=3_600)
    assert 59 < limiter.acquire(DOMAIN).wait_seconds <= 60


def test_a_clock_that_was_put_back_holds_nobody_for_long(limiter: RateLimiter, valkey: Valkey) -> None:
    with valkey.admin() as admin:
        future = int(time.time()) + 7_200
        admin.hset(RATE.key(DOMAIN), mapping={str(future): 5, "next": str(future)})
    refused = limiter.acquire(DOMAIN, 5, 1.0)
    assert refused.wait_seconds <= 60
    with valkey.admin() as admin:
        admin.hdel(RATE.key(DOMAIN), "next")
    assert limiter.acquire(DOMAIN, 5, 1.0).permitted


@pytest.mark.parametrize("domain", ["", " ", "a b", "http://x/", "x\ny", "x" * 400])
def test_what_is_no_domain_is_refused(limiter: RateLimiter, domain: str) -> None:
    with pytest.raises(ValueError, match="no domain"):
        limiter.acquire(domain)


def test_limits_that_cannot_be_meant_are_refused(limiter: RateLimiter, client: RedisWithFallback) -> None:
    for call in (
        lambda: limiter.acquire(DOMAIN, -1),
        lambda: limiter.acquire(DOMAIN, 1, -0.1),
        lambda: limiter.acquire(DOMAIN, 1, 61),
        lambda: limiter.raise_delay(DOMAIN, retry_after=-1),
        lambda: RateLimiter(client, shares=0),
    ):
        with pytest.raises(ValueError, match=r"must be|give"):
            call()


def test_a_host_named_like_another_pattern_has_keys_of_its_own(limiter: RateLimiter) -> None:
    limiter.raise_delay("8080")
    assert limiter.acquire("delay:8080").permitted
    assert limiter.acquire("Delay:8080 ").used == 2
    assert limiter.delay("8080") == 0.5


# --- Redis is lost --------------------------------------------------------------------------------------------------


def test_a_server_that_was_killed_and_started_again_gives_no_new_limit(limiter: RateLimiter, valkey: Valkey) -> None:
    assert acquire_all(limiter, 10) == 10
    limiter.raise_delay(DOMAIN)
    valkey.kill()
    assert acquire_all(limiter, 10) == 0
    valkey.start()
    wait_until(lambda: limiter._fallback.state is State.CLOSED)
    assert acquire_all(limiter, 10) == 0
    assert limiter.acquire(DOMAIN, 10).used == 10
    assert limiter.delay(DOMAIN) == 0.5


def test_a_server_that_was_emptied_unnoticed_is_told_what_it_lost(limiter: RateLimiter, valkey: Valkey) -> None:
    others = RateLimiter(RedisWithFallback(valkey.url))
    assert (acquire_all(limiter, 10, 6), acquire_all(others, 10, 3)) == (6, 3)
    with valkey.admin() as admin:
        admin.flushall()
        assert limiter._tell_again(DOMAIN) is not None
        assert limiter._tell_again(DOMAIN) is None  # one thread is at it
        limiter._told(DOMAIN)
        threads = [threading.Thread(target=limiter.look, args=(DOMAIN,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counted(admin) == 6  # once, by whichever thread
        assert others.acquire(DOMAIN, 10).used == 10
        assert not others.acquire(DOMAIN, 10).permitted


def test_a_server_that_comes_back_with_an_old_snapshot_gives_no_new_limit(
    limiter: RateLimiter, valkey: Valkey
) -> None:
    assert acquire_all(limiter, 10, 4) == 4
    with valkey.admin() as admin:
        admin.save()
    assert acquire_all(limiter, 10, 6) == 6
    valkey.kill()
    valkey.start()
    with valkey.admin() as admin:
        assert counted(admin) == 4
    assert not limiter.acquire(DOMAIN, 10).permitted
    # What the snapshot knew is counted twice, which errs on the right side.
    with valkey.admin() as admin:
        admin.hdel(RATE.key(DOMAIN), "limit")
    assert limiter.acquire(DOMAIN, 20).used == 15


def test_in_the_minute_after_the_loss_nothing_is_granted_and_then_a_share(valkey: Valkey) -> None:
    now = [1_000.0]
    client = RedisWithFallback(Fallback(valkey.url, clock=lambda: now[0]))
    limiter = RateLimiter(client, shares=4, clock=lambda: now[0])
    assert limiter.acquire(DOMAIN, 20).permitted
    valkey.kill()
    refused = limiter.acquire(DOMAIN, 20)
    assert not refused.permitted
    assert refused.wait_seconds <= 5  # ask again soon: Redis may be back
    now[0] += 60.5
    assert not limiter.acquire(DOMAIN, 20).permitted
    now[0] += 1
    assert acquire_all(limiter, 20) == 5
    now[0] += 62
    assert acquire_all(limiter, 20) == 5
    client.close()


def test_where_there_never_was_a_redis_each_process_has_its_share_at_once(stopped_valkey: Valkey) -> None:
    limiter = RateLimiter(RedisWithFallback(stopped_valkey.url), shares=4)
    assert acquire_all(limiter, 20) == 5
    assert acquire_all(RateLimiter(RedisWithFallback(None), shares=3), 7) == 2


def test_of_a_limit_below_the_shares_one_request_comes_in_a_longer_time() -> None:
    now = [0.0]
    limiter = RateLimiter(RedisWithFallback(None), shares=4, clock=lambda: now[0])
    granted = []
    for second in range(600):
        now[0] = float(second)
        if limiter.acquire(DOMAIN, 2).permitted:
            granted.append(second)
    assert granted == [0, 120, 240, 360, 480]


def test_the_least_time_is_longer_without_redis() -> None:
    now = [0.0]
    limiter = RateLimiter(RedisWithFallback(None), shares=4, clock=lambda: now[0])
    granted = []
    for tenth in range(300):
        now[0] = tenth / 10
        if limiter.acquire(DOMAIN, None, 1.0).permitted:
            granted.append(now[0])
    assert granted == [0, 4, 8, 12, 16, 20, 24, 28]


def test_the_adaptive_delay_works_without_redis() -> None:
    now = [0.0]
    limiter = RateLimiter(RedisWithFallback(None), shares=1, clock=lambda: now[0])
    assert [limiter.raise_delay(DOMAIN) for _ in range(5)] == [0.5] * 5
    now[0] += 1
    assert limiter.raise_delay(DOMAIN) == 1.0
    assert not limiter.acquire(DOMAIN).permitted
    now[0] += 1
    assert limiter.acquire(DOMAIN).permitted
    assert limiter.lower_delay(DOMAIN) == pytest.approx(0.9)
    now[0] += 301
    assert limiter.delay(DOMAIN) == 0


def test_what_was_sent_without_redis_counts_when_it_is_there(stopped_valkey: Valkey) -> None:
    client = RedisWithFallback(stopped_valkey.url)
    limiter = RateLimiter(client, shares=2)
    assert acquire_all(limiter, 10) == 5
    stopped_valkey.start()
    wait_until(lambda: client.fallback.state is State.CLOSED)
    with stopped_valkey.admin() as admin:
        assert counted(admin) == 5
        assert 0 < admin.pttl(RATE.key(DOMAIN)) <= 60_000  # type: ignore[operator]
    assert acquire_all(limiter, 10) == 5
    client.close()


def test_a_frozen_server_counts_nothing_twice(valkey: Valkey) -> None:
    client = RedisWithFallback(Fallback(valkey.url, socket_seconds=0.2))
    limiter = RateLimiter(client)
    assert all(limiter.acquire(DOMAIN).permitted for _ in range(4))
    valkey.freeze()
    assert all(limiter.acquire(DOMAIN).permitted for _ in range(3))
    valkey.thaw()
    wait_until(lambda: client.fallback.state is State.CLOSED)
    # 4 and 3, this one, and one more perhaps: the question that was on its way when the server froze was answered
    # from memory, and may have been answered there too.
    assert limiter.acquire(DOMAIN, 10).used in (8, 9)
    client.close()


# --- the script and the rule in memory are one ----------------------------------------------------------------------

_STEPS = st.lists(
    st.tuples(
        st.floats(0, 40, allow_nan=False).map(lambda seconds: round(seconds, 3)),
        st.integers(0, 6),
        st.sampled_from([0.0, 0.5, 3.0, 60.0]),
        st.sampled_from([0.0, 0.0, 2.0, 20.0]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_redis_decides_as_the_memory_does(valkey: Valkey, steps: list[tuple[float, int, float, float]]) -> None:
    with valkey.admin() as admin:
        admin.flushall()
        # The clock is handed in: the last argument.
        script = admin.register_script("local now = tonumber(ARGV[#ARGV])" + ACQUIRE_BODY)
        window, now = DomainWindow(), 1_000_000.0
        for passed, limit, spacing, delay in steps:
            now = round(now + passed, 3)
            admin.set(RATE_DELAY.key(DOMAIN), delay)
            keys = [RATE.key(DOMAIN), RATE_DELAY.key(DOMAIN)]
            permitted, wait, used, _, _, *in_force = script(keys=keys, args=[limit, spacing, 0, "", now])  # type: ignore[misc]
            strictest = window.strictest(now, limit, spacing)
            mine = decide(window, now, strictest[0], max(strictest[1], delay))
            assert (bool(permitted), used) == (mine.permitted, mine.used)
            assert (int(in_force[0]), float(in_force[1])) == strictest
            assert float(wait) == pytest.approx(mine.wait_seconds, abs=0.002)
            assert isinstance(mine, Decision)
