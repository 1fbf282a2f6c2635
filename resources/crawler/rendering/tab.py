"""One page in a browser: its document is given to it, its scripts run, and what they made of it is read.

The document was fetched by the crawl's own client already, so status, redirects, bounds and the address guard are the
same with and without a browser. Where scripts lead the page to another document, that one is fetched in the same way.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from resources.crawler.client import Hop
from resources.crawler.urls import InvalidUrl, normalise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from playwright.async_api import CDPSession, Dialog, Page, Request

    from resources.crawler.client import Fetched
    from resources.crawler.rendering.browser import Chromium, RenderLimits, Slot

__all__ = ["RenderFailed", "Tab", "is_html"]

logger = logging.getLogger(__name__)

_STEP_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 5.0
_READ_SECONDS: Final = 5.0
"""Kept of a page's time for reading it."""
_LONG_REQUEST_SECONDS: Final = 4.0
"""A request that takes longer is one that waits for news, and is not waited for."""
_SPARSE_CHARACTERS: Final = 200
_WITHOUT_END: Final = frozenset({"eventsource", "websocket", "media", "ping"})
_WORLD: Final = "omniops"

# Not sent on with a document: they are about how its bytes came, or about what a browser should do besides.
_DROPPED_HEADERS: Final = frozenset(
    {
        "content-length", "content-encoding", "transfer-encoding", "content-disposition", "content-type",
        "connection", "keep-alive", "trailer", "upgrade", "alt-svc", "strict-transport-security", "report-to", "nel",
        "reporting-endpoints", "clear-site-data", "link",
    }
)  # fmt: skip

_BLOCKED_URLS: Final = [
    f"*.{ending}*" for ending in ("mp4", "webm", "m3u8", "mp3", "ogg", "wav", "woff", "woff2", "ttf", "otf", "eot")
]

_LOOK: Final = """(() => ({
    ready: document.readyState !== 'loading',
    elements: document.getElementsByTagName('*').length,
    characters: document.body ? document.body.textContent.length : 0,
    visible: document.body ? document.body.innerText.length : 0,
}))()"""
_SCROLL: Final = """(() => {
    const root = document.scrollingElement || document.documentElement;
    const before = root.scrollHeight;
    window.scrollTo(0, before);
    return before;
})()"""
# What scripts put into shadow trees is part of the page for whoever reads it, and not of its HTML: it is copied out
# of them. Scripts and styles have done their work; `noscript` is for those who have none.
_READ: Final = """((maxElements, maxCharacters) => {
    const count = document.getElementsByTagName('*').length;
    if (count > maxElements) return {over: count + ' elements'};
    let room = maxElements - count;
    const open = (root) => {
        for (const host of root.querySelectorAll('*')) {
            if (!host.shadowRoot) continue;
            open(host.shadowRoot);
            const copy = document.createElement('div');
            for (const child of host.shadowRoot.childNodes) {
                if (child.nodeType !== 1 && child.nodeType !== 3) continue;
                if (child.nodeType === 1) room -= child.getElementsByTagName('*').length + 1;
                if (room < 0) return;
                copy.append(child.cloneNode(true));
            }
            host.append(copy);
        }
    };
    open(document);
    const done = 'noscript, style, template, script:not([type="application/ld+json"])';
    for (const element of document.querySelectorAll(done)) element.remove();
    if (!document.querySelector('base[href]') && document.head) {
        const base = document.createElement('base');
        base.href = document.baseURI;
        document.head.prepend(base);
    }
    const html = document.documentElement.outerHTML;
    if (html.length > maxCharacters) return {over: html.length + ' characters'};
    return {html: '<!doctype html>' + html};
})(%d, %d)"""


