"""The clients that go on when Redis is away: one that waits, one for event loops, and pipelines for both.

They have the operations that this project uses, under the names that redis-py gives them. What differs:

- A key is made by a pattern (`keys`), or its name matches one; every write has the pattern's time to live, or a
  shorter one that it asks for. Values are bytes, text or numbers; `pattern.encode` and `decode` make more of them.
- Nothing that happens to Redis is raised. What cannot be had from it is answered by the store in memory (`fallback`),
  after one time-out at most, and at once when Redis is known to be away. Only mistakes in the program are raised:
  a key without a pattern, a value that has no bytes.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from redis.exceptions import NoScriptError, ResponseError

from resources.redis import commands
from resources.redis.fallback import Fallback, RedisState, Trouble, delete_prefix, trouble_of
from resources.redis.keys import tenant_prefixes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from resources.redis.commands import Command

T = TypeVar("T")


class _Gathered:
    """Operations that go to Redis together."""

    def __init__(self) -> None:
        self.commands: list[Command[Any]] = []

    def _add(self, command: Command[Any]) -> Self:
        self.commands.append(command)
        return self

    def get(self, name: str) -> Self:
        """See `RedisWithFallback.get`."""
        return self._add(commands.get(name))

    def set(self, name: str, value: Any, ex: int | None = None, *, nx: bool = False) -> Self:
        """See `RedisWithFallback.set`."""
        return self._add(commands.set_(name, value, ex, only_new=nx))

    def delete(self, *names: str) -> Self:
        """See `RedisWithFallback.delete`."""
        return self._add(commands.delete(names))

    def incr(self, name: str, amount: int = 1, ex: int | None = None) -> Self:
        """See `RedisWithFallback.incr`."""
        return self._add(commands.increment(name, amount, ex))

    def rpush(self, name: str, *values: Any) -> Self:
        """See `RedisWithFallback.rpush`."""
        return self._add(commands.push(name, values))

    def lrange(self, name: str, start: int, end: int) -> Self:
        """See `RedisWithFallback.lrange`."""
        return self._add(commands.range_(name, start, end))


class Pipeline(_Gathered):
    """Operations that go to Redis together, in one round trip.

    All of them are answered by the same store: by Redis, or by the memory if one of them cannot be had from Redis.
    """

    def __init__(self, client: RedisWithFallback) -> None:
        super().__init__()
        self._client = client

    def execute(self) -> list[Any]:
        """Run what was gathered; the results in order. The pipeline is empty then."""
        gathered, self.commands = self.commands, []
        return self._client.run_all(gathered)


class AsyncPipeline(_Gathered):
    """The same for event loops."""

    def __init__(self, client: AsyncRedisWithFallback) -> None:
        super().__init__()
        self._client = client

    async def execute(self) -> list[Any]:
        """Run what was gathered; the results in order. The pipeline is empty then."""
        gathered, self.commands = self.commands, []
        return await self._client.run_all(gathered)


class RedisWithFallback:
    """Redis, or this process's memory while Redis is away. Safe for any number of threads.

    Args:
        server: the url of the server, or what the clients of a server share; None: memory alone.

    Raises:
        InvalidRedisUrl: the url is none that Redis has.
    """

    def __init__(self, server: str | Fallback | None) -> None:
        self.fallback = server if isinstance(server, Fallback) else Fallback(server)
        self._redis: Redis | None = None if self.fallback.url is None else self.fallback.connect()

    # --- operations -------------------------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """The value of a string; None if there is none."""
        return self.run(commands.get(name))

    def mget(self, names: Iterable[str]) -> list[bytes | None]:
        """The values of several strings, in order."""
        wanted = list(names)
        return self.run(commands.mget(wanted)) if wanted else []

    def set(self, name: str, value: Any, ex: int | None = None, *, nx: bool = False) -> bool:
        """Write a string.

        Args:
            name: its key.
            value: bytes, text or a number.
            ex: seconds that it lives; None: as its pattern says.
            nx: only if it is not there.

        Returns:
            Whether it was written.
        """
        return self.run(commands.set_(name, value, ex, only_new=nx))

    def setex(self, name: str, seconds: int, value: Any) -> bool:
        """Write a string that lives for so many seconds."""
        return self.set(name, value, seconds)

    def expire(self, name: str, seconds: int) -> bool:
        """Let a key live for so many seconds from now; whether it is there."""
        return self.run(commands.expire(name, seconds))

    def delete(self, *names: str) -> int:
        """Remove keys; how many there were."""
        return self.run(commands.delete(names)) if names else 0

    def exists(self, name: str) -> bool:
        """Whether a key is there."""
        return self.run(commands.exists(name))

    def ttl(self, name: str) -> int:
        """Seconds that a key has left; -2 if there is none."""
        return self.run(commands.ttl(name))

    def incr(self, name: str, amount: int = 1, ex: int | None = None) -> int:
        """Add to a number, which begins to live with the first addition."""
        return self.run(commands.increment(name, amount, ex))

    def rpush(self, name: str, *values: Any) -> int:
        """Append to a list, whose life begins again; its length."""
        return self.run(commands.push(name, values))

    def lrange(self, name: str, start: int, end: int) -> list[bytes]:
        """Part of a list, both ends included."""
        return self.run(commands.range_(name, start, end))

    def ping(self) -> bool:
        """Whether Redis answers (and not the memory)."""
        self.run(commands.exists("cron:ping"))
        return self.fallback.url is not None and self.fallback.state.value != "open"

    def pipeline(self) -> Pipeline:
        """Operations to be gathered, and executed in one round trip."""
        return Pipeline(self)

    def forget_tenant(self, customer_id: UUID | str) -> bool:
        """Delete all keys that were made of a customer's content.

        Returns:
            False where Redis is away: it is told when it is back, if this process lives until then.
        """
        reached = True
        for prefix in tenant_prefixes(customer_id):
            if self.fallback.forget_prefix(prefix):
                reached = False
                continue
            try:
                self.fallback.calls += 1
                delete_prefix(cast("Redis", self._redis), prefix)
            except Exception as error:  # noqa: BLE001 - as in `run_all`
                self.fallback.lost(error)
                self.fallback.forget_prefix(prefix)
                reached = False
        return reached

    # --- what all operations go through -----------------------------------------------------------------------

    def run(self, command: Command[T]) -> T:
        """Run one operation."""
        return cast("T", self.run_all((command,))[0])

    def run_all(self, wanted: Sequence[Command[Any]]) -> list[Any]:
        """Run several in one round trip."""
        if not wanted:
            return []
        fallback = self.fallback
        if (results := fallback.try_memory(wanted)) is not None:
            return results
        redis = cast("Redis", self._redis)
        started = time.monotonic()
        try:
            try:
                results = self._send(redis, wanted)
            except ResponseError as error:
                if trouble_of(error) is not Trouble.CALL:
                    raise
                # A value of another kind stands there, of another version perhaps: a cache is for throwing away.
                self._send(redis, [commands.delete(key for command in wanted for key in command.keys)])
                results = self._send(redis, wanted)
        except Exception as error:  # noqa: BLE001 - what the caller could do wrong was refused when `wanted` was made
            return fallback.failed(wanted, error)
        fallback.answered(wanted, results, time.monotonic() - started)
        return results

    def _send(self, redis: Redis, wanted: Sequence[Command[Any]]) -> list[Any]:
        self.fallback.calls += 1
        if len(wanted) == 1 and len(wanted[0].calls) == 1:
            command = wanted[0]
            try:
                answer = redis.execute_command(*command.calls[0])  # type: ignore[no-untyped-call]
            except NoScriptError:
                answer = redis.execute_command(*_with_source(command))  # type: ignore[no-untyped-call]
            return [command.read([answer])]
        with redis.pipeline(transaction=any(command.atomic for command in wanted)) as pipeline:
            for call in _calls(wanted):
                pipeline.execute_command(*call)  # type: ignore[no-untyped-call]
            return _read(wanted, pipeline.execute(raise_on_error=True))

    def snapshot(self) -> RedisState:
        """The state, for people."""
        return self.fallback.snapshot()

    def close(self) -> None:
        """Give the connections back, and stop asking."""
        self.fallback.close()
        if self._redis is not None:
            self._redis.close()


class AsyncRedisWithFallback:
    """The same for event loops, of which each has connections of its own.

    Args:
        server: the url of the server, or what the clients of a server share; None: memory alone.

    Raises:
        InvalidRedisUrl: the url is none that Redis has.
    """

    def __init__(self, server: str | Fallback | None) -> None:
        self.fallback = server if isinstance(server, Fallback) else Fallback(server)
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRedis] = weakref.WeakKeyDictionary()

    async def get(self, name: str) -> bytes | None:
        """The value of a string; None if there is none."""
        return await self.run(commands.get(name))

    async def mget(self, names: Iterable[str]) -> list[bytes | None]:
        """The values of several strings, in order."""
        wanted = list(names)
        return await self.run(commands.mget(wanted)) if wanted else []

    async def set(self, name: str, value: Any, ex: int | None = None, *, nx: bool = False) -> bool:
        """Write a string; see `RedisWithFallback.set`."""
        return await self.run(commands.set_(name, value, ex, only_new=nx))

    async def setex(self, name: str, seconds: int, value: Any) -> bool:
        """Write a string that lives for so many seconds."""
        return await self.set(name, value, seconds)

    async def expire(self, name: str, seconds: int) -> bool:
        """Let a key live for so many seconds from now; whether it is there."""
        return await self.run(commands.expire(name, seconds))

    async def delete(self, *names: str) -> int:
        """Remove keys; how many there were."""
        return await self.run(commands.delete(names)) if names else 0

    async def exists(self, name: str) -> bool:
        """Whether a key is there."""
        return await self.run(commands.exists(name))

    async def ttl(self, name: str) -> int:
        """Seconds that a key has left; -2 if there is none."""
        return await self.run(commands.ttl(name))

    async def incr(self, name: str, amount: int = 1, ex: int | None = None) -> int:
        """Add to a number, which begins to live with the first addition."""
        return await self.run(commands.increment(name, amount, ex))

    async def rpush(self, name: str, *values: Any) -> int:
        """Append to a list, whose life begins again; its length."""
        return await self.run(commands.push(name, values))

    async def lrange(self, name: str, start: int, end: int) -> list[bytes]:
        """Part of a list, both ends included."""
        return await self.run(commands.range_(name, start, end))

    async def ping(self) -> bool:
        """Whether Redis answers (and not the memory)."""
        await self.run(commands.exists("cron:ping"))
        return self.fallback.url is not None and self.fallback.state.value != "open"

    def pipeline(self) -> AsyncPipeline:
        """Operations to be gathered, and executed in one round trip."""
        return AsyncPipeline(self)

    async def run(self, command: Command[T]) -> T:
        """Run one operation."""
        return cast("T", (await self.run_all((command,)))[0])

    async def run_all(self, wanted: Sequence[Command[Any]]) -> list[Any]:
        """Run several in one round trip."""
        if not wanted:
            return []
        fallback = self.fallback
        if (results := fallback.try_memory(wanted)) is not None:
            return results
        redis = self._here()
        started = time.monotonic()
        try:
            async with asyncio.timeout(fallback.call_seconds):
                try:
                    results = await self._send(redis, wanted)
                except ResponseError as error:
                    if trouble_of(error) is not Trouble.CALL:
                        raise
                    await self._send(redis, [commands.delete(key for command in wanted for key in command.keys)])
                    results = await self._send(redis, wanted)
        except Exception as error:  # noqa: BLE001 - what the caller could do wrong was refused when `wanted` was made
            return fallback.failed(wanted, error)
        fallback.answered(wanted, results, time.monotonic() - started)
        return results

    async def _send(self, redis: AsyncRedis, wanted: Sequence[Command[Any]]) -> list[Any]:
        self.fallback.calls += 1
        if len(wanted) == 1 and len(wanted[0].calls) == 1:
            command = wanted[0]
            try:
                answer = await redis.execute_command(*command.calls[0])  # type: ignore[no-untyped-call]
            except NoScriptError:
                answer = await redis.execute_command(*_with_source(command))  # type: ignore[no-untyped-call]
            return [command.read([answer])]
        async with redis.pipeline(transaction=any(command.atomic for command in wanted)) as pipeline:
            for call in _calls(wanted):
                pipeline.execute_command(*call)
            return _read(wanted, await pipeline.execute(raise_on_error=True))

    def _here(self) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        redis = self._by_loop.get(loop)
        if redis is None:
            redis = self._by_loop[loop] = self.fallback.connect_async()
        return redis

    def snapshot(self) -> RedisState:
        """The state, for people."""
        return self.fallback.snapshot()

    async def aclose(self) -> None:
        """Give this loop's connections back. The background goes on for the other clients of the server."""
        redis = self._by_loop.pop(asyncio.get_running_loop(), None)
        if redis is not None:
            await redis.aclose()


def _with_source(command: Command[Any]) -> tuple[Any, ...]:
    """The call of a script by its source, which Redis then knows."""
    assert command.script is not None  # noqa: S101 - nothing else is answered with NOSCRIPT
    return ("EVAL", command.script.source, *command.calls[0][2:])


def _calls(wanted: Sequence[Command[Any]]) -> Iterable[tuple[Any, ...]]:
    for command in wanted:
        # In a pipeline NOSCRIPT would come when the others are done already.
        yield from command.calls if command.script is None else (_with_source(command),)


def _read(wanted: Sequence[Command[Any]], answers: list[Any]) -> list[Any]:
    results, start = [], 0
    for command in wanted:
        end = start + len(command.calls)
        results.append(command.read(answers[start:end]))
        start = end
    return results
