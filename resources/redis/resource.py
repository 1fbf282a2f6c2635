"""The ephemeral tier as a Dagster resource: the face that jobs and assets use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from resources import stack
from resources.redis.rate_limit import RateLimiter
from resources.settings import CacheSettings, Settings

if TYPE_CHECKING:
    from resources.redis.client import AsyncRedisWithFallback, RedisWithFallback


class RedisResource(dg.ConfigurableResource[None]):
    """Redis, by `OMNIOPS_REDIS_URL` or embedded, and this process's memory while it is away."""

    redis_url: str = Field(
        default="",
        description="A redis://, rediss:// or unix:// url. Empty: OMNIOPS_REDIS_URL, or else the embedded Valkey.",
    )

    def _settings(self) -> Settings:
        settings = Settings.from_environment()
        if not self.redis_url:
            return settings
        return replace(settings, redis_url=self.redis_url)

    def client(self) -> RedisWithFallback:
        """The client, which raises nothing for what happens to Redis."""
        return stack.get_redis_client_with_fallback(self._settings())

    def async_client(self) -> AsyncRedisWithFallback:
        """The same for event loops."""
        return stack.get_async_redis_client_with_fallback(self._settings())

    def rate_limiter(self) -> RateLimiter:
        """The limits of domains, shared by all processes."""
        return RateLimiter(self.client(), shares=CacheSettings.from_environment().rate_limit_shares)
