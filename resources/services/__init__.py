"""Postgres and Valkey for a machine that has neither, shared by all processes that need them.

```python
with acquire(Settings.from_environment()) as endpoints:
    psycopg.connect(endpoints.database_url)
```

They are embedded: they come from wheels, listen on Unix sockets alone, and run while somebody uses them (see
`supervisor`).
"""

from __future__ import annotations

from resources.services.client import (
    Endpoints,
    ServiceStatus,
    acquire,
    installed_versions,
    start,
    status,
    stop,
)
from resources.services.errors import ServiceError

__all__ = [
    "Endpoints",
    "ServiceError",
    "ServiceStatus",
    "acquire",
    "installed_versions",
    "start",
    "status",
    "stop",
]
