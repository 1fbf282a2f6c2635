"""How often a site is asked: by its robots.txt, the customer's limit and its own answers, together with all crawls.

Each request asks here before it is sent: pages, their redirects, robots.txt, sitemaps. What is in force for a domain
stands in Redis (`resources.redis.rate_limit`) and holds for all runs and workers.

A domain for which nothing is in force is free: its requests ask nobody, and once a second one call tells Redis how
many were sent and hears whether somebody else was told to slow down, or has a limit. So politeness costs nothing
where nothing is asked, and what one worker learns reaches the others within about a second. From then on, and from
the first request where robots.txt or the customer asks for something, each request needs a permission.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resources.crawler.latency import Latency
from resources.crawler.robots import RobotsPolicy, fetch_policy
from resources.crawler.tunnel import ProxyUnusable
from resources.crawler.urls import origin_of, site_of
from resources.redis.client import AsyncRedisWithFallback
from resources.redis.rate_limit import MAX_DELAY, AsyncRateLimiter
from resources.settings import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.crawler.client import Fetched, GuardedHttpClient
    from resources.crawler.plan import CrawlPlan, CrawlProgress
    from resources.crawler.request_manager import Task
    from resources.redis.client import RedisWithFallback
    from resources.redis.windows import Decision

logger = logging.getLogger(__name__)

MAX_TRIES: Final = 3
"""Of one url: the first and two more."""
BACKOFF_SECONDS: Final = 0.5
"""Before the second try, and twice as long before the third, give or take a half."""
LOOK_SECONDS: Final = 1.0
"""How old the knowledge about a free domain may become while it is asked."""
PATIENCE_SECONDS: Final = 1.0
"""A handler waits so long for a permission; for a longer wait the url is put back and another domain's is taken."""
FAILURES_IN_A_ROW: Final = 20
"""Connections that failed and 5xx answers, with nothing good between them, after which a domain is asked slowly."""
FAILING_DELAY: Final = 10.0
"""Seconds between two requests to a domain that keeps failing, at most: it may come back."""
ROBOTS_SECONDS: Final = 24 * 3600.0
"""RFC 9309, 2.4: a robots.txt is not used for longer than a day."""

# A loop that was so busy in the last quarter of a second, or so late, measures itself and not the site.
_BUSY_SHARE: Final = 0.6
_LATE_SECONDS: Final = 0.05

_OVERLOADED: Final = (429, 503)
_UNREACHABLE: Final = frozenset(
    ("dns", "connection_refused", "unreachable", "connection_reset", "timeout", "tls", "protocol")
)


class DomainPace:
    """What is in force for one domain, as far as this crawl knows.

    Attributes:
        domain: host, with its port where that is not the scheme's own.
        crawl_delay: seconds between two requests, of robots.txt; 0 for none.
        free: nothing is in force: requests ask nobody.
        delay: the adaptive delay in force, in seconds.
        limit: requests in any 60 s, of this customer or a stricter one; 0 for none.
        spacing: seconds between two requests in force, the adaptive delay included.
    """

    __slots__ = (
        "_limit", "_next_at", "crawl_delay", "delay", "domain", "failures", "free", "hold_until", "known", "latency",
        "limit", "lock", "sent", "spacing",
    )  # fmt: skip

    def __init__(self, domain: str, limit: int) -> None:
        self.domain = domain
        self.crawl_delay = 0.0
        self.free = False
        self.known = False
        self.delay = 0.0
        self.limit = self._limit = limit
        self.spacing = 0.0
        self.sent = 0
        self.failures = 0
        self.hold_until = 0.0
        self.latency = Latency()
        self.lock = asyncio.Lock()
        self._next_at = 0.0

    def wait(self) -> float:
        """Seconds until it is worth asking for the next permission; an estimate, which grants nothing."""
        return 0.0 if self.free else max(0.0, self._next_at - time.monotonic())

    def handed_out(self) -> None:
        """A url is about to ask: the next one need not ask before its turn."""
        if not self.free and self.spacing:
            self._next_at = max(self._next_at, time.monotonic()) + self.spacing

    def take_back(self) -> None:
        """The url that was handed out needs no request."""
        if not self.free:
            self._next_at -= self.spacing

    def hold(self, seconds: float) -> None:
        """Send nothing for so long."""
        self.free = False
        self.hold_until = max(self.hold_until, time.monotonic() + min(seconds, MAX_DELAY))
        self._next_at = max(self._next_at, self.hold_until)

    def learn(self, decision: Decision, *, looked: bool = False) -> None:
        """Take what the limiter says is in force."""
        now = time.monotonic()
        self.known = True
        self.delay, self.limit = decision.delay, decision.limit
        self.spacing = max(decision.spacing, decision.delay, self.crawl_delay)
        if decision.wait_seconds:
            self._next_at = now + decision.wait_seconds
            if looked:
                self.hold(decision.wait_seconds)
        elif not looked:
            self._next_at = now + self.spacing
        self.free = not (self.spacing or self.limit or self._limit) and self.hold_until <= now

    @property
    def own_limit(self) -> int:
        """Requests in any 60 s, of this customer; 0 for none."""
        return self._limit


