"""What a contender measures of itself and of the stores, over the time of its crawl alone.

Imports, connections and set-up are outside: a `Meter` runs from `start` to `stop`.

CPU of a server is the time of all its processes: those that live, by `/proc/PID/task/*/schedstat` (nanoseconds),
and those that ended and were waited for, by the postmaster's own `cutime` and `cstime` (ticks of 10 ms). A
process that ends moves from the first sum to the second, so nothing is lost; and the meter is stopped while the
contender's connections are open, so that its backends are in the exact sum. What Postgres does later for these
rows (autovacuum, checkpoint) is outside, for all contenders alike: the next run begins with a checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

# Resident memory is noted each time so many more pages are done.
CURVE_PAGES = 1_000
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Measured:
    """One run of a contender.

    Attributes:
        contender: its name.
        pages: pages that it says it finished.
        seconds: wall time of the crawl.
        cpu_seconds: of the contender's process, all threads, and the processes that it has started.
        postgres_cpu_seconds: of all processes of the server.
        valkey_cpu_seconds: of the server.
        rss_start_mb, rss_1000_mb, rss_end_mb, rss_peak_mb: resident memory at the start of the crawl, at 1,000
            pages, at its end, and the highest.
        rss_curve_mb: resident memory at each 1,000 pages.
        job_id: of the rows that it wrote, if it wrote any.
        details: what only this contender has.
    """

    contender: str
    pages: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    postgres_cpu_seconds: float = 0.0
    valkey_cpu_seconds: float = 0.0
    rss_start_mb: float = 0.0
    rss_1000_mb: float | None = None
    rss_end_mb: float = 0.0
    rss_peak_mb: float = 0.0
    rss_curve_mb: dict[int, float] = field(default_factory=dict)
    job_id: str | None = None
    details: dict[str, object] = field(default_factory=dict)

    def print(self) -> None:
        """Print it as the contender's one line."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def read(cls, line: str) -> Measured:
        """Read a contender's line."""
        values = json.loads(line)
        values["rss_curve_mb"] = {int(pages): mb for pages, mb in values["rss_curve_mb"].items()}
        return cls(**values)


class Meter:
    """Measures from `start` to `stop`.

    Args:
        contender: its name.
        postgres: pid of the postmaster, for contenders that use it.
        valkey: pid of the server, likewise.
    """

    def __init__(self, contender: str, *, postgres: int | None = None, valkey: int | None = None) -> None:
        self.measured = Measured(contender)
        self._postgres = postgres
        self._valkey = valkey
        self._begun = (0.0, 0.0, 0.0, 0.0)

    def start(self) -> None:
        """The crawl begins."""
        self.measured.rss_start_mb = resident_mb()
        self._begun = self._read()

    def page_count(self, pages: int) -> None:
        """So many pages are done; cheap enough to be called for each."""
        if pages >= CURVE_PAGES * (len(self.measured.rss_curve_mb) + 1):
            self.measured.rss_curve_mb[pages] = resident_mb()

    def stop(self, pages: int) -> Measured:
        """The crawl is over, with everything written."""
        now = self._read()
        measured = self.measured
        measured.pages = pages
        (
            measured.seconds,
            measured.cpu_seconds,
            measured.postgres_cpu_seconds,
            measured.valkey_cpu_seconds,
        ) = (after - before for after, before in zip(now, self._begun, strict=True))
        measured.rss_end_mb = resident_mb()
        measured.rss_peak_mb = _status_mb("VmHWM")
        measured.rss_1000_mb = next(iter(measured.rss_curve_mb.values()), None)
        return measured

    def _read(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), _own_cpu(), cpu_of(self._postgres), cpu_of(self._valkey)


def resident_mb() -> float:
    """Resident memory of this process."""
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1_024
    msg = f"/proc/self/status has no {name}: this benchmark needs Linux"
    raise RuntimeError(msg)


def cpu_of(server: int | None) -> float:
    """CPU seconds that a server has used since it started, its present and past children included."""
    if server is None:
        return 0.0
    root = psutil.Process(server)
    return _of_living_threads(root) + _of_children(root)


def _own_cpu() -> float:
    """CPU seconds of this process and its children. Its crawl ran in a thread, which has ended when this is asked."""
    return time.process_time() + _of_children(psutil.Process())


def _of_children(root: psutil.Process) -> float:
    ended = root.cpu_times()
    living = sum(_of_living_threads(process) for process in root.children(recursive=True))
    return float(ended.children_user + ended.children_system) + living


def _of_living_threads(process: psutil.Process) -> float:
    seconds = 0.0
    for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
        try:
            seconds += int(path.read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return seconds


class Speed(NamedTuple):
    """How long the same small loop takes here: figures of two days can be compared by it.

    Attributes:
        best_ms: the fastest of its rounds: the machine.
        median_ms: the middle one: what else it does. Far above `best_ms`, it is not quiet.
    """

    best_ms: float
    median_ms: float

    def __str__(self) -> str:
        return f"a loop of Python takes {self.best_ms} ms at best, {self.median_ms} ms in the middle"


def machine_speed(rounds: int = 25) -> Speed:
    """Half a million additions of plain Python, so many times: about half a second."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        total = 0
        for number in range(500_000):
            total += number & 7
        times.append((time.perf_counter() - started) * 1_000)
    times.sort()
    return Speed(round(times[0], 1), round(times[rounds // 2], 1))
