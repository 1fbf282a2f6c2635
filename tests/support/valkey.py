"""Valkey servers for tests that do to one what would disturb the others: kill, freeze, fill, lock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import redis

from resources.services.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def wait_until(what: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until something is true; the bound is for what hangs."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


class Valkey:
    """One server on a Unix socket, which remembers nothing beyond its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it, with options as on its command line; without any, with those of the last time."""
        self._options = options or self._options
        self.socket.unlink(missing_ok=True)
        words = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self._process = subprocess.Popen(
            [str(find_binaries().valkey), *words, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self.answers if wait else self.socket.exists)

    def answers(self) -> bool:
        """Whether it does, be it with an error."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
                client.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def admin(self, password: str | None = None) -> redis.Redis:
        """A plain client, for what the test does to the server and to see what stands there."""
        return redis.Redis.from_url(self.url, password=password, socket_timeout=10.0)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections, and the kernel takes new ones for it, but nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class Stranger:
    """Something at the address that is no Redis: it answers all that it gets with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while connection.recv(4_096):
                connection.sendall(self._answer)


class SlowWay:
    """A Unix socket in front of a server, which delays each answer.

    Attributes:
        delay: seconds; may be changed at any time.
        piece: so many bytes of an answer at once.
        pieces: how many there were.
    """

    def __init__(self, server: Valkey) -> None:
        self.delay = 0.0
        self.piece = 65_536
        self.pieces = 0
        self._path = server.folder / "slow.sock"
        self._to = server.socket
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self._path}?db=0"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._to))
                for source, target, slow in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, target, slow), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                size = self.piece if slow else len(data)
                for start in range(0, len(data), size):
                    time.sleep(self.delay if slow else 0)
                    self.pieces += slow
                    target.sendall(data[start : start + size])
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