@dataclass(slots=True)
class _ReadRobots:
    policy: RobotsPolicy
    until: float


class Politeness:
    """Asks before each request, and learns from each answer. Of one crawl; used in its event loop.

    Args:
        plan: what the customer asks for.
        progress: told of the time that is waited, and of the delay in force.
        limiter: shared by all crawls; None: this crawl is alone.
    """

    def __init__(self, plan: CrawlPlan, progress: CrawlProgress, limiter: AsyncRateLimiter | None = None) -> None:
        self._plan = plan
        self._progress = progress
        self._limiter = limiter or AsyncRateLimiter(AsyncRedisWithFallback(None), shares=1)
        self._paces: dict[str, DomainPace] = {}
        self._robots: dict[str, _ReadRobots] = {}
        self._robots_locks: dict[str, asyncio.Lock] = {}
        self._stopped = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._busy = False
        self._ticked_at = self._ticked_cpu = 0.0

    def start(self) -> None:
        """Begin to look after free domains, once a second."""
        self._watch = asyncio.create_task(self._look_around(), name="politeness")

    def stop(self) -> None:
        """Whoever waits for a permission need not any more: none is given."""
        self._stopped.set()

    async def close(self) -> None:
        """Tell what was sent since the last look, so that the next crawl's limit counts it."""
        self.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        for pace in self._paces.values():
            if pace.sent:
                await self._look(pace)
        await self._limiter.aclose()

    # --- before a request -----------------------------------------------------------------------------------

    def pace(self, domain: str) -> DomainPace:
        """What is known of a domain."""
        pace = self._paces.get(domain)
        if pace is None:
            pace = self._paces[domain] = DomainPace(domain, self._plan.requests_per_minute)
        return pace

    def at_once(self, url: str) -> bool:
        """True if a request to a free domain may be sent, and is counted; False: ask for a `permission`."""
        pace = self._paces.get(site_of(url))
        if pace is None or not pace.free:
            return False
        pace.sent += 1
        return True

    async def permission(self, url: str, patience: float = float("inf")) -> float:
        """Wait until one request may be sent.

        Args:
            url: where to.
            patience: seconds that are waited at most.

        Returns:
            0.0: it may be sent now, and is counted. Else the seconds after which it is worth asking again; after a
            stop there is no permission.
        """
        pace = self.pace(site_of(url))
        started = time.monotonic()
        async with pace.lock:
            while True:
                wait = await self._ask(pace)
                waited = time.monotonic() - started
                if self._stopped.is_set():
                    return max(wait, PATIENCE_SECONDS)
                if not wait or waited + wait > patience:
                    self._progress.phases["politeness"] += waited
                    return wait
                await self._sleep(wait)

    def not_asked(self, url: str) -> None:
        """A url that was handed out is not fetched: the next one need not wait for it."""
        self.pace(site_of(url)).take_back()

    async def _ask(self, pace: DomainPace) -> float:
        """Ask for one permission; 0.0, or the seconds to wait."""
        if not pace.known:
            await self._look(pace)
        if pace.free:
            pace.sent += 1
            return 0.0
        held = pace.hold_until - time.monotonic()
        if held > 0:
            return held
        decision = await self._limiter.acquire(pace.domain, pace.own_limit or None, pace.crawl_delay)
        pace.learn(decision)
        return 0.0 if decision.permitted else max(decision.wait_seconds, 0.001)

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return

    # --- robots.txt -----------------------------------------------------------------------------------------

    async def policy(self, url: str, client: GuardedHttpClient) -> RobotsPolicy:
        """The origin's robots.txt: read once in a run, and again after a day. What it says of time is in force.

        Raises:
            ProxyUnusable: the site's proxy lets nothing through; that says nothing of the site.
        """
        origin = origin_of(url)
        read = self._robots.get(origin)
        if read is not None and time.monotonic() < read.until:
            return read.policy
        if not self._plan.respect_robots:
            return RobotsPolicy.allow_all()
        async with self._robots_locks.setdefault(origin, asyncio.Lock()):
            read = self._robots.get(origin)
            if read is not None and time.monotonic() < read.until:
                return read.policy
            policy = await self._read_robots(origin, client)
            if self._stopped.is_set():
                return policy  # it may have been cut off: nothing is to be concluded from it
            if policy.disallows_all and read is not None:
                policy = read.policy  # RFC 9309, 2.4: while it cannot be read, the last one goes on
            self._robots[origin] = _ReadRobots(policy, time.monotonic() + ROBOTS_SECONDS)
            if policy.crawl_delay:
                pace = self.pace(site_of(origin))
                pace.crawl_delay = max(pace.crawl_delay, policy.crawl_delay)
                # The request for robots.txt was the first: what follows waits from now on, and the others hear of it.
                await self._look(pace)
                pace.hold(policy.crawl_delay)
            return policy

    def known_policy(self, url: str) -> RobotsPolicy | None:
        """The robots.txt of a url's origin, if it was read."""
        read = self._robots.get(origin_of(url))
        return read.policy if read is not None else None

    async def _read_robots(self, origin: str, client: GuardedHttpClient) -> RobotsPolicy:
        """Read a robots.txt, in as many tries as a page has: a crawl shall not end for one lost connection."""
        for tries in range(1, MAX_TRIES + 1):
            policy, fetched = await fetch_policy(client, origin)
            if self._stopped.is_set():
                break
            await self.answered(fetched)
            if not fetched.retryable or tries == MAX_TRIES:
                break
            await self._sleep(backoff(tries, fetched.retry_after))
        if not self._stopped.is_set() and is_proxys_fault(client, fetched, self._plan):
            raise ProxyUnusable(fetched.error_detail)
        return policy

    # --- after an answer ------------------------------------------------------------------------------------

    async def answered(self, fetched: Fetched) -> None:
        """Learn from an answer, or from its lack, how the domain is doing."""
        pace = self.pace(site_of(fetched.final_url))
        status = fetched.status or 0
        if status in _OVERLOADED:
            # The site asks everybody to wait, not this url alone.
            pace.hold(max(fetched.retry_after or 0.0, 0.0))
            pace.failures += status == 503
            pace.delay = await self._limiter.raise_delay(pace.domain, retry_after=fetched.retry_after or 0.0)
            pace.hold(max(pace.delay, fetched.retry_after or 0.0))
            pace.spacing = max(pace.spacing, pace.delay)
            return
        if status >= 500 or (fetched.error in _UNREACHABLE and not status):
            pace.failures += 1
            if pace.failures >= FAILURES_IN_A_ROW:
                steps = (pace.failures - FAILURES_IN_A_ROW) // 5
                await self._slow_down(pace, min(0.5 * 2 ** min(steps, 10), FAILING_DELAY))
            return
        pace.failures = 0
        if not 200 <= status < 400:
            return
        slow = 0.0
        if not self._busy and not fetched.hops:
            slow = pace.latency.delay_after(fetched.elapsed_ms / 1000, self._plan.concurrency)
        if slow:
            await self._slow_down(pace, slow)
        elif pace.delay:
            pace.delay = await self._limiter.lower_delay(pace.domain)

    async def _slow_down(self, pace: DomainPace, delay: float) -> None:
        if pace.delay >= delay:
            return
        pace.delay = await self._limiter.slow_down(pace.domain, delay)
        pace.spacing = max(pace.spacing, pace.delay)
        pace.free = False

    # --- meanwhile ------------------------------------------------------------------------------------------

    async def _look(self, pace: DomainPace) -> None:
        sent, pace.sent = pace.sent, 0
        pace.learn(await self._limiter.look(pace.domain, sent, pace.own_limit or None, pace.crawl_delay), looked=True)

    async def _look_around(self) -> None:
        next_look = time.monotonic() + LOOK_SECONDS
        while True:
            self._notice_own_load()
            await asyncio.sleep(0.25)
            if time.monotonic() < next_look:
                continue
            next_look = time.monotonic() + LOOK_SECONDS
            for pace in list(self._paces.values()):
                if not (pace.free and pace.sent):
                    continue
                try:
                    await self._look(pace)
                except Exception:
                    logger.exception("the politeness of %s could not be looked at", pace.domain)
            self._progress.delay = max((pace.spacing for pace in self._paces.values()), default=0.0)

    def _notice_own_load(self) -> None:
        """Answers that wait for this process's own loop say nothing of the site."""
        now, cpu = time.monotonic(), time.thread_time()
        passed, used = now - self._ticked_at, cpu - self._ticked_cpu
        if self._ticked_at:
            self._busy = used > _BUSY_SHARE * passed or passed - 0.25 > _LATE_SECONDS
        self._ticked_at, self._ticked_cpu = now, cpu

    def in_force(self) -> dict[str, dict[str, float]]:
        """By domain, what is in force: `crawl_delay`, `delay`, `spacing` in seconds, `limit` in requests a minute."""
        found = {}
        for domain, pace in self._paces.items():
            facts = {
                "crawl_delay": round(pace.crawl_delay, 3),
                "delay": round(pace.delay, 3),
                "spacing": round(pace.spacing, 3),
                "requests_per_minute": float(pace.limit),
            }
            if any(facts.values()):
                found[domain] = {name: value for name, value in facts.items() if value}
        return found


