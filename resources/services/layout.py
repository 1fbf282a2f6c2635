"""The files of the embedded servers under `OMNIOPS_HOME`.

    locks/      boot.lock, users.lock, supervisor.lock, and one file for each user
    run/        the sockets: Postgres, Valkey, supervisor (see `socket_folder`)
    postgres/   the cluster
    valkey/     the cache's snapshot
    log/        postgres.log, valkey.log, supervisor.log

Everything is private to one user. As root the servers run as another user (see `privileges`), to whom their
own folders are given and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from resources.services import privileges
from resources.services.errors import ServiceError

RUNTIME_ROLE = "omniops"
OWNER_ROLE = "omniops_owner"
DATABASE = "omniops"

# sun_path holds 108 bytes on Linux and 104 on macOS, the closing NUL included; the smaller holds everywhere,
# so that a folder's sockets are where every machine looks for them.
_LONGEST_SOCKET_PATH = 103
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET_NAME = len(f"{_POSTGRES_SOCKET}.lock")

_LOG_BYTES = 10_000_000


class Layout:
    """Paths and urls that belong to one `OMNIOPS_HOME`.

    Args:
        home: the data folder; need not exist yet.
    """

    def __init__(self, home: Path) -> None:
        # Resolved, because the sockets' place is made from it and must be the same by every spelling.
        self.home = home = home.resolve()
        self.locks = home / "locks"
        self.boot_lock = self.locks / "boot.lock"
        self.users_lock = self.locks / "users.lock"
        self.supervisor_lock = self.locks / "supervisor.lock"
        self.users = self.locks / "users"
        self.postgres_data = home / "postgres"
        self.valkey_data = home / "valkey"
        self.log = home / "log"
        self.sockets = socket_folder(home)
        self.postgres_socket = self.sockets / _POSTGRES_SOCKET
        self.valkey_socket = self.sockets / "valkey.sock"
        self.supervisor_socket = self.sockets / "super.sock"

    def postgres_url(self, role: str = RUNTIME_ROLE, database: str = DATABASE) -> str:
        """A libpq url over the Unix socket; SQLAlchemy and psql read it alike."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.sockets), safe='/')}"

    @property
    def redis_url(self) -> str:
        """A redis-py url over the Unix socket."""
        return f"unix://{quote(str(self.valkey_socket), safe='/')}?db=0"

    def prepare(self) -> None:
        """Make the folders and lock files that are missing, private to the user.

        Raises:
            ServiceError: the folder belongs to somebody else, or cannot be written.
        """
        try:
            if not self.home.exists():
                self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
                privileges.let_servers_enter(self.home)
            for folder in (self.locks, self.users, self.log):
                if not folder.exists():
                    folder.mkdir(mode=0o700, exist_ok=True)
                    privileges.give_to_owner_of(self.home, folder)
            for lock in (self.boot_lock, self.users_lock, self.supervisor_lock):
                if not lock.exists():
                    os.close(self.open_private(lock))
                elif not os.access(lock, os.R_OK | os.W_OK):
                    raise PermissionError(13, "Permission denied", str(lock))
        except OSError as error:
            raise ServiceError(
                f"The data folder {self.home} cannot be used ({error.strerror}: {error.filename}): "
                "run as the user that it belongs to, or set OMNIOPS_HOME to a folder of your own."
            ) from error

    def open_private(self, path: Path, flags: int = 0) -> int:
        """Open a file for writing, made if it is missing, that belongs to the data folder's owner alone."""
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        privileges.give_to_owner_of(self.home, path)
        return descriptor

    def open_log(self, name: str) -> BinaryIO:
        """Open a log to write on; one that has grown too long becomes `NAME.log.1`."""
        path = self.log / f"{name}.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return os.fdopen(self.open_private(path, os.O_APPEND), "ab")


def socket_folder(home: Path) -> Path:
    """The folder of the sockets: `run` in the data folder, or where that is too long a short one in /tmp.

    The short one's name is made from the data folder's path, so that every process finds the same. It is /tmp
    and not TMPDIR because that may differ between two terminals of one user.
    """
    folder = home / "run"
    if len(os.fsencode(folder)) + 1 + _LONGEST_SOCKET_NAME <= _LONGEST_SOCKET_PATH:
        return folder
    digest = hashlib.blake2b(os.fsencode(home), digest_size=8).hexdigest()
    return Path("/tmp") / f"omniops-{digest}"  # noqa: S108 (checked by make_private_folder)


def make_private_folder(folder: Path, account: privileges.Account | None) -> None:
    """Make a folder that nobody but its owner can enter, or check that it is one.

    Args:
        folder: its parent exists.
        account: to whom it is given; None leaves it to the caller's own user.

    Raises:
        ServiceError: it exists and is a link, somebody else's, or open to others: in /tmp anybody could have
            put it there to read what goes through its sockets.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        if account is not None:
            os.chown(folder, account.uid, account.gid)
    found = folder.lstat()
    wanted = account.uid if account is not None else os.geteuid()
    ours = found.st_uid in {wanted, os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise ServiceError(
            f"{folder} is not a folder of this user (uid {wanted}), so no server may use it: "
            "remove it, or set OMNIOPS_HOME to another folder."
        )
    if account is not None and found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
