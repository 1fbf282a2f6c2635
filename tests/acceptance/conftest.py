"""Real processes, each test's with a database of its own on the session's cluster."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resources.services import stop
from resources.settings import Settings
from tests.acceptance.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let children hear SIGINT: a shell that puts the tests in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home() -> Iterator[Path]:
    """A data folder with a short name: the embedded servers' sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="omniops-test-"))
    yield path / "home"
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def program(database: Database, home: Path) -> Iterator[Program]:
    """The program, with this test's database."""
    made = Program(database.environment(home))
    yield made
    made.close()


@pytest.fixture
def embedded(database: Database, home: Path) -> Iterator[Program]:
    """The program with servers of its own, which end with the test."""
    stores = ("OMNIOPS_DATABASE_URL", "OMNIOPS_OWNER_DATABASE_URL", "OMNIOPS_REDIS_URL")
    environment = {name: value for name, value in database.environment(home).items() if name not in stores}
    made = Program(environment)
    yield made
    made.close()
    stop(Settings(home, None, None, None), force=True)
