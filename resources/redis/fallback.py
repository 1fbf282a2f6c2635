"""When Redis is away: the breaker, what the store in memory answers meanwhile, and the way back.

Three states, for all clients of one server in this process:

    closed      Redis answers.
    read-only   Redis refuses writes (memory full, a replica, no disk): reads go on there, except for keys that were
                written or deleted here meanwhile.
    open        Redis is away: the store in memory answers everything, in microseconds.

The first failed call opens the breaker: it has waited for its time-out, and no other has to. A thread in the
background then asks Redis again, first soon and then every two seconds; while it asks, the state is shown as
half-open.

The way back, so that no old value wins over a newer one: what was written or deleted here while Redis did not take
it is deleted in Redis first, and only then, in one step, is Redis read again and the store in memory emptied. If
another key was written meanwhile, that one is deleted too before the step is tried again. So a key is missing at
worst, and is read from Postgres. Rate windows are not deleted but handed over (`windows`). Other processes do the
same for what they wrote. What a process did not live to delete is for the reader to bound: see `cache`, on values
that may change.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import (
    AuthenticationError,
    ExecAbortError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from resources.redis import connections
from resources.redis.commands import Script
from resources.redis.keys import KEY_PATTERNS, RATE, RATE_DELAY
from resources.redis.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from resources.redis.commands import Command
    from resources.redis.windows import DomainWindow

logger = logging.getLogger(__name__)

# Of the system, so that forked processes do not draw the same.
_chance = random.SystemRandom()

# A cache that does not answer within a second is no cache.
SOCKET_SECONDS = 1.0
# One that takes so long for small things, so many times in a row, costs more than it saves.
SLOW_SECONDS = 0.25
SLOW_CALLS = 3
# When Redis is asked again: soon, since most outages are a restart, and then at leisure.
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
# So many changed keys are remembered; beyond, all keys are deleted on the way back.
_MAX_CHANGED = 100_000
_UNLINK_AT_ONCE = 500
# LPUSHX on a list that is not there writes nothing, and is refused wherever a write would be.
_PROBE_KEY = "cron:write-probe"
_WRITES_REFUSED = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOPERM")
_AWAY = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "BUSY", "TRYAGAIN", "MOVED", "ASK")

# What redis-py raises when Redis or the way there fails. Where a stranger answers, it may be anything else.
FAILURES = (RedisError, OSError)


class State(StrEnum):
    """What the clients do; see the module."""

    CLOSED = "closed"
    READ_ONLY = "read-only"
    OPEN = "open"


class Trouble(Enum):
    """What a failure concerns: the whole server, its writes, or this one call."""

    AWAY = "away"
    WRITES = "writes"
    CALL = "call"


def trouble_of(error: BaseException) -> Trouble:
    """What a failure concerns."""
    if isinstance(error, OutOfMemoryError | ReadOnlyError | NoPermissionError):
        return Trouble.WRITES
    if isinstance(error, ResponseError):
        said = str(error)
        if isinstance(error, ExecAbortError):
            return Trouble.WRITES if any(word in said for word in _WRITES_REFUSED) else Trouble.CALL
        if said.startswith(_WRITES_REFUSED):
            return Trouble.WRITES
        status = getattr(error, "status_code", None) or ""
        return Trouble.AWAY if said.startswith(_AWAY) or status in _AWAY else Trouble.CALL
    return Trouble.AWAY


@dataclass(frozen=True, slots=True)
class RedisState:
    """What a person wants to know.

    Attributes:
        state: `closed`, `read-only`, `open`, or `half-open` while Redis is being asked whether it is back; `unused`
            where there is none.
        since: when it became so.
        reason: what made it so; while it is closed, what the last outage was.
        outages: how often Redis was lost, or refused writes, since this process began.
        seconds_without: how long all that lasted.
        answered_here: operations that the store in memory answered instead.
        memory_keys: what that store holds.
        memory_bytes: and how much that is.
    """

    state: str
    since: datetime
    reason: str
    outages: int
    seconds_without: float
    answered_here: int
    memory_keys: int
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {**asdict(self), "since": self.since.isoformat()}


class _Changed:
    """Keys that were changed here while Redis did not take it: bounded, and then all of them."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.prefixes: set[str] = set()
        self.everything = False

    def add(self, keys: Iterable[str]) -> None:
        self.keys.update(keys)
        if len(self.keys) > _MAX_CHANGED:
            self.keys.clear()
            self.everything = True

    def touches(self, keys: Iterable[str]) -> bool:
        if self.everything:
            return True
        return any(key in self.keys or (self.prefixes and key.startswith(tuple(self.prefixes))) for key in keys)

    def merge(self, other: _Changed) -> None:
        self.prefixes |= other.prefixes
        self.everything |= other.everything
        self.add(other.keys)

    def __bool__(self) -> bool:
        return bool(self.keys or self.prefixes or self.everything)


