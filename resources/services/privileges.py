"""As whom the servers run, and how they end with their supervisor.

Postgres refuses to run as root. As root, the servers therefore run as the owner of the data folder where that
is not root, and else as a system user of their own. Nothing on the way to the folder is opened for that user:
where it could not pass (a checkout under /root), the server is given the one capability that lets it read and
traverse. What is Linux alone stands in `_Linux`; elsewhere a server outlives a killed supervisor until the
next start finds it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resources.services.errors import ServiceError

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

SERVER_USER = "omniops-postgres"

ON_LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True, slots=True)
class Account:
    """The user that the servers run as, where it is another than the caller."""

    uid: int
    gid: int


def server_account(home: Path, data: Path) -> Account | None:
    """As whom the servers of a data folder run; None means as the caller.

    Args:
        home: the data folder.
        data: the cluster in it; need not exist.
    """
    if os.geteuid() != 0:
        return None
    # A cluster stays with the user who has it; a folder of somebody else's (sudo) stays usable for them.
    for folder in (data, home):
        if folder.exists() and (uid := folder.stat().st_uid) != 0:
            return Account(uid, folder.stat().st_gid)
    entry = _entry(SERVER_USER) or _create_server_user() or _entry("nobody")
    if entry is None:
        raise ServiceError(
            "Postgres does not run as root, and there is no other user to run it as: run as a normal user, "
            f"create the user {SERVER_USER}, or set OMNIOPS_DATABASE_URL to a server of your own."
        )
    return Account(entry.pw_uid, entry.pw_gid)


def let_servers_enter(home: Path) -> None:
    """Let the servers' own group, and nobody else, pass through a data folder that we made as root."""
    account = server_account(home, home / "postgres")
    if account is not None:
        os.chown(home, -1, account.gid)
        home.chmod(0o710)


def give_to_owner_of(home: Path, path: Path) -> None:
    """Give what root makes in a user's data folder to that user, who could not use it otherwise."""
    if os.geteuid() == 0:
        owner = home.stat()
        if owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid)


def give_tree(folder: Path, account: Account | None) -> None:
    """Give a server's folder to its user, where it is not theirs already (a copy made as root).

    Raises:
        ServiceError: it belongs to somebody else and we are not root.
    """
    if account is None:
        if (uid := folder.stat().st_uid) != os.geteuid():
            raise ServiceError(
                f"{folder} belongs to uid {uid}, and this is uid {os.geteuid()}: run as its owner, "
                "or set OMNIOPS_HOME to a folder of your own."
            )
        return
    if folder.stat().st_uid == account.uid:
        return
    for directory, _, names in os.walk(folder):
        for name in names:
            os.chown(os.path.join(directory, name), account.uid, account.gid, follow_symlinks=False)  # noqa: PTH118
        if directory != str(folder):
            os.chown(directory, account.uid, account.gid)
    os.chown(folder, account.uid, account.gid)  # last: its owner says that the rest is done


def can_pass(path: Path, account: Account) -> bool:
    """Whether a user may go through every folder above a path, by mode bits."""
    for folder in path.resolve().parents:
        found = folder.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == account.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def child_setup(account: Account | None, paths: list[Path], death_signal: signal.Signals) -> Callable[[], None]:
    """What a server does between fork and exec: become its user, and ask to end with its parent.

    Args:
        account: whom to become; None stays as it is.
        paths: what it must reach.
        death_signal: sent to it by the kernel when its parent thread ends, however it ends.

    Returns:
        A function for `preexec_fn`.

    Raises:
        ServiceError: the user cannot reach a path and we may not hand on the right to.
    """
    if not ON_LINUX:
        return lambda: _become(account)
    linux = _Linux()
    parent = os.getpid()
    blocked = [path for path in paths if account is not None and not can_pass(path, account)]
    capability = linux.capability_to_pass() if blocked else None
    if blocked and capability is None:
        raise ServiceError(
            f"As root the servers run as another user, who cannot reach {blocked[0]} past folders that only "
            "root may enter: set OMNIOPS_HOME (and put the project) where others may pass, such as /srv, "
            "or run as a normal user."
        )

    def setup() -> None:
        if capability is None:
            _become(account)
        else:
            linux.keep_capability(capability, lambda: _become(account))
        linux.end_with_parent(parent, death_signal)

    return setup


def _become(account: Account | None) -> None:
    os.umask(0o077)
    if account is not None:
        os.setgroups([])
        os.setgid(account.gid)
        os.setuid(account.uid)


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _create_server_user() -> pwd.struct_passwd | None:
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    shell = shutil.which("nologin", path="/usr/sbin:/sbin") or "/bin/false"
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell]
    subprocess.run([program, *options, SERVER_USER], capture_output=True, timeout=60, check=False)
    # Looked up whatever it returned: another process may have been first, and then it failed here.
    return _entry(SERVER_USER)


class _Linux:
    """The calls of prctl(2) and capset(2) that Python has no name for."""

    _SET_DEATH_SIGNAL = 1
    _GET_SECUREBITS = 27
    _SET_SECUREBITS = 28
    _AMBIENT = 47
    _AMBIENT_RAISE = 2
    _NO_SETUID_FIXUP = 1 << 2
    _CAPABILITY_VERSION_3 = 0x20080522
    _SETPCAP = 8
    # Read and traverse; where a container withholds it (Docker does), override, which can write as well. The
    # server listens on a private socket only, whose one user is root.
    _TO_PASS = (2, 1)

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def capability_to_pass(self) -> int | None:
        """The capability to hand on, or None where we have none to give."""
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            own = next((int(line.split()[1], 16) for line in status if line.startswith("CapPrm")), 0)
        if not own & 1 << self._SETPCAP:
            return None
        return next((number for number in self._TO_PASS if own & 1 << number), None)

    def keep_capability(self, capability: int, become: Callable[[], None]) -> None:
        """Change the user and keep one capability, through exec too."""
        # access(2) asks with the real user's rights and drops capabilities for it unless this bit is set;
        # Postgres looks for its own program with it.
        bits = self._prctl(self._GET_SECUREBITS, 0)
        self._prctl(self._SET_SECUREBITS, bits | self._NO_SETUID_FIXUP)
        become()
        header = (ctypes.c_uint32 * 2)(self._CAPABILITY_VERSION_3, 0)
        one = 1 << capability
        data = (ctypes.c_uint32 * 6)(one, one, one, 0, 0, 0)  # effective, permitted, inheritable
        if self._libc.capset(header, data) != 0:
            raise OSError(ctypes.get_errno(), "capset")
        self._prctl(self._AMBIENT, self._AMBIENT_RAISE, capability)

    def end_with_parent(self, parent: int, death_signal: signal.Signals) -> None:
        """Ask for a signal at the parent's end; after the change of user, which forgets it."""
        self._prctl(self._SET_DEATH_SIGNAL, death_signal)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)

    def _prctl(self, option: int, first: int, second: int = 0) -> int:
        words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
        result: int = self._libc.prctl(option, *words)
        if result < 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")
        return result
