"""Crawlee's request manager over the Postgres frontier.

The urls that this worker leases are held in memory, so that a page costs no query: urls come in batches (`claim`),
new links come back from the commit that entered them, and what is done is acknowledged by the writer.

Crawlee asks `is_empty` and `is_finished` for each task and sleeps half a second when it is told "empty"; so
`is_empty` itself waits, on an event that says when there is work.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crawlee import Request
from crawlee.request_loaders import RequestManager

from resources.crawler.writer import MAX_UNSAVED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from crawlee.storage_clients.models import ProcessedRequest

    from resources.crawler.patience import Patience
    from resources.crawler.politeness import ReadyUrls
    from resources.crawler.reading import PageReader
    from resources.crawler.writer import BatchWriter
    from resources.postgres.frontier import Batch, Committed, CrawlFrontier, FrontierUrl
    from resources.postgres.known_pages import KnownPage

# How many urls one claim leases, and below how many in memory the next claim is made.
CLAIM_URLS = 500
LOW_WATER = 100
# New links are this worker's own while it holds fewer than this; the rest wait in Postgres for any worker.
OWN_LINKS_BELOW = 2_000
# Pages of the job's budget that are reserved at once.
RESERVE_PAGES = 200
# The same three for a worker that is not alone: small, so that there is something left for the others.
SHARED_CLAIM_URLS = 50
SHARED_OWN_LINKS_BELOW = 50
SHARED_RESERVE_PAGES = 50
# Urls are remembered as 64-bit numbers, to spare Postgres links that it knows. Past this the memory is emptied:
# Postgres has the last word on what is new anyway.
REMEMBERED_URLS = 2_000_000
_WAIT_SECONDS = 0.25


@dataclass(slots=True)
class Task:
    """A url that this worker holds, with the tries made so far.

    Attributes:
        counted: it has taken a page of the budget.
        known: its page, as it was read before.
        lastmod: its sitemap's date.
        unconditional: it has to be fetched whole.
        asked: the last answer is one to the question whether it has changed.
    """

    hash: int
    url: str
    depth: int
    tries: int = 0
    counted: bool = False
    known: KnownPage | None = None
    lastmod: datetime | None = None
    unconditional: bool = False
    asked: bool = False


class FrontierRequestManager(RequestManager):
    """What is to be fetched next, and what has been.

    Args:
        frontier: the job's frontier.
        worker: this worker's fencing token.
        max_pages: of the job; this worker reserves its part of it.
        ready: holds the urls that can be fetched.
        patience: calls the frontier, and again where its answer was lost.
        look_up: what is known of urls, called by `patience`.
        company: workers that are to share the job; from the first page on each leaves the others something then.

    Attributes:
        expecting: sitemaps are being read: the end has to wait for what they list.
    """

    def __init__(
        self,
        frontier: CrawlFrontier,
        worker: int,
        max_pages: int,
        ready: ReadyUrls,
        patience: Patience,
        look_up: Callable[[Sequence[str]], Mapping[str, KnownPage]],
        company: int = 1,
    ) -> None:
        self._look_up = look_up
        self._unlinked: set[int] = set()
        self._frontier = frontier
        self._company = company
        self._worker = worker
        self._max_pages = max_pages
        self._patience = patience
        self._losses = 0
        self.writer: BatchWriter | None = None
        self.reader: PageReader | None = None
        self._ready = ready
        self._delayed: list[tuple[float, int, Task]] = []
        self._order = itertools.count()
        self._in_flight: dict[str, Task] = {}
        self._followed: set[int] = set()
        self._beyond_depth: set[int] = set()
        self._pages_left = 0
        self._budget_gave_nothing = False
        self._alone = company <= 1
        self._next_poll = 0.0
        self._handled = 0
        self._refill: asyncio.Task[None] | None = None
        self._waiting_in_postgres = True
        self._wake = asyncio.Event()
        self.expecting = False
        self.finished = False
        self.budget_spent = False
        self.stopping = False
        self.error: BaseException | None = None

    # --- what the crawl tells -------------------------------------------------------------------------------

    def task_of(self, request: Request) -> Task:
        """The task behind a request that was handed out."""
        return self._in_flight[request.unique_key]

    def take(self) -> Task | None:
        """Take the next url, if one may be fetched now."""
        if not self._may_hand_out() or (task := self._ready.pop(self._wanted)) is None:
            return None
        if not task.counted:
            task.counted = True
            self._pages_left -= 1
        if len(self._ready) < LOW_WATER:
            self._ensure_refill()
        self._in_flight[str(task.hash)] = task
        return task

    def put_down(self, task: Task) -> None:
        """The url is done with for now: its outcome is with the writer, or it waits for another try."""
        self._in_flight.pop(str(task.hash), None)
        self._handled += 1
        self._wake.set()

    def retry(self, task: Task, delay: float) -> None:
        """Hand the task out again after `delay` seconds."""
        heapq.heappush(self._delayed, (time.monotonic() + delay, next(self._order), task))

    def put_back(self, task: Task) -> None:
        """Hand the task out again when its domain may be asked."""
        self._ready.appendleft(task)

    def follow(self, url_hash: int, *, beyond_depth: bool) -> bool:
        """Remember a link; True if it was not known to this worker, so that Postgres should hear of it."""
        if self._unlinked and url_hash in self._unlinked:
            self._unlinked.remove(url_hash)  # known before and taken, and the first link to it is here
            return True
        if url_hash in self._followed:
            return False
        if beyond_depth:
            if url_hash in self._beyond_depth:
                return False
            self._beyond_depth.add(url_hash)
            return True
        if len(self._followed) >= REMEMBERED_URLS:
            self._followed.clear()
            self._beyond_depth.clear()
        self._followed.add(url_hash)
        return True

    def knows(self, url_hash: int) -> bool:
        """True if this worker has queued or done the url."""
        return url_hash in self._followed

    def adopt(self, url_hash: int) -> bool:
        """Take a url that a redirect led to as one more page of this worker; False if it may not or need not."""
        if self._pages_left <= 0 or url_hash in self._followed:
            return False
        self._followed.add(url_hash)
        self._pages_left -= 1
        return True

    @property
    def own_links(self) -> int:
        """How many more links this worker wants to hold."""
        return max(0, (OWN_LINKS_BELOW if self._alone else SHARED_OWN_LINKS_BELOW) - len(self._ready))

    @property
    def waiting(self) -> int:
        """Urls held and not handed out."""
        return len(self._ready) + len(self._delayed)

    @property
    def in_flight(self) -> int:
        """Urls handed out and not handled."""
        return len(self._in_flight)

    @property
    def only_reading(self) -> bool:
        """True while all that is under way is being read, and nothing more can be fetched meanwhile."""
        reading = self.reader.pending if self.reader is not None else 0
        if self.expecting or len(self._in_flight) > reading or not self._nothing_unsaved():
            return False
        if self._budget_gave_nothing and self._pages_left <= 0:
            return True
        if self._refill is not None and not self._refill.done():
            return False
        return self._pages_left <= 0 or not (self.waiting or self._waiting_in_postgres)

    @property
    def hungry(self) -> bool:
        """True if the links of the next commit are wanted at once."""
        return not self._ready and not self.budget_spent

    async def committed(self, batch: Batch, done: Committed) -> None:
        """Take the new links that a commit made this worker's own."""
        await self._mind_others(done.shared)
        for link in batch.links:
            if link.hash in done.owned:
                self._ready.append(Task(link.hash, link.url, link.depth, known=done.known.get(link.url)))
            elif link.skip_reason is None:
                # Entered without an owner, or known before: Postgres may have something to claim.
                self._waiting_in_postgres = True
        self._wake.set()

    @property
    def alone(self) -> bool:
        """True while no other worker is at the job, or is to come."""
        return self._alone

    async def _mind_others(self, shared: bool) -> None:
        """Heed who is at the job; what was piled up for one worker is given back when a second one comes."""
        was_alone, self._alone = self._alone, self._company <= 1 and not shared
        if not was_alone or self._alone:
            return
        surplus = [task.hash for task in self._ready.give_up(SHARED_CLAIM_URLS)]
        if surplus:
            await self._patience.call(self._frontier.hand_back, self._worker, surplus)
            self._waiting_in_postgres = True

    def more_waits(self) -> None:
        """Urls were entered into the frontier beside the pages' links."""
        self._waiting_in_postgres = True
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """End the crawl with this error: nothing more can come of it."""
        self.error = self.error or error
        self._wake.set()

    def stop(self) -> None:
        """Hand out nothing more."""
        self.stopping = True
        self._wake.set()

    # --- Crawlee's side -------------------------------------------------------------------------------------

    async def is_empty(self) -> bool:
        """False when there is something to do: a request can be handed out, or the end can be noticed.

        Crawlee sleeps half a second after a True, so this waits itself until it can say False; only a stop ends
        the wait before.
        """
        while not self._can_hand_out():
            if self.stopping:
                return True
            if self._is_done():
                # Crawlee fetches once more, gets None, and asks `is_finished` at once.
                return False
            self._wake.clear()
            self._ensure_refill()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._wait_seconds())
        return False

    async def is_finished(self) -> bool:
        """True when nothing is left here, in flight, unsaved, or in Postgres."""
        self._raise_errors()
        return self._is_done()

    async def fetch_next_request(self) -> Request | None:
        """The next request, or None if it went to another task meanwhile."""
        self._raise_errors()
        task = self.take()
        return None if task is None else Request(url=task.url, unique_key=str(task.hash))

    async def mark_request_as_handled(self, request: Request) -> ProcessedRequest | None:
        """The handler has returned; each of its urls was `put_down` already, or is still being read."""
        self._wake.set()
        return None

    async def reclaim_request(self, request: Request, *, forefront: bool = False) -> ProcessedRequest | None:
        """Crawlee's own retry; the crawl retries by `retry`, so this is a handler's unforeseen error."""
        task = self._in_flight.pop(request.unique_key, None)
        if task is not None:
            self.retry(task, 1.0)
        return None

    async def add_request(self, request: str | Request, *, forefront: bool = False) -> ProcessedRequest | None:
        """Refused: links enter the frontier with the commit of the page that holds them."""
        msg = "requests are not added here: links enter the frontier with their page's commit"
        raise NotImplementedError(msg)

    async def get_handled_count(self) -> int:
        """Handled by this worker."""
        return self._handled

    async def get_total_count(self) -> int:
        """Known to this worker."""
        return self._handled + len(self._in_flight) + self.waiting

    async def drop(self) -> None:
        """Nothing to drop: the frontier is removed with its job."""

    # --- inside ---------------------------------------------------------------------------------------------

    def _raise_errors(self) -> None:
        if self.error is not None:
            raise self.error
        if self.writer is not None and self.writer.error is not None:
            raise self.writer.error

    def _may_hand_out(self) -> bool:
        if self.stopping or (self.writer is not None and self.writer.unsaved >= MAX_UNSAVED):
            return False
        if self.reader is not None and self.reader.full:
            return False
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._ready.appendleft(heapq.heappop(self._delayed)[2])
        return bool(self._ready)

    def _wanted(self, task: Task) -> bool:
        return task.counted or self._pages_left > 0

    def _can_hand_out(self) -> bool:
        return self._may_hand_out() and self._ready.has(self._wanted)

    def _is_done(self) -> bool:
        if self.error is not None or (self.writer is not None and self.writer.error is not None):
            return True
        unsaved = self.writer.unsaved if self.writer is not None else 0
        if self._in_flight or unsaved:
            return False
        return self.stopping or self.finished or (self.budget_spent and not self._delayed and not self._ready.counted)

    def _wait_seconds(self) -> float:
        """How long to wait for work: until the next delayed or paced request, but not long."""
        patience = _WAIT_SECONDS
        if self._delayed:
            patience = min(patience, max(0.0, self._delayed[0][0] - time.monotonic()))
        if self._ready and (wait := self._ready.wait()) > 0:
            patience = min(patience, wait)
        return max(patience, 0.001)

    def _ensure_refill(self) -> None:
        if self._refill is not None and not self._refill.done():
            return
        if self.stopping or self.finished:
            return
        wants_pages = self._pages_left <= 0 and not self.budget_spent
        idle = not (self._ready or self._delayed or self._in_flight)
        # What others found and left is in Postgres, and nobody says so.
        may_wait = self._waiting_in_postgres or (not self._alone and time.monotonic() >= self._next_poll)
        if wants_pages or (may_wait and len(self._ready) < LOW_WATER) or idle:
            self._refill = asyncio.create_task(self._fill(), name="frontier refill")

    async def _fill(self) -> None:
        """Reserve pages and claim urls; find out whether the job is finished."""
        # Asked first: what is entered after that is seen by the last look into the frontier, below.
        expecting = self.expecting
        try:
            reserved_by_others = await self._reserve() if self._pages_left <= 0 else 0
            # Told now: a page that is fetched while urls are claimed may use up what is reserved, and not the budget.
            refused = self._budget_gave_nothing = self._pages_left <= 0
            if not refused:
                await self._claim()
            if not self._at_rest() or (self._pages_left <= 0 and not refused):
                return
            if refused and not reserved_by_others:
                await self._give_up_budget()
            elif await self._patience.call(self._frontier.anything_left, self._worker):
                await self._wait_for_others()
            elif expecting:
                await asyncio.sleep(_WAIT_SECONDS)
                self._waiting_in_postgres = True
            elif self._at_rest():
                self.finished = True
        except Exception as error:  # noqa: BLE001 - kept, and raised where the crawl can act on it
            self.error = error
        finally:
            self._wake.set()

    async def _claim(self) -> None:
        """Lease urls that wait in Postgres."""
        claim = CLAIM_URLS if self._alone else SHARED_CLAIM_URLS
        claimed: list[FrontierUrl] = await self._patience.call(self._frontier.claim, self._worker, claim)
        known = await self._patience.call(self._look_up, [url.url for url in claimed])
        for url in claimed:
            self._followed.add(url.hash)
            if url.found_by == "known":
                self._unlinked.add(url.hash)
            self._ready.append(_task(url, known.get(url.url)))
        self._waiting_in_postgres = len(claimed) == claim
        self._next_poll = time.monotonic() + _WAIT_SECONDS

    async def _reserve(self) -> int:
        """Reserve pages of the job's budget; returns how many others have reserved and not used."""
        want = RESERVE_PAGES if self._alone else SHARED_RESERVE_PAGES
        reserved = await self._patience.call(self._frontier.reserve_pages, self._worker, want, self._max_pages)
        await self._mind_others(reserved.other_workers > 0)
        self._pages_left += reserved.granted
        return reserved.reserved_by_others

    async def _wait_for_others(self) -> None:
        """Another worker may still find links, or leave some of the budget: rest, look after the dead, ask again.

        A worker with urls and no pages left to fetch them waits as well, but does not say that it has nothing to do.
        """
        if not self._ready:
            self._pages_left = 0
            await self._patience.call(self._frontier.rest, self._worker)
        if not await self._patience.call(self._frontier.take_over_dead_workers):
            await asyncio.sleep(_WAIT_SECONDS)
        self._waiting_in_postgres = True

    async def _give_up_budget(self) -> None:
        """Nothing was granted: the budget is spent, unless it went to an answer that was lost."""
        if self._losses == self._patience.losses:
            self.budget_spent = True
            return
        self._losses = self._patience.losses
        # Nothing is under way here, so whatever this worker still has reserved is what it never heard of.
        await self._patience.call(self._frontier.rest, self._worker)
        self._waiting_in_postgres = True

    def _nothing_unsaved(self) -> bool:
        return self.writer is None or self.writer.unsaved == 0

    def _at_rest(self) -> bool:
        """True if nothing is under way and nothing can be handed out: all is fetched, or the budget is."""
        if self._delayed or self._in_flight or self._ready.counted or not self._nothing_unsaved():
            return False
        return not self._ready or self._pages_left <= 0


def _task(url: FrontierUrl, known: KnownPage | None) -> Task:
    """A claimed url. What an incremental crawl began with stands in front of all links, and is as deep as it was."""
    depth = url.depth
    if depth == 0 and url.found_by in ("known", "link"):
        depth = 1 if known is None or known.depth is None else known.depth
    return Task(url.hash, url.url, depth, known=known, lastmod=url.lastmod)
