"""The browsers of a crawl: started when a page first needs one, replaced when worn or broken, ended at once.

What belongs here: processes and their tabs. What does not: what happens in a tab (`tab`), and which pages get one
(`fetcher`).

Chromium is spoken to by a pipe, so it ends with the program that holds the other end, however that one ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from resources.crawler.identity import USER_AGENT
from resources.crawler.rendering.chromium import find_chromium, launch_options, missing_browser, user_agent
from resources.crawler.rendering.proxy import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, BrowserContext, Playwright

    from resources.crawler.rendering.proxy import GateRules

__all__ = ["BrowserPool", "BrowserUnavailable", "Chromium", "RenderLimits", "Slot"]

logger = logging.getLogger(__name__)

_START_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_WATCH_SECONDS = 0.5
_TRIES_TO_START = 3


class BrowserUnavailable(RuntimeError):
    """No browser could be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What rendering one page may cost."""

    page_seconds: float = 30.0
    """From the moment that the browser has the document."""
    settle_seconds: float = 10.0
    """After the document is there, scripts have so long; then the page is read as it is."""
    quiet_seconds: float = 0.5
    """So long nothing is loading and nothing grows: then the page is complete."""
    sparse_quiet_seconds: float = 2.5
    """The same for a page that has hardly any text: something is probably still to come."""
    scrolls: int = 8
    """To the end of the page, while that makes it longer."""
    max_requests: int = 300
    max_bytes: int = 32 * 2**20
    """On the wire, of everything but the document itself."""
    max_document_bytes: int = 8 * 2**20
    """A longer document is not rendered: it is no empty shell."""
    max_elements: int = 100_000
    max_html_bytes: int = 16 * 2**20
    max_navigations: int = 10
    """That scripts start, redirects by a server among them."""
    heap_megabytes: int = 512
    """For the scripts of a page."""
    process_bytes: int = 1536 * 2**20
    """For any process of the browser; one that has more is killed."""
    pages_per_context: int = 25
    """Pages that share a cache of scripts; cookies and storage they do not share."""
    pages_per_browser: int = 250


@dataclass(slots=True)
class Slot:
    """A place for one page at a time: a browser context, and its way out."""

    context: BrowserContext
    gate: Gate
    pages: int = 0


@dataclass(slots=True, eq=False)
class Chromium:
    """One running browser."""

    browser: Browser
    gate: Gate
    """Of the browser itself: never opened, so that what it does on its own reaches nothing."""
    pid: int | None
    agent: str
    idle: list[Slot] = field(default_factory=list)
    busy: int = 0
    pages: int = 0
    retired: bool = False
    killed: bool = False
    killed_for_memory: set[int] = field(default_factory=set)
    watch: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """True while it can be spoken to."""
        return not self.killed and self.browser.is_connected()

    def kill(self) -> None:
        """End all of its processes now."""
        self.killed = True
        if self.pid is None:
            return
        try:
            # Playwright gives each browser a process group of its own.
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            logger.debug("browser %d had ended", self.pid)

    async def close(self) -> None:
        """End it: kindly for some seconds, then not."""
        if self.watch is not None:
            self.watch.cancel()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.browser.close()
        except Exception as error:  # noqa: BLE001 - whatever state it is in, it is ended next
            logger.debug("the browser did not close: %s", error)
        self.kill()
        await asyncio.gather(*(slot.gate.close() for slot in self.idle), self.gate.close())
        self.idle.clear()


class BrowserPool:
    """Hands out places for pages, in browsers that it keeps.

    Args:
        rules: of the gates.
        limits: of a page.
        slots: pages at once.
    """

    def __init__(self, rules: GateRules, limits: RenderLimits, slots: int) -> None:
        self._rules = rules
        self._limits = limits
        self._places = asyncio.Semaphore(slots)
        self._starting = asyncio.Lock()
        self._playwright: Playwright | None = None
        self._current: Chromium | None = None
        self._browsers: list[Chromium] = []
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self.started = 0

    @property
    def closed(self) -> bool:
        """True once `close` was called: what fails then was cut off."""
        return self._closed

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[tuple[Chromium, Slot]]:
        """A place for one page.

        Raises:
            BrowserUnavailable: no browser could be started.
            TimeoutError: the browser hangs; it is ended.
        """
        async with self._places:
            chromium = await self._usable()
            chromium.busy += 1
            chromium.pages += 1
            slot: Slot | None = None
            try:
                slot = chromium.idle.pop() if chromium.idle else await self._timely_slot(chromium)
                slot.pages += 1
                yield chromium, slot
            finally:
                chromium.busy -= 1
                if slot is not None:
                    await self._put_back(chromium, slot)
                if chromium.retired and chromium.busy == 0:
                    await self._discard(chromium)

    async def close(self) -> None:
        """End every browser, within seconds; pages that are open fail. Called again, it waits for the same end."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        browsers, self._browsers = self._browsers, []
        for chromium in browsers:
            chromium.kill()
        await asyncio.gather(*(chromium.close() for chromium in browsers), return_exceptions=True)
        await self._stop_playwright()

    # --- browsers -------------------------------------------------------------------------------------------

    async def _usable(self) -> Chromium:
        async with self._starting:
            if self._closed:
                raise BrowserUnavailable("the crawl is ending")
            current = self._current
            if current is not None and (not current.alive or current.pages >= self._limits.pages_per_browser):
                current.retired = True
                self._current = None
                if current.busy == 0:
                    await self._discard(current)
            if self._current is None:
                self._current = await self._start()
            return self._current

    async def _start(self) -> Chromium:
        """Start a browser, with a new driver where that is what is broken."""
        if (missing := missing_browser()) is not None:
            raise BrowserUnavailable(missing)
        from playwright.async_api import Error, async_playwright  # noqa: PLC0415 - an optional package

        for attempt in range(1, _TRIES_TO_START + 1):
            try:
                async with asyncio.timeout(_START_SECONDS):
                    if self._playwright is None:
                        self._playwright = await async_playwright().start()
                    chromium = await self._launch(self._playwright)
            except (Error, OSError, TimeoutError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                logger.warning("the browser did not start (try %d): %s", attempt, reason)
                await self._stop_playwright()
                if attempt == _TRIES_TO_START:
                    msg = f"{find_chromium()} could not be started ({reason}): start it by hand to see why"
                    raise BrowserUnavailable(msg) from error
                await asyncio.sleep(attempt)
            else:
                break
        self._browsers.append(chromium)
        self.started += 1
        chromium.watch = asyncio.create_task(self._watch_memory(chromium), name="browser memory")
        if self._closed:
            await self._discard(chromium)
            raise BrowserUnavailable("the crawl is ending")
        return chromium

    async def _launch(self, playwright: Playwright) -> Chromium:
        gate = Gate(self._rules)
        await gate.start()
        options: dict[str, Any] = launch_options(
            find_chromium() or "chromium", gate.port, heap_megabytes=self._limits.heap_megabytes
        )
        try:
            browser = await playwright.chromium.launch(**options)
            session = await browser.new_browser_cdp_session()
            processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
        except BaseException:
            await gate.close()
            raise
        pid = next((int(process["id"]) for process in processes if process["type"] == "browser"), None)
        return Chromium(browser, gate, pid, user_agent(browser.version, USER_AGENT))

    async def _discard(self, chromium: Chromium) -> None:
        if chromium in self._browsers:
            self._browsers.remove(chromium)
            await chromium.close()

    async def _stop_playwright(self) -> None:
        playwright, self._playwright = self._playwright, None
        if playwright is not None:
            with suppress(Exception):  # it may be what is broken
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await playwright.stop()

    # --- places ---------------------------------------------------------------------------------------------

    async def _timely_slot(self, chromium: Chromium) -> Slot:
        try:
            async with asyncio.timeout(_START_SECONDS):
                return await self._new_slot(chromium)
        except TimeoutError:
            chromium.kill()  # it hangs
            raise

    async def _new_slot(self, chromium: Chromium) -> Slot:
        gate = Gate(self._rules)
        await gate.start()
        try:
            context = await chromium.browser.new_context(
                proxy={"server": f"http://127.0.0.1:{gate.port}", "bypass": "<-loopback>"},
                user_agent=chromium.agent,
                viewport={"width": 1280, "height": 1600},
                accept_downloads=False,
                service_workers="block",
                reduced_motion="reduce",
            )
        except BaseException:
            await gate.close()
            raise
        return Slot(context, gate)

    async def _put_back(self, chromium: Chromium, slot: Slot) -> None:
        """Keep a place whose browser is well; else end it."""
        slot.gate.end()
        usable = chromium.alive and not chromium.retired and not self._closed
        if usable and slot.pages < self._limits.pages_per_context:
            chromium.idle.append(slot)
            return
        with suppress(Exception):  # it goes with its browser at the latest
            async with asyncio.timeout(_CLOSE_SECONDS):
                await slot.context.close()
        await slot.gate.close()

    async def _watch_memory(self, chromium: Chromium) -> None:
        """Kill what takes too much; its page crashes, the others go on."""
        loop = asyncio.get_running_loop()
        while chromium.alive and chromium.pid is not None:
            await asyncio.sleep(_WATCH_SECONDS)
            for pid in await loop.run_in_executor(None, _greedy, chromium.pid, self._limits.process_bytes):
                logger.warning("a process of the browser had more than its share of memory, and was killed")
                chromium.killed_for_memory.add(pid)
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _greedy(pid: int, most: int) -> list[int]:
    """The processes of a browser that have more resident memory than `most` bytes."""
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    found = []
    for process in family:
        with suppress(psutil.Error):
            if process.memory_info().rss > most:
                found.append(process.pid)
    return found
