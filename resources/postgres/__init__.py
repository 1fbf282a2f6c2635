"""The permanent tier.

What other programs use is importable from here. Names are resolved on first use: most programs need one of them, and
none but Dagster's own processes should pay for importing Dagster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.postgres.jobs import JobStats, PersistentJobManager
    from resources.postgres.resource import PostgresResource
    from resources.postgres.tenancy import service_connection, tenant_connection
    from resources.stack import get_persistent_job_manager

__all__ = [
    "JobStats",
    "PersistentJobManager",
    "PostgresResource",
    "get_persistent_job_manager",
    "service_connection",
    "tenant_connection",
]

_HOMES = {
    "JobStats": "resources.postgres.jobs",
    "PersistentJobManager": "resources.postgres.jobs",
    "PostgresResource": "resources.postgres.resource",
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
