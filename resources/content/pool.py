"""Reads pages in processes of their own, beside the crawl.

What a page says takes milliseconds to find, on a hostile page seconds or all memory; so it is found in processes that
may hang, crash or swell, each at the cost of the one page that did it. Of such a page all visible text is taken, and
the reason is kept with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from resources.bounded_log import BoundedLog
from resources.content.extraction import Extracted
from resources.content.fingerprints import Fingerprint, fingerprint
from resources.content.worker import OUT_OF_MEMORY, read_frame, write_frame
from resources.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from resources.postgres.page_html import FetchedHtml

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Of one page, in CPU seconds. Real pages take hundredths; 16 MB of honest HTML take about four.
PAGE_SECONDS: Final = 10.0
# Of one process, in bytes of address space: Python with its libraries has 0.3 GB, a page of 16 MB needs about 0.6 GB.
MEMORY_BYTES: Final = 1_536 * 2**20
# A process is replaced after so many pages: what its libraries keep does not grow for ever.
PAGES_PER_PROCESS: Final = 5_000
# A crawl uses the cores that there are, but no more than this: the rest of a large machine is somebody else's.
MAX_PROCESSES: Final = 8


@dataclass(frozen=True, slots=True)
class ReadPage:
    """What a page says.

    Attributes:
        extracted: title, text, markdown and the rest.
        fingerprint: of its text.
        failure: why all of its visible text stands for what it says, or nothing does: `timeout`, `memory` or `crash`;
            None where all went well.
    """

    extracted: Extracted
    fingerprint: Fingerprint
    failure: str | None = None


class _Died(Exception):
    """A process ended over a page."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def default_processes() -> int:
    """As many as this process may use cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MAX_PROCESSES))


class _Process:
    """One process, used by one thread at a time."""

    def __init__(self, page_seconds: float, memory_bytes: int) -> None:
        command = [sys.executable, "-m", "resources.content.worker", str(memory_bytes), str(page_seconds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT_ROOT,
            # One thread each: the libraries' own would stand in each other's way.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
        )
        self._sets: set[int] = {0}
        self._ready = False
        self.pages = 0

    def ask(self, task: str, page: FetchedHtml, set_id: int, known: frozenset[int]) -> dict[str, Any]:
        """Have a page read.

        Raises:
            _Died: the process ended over it.
        """
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:  # both are pipes
            raise _Died("crash")
        message: dict[str, Any] = {
            "task": task,
            "url": page.url,
            "content_type": page.content_type,
            "charset": page.charset,
            "boilerplate": set_id,
            "size": len(page.body),
        }
        if set_id not in self._sets:
            message["define"] = list(known)
            self._sets.add(set_id)
        self.pages += 1
        try:
            if not self._ready:
                if read_frame(answers) is None:
                    raise _Died(self._why())
                self._ready = True
            write_frame(requests, message, page.body)
            answer = read_frame(answers)
        except (OSError, ValueError) as error:
            raise _Died(self._why()) from error
        if answer is None:
            raise _Died(self._why())
        return answer

    def _why(self) -> str:
        status = self._process.wait(timeout=30)
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            return "timeout"
        return "memory" if status == OUT_OF_MEMORY else "crash"

    def close(self) -> None:
        """End it; what it was reading is lost."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))


def _read_page(answer: dict[str, Any], failure: str | None) -> ReadPage:
    print_of_text = Fingerprint(**answer.pop("fingerprint"))
    published = answer.pop("published")
    if published is not None:
        published = (datetime if "T" in published else date).fromisoformat(published)
    if failure is not None:
        answer["fallback_reason"] = failure
    return ReadPage(Extracted(**answer, published=published), print_of_text, failure)


class ExtractionPool:
    """Some processes that read pages.

    Used from one event loop; the processes start when they are first needed.

    Args:
        processes: how many pages are read at once; by default as many as there are cores.
        page_seconds: CPU time for one page.
        memory_bytes: address space of one process.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        page_seconds: float = PAGE_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.processes = processes or default_processes()
        self._page_seconds = page_seconds
        self._memory_bytes = memory_bytes
        self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="extraction")
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._running: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._set_ids: dict[frozenset[int], int] = {frozenset(): 0}
        self._log = BoundedLog(logger, logging.WARNING, "the main text of %d pages could not be told (%s)")
        self.failures: Counter[str] = self._log.counts
        """Pages by what failed over them."""

    def __enter__(self) -> ExtractionPool:
        """Nothing runs yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes at once."""
        self.close()

    def start(self) -> None:
        """Start a process now, so that it is ready when the first page comes; more follow as they are needed."""
        self._threads.submit(lambda: self._free.put(self._new_process()))

    def close(self) -> None:
        """End all processes at once; pages under way are lost."""
        with self._lock:
            self._closed = True
            running = list(self._running)
            self._running.clear()
        for process in running:
            process.close()
        self._log.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def extract(self, page: FetchedHtml, boilerplate: frozenset[int] = frozenset()) -> ReadPage:
        """What a page says; it always says something, if need be nothing but why.

        Args:
            page: as it was fetched.
            boilerplate: hashes of the blocks that stand on many pages of its site (`SiteBoilerplate.known`).
        """
        return await self._in_thread(lambda: self._extract(page, boilerplate))

    async def survey(self, page: FetchedHtml) -> frozenset[int]:
        """Hashes of the blocks of a page; none where it cannot be read."""
        return await self._in_thread(lambda: self._survey(page))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # --- in a thread of the pool ----------------------------------------------------------------------------------

    def _extract(self, page: FetchedHtml, boilerplate: frozenset[int]) -> ReadPage:
        failure: str | None = None
        for task in ("extract", "visible"):
            try:
                answer = self._ask(task, page, boilerplate)
            except _Died as died:
                failure = failure or died.reason
                continue
            if failure is not None:
                self._count(failure, page)
            return _read_page(answer, failure)
        self._count(failure or "crash", page)
        return ReadPage(Extracted(fallback_reason=failure), fingerprint(""), failure)

    def _survey(self, page: FetchedHtml) -> frozenset[int]:
        try:
            return frozenset(self._ask("survey", page, frozenset())["blocks"])
        except _Died:
            return frozenset()

    def _count(self, failure: str, page: FetchedHtml) -> None:
        if not self._closed:  # else it was cut off, and nothing is wrong with it
            said = "the main text of %s could not be told (%s): all that is visible is kept"
            self._log.note(failure, said, page.url, failure)

    def _ask(self, task: str, page: FetchedHtml, known: frozenset[int]) -> dict[str, Any]:
        process = self._take()
        try:
            answer = process.ask(task, page, self._set_id(known), known)
        except BaseException:
            self._drop(process)
            raise
        if process.pages >= PAGES_PER_PROCESS:
            self._drop(process)
        else:
            self._free.put(process)
        return answer

    def _set_id(self, known: frozenset[int]) -> int:
        with self._lock:
            return self._set_ids.setdefault(known, len(self._set_ids))

    def _take(self) -> _Process:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return self._new_process()

    def _new_process(self) -> _Process:
        process = _Process(self._page_seconds, self._memory_bytes)
        with self._lock:
            if not self._closed:
                self._running.add(process)
                return process
        process.close()
        raise _Died("closed")

    def _drop(self, process: _Process) -> None:
        with self._lock:
            self._running.discard(process)
        process.close()
