"""One embedded cluster a session, one database a test."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy.engine import make_url

from omniops_pipelines.instance import open_stack
from resources import stack
from resources.postgres.connection import dispose_engines
from resources.postgres.migrate import migrate
from resources.services import acquire
from resources.settings import Settings
from tests.support.databases import Database, a_database, administer
from tests.support.site import Site, serve_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resources.services import Endpoints

_TEMPLATE = "omniops_template"
_STORED_TEMPLATE = "omniops_template_stored"

_MEMORY = Path("/dev/shm")
# The clusters of two processes, with a gigabyte of WAL each, fit with room to spare.
_MEMORY_BYTES = 6 * 2**30


def pytest_configure() -> None:
    """Put the tests' folders into memory where it is plenty, unless TMPDIR names another place than the usual one.

    A thousand tests have each a copy of a database, hundreds of files: a disk takes ten times as long for them.
    """
    if tempfile.gettempdir() != "/tmp" or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return
    if min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available) > _MEMORY_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Endpoints]:
    """The session's own Postgres and Valkey, in a folder of their own, whatever the environment says."""
    with tempfile.TemporaryDirectory(prefix="omniops-tests-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings) as endpoints:
            # No test cuts the power: what the kernel has taken survives every kill.
            administer(endpoints, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            yield endpoints
            dispose_engines()


@pytest.fixture(scope="session")
def empty_template(cluster: Endpoints) -> str:
    """A database with the extensions and nothing else."""
    return make_url(cluster.database_url).database or ""


@pytest.fixture(scope="session")
def migrated_template(cluster: Endpoints, empty_template: str) -> str:
    """A database at the newest revision."""
    administer(cluster, f"CREATE DATABASE {_TEMPLATE} TEMPLATE {empty_template} OWNER omniops_owner")
    owner = make_url(cluster.owner_database_url).set(database=_TEMPLATE).render_as_string(hide_password=False)
    runtime = make_url(cluster.database_url).set(database=_TEMPLATE).render_as_string(hide_password=False)
    migrate(owner, runtime_url=runtime)
    return _TEMPLATE


@pytest.fixture(scope="session")
def stored_template(cluster: Endpoints, migrated_template: str) -> str:
    """A database at the newest revision that has Dagster's storage too, which takes Dagster a second to make."""
    administer(cluster, f"CREATE DATABASE {_STORED_TEMPLATE} TEMPLATE {migrated_template} OWNER omniops_owner")
    made = Database.of(cluster, _STORED_TEMPLATE)
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="omniops-tests-") as home:
        os.environ.clear()
        os.environ.update(made.environment(Path(home) / "home"))
        try:
            open_stack()
            stack.release()
        finally:
            os.environ.clear()
            os.environ.update(before)
    return _STORED_TEMPLATE


@pytest.fixture
def database(cluster: Endpoints, migrated_template: str) -> Iterator[Database]:
    """A migrated database of this test's own."""
    yield from a_database(cluster, migrated_template)


@pytest.fixture
def stored_database(cluster: Endpoints, stored_template: str) -> Iterator[Database]:
    """A database of this test's own, migrated and with Dagster's storage."""
    yield from a_database(cluster, stored_template)


@pytest.fixture
def empty_database(cluster: Endpoints, empty_template: str) -> Iterator[Database]:
    """A database that was never migrated."""
    yield from a_database(cluster, empty_template)


@pytest.fixture
def site() -> Iterator[Site]:
    """A website of this test's own."""
    with serve_site() as served:
        yield served
