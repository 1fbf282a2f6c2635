"""How often a domain is asked, by all processes together.

Two limits, decided in one atomic step in Redis, by Redis's clock:

- so many requests in any 60 seconds (`rate:{domain}`: a counter for each second of the last minute), and
- a least time between two requests: what the caller asks for, or the domain's adaptive delay if that is longer
  (`rate:delay:{domain}`, which a 429, a 503 or a slow answer raises, and good answers lower).

Callers may ask for different limits: the strictest that anybody has asked for within the last minute holds for all.
Who asks for none and knows of none need not ask for each request: `look` says what is in force, and counts what was
sent meanwhile.

Without Redis a process knows only of its own requests. It then has an equal share: the limit is divided, and the time
between two requests multiplied, by the number of processes that may be at work (`shares`). In the minute after Redis
was lost it has none, because the others may have used up the limit in the seconds before. A Redis that comes back
empty is told by each process, with its next request, what that process sent in the last minute. So the limit becomes
stricter when Redis is away, and never laxer, as long as no more processes than `shares` are at one domain.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resources.redis.commands import Command, get
from resources.redis.fallback import HAND_OVER, hand_over_words
from resources.redis.keys import RATE, RATE_DELAY, Key
from resources.redis.rate_scripts import ACQUIRE, LOOK, LOWER, RAISE, SLOW_DOWN
from resources.redis.windows import WINDOW_SECONDS, Decision, decide

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.redis.client import AsyncRedisWithFallback, RedisWithFallback
    from resources.redis.fallback import Fallback
    from resources.redis.memory import MemoryStore

# The adaptive delay, in seconds: where it begins, and where it stops growing (a Retry-After is honoured as far).
FIRST_DELAY = 0.5
MAX_DELAY = 60.0
# Below this it is none.
_LEAST_DELAY = 0.05
_LOWER_BY = 0.9
# Own requests newer than this must be known to Redis; older ones it may have dropped, by its own clock, already.
_SURELY_COUNTED_SECONDS = WINDOW_SECONDS - 5
# Without Redis nobody is told to wait longer before asking again: it may be back.
_ASK_AGAIN_SECONDS = 5.0
# While another thread tells Redis what it has lost.
_MEANWHILE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the script answered.

    Attributes:
        decision: None if Redis has lost the counter in which this process was counted.
        since: when the counter began.
    """

    decision: Decision | None
    since: str = ""


@dataclass(frozen=True, slots=True)
class _Order:
    """One question to a limiter, checked."""

    domain: str
    limit: int
    spacing: float

    @property
    def keys(self) -> tuple[Key, Key]:
        return RATE.key(self.domain), RATE_DELAY.key(self.domain)


def domain_field(domain: str) -> str:
    """A domain (host, or host and port) as the field of its keys.

    Raises:
        ValueError: it is no domain.
    """
    name = domain.strip().lower()
    if not name or len(name) > 300 or not name.isprintable() or " " in name or "/" in name:
        msg = f"{domain[:80]!r} is no domain to limit: give a host, or host:port"
        raise ValueError(msg)
    # A host with this name would have the keys of another pattern.
    return name.replace("delay:", "delay%3a", 1) if name.startswith("delay:") else name


def _order(domain: str, limit_per_minute: int | None, min_delay: float) -> _Order:
    limit = limit_per_minute or 0
    if limit < 0:
        msg = f"the limit of {domain} is {limit_per_minute} requests a minute: it must be 1 or more, or None for none"
        raise ValueError(msg)
    if not 0 <= min_delay <= MAX_DELAY:
        msg = f"the least time between two requests to {domain} is {min_delay} s: it must be 0 to {MAX_DELAY:.0f}"
        raise ValueError(msg)
    return _Order(domain_field(domain), limit, float(min_delay))


def _sent(order: _Order, sent: int) -> int:
    if not 0 <= sent < 2**31:
        msg = f"{sent} requests to {order.domain} cannot have been sent"
        raise ValueError(msg)
    return sent


