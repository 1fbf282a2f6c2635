"""The ephemeral tier: a cache and a limiter that may be away at any moment.

What other programs use is importable from here. Names are resolved on first use: most programs need one of them, and
none but Dagster's own processes should pay for importing Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.redis.cache import AsyncReadThroughCache, ReadThroughCache
    from resources.redis.client import AsyncRedisWithFallback, RedisWithFallback
    from resources.redis.rate_limit import AsyncRateLimiter, RateLimiter
    from resources.redis.resource import RedisResource
    from resources.stack import get_async_redis_client_with_fallback, get_redis_client_with_fallback

__all__ = [
    "AsyncRateLimiter",
    "AsyncReadThroughCache",
    "AsyncRedisWithFallback",
    "RateLimiter",
    "ReadThroughCache",
    "RedisResource",
    "RedisWithFallback",
    "get_async_redis_client_with_fallback",
    "get_redis_client_with_fallback",
]

_HOMES = {
    "AsyncRateLimiter": "resources.redis.rate_limit",
    "AsyncReadThroughCache": "resources.redis.cache",
    "AsyncRedisWithFallback": "resources.redis.client",
    "RateLimiter": "resources.redis.rate_limit",
    "ReadThroughCache": "resources.redis.cache",
    "RedisResource": "resources.redis.resource",
    "RedisWithFallback": "resources.redis.client",
    "get_async_redis_client_with_fallback": "resources.stack",
    "get_redis_client_with_fallback": "resources.stack",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(home), name)
