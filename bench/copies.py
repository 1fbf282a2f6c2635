"""A cluster whose full database is copied for each contender, so that all begin with the same rows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy.engine import make_url

from resources.services.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.services import Endpoints
    from resources.settings import Settings


class Copied:
    """A migrated database, to be filled and copied.

    Attributes:
        endpoints: of the cluster.
        postmaster: its process.
        template: name of the database that is copied.
    """

    def __init__(self, endpoints: Endpoints, settings: Settings) -> None:
        self.endpoints = endpoints
        pid = (Layout(settings.home).postgres_data / "postmaster.pid").read_text().splitlines()[0]
        self.postmaster = int(pid)
        self.template = make_url(endpoints.database_url).database or ""
        self._copies = 0

    def admin(self, database: str) -> str:
        """The url of the cluster's superuser."""
        url = make_url(self.endpoints.database_url).set(username="postgres", database=database)
        return url.render_as_string(hide_password=False)

    def settle(self) -> None:
        """After filling: what autovacuum would do later is done now."""
        with psycopg.connect(self.admin(self.template), autocommit=True) as c:
            c.execute("VACUUM (FREEZE, ANALYZE)")

    @contextmanager
    def copy(self) -> Iterator[str]:
        """A fresh copy of the full database, with the server at rest; its url."""
        self._copies += 1
        name = f"copy_{self._copies}"
        with psycopg.connect(self.admin("postgres"), autocommit=True) as c:
            c.execute(f"CREATE DATABASE {name} TEMPLATE {self.template} OWNER omniops_owner".encode())
            c.execute("CHECKPOINT")
        try:
            yield make_url(self.endpoints.database_url).set(database=name).render_as_string(hide_password=False)
        finally:
            with psycopg.connect(self.admin("postgres"), autocommit=True) as c:
                c.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