class _Rules:
    """What both limiters share: the operations, and what they are without Redis."""

    def __init__(self, fallback: Fallback, shares: int, clock: Callable[[], float]) -> None:
        if shares < 1:
            msg = f"a limit cannot be shared by {shares} processes: give 1 or more"
            raise ValueError(msg)
        self._fallback = fallback
        self._shares = shares
        self._clock = clock

    def _acquire(self, order: _Order) -> Command[_Answer]:
        own, since = self._counted_lately(order.domain)
        call = ("EVALSHA", ACQUIRE.sha, 2, *order.keys, order.limit, order.spacing, own, since)
        return Command(
            (call,),
            order.keys,
            lambda memory: _Answer(self._decide_here(memory, order)),
            lambda answers: _answer(answers[0]),
            writes=True,
            script=ACQUIRE,
            answered=lambda memory, answer: self._note(memory, order, answer),
            handed_over=True,
        )

    def _look(self, order: _Order, sent: int) -> Command[_Answer]:
        own, since = self._counted_lately(order.domain)
        call = ("EVALSHA", LOOK.sha, 2, *order.keys, order.limit, order.spacing, own, since, sent)
        return Command(
            (call,),
            order.keys,
            lambda memory: _Answer(self._look_here(memory, order, sent)),
            lambda answers: _answer(answers[0]),
            writes=True,
            script=LOOK,
            answered=lambda memory, answer: self._note(memory, order, answer, sent),
            handed_over=True,
        )

    def _counted_lately(self, domain: str) -> tuple[int, str]:
        with self._fallback.memory.lock:
            now = self._clock()
            window = self._fallback.memory.rates.window(domain, now)
            if window is None:
                return 0, ""
            return sum(n for s, n in window.told.items() if s > now - _SURELY_COUNTED_SECONDS), window.since

    def _tell_again(self, domain: str) -> Command[str] | None:
        """Tell a Redis that has lost its counter what this process was counted; None if another thread does."""
        with self._fallback.memory.lock:
            now = self._clock()
            window = self._fallback.memory.rates.window(domain, now)
            if window is None or window.telling:
                return None
            window.forget(now)
            window.telling = True
            words = hand_over_words(domain, window, {}, now)

        def told(memory: MemoryStore, since: str) -> None:
            with memory.lock:
                window.since = since

        return Command(
            (("EVALSHA", HAND_OVER.sha, 2, *words),),
            (RATE.key(domain), RATE_DELAY.key(domain)),
            lambda memory: "",
            lambda answers: str(answers[0].decode()),
            writes=True,
            script=HAND_OVER,
            answered=told,
            handed_over=True,
        )

    def _told(self, domain: str) -> None:
        with self._fallback.memory.lock:
            window = self._fallback.memory.rates.window(domain, self._clock())
            if window is not None:
                window.telling = False

    def _decide_here(self, memory: MemoryStore, order: _Order) -> Decision:
        now = self._clock()
        window = memory.rates.window(order.domain, now)
        if window is None:
            return Decision(False, _ASK_AGAIN_SECONDS, 0)
        window.forget(now)
        limit_of_all, spacing_of_all = window.strictest(now, order.limit, order.spacing)
        limit, spacing = limit_of_all, max(spacing_of_all, window.delay) * self._shares
        lost = self._fallback.lost_seconds_ago
        if limit:
            if lost is not None and lost < WINDOW_SECONDS + 1:
                wait = min(WINDOW_SECONDS + 1 - lost, _ASK_AGAIN_SECONDS)
                return Decision(False, wait, window.used(), window.delay, limit_of_all, spacing_of_all)
            # Of a limit that is smaller than the number of shares, one request in so much longer a time.
            spacing = max(spacing, WINDOW_SECONDS * self._shares / limit if limit < self._shares else 0.0)
            limit = max(1, limit // self._shares)
        decision = decide(window, now, limit, spacing)
        wait = min(decision.wait_seconds, _ASK_AGAIN_SECONDS)
        return Decision(
            decision.permitted, wait, decision.used, decision.delay, limit_of_all, spacing_of_all * self._shares
        )

    def _look_here(self, memory: MemoryStore, order: _Order, sent: int) -> Decision:
        now = self._clock()
        window = memory.rates.window(order.domain, now)
        if window is None:
            return Decision(False, _ASK_AGAIN_SECONDS, 0)
        window.forget(now)
        limit, spacing = window.strictest(now, order.limit, order.spacing)
        if sent:
            window.untold[int(now)] = window.untold.get(int(now), 0) + sent
        wait = min(max(0.0, window.next_at - now), MAX_DELAY)
        return Decision(True, wait, window.used(), window.delay, limit, spacing * self._shares)

    def _note(self, memory: MemoryStore, order: _Order, answer: _Answer, sent: int | None = None) -> None:
        decision = answer.decision
        if decision is None:
            return
        with memory.lock:
            now = self._clock()
            window = memory.rates.window(order.domain, now)
            if window is None:
                return
            window.forget(now)
            window.delay, window.delay_until = decision.delay, now + RATE_DELAY.ttl_seconds
            window.strictest(now, decision.limit, decision.spacing)
            counted = sent if sent is not None else int(decision.permitted)
            if counted:
                window.since = answer.since
                window.told[int(now)] = window.told.get(int(now), 0) + counted
            if sent is not None:
                window.next_at = max(window.next_at, now + decision.wait_seconds)
            elif decision.permitted:
                window.next_at = now + max(decision.spacing, decision.delay)

    def _raise(self, domain: str, at_least: float, retry_after: float) -> Command[float]:
        if at_least < 0 or retry_after < 0:
            msg = f"the delay of {domain} cannot be raised to {min(at_least, retry_after)} s: give 0 or more"
            raise ValueError(msg)
        keys = _order(domain, None, 0).keys
        field = domain_field(domain)

        def here(memory: MemoryStore) -> float:
            now = self._clock()
            window = memory.rates.window(field, now)
            if window is None:
                return MAX_DELAY
            window.forget(now)
            if now - window.raised_at >= max(window.delay, 1.0):
                window.delay = max(window.delay * 2, FIRST_DELAY)
                window.raised_at = now
            window.delay = min(max(window.delay, at_least), MAX_DELAY)
            window.delay_until = now + RATE_DELAY.ttl_seconds
            window.next_at = max(window.next_at, now + min(max(window.delay, retry_after), MAX_DELAY))
            return window.delay

        return Command(
            (("EVALSHA", RAISE.sha, 2, *keys, at_least, retry_after, FIRST_DELAY, MAX_DELAY),),
            keys,
            here,
            lambda answers: float(answers[0]),
            writes=True,
            script=RAISE,
            answered=lambda memory, delay: self._note_delay(memory, field, delay, retry_after),
            handed_over=True,
        )

    def _slow_down(self, domain: str, at_least: float) -> Command[float]:
        if at_least < 0:
            msg = f"the delay of {domain} cannot be raised to {at_least} s: give 0 or more"
            raise ValueError(msg)
        keys = _order(domain, None, 0).keys
        field = domain_field(domain)

        def here(memory: MemoryStore) -> float:
            now = self._clock()
            window = memory.rates.window(field, now)
            if window is None:
                return MAX_DELAY
            window.forget(now)
            window.delay = max(window.delay, min(at_least, MAX_DELAY))
            window.delay_until = now + RATE_DELAY.ttl_seconds
            return window.delay

        return Command(
            (("EVALSHA", SLOW_DOWN.sha, 2, *keys, at_least, MAX_DELAY),),
            keys,
            here,
            lambda answers: float(answers[0]),
            writes=True,
            script=SLOW_DOWN,
            answered=lambda memory, delay: self._note_delay(memory, field, delay, 0.0),
            handed_over=True,
        )

    def _lower(self, domain: str) -> Command[float]:
        keys = _order(domain, None, 0).keys
        field = domain_field(domain)

        def here(memory: MemoryStore) -> float:
            now = self._clock()
            window = memory.rates.window(field, now)
            if window is None:
                return MAX_DELAY
            window.forget(now)
            lowered = window.delay * _LOWER_BY
            window.delay = lowered if lowered >= _LEAST_DELAY else 0.0
            window.delay_until = now + RATE_DELAY.ttl_seconds
            return window.delay

        return Command(
            (("EVALSHA", LOWER.sha, 2, *keys, _LOWER_BY, _LEAST_DELAY),),
            keys,
            here,
            lambda answers: float(answers[0]),
            writes=True,
            script=LOWER,
            answered=lambda memory, delay: self._note_delay(memory, field, delay, 0.0),
            handed_over=True,
        )

    def _note_delay(self, memory: MemoryStore, field: str, delay: float, pause: float) -> None:
        with memory.lock:
            now = self._clock()
            window = memory.rates.window(field, now)
            if window is not None:
                window.delay, window.delay_until = delay, now + RATE_DELAY.ttl_seconds
                if pause:
                    window.next_at = max(window.next_at, now + min(max(delay, pause), MAX_DELAY))

    def _delay(self, domain: str) -> Command[float]:
        field = domain_field(domain)
        question = get(RATE_DELAY.key(field))

        def here(memory: MemoryStore) -> float:
            window = memory.rates.window(field, self._clock())
            if window is None:
                return MAX_DELAY
            window.forget(self._clock())
            return window.delay

        return Command(question.calls, question.keys, here, lambda answers: float(answers[0] or 0))


def _answer(words: list[Any]) -> _Answer:
    permitted, wait, used, delay, since, limit, spacing = words
    if permitted < 0:
        return _Answer(None)
    decision = Decision(bool(permitted), float(wait), int(used), float(delay), int(limit), float(spacing))
    return _Answer(decision, since.decode())


class RateLimiter(_Rules):
    """The limits of domains. Thread-safe; any number of processes share them through Redis.

    Args:
        client: Redis, or what stands in for it.
        shares: how many processes may be at one domain; without Redis each has so large a part of its limit.
        clock: seconds that only grow, for what is decided without Redis.

    Raises:
        ValueError: `shares` is less than 1.
    """

    def __init__(
        self, client: RedisWithFallback, *, shares: int = 4, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(client.fallback, shares, clock)
        self._client = client

    def acquire(self, domain: str, limit_per_minute: int | None = None, min_delay: float = 0.0) -> Decision:
        """Ask whether one request may be sent now; it is counted if so. Never waits.

        Args:
            domain: host, or host:port.
            limit_per_minute: requests in any 60 s; None: no such limit.
            min_delay: least seconds since the request before, 0 to 60.

        Returns:
            The decision: if not permitted, ask again in `wait_seconds`.

        Raises:
            ValueError: an argument is out of range.
        """
        order = _order(domain, limit_per_minute, min_delay)
        answer = self._client.run(self._acquire(order))
        if answer.decision is None and (command := self._tell_again(order.domain)) is not None:
            try:
                self._client.run(command)
            finally:
                self._told(order.domain)
            answer = self._client.run(self._acquire(order))
        return answer.decision or Decision(False, _MEANWHILE_SECONDS, 0)

    def look(
        self, domain: str, sent: int = 0, limit_per_minute: int | None = None, min_delay: float = 0.0
    ) -> Decision:
        """What is in force for a domain, for who asks for little and need not ask for each request.

        Args:
            domain: host, or host:port.
            sent: requests sent without permission since it was last looked: they are counted.
            limit_per_minute: as of `acquire`, where the caller has one.
            min_delay: as of `acquire`.

        Returns:
            Permitted, with the delay, limit and spacing in force; `wait_seconds` until anything may be sent.

        Raises:
            ValueError: an argument is out of range.
        """
        order = _order(domain, limit_per_minute, min_delay)
        answer = self._client.run(self._look(order, _sent(order, sent)))
        if answer.decision is None and (command := self._tell_again(order.domain)) is not None:
            try:
                self._client.run(command)
            finally:
                self._told(order.domain)
            answer = self._client.run(self._look(order, sent))
        return answer.decision or Decision(False, _MEANWHILE_SECONDS, 0)

    def slow_down(self, domain: str, at_least: float) -> float:
        """The domain answers slowly: its delay shall be so many seconds at least. Returns the delay."""
        return self._client.run(self._slow_down(domain, at_least))

    def raise_delay(self, domain: str, at_least: float = 0.0, retry_after: float = 0.0) -> float:
        """The domain is overloaded: double its delay, once for all requests that were under way together.

        Args:
            domain: host, or host:port.
            at_least: seconds below which the delay shall not be.
            retry_after: seconds for which nothing shall be sent, as a Retry-After header says; 60 at most.

        Returns:
            The delay, in seconds.

        Raises:
            ValueError: a time is negative.
        """
        return self._client.run(self._raise(domain, at_least, retry_after))

    def lower_delay(self, domain: str) -> float:
        """The domain answered well: a tenth less delay. Returns the delay, in seconds."""
        return self._client.run(self._lower(domain))

    def delay(self, domain: str) -> float:
        """The domain's adaptive delay, in seconds."""
        return self._client.run(self._delay(domain))


class AsyncRateLimiter(_Rules):
    """The same for event loops; see `RateLimiter`.

    Args:
        client: Redis, or what stands in for it.
        shares: how many processes may be at one domain; without Redis each has so large a part of its limit.
        clock: seconds that only grow, for what is decided without Redis.

    Raises:
        ValueError: `shares` is less than 1.
    """

    def __init__(
        self, client: AsyncRedisWithFallback, *, shares: int = 4, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(client.fallback, shares, clock)
        self._client = client

    async def acquire(self, domain: str, limit_per_minute: int | None = None, min_delay: float = 0.0) -> Decision:
        """Ask whether one request may be sent now; see `RateLimiter.acquire`."""
        order = _order(domain, limit_per_minute, min_delay)
        answer = await self._client.run(self._acquire(order))
        if answer.decision is None and (command := self._tell_again(order.domain)) is not None:
            try:
                await self._client.run(command)
            finally:
                self._told(order.domain)
            answer = await self._client.run(self._acquire(order))
        return answer.decision or Decision(False, _MEANWHILE_SECONDS, 0)

    async def look(
        self, domain: str, sent: int = 0, limit_per_minute: int | None = None, min_delay: float = 0.0
    ) -> Decision:
        """What is in force for a domain; see `RateLimiter.look`."""
        order = _order(domain, limit_per_minute, min_delay)
        answer = await self._client.run(self._look(order, _sent(order, sent)))
        if answer.decision is None and (command := self._tell_again(order.domain)) is not None:
            try:
                await self._client.run(command)
            finally:
                self._told(order.domain)
            answer = await self._client.run(self._look(order, sent))
        return answer.decision or Decision(False, _MEANWHILE_SECONDS, 0)

    async def slow_down(self, domain: str, at_least: float) -> float:
        """The domain answers slowly; see `RateLimiter.slow_down`."""
        return await self._client.run(self._slow_down(domain, at_least))

    async def raise_delay(self, domain: str, at_least: float = 0.0, retry_after: float = 0.0) -> float:
        """The domain is overloaded; see `RateLimiter.raise_delay`."""
        return await self._client.run(self._raise(domain, at_least, retry_after))

    async def lower_delay(self, domain: str) -> float:
        """The domain answered well; see `RateLimiter.lower_delay`."""
        return await self._client.run(self._lower(domain))

    async def delay(self, domain: str) -> float:
        """The domain's adaptive delay, in seconds."""
        return await self._client.run(self._delay(domain))

    async def aclose(self) -> None:
        """Give this loop's connections back."""
        await self._client.aclose()
