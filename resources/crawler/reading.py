"""Has pages read beside the fetching: their main text, in processes of their own.

A page's links go to the frontier as soon as it is fetched; its outcome follows when it is read, and until then the
page counts as under way. So nothing is acknowledged that is not read, and a slow page holds up no other one.

A site's first pages wait for each other: what stands on many of them (navigation, banners, footers) is learned from
some of them before any is read, and kept for the next crawl.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from resources.bounded_log import BoundedLog
from resources.content.boilerplate import MIN_SHARE, SiteBoilerplate
from resources.postgres.site_blocks import keep_site_blocks, load_site_blocks, replace_site_blocks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from resources.content.pool import ExtractionPool, ReadPage
    from resources.postgres.frontier import FinishedUrl
    from resources.postgres.page_html import FetchedHtml

logger = logging.getLogger(__name__)

# So many pages of a site are looked at before any of them is read; or as many as there are, when no more come.
WARM_UP_PAGES: Final = 20
# The longest that a page waits for the others: a site may allow one page in ten seconds. Of a site that was crawled
# before, only what is new has to be learned.
WARM_UP_SECONDS: Final = 30.0
KNOWN_WARM_UP_SECONDS: Final = 5.0
# What was learned from fewer pages is not kept for the next crawl.
KEEP_FROM_PAGES: Final = 8
MAX_BLOCKS: Final = 10_000
# Of a known site's pages, the share that a block stands on to be added.
NEW_SHARE: Final = 0.5
# Pages that are fetched and not read: so many, and so many bytes of them. More wait to be fetched.
MAX_WAITING: Final = 300
MAX_WAITING_BYTES: Final = 64 * 2**20
# After a stop, pages that are fetched have so long to be read; the rest is fetched again when the job resumes.
STOP_SECONDS: Final = 3.0
# At the end of a job that nobody resumes: as long as a full house may take.
END_SECONDS: Final = 60.0
# Nothing has come for so long: nothing comes.
QUIET_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 0.02


def complete(outcome: FinishedUrl, page: ReadPage) -> None:
    """Put what a page says into its outcome."""
    content, extracted = outcome.content, page.extracted
    if content is None:
        return
    content.text, content.markdown, content.word_count = extracted.text, extracted.markdown, extracted.word_count
    content.content_hash = outcome.content_hash = page.fingerprint.content_hash
    content.folded_hash, content.simhash = page.fingerprint.folded_hash, page.fingerprint.simhash
    outcome.repairs += extracted.cleaned
    # It has read more of the head than the fetch loop; where it could not read the page, that one's word stands.
    failed = extracted.method == "fallback"
    content.title = extracted.title or (content.title if failed else None)
    content.description = extracted.description or (content.description if failed else None)
    content.canonical_url = extracted.canonical_url or (content.canonical_url if failed else None)
    content.lang = extracted.language or (content.lang if failed else None)
    content.published_at = extracted.published_at
    if page.failure is not None:
        outcome.error_message = f"its main text could not be told ({page.failure}): all that is visible is kept"
    elif extracted.truncated:
        outcome.error_message = "only the text of its beginning is kept: it takes too much work to read it all"


@dataclass(slots=True)
class _Site:
    """What is known of a site's repeated blocks."""

    learned: SiteBoilerplate = field(default_factory=SiteBoilerplate)
    known: frozenset[int] | None = None
    looked_at: int = 0
    stored: frozenset[int] | None = None
    first_at: float = field(default_factory=time.monotonic)
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class SiteMemory:
    """Where sites' repeated blocks are kept; each function may block, and is called in a thread.

    Attributes:
        load: hashes for a site, None where nothing is kept.
        keep: keep what was learned from so many pages, if nobody has before; gives what is in force.
        replace: keep it in the place of what was there.
    """

    load: Callable[[str], frozenset[int] | None]
    keep: Callable[[str, frozenset[int], int], frozenset[int]]
    replace: Callable[[str, frozenset[int], int], frozenset[int]]

    @classmethod
    def forgetful(cls) -> SiteMemory:
        """Nothing is kept."""
        return cls(lambda _: None, lambda _, blocks, __: blocks, lambda _, blocks, __: blocks)

    @classmethod
    def of_customer(cls, engine: Engine, customer_id: UUID | str) -> SiteMemory:
        """Kept in Postgres, for each customer by itself."""
        return cls(
            partial(load_site_blocks, engine, customer_id),
            partial(keep_site_blocks, engine, customer_id),
            partial(replace_site_blocks, engine, customer_id),
        )


