"""Whether a server answers: the only sense in which one is alive here.

A pid says little: it may be a stranger's, or that of a server that is still recovering. The questions are
asked in the servers' own protocols with nothing but sockets, because the supervisor runs without the
project's environment.
"""

from __future__ import annotations

import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resources.services.layout import Layout

_PROTOCOL_3 = 196608
_TOO_MANY_CONNECTIONS = "53300"
_CANNOT_CONNECT_NOW = "57P03"


class Health(Enum):
    """What a server said."""

    READY = "ready"
    STARTING = "starting"
    SILENT = "silent"


def postgres_health(path: Path, role: str, database: str, timeout: float = 2.0) -> tuple[Health, str]:
    """Ask Postgres by logging in, which it takes only when it can serve.

    Args:
        path: its socket.
        role: who logs in.
        database: where to.
        timeout: seconds to wait for each answer.

    Returns:
        Its state, and its version where it is ready.
    """
    parameters = f"user\0{role}\0database\0{database}\0application_name\0omniops probe\0\0".encode()
    hello = struct.pack("!ii", len(parameters) + 8, _PROTOCOL_3) + parameters
    try:
        with _connect(path, timeout) as server, server.makefile("rb") as answers:
            server.sendall(hello)
            return _read_postgres(server, answers.read)
    except (OSError, EOFError):
        return Health.SILENT, ""


def valkey_health(path: Path, timeout: float = 2.0) -> tuple[Health, str]:
    """Ask Valkey for its version; arguments and result as in `postgres_health`."""
    try:
        with _connect(path, timeout) as server, server.makefile("rb") as answers:
            server.sendall(b"INFO server\r\n")
            first = answers.readline()
            if first.startswith(b"-LOADING"):
                return Health.STARTING, ""
            if not first.startswith(b"$"):
                return Health.SILENT, ""
            info = answers.read(int(first[1:])).decode()
    except (OSError, ValueError):
        return Health.SILENT, ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return Health.READY, fields.get("valkey_version") or fields.get("redis_version", "")


def health(service: str, layout: Layout, role: str, database: str) -> tuple[Health, str]:
    """The state and version of `postgres` or `valkey`."""
    if service == "postgres":
        return postgres_health(layout.postgres_socket, role, database)
    return valkey_health(layout.valkey_socket)


def _connect(path: Path, timeout: float) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(timeout)
    try:
        server.connect(str(path))
    except BaseException:
        server.close()
        raise
    return server


def _read_postgres(server: socket.socket, read: Callable[[int], bytes]) -> tuple[Health, str]:
    version = ""
    while True:
        head = read(5)
        if len(head) < 5:
            return Health.SILENT, ""
        kind, length = struct.unpack("!ci", head)
        body = read(length - 4)
        if kind == b"Z":  # ready for a query
            server.sendall(b"X\0\0\0\4")  # good-bye, or it logs a lost connection
            return Health.READY, version
        if kind == b"S" and body.startswith(b"server_version\0"):
            version = body.split(b"\0")[1].decode()
        if kind == b"E":
            codes = {field[:1]: field[1:].decode() for field in body.split(b"\0") if field}
            state = codes.get(b"C")
            if state == _TOO_MANY_CONNECTIONS:  # it serves, only not us
                return Health.READY, version
            return (Health.STARTING if state == _CANNOT_CONNECT_NOW else Health.SILENT), ""
