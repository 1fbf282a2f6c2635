"""A crawl and its cache: what it writes, and that losing all of Redis in the middle loses nothing."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from omniops_pipelines.jobs.crawl import _result_cache
from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import normalise
from resources.postgres.catalogue import KEYS
from resources.postgres.jobs import PersistentJobManager
from resources.redis import (
    AsyncRateLimiter,
    AsyncRedisWithFallback,
    RateLimiter,
    ReadThroughCache,
    RedisWithFallback,
)
from resources.redis.fallback import State
from resources.redis.keys import CRAWL_JOB, CRON, KEY_PATTERNS, content_hash_key, pattern_of, search_key
from resources.settings import PROJECT_ROOT
from tests.support.crawling import make_crawl, make_job, results
from tests.support.site import Page
from tests.support.valkey import Valkey, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.site import Site

PAGES = 300

# What reads, by the place of its first and last key. Another command fails the test, until somebody looks at it.
_READS = {"GET": 1, "MGET": -1, "PTTL": 1, "EXISTS": 1, "LRANGE": 1}
_OF_NO_KEY = {"HELLO", "CLIENT", "PING", "INFO", "MULTI", "EXEC", "SELECT", "SCRIPT", "TIME", "SCAN"}


class Monitor:
    """All commands that a server gets, as MONITOR tells them."""

    def __init__(self, server: Valkey) -> None:
        self.commands: list[list[str]] = []
        self._client = server.admin()
        self._connection = self._client.connection_pool.get_connection()
        self._connection.send_command("MONITOR")
        self._connection.read_response()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            line = self._connection.read_response(timeout=None)
            text = line.decode("utf-8", "replace") if isinstance(line, bytes) else str(line)
            words = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
            if words[:2] == ["PING", "the end"] or words[:1] == ["ECHO"]:
                return
            # Lua's own calls are shown as well: those are what touches keys.
            self.commands.append(words)

    def stop(self) -> list[list[str]]:
        self._client.echo("the end")
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.commands


def keys_written(commands: list[list[str]]) -> dict[str, set[str]]:
    """Keys by the command that wrote them; fails for a write that leaves a key without an end."""
    written: dict[str, set[str]] = {}
    for place, (name, *words) in enumerate(commands):
        verb = name.upper()
        following = [[w.upper() if n == 0 else w for n, w in enumerate(c)] for c in commands[place : place + 8]]
        if verb in _OF_NO_KEY:
            continue
        if verb in _READS:
            assert all(pattern_of(key) for key in words[: _READS[verb] if _READS[verb] > 0 else None]), words
            continue
        if verb in ("EVAL", "EVALSHA"):
            keys = words[2 : 2 + int(words[1])]
        elif verb in ("UNLINK", "DEL"):
            keys = words
        else:
            keys = words[:1]
        if verb == "SET":
            assert {"EX", "PX"} & {word.upper() for word in words[2:]}, f"SET {words[0]} without a time to live"
        elif verb in ("RPUSH", "INCRBY", "HINCRBY", "HSET"):
            ends = [c for c in following if c[0] in ("EXPIRE", "PEXPIRE") and c[1] == words[0]]
            begins = [c for c in commands[max(0, place - 2) : place] if c[0].upper() == "SET" and c[1] == words[0]]
            assert ends or (verb == "INCRBY" and begins), f"{verb} {words[0]} without a time to live"
        else:
            known = ("EXPIRE", "PEXPIRE", "UNLINK", "DEL", "EVAL", "EVALSHA", "HGET", "HGETALL", "HDEL", "LPUSHX")
            assert verb in known, f"a command that this test does not know: {name} {words[:1]}"
        written.setdefault(verb, set()).update(keys)
    return written


def test_a_whole_crawl_writes_no_key_without_an_end_and_none_that_the_catalogue_does_not_know(
    database: Database, site: Site, valkey: Valkey, tmp_path: Path
) -> None:
    site.chain(60)
    monitor = Monitor(valkey)
    done = subprocess.run(
        [sys.executable, "-m", "omniops_pipelines", "crawl", site.url, "--allow-private", "--job-id", "watched"],
        env={**database.environment(tmp_path), "OMNIOPS_REDIS_URL": valkey.url, "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # And what the crawl does not use yet.
    client = RedisWithFallback(valkey.url)
    limiter, cache = RateLimiter(client), ReadThroughCache(client)
    for _ in range(3):
        limiter.acquire("shop.example", 2, 0.1)
    limiter.raise_delay("shop.example")
    limiter.lower_delay("shop.example")
    with valkey.admin() as admin:
        admin.delete("rate:shop.example")
    limiter.acquire("shop.example", 2)
    for believed in (None, lambda *_: False):
        cache.get_or_load(search_key("acme", "q"), lambda: ["found"], believed=believed)
    client.set(content_hash_key("acme", "0" * 32), "https://shop.example/", nx=True)
    client.incr(CRON.key("runs"))
    commands = monitor.stop()
    written = keys_written(commands)
    patterns = {pattern_of(key) for keys in written.values() for key in keys}
    assert None not in patterns
    assert patterns == set(KEY_PATTERNS)
    assert {pattern.pattern for pattern in patterns if pattern} == set(KEYS)
    assert "crawl:results:watched" in written["RPUSH"]
    with valkey.admin() as admin:
        left = {name.decode(): admin.ttl(name) for name in admin.scan_iter()}
    assert "crawl:job:watched" in left
    for name, ttl in left.items():
        pattern = pattern_of(name)
        assert pattern is not None, name
        assert 0 < ttl <= max(pattern.ttl_seconds, pattern.longest_seconds), name  # type: ignore[operator]


# --- losing all of it -----------------------------------------------------------------------------------------------


def _flush(valkey: Valkey) -> None:
    with valkey.admin() as admin:
        admin.flushall()


def _kill_and_start(valkey: Valkey) -> None:
    valkey.kill()
    valkey.start()


def _kill(valkey: Valkey) -> None:
    valkey.kill()


def _freeze(valkey: Valkey) -> None:
    valkey.freeze()


def _freeze_and_thaw(valkey: Valkey) -> None:
    valkey.freeze()
    threading.Timer(1.5, valkey.thaw).start()


@pytest.mark.parametrize("lose", [_flush, _kill_and_start, _kill, _freeze, _freeze_and_thaw])
def test_losing_all_of_redis_in_the_middle_of_a_crawl_loses_no_page(
    lose: Callable[[Valkey], None], database: Database, site: Site, valkey: Valkey
) -> None:
    site.chain(PAGES)
    cache = RedisWithFallback(valkey.url)
    manager = PersistentJobManager(database.engine, cache)
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True)
    make_job(database, "job", plan)
    job = manager.get_job_from_postgres("job")
    assert job is not None
    copy, lost, copied = _result_cache(manager, "job", job["customer_id"]), [], []

    def on_committed(finished: Any) -> None:
        copy(finished)
        copied.extend(finished)
        if not lost and len(copied) > 50:
            lost.append(True)
            lose(valkey)

    outcome = make_crawl(database, "job", plan, on_committed=on_committed).run()
    job = manager.complete_job("job", outcome.finish_reason)
    assert lost
    found = results(database)
    assert set(found) == {"/", *(f"/p{n}" for n in range(1, PAGES))}
    assert {row["status"] for row in found.values()} == {"success"}
    assert manager.get_job_stats("job").total_pages == PAGES
    assert max(site.requests.values()) == 1
    assert manager.get_job("job") == job
    assert {result["url"] for result in manager.get_job_results("job")} <= {row["url"] for row in found.values()}
    if lose not in (_kill, _freeze):
        wait_until(lambda: cache.fallback.state is State.CLOSED)
        assert manager.get_job("job") == job
    if lose in (_kill, _freeze, _freeze_and_thaw):
        assert cache.snapshot().outages >= 1
    cache.close()


@pytest.mark.parametrize("lose", [_flush, _kill_and_start, _kill, _freeze, _freeze_and_thaw])
def test_losing_all_of_redis_in_the_middle_of_a_polite_crawl_makes_it_no_less_polite(
    lose: Callable[[Valkey], None], database: Database, site: Site, valkey: Valkey
) -> None:
    pages, delay = 60, 0.03
    site.chain(pages)
    site.pages["/robots.txt"] = Page(f"User-agent: *\nCrawl-delay: {delay}".encode(), headers={})
    cache = RedisWithFallback(valkey.url)
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True)
    make_job(database, "job", plan)
    committed: list[Any] = []
    lost: list[bool] = []

    def on_committed(finished: Any) -> None:
        committed.extend(finished)
        if not lost and len(committed) > 10:
            lost.append(True)
            lose(valkey)

    limiter = AsyncRateLimiter(AsyncRedisWithFallback(cache.fallback), shares=2)
    outcome = make_crawl(database, "job", plan, on_committed=on_committed, limiter=limiter).run()
    assert lost
    assert outcome.finish_reason == "exhausted"
    assert {row["status"] for row in results(database).values()} == {"success"}
    assert len(results(database)) == pages
    assert max(site.requests.values()) == 1
    moments = [moment for moment, path in site.moments if path != "/robots.txt"]
    between = [after - before for before, after in itertools.pairwise(moments)]
    # A request may be a little late on its way, and then the next is nearer to it; the whole is not.
    assert moments[-1] - moments[0] >= delay * (pages - 1) * 0.99
    assert sum(gap < 0.8 * delay for gap in between) <= 3
    cache.close()


def test_a_job_that_ended_while_redis_was_frozen_is_not_running_after(
    database: Database, valkey: Valkey, site: Site
) -> None:
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True)
    make_job(database, "job", plan)
    cache = RedisWithFallback(valkey.url)
    manager = PersistentJobManager(database.engine, cache)
    other = PersistentJobManager(database.engine, RedisWithFallback(valkey.url))
    assert (manager.get_job("job") or {})["status"] == "running"
    assert (other.get_job("job") or {})["status"] == "running"
    valkey.freeze()
    manager.complete_job("job")
    assert (manager.get_job("job") or {})["status"] == "completed"
    valkey.thaw()
    wait_until(lambda: cache.fallback.state is State.CLOSED)
    assert (manager.get_job("job") or {})["status"] == "completed"
    assert (other.get_job("job") or {})["status"] == "completed"


def test_a_job_whose_process_died_before_it_could_tell_redis_is_believed_for_some_seconds_only(
    database: Database, valkey: Valkey, site: Site
) -> None:
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True)
    make_job(database, "job", plan)
    manager = PersistentJobManager(database.engine, RedisWithFallback(valkey.url))
    manager.get_job("job")
    # Somebody without Redis ended it.
    PersistentJobManager(database.engine, None).complete_job("job")
    assert (manager.get_job("job") or {})["status"] == "running"
    with valkey.admin() as admin:
        admin.pexpire(CRAWL_JOB.key("job"), (CRAWL_JOB.ttl_seconds - 6) * 1_000)
        assert (manager.get_job("job") or {})["status"] == "completed"
        # What has ended does not change, and is believed for its whole life.
        admin.expire(CRAWL_JOB.key("job"), 100)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE scrape_jobs SET error_message = 'not read'")
    assert (manager.get_job("job") or {})["error_message"] is None


def test_all_cached_results_are_read_however_many_values_they_are_in(database: Database, valkey: Valkey) -> None:
    cache = RedisWithFallback(valkey.url)
    manager = PersistentJobManager(database.engine, cache)
    for first in range(0, 50, 2):
        manager.cache_results("many", [{"url": f"https://x/{n}", "text": "t" * 2_000} for n in (first, first + 1)])
    manager.cache_results("many", [{"url": "https://x/0", "text": "again"}])
    manager.cache_results("many", [{"url": f"https://y/{n}"} for n in range(250)])
    found = manager.get_job_results("many")
    assert [result["url"] for result in found] == [
        *(f"https://x/{n}" for n in range(50)),
        *(f"https://y/{n}" for n in range(250)),
    ]
    assert found[0]["text"] == "again"
    with valkey.admin() as admin:
        assert admin.llen("crawl:results:many") == 29


def test_the_program_pays_for_no_dagster_to_use_redis(valkey: Valkey) -> None:
    script = """
import sys
from resources.redis import RateLimiter, get_redis_client_with_fallback
client = get_redis_client_with_fallback()
assert client is get_redis_client_with_fallback()
assert client.set("crawl:job:x", b"1") and RateLimiter(client).acquire("shop.example", 1).permitted
assert client.snapshot().state == "closed", client.snapshot()
print([name for name in sys.modules if name.split(".")[0] in ("dagster", "sensors", "omniops_pipelines", "crawlee")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "OMNIOPS_REDIS_URL": valkey.url},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
