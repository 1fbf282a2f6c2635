"""Gathers finished pages and commits them in batches, off the event loop.

One commit is under way at a time, in a thread of its own; what finishes meanwhile is the next batch. So batches
grow when the database is slow and shrink when it is quick, and the event loop never waits for either.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from resources.postgres.frontier import Batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resources.crawler.patience import Patience
    from resources.postgres.frontier import Committed, FinishedUrl, FoundLink

# A batch is committed when it has this many pages, or when this much time has passed since its first.
BATCH_PAGES = 100
BATCH_SECONDS = 0.1
# Fetching is held back while more than this many pages are unsaved: what a kill costs, and what memory holds.
MAX_UNSAVED = 600


class BatchWriter:
    """Commits what the crawl finishes.

    Args:
        commit: writes a batch; it is called again with the same batch when the connection was lost.
        committed: told of each batch after it is written, on the event loop.
        hungry: True while the crawl has too little to fetch; then a batch goes at once, since its links are wanted.
        patience: runs `commit`.
    """

    def __init__(
        self,
        commit: Callable[[Batch], Committed],
        committed: Callable[[Batch, Committed], Awaitable[None]],
        hungry: Callable[[], bool],
        patience: Patience,
    ) -> None:
        self._commit = commit
        self._committed = committed
        self._hungry = hungry
        self._patience = patience
        self._batch = Batch()
        self._first_at = 0.0
        self._writing = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        self.seconds = 0.0

    @property
    def unsaved(self) -> int:
        """Pages that are finished and not committed; not 0 while links are not."""
        return max(len(self._batch.finished), 1 if self._batch.links else 0) + self._writing

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="batch writer")

    def add(self, finished: list[FinishedUrl], links: list[FoundLink]) -> None:
        """Take outcomes and links: they are committed together. A page's links may come before its outcome."""
        if not self._batch.finished and not self._batch.links:
            self._first_at = time.monotonic()
        self._batch.finished.extend(finished)
        self._batch.links.extend(links)
        self._arrived.set()

    async def close(self) -> None:
        """Commit what is left and stop. Raises what made writing fail."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        if self.error is not None:
            raise self.error

    async def _run(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._batch.finished or self._batch.links:
                    await self._gather()
                    batch, self._batch = self._batch, Batch()
                    # Links alone are something unsaved too: the crawl has not ended before they are there.
                    self._writing = max(1, len(batch.finished))
                    try:
                        done = await self._write(batch)
                        await self._committed(batch, done)
                    finally:
                        self._writing = 0
                if self._closing:
                    return
        except Exception as error:  # noqa: BLE001 - kept, and raised where the crawl can act on it
            self.error = error

    async def _gather(self) -> None:
        """Wait for the batch to fill, unless somebody waits for its links."""
        while (
            not self._closing
            and not self._hungry()
            and len(self._batch.finished) < BATCH_PAGES
            and (left := self._first_at + BATCH_SECONDS - time.monotonic()) > 0
        ):
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), min(left, 0.02))
            except TimeoutError:
                continue

    async def _write(self, batch: Batch) -> Committed:
        started = time.perf_counter()
        try:
            return await self._patience.call(self._commit, batch)
        finally:
            self.seconds += time.perf_counter() - started
