"""A crawl: Crawlee's `BasicCrawler` over the Postgres frontier, a guarded client, and a batch writer.

Crawlee keeps the concurrency and runs a handler for each request. Everything that must survive a kill is in
Postgres: see `resources.postgres.frontier`. The crawl runs in an event loop of its own, in a thread of its own, so
that whoever waits for it (a Dagster op, the command line) can be interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop
from crawlee import ConcurrencySettings, service_locator
from crawlee.configuration import Configuration
from crawlee.crawlers import BasicCrawler, BasicCrawlingContext
from crawlee.errors import ServiceConflictError
from crawlee.events import EventManager
from crawlee.statistics import Statistics
from crawlee.storage_clients import MemoryStorageClient

from resources.bounded_log import BoundedLog
from resources.content.pool import ExtractionPool
from resources.crawler.after_commit import CommitFollowers
from resources.crawler.client import FetchLimits, GuardedHttpClient
from resources.crawler.collector import calm_collector
from resources.crawler.conditional import conditions, is_unchanged_by_sitemap
from resources.crawler.discovery import READING_JOBS, SitemapDiscovery
from resources.crawler.link_rules import LinkRules
from resources.crawler.outcomes import PageOutcomes, message_of
from resources.crawler.patience import Patience
from resources.crawler.plan import CrawlOutcome, CrawlProgress
from resources.crawler.politeness import (
    MAX_TRIES,
    PATIENCE_SECONDS,
    Politeness,
    ReadyUrls,
    backoff,
    is_proxys_fault,
)
from resources.crawler.reading import PageReader, SiteMemory, complete
from resources.crawler.rendering.browser import RenderLimits
from resources.crawler.rendering.fetcher import RenderingFetcher, pages_at_once
from resources.crawler.request_manager import FrontierRequestManager, Task
from resources.crawler.traps import without_session
from resources.crawler.tunnel import ProxyUnusable
from resources.crawler.urls import url_hash
from resources.crawler.writer import BatchWriter
from resources.postgres.frontier import (
    Batch,
    Committed,
    CrawlFrontier,
    FinishedUrl,
    FoundLink,
    FrontierUrl,
    JobLook,
    WorkerReplaced,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from resources.content.pool import ReadPage
    from resources.crawler.client import Fetched
    from resources.crawler.plan import CrawlPlan
    from resources.crawler.site_access import SiteAccess
    from resources.postgres.known_pages import KnownPage, KnownPages
    from resources.redis.rate_limit import AsyncRateLimiter

logger = logging.getLogger(__name__)

# Rows for urls that were found and not followed (depth, globs, traps): enough to explain, bounded where there are
# millions.
MAX_UNFOLLOWED_ROWS = 10_000
# So long a handler goes on with the next url before it gives its slot back to Crawlee.
SLOT_SECONDS = 5.0
# How often a worker looks whether another program has paused or cancelled its job, and what other workers have done.
LOOK_SECONDS = 2.0
# After a stop, requests under way have so long to be cut off before the crawl ends without them.
STOP_SECONDS = 5.0

# Stops after which a job is complete, and is not resumed.
COMPLETE_AFTER = ("max_seconds", "max_bytes")
# Redirects that lead nowhere: the source is failed, with this reason.
_BAD_REDIRECTS = ("redirect_invalid", "redirect_loop", "redirect_off_site", "too_many_redirects")


class _NoEvents(EventManager):
    """Crawlee's process-wide event bus, without its tasks.

    It feeds the autoscaler, which is pinned here, and is entered by every crawler: two crawls in two threads would
    share its event-loop objects. Nothing is emitted, so nothing is shared.
    """

    @property
    def active(self) -> bool:
        return True

    async def __aenter__(self) -> _NoEvents:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def on(self, **_: Any) -> None:
        return None

    def off(self, **_: Any) -> None:
        return None

    def emit(self, **_: Any) -> None:
        return None


_crawlee_lock = threading.Lock()


def _quiet_crawlee() -> EventManager:
    """Give Crawlee the empty event bus and silence its log lines for single pages."""
    with _crawlee_lock:
        logging.getLogger("crawlee").setLevel(logging.CRITICAL)
        if not isinstance(service_locator._event_manager, _NoEvents):
            try:
                service_locator.set_event_manager(_NoEvents())
            except ServiceConflictError:
                logger.warning("Crawlee was used before in this process: its event manager stays in use")
        return service_locator.get_event_manager()


class _FrontierCrawler(BasicCrawler):
    """BasicCrawler without the state that it saves at its end: the frontier is the state."""

    async def _save_crawler_state(self) -> None:
        return None


class Crawl:
    """One run of a crawl job.

    Args:
        plan: what to do.
        frontier: the job's frontier; the seeds may be in it already.
        start_from: results that the job has from earlier runs, by `total`, `successful`, `failed`, `skipped`.
        on_committed: told of what was acknowledged after each commit, in a thread of its own (the cache).
        index: makes the full-text vectors of up to so many waiting texts and says how many it did; None leaves that
            to somebody else.
        reconnect: called when the database was lost, before it is tried again.
        run_id: of the Dagster run, kept with the worker.
        limits: bounds of one fetch.
        render_limits: bounds of rendering one page, where the plan asks for a browser.
        limiter: of the domains' rates, shared with all other crawls; None: this crawl is alone.
        access: keys of the site.
        memory: what sites repeat on their pages, kept between crawls; None: each crawl learns it anew.
        ca_bundle: authorities that are trusted beside the system's, a PEM file.
    """

    def __init__(
        self,
        plan: CrawlPlan,
        frontier: CrawlFrontier,
        *,
        start_from: CrawlProgress | None = None,
        on_committed: Callable[[Sequence[FinishedUrl]], None] | None = None,
        index: Callable[[int], int] | None = None,
        reconnect: Callable[[], None] | None = None,
        run_id: str | None = None,
        limits: FetchLimits | None = None,
        render_limits: RenderLimits | None = None,
        limiter: AsyncRateLimiter | None = None,
        access: SiteAccess | None = None,
        memory: SiteMemory | None = None,
        ca_bundle: Path | None = None,
    ) -> None:
        self._plan = plan
        self._frontier = frontier
        self._on_committed = on_committed
        self._index = index
        self._reconnect = reconnect
        self._run_id = run_id
        self._access = access
        self._ca_bundle = ca_bundle
        limits = limits or FetchLimits()
        self._limits = replace(limits, connections=max(limits.connections, plan.concurrency))
        self._render_limits = render_limits or RenderLimits()
        self.progress = start_from or CrawlProgress()
        self._rules = LinkRules(plan)
        self._outcomes = PageOutcomes(plan, self._rules, self.progress)
        self._known_pages: KnownPages | None = None
        self._known_seeded = False
        self.politeness = Politeness(plan, self.progress, limiter)
        self._redirects: dict[int, int] = {}
        self._seed_outcomes: dict[int, FinishedUrl] = {}
        self._seed_hashes = frozenset(url_hash(url) for url in plan.urls)
        self._stop_reason: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._manager: FrontierRequestManager | None = None
        self._crawler: _FrontierCrawler | None = None
        self._client: GuardedHttpClient | None = None
        self._renderer: RenderingFetcher | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._followers: CommitFollowers | None = None
        self._sitemaps: SitemapDiscovery | None = None
        self._memory = memory or SiteMemory.forgetful()
        self._pool = ExtractionPool()
        self._reader: PageReader | None = None
        self._log = BoundedLog(logger, logging.ERROR, "%d pages could not be handled (%s)")
        self._bytes_elsewhere = 0
        self._acknowledged_bytes = 0
        self._started = 0.0

    @property
    def plan(self) -> CrawlPlan:
        """What it does."""
        return self._plan

    # --- from any thread ------------------------------------------------------------------------------------

    def run(self) -> CrawlOutcome:
        """Crawl until nothing is left, a limit is reached, or `stop` is called.

        Raises:
            WorkerReplaced: another worker took over.
            DatabaseUnreachable: the database stayed away for longer than the writer's patience.
            ProxyUnusable: the site's proxy lets nothing through; what was not fetched waits.
        """
        with calm_collector(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._run())

    def stop(self, reason: str) -> None:
        """End the crawl for this reason: requests under way are cut off, what is finished is committed."""
        loop = self._loop
        if self._stop_reason is None:
            self._stop_reason = reason
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._stop_now)
            except RuntimeError:  # the loop closed at this very moment: the crawl has ended
                logger.debug("the crawl had ended before it was stopped")

    # --- the run --------------------------------------------------------------------------------------------

    async def _run(self) -> CrawlOutcome:
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        # One thread: the frontier's calls follow each other, and a claim never overtakes a commit.
        with (
            ThreadPoolExecutor(1, thread_name_prefix="frontier") as executor,
            CommitFollowers(
                self._on_committed, self._index if self._plan.keep_text else None, self.progress.phases
            ) as self._followers,
            self._pool,
        ):
            if self._plan.keep_text:
                self._pool.start()
            self.politeness.start()
            try:
                while True:
                    await self._work(executor)
                    if self._stop_reason is not None or self._budget_spent():
                        break
                    # A commit whose answer was lost may have left urls that nobody held; released, they show here.
                    if not await self._patience(executor).call(self._frontier.has_waiting_urls):
                        break
            finally:
                await self.politeness.close()
            await self._followers.finish(STOP_SECONDS if self._stop_reason is not None else None)
            return await self._outcome(executor)

    def _budget_spent(self) -> bool:
        return self._manager is not None and self._manager.budget_spent

    async def _work(self, executor: ThreadPoolExecutor) -> None:
        """Be a worker of the job until there is nothing more to do."""
        patience = self._patience(executor)
        await patience.call(self._frontier.take_over_dead_workers)
        # With the job type `sitemap`, a start url only says whose sitemaps are read, or is one.
        start = () if self._plan.job_type == "sitemap" else self._plan.urls
        seeds = [FrontierUrl(url_hash(url), url, 0) for url in start]
        await patience.call(self._frontier.seed, seeds)
        self._heed(await patience.call(self._frontier.look))
        await patience.call(self._begin_with_known_pages)
        worker = await patience.call(lambda: self._frontier.register_worker(run_id=self._run_id))
        ready = ReadyUrls(self.politeness, self.progress.phases)
        manager = FrontierRequestManager(
            self._frontier, worker, self._plan.max_pages, ready, patience, self._look_up, company=self._plan.shards
        )
        writer = BatchWriter(
            lambda batch: self._commit(worker, batch, manager.own_links),
            self._committed,
            lambda: manager.hungry,
            patience,
        )
        manager.writer = writer
        self._manager = manager
        if self._plan.keep_text:
            # Beside the frontier's thread: a site is not looked up behind a commit.
            self._reader = manager.reader = PageReader(
                self._pool, self._memory, lambda: manager.only_reading, asyncio.to_thread
            )
        client = GuardedHttpClient(
            allow_private=self._plan.allow_private,
            limits=self._limits,
            access=self._access,
            politeness=self.politeness,
            ca_bundle=self._ca_bundle,
        )
        self._client = client
        self._renderer = self._build_renderer(client)
        crawler = self._build_crawler(client, manager)
        self._crawler = crawler
        writer.start()
        watch = asyncio.create_task(self._watch(worker, manager, executor), name="crawl watch")
        sitemaps = self._read_sitemaps(worker, manager, client, patience)
        try:
            if self._renderer is not None and self._plan.render == "browser" and self._stop_reason is None:
                await self._renderer.start()
            if self._stop_reason is None:
                await crawler.run()
            if self._reader is not None:
                await self._reader.stop(resumes=self._stop_reason not in (None, *COMPLETE_AFTER))
            await writer.close()
            if manager.error is not None:
                raise manager.error
        finally:
            watch.cancel()
            sitemaps.cancel()
            await asyncio.gather(watch, sitemaps, return_exceptions=True)
            if self._reader is not None:
                await self._reader.close()
                self.progress.phases["read"] += self._reader.seconds
            self._log.close()
            await self._store_counts(executor)
            if self._renderer is not None:
                await self._renderer.cleanup()
            await client.cleanup()
            self._update_progress(manager, writer)
            await self._release(worker, executor)

    def _patience(self, executor: ThreadPoolExecutor) -> Patience:
        return Patience(executor, self._reconnect)

    def _begin_with_known_pages(self) -> None:
        """Where pages of the site are known: have them looked up; an incremental crawl visits them all.

        Those that are due come first, and no more than may be fetched: what is behind `max_pages` waits for its turn.
        Done again by whoever resumes the job, it enters nothing twice.
        """
        known = self._frontier.known_pages
        sites = sorted(self._rules.sites)
        self._known_pages = known if known.any_on(sites) else None
        if self._known_pages is None or self._plan.job_type != "incremental" or self._known_seeded:
            return
        for part in known.due_first(sites, self._plan.max_pages):
            wanted = [url for url in part if self._rules.wants(url)]
            self._frontier.seed([FrontierUrl(url_hash(url), url, 0, "known") for url in wanted])
        self._known_seeded = True

    def _look_up(self, urls: Sequence[str]) -> dict[str, KnownPage]:
        """In the frontier's thread: what is known of urls that this worker has taken."""
        return self._known_pages.lookup(urls) if self._known_pages is not None and urls else {}

    def _read_sitemaps(
        self, worker: int, manager: FrontierRequestManager, client: GuardedHttpClient, patience: Patience
    ) -> asyncio.Task[None]:
        """Read the job's sitemaps beside the crawl, which does not end before."""
        self._sitemaps = SitemapDiscovery(
            self._plan, self._rules, self.politeness, client, self._frontier.discovery, manager, patience
        )
        manager.expecting = self._plan.job_type in READING_JOBS
        return asyncio.create_task(self._read_sitemaps_of(worker, manager, self._sitemaps), name="sitemaps")

    async def _read_sitemaps_of(
        self, worker: int, manager: FrontierRequestManager, sitemaps: SitemapDiscovery
    ) -> None:
        try:
            if manager.expecting:
                await sitemaps.run(worker)
        except Exception as error:  # noqa: BLE001 - kept, and raised where the crawl can act on it
            self._give_up(error, manager)
        finally:
            manager.expecting = False
            manager.more_waits()

    async def _store_counts(self, executor: ThreadPoolExecutor) -> None:
        """Add what was left out since the last time to the job's account."""
        counts = self._rules.take_counts()
        if not counts:
            return
        store = self._frontier.discovery
        try:
            await asyncio.get_running_loop().run_in_executor(executor, store.add_not_followed, counts)
        except Exception as error:  # noqa: BLE001 - the writer decides about a lost database; an account may wait
            self._rules.give_back_counts(counts)
            logger.warning("what was left out could not be counted yet: %s", error)

    async def _release(self, worker: int, executor: ThreadPoolExecutor) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(executor, self._frontier.release_worker, worker)
        except Exception as error:  # noqa: BLE001 - the lease runs out by itself; the crawl's own error matters more
            logger.warning("worker %d could not be released (%s): its lease runs out by itself", worker, error)

    def _build_renderer(self, client: GuardedHttpClient) -> RenderingFetcher | None:
        plan = self._plan
        if plan.render == "http":
            return None
        return RenderingFetcher(
            client,
            plan.render,
            plan.urls,
            concurrency=plan.concurrency,
            limits=self._render_limits,
            counts=self.progress.rendering,
        )

    def _build_crawler(self, client: GuardedHttpClient, manager: FrontierRequestManager) -> _FrontierCrawler:
        events = _quiet_crawlee()
        n = self._plan.concurrency
        page_seconds = self._limits.page_seconds
        if self._renderer is not None:
            # With a browser for each, more pages at once would only wait for a place in it.
            places = pages_at_once(n)
            turns = -(-n // places)
            n = places if self._plan.render == "browser" else n
            page_seconds += 60 + 2 * turns * (self._render_limits.page_seconds + 30)
        return _FrontierCrawler(
            configuration=Configuration(purge_on_start=False),
            event_manager=events,
            storage_client=MemoryStorageClient(),
            request_manager=manager,
            http_client=client,
            request_handler=self._handle,
            # The autoscaler watches the whole machine and would fall to one request at a time beside other work.
            concurrency_settings=ConcurrencySettings(min_concurrency=n, desired_concurrency=n, max_concurrency=n),
            max_request_retries=0,
            use_session_pool=False,
            retry_on_blocked=False,
            configure_logging=False,
            statistics=Statistics.with_default_state(persistence_enabled=False, log_interval=timedelta(days=1)),
            status_message_logging_interval=timedelta(days=1),
            # The client has its own time limit for a page; this one only catches a handler that hangs. Each hop of a
            # redirect may have to wait for its permission.
            request_handler_timeout=timedelta(seconds=2 * page_seconds + 900),
        )

    def _commit(self, worker: int, batch: Batch, own_links: int) -> Committed:
        """In the frontier's thread."""
        started = time.perf_counter()
        try:
            done = self._frontier.commit(
                worker,
                batch,
                own_links=own_links,
                mark_linked=self._plan.job_type == "incremental",
                keep_html_days=self._plan.keep_html_days,
            )
            owned = [link.url for link in batch.links if link.hash in done.owned]
            return replace(done, known=self._look_up(owned))
        finally:
            self.progress.phases["write"] += time.perf_counter() - started

    async def _committed(self, batch: Batch, done: Committed) -> None:
        """On the loop, after each commit: count, take the new links, copy to the cache, have the texts indexed."""
        taken = [finished for finished in batch.finished if finished.hash in done.acknowledged]
        progress = self.progress
        for finished in taken:
            progress.total += 1
            self._acknowledged_bytes += finished.bytes or 0
            if finished.status == "success":
                progress.successful += 1
            elif finished.status == "failed":
                progress.failed += 1
            else:
                progress.skipped += 1
        if self._manager is not None:
            await self._manager.committed(batch, done)
        if taken and self._followers is not None:
            await self._followers.after_commit(taken)

    async def _watch(self, worker: int, manager: FrontierRequestManager, executor: ThreadPoolExecutor) -> None:
        """Keep the time limit, renew the lease, and hear when another program ends the job."""
        loop = asyncio.get_running_loop()
        every = self._frontier.lease_seconds / 3
        next_heartbeat = time.monotonic() + every
        next_look = time.monotonic() + LOOK_SECONDS
        while True:
            await asyncio.sleep(0.25)
            if manager.writer is not None:
                self._update_progress(manager, manager.writer)
            now = time.monotonic()
            if now - self._started >= self._plan.max_seconds:
                self._end_for("max_seconds")
            try:
                if now >= next_heartbeat:
                    next_heartbeat = now + every
                    await loop.run_in_executor(executor, self._frontier.heartbeat, worker)
                    await self._store_counts(executor)
                if now >= next_look:
                    next_look = now + LOOK_SECONDS
                    self._heed(await loop.run_in_executor(executor, self._frontier.look))
            except WorkerReplaced as error:
                manager.fail(error)
                return
            except Exception as error:  # noqa: BLE001 - the writer decides about a lost database
                logger.warning("heartbeat failed: %s", error)

    def _heed(self, look: JobLook | None) -> None:
        """On the loop: stop with a job that another program paused or ended, and count what other workers did."""
        if look is None:
            return  # the job was removed, and its workers with it: the next commit says so
        if look.status in ("paused", "cancelled", "failed"):
            self._end_for(look.status if look.status != "failed" else "error")
        self._bytes_elsewhere = max(0, look.bytes - self._acknowledged_bytes)
        self._mind_bytes()
        if self._manager is not None and not self._manager.alone:
            progress = self.progress
            progress.total, progress.successful = look.total, look.successful
            progress.failed, progress.skipped = look.failed, look.skipped

    def _mind_bytes(self) -> None:
        """Stop once the job's bytes, with those that this worker has just read, reach their limit."""
        if self._bytes_elsewhere + self.progress.bytes >= self._plan.max_bytes:
            self._end_for("max_bytes")

    def _end_for(self, reason: str) -> None:
        if self._stop_reason is None:
            self._stop_reason = reason
            self._stop_now()

    def _stop_now(self) -> None:
        """On the loop: hand out nothing more, and cut off what is under way."""
        self.politeness.stop()
        if self._manager is not None:
            self._manager.stop()
        if self._crawler is not None:
            self._crawler.stop(self._stop_reason or "stopped")
        if self._client is not None and self._aborting is None:
            self._aborting = asyncio.ensure_future(self._cut_off(self._client))

    async def _cut_off(self, client: GuardedHttpClient) -> None:
        if self._renderer is not None:
            await self._renderer.cleanup()
        await client.cleanup()

    def _update_progress(self, manager: FrontierRequestManager, writer: BatchWriter) -> None:
        progress = self.progress
        progress.waiting = manager.waiting
        progress.in_flight = manager.in_flight
        progress.seconds = time.monotonic() - self._started

    # --- one page -------------------------------------------------------------------------------------------

    async def _handle(self, context: BasicCrawlingContext) -> None:
        """Fetch and read one url, then others while there are any; outcome and links go to the writer together.

        Crawlee's own work for a request costs a fifth of a page's time, so a slot that Crawlee gave is kept for some
        seconds instead of being asked for again with each url. It raises nothing: an unforeseen error is the outcome
        of this page and of no other.
        """
        manager, client = self._manager, self._client
        if manager is None or client is None or manager.writer is None:
            return
        task: Task | None = manager.task_of(context.request)
        until = time.monotonic() + SLOT_SECONDS
        while task is not None:
            task.tries += 1
            try:
                finished, links = await self._visit(task, manager, client)
            except ProxyUnusable as error:
                finished, links = [], []
                self._give_up(error, manager)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this page's outcome
                self._log.note(type(error).__name__, "page %s could not be handled", task.url, exc_info=True)
                finished = [self._outcomes.failed(task, task.url, f"internal: {type(error).__name__}: {error}"[:500])]
                links = []
            except BaseException:
                manager.put_down(task)  # cut off: it stays in the frontier
                raise
            content = finished[-1].content if finished else None
            if self._reader is not None and content is not None and content.html is not None:
                # Its links are wanted now; its outcome follows when it is read.
                if links:
                    manager.writer.add([], links)
                self._reader.read(content.domain, content.html, partial(self._have_read, task, finished, manager))
            else:
                self._hand_on(task, finished, links, manager)
            task = manager.take() if time.monotonic() < until else None

    def _hand_on(
        self, task: Task, finished: list[FinishedUrl], links: list[FoundLink], manager: FrontierRequestManager
    ) -> None:
        """Give a url's outcomes to the writer; where there are none it is tried again, or stays in the frontier."""
        if finished and manager.writer is not None:
            self.progress.fetched += len(finished)
            for outcome in finished:
                if outcome.hash in self._seed_hashes:
                    self._seed_outcomes[outcome.hash] = outcome
            manager.writer.add(finished, links)
        manager.put_down(task)

    def _have_read(
        self, task: Task, finished: list[FinishedUrl], manager: FrontierRequestManager, page: ReadPage | None
    ) -> None:
        """What the page says is known. None: a stop came first, and it is fetched again when the job resumes."""
        if page is None:
            manager.put_down(task)
            return
        outcome = finished[-1]
        complete(outcome, page)
        self.progress.repairs += page.extracted.cleaned
        self.progress.unread += page.failure is not None
        if not self._plan.keep_html_days and outcome.content is not None:
            outcome.content.html = None
        self._hand_on(task, finished, [], manager)

    def _give_up(self, error: Exception, manager: FrontierRequestManager) -> None:
        """End the crawl with an error that is no page's: what is under way stays in the frontier."""
        if manager.error is None:
            manager.error = error
        self._stop_now()

    async def _visit(
        self, task: Task, manager: FrontierRequestManager, client: GuardedHttpClient
    ) -> tuple[list[FinishedUrl], list[FoundLink]]:
        """The outcomes of one url (two, where a redirect led to a page) and the links found; none to try again."""
        policy = await self.politeness.policy(task.url, client)
        if manager.stopping:
            return [], []
        if not policy.allowed(task.url):
            self.politeness.not_asked(task.url)
            skipped = self._outcomes.skipped(task, task.url, "robots_txt")
            skipped.error_message = policy.reason
            return [skipped], []
        if self._plan.job_type == "incremental" and is_unchanged_by_sitemap(
            task.lastmod, task.known, keep_text=self._plan.keep_text
        ):
            self.politeness.not_asked(task.url)
            return self._outcomes.unchanged_by_sitemap(task, manager)
        fetched = await self._fetch(task, manager, client)
        if fetched is None:
            return [], []
        if not fetched.redirects:
            return await self._outcomes.read(task, task.url, fetched, manager)
        return await self._after_redirect(task, fetched, manager)

    async def _fetch(self, task: Task, manager: FrontierRequestManager, client: GuardedHttpClient) -> Fetched | None:
        """The answer; None if the url was put back, to be fetched when its turn comes again."""
        if not self.politeness.at_once(task.url) and await self.politeness.permission(task.url, PATIENCE_SECONDS):
            task.tries -= 1
            manager.put_back(task)
            return None
        started = time.perf_counter()
        asking = {}
        if self._plan.job_type == "incremental" and not task.unconditional:
            asking = conditions(task.known, keep_text=self._plan.keep_text)
        fetched = await (self._renderer or client).fetch(
            task.url,
            follow=lambda target: self._may_follow(target, task, manager),
            headers=asking or None,
            permitted=True,
        )
        task.asked = bool(asking) and not fetched.hops
        self.progress.phases["fetch"] += time.perf_counter() - started
        self.progress.bytes += fetched.http_bytes
        self._mind_bytes()
        if manager.stopping and (fetched.error is not None or fetched.retryable):
            return None  # cut off by the stop: it stays in the frontier, to be fetched when the job resumes
        await self.politeness.answered(fetched)
        if fetched.status == 304 and not task.asked and not task.unconditional:
            task.unconditional = True  # nobody asked: once more, without conditions
            manager.retry(task, 0.0)
            return None
        if fetched.retryable and task.tries < MAX_TRIES:
            self.progress.retries += 1
            manager.retry(task, backoff(task.tries, fetched.retry_after))
            return None
        if is_proxys_fault(client, fetched, self._plan) and fetched.error != "unreachable":
            raise ProxyUnusable(fetched.error_detail)
        return fetched

    async def _after_redirect(
        self, task: Task, fetched: Fetched, manager: FrontierRequestManager
    ) -> tuple[list[FinishedUrl], list[FoundLink]]:
        """The source of a redirect is skipped; what it led to is kept under its own url."""
        target = without_session(fetched.final_url)
        target_hash = url_hash(target)
        if target_hash == task.hash and fetched.error is None:
            # It only put a session id into the url.
            return await self._outcomes.read(task, task.url, fetched, manager)
        if fetched.error in ("known", "robots_txt"):
            if self._closes_a_loop(task.hash, target_hash):
                return [self._outcomes.failed(task, task.url, f"redirect_loop: through {target}")], []
            self._redirects[task.hash] = target_hash
            reason = "redirect" if fetched.error == "known" else "robots_txt"
            source = self._outcomes.skipped(task, task.url, reason, fetched)
            source.redirected_to = target
            if fetched.error == "robots_txt":
                policy = self.politeness.known_policy(target)
                source.error_message = policy.reason if policy is not None else None
            # Known from before, and led to now.
            leads = fetched.error == "known" and manager.follow(target_hash, beyond_depth=False)
            return [source], [FoundLink(target_hash, target, task.depth)] if leads else []
        if fetched.error in _BAD_REDIRECTS:
            failed = self._outcomes.failed(task, task.url, message_of(fetched), fetched)
            failed.redirected_to = target
            return [failed], []
        self._redirects[task.hash] = target_hash
        source = self._outcomes.skipped(task, task.url, "redirect", fetched)
        source.redirected_to = target
        source.http_status = None
        if manager.adopt(target_hash):
            source.bytes = None  # they are the page's
            finished, links = await self._outcomes.read(
                Task(target_hash, target, task.depth, task.tries), target, fetched, manager
            )
            for outcome in finished:
                outcome.adopted = True
            return [source, *finished], links
        # No page is left in the budget, or another request has it: it waits in the frontier like any link.
        links = [] if manager.knows(target_hash) else [FoundLink(target_hash, target, task.depth)]
        return [source], links

    def _closes_a_loop(self, source: int, target: int) -> bool:
        """True if the redirects known so far lead from the target back to the source."""
        seen = set()
        while target in self._redirects and target not in seen:
            if target == source:
                return True
            seen.add(target)
            target = self._redirects[target]
        return target == source

    def _may_follow(self, target: str, task: Task, manager: FrontierRequestManager) -> str | None:
        reason = self._rules.refuse_redirect(task.hash, target, manager)
        if reason is not None:
            return reason
        policy = self.politeness.known_policy(target)
        if policy is not None and not policy.allowed(target):
            return "robots_txt"
        return None

    # --- the end --------------------------------------------------------------------------------------------

    async def _outcome(self, executor: ThreadPoolExecutor) -> CrawlOutcome:
        patience = self._patience(executor)
        self.progress.seconds = time.monotonic() - self._started
        self.progress.waiting = self.progress.in_flight = 0
        if self._stop_reason is not None:
            complete = self._stop_reason in COMPLETE_AFTER
            return CrawlOutcome(self._stop_reason, complete, None, self.progress)
        if await patience.call(self._frontier.has_waiting_urls):
            return CrawlOutcome("max_pages", complete=True, detail=None, progress=self.progress)
        seeds = list(self._seed_outcomes.values())
        if seeds and self.progress.successful == 0 and not self._outcomes.unmodified:
            if all(seed.skip_reason == "robots_txt" for seed in seeds):
                reason = next((seed.error_message for seed in seeds if seed.error_message), None)
                detail = f"robots.txt allows none of the start urls{f' ({reason})' if reason else ''}"
                return CrawlOutcome("disallowed", complete=True, detail=detail, progress=self.progress)
            if all(seed.status == "failed" and seed.http_status is None for seed in seeds):
                detail = f"no start url could be reached: {seeds[0].url}: {seeds[0].error_message}"
                return CrawlOutcome("site_unreachable", complete=True, detail=detail, progress=self.progress)
        await patience.call(self._frontier.record_unfollowed, MAX_UNFOLLOWED_ROWS)
        if self._plan.job_type == "sitemap" and self._sitemaps is not None and not self.progress.total:
            reason, detail = self._sitemaps.why_nothing()
            return CrawlOutcome(reason, complete=True, detail=detail, progress=self.progress)
        return CrawlOutcome("exhausted", complete=True, detail=None, progress=self.progress)
