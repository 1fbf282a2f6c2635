"""Where a site's sitemaps are, and how they are read: beside the crawl, by one worker of a job, once.

Those that robots.txt names, or else the usual places; a sitemap that is a start url itself. Every request goes by
the guarded client and asks the crawl's politeness. What they list enters the frontier in parts, while they arrive.
Everything is bounded: files, bytes, urls, nesting, time.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from resources.crawler.client import FetchFailed
from resources.crawler.politeness import MAX_TRIES, backoff
from resources.crawler.robots import fetch_policy
from resources.crawler.sitemaps import MAX_BYTES, SitemapReader
from resources.crawler.tunnel import ProxyUnusable
from resources.crawler.urls import origin_of, site_of
from resources.postgres.connection import DatabaseUnreachable
from resources.postgres.frontier import FrontierUrl

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.crawler.client import Fetched, GuardedHttpClient
    from resources.crawler.link_rules import LinkRules
    from resources.crawler.patience import Patience
    from resources.crawler.plan import CrawlPlan
    from resources.crawler.politeness import Politeness
    from resources.crawler.request_manager import FrontierRequestManager
    from resources.crawler.robots import RobotsPolicy
    from resources.crawler.sitemaps import SitemapEntry
    from resources.postgres.discovery import Discovery

__all__ = ["READING_JOBS", "SitemapDiscovery", "SitemapReport", "looks_like_sitemap"]

logger = logging.getLogger(__name__)

READING_JOBS: Final = frozenset({"full_crawl", "incremental", "sitemap"})
"""Jobs that read sitemaps."""
USUAL_PLACES: Final = ("/sitemap.xml", "/sitemap_index.xml")
"""Looked at where robots.txt names none; the first that is one is enough."""
MAX_FILES: Final = 1_000
MAX_NESTING: Final = 3
"""Indexes in indexes; the standard has none."""
MAX_TOTAL_BYTES: Final = 2**30
"""Of all files of a job, decompressed."""
FILE_SECONDS: Final = 300.0
_PART: Final = 500
_MAX_PROBLEMS: Final = 20
_RETRY_SECONDS: Final = 1.0

_SITEMAP_PATH: Final = re.compile(
    r"/[^/]*(?:sitemap|site-map|feed|rss|atom)[^/]*$|\.(?:xml|rss|atom)(?:\.gz)?$", re.I
).search
_T = TypeVar("_T")


def looks_like_sitemap(url: str) -> bool:
    """Say whether a normal start url is a sitemap's by its name, rather than a site's of which one is looked for."""
    path = url.partition("?")[0]
    return _SITEMAP_PATH(path, path.find("/", path.find("://") + 3)) is not None


@dataclass(slots=True)
class SitemapReport:
    """What became of a job's sitemaps.

    Attributes:
        files: that are sitemaps.
        urls: that they list and that are on the site.
        problems: sentences, at most 20.
        disallowed: robots.txt lets nothing be asked, or could not be read.
        unreachable: nothing was answered at all.
    """

    files: int = 0
    urls: int = 0
    problems: list[str] = field(default_factory=list)
    disallowed: bool = False
    unreachable: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What is kept with the job."""
        return {"files": self.files, "urls": self.urls, "problems": self.problems}

    def add_problem(self, problem: str) -> None:
        """Keep a sentence, if there are not too many."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem[:500])


@dataclass(frozen=True, slots=True)
class _File:
    url: str
    nesting: int = 0
    guessed: bool = False


class SitemapDiscovery:
    """Reads the sitemaps of a job.

    Args:
        plan: of the job.
        rules: what is wanted of what they list.
        politeness: of the crawl.
        client: of the crawl; it asks the politeness before each request.
        store: where what was found goes.
        manager: told that urls wait.
        patience: calls the store.

    Attributes:
        report: what became of them so far.
    """

    def __init__(
        self,
        plan: CrawlPlan,
        rules: LinkRules,
        politeness: Politeness,
        client: GuardedHttpClient,
        store: Discovery,
        manager: FrontierRequestManager,
        patience: Patience,
    ) -> None:
        self._plan = plan
        self._rules = rules
        self._politeness = politeness
        self._client = client
        self._store = store
        self._manager = manager
        self._patience = patience
        self._queue: deque[_File] = deque()
        self._seen: set[str] = set()
        self._part: list[SitemapEntry] = []
        self._asked = self._answered = self._listed = self._bytes = 0
        self._max_urls = min(max(50_000, 10 * plan.max_pages), 5_000_000)
        self.report = SitemapReport()

    async def run(self, worker: int) -> None:
        """Read them if it is this worker's turn, or wait until another one has. A worker that dies is replaced.

        Raises:
            DatabaseUnreachable, DBAPIError: the database stayed away, or refused.
            ProxyUnusable: the site's proxy lets nothing through.
        """
        # Another process reads them, and sets no event here.
        while (turn := await self._call(lambda: self._store.claim_sitemaps(worker))) == "taken":  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_SECONDS)
        if turn == "read":
            return
        try:
            await self._read_all()
        except (DBAPIError, DatabaseUnreachable, ProxyUnusable):
            raise
        except Exception as error:
            logger.exception("the sitemaps of job %s could not be read", self._store.job_id)
            self.report.add_problem(f"internal: {type(error).__name__}: {error}")
        self.report.unreachable = self._asked > 0 and self._answered == 0
        await self._call(lambda: self._store.finish_sitemaps(self.report.as_dict()))

    def why_nothing(self) -> tuple[str, str]:
        """Why a job that reads sitemaps alone has fetched nothing: its finish reason, and a sentence."""
        report = self.report
        site = ", ".join(self._plan.urls)
        said = f" ({'; '.join(report.problems)})" if report.problems else ""
        if report.files:
            return "exhausted", f"the sitemaps of {site} list no url of its own site that is wanted{said}"
        if report.unreachable:
            return "site_unreachable", f"no sitemap of {site} could be reached{said}"
        if report.disallowed:
            return "disallowed", f"robots.txt allows no sitemap of {site} to be read{said}"
        return "exhausted", f"no sitemap of {site} was found{said}: name one as the url, or use full_crawl"

    # --- which ----------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        origins: dict[str, None] = {}
        for url in self._plan.urls:
            if self._plan.job_type == "sitemap" and looks_like_sitemap(url):
                self._want(_File(url))
            else:
                origins[origin_of(url)] = None
        await self._read_wanted()
        for origin in origins:
            policy = await self._policy(origin)
            for url in policy.sitemaps:
                self._want(_File(url))
            if policy.disallows_all:
                self.report.disallowed = True
                self.report.add_problem(f"{origin}: {policy.reason or 'robots.txt allows nothing'}")
            elif not policy.sitemaps:
                await self._guess(origin, policy)
            await self._read_wanted()

    async def _policy(self, origin: str) -> RobotsPolicy:
        if self._plan.respect_robots:
            return await self._politeness.policy(origin + "/", self._client)
        # Its rules are not obeyed, but what it names is of use.
        policy, fetched = await fetch_policy(self._client, origin)
        await self._politeness.answered(fetched)
        return policy if not policy.disallows_all else type(policy).allow_all()

    async def _guess(self, origin: str, policy: RobotsPolicy) -> None:
        for place in USUAL_PLACES:
            url = origin + place
            if not policy.allowed(url):
                self.report.disallowed = True
                self.report.add_problem(f"{url}: robots.txt disallows it")
                continue
            files = self.report.files
            self._want(_File(url, guessed=True))
            await self._read_wanted()
            if self.report.files > files:
                return

    def _want(self, file: _File) -> None:
        if file.url not in self._seen:
            self._seen.add(file.url)
            self._queue.append(file)

    async def _read_wanted(self) -> None:
        while self._queue:
            file = self._queue.popleft()
            if self._asked >= MAX_FILES:
                self._queue.clear()
                self.report.add_problem(f"there are more than {MAX_FILES:,} sitemaps: the rest was not read")
            elif self._bytes >= MAX_TOTAL_BYTES or self._listed >= self._max_urls:
                self._queue.clear()
                self.report.add_problem(f"the sitemaps list more than is read ({self._listed:,} urls)")
            else:
                await self._read_file(file)

    # --- one ------------------------------------------------------------------------------------------------

    async def _read_file(self, file: _File) -> None:
        self._asked += 1
        for tries in range(1, MAX_TRIES + 1):
            reader = SitemapReader(file.url)
            fetched = await self._try(file, reader)
            await self._politeness.answered(fetched)
            self._answered += fetched.status is not None
            if not fetched.retryable or tries == MAX_TRIES:
                break
            await asyncio.sleep(backoff(tries, fetched.retry_after))
        self._bytes += reader.size
        self.report.files += reader.is_sitemap
        problem = reader.problem
        if fetched.error is not None:
            problem = f"{fetched.error}: {fetched.error_detail}"
        elif not 200 <= (fetched.status or 0) < 300:
            problem = f"HTTP {fetched.status}"
        if problem and not (file.guessed and not reader.is_sitemap and self._plan.job_type != "sitemap"):
            kept = f" ({reader.listed:,} entries were read before)" if reader.listed else ""
            self.report.add_problem(f"{file.url}: {problem}{kept}")

    async def _try(self, file: _File, reader: SitemapReader) -> Fetched:
        """Read one file as it arrives. Entries that arrived before an error are kept: listed twice is listed once."""
        started = time.perf_counter()
        async with self._client.fetch_stream(
            file.url, follow=lambda target: self._may_follow(file, target), max_bytes=MAX_BYTES + 1
        ) as (fetched, pieces):
            fetched.elapsed_ms = round((time.perf_counter() - started) * 1000)
            if fetched.error is not None or not 200 <= (fetched.status or 0) < 300:
                return fetched
            try:
                async with asyncio.timeout(FILE_SECONDS):
                    async for piece in pieces:
                        await self._enter(reader.feed(piece), file)
                        if reader.problem is not None or self._listed >= self._max_urls:
                            break
                        await asyncio.sleep(0)  # pages are fetched by the same loop
                    else:
                        await self._enter(reader.close(), file)
            except FetchFailed as error:
                fetched.error, fetched.error_detail, fetched.retryable = error.code, error.detail, error.retryable
            except TimeoutError:
                fetched.error, fetched.error_detail = "timeout", f"it took longer than {FILE_SECONDS:g} s"
        await self._flush()
        return fetched

    def _may_follow(self, file: _File, target: str) -> str | None:
        return None if self._is_ours(file, target) else "redirect_off_site"

    def _is_ours(self, file: _File, url: str) -> bool:
        site = site_of(url)
        return site in self._rules.sites or site == site_of(file.url)

    # --- what it lists --------------------------------------------------------------------------------------

    async def _enter(self, entries: list[SitemapEntry], file: _File) -> None:
        for entry in entries:
            if not entry.is_sitemap:
                self._listed += 1
                self._part.append(entry)
            elif file.nesting >= MAX_NESTING:
                self.report.add_problem(f"{entry.url}: indexes are nested more than {MAX_NESTING} deep")
            elif not self._is_ours(file, entry.url):
                self.report.add_problem(f"{entry.url}: it is on another site than {file.url}, which names it")
            elif len(self._seen) <= MAX_FILES:
                self._want(_File(entry.url, file.nesting + 1))
        if len(self._part) >= _PART:
            await self._flush()

    async def _flush(self) -> None:
        part, self._part = self._part, []
        for start in range(0, len(part), _PART):
            wanted = self._rules.wanted(part[start : start + _PART])
            if not wanted:
                continue
            urls = [FrontierUrl(key, entry.url, 0, "sitemap", entry.lastmod) for key, entry, _ in wanted]
            reasons = [reason for _, _, reason in wanted]
            await self._call(partial(self._store.enter, urls, reasons))
            self.report.urls += len(urls)
            self._manager.more_waits()

    async def _call(self, call: Callable[[], _T]) -> _T:
        """Call the store in the frontier's thread; a lost database is waited for."""
        return await self._patience.call(call)
