"""The stores that this process uses: the configured ones, or the embedded ones, started on first use."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.jobs import PersistentJobManager
from resources.redis.client import AsyncRedisWithFallback, RedisWithFallback
from resources.services import Endpoints, ServiceError, acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_endpoints: dict[Settings, Endpoints] = {}
# Those of programs that use Redis and nothing else.
_redis_endpoints: dict[Settings, Endpoints] = {}
_caches: dict[str | None, RedisWithFallback] = {}


def endpoints(settings: Settings | None = None) -> Endpoints:
    """The addresses of both stores, held by this process until it ends or calls `release`.

    Raises:
        ServiceError: an embedded server cannot be started.
    """
    settings = settings or Settings.from_environment()
    with _lock:
        held = _endpoints.get(settings)
        if held is None:
            held = acquire(settings)
            _endpoints[settings] = held
        return held


def database_engine(settings: Settings | None = None) -> Engine:
    """The pool of the permanent tier."""
    return engine_for(endpoints(settings).database_url)


def crawl_engine(settings: Settings | None = None) -> Engine:
    """The pool of those who crawl: what one of them has locked is free again before its lease runs out."""
    settings = settings or Settings.from_environment()
    url = endpoints(settings).database_url
    return engine_for(url, idle_in_transaction_seconds=settings.crawl_lease_seconds / 2)


def cache(settings: Settings | None = None) -> RedisWithFallback:
    """The ephemeral tier, which may be away, of a program that has the permanent one too."""
    return _client(endpoints(settings).redis_url)


def get_redis_client_with_fallback(settings: Settings | None = None) -> RedisWithFallback:
    """The ephemeral tier: the configured Redis, or the embedded Valkey, started on first use.

    All clients of one server in this process share their connections, their state and their store in memory.

    Args:
        settings: say which; None: those of the environment.

    Returns:
        A client that raises nothing for what happens to Redis, a server that cannot be started included.

    Raises:
        InvalidRedisUrl: the configured address is none that Redis has.
    """
    return _client(_redis_url(settings))


def get_async_redis_client_with_fallback(settings: Settings | None = None) -> AsyncRedisWithFallback:
    """The same for event loops; see `get_redis_client_with_fallback`."""
    return AsyncRedisWithFallback(_client(_redis_url(settings)).fallback)


def _redis_url(settings: Settings | None) -> str | None:
    settings = settings or Settings.from_environment()
    with _lock:
        held = _endpoints.get(settings) or _redis_endpoints.get(settings)
        if held is None:
            held = Endpoints(settings, postgres=False)
            try:
                held.ensure_running()
            except ServiceError as error:
                # The client begins without it, and finds it when somebody has started it.
                logger.warning("the embedded Valkey is not there: %s", error)
            _redis_endpoints[settings] = held
        return held.redis_url


def _client(url: str | None) -> RedisWithFallback:
    with _lock:
        if url not in _caches:
            _caches[url] = RedisWithFallback(url)
        return _caches[url]


def get_persistent_job_manager(settings: Settings | None = None) -> PersistentJobManager:
    """The audit trail of jobs in the configured stores."""
    return PersistentJobManager(database_engine(settings), cache(settings))


def release() -> None:
    """Close the pools and give the embedded servers back; the last process to do so stops them."""
    dispose_engines()
    with _lock:
        for store in _caches.values():
            store.close()
        _caches.clear()
        for held in (*_endpoints.values(), *_redis_endpoints.values()):
            held.release()
        _endpoints.clear()
        _redis_endpoints.clear()
