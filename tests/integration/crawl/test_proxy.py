"""A crawl through a proxy that lets nothing through says so, concludes nothing of the site, and can go on later."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from resources.crawler.plan import CrawlPlan
from resources.crawler.site_access import SiteAccess, check_access
from resources.crawler.tunnel import ProxyUnusable
from resources.crawler.urls import normalise, site_of
from tests.support.crawling import make_crawl, make_job, results
from tests.support.proxy import TunnelProxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

PASSWORD = "proxy-pass-1"


@contextlib.contextmanager
def running(proxy: TunnelProxy) -> Iterator[TunnelProxy]:
    """The proxy, in a thread with a loop of its own."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def work() -> None:
        async with proxy.running():
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)


def access_through(site: Site, port: int) -> SiteAccess:
    proxy = {"url": f"http://127.0.0.1:{port}", "username": "reader", "password": PASSWORD}
    return check_access(site_of(site.url), {"origin": site.url.rstrip("/"), "proxy": proxy}, private_proxy=True)


def closed_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "407"),
        (b"HTTP/1.1 403 No\r\n\r\n", "refuses to connect (403)"),
        (b"HTTP/1.1 502 No\r\n\r\n", "cannot reach it (502)"),
        (b"SSH-2.0\r\n\r\n", "no proper answer"),
        (None, "cannot be reached"),
    ],
)
@pytest.mark.parametrize("respect_robots", [True, False])
def test_a_proxy_that_lets_nothing_through_is_named_and_the_job_goes_on_later(
    site: Site, database: Database, says: bytes | None, reason: str, respect_robots: bool
) -> None:
    if says is not None and b"502" in says and not respect_robots:
        pytest.skip("a page that the proxy cannot reach is a failed page")
    site.add("/", ["/a"])
    site.add("/a")
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True, respect_robots=respect_robots)
    make_job(database, "job", plan)
    with running(TunnelProxy(answer=says)) as proxy:
        port = proxy.port if says is not None else closed_port()
        with pytest.raises(ProxyUnusable) as raised:
            make_crawl(database, "job", plan, access=access_through(site, port)).run()
    assert f"http://127.0.0.1:{port} " in str(raised.value)
    assert reason in str(raised.value)
    assert PASSWORD not in str(raised.value)
    assert not site.requests
    assert results(database) == {}
    with running(TunnelProxy(("reader", PASSWORD))) as proxy:
        outcome = make_crawl(database, "job", plan, access=access_through(site, proxy.port)).run()
        assert outcome.finish_reason == "exhausted"
        assert proxy.asked
    assert {path: row["status"] for path, row in results(database).items()} == {"/": "success", "/a": "success"}


def test_a_proxy_that_goes_away_in_the_middle_loses_no_page(site: Site, database: Database) -> None:
    paths = [f"/{n}" for n in range(30)]
    site.add("/", paths)
    for path in paths:
        site.add(path)
    plan = CrawlPlan(urls=(normalise(site.url),), allow_private=True, concurrency=1)
    make_job(database, "job", plan)
    with running(_Tiring(("reader", PASSWORD), requests=15)) as proxy, pytest.raises(ProxyUnusable):
        make_crawl(database, "job", plan, access=access_through(site, proxy.port)).run()
    assert all(row["status"] == "success" for row in results(database).values())
    assert set(site.requests) < {"/robots.txt", "/", *paths}
    with running(TunnelProxy(("reader", PASSWORD))) as proxy:
        assert make_crawl(database, "job", plan, access=access_through(site, proxy.port)).run().complete
    assert set(results(database)) == {"/", *paths}
    assert all(row["status"] == "success" for row in results(database).values())


class _Tiring(TunnelProxy):
    """Lets so many requests through, and from then on none, through no tunnel that is open and no new one."""

    def __init__(self, credentials: tuple[str, str], requests: int) -> None:
        super().__init__(credentials)
        self.left = requests

    def _refusal(self, method: str, headers: dict[str, str]) -> bytes | None:
        return b"HTTP/1.1 403 Enough\r\n\r\n" if self.left <= 0 else super()._refusal(method, headers)

    def _lets_through(self, data: bytes) -> bool:
        self.left -= data.count(b"\r\n\r\n")
        return self.left >= 0
