"""A website for tests: a real HTTP server on loopback, told page by page what to answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from resources.crawler.discovery import USUAL_PLACES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def html(title: str, links: Iterable[str] = (), *, head: str = "", body: str = "") -> bytes:
    """A page with these links."""
    anchors = "\n".join(f'<li><a href="{link}">{link}</a></li>' for link in links)
    return (
        f"<!doctype html><html lang='en'><head><title>{title}</title>{head}</head>"
        f"<body><h1>{title}</h1><p>{body or 'This is the page ' + title + '.'}</p><ul>{anchors}</ul></body></html>"
    ).encode("utf-8", "surrogatepass")


@dataclass
class Page:
    """What a path answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html; charset=utf-8"})


class Site:
    """Pages by path; paths without one are 404, unless `fallback` makes them.

    Attributes:
        url: of the root, with its slash.
        requests: how often each path was asked for; a look for a sitemap where there is none is in `moments` alone.
        moments: when which path was asked for, in order.
        latency: seconds before each answer.
        answered: how many pages were.
        hold_after: when so many pages were answered, all further ones wait until it is raised; None: none waits.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page | Handler] = {}
        self.fallback: Handler | None = None
        self.requests: Counter[str] = Counter()
        self.moments: list[tuple[float, str]] = []
        self.most_at_once = 0
        self.latency = 0.0
        self.answered = 0
        self.hold_after: int | None = None
        self.port = 0
        self._at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def add(self, path: str, links: Iterable[str] = (), *, title: str | None = None, **kwargs: str) -> None:
        """An ordinary page with these links."""
        self.pages[path] = Page(html(title or path, links, **kwargs))

    def chain(self, count: int) -> None:
        """Pages /p0 … in a binary tree, so that the whole site is found quickly but not at once; `/` is the first."""
        for n in range(count):
            children = [f"/p{child}" for child in (2 * n + 1, 2 * n + 2) if child < count]
            self.add(f"/p{n}", ["/", *children], title=f"Page {n}")
        self.pages["/"] = self.pages["/p0"]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        # A crawler looks whether there is a sitemap. That is no page, where there is none.
        if path not in USUAL_PLACES or path in self.pages:
            self.requests[path] += 1
        self.moments.append((time.monotonic(), path))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            if path in self.pages:
                while self.hold_after is not None and self.answered >= self.hold_after:  # noqa: ASYNC110 - another thread sets it
                    await asyncio.sleep(0.02)
                self.answered += 1
            page = self.pages.get(path, self.fallback)
            if page is None:
                return web.Response(status=404, text="not found", content_type="text/html")
            if isinstance(page, Page):
                return web.Response(status=page.status, body=page.body, headers=page.headers)
            return await page(request)
        finally:
            self._at_once -= 1


@contextmanager
def serve_site(*more_hosts: str) -> Iterator[Site]:
    """Serve a site, in a thread, until the block ends.

    Args:
        more_hosts: addresses beside 127.0.0.1, on the same port: `127.0.0.2` is another host to a crawler.
    """
    site = Site()
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", site.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        tcp = web.TCPSite(runner, "127.0.0.1", 0)
        await tcp.start()
        site.port = runner.addresses[0][1]
        for host in more_hosts:
            await web.TCPSite(runner, host, site.port).start()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, name="test site", daemon=True)
    thread.start()
    if not ready.wait(10):
        msg = "the test site did not start"
        raise RuntimeError(msg)
    try:
        yield site
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
