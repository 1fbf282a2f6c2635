"""What both servers have in common: to be started until they answer, and stopped until they are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from resources.services import layout as layouts
from resources.services import privileges
from resources.services.errors import ServiceError
from resources.services.leftovers import Belonging, end_leftovers
from resources.services.probe import Health, health

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from resources.services.binaries import Binaries

_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1  # a server that recovers logs each time that it is asked
# A cluster that was killed replays up to max_wal_size before it serves.
_START_SECONDS = 180.0
_SILENCE_SECONDS = 6.0
_TRIES = 3


class Interrupted(Exception):
    """The supervisor was asked to stop while a server started."""


class Server:
    """A server process of this supervisor.

    Subclasses say what is particular: how to prepare, run and stop it.

    Args:
        layout: of the data folder.
        binaries: the programs.
        account: as whom it runs; None as the supervisor.
        interrupted: true when a start must be given up.
    """

    name: str
    programs: tuple[str, ...]
    data: Path
    death_signal: signal.Signals
    # Asked in this order: how long each may take (seconds) before the next, and then SIGKILL.
    stop_signals: tuple[tuple[signal.Signals, float], ...]

    def __init__(
        self,
        layout: layouts.Layout,
        binaries: Binaries,
        account: privileges.Account | None,
        interrupted: Callable[[], bool],
    ) -> None:
        self.layout = layout
        self.binaries = binaries
        self.account = account
        self.log = layout.log / f"{self.name}.log"
        self._interrupted = interrupted
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Bring the data folder into a state in which the server can start."""
        raise NotImplementedError

    def marks(self) -> tuple[str, ...]:
        """What stands in the command line of this server's processes and no other's."""
        raise NotImplementedError

    def remove_stale_files(self) -> None:
        """Remove what a killed server left, which is known to be gone."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def health(self) -> Health:
        """What it answers."""
        return health(self.name, self.layout, layouts.RUNTIME_ROLE, layouts.DATABASE)[0]

    def died(self) -> bool:
        """Whether it was started, not stopped, and has ended."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """Start it, or wait for it where it is starting, until it answers.

        Raises:
            ServiceError: it ended, or does not answer.
            Interrupted: the supervisor is to stop.
        """
        for tries_left in reversed(range(_TRIES)):
            was_running = self.pid is not None
            try:
                if not was_running:
                    self._launch()
                self._wait_until_ready()
            except ServiceError:
                process = self._process
                was_killed = process is not None and (process.poll() or 0) < 0
                self.stop(at_once=True)
                # Not its own fault: it was there and hung, or was killed while it started.
                if not tries_left or not (was_running or was_killed):
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it and everything that belongs to it.

        Args:
            at_once: kill it, where it is of no use to be polite.
        """
        process, self._process = self._process, None
        if process is not None:
            # One that does not serve yet has nothing to save, and a fast shutdown in the middle of a crash
            # recovery can hang in Postgres 18.
            polite = self.stop_signals if self.health() is Health.READY else self.stop_signals[-1:]
            for number, patience in () if at_once else polite:
                process.send_signal(number)
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                process.kill()
                process.wait()
        self.end_leftovers(patience=0)

    def end_leftovers(self, patience: float) -> None:
        """Wait for processes of this server that nobody supervises; after `patience` seconds kill them."""
        uid = os.geteuid() if self.account is None else self.account.uid
        end_leftovers(Belonging(uid, self.programs, self.marks()), patience)

    def run_tool(self, command: list[str], data: Path, script: str = "") -> None:
        """Run one of the server's own programs as its user.

        Raises:
            ServiceError: it failed; the message ends with its last words.
        """
        setup = privileges.child_setup(self.account, [data, *self._programs_to_reach()], signal.SIGKILL)
        done = subprocess.run(
            command,
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
            cwd="/",
            preexec_fn=setup,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceError(
                f"{os.path.basename(command[0])} could not prepare {data} "  # noqa: PTH119
                f"(exit status {done.returncode}): {_last_line(done.stdout)} "
                "Check free space and permissions there; the next start tries again."
            )

    def _launch(self) -> None:
        # Those of a killed supervisor are ending by themselves; those of a server that died under us are not.
        self.end_leftovers(patience=8.0 if self._process is None else 0.0)
        self.prepare()
        self.remove_stale_files()
        reach = [self.data, self.layout.sockets, *self._programs_to_reach()]
        setup = privileges.child_setup(self.account, reach, self.death_signal)
        with self.layout.open_log(self.name) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd="/",
                preexec_fn=setup,  # noqa: PLW1509 (one other thread, which only waits for a lock)
            )

    def _wait_until_ready(self) -> None:
        start = heard = time.monotonic()
        pause = _POLL_SECONDS
        while (state := self.health()) is not Health.READY:
            now = time.monotonic()
            if state is Health.STARTING:
                heard = now
            if self._interrupted():
                raise Interrupted
            if self.died():
                raise ServiceError(
                    f"The embedded {self.name} ended while it started: {_last_line(self._log_since_start())} "
                    f"The whole story is in {self.log}."
                )
            if now - start > _START_SECONDS or now - heard > _SILENCE_SECONDS:
                raise ServiceError(
                    f"The embedded {self.name} did not answer within {now - start:.0f} s: see {self.log}, "
                    "and try again."
                )
            time.sleep(pause)
            pause = min(pause * 1.2, _LONGEST_POLL_SECONDS)

    def _log_since_start(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _programs_to_reach(self) -> list[Path]:
        return [self.binaries.postgres / "postgres", self.binaries.valkey]


def _environment() -> dict[str, str]:
    """The servers' environment: no PG* variable, locale or PYTHON* of the caller's reaches them."""
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LD_LIBRARY_PATH", "TMPDIR"}}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What our own questions left in the log while it started tells nothing.
    lines = [line for line in lines if "the database system is" not in line]
    telling = [line for line in lines if "FATAL" in line or "ERROR" in line or "rror:" in line]
    line = (telling or lines or ["it said nothing"])[-1]
    return line if line.endswith(".") else f"{line}."
