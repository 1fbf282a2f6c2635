"""The Redis client, and the rule that the cache never stops the work.

Redis decides nothing here: it caches. So a call that fails is dropped after one line in the log, and the next
calls are dropped without waiting until the server may be back.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A cache that does not answer within a second is no cache; five seconds later it may be asked again.
_SOCKET_SECONDS = 1.0
_REST_SECONDS = 5.0


class BestEffortRedis:
    """A Redis client for work that is right without it.

    Attributes:
        available: False while the server is taken to be away.
    """

    def __init__(self, url: str | None) -> None:
        self._redis = (
            Redis.from_url(
                url,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                decode_responses=False,
            )
            if url
            else None
        )
        self.available = self._redis is not None
        self._ask_again_at = 0.0

    def attempt(self, call: Callable[[Redis], T]) -> T | None:
        """Run `call` with the client; None if Redis is away."""
        if self._redis is None or (not self.available and time.monotonic() < self._ask_again_at):
            return None
        try:
            result = call(self._redis)
        except (RedisError, OSError) as error:
            if self.available:
                logger.warning("Redis is away (%s): going on without the cache", error)
            self.available = False
            self._ask_again_at = time.monotonic() + _REST_SECONDS
            return None
        if not self.available:
            logger.warning("Redis answers again: the cache is in use")
            self.available = True
        return result

    def close(self) -> None:
        """Give the connections back."""
        if self._redis is not None:
            self._redis.close()
