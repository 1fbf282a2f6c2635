"""Real servers in a fresh data folder, real processes that use them, and proof that none is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from resources.services import status
from resources.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Holds the servers until its standard input ends.
_USER = """
import sys
from pathlib import Path
from resources.services import acquire
from resources.services import status
from resources.settings import Settings
endpoints = acquire(Settings(Path(sys.argv[1]), None, None, None))
print(endpoints.database_url, flush=True)
sys.stdin.read()
"""


def wait_until(what: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until something is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def kill(process: psutil.Process) -> None:
    """SIGKILL, if it is there still."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


class Stack:
    """The servers of one data folder, seen from outside."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings(home, None, None, None)
        self.users: list[subprocess.Popen[str]] = []
        self._seen: set[psutil.Process] = set()

    def user(self, *, wait: bool = True, **environment: str) -> subprocess.Popen[str]:
        """A process that holds the servers."""
        process = subprocess.Popen(
            [sys.executable, "-c", _USER, str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT_ROOT,
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **environment},
        )
        self.users.append(process)
        if wait:
            self.wait_for(process)
        return process

    def wait_for(self, user: subprocess.Popen[str]) -> str:
        """Wait until it has them; returns the url it was given."""
        assert user.stdout is not None
        url = user.stdout.readline().strip()
        assert url, "the user could not acquire the servers"
        self.processes()
        return url

    def leave(self, user: subprocess.Popen[str]) -> None:
        """Let a user end in peace."""
        user.communicate(timeout=30)

    def supervisors(self) -> list[psutil.Process]:
        """Supervisors of this data folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(self.home) in words and any("supervisor" in word for word in words):
                found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything of this stack that was ever seen and still runs: supervisor, servers, backends."""
        for supervisor in self.supervisors():
            try:
                self._seen |= {supervisor, *supervisor.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._seen if runs(process)]

    def server(self, name: str) -> psutil.Process:
        """The process of one server."""
        (pid,) = (entry.pid for entry in status(self.settings) if entry.name == name)
        assert pid is not None
        return psutil.Process(pid)

    def wait_until_gone(self, seconds: float = 60.0) -> None:
        """Wait until nothing of it runs."""
        wait_until(lambda: not self.processes(), seconds)

    def pg(self, url: str, query: str, *, user: str | None = None) -> object:
        """One value from Postgres."""
        import psycopg

        target = url if user is None else url.replace("://omniops@", f"://{user}@")
        with psycopg.connect(target, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None


def runs(process: psutil.Process) -> bool:
    """Whether it runs; one that ended and was not collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def make_stack(folder: Path) -> Iterator[Callable[[Path], Stack]]:
    """Make stacks in the folder, which goes after them; at the end no process may be left of one."""
    stacks: list[Stack] = []

    def make(home: Path) -> Stack:
        stacks.append(Stack(home))
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.processes()
        for user in stack.users:
            user.kill()
            user.communicate()
        try:
            stack.wait_until_gone()
        finally:
            for process in stack.processes():
                kill(process)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as a user's has; pytest's own are long for a socket's path."""
    path = Path(tempfile.mkdtemp(prefix="omniops-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def stack(make_stack: Callable[[Path], Stack], folder: Path) -> Stack:
    """A stack whose data folder does not exist yet."""
    return make_stack(folder / "home")
