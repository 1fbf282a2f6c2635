"""Says what happens to many pages alike in a few lines: the first ones as they come, then how many there were.

A website decides how many of its pages go wrong, and must not decide how much is written to a log.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging

FIRST: Final = 3
"""Events of a kind that have a line of their own; then there is one each time that their number has doubled."""


class BoundedLog:
    """A log of events that may be as many as the pages of a site: a thousand of a kind make a dozen lines.

    Any thread may use it.

    Args:
        logger: where it is said.
        level: of all its lines.
        summary: what is said of several, with `%d` for how many and `%s` for their kind.
    """

    def __init__(self, logger: logging.Logger, level: int, summary: str) -> None:
        self._logger = logger
        self._level = level
        self._summary = summary
        self._lock = threading.Lock()
        self._said: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        """Events by kind."""

    def note(self, kind: str, message: str, *arguments: object, exc_info: bool = False) -> None:
        """Count an event, and say it if it is one of the first of its kind.

        Args:
            kind: one of a few; never made of what a page says.
            message: with placeholders for the arguments, as for a logger.
            exc_info: with the traceback of the exception that is being handled.
        """
        with self._lock:
            self.counts[kind] += 1
            count = self.counts[kind]
            if count > FIRST and count & (count - 1):
                return
            self._said[kind] = count
        if count <= FIRST:
            self._logger.log(self._level, message, *arguments, exc_info=exc_info)
        else:
            self._logger.log(self._level, self._summary, count, kind)

    def close(self) -> None:
        """Say how many there were in the end, of those kinds of which that was not said yet."""
        with self._lock:
            left = [(kind, count) for kind, count in self.counts.items() if count > max(FIRST, self._said[kind])]
            self._said = Counter(self.counts)
        for kind, count in left:
            self._logger.log(self._level, self._summary, count, kind)