def is_proxys_fault(client: GuardedHttpClient, fetched: Fetched, plan: CrawlPlan) -> bool:
    """Say whether an answer is missing because of the proxy that the crawl goes through.

    That the proxy cannot reach a site may be the site's fault: of the job's own site it is held to be the proxy's,
    because nothing could be concluded from it.
    """
    if client.proxy is None:
        return False
    if fetched.error == "unreachable":
        return site_of(fetched.final_url) == site_of(plan.urls[0])
    return fetched.error in ("proxy_refused", "proxy_unreachable")


class ReadyUrls:
    """Urls that can be fetched when their domain may be asked: first come, first served, the domains in turn.

    Args:
        politeness: says which domain may be asked.
        phases: seconds by name; `politeness` is added to while all that is ready is held back.

    Attributes:
        counted: how many of them have taken a page of the budget already: those are fetched even when it is spent.
    """

    def __init__(self, politeness: Politeness, phases: dict[str, float]) -> None:
        self._politeness = politeness
        self._phases = phases
        self._by_domain: dict[str, deque[Task]] = {}
        self._count = 0
        self.counted = 0
        self._held_at: float | None = None

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def append(self, task: Task) -> None:
        """Add one at the end."""
        self._queue(task).append(task)
        self._count += 1
        self.counted += task.counted

    def appendleft(self, task: Task) -> None:
        """Add one that is due already."""
        self._queue(task).appendleft(task)
        self._count += 1
        self.counted += task.counted

    def _queue(self, task: Task) -> deque[Task]:
        domain = site_of(task.url)
        queue = self._by_domain.get(domain)
        if queue is None:
            queue = self._by_domain[domain] = deque()
        return queue

    def has(self, wanted: Callable[[Task], bool]) -> bool:
        """True if one can be taken now: its domain may be asked, and it is wanted."""
        return self._domain(wanted) is not None

    def pop(self, wanted: Callable[[Task], bool]) -> Task | None:
        """Take the next one that can be taken now; None if there is none."""
        domain = self._domain(wanted)
        if domain is None:
            return None
        queue = self._by_domain[domain]
        task = queue.popleft()
        self._count -= 1
        self.counted -= task.counted
        if not queue:
            del self._by_domain[domain]
        elif len(self._by_domain) > 1:
            # To the end: the next one is another domain's turn.
            self._by_domain[domain] = self._by_domain.pop(domain)
        self._politeness.pace(domain).handed_out()
        return task

    def give_up(self, keep: int) -> list[Task]:
        """Take off what exceeds `keep`, from the ends of the longest queues, and nothing that was tried before."""
        given: list[Task] = []
        while self._count > keep:
            domain = max(self._by_domain, key=lambda name: len(self._by_domain[name]))
            queue = self._by_domain[domain]
            if queue[-1].tries:
                break
            given.append(queue.pop())
            self._count -= 1
            if not queue:
                del self._by_domain[domain]
        return given

    def wait(self) -> float:
        """Seconds until the first of the domains may be asked; 0.0 if there is none."""
        pace = self._politeness.pace
        return min([pace(domain).wait() for domain in self._by_domain], default=0.0)

    def _domain(self, wanted: Callable[[Task], bool]) -> str | None:
        pace = self._politeness.pace
        held = False
        for domain, queue in self._by_domain.items():
            if wanted(queue[0]):
                if pace(domain).wait() <= 0:
                    self._account(held=False)
                    return domain
                held = True
        self._account(held=held)
        return None

    def _account(self, *, held: bool) -> None:
        """Count the time in which there was something to fetch, and nothing might be fetched."""
        if self._held_at is not None:
            now = time.monotonic()
            self._phases["politeness"] += now - self._held_at
            self._held_at = now if held else None
        elif held:
            self._held_at = time.monotonic()


def backoff(tries: int, retry_after: float | None) -> float:
    """Seconds before the next try of a url: longer each time, with jitter, and as long as the site asks for.

    Args:
        tries: made so far.
        retry_after: seconds that the site asked to wait, if it did.
    """
    seconds = BACKOFF_SECONDS * 2.0 ** (tries - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
    return max(seconds, retry_after or 0.0)


def shared_limiter(cache: RedisWithFallback | None) -> AsyncRateLimiter:
    """The limiter that all crawls share, over the process's own client.

    Args:
        cache: the ephemeral tier; None: there is none, and the process has its share of each limit.
    """
    client = AsyncRedisWithFallback(cache.fallback if cache is not None else None)
    return AsyncRateLimiter(client, shares=CacheSettings.from_environment().rate_limit_shares)
