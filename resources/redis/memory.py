"""The store in memory that stands in for Redis: bounded, with times to live, for this process alone."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resources.redis.windows import LocalRates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_ENTRIES = 10_000
MAX_BYTES = 32 * 2**20
# What an entry costs beside its value (name, object, place in the order), and an item of a list beside its bytes.
_ENTRY_BYTES = 200
_ITEM_BYTES = 50


@dataclass(slots=True)
class _Entry:
    value: bytes | list[bytes]
    expires_at: float
    size: int


class MemoryStore:
    """Strings and lists with times to live; what was used longest ago goes when it is full.

    Thread-safe: each method holds `lock`, and a caller may hold it over several.

    Args:
        max_entries: so many keys at most.
        max_bytes: so many bytes at most, names and overhead included.
        clock: seconds that only grow.

    Attributes:
        rates: rate windows, which are never dropped for want of room.
    """

    def __init__(
        self,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.RLock()
        self.rates = LocalRates()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Keys, those included that have expired and were not looked at since."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that it holds, names and overhead included."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        """The value of a string; None if there is none."""
        with self.lock:
            entry = self._live(key)
            return entry.value if entry is not None and isinstance(entry.value, bytes) else None

    def pttl(self, key: str) -> int:
        """Milliseconds that a key has left; -2 if there is none."""
        with self.lock:
            entry = self._live(key)
            return -2 if entry is None else max(0, int((entry.expires_at - self._clock()) * 1_000))

    def expire(self, key: str, ttl_seconds: float) -> bool:
        """Let a key live for so long from now; False if there is none."""
        with self.lock:
            entry = self._live(key)
            if entry is None:
                return False
            entry.expires_at = self._clock() + ttl_seconds
            return True

    def exists(self, key: str) -> bool:
        """Whether the key is there."""
        with self.lock:
            return self._live(key) is not None

    def set(self, key: str, value: bytes, ttl_seconds: float, *, only_new: bool = False) -> bool:
        """Write a string.

        Returns:
            False if `only_new` and the key is there.
        """
        with self.lock:
            if only_new and self._live(key) is not None:
                return False
            self._put(key, value, ttl_seconds)
            return True

    def replace(self, key: str, old: bytes, value: bytes, ttl_seconds: float) -> bool:
        """Write a string if it still is `old`."""
        with self.lock:
            if self.get(key) != old:
                return False
            self._put(key, value, ttl_seconds)
            return True

    def delete(self, keys: Iterable[str]) -> int:
        """Remove keys.

        Returns:
            How many there were.
        """
        with self.lock:
            there = [key for key in keys if self._live(key) is not None]
            for key in there:
                self._drop(key)
            return len(there)

    def delete_prefix(self, prefix: str) -> int:
        """Remove the keys that begin with `prefix`."""
        with self.lock:
            return self.delete([key for key in self._entries if key.startswith(prefix)])

    def increment(self, key: str, by: int, ttl_seconds: float) -> int:
        """Add to a number; a new one lives for so long from now, and an old one as long as it did."""
        with self.lock:
            entry = self._live(key)
            value = by
            if entry is not None and isinstance(entry.value, bytes):
                try:
                    value += int(entry.value)
                except ValueError:
                    entry = None  # no number: it begins again
            else:
                entry = None
            left = ttl_seconds if entry is None else entry.expires_at - self._clock()
            self._put(key, b"%d" % value, left)
            return value

    def push(self, key: str, values: Iterable[bytes], ttl_seconds: float) -> int:
        """Append to a list, which then lives for so long from now.

        Returns:
            Its length.
        """
        with self.lock:
            entry = self._live(key)
            items = entry.value if entry is not None and isinstance(entry.value, list) else []
            added = list(values)
            items.extend(added)
            self._put(key, items, ttl_seconds, grown_by=added)
            return len(items)

    def range(self, key: str, start: int, end: int) -> list[bytes]:
        """Part of a list, both ends included, counted from the end where negative."""
        with self.lock:
            entry = self._live(key)
            if entry is None or not isinstance(entry.value, list):
                return []
            first, last = (max(0, n + len(entry.value)) if n < 0 else n for n in (start, end))
            if end < 0 and end + len(entry.value) < 0:
                return []
            return entry.value[first : last + 1]

    def clear(self) -> None:
        """Forget all strings and lists. Rate windows stay: they are this process's own notes."""
        with self.lock:
            self._entries.clear()
            self._bytes = 0

    def _live(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _put(
        self, key: str, value: bytes | list[bytes], ttl_seconds: float, grown_by: list[bytes] | None = None
    ) -> None:
        before = self._entries.get(key)
        if grown_by is not None and before is not None and before.value is value:
            size = before.size + _size(grown_by)
        else:
            size = _ENTRY_BYTES + len(key) + (len(value) if isinstance(value, bytes) else _size(value))
        if before is not None:
            self._drop(key)
        if size > self._max_bytes:
            return  # it would drive out all others, and then itself
        self._bytes += size
        self._entries[key] = _Entry(value, self._clock() + ttl_seconds, size)
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size


def _size(items: list[bytes]) -> int:
    return sum(map(len, items)) + _ITEM_BYTES * len(items)
