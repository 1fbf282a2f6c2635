"""A thread that can be waited for by somebody who may be interrupted meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class AwaitedThread(threading.Thread):
    """A daemon thread, and whether it is over, of which an interruption of the waiting thread changes nothing.

    `Thread.join` does not give that before Python 3.13: where a signal's handler raises while it waits, the thread
    counts as ended from then on. The next `join` returns at once, and the process goes while the thread commits
    what it has and gives the rest back.

    Args:
        target: what it does.
        name: of the thread.
        args: for the target.
    """

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)
        self._over = threading.Event()

    def run(self) -> None:
        """In the thread."""
        try:
            super().run()
        finally:
            self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end, at most so long; true if it is over."""
        return self._over.wait(seconds)
