"""Fetching with a browser: what the crawl asks for a url when pages are, or may be, made by scripts.

It has the face of `GuardedHttpClient.fetch` and gives the same `Fetched`, so the crawl, its frontier and its writer
know nothing of browsers. Each document is fetched by that client; the browser is for what comes after.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from multidict import CIMultiDict, CIMultiDictProxy

from resources.crawler.rendering.browser import BrowserPool, BrowserUnavailable, RenderLimits
from resources.crawler.rendering.proxy import GateRules
from resources.crawler.rendering.shells import PatternMemory, is_shell, visible_characters
from resources.crawler.rendering.tab import RenderFailed, Tab, is_html
from resources.crawler.urls import origin_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resources.crawler.client import Fetched, GuardedHttpClient

__all__ = ["RenderingFetcher", "pages_at_once"]

logger = logging.getLogger(__name__)

AUTO_PAGES_PER_MINUTE: Final = 120
"""With `auto`, no more pages are rendered in a minute; others wait for their turn. One page can ask for a hundred
files."""
# Of the document, not of what scripts made of it: kept, they would call a page unchanged whose content has changed.
_VALIDATORS: Final = ("ETag", "Last-Modified")
_CONDITIONS: Final = frozenset({"if-none-match", "if-modified-since"})
_TRIES: Final = 2


def pages_at_once(concurrency: int) -> int:
    """How many pages are rendered at once: each takes a core while its scripts run."""
    return max(1, min(concurrency, 4, (os.cpu_count() or 1) + 1))


class RenderingFetcher:
    """Fetches urls, and renders those that need it.

    Args:
        client: fetches documents.
        mode: `browser` renders each page; `auto` those that are empty without.
        sites: urls of the crawl; with `allow_private`, their hosts are the only private ones that pages reach.
        concurrency: of the crawl.
        limits: of one page.
        counts: kept up to date: `rendered`, `render_failed`, `browsers`, `refused` (connections that pages were not
            given).
    """

    def __init__(
        self,
        client: GuardedHttpClient,
        mode: str,
        sites: tuple[str, ...],
        *,
        concurrency: int,
        limits: RenderLimits | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:
        self._client = client
        self._auto = mode == "auto"
        self._limits = limits or RenderLimits()
        self.counts: dict[str, int] = {} if counts is None else counts
        for name in ("rendered", "render_failed", "browsers", "refused"):
            self.counts.setdefault(name, 0)
        rules = GateRules(
            allow_private=client.allow_private, private_sites=frozenset(_host_and_port(site) for site in sites)
        )
        self._pool = BrowserPool(rules, self._limits, pages_at_once(concurrency))
        self._memory = PatternMemory()
        self._moments: deque[float] = deque()

    async def fetch(
        self,
        url: str,
        *,
        follow: Callable[[str], str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Fetched:
        """As `GuardedHttpClient.fetch`; the body of a rendered page is its HTML after its scripts.

        Returns:
            `error` may be `render_crashed`, `render_timeout`, `render_too_large` or `render_unavailable` too.
        """
        if headers and not self._auto:
            headers = {name: value for name, value in headers.items() if name.lower() not in _CONDITIONS}
        fetched = await self._client.fetch(url, follow=follow, headers=headers, **options)
        if not is_html(fetched) or len(fetched.body) > self._limits.max_document_bytes:
            return fetched
        if not self._auto:
            return await self._render(fetched, follow, headers)
        shell = await is_shell(fetched.body, fetched.final_url, fetched.charset)
        if not shell or not self._memory.worth(fetched.final_url):
            return fetched
        await self._turn()
        return await self._render(fetched, follow, headers)

    async def cleanup(self) -> None:
        """End the browsers; what they are at fails. It can not be used again."""
        await self._pool.close()

    async def start(self) -> None:
        """Start a browser now, so that one that does not start is known before the first page.

        Raises:
            BrowserUnavailable: with what to do.
        """
        async with self._pool.slot():
            self.counts["browsers"] = self._pool.started

    async def _turn(self) -> None:
        """Wait for a place in the minute."""
        while True:
            now = time.monotonic()
            while self._moments and now - self._moments[0] >= 60.0:
                self._moments.popleft()
            if len(self._moments) < AUTO_PAGES_PER_MINUTE or self._pool.closed:
                self._moments.append(now)
                return
            await asyncio.sleep(min(0.5, 60.0 - (now - self._moments[0])))

    async def _render(
        self, fetched: Fetched, follow: Callable[[str], str | None] | None, headers: Mapping[str, str] | None
    ) -> Fetched:
        started = time.perf_counter()
        document, address = fetched.body, fetched.final_url
        hops, http_bytes = list(fetched.hops), fetched.http_bytes
        problem = RenderFailed("render_crashed", "the browser ended under the page")
        fetch_next = partial(self._fetch_next, origin_of(address), follow, headers)
        for _ in range(_TRIES):
            # A try may have led it elsewhere.
            fetched.body, fetched.final_url, fetched.hops, fetched.http_bytes = document, address, hops, http_bytes
            try:
                rendered, browser_lost = await self._try(fetched, fetch_next, follow)
            except BrowserUnavailable as unavailable:
                problem = RenderFailed("render_unavailable", str(unavailable))
                break
            if isinstance(rendered, RenderFailed):
                problem = rendered
                if browser_lost and not self._pool.closed:
                    continue  # the whole browser ended, perhaps by another page's doing
                break
            rendered.elapsed_ms = fetched.elapsed_ms + round((time.perf_counter() - started) * 1000)
            return await self._finished(rendered, document, address)
        self.counts["render_failed"] += 1
        fetched.final_url, fetched.hops, fetched.body = address, hops, b""
        fetched.error, fetched.error_detail, fetched.retryable = problem.code, problem.detail, False
        fetched.elapsed_ms += round((time.perf_counter() - started) * 1000)
        return fetched

    async def _try(
        self, fetched: Fetched, fetch: Callable[[str], Any], follow: Callable[[str], str | None] | None
    ) -> tuple[Fetched | RenderFailed, bool]:
        """One try in one browser, and whether that was lost."""
        from playwright.async_api import Error  # noqa: PLC0415 - an optional package

        chromium = None
        try:
            async with self._pool.slot() as (chromium, slot):
                self.counts["browsers"] = self._pool.started
                tab = Tab(chromium, slot, self._limits, fetch, follow)
                try:
                    return await tab.render(fetched), False
                finally:
                    self.counts["refused"] += slot.gate.usage.refusals
        except RenderFailed as failed:
            return failed, chromium is not None and not chromium.alive
        except (Error, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return RenderFailed("render_crashed", reason[:300]), chromium is None or not chromium.alive

    async def _fetch_next(
        self,
        origin: str,
        follow: Callable[[str], str | None] | None,
        headers: Mapping[str, str] | None,
        url: str,
    ) -> Fetched:
        """The document that scripts lead to. What was meant for one origin is not told to another."""
        kept = headers if headers and origin_of(url) == origin else None
        if kept:
            kept = {name: value for name, value in kept.items() if name.lower() not in _CONDITIONS}
        return await self._client.fetch(url, follow=follow, headers=kept)

    async def _finished(self, rendered: Fetched, before: bytes, address: str) -> Fetched:
        """Count, learn, and drop what is said of the document alone."""
        if rendered.error is not None or not rendered.body:
            return rendered
        self.counts["rendered"] += 1
        if self._auto:
            gained = await visible_characters(rendered.body, rendered.final_url, rendered.charset)
            self._memory.learn(address, await visible_characters(before, address, None), gained)
        headers: CIMultiDict[str] = CIMultiDict(rendered.headers)
        for name in _VALIDATORS:
            headers.popall(name, None)
        rendered.headers = CIMultiDictProxy(headers)
        return rendered


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
