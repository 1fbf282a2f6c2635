"""Processes of the program that need not load it: a server has loaded it, and forks.

Each is a process of its own, with its own session, environment, files and end, as `python -m omniops_pipelines` is;
what it spares is the three seconds of work until Dagster and Crawlee are imported.

Run as a module, this is the server: it takes orders from the socket whose number it is given, until that is closed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import IO, TYPE_CHECKING

from resources.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_ORDER = 1 << 20

# What the commands load; the definitions not, which read the environment.
_LOADED = (
    "dagster_postgres",
    "omniops_pipelines.cli.errors",
    "omniops_pipelines.cli.interruption",
    "omniops_pipelines.cli.output",
    "omniops_pipelines.cli.progress_bar",
    "omniops_pipelines.health",
    "omniops_pipelines.instance",
    "omniops_pipelines.job_summary",
    "omniops_pipelines.jobs.crawl",
    "resources.crawler.crawl",
)


class Forked:
    """A process of the program; has what is used of `subprocess.Popen`.

    Attributes:
        pid: its number.
        returncode: as of `Popen`; None until somebody has seen its end.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: int | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: of the command line.
            environment: all of it.
            output: descriptor for its output and errors; None: `communicate` has both.
        """
        self.args = ("omniops", *arguments)
        self.returncode: int | None = None
        self._said: list[str] = ["", ""]
        self._readers: list[threading.Thread] = []
        self._status, status = os.pipe()
        ends = [status]
        if output is None:
            for number in range(2):
                read, write = os.pipe()
                ends.append(write)
                reader = threading.Thread(target=self._read, args=(number, os.fdopen(read)), daemon=True)
                self._readers.append(reader)
        else:
            ends += [output, output]
        try:
            self.pid = _server().fork(arguments, environment, ends)
        finally:
            for end in ends[: 1 + len(self._readers)]:
                os.close(end)
        for reader in self._readers:
            reader.start()

    def _read(self, number: int, pipe: IO[str]) -> None:
        with pipe:
            self._said[number] = pipe.read()

    def poll(self) -> int | None:
        """Its status, if it has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            said = os.read(self._status, 100)
            assert said, "the server of forked processes has ended"
            os.close(self._status)
            self.returncode = int(said)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and for that of whoever has its output; what was said."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in self._readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._said[0], self._said[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            # Its parent keeps its number until it has written the status, which was not there a moment ago.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The side of the tests."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OMNIOPS_", "DAGSTER_"))
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())],
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]) -> int:
        order = json.dumps([list(arguments), dict(environment)]).encode()
        with self._lock:
            socket.send_fds(self._control, [order], descriptors)
            return int(self._control.recv(100))


@cache
def _server() -> _Server:
    return _Server()


# --- the side of the server -----------------------------------------------------------------------------------------


def _load() -> None:
    for name in _LOADED:
        import_module(name)


def _serve(control: socket.socket) -> list[str]:
    """Fork for each order; returns in each of the new processes, with its arguments."""
    assert threading.active_count() == 1, "a process of several threads cannot be forked"
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 1_000)
            _tell_ends(running)
        if control not in ready:
            continue
        order, descriptors, _, _ = socket.recv_fds(control, _MAX_ORDER, 3)
        if not order:
            sys.exit()
        status, out, err = descriptors
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Whoever starts the tests may ignore it, and the program is to hear it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            os.dup2(out, 1)
            os.dup2(err, 2)
            for end in (woken, wake, *descriptors, *running.values()):
                os.close(end)
            control.close()
            arguments, environment = json.loads(order)
            os.environ.clear()
            os.environ.update(environment)
            tempfile.tempdir = None
            if "PYTHONFAULTHANDLER" in os.environ:
                faulthandler.enable()
            return list(arguments)
        running[pid] = status
        os.close(out)
        os.close(err)
        control.send(str(pid).encode())


def _tell_ends(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(BrokenPipeError):
                os.write(running[pid], str(os.waitstatus_to_exitcode(status)).encode())
            os.close(running.pop(pid))


if __name__ == "__main__":
    import runpy

    _load()
    sys.argv = ["", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    runpy.run_module("omniops_pipelines", run_name="__main__", alter_sys=True)
