"""What follows a commit and need not hold up the next one: the copy to the cache, and full-text indexing.

Neither decides anything. A copy that is lost is read again from Postgres; a text that is not indexed yet is marked so
in its row, and whoever crawls next indexes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from resources.postgres.frontier import FinishedUrl

logger = logging.getLogger(__name__)

# Pages in one indexing transaction: some tens of milliseconds, so that a page is never locked for long.
INDEX_PAGES = 50
# Connections that index at once. Making a vector takes Postgres about as long as two pages take the crawler.
INDEXERS = 2


class CommitFollowers:
    """Runs what follows commits in a few threads beside the crawl.

    Args:
        copy: puts what was acknowledged into the cache.
        index: indexes up to so many waiting texts and says how many it did.
        phases: seconds spent, by name; `cache` and `index` are added to.
    """

    def __init__(
        self,
        copy: Callable[[Sequence[FinishedUrl]], None] | None,
        index: Callable[[int], int] | None,
        phases: dict[str, float],
    ) -> None:
        self._copy = copy
        self._index = index
        self._phases = phases
        self._threads = ThreadPoolExecutor(1 + INDEXERS, thread_name_prefix="after commit")
        self._copying: asyncio.Future[None] | None = None
        self._indexing: list[asyncio.Task[None]] = []
        self._more = asyncio.Event()
        self._ending = False

    def __enter__(self) -> CommitFollowers:
        """Nothing runs before the first commit."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the threads; what they have not done is done by the next crawl."""
        for task in self._indexing:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def after_commit(self, taken: Sequence[FinishedUrl]) -> None:
        """Copy and index what a commit took. Waits only while the copy of the commit before is under way."""
        loop = asyncio.get_running_loop()
        if self._copy is not None:
            if self._copying is not None:
                await self._copying
            self._copying = loop.run_in_executor(self._threads, self._copy_timed, taken)
        if self._index is not None and any(finished.content is not None for finished in taken):
            self._more.set()
            if not self._indexing:
                self._indexing = [
                    asyncio.create_task(self._index_all(), name=f"full-text index {n}") for n in range(INDEXERS)
                ]

    async def finish(self, patience_seconds: float | None) -> None:
        """Wait for what is under way, and for all texts to be indexed (for so long; None: until they are)."""
        if self._copying is not None:
            await self._copying
        if self._indexing:
            self._ending = True
            self._more.set()
            await asyncio.wait(self._indexing, timeout=patience_seconds)

    def _copy_timed(self, taken: Sequence[FinishedUrl]) -> None:
        started = time.perf_counter()
        if self._copy is not None:
            self._copy(taken)
        self._phases["cache"] += time.perf_counter() - started

    def _index_timed(self) -> int:
        started = time.perf_counter()
        try:
            return self._index(INDEX_PAGES) if self._index is not None else 0
        except DBAPIError as error:
            # The writer says what is to be said about a lost database; these texts wait.
            logger.info("full-text indexing waits: %s", error)
            return 0
        finally:
            self._phases["index"] += time.perf_counter() - started

    async def _index_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            # Asked before: a pass under way when the end was told began before the last commit could be seen.
            is_last = self._ending
            if not is_last:
                self._more.clear()
            while await loop.run_in_executor(self._threads, self._index_timed) == INDEX_PAGES:
                pass
            if is_last:
                return
