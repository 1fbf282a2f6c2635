"""The process that owns the servers: `python -c … HOME` started by `client`, on the standard library alone.

It starts the servers it is asked for, starts one again that died, and stops them when nobody uses them any
more. It waits for that on the users' lock: every user holds a share until it ends, however it ends, so the
exclusive lock is had exactly when nobody is left, and while it is held nobody can join; who tries waits, and
then finds no supervisor and starts the next. The servers end with it, even
if it is killed (see `privileges`).

It is asked through a Unix socket, one JSON object a line for question and answer:
`{"do": "need", "services": […]}`, `{"do": "keep"}`, `{"do": "status"}`, `{"do": "stop"}`.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from resources.services import locks, privileges
from resources.services.binaries import Binaries
from resources.services.errors import ServiceError
from resources.services.layout import Layout, make_private_folder
from resources.services.postgres_server import PostgresServer
from resources.services.server import Interrupted, Server
from resources.services.valkey_server import ValkeyServer

_RESTARTS = 5
_RESTART_WINDOW_SECONDS = 60.0
_REQUEST_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # how often it looks whether its data folder is still there
_SERVERS: dict[str, type[Server]] = {"postgres": PostgresServer, "valkey": ValkeyServer}


class Supervisor:
    """Owner of the servers of one data folder.

    Args:
        layout: of the data folder.
        binaries: the servers' programs.
    """

    def __init__(self, layout: Layout, binaries: Binaries) -> None:
        self._layout = layout
        self._binaries = binaries
        self._servers: dict[str, Server] = {}
        self._restarts: dict[str, deque[float]] = {}
        self._failures: dict[str, str] = {}
        self._finish = False
        self._keep: int | None = None
        self._home = layout.users_lock.stat()
        self._waker, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)

    def listen(self) -> None:
        """Make the sockets' folder and take questions.

        Raises:
            ServiceError: the folder cannot be used, or there is no user to run the servers as.
        """
        self._account = privileges.server_account(self._layout.home, self._layout.postgres_data)
        make_private_folder(self._layout.sockets, self._account)
        self._layout.supervisor_socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._layout.supervisor_socket))
        privileges.give_to_owner_of(self._layout.home, self._layout.supervisor_socket)
        self._listener.listen(64)

    def run(self) -> None:
        """Serve until nobody uses the servers, or a signal or request says to stop."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the loop
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Children are started from this thread alone: the kernel ties them to the thread, not the process.
        threading.Thread(target=self._wait_for_last_user, daemon=True).start()
        try:
            while not self._finish:
                ready = select.select([self._listener.fileno(), self._waker], [], [], _LOOK_SECONDS)[0]
                with suppress(BlockingIOError):
                    os.read(self._waker, 4096)
                if not self._home_is_there():
                    break
                with suppress(Interrupted):
                    self._restart_the_dead()
                    if self._listener.fileno() in ready and not self._finish:
                        self._serve()
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._home_is_there():
            self._layout.supervisor_socket.unlink(missing_ok=True)
            for server in reversed(self._servers.values()):
                server.stop()
            if not self._layout.sockets.is_relative_to(self._layout.home):
                with suppress(OSError):  # a short-named folder in /tmp: nothing of ours stays there
                    self._layout.sockets.rmdir()
            return
        # Somebody removed the folder, and the next stack may be at its place already: a polite end would
        # remove the sockets of that one.
        _log("the data folder is gone; ending")
        for server in self._servers.values():
            server.stop(at_once=True)

    def _on_stop_signal(self, *_: object) -> None:
        self._finish = True

    def _wait_for_last_user(self) -> None:
        descriptor = os.open(self._layout.users_lock, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._finish = True
        os.write(self._wake, b"\0")
        # The descriptor stays open: the lock is given back by the end of the process.

    def _restart_the_dead(self) -> None:
        for name, server in self._servers.items():
            if name in self._failures or not server.died():
                continue
            times = self._restarts.setdefault(name, deque())
            now = time.monotonic()
            while times and now - times[0] > _RESTART_WINDOW_SECONDS:
                times.popleft()
            times.append(now)
            if len(times) > _RESTARTS:
                self._failures[name] = (
                    f"The embedded {name} died {len(times)} times within a minute and is left alone: "
                    f"see {server.log}."
                )
                _log(self._failures[name])
                continue
            _log(f"{name} died; starting it again")
            self._start(name)

    def _home_is_there(self) -> bool:
        try:
            return os.path.samestat(self._layout.users_lock.stat(), self._home)
        except OSError:
            return False

    def _start(self, name: str) -> str | None:
        """Start a server; returns what went wrong."""
        server = self._servers.get(name)
        if server is None:
            server = _SERVERS[name](self._layout, self._binaries, self._account, lambda: self._finish)
            self._servers[name] = server
        try:
            server.start()
        except (ServiceError, OSError, subprocess.SubprocessError) as error:
            ours = isinstance(error, ServiceError)
            failure = str(error) if ours else f"The embedded {name} cannot start in {server.data}: {error}."
            self._failures[name] = failure
            _log(failure)
            return failure
        self._failures.pop(name, None)
        _log(f"{name} is ready, pid {server.pid}")
        return None

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_SECONDS)
        with connection, suppress(OSError, ValueError), connection.makefile("rwb") as stream:
            request = json.loads(stream.readline())
            stream.write(json.dumps(self._answer(request)).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "need":
                for name in request["services"]:
                    if error := self._start(name):
                        return {"error": error}
                return {}
            case "keep":
                # A share of our own: then the last user is never gone.
                if self._keep is None:
                    self._keep = locks.take(self._layout.users_lock, locks.SHARED, 0)
                return {}
            case "stop":
                self._finish = True
                return {}
            case "status":
                pids = {name: server.pid for name, server in self._servers.items()}
                return {"pid": os.getpid(), "kept": self._keep is not None, "pids": pids}
        return {"error": f"An older supervisor knows no {request!r}: stop it with `omniops services stop`."}


def _log(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} [{os.getpid()}] {line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> None:
    """Become the supervisor.

    Args:
        arguments: the data folder; the folder of Postgres' programs; Valkey's program; the descriptor to
            which `ready`, or what went wrong, is written.
    """
    home, postgres, valkey, report = arguments
    if os.fork():  # our child belongs to init, so that no user has to collect it
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    channel = int(report)
    os.set_inheritable(channel, False)
    layout = Layout(Path(home))
    try:
        # A supervisor that is just ending has it for some milliseconds more.
        lock = locks.take(layout.supervisor_lock, locks.EXCLUSIVE, 60.0)
        supervisor = Supervisor(layout, Binaries(Path(postgres), Path(valkey)))
        supervisor.listen()
    except locks.LockTimeoutError:
        os.write(channel, b"Another supervisor of this data folder does not end; see its log.")
        return
    except ServiceError as error:
        os.write(channel, str(error).encode())
        return
    except OSError as error:
        why = (
            f"The servers cannot be supervised in {home} ({error}): run as its owner (as root, with root's "
            "usual capabilities), or set OMNIOPS_DATABASE_URL and OMNIOPS_REDIS_URL to servers of your own."
        )
        os.write(channel, why.encode())
        return
    with suppress(BrokenPipeError):  # who started us was killed meanwhile; others may be waiting
        os.write(channel, b"ready")
    os.close(channel)
    supervisor.run()
    os.close(lock)
    # Not through the interpreter's exit: the other thread may hold the users' lock until the very end.
    os._exit(0)
