"""When a site is slow: its answers compared with its own at the beginning."""

from __future__ import annotations

from typing import Final

# A domain is slow if its answers take so many times what they took at the beginning, and this many seconds.
_SLOW_FACTOR: Final = 4.0
_SLOW_SECONDS: Final = 0.5
_LATENCY_DELAY: Final = 5.0
"""Seconds between two requests, at most, for slowness alone."""
_FIRST_ANSWERS: Final = 10


class Latency:
    """How long a domain takes to answer, compared with what it took at the beginning (AutoThrottle's idea).

    A site that is merely far away answers as slowly at the beginning, and is not slowed down. One that stays slow
    although it is asked little is slow by itself: the beginning is slowly forgotten.
    """

    __slots__ = ("_answers", "_base", "_first", "smoothed")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self._base = 0.0
        self._answers = 0
        self._first: list[float] = []

    def delay_after(self, seconds: float, concurrency: int) -> float:
        """Take one answer's time; the seconds between two requests that the domain needs, 0 for none.

        Args:
            seconds: from the request to the end of the body.
            concurrency: requests at once that this crawl may have.
        """
        self._answers += 1
        if self._answers <= _FIRST_ANSWERS:
            self._first.append(seconds)
            if self._answers == _FIRST_ANSWERS:
                self._base = self.smoothed = sorted(self._first)[_FIRST_ANSWERS // 2]
                self._first.clear()
            return 0.0
        self.smoothed += (seconds - self.smoothed) * 0.1
        self._base = min(self._base * 1.002, self.smoothed)
        if self.smoothed < _SLOW_SECONDS or self.smoothed < _SLOW_FACTOR * self._base:
            return 0.0
        # So many at once as bring the answers back to twice what they took; one at once at least.
        at_once = max(1.0, concurrency * 2 * self._base / self.smoothed)
        return min(self.smoothed / at_once, _LATENCY_DELAY)