class RenderFailed(Exception):
    """A page could not be rendered.

    Attributes:
        code: render_crashed, render_timeout or render_too_large.
        detail: one sentence for a person.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


def is_html(fetched: Fetched) -> bool:
    """True for an answer that a browser would show as a page of its own."""
    return (
        fetched.error is None
        and fetched.status is not None
        and 200 <= fetched.status < 300
        and fetched.content_type == "text/html"
        and bool(fetched.body)
    )


@dataclass(eq=False)  # no slots: Playwright marks the objects whose methods it calls
class Tab:
    """Renders one page.

    Args:
        chromium, slot: where.
        limits: what it may cost.
        fetch: fetches the document that scripts lead to, redirects and all.
        follow: asked with each url that scripts lead to, as for redirects.
    """

    chromium: Chromium
    slot: Slot
    limits: RenderLimits
    fetch: Callable[[str], Awaitable[Fetched]]
    follow: Callable[[str], str | None] | None = None
    document: Fetched | None = None
    """The one that is shown now; with the hops that led to it."""
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing more is to be rendered: scripts led to something that is no page, or off the site."""
    _crashed: asyncio.Event = field(default_factory=asyncio.Event)
    _loading: dict[Request, float] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _frame: str = ""
    _world: int | None = None
    _deadline: float = 0.0
    _requests: int = 0
    _shown: bool = False
    _page: Page | None = None
    _session: CDPSession | None = None

    async def render(self, document: Fetched) -> Fetched:
        """Show a document and read what becomes of it.

        Returns:
            The document that is shown in the end, with the page's HTML as its body; or, where scripts led to what is
            no page, that answer.

        Raises:
            RenderFailed: the page crashed, hung, or grew too large.
        """
        self.document = document
        self._seen.add(document.final_url)
        usage = self.slot.gate.begin(max_bytes=self.limits.max_bytes, max_requests=self.limits.max_requests)
        deadline = self._deadline = time.monotonic() + self.limits.page_seconds
        try:
            await self._open_in_time(document.final_url)
            await self._settle(deadline)
            html = "" if self._ended.is_set() else await self._read()
        finally:
            await self._close()
        shown = self.document
        shown.http_bytes += usage.bytes_in
        if not self._ended.is_set():
            shown.body = html.encode("utf-8", "replace")
            shown.content_type, shown.charset = "text/html", "utf-8"
        return shown

    # --- opening and closing --------------------------------------------------------------------------------

    async def _open_in_time(self, url: str) -> None:
        try:
            async with asyncio.timeout(self.limits.page_seconds):
                await self._open(url)
        except TimeoutError as error:
            detail = f"the browser opened no page in {self.limits.page_seconds:g} s"
            raise RenderFailed("render_timeout", detail) from error

    async def _open(self, url: str) -> None:
        context = self.slot.context
        page = self._page = await context.new_page()
        page.on("crash", lambda _: self._crashed.set())
        page.on("dialog", lambda dialog: self._start(_dismiss, dialog))
        page.on("popup", lambda popup: self._start(_shut, popup))
        page.on("request", self._request_began)
        page.on("requestfinished", self._request_ended)
        page.on("requestfailed", self._request_ended)
        session = self._session = await context.new_cdp_session(page)
        tree = await session.send("Page.getFrameTree")
        self._frame = tree["frameTree"]["frame"]["id"]
        session.on("Fetch.requestPaused", lambda event: self._start(self._document_wanted, event))
        await session.send("Network.enable")
        await session.send("Network.setBypassServiceWorker", {"bypass": True})
        await session.send("Network.setBlockedURLs", {"urls": _BLOCKED_URLS})
        with suppress(Exception):  # not every version can; documents would come by without being asked for
            await session.send("Page.setPrerenderingAllowed", {"isAllowed": False})
        documents = {"urlPattern": "*", "resourceType": "Document", "requestStage": "Request"}
        await session.send("Fetch.enable", {"patterns": [documents]})
        # It answers when the document begins to come; scripts may take it elsewhere at once.
        self._start(self._navigate, url)

    async def _navigate(self, url: str) -> None:
        if self._session is not None:
            await self._session.send("Page.navigate", {"url": url})

    async def _close(self) -> None:
        """Close the page and leave nothing of it in the context but its cached scripts."""
        self.slot.gate.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        context = self.slot.context
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                for page in context.pages:
                    if page is not self._page:
                        await page.close()
                if self._session is not None and not self._crashed.is_set():
                    origins = {url.split("/", 3)[0] + "//" + url.split("/", 3)[2] for url in self._seen}
                    for origin in origins:
                        kinds = "local_storage,indexeddb,websql,cache_storage,file_systems,service_workers"
                        await self._session.send(
                            "Storage.clearDataForOrigin", {"origin": origin, "storageTypes": kinds}
                        )
                if self._page is not None:
                    await self._page.close()
                await context.clear_cookies()
        except TimeoutError:
            logger.warning("the browser hangs, and is replaced")
            self.chromium.kill()
        except Exception as error:  # noqa: BLE001 - a page that cannot be closed takes its context with it
            logger.debug("a page could not be closed: %s", error)
            self.slot.pages = self.limits.pages_per_context

    def _start(self, work: Callable[[Any], Coroutine[Any, Any, None]], subject: Any) -> None:
        task = asyncio.ensure_future(_quietly(work, subject))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- documents ------------------------------------------------------------------------------------------

    async def _document_wanted(self, event: dict[str, Any]) -> None:
        """The browser wants a document: a frame's it gets by itself, through its gate; the page's own from us."""
        session, request = self._session, event["request"]
        if session is None:
            return
        paused = {"requestId": event["requestId"]}
        if event["frameId"] != self._frame:
            await session.send("Fetch.continueRequest", paused)
            return
        if self._shown and not await self._led_to(request["url"], request["method"]):
            await session.send("Fetch.failRequest", {**paused, "errorReason": "Aborted"})
            return
        document = self.document
        if document is None:
            return
        self._shown = True
        self._world = None
        charset = f"; charset={document.charset}" if document.charset else ""
        headers = [{"name": "Content-Type", "value": f"text/html{charset}"}]
        headers += [
            {"name": name, "value": value}
            for name, value in document.headers.items()
            if name.lower() not in _DROPPED_HEADERS and value.isprintable()
        ]
        await session.send(
            "Fetch.fulfillRequest",
            {
                **paused,
                "responseCode": document.status or 200,
                "responseHeaders": headers,
                "body": base64.b64encode(document.body).decode(),
            },
        )

    async def _led_to(self, url: str, method: str) -> bool:  # noqa: PLR0911 - a list of reasons
        """Scripts (or a meta refresh) lead to another document: fetch it, if it may be, as a redirect's target.

        Returns:
            True if it is to be shown now.
        """
        document = self.document
        if document is None or self._ended.is_set() or method != "GET":
            return False
        try:
            target = normalise(url)
        except InvalidUrl:
            return False
        source = document.final_url
        if target == source:
            return False  # it loads itself again, which shows nothing new
        hops = [*document.hops, Hop(source, document.status or 200, target)]
        if target in self._seen:
            return self._end(document, hops, target, "redirect_loop", f"{target} leads back to itself by script")
        if len(hops) > self.limits.max_navigations:
            return self._end(document, hops, target, "too_many_redirects", f"more than {len(hops) - 1} redirects")
        if self.follow is not None and (reason := self.follow(target)) is not None:
            return self._end(document, hops, target, reason, f"{source} leads to {target} by script")
        self._seen.add(target)
        fetched = await self.fetch(target)
        if fetched.error is None and 200 <= (fetched.status or 0) < 300 and not is_html(fetched):
            return False  # a download, which a page may start and stay
        fetched.url = document.url
        fetched.hops = [*hops, *fetched.hops]
        fetched.http_bytes += document.http_bytes
        self.document = fetched
        if not is_html(fetched):
            self._ended.set()
            return False
        self._seen.add(fetched.final_url)
        return True

    def _end(self, document: Fetched, hops: list[Hop], target: str, reason: str, detail: str) -> bool:
        document.hops, document.final_url = hops, target
        document.error, document.error_detail, document.body = reason, detail, b""
        self._ended.set()
        return False

    # --- waiting --------------------------------------------------------------------------------------------

    def _request_began(self, request: Request) -> None:
        if request.resource_type not in _WITHOUT_END:
            self._loading[request] = time.monotonic()
        # The gate counts connections, and one of those can carry any number of encrypted requests.
        self._requests += request.url.startswith("http")
        if self._requests > self.limits.max_requests:
            self.slot.gate.cut(f"more than {self.limits.max_requests} requests")

    def _request_ended(self, request: Request) -> None:
        self._loading.pop(request, None)

    def _is_loading(self, now: float) -> bool:
        return any(now - began < _LONG_REQUEST_SECONDS for began in self._loading.values())

    async def _settle(self, deadline: float) -> None:
        """Wait until the page is quiet, scroll it to its end, wait again; all of it bounded."""
        deadline -= _READ_SECONDS
        await self._until_quiet(deadline)
        reached = 0
        for _ in range(self.limits.scrolls):
            if self._ended.is_set() or time.monotonic() >= deadline:
                return
            height = await self._evaluate(_SCROLL)
            if not isinstance(height, (int, float)) or height <= reached:
                return
            reached = int(height)
            await self._until_quiet(deadline, time.monotonic() + self.limits.settle_seconds / 2)

    async def _until_quiet(self, deadline: float, give_up_at: float | None = None) -> None:
        """Wait until nothing loads and nothing grows.

        Args:
            deadline: the latest moment.
            give_up_at: an earlier one; None for a document that may not be there yet, which has `settle_seconds` once
                it is.
        """
        may_be_empty = give_up_at is None
        last: tuple[int, int] | None = None
        quiet_since = time.monotonic()
        while not self._ended.is_set():
            look = await self._evaluate(_LOOK)
            now = time.monotonic()
            if now >= deadline:
                return
            if not look or not look["ready"]:
                last = None
            else:
                if give_up_at is None:
                    give_up_at = now + self.limits.settle_seconds
                state = (look["elements"], look["characters"])
                if state != last or self._is_loading(now):
                    last, quiet_since = state, now
                if look["elements"] > self.limits.max_elements or now >= give_up_at:
                    return
                sparse = may_be_empty and look["visible"] < _SPARSE_CHARACTERS
                wanted = self.limits.sparse_quiet_seconds if sparse else self.limits.quiet_seconds
                if now - quiet_since >= wanted:
                    return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _STEP_SECONDS)

    # --- asking the page ------------------------------------------------------------------------------------

    async def _evaluate(self, expression: str) -> Any:
        """Ask the page, in a world that its scripts cannot reach; None while it is between two documents.

        Raises:
            RenderFailed: it crashed, or does not answer.
        """
        from playwright.async_api import Error  # noqa: PLC0415 - an optional package

        session = self._session
        if session is None:
            return None
        asking = asyncio.ensure_future(self._ask(session, expression))
        crash = asyncio.ensure_future(self._crashed.wait())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            # Scripts that are busy do not let it answer; one that never does hangs.
            left = max(self._deadline - time.monotonic(), _READ_SECONDS)
            await asyncio.wait((asking, crash, ended), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self._crashed.is_set() or not self.chromium.alive:
                raise RenderFailed("render_crashed", self._why_crashed())
            if self._ended.is_set():
                return None
            if not asking.done():
                detail = f"the page's scripts kept it busy for its {self.limits.page_seconds:g} s"
                raise RenderFailed("render_timeout", detail)
            return asking.result()
        except Error as error:
            if not self.chromium.alive or "crashed" in str(error) or "has been closed" in str(error):
                raise RenderFailed("render_crashed", self._why_crashed()) from error
            self._world = None
            return None
        finally:
            for task in (asking, crash, ended):
                task.cancel()
            await asyncio.gather(asking, crash, ended, return_exceptions=True)

    async def _ask(self, session: CDPSession, expression: str) -> Any:
        if self._world is None:
            if not self._shown:
                return None
            made = await session.send("Page.createIsolatedWorld", {"frameId": self._frame, "worldName": _WORLD})
            self._world = made["executionContextId"]
        answer = await session.send(
            "Runtime.evaluate", {"expression": expression, "contextId": self._world, "returnByValue": True}
        )
        if "exceptionDetails" in answer:
            logger.debug("a page could not be asked: %s", answer["exceptionDetails"].get("text"))
            return None
        return answer["result"].get("value")

    def _why_crashed(self) -> str:
        if self.chromium.killed_for_memory:
            return f"the page crashed, or took more than {self.limits.process_bytes // 2**20:,} MB of memory"
        return "the page crashed in the browser" if self.chromium.alive else "the browser ended under the page"

    async def _read(self) -> str:
        question = _READ % (self.limits.max_elements, self.limits.max_html_bytes)
        for _ in range(2):  # between two documents there is nothing to read
            found = await self._evaluate(question)
            if self._ended.is_set():
                return ""
            if found and "over" in found:
                raise RenderFailed("render_too_large", f"the page has grown to {found['over']}")
            if found:
                return str(found["html"])
            await asyncio.sleep(5 * _STEP_SECONDS)
        raise RenderFailed("render_timeout", "the page did not come to rest long enough to be read")


async def _dismiss(dialog: Dialog) -> None:
    await dialog.dismiss()


async def _shut(popup: Page) -> None:
    await popup.close()


async def _quietly(work: Callable[[Any], Coroutine[Any, Any, None]], subject: Any) -> None:
    """Do what may fail because its page is gone meanwhile."""
    try:
        await work(subject)
    except Exception as error:  # noqa: BLE001 - the page's end is noticed where it is asked
        logger.debug("a page went while something was done for it: %s", error)
