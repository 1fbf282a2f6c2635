"""What an answer means for the job: the outcome of a url, what is kept of its page, and where that leads."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from resources.crawler.conditional import pack_links, source_hash, unpack_links, usable_date, usable_etag, validators
from resources.crawler.page import parse_in_turns
from resources.crawler.urls import site_of
from resources.postgres.frontier import FinishedUrl, FoundLink, PageContent
from resources.postgres.page_html import FetchedHtml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.crawler.client import Fetched
    from resources.crawler.link_rules import LinkRules
    from resources.crawler.page import Page
    from resources.crawler.plan import CrawlPlan, CrawlProgress
    from resources.crawler.request_manager import FrontierRequestManager, Task

# None: no type was given and the body is empty (the client gives HTML its type by its first bytes).
_PAGE_TYPES: Final = ("text/html", "application/xhtml+xml", "text/plain", None)

LARGE_BYTES: Final = 512 * 1024
"""Larger pages are read one after the other: what they become while they are read is many times as large."""

Outcomes = tuple[list[FinishedUrl], list[FoundLink]]


class PageOutcomes:
    """Reads the answers of one crawl.

    Args:
        plan: what the crawl does.
        rules: which links are followed.
        progress: where time and repairs are counted.
    """

    def __init__(self, plan: CrawlPlan, rules: LinkRules, progress: CrawlProgress) -> None:
        self._plan = plan
        self._rules = rules
        self._progress = progress
        self._large = asyncio.Lock()
        self.unmodified = 0
        """Pages that this run found to be as they were."""

    async def read(self, task: Task, url: str, fetched: Fetched, manager: FrontierRequestManager) -> Outcomes:
        """Turn an answer into its outcome and links."""
        if fetched.error is not None:
            return [self.failed(task, url, message_of(fetched), fetched)], self._known_links(task, manager)
        status = fetched.status or 0
        if status == 304 and task.known is not None and task.asked:
            return self._not_modified(task, url, fetched, manager)
        if not 200 <= status < 300:
            # A page that is there and only cannot be read today leads to what it led to.
            links = [] if status in (404, 410) else self._known_links(task, manager)
            return [self.failed(task, url, f"HTTP {status}", fetched)], links
        if fetched.content_type not in _PAGE_TYPES or (fetched.content_type is None and fetched.http_bytes):
            skipped = self.skipped(task, url, "content_type", fetched)
            skipped.error_message = f"content type {fetched.content_type or 'not given, and the body is no HTML'}"
            return [skipped], []
        return await self._read_page(task, url, fetched, manager)

    def unchanged_by_sitemap(self, task: Task, manager: FrontierRequestManager) -> Outcomes:
        """The outcome of a page that was not asked for, since its sitemap says that it is as it was."""
        self.unmodified += 1
        outcome = self.skipped(task, task.url, "not_modified")
        outcome.error_message = "its sitemap gives no later date than the last visit"
        outcome.tries = 0
        return [outcome], self._known_links(task, manager)

    def failed(self, task: Task, url: str, message: str, fetched: Fetched | None = None) -> FinishedUrl:
        """A url that could not be read."""
        return self._outcome(task, url, "failed", fetched, error_message=message)

    def skipped(self, task: Task, url: str, reason: str, fetched: Fetched | None = None) -> FinishedUrl:
        """A url that is not kept."""
        return self._outcome(task, url, "skipped", fetched, skip_reason=reason)

    @staticmethod
    def _outcome(
        task: Task,
        url: str,
        status: str,
        fetched: Fetched | None,
        *,
        error_message: str | None = None,
        skip_reason: str | None = None,
    ) -> FinishedUrl:
        return FinishedUrl(
            task.hash,
            url,
            task.depth,
            status,
            error_message=error_message,
            skip_reason=skip_reason,
            tries=task.tries,
            http_status=fetched.status if fetched else None,
            processing_time_ms=fetched.elapsed_ms if fetched else None,
            bytes=fetched.http_bytes if fetched else None,
        )

    def _not_modified(self, task: Task, url: str, fetched: Fetched, manager: FrontierRequestManager) -> Outcomes:
        self.unmodified += 1
        outcome = self.skipped(task, url, "not_modified", fetched)
        outcome.unchanged = True
        outcome.etag, outcome.last_modified = validators(fetched.headers)
        return [outcome], self._known_links(task, manager)

    async def _read_page(self, task: Task, url: str, fetched: Fetched, manager: FrontierRequestManager) -> Outcomes:
        started = time.perf_counter()
        if len(fetched.body) > LARGE_BYTES:
            async with self._large:
                started = time.perf_counter()
                page = await self._parse(url, fetched)
        else:
            page = await self._parse(url, fetched)
        parse_seconds = time.perf_counter() - started
        self._progress.phases["parse"] += parse_seconds
        repairs = page.malformed_links + page.cleaned
        self._progress.repairs += repairs
        links = self._rules.links_of(page, task.depth + 1, manager)
        if page.noindex and self._plan.respect_robots:
            outcome = self.skipped(task, url, "noindex", fetched)
        else:
            outcome = self._kept(task, url, fetched, page, self._rules.ours(page))
        outcome.processing_time_ms = fetched.elapsed_ms + round(parse_seconds * 1000)
        outcome.repairs = repairs
        if page.truncated:
            outcome.error_message = "only the links of its beginning were read: it takes too much work to read it all"
        return [outcome], links

    async def _parse(self, url: str, fetched: Fetched) -> Page:
        robots = self._plan.respect_robots
        return await parse_in_turns(
            fetched.body,
            url,
            fetched.content_type,
            fetched.charset,
            # What it says is read in another process: here it is only told from what it was.
            with_text=False,
            hash_texts=self._plan.keep_text,
            respect_nofollow=robots,
            robots_header=fetched.headers.get("X-Robots-Tag") if robots else None,
        )

    def _kept(self, task: Task, url: str, fetched: Fetched, page: Page, links: Sequence[str]) -> FinishedUrl:
        """A page that is kept: written only if it shows something else than before."""
        outcome = self._outcome(task, url, "success", fetched)
        source = source_hash(page)
        known = task.known
        same = (
            known is not None
            and known.source_hash == source
            and known.links is not None
            and (known.has_content or not self._plan.keep_text)
        )
        if known is not None and same:
            outcome.unchanged = True
            outcome.content_hash = known.content_hash
            outcome.etag, outcome.last_modified = validators(fetched.headers)
            if self._plan.job_type == "incremental":
                self.unmodified += 1
                outcome.status, outcome.skip_reason = "skipped", "not_modified"
        else:
            outcome.content = self._content(url, fetched, page, source, links)
            outcome.content_hash = page.content_hash
        return outcome

    def _content(self, url: str, fetched: Fetched, page: Page, source: str, links: Sequence[str]) -> PageContent:
        keep_text = self._plan.keep_text
        return PageContent(
            domain=site_of(url),
            title=page.title,
            description=page.description,
            canonical_url=page.canonical_url,
            lang=page.lang,
            http_status=fetched.status or 0,
            etag=usable_etag(fetched.headers.get("ETag")),
            last_modified=usable_date(fetched.headers.get("Last-Modified")),
            source_hash=source,
            content_hash=page.content_hash,
            text=None,
            word_count=0,
            links=pack_links(links),
            html=FetchedHtml(url, fetched.body, fetched.content_type, fetched.charset) if keep_text else None,
        )

    def _known_links(self, task: Task, manager: FrontierRequestManager) -> list[FoundLink]:
        """Where a page leads that was not read this time: to what it led to."""
        if task.known is None:
            return []
        return self._rules.follow(unpack_links(task.known.links), task.depth + 1, manager)


def message_of(fetched: Fetched) -> str:
    """Why there is no answer, in a line."""
    return f"{fetched.error}: {fetched.error_detail}" if fetched.error_detail else str(fetched.error)
