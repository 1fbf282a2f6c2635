"""Processes that a killed server left behind.

Backends of a killed postmaster end by themselves unless they are busy, and while one lives the cluster cannot
be opened again. They are found by their command lines, which say what they belong to (Postgres writes its
`cluster_name` there, Valkey its socket) and which every user may read: in a container not even root may ask
for the program or the folder of another user's process. A pid file is no help: after a kill its number may
belong to anybody.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resources.services.privileges import ON_LINUX

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Belonging:
    """How processes of one server are told from others.

    Attributes:
        uid: of their user.
        programs: their names begin with one of these.
        marks: one of these stands in their command line.
    """

    uid: int
    programs: tuple[str, ...]
    marks: tuple[str, ...]


def end_leftovers(belonging: Belonging, patience: float) -> None:
    """Wait for the processes of a server that nobody supervises any more, and kill what is left.

    Args:
        belonging: which they are.
        patience: seconds that they have to end by themselves; a killed supervisor's servers are doing so.
    """
    deadline = time.monotonic() + patience
    while pids := find_processes(belonging):
        if time.monotonic() >= deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def find_processes(belonging: Belonging) -> list[int]:
    """Their pids; zombies do not count."""
    return [
        pid
        for pid, uid, command in (_from_proc() if ON_LINUX else _from_ps())
        if uid == belonging.uid
        and Path(command.partition(" ")[0]).name.startswith(belonging.programs)
        and any(mark in f"{command} " for mark in belonging.marks)
    ]


def _from_proc() -> list[tuple[int, int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended since
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                if command:
                    found.append((int(entry.name), entry.stat().st_uid, os.fsdecode(command)))
    return found


def _from_ps() -> list[tuple[int, int, str]]:
    listing = subprocess.run(["/bin/ps", "-axo", "pid=,uid=,command="], capture_output=True, text=True, check=False)
    rows = (line.split(None, 2) for line in listing.stdout.splitlines())
    return [(int(row[0]), int(row[1]), row[2]) for row in rows if len(row) == 3]
