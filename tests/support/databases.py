"""Databases for tests, on the embedded cluster: each a copy of a migrated template, made in hundredths of seconds."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from resources.postgres.connection import dispose_engines, driver_url, engine_for
from resources.postgres.frontier import CrawlFrontier
from resources.postgres.jobs import PersistentJobManager
from resources.redis import RedisWithFallback

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from resources.services import Endpoints

# Every revision there is, in order: what a migration of an empty database goes through.
REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
    "0014",
)

_numbers = itertools.count()


@dataclass(frozen=True)
class Database:
    """One database.

    Attributes:
        url: as the role that runs the program.
        owner_url: as the role that migrates.
        admin_url: as the cluster's superuser, for what only a test does (killing a backend).
        redis_url: the ephemeral tier, shared by all tests.
    """

    name: str
    url: str
    owner_url: str
    admin_url: str
    redis_url: str

    @classmethod
    def of(cls, endpoints: Endpoints, name: str) -> Database:
        """The database of that name."""
        return cls(
            name,
            _at(endpoints.database_url, name),
            _at(endpoints.owner_database_url, name),
            _at(endpoints.database_url, name, "postgres"),
            endpoints.redis_url or "",
        )

    @property
    def engine(self) -> Engine:
        return engine_for(self.url)

    @property
    def manager(self) -> PersistentJobManager:
        return PersistentJobManager(self.engine, RedisWithFallback(self.redis_url))

    def frontier(self, job_id: str) -> CrawlFrontier:
        job = self.manager.get_job_from_postgres(job_id)
        assert job is not None
        return CrawlFrontier(self.engine, job_id, job["customer_id"])

    def rows(self, sql: str, **parameters: object) -> list[dict[str, object]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(sql), parameters).mappings()]

    def value(self, sql: str, **parameters: object) -> object:
        with self.engine.connect() as connection:
            return connection.scalar(text(sql), parameters)

    def environment(self, home: Path) -> dict[str, str]:
        """For a process of the program that is to use this database."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMNIOPS_", "DAGSTER_"))}
        return {
            **kept,
            "OMNIOPS_HOME": str(home),
            "OMNIOPS_DATABASE_URL": self.url,
            "OMNIOPS_OWNER_DATABASE_URL": self.owner_url,
            "OMNIOPS_REDIS_URL": self.redis_url,
        }


def _at(url: str, database: str, role: str | None = None) -> str:
    changed = make_url(url).set(database=database)
    if role is not None:
        changed = changed.set(username=role)
    return changed.render_as_string(hide_password=False)


def administer(endpoints: Endpoints, *statements: str) -> None:
    """Run statements as the cluster's superuser, outside of a transaction."""
    url = _at(endpoints.database_url, "postgres", "postgres")
    engine = create_engine(driver_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def create_database(endpoints: Endpoints, template: str) -> Database:
    """A new database as a copy of the template."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    # By copying its files: through the WAL, the default, it takes five times as long.
    administer(endpoints, f"CREATE DATABASE {name} TEMPLATE {template} OWNER omniops_owner STRATEGY FILE_COPY")
    return Database.of(endpoints, name)


def a_database(cluster: Endpoints, template: str) -> Iterator[Database]:
    """One, until the test is over."""
    made = create_database(cluster, template)
    yield made
    dispose_engines()
    administer(cluster, f"DROP DATABASE {made.name} WITH (FORCE)")
