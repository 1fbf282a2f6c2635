"""Dagster as the program has it, its storage in the test's database."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from omniops_pipelines.instance import EVENT_BATCH_VARIABLE, open_stack
from resources import stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database


@pytest.fixture
def database(stored_database: Database) -> Database:
    """A database of this test's own, with Dagster's storage."""
    return stored_database


@pytest.fixture
def home(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder, and the environment that points to it and to the test's database."""
    folder = Path(tempfile.mkdtemp(prefix="omniops-test-"))
    for name, value in database.environment(folder / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("OMNIOPS_DAGSTER_DATABASE_URL", "")
    monkeypatch.setenv(EVENT_BATCH_VARIABLE, "1000")
    yield folder / "home"
    stack.release()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    open_stack()
    with dg.DagsterInstance.get() as opened:
        yield opened
    os.environ.pop("DAGSTER_HOME", None)
