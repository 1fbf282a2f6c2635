"""The stores that this process uses: the configured ones, or the embedded ones, started on first use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.jobs import PersistentJobManager
from resources.redis import BestEffortRedis
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from resources.services import Endpoints

_lock = threading.Lock()
_endpoints: dict[Settings, Endpoints] = {}
_caches: dict[str | None, BestEffortRedis] = {}


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


def cache(settings: Settings | None = None) -> BestEffortRedis:
    """The ephemeral tier, which may be away."""
    url = endpoints(settings).redis_url
    with _lock:
        if url not in _caches:
            _caches[url] = BestEffortRedis(url)
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
        for held in _endpoints.values():
            held.release()
        _endpoints.clear()
