"""The permanent tier.

What other programs use is importable from here. Names are resolved on first use: most programs need one of them, and
none but Dagster's own processes should pay for importing Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.postgres.jobs import JobStats, PersistentJobManager
    from resources.postgres.message_queue import AsyncPersistentMessageQueue, PersistentMessageQueue
    from resources.postgres.queue_messages import QueuedMessage, RejectMessage, ReplayResult
    from resources.postgres.queue_worker import AsyncQueueWorker, QueueWorker
    from resources.postgres.resource import PostgresResource
    from resources.postgres.tenancy import service_connection, tenant_connection
    from resources.stack import get_persistent_job_manager

__all__ = [
    "AsyncPersistentMessageQueue",
    "AsyncQueueWorker",
    "JobStats",
    "PersistentJobManager",
    "PersistentMessageQueue",
    "PostgresResource",
    "QueueWorker",
    "QueuedMessage",
    "RejectMessage",
    "ReplayResult",
    "get_persistent_job_manager",
    "service_connection",
    "tenant_connection",
]

_HOMES = {
    "AsyncPersistentMessageQueue": "resources.postgres.message_queue",
    "AsyncQueueWorker": "resources.postgres.queue_worker",
    "JobStats": "resources.postgres.jobs",
    "PersistentJobManager": "resources.postgres.jobs",
    "PersistentMessageQueue": "resources.postgres.message_queue",
    "PostgresResource": "resources.postgres.resource",
    "QueueWorker": "resources.postgres.queue_worker",
    "QueuedMessage": "resources.postgres.queue_messages",
    "RejectMessage": "resources.postgres.queue_messages",
    "ReplayResult": "resources.postgres.queue_messages",
    "get_persistent_job_manager": "resources.stack",
    "service_connection": "resources.postgres.tenancy",
    "tenant_connection": "resources.postgres.tenancy",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(home), name)
