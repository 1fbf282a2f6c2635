"""Python's garbage collector, told to leave alone what was there before a crawl.

A process that has Dagster loaded holds half a million objects that never go away, and a crawl allocates quickly: the
collector would walk all of them again and again, for a seventh of the crawl's time.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Young objects are looked at after so many allocations (700 by default), and older generations as much more rarely.
_THRESHOLDS = (20_000, 50, 100)

_lock = threading.Lock()
_users = 0
_before = gc.get_threshold()


@contextmanager
def calm_collector() -> Iterator[None]:
    """Freeze what is there and collect less often, until the last block of the process that asked for it ends."""
    global _users, _before  # noqa: PLW0603 - the collector is the process's, and so is the count of its users
    with _lock:
        if _users == 0:
            _before = gc.get_threshold()
            gc.freeze()
            gc.set_threshold(*_THRESHOLDS)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                gc.set_threshold(*_before)
                gc.unfreeze()
