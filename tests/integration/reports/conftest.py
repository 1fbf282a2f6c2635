"""The program's own resource on this test's database, and ways to plant what the database forbids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from resources import stack
from resources.postgres.connection import driver_url
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.databases import Database


@pytest.fixture
def home(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data folder of the program in this process, which uses this test's database."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name, value in database.environment(folder).items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    yield folder
    stack.release()


@pytest.fixture
def postgres(home: Path) -> PostgresResource:
    """The resource as the definitions have it."""
    return PostgresResource()


@pytest.fixture
def plant(database: Database) -> Callable[..., None]:
    """Run a statement as the superuser with foreign keys and triggers off: what must never be, for a test."""

    def run(sql: str, **parameters: Any) -> None:
        engine = create_engine(driver_url(database.admin_url), poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(sql), parameters)
        engine.dispose()

    return run


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of this test's own."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made
