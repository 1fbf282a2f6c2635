"""The embedded Valkey."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from resources.services import layout as layouts
from resources.services import privileges
from resources.services.errors import ServiceError
from resources.services.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.services.binaries import Binaries

_SNAPSHOT = "cache.rdb"

# It holds nothing that cannot be lost: a snapshot now and then is enough, and when full the oldest goes.
_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "dbfilename": _SNAPSHOT,
    "save": "300 1",
    "appendonly": "no",
    # force: on a full disk it would refuse to end.
    "shutdown-on-sigterm": "save force",
    "maxmemory": "256mb",
    "maxmemory-policy": "allkeys-lru",
    "daemonize": "no",
    "protected-mode": "yes",
}


class ValkeyServer(Server):
    """The embedded Valkey: a cache that survives from one command to the next."""

    name = "valkey"
    programs = ("valkey-",)  # the server, and its child that writes the snapshot
    death_signal = signal.SIGTERM  # it saves and ends
    stop_signals = ((signal.SIGTERM, 15.0),)

    def __init__(
        self,
        layout: layouts.Layout,
        binaries: Binaries,
        account: privileges.Account | None,
        interrupted: Callable[[], bool],
    ) -> None:
        super().__init__(layout, binaries, account, interrupted)
        self.data = layout.valkey_data

    def command(self) -> list[str]:
        """The command line; all of its settings are on it."""
        options = _SETTINGS | {"dir": str(self.data), "unixsocket": str(self.layout.valkey_socket)}
        return [
            str(self.binaries.valkey),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        ]

    def prepare(self) -> None:
        """Make its folder."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        privileges.give_tree(self.data, self.account)

    def marks(self) -> tuple[str, ...]:
        """It writes its socket on its command line."""
        return (f":{self.layout.valkey_socket} ", f" {self.layout.valkey_socket} ")

    def remove_stale_files(self) -> None:
        """The socket of a killed server is in the way of the next."""
        self.layout.valkey_socket.unlink(missing_ok=True)

    def start(self) -> None:
        """Start it; a snapshot that it cannot read is put aside, since it is only a cache."""
        try:
            super().start()
        except ServiceError:
            snapshot = self.data / _SNAPSHOT
            if not snapshot.exists():
                raise
            snapshot.replace(snapshot.with_suffix(".unreadable"))
            super().start()
