"""Locks between processes, which the kernel drops when their holder ends, however it ends.

All are `flock`s, and a lock is given back by closing its file, never by LOCK_UN: a forked child shares the
lock with its parent, and an unlock in the child would take it from the parent as well. `open` in Python makes
files that programs started from here do not inherit.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from resources.services.layout import Layout

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX

_POLL_SECONDS = 0.005
_numbers = itertools.count()


class LockTimeoutError(TimeoutError):
    """Somebody else held a lock for too long."""


def take(path: Path, kind: int, timeout: float) -> int:
    """Take a lock and return the descriptor that holds it until it is closed.

    Args:
        path: the lock's file, which exists.
        kind: `SHARED` or `EXCLUSIVE`.
        timeout: seconds; 0 tries once.

    Raises:
        LockTimeoutError: it was not to be had in time.
    """
    deadline = time.monotonic() + timeout
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeoutError(str(path)) from None
                time.sleep(_POLL_SECONDS)
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def held(path: Path, kind: int, timeout: float) -> Iterator[None]:
    """Hold a lock for a block; as `take`."""
    descriptor = take(path, kind, timeout)
    try:
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds this lock exclusively."""
    try:
        os.close(take(path, SHARED, 0))
    except LockTimeoutError:
        return True
    except FileNotFoundError:
        return False
    return False


class UserShare:
    """One user's share of the servers: while it is held they are not stopped.

    Two files: a shared lock on one file of all users, on which the supervisor waits for the last to go, and a
    file of its own, named by pid, so that a person can be told who the users are.

    Args:
        layout: of the data folder.
        timeout: seconds to wait while a supervisor is stopping its servers.

    Raises:
        LockTimeoutError: it did not stop in time.
    """

    def __init__(self, layout: Layout, timeout: float) -> None:
        self._shared = take(layout.users_lock, SHARED, timeout)
        name = f"{os.getpid()}-{next(_numbers)}"
        self._path = layout.users / name
        # Locked before it has its name, or who lists the users would take it for a dead one's.
        new = layout.users / f"new-{name}"
        self._own = layout.open_private(new)
        fcntl.flock(self._own, EXCLUSIVE)
        new.rename(self._path)

    def release(self) -> None:
        """Give it back."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the files alone, as a forked child must."""
        os.close(self._own)
        os.close(self._shared)


def user_pids(layout: Layout) -> list[int]:
    """Pids of the processes that hold a share; files of processes that were killed are removed."""
    pids: set[int] = set()
    for path in layout.users.glob("[0-9]*-*"):
        if is_held(path):
            pids.add(int(path.name.partition("-")[0]))
        else:
            path.unlink(missing_ok=True)
    return sorted(pids)
