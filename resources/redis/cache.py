"""Reading through the cache: Redis first, then the source, then back into Redis.

A popular value that ends does not send everybody to the source at once. In one process, one caller loads and the
others wait for it. Across processes, a value is loaded again a little before it ends, by whoever is picked by chance:
the nearer the end and the slower the source, the likelier (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic
Cache Stampede Prevention, 2015). There is no lock that a dead process could hold; a value that is not there at all is
loaded once by each process.

What the source does not have is not remembered: another process may make it in the next moment, and would not know
that it has to be forgotten here. An empty answer, such as a search without results, is a value and is kept.

Two rules keep an old value from replacing a newer one. A loaded value is written only if nothing was written
meanwhile (SET NX, or a comparison with what was read). And a value that may still change is believed for a few
seconds only (`believed`): that bounds what a process leaves behind that died before it could say that something had
changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedLongEnough
from typing import TYPE_CHECKING, Any

from resources.redis import commands
from resources.redis.keys import ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resources.redis.client import AsyncRedisWithFallback, RedisWithFallback
    from resources.redis.commands import Command
    from resources.redis.keys import Key

logger = logging.getLogger(__name__)

# Of the system, so that forked processes do not draw the same.
_chance = random.SystemRandom()

# Another caller of this process loads the same: so long it is waited for, and then one loads oneself.
PATIENCE_SECONDS = 10.0
# How fast what is known about the source's speed is replaced by what it shows now.
_NEWEST_SHARE = 0.3


class _Speed:
    """How long the source takes, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        known = self.seconds or seconds
        self.seconds = known + _NEWEST_SHARE * (seconds - known)


def due_early(left_seconds: float, load_seconds: float, chance: float) -> bool:
    """Whether a value should be loaded again before it ends.

    Args:
        left_seconds: that it still lives.
        load_seconds: that loading takes.
        chance: evenly from 0 to 1, drawn for each call.
    """
    return load_seconds > 0 and load_seconds * -math.log(chance or 1e-12) >= left_seconds


class _Reading:
    """What was found, and whether it will do."""

    def __init__(
        self, key: Key, found: tuple[bytes | None, float], believed: Callable[[Any, float], bool] | None
    ) -> None:
        self.key = key
        self.stored, self.left = found
        self.value: Any = None
        self.good = False
        if self.stored is not None:
            try:
                self.value = key.pattern.decode(self.stored)
            except ValueError as error:
                logger.warning("%s cannot be read and is loaded again: %s", key, error)
                return
            age = max(0.0, key.pattern.ttl_seconds - self.left)
            self.good = believed is None or believed(self.value, age)

    def write(self, value: Any, seconds: int | None) -> Command[bool] | None:
        """The operation that puts a loaded value in the place of what was found; None where it has none."""
        try:
            encoded = self.key.pattern.encode(value)
        except ValueTooLarge as error:
            logger.info("%s is not cached: %s", self.key, error)
            return None
        if self.stored is None:
            return commands.set_(self.key, encoded, seconds, only_new=True)
        return commands.replace(self.key, self.stored, encoded, seconds)


class ReadThroughCache:
    """Values by key, from the cache or else from their source. Thread-safe.

    Args:
        client: the cache.
        chance: a number from 0 to 1 for each early load; handed in by tests.
    """

    def __init__(self, client: RedisWithFallback, *, chance: Callable[[], float] = _chance.random) -> None:
        self._client = client
        self._chance = chance
        self._speed = _Speed()
        self._lock = threading.Lock()
        self._loads: dict[str, Future[Any]] = {}

    def get_or_load(
        self,
        key: Key,
        load: Callable[[], Any],
        *,
        seconds: int | None = None,
        believed: Callable[[Any, float], bool] | None = None,
    ) -> Any:
        """The value of a key; from `load` if the cache has none.

        Args:
            key: of a pattern whose encoding can hold the value.
            load: asks the source; None means that it has none, and is not kept.
            seconds: life of a loaded value; None: as the key's pattern says.
            believed: whether a value will do, given the value and its age in seconds (at most: a life shortened
                by chance counts as age); None: always.

        Returns:
            The value as the encoding gives it back; a loaded one as `load` gave it.

        Raises:
            Exception: whatever `load` raises.
        """
        reading = _Reading(key, self._client.run(commands.get_with_life(key)), believed)
        if reading.good and not due_early(reading.left, self._speed.seconds, self._chance()):
            return reading.value
        with self._lock:
            under_way = self._loads.get(key)
            if under_way is None:
                mine: Future[Any] = Future()
                self._loads[key] = mine
        if under_way is None:
            try:
                return self._load_for_all(reading, load, seconds, mine)
            except Exception as error:
                if not reading.good:
                    raise
                logger.warning("%s is not loaded again before it ends: %s", key, error)
                return reading.value
        if reading.good:
            return reading.value  # somebody loads it again already
        try:
            return under_way.result(PATIENCE_SECONDS)
        except WaitedLongEnough:
            if under_way.done():
                raise  # the source's own
            return load()

    def _load_for_all(
        self, reading: _Reading, load: Callable[[], Any], seconds: int | None, mine: Future[Any]
    ) -> Any:
        try:
            started = time.monotonic()
            value = load()
            self._speed.took(time.monotonic() - started)
            if value is not None and (command := reading.write(value, seconds)) is not None:
                self._client.run(command)
        except BaseException as error:
            # Those who wait get the error too; an interruption is this caller's alone.
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                mine.set_exception(RuntimeError(f"loading {reading.key} was interrupted"))
            raise
        else:
            mine.set_result(value)
            return value
        finally:
            with self._lock:
                del self._loads[reading.key]


class AsyncReadThroughCache:
    """The same for one event loop.

    Args:
        client: the cache.
        chance: a number from 0 to 1 for each early load; handed in by tests.
    """

    def __init__(self, client: AsyncRedisWithFallback, *, chance: Callable[[], float] = _chance.random) -> None:
        self._client = client
        self._chance = chance
        self._speed = _Speed()
        self._loads: dict[str, asyncio.Task[Any]] = {}

    async def get_or_load(
        self,
        key: Key,
        load: Callable[[], Awaitable[Any]],
        *,
        seconds: int | None = None,
        believed: Callable[[Any, float], bool] | None = None,
    ) -> Any:
        """The value of a key; see `ReadThroughCache.get_or_load`.

        A caller that is cancelled leaves the loading to the others who wait for it.
        """
        reading = _Reading(key, await self._client.run(commands.get_with_life(key)), believed)
        if reading.good and not due_early(reading.left, self._speed.seconds, self._chance()):
            return reading.value
        task = self._loads.get(key)
        if task is None:
            task = asyncio.create_task(self._load(reading, load, seconds), name=f"load {key}")
            self._loads[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        elif reading.good:
            return reading.value
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if not done:
            return reading.value if reading.good else await load()
        if reading.good and (task.cancelled() or task.exception() is not None):
            logger.warning("%s is not loaded again before it ends", key)
            return reading.value
        return task.result()

    async def _load(self, reading: _Reading, load: Callable[[], Awaitable[Any]], seconds: int | None) -> Any:
        started = time.monotonic()
        value = await load()
        self._speed.took(time.monotonic() - started)
        if value is not None and (command := reading.write(value, seconds)) is not None:
            await self._client.run(command)
        return value

    def _ended(self, key: Key, task: asyncio.Task[Any]) -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # taken note of, even where every caller has gone