class Fallback:
    """What the clients of one server in this process share: the breaker and the store in memory.

    Args:
        url: of the server; None: there is none, and memory is all.
        socket_seconds: how long a connection or an answer may take.
        memory: the store in memory.
        clock: seconds that only grow.

    Attributes:
        memory: the store in memory; its lock guards the state too.
        calls: how often Redis was called, by the clients and by the background.

    Raises:
        InvalidRedisUrl: the url is none that Redis has.
    """

    def __init__(
        self,
        url: str | None,
        *,
        socket_seconds: float = SOCKET_SECONDS,
        memory: MemoryStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if url is not None:
            connections.connect(url, socket_seconds).close()  # it is read, and nothing is sent yet
        self.url = url
        self.memory = MemoryStore() if memory is None else memory
        self.calls = 0
        self._socket_seconds = socket_seconds
        self._clock = clock
        self._state = State.CLOSED if url is not None else State.OPEN
        self._reason = "" if url is not None else "no Redis is configured"
        self._since = datetime.now(UTC)
        self._had = False
        self._outage_at: float | None = None
        self._lost_at: float | None = None
        self._outages = 0
        self._seconds_without = 0.0
        self._answered_here = 0
        self._slow = 0
        # Hidden keys are answered by the memory; stale ones still have to be deleted in Redis.
        self._hidden = _Changed()
        self._stale = _Changed()
        self._deletes_refused = False
        self._asking = False
        self._ended = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        _every_fallback.add(self)

    # --- what the clients ask ---------------------------------------------------------------------------------

    @property
    def call_seconds(self) -> float:
        """How long a call may take in all: to connect, to send, and to read the pieces of an answer."""
        return connections.call_seconds(self._socket_seconds)

    @property
    def state(self) -> State:
        """What the clients do at this moment."""
        return self._state

    @property
    def lost_seconds_ago(self) -> float | None:
        """Seconds since Redis was lost to this process; None where it has it, or never had it."""
        with self.memory.lock:
            return None if self._lost_at is None else self._clock() - self._lost_at

    def snapshot(self) -> RedisState:
        """What there is to know at this moment."""
        with self.memory.lock:
            without = self._seconds_without
            if self._outage_at is not None:
                without += self._clock() - self._outage_at
            shown = "half-open" if self._asking and self._state is State.OPEN else str(self._state)
            return RedisState(
                state="unused" if self.url is None else shown,
                since=self._since,
                reason=self._reason,
                outages=self._outages,
                seconds_without=round(without, 3),
                answered_here=self._answered_here,
                memory_keys=len(self.memory),
                memory_bytes=self.memory.size,
            )

    def try_memory(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        """The answers of the store in memory, if these operations are its to answer now."""
        if self.state is State.CLOSED:
            return None
        with self.memory.lock:
            if self._state is State.CLOSED:  # it may have come back since
                return None
            if self._state is State.READ_ONLY and not any(
                command.writes or self._hidden.touches(command.keys) for command in commands
            ):
                return None
            return self._run(commands)

    def failed(self, commands: Sequence[Command[Any]], error: BaseException) -> list[Any]:
        """A call failed: the breaker opens as far as it must, and the store in memory answers."""
        trouble = trouble_of(error)
        with self.memory.lock:
            if trouble is Trouble.AWAY:
                self._enter(State.OPEN, _words(error))
            elif any(command.writes for command in commands):
                self._enter(State.READ_ONLY, _words(error))
            else:
                logger.warning("Redis did not read %s: %s", ", ".join(commands[0].keys), _words(error))
            return self._run(commands)

    def lost(self, error: BaseException) -> None:
        """A call failed that is no command and that the store in memory need not answer."""
        with self.memory.lock:
            self._enter(State.OPEN if trouble_of(error) is Trouble.AWAY else State.READ_ONLY, _words(error))

    def answered(self, commands: Sequence[Command[Any]], results: Sequence[Any], seconds: float) -> None:
        """A call was answered by Redis."""
        self._had = True
        for command, result in zip(commands, results, strict=True):
            if command.answered is not None:
                command.answered(self.memory, result)
        if seconds < SLOW_SECONDS:
            self._slow = 0
        elif not any(command.large for command in commands):
            self._slow += 1
            if self._slow >= SLOW_CALLS:
                with self.memory.lock:
                    self._enter(State.OPEN, f"{self._slow} answers in a row took more than {SLOW_SECONDS} s")

    def forget_prefix(self, prefix: str) -> bool:
        """Forget the keys that begin so: here at once, in Redis on the way back. False: Redis is there to be told."""
        with self.memory.lock:
            if self._state is State.CLOSED:
                return False
            self.memory.delete_prefix(prefix)
            for changed in (self._hidden, self._stale):
                changed.prefixes.add(prefix)
            self._ask_soon()
            return True

    def close(self) -> None:
        """Stop asking in the background."""
        with self.memory.lock:
            self._ended = True
            self._wake.set()
            thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(2 * self._socket_seconds)

    def connect(self) -> Redis:
        """A client of the server, without a fallback."""
        assert self.url is not None  # noqa: S101 - without a url nobody comes here
        return connections.connect(self.url, self._socket_seconds)

    def connect_async(self) -> AsyncRedis:
        """An asynchronous client of the server, without a fallback."""
        assert self.url is not None  # noqa: S101 - as above
        return connections.connect_async(self.url, self._socket_seconds)

    # --- inside: the state ------------------------------------------------------------------------------------

    def _run(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Answer from memory; the lock is held."""
        changed = {key for command in commands if command.writes and not command.handed_over for key in command.keys}
        if changed and self.url is not None:
            self._hidden.add(changed)
            self._stale.add(changed)
            if self._state is State.READ_ONLY and not self._deletes_refused:
                self._wake.set()  # where memory is full, what is stale can be deleted at once
        self._answered_here += len(commands)
        self._ask_soon()
        return [command.in_memory(self.memory) for command in commands]

    def _enter(self, state: State, reason: str, *, asked: bool = False) -> None:
        """Change the state and say so; the lock is held.

        Args:
            state: the new one; it only gets worse, unless Redis was asked.
            reason: why.
            asked: Redis was asked in the background, and answered.
        """
        before, now = self._state, self._clock()
        worse = before is State.CLOSED or (before, state) == (State.READ_ONLY, State.OPEN)
        if state is before or not (worse or asked):
            self._ask_soon()
            return
        self._state, self._reason, self._since, self._slow = state, reason, datetime.now(UTC), 0
        if before is State.CLOSED:
            self._outages += 1
            self._outage_at = now
            # What this process never had is not lost to it: it has counted nothing there.
            self._lost_at = now if self._had else None
        if state is State.CLOSED:
            lasted = now - (self._outage_at or now)
            self._seconds_without += lasted
            self._outage_at = self._lost_at = None
            self._hidden = _Changed()
            self.memory.clear()
            logger.warning("Redis answers again after %.1f s: it is in use", lasted)
        elif state is State.OPEN:
            logger.warning("Redis is away (%s): going on with this process's memory", reason)
        else:
            logger.warning("Redis refuses writes (%s): they stay in this process's memory, reads go on", reason)
        self._ask_soon()

    # --- inside: the way back ---------------------------------------------------------------------------------

    def _ask_soon(self) -> None:
        """Have the background ask; the lock is held."""
        if self.url is None or self._ended or self._state is State.CLOSED:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask_until_back, name="redis: asking again", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending, and starts no threads any more
                self._thread = None

    def _ask_until_back(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._ended:
            # A part of the pause is left to chance, so that not all processes ask at once.
            if self._wake.wait(pause * _chance.uniform(0.75, 1.25)):
                self._wake.clear()
                time.sleep(_FIRST_PAUSE_SECONDS)
            try:
                self._asking = True
                self._ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, Redis is not back, and is asked again
                with self.memory.lock:
                    if trouble_of(error) is Trouble.AWAY:
                        self._enter(State.OPEN, _words(error))
                        self._reason = _words(error)
            finally:
                self._asking = False
            with self.memory.lock:
                if self._state is State.CLOSED:
                    # Under the lock, so that whoever opens again sees that nobody asks any more.
                    self._thread = None
                    return
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _ask(self) -> None:
        """Ask Redis once; if it answers, tell it what it missed, and go back as far as can be."""
        redis = self.connect()
        try:
            self.calls += 1
            started = self._clock()
            redis.ping()
            if self._clock() - started > SLOW_SECONDS:
                return
            # A server that was frozen still has what was sent to it before. The two questions before the first
            # deletion let it read all of that.
            refused = _refusal_of_writes(redis)
            while not self._ended and self._tell(redis, refused):
                pass
        finally:
            redis.close()

    def _tell(self, redis: Redis, refused: str | None) -> bool:
        """Tell Redis what it missed; if that is nothing, change the state.

        Returns:
            True if there may be more to tell.
        """
        with self.memory.lock:
            stale, self._stale = self._stale, _Changed()
            reports = [] if refused else self.memory.rates.reports(self._clock())
            untold = [(domain, window, dict(window.untold)) for domain, window in reports]
            if not stale and not untold:
                self._enter(State.READ_ONLY if refused else State.CLOSED, refused or self._reason, asked=True)
                return False
        try:
            _delete(redis, stale)
        except BaseException as error:
            with self.memory.lock:
                self._stale.merge(stale)
                if refused and isinstance(error, RedisError) and trouble_of(error) is Trouble.WRITES:
                    # A replica does not delete either: those keys are read from memory as long as it is one.
                    self._deletes_refused = True
                    self._enter(State.READ_ONLY, refused, asked=True)
                    return False
            raise
        self._deletes_refused = False
        for domain, window, seconds in untold:
            with self.memory.lock:
                words = hand_over_words(domain, window, seconds, self._clock())
            since = cast("bytes", redis.eval(HAND_OVER.source, 2, *words))
            with self.memory.lock:
                window.reported(seconds, since.decode())
        return True


_every_fallback: weakref.WeakSet[Fallback] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for fallback in list(_every_fallback):
        # Another thread of the parent may have held the lock, and the parent's thread that asks is not here.
        fallback.memory.lock = threading.RLock()
        fallback._wake = threading.Event()
        fallback._thread = None
        fallback._asking = False


os.register_at_fork(after_in_child=_after_fork_in_child)


def hand_over_words(domain: str, window: DomainWindow, untold: dict[int, int], now: float) -> list[Any]:
    """Keys and arguments of the script `HAND_OVER`. Times are given as ages: two clocks need not agree.

    Args:
        domain: the keys' field.
        window: what this process knows of it.
        untold: requests that Redis does not know, by second.
        now: the clock that these seconds are of.
    """
    words: list[Any] = [RATE.prefix + domain, RATE_DELAY.prefix + domain]
    words += [max(0.0, window.next_at - now), window.delay, max(0.0, window.delay_until - now)]
    words += [window.since, 2 * len(untold)]
    for seconds in (untold, window.told):
        for second, count in seconds.items():
            words += [now - second, count]
    return words


# Adds to a counter what it does not know: always what Redis was never told (the first pairs of age and number), and
# what it was told before (the other pairs) if the counter is not the one that was told.
HAND_OVER = Script("""
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local since = redis.call('HGET', KEYS[1], 'since') or ''
local known, untold = ARGV[4], tonumber(ARGV[5])
local last = #ARGV
if since == known then
    -- The same counter may be an old copy of itself, from a snapshot: it then knows less than it was told.
    local counted, told = 0, 0
    local flat = redis.call('HGETALL', KEYS[1])
    for i = 1, #flat, 2 do
        if tonumber(flat[i]) then counted = counted + flat[i + 1] end
    end
    for i = 6 + untold, #ARGV, 2 do
        if tonumber(ARGV[i]) < 55 then told = told + ARGV[i + 1] end
    end
    if counted < told then since = '' else last = 5 + untold end
end
for i = 6, last, 2 do
    redis.call('HINCRBY', KEYS[1], math.floor(now - tonumber(ARGV[i])), ARGV[i + 1])
end
if since == '' then
    since = string.format('%.6f', now)
    redis.call('HSET', KEYS[1], 'since', since)
end
local next_at = math.max(tonumber(redis.call('HGET', KEYS[1], 'next') or '0'), now + tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'next', string.format('%.6f', next_at))
redis.call('PEXPIRE', KEYS[1], 60000)
local left = math.floor(tonumber(ARGV[3]) * 1000)
if tonumber(ARGV[2]) > 0 and left > 0 then redis.call('SET', KEYS[2], ARGV[2], 'PX', left, 'NX') end
return since
""")


def _words(error: BaseException) -> str:
    if isinstance(error, AuthenticationError):
        return "the password is wrong, or missing"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else said[:199] + "…"


def _refusal_of_writes(redis: Redis) -> str | None:
    """Why a write would be refused; None if it would not."""
    try:
        redis.lpushx(_PROBE_KEY, "")
    except ResponseError as error:
        if trouble_of(error) is Trouble.AWAY:
            raise
        return _words(error)
    return None


def _delete(redis: Redis, stale: _Changed) -> None:
    keys = list(stale.keys)
    for start in range(0, len(keys), _UNLINK_AT_ONCE):
        redis.unlink(*keys[start : start + _UNLINK_AT_ONCE])
    prefixes = {p.prefix for p in KEY_PATTERNS if not p.counts} if stale.everything else stale.prefixes
    for prefix in prefixes:
        delete_prefix(redis, prefix)


def delete_prefix(redis: Redis, prefix: str) -> int:
    """Delete the keys that begin with `prefix`: a walk over all keys, a thousand at a time."""
    deleted = 0
    found: list[Any] = []
    for name in redis.scan_iter(match=glob_for(prefix), count=1_000):
        found.append(name)
        if len(found) == _UNLINK_AT_ONCE:
            deleted += redis.unlink(*found)
            found.clear()
    return deleted + (redis.unlink(*found) if found else 0)


def glob_for(prefix: str) -> str:
    """A pattern for SCAN that matches what begins with `prefix`, letter by letter."""
    return "".join("\\" + letter if letter in "*?[]\\" else letter for letter in prefix) + "*"
