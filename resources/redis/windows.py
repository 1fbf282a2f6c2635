"""Rate windows in this process's memory: the same rule as the script in Redis, and the bridge between both.

While Redis answers, each permission that it gave to this process is noted here. When Redis is lost, the limit goes
on from these notes, divided by the number of processes that may share it; when Redis is back, it is told what it does
not know. So a limit is stricter without Redis, and a lost counter is rebuilt by those who counted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

WINDOW_SECONDS = 60
# A request counts until all of its second is a window old, so that no window of 60 s ever has more than the limit.
COUNTED_SECONDS = WINDOW_SECONDS + 1


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one request.

    Attributes:
        permitted: whether it may be sent now; it is counted then.
        wait_seconds: if not, when to ask again.
        used: requests that count at this moment, this one included.
        delay: the domain's adaptive delay, in seconds.
        limit: requests in 60 s that all together may send, the strictest known; 0 for no limit.
        spacing: least seconds between two requests that somebody has asked for, the strictest known.
    """

    permitted: bool
    wait_seconds: float
    used: int
    delay: float = 0.0
    limit: int = 0
    spacing: float = 0.0


@dataclass(slots=True)
class DomainWindow:
    """What this process knows about one domain.

    Attributes:
        told: requests of ours by second that Redis counted.
        untold: those that it does not know.
        next_at: no request before this moment.
        delay: the adaptive delay, in seconds, known until `delay_until`.
        raised_at: when the delay was last raised.
        since: when Redis began the counter that `told` stands in; another one means that it lost that counter.
        telling: a thread is just telling Redis what it lost.
        limit: requests in 60 s, the strictest that anybody asked for; it counts until `limit_until`.
        spacing: least seconds between two requests, likewise, until `spacing_until`.
    """

    told: dict[int, int] = field(default_factory=dict)
    untold: dict[int, int] = field(default_factory=dict)
    next_at: float = 0.0
    delay: float = 0.0
    delay_until: float = 0.0
    raised_at: float = float("-inf")
    since: str = ""
    telling: bool = False
    limit: int = 0
    limit_until: float = 0.0
    spacing: float = 0.0
    spacing_until: float = 0.0

    def strictest(self, now: float, limit: int, spacing: float) -> tuple[int, float]:
        """The limit and the spacing that hold for who asks for these, which are remembered if they are stricter.

        Args:
            now: the clock, in seconds.
            limit: requests in 60 s; 0 for no limit.
            spacing: least seconds between two requests.
        """
        if self.limit and now < self.limit_until <= now + COUNTED_SECONDS and (not limit or self.limit < limit):
            limit = self.limit
        elif limit:
            self.limit, self.limit_until = limit, now + WINDOW_SECONDS
        if now < self.spacing_until <= now + COUNTED_SECONDS and self.spacing > spacing:
            spacing = self.spacing
        elif spacing:
            self.spacing, self.spacing_until = spacing, now + WINDOW_SECONDS
        return limit, spacing

    def forget(self, now: float) -> None:
        """Drop what no longer counts."""
        oldest = now - COUNTED_SECONDS
        for seconds in (self.told, self.untold):
            for second in [s for s in seconds if s <= oldest]:
                del seconds[second]
        if now >= self.delay_until:
            self.delay = 0.0

    def reported(self, seconds: dict[int, int], since: str) -> None:
        """Redis has been told of these, in the counter that it began then."""
        self.since = since
        for second, count in seconds.items():
            left = self.untold.get(second, 0) - count
            if left > 0:
                self.untold[second] = left
            else:
                self.untold.pop(second, None)
            self.told[second] = self.told.get(second, 0) + count

    def used(self) -> int:
        """Requests that are remembered."""
        return sum(self.told.values()) + sum(self.untold.values())

    def oldest(self) -> int | None:
        """The second of the first of them."""
        return min((*self.told, *self.untold), default=None)

    def idle(self, now: float) -> bool:
        """Whether nothing of it matters any more."""
        return not self.told and not self.untold and now >= self.next_at and now >= self.delay_until


def decide(window: DomainWindow, now: float, limit: int, spacing: float) -> Decision:
    """Decide about one request, and count it as one that Redis does not know: the rule of the script in Redis.

    Args:
        window: of the domain; changed.
        now: the clock, in seconds.
        limit: requests in 60 s; 0 for no limit.
        spacing: least seconds between two requests.
    """
    window.forget(now)
    # A clock that was put back shall not hold anybody for longer than is right.
    window.next_at = min(window.next_at, now + max(spacing, WINDOW_SECONDS))
    used = window.used()
    if now < window.next_at:
        return Decision(False, window.next_at - now, used, window.delay)
    oldest = window.oldest()
    if limit and used >= limit and oldest is not None:
        return Decision(False, max(0.001, oldest + COUNTED_SECONDS - now), used, window.delay)
    second = int(now)
    window.untold[second] = window.untold.get(second, 0) + 1
    window.next_at = now + spacing
    return Decision(True, 0.0, used + 1, window.delay)


class LocalRates:
    """The windows of all domains that this process asks for: bounded, and never made laxer by its bound.

    Args:
        max_domains: when so many are in use, a further one is not had.
    """

    def __init__(self, max_domains: int = 10_000) -> None:
        self._max = max_domains
        self._windows: OrderedDict[str, DomainWindow] = OrderedDict()

    def __len__(self) -> int:
        """Domains that are known."""
        return len(self._windows)

    def window(self, domain: str, now: float) -> DomainWindow | None:
        """The window of a domain; None if there is no room, and then nothing may be permitted."""
        found = self._windows.get(domain)
        if found is None:
            if len(self._windows) >= self._max:
                self._drop_idle(now)
            if len(self._windows) >= self._max:
                return None
            found = self._windows[domain] = DomainWindow()
        self._windows.move_to_end(domain)
        return found

    def _drop_idle(self, now: float) -> None:
        for domain, window in list(self._windows.items()):
            window.forget(now)
            if window.idle(now):
                del self._windows[domain]

    def reports(self, now: float) -> list[tuple[str, DomainWindow]]:
        """Domains with requests that Redis does not know."""
        for window in self._windows.values():
            window.forget(now)
        return [(domain, window) for domain, window in self._windows.items() if window.untold]