class PageReader:
    """Reads the pages of one crawl.

    Args:
        pool: the processes.
        memory: what sites repeat.
        quiet: True while nothing is being fetched and nothing waits to be, but for the pages that are read here.
        in_thread: runs a blocking function beside the loop.
    """

    def __init__(
        self,
        pool: ExtractionPool,
        memory: SiteMemory,
        quiet: Callable[[], bool],
        in_thread: Callable[[Callable[[], frozenset[int] | None]], Awaitable[frozenset[int] | None]],
    ) -> None:
        self._pool = pool
        self._memory = memory
        self._quiet = quiet
        self._in_thread = in_thread
        self._sites: dict[str, asyncio.Task[_Site]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None
        self._log = BoundedLog(logger, logging.ERROR, "%d pages could not be read (%s)")
        self.seconds = 0.0
        """Time that pages waited here or were read, all together."""

    @property
    def pending(self) -> int:
        """Pages that are fetched and not yet handed on."""
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """True while no more pages should be fetched: too many wait to be read."""
        return len(self._tasks) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES

    def read(self, site: str, source: FetchedHtml, deliver: Callable[[ReadPage | None], None]) -> None:
        """Have a page read.

        Args:
            site: the site that it belongs to.
            source: the page.
            deliver: called on the loop with what it says; with None where a stop came first.
        """
        self._bytes += len(source.body)
        task = asyncio.create_task(self._read(site, source, deliver), name="read a page")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, len(source.body)))
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_warm_ups(), name="end of warm-ups")

    async def close(self) -> None:
        """Leave what is not read yet."""
        tasks = [*self._tasks, *self._sites.values(), *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._log.close()

    async def stop(self, *, resumes: bool) -> None:
        """Read what is fetched; not for long, where the job `resumes` and what is left is fetched again."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=STOP_SECONDS if resumes else END_SECONDS)
        await self.close()

    def _done(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._bytes -= size

    async def _read(self, site: str, source: FetchedHtml, deliver: Callable[[ReadPage | None], None]) -> None:
        started = time.perf_counter()
        page: ReadPage | None = None
        try:
            known = await self._boilerplate(site, source)
            page = await self._pool.extract(source, known)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and the other pages go on
            # Of ours, not of the page's: it stays in the frontier, as if it had not been fetched.
            self._log.note(type(error).__name__, "page %s could not be read", source.url, exc_info=True)
        finally:
            self.seconds += time.perf_counter() - started
            deliver(page)

    # --- what a site repeats --------------------------------------------------------------------------------------

    async def _boilerplate(self, name: str, source: FetchedHtml) -> frozenset[int]:
        """The repeated blocks of the page's site; waits for its first pages."""
        if name not in self._sites:
            self._sites[name] = asyncio.create_task(self._open_site(name), name="what a site repeats")
        # Shielded: the other pages of the site wait for it too.
        site = await asyncio.shield(self._sites[name])
        if not site.ready.is_set():
            site.looked_at += 1
            try:
                blocks = await self._pool.survey(source)
            finally:
                site.looked_at -= 1
            if not site.ready.is_set():
                site.learned.learn(blocks)
                if site.learned.pages == WARM_UP_PAGES:
                    await self._learned(name, site)
                await site.ready.wait()
        return site.known or frozenset()

    async def _open_site(self, name: str) -> _Site:
        site = _Site()
        stored = await self._remember(lambda: self._memory.load(name))
        site.stored = stored
        return site

    async def _remember(self, ask: Callable[[], frozenset[int] | None]) -> frozenset[int] | None:
        """Ask the memory; where it is away the crawl goes on with what it has seen itself."""
        try:
            return await self._in_thread(ask)
        except Exception as error:  # noqa: BLE001 - the writer decides about a lost database
            logger.warning("what the site repeats could not be looked up or kept: %s", error)
            return None

    async def _learned(self, name: str, site: _Site) -> None:
        """Enough pages have been seen, or all that there are: what they repeat is added to what was known before."""
        # What is new on a known site must be plain to see, or the first pages' chance would change all texts.
        found, pages = site.learned.known(MIN_SHARE if site.stored is None else NEW_SHARE), site.learned.pages
        if site.stored is None:
            if pages >= KEEP_FROM_PAGES:
                kept = await self._remember(lambda: self._memory.keep(name, found, pages))
                found = found if kept is None else kept
        elif found <= site.stored or pages < KEEP_FROM_PAGES:
            found |= site.stored
        else:
            # A new footer, or a new face: the old blocks do no harm, and are many only after many changes.
            found |= site.stored if len(site.stored) < MAX_BLOCKS else frozenset()
            await self._remember(lambda: self._memory.replace(name, found, pages))
        site.known = found
        site.ready.set()

    async def _end_warm_ups(self) -> None:
        """Begin to read a site's pages although there are few: no more come, or those that do are slow."""
        quiet_since = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if not self._quiet():
                quiet_since = now
            quiet = now - quiet_since >= QUIET_SECONDS
            for name, opening in list(self._sites.items()):
                if not opening.done() or opening.cancelled() or opening.exception() is not None:
                    continue
                site = opening.result()
                patience = WARM_UP_SECONDS if site.stored is None else KNOWN_WARM_UP_SECONDS
                if site.ready.is_set():
                    continue
                no_more = (quiet or self._stopping) and site.learned.pages and not site.looked_at
                if no_more or now - site.first_at >= patience:
                    await self._learned(name, site)
