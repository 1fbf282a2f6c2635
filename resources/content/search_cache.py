"""Cached search results, and forgetting them when a customer's content has changed.

Each customer has a mark that stands in the key of all its results. Content that changes gets another mark, and nobody
finds the old results any more; they end by themselves. A mark lives as long as the longest-lived result can, so one
that has ended hides nothing.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from resources.redis import commands
from resources.redis.cache import ReadThroughCache
from resources.redis.keys import SEARCH, Key, search_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from resources.redis.client import RedisWithFallback

_MARK = "mark of the customer's content"
# A mark's life is shortened by chance, by a tenth at most: results end before it does.
_LONGEST_SECONDS = SEARCH.longest_seconds * 8 // 10


def forget_searches(cache: RedisWithFallback, customer_id: UUID | str) -> None:
    """A customer's content has changed: results that were cached before are not given any more."""
    key = search_key(customer_id, _MARK)
    cache.run(commands.set_(key, SEARCH.encode(secrets.token_hex(8)), SEARCH.longest_seconds))


def result_key(cache: RedisWithFallback, customer_id: UUID | str, *question: object) -> Key:
    """The key of a question's results, as the customer's content is now."""
    stored, _ = cache.run(commands.get_with_life(search_key(customer_id, _MARK)))
    mark = "" if stored is None else stored.decode("ascii", "replace")
    return search_key(customer_id, mark, *question)


def cached(
    cache: RedisWithFallback,
    customer_id: UUID | str,
    question: tuple[object, ...],
    load: Callable[[], dict[str, Any] | None],
    seconds: int,
) -> dict[str, Any] | None:
    """Results from the cache, or else from `load`; None, which is not kept, where that gives none."""
    key = result_key(cache, customer_id, *question)
    found: dict[str, Any] | None = _reader(cache).get_or_load(key, load, seconds=min(seconds, _LONGEST_SECONDS))
    return found


@lru_cache(maxsize=8)
def _reader(cache: RedisWithFallback) -> ReadThroughCache:
    """One for each store: callers with the same question at once wait for one of them."""
    return ReadThroughCache(cache)
