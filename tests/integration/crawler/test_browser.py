"""Pages that scripts make, in a real browser: what is read of them, what they cannot reach, what they may cost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import uvloop

from resources.crawler.client import Fetched, FetchLimits, GuardedHttpClient
from resources.crawler.plan import CrawlPlan
from resources.crawler.rendering.browser import RenderLimits
from resources.crawler.rendering.chromium import missing_browser
from resources.crawler.rendering.fetcher import RenderingFetcher
from tests.support.crawling import crawl, make_crawl, make_job, results
from tests.support.script_site import (
    add_application,
    add_endless_list,
    add_flood,
    add_script,
    add_silence,
    text_of,
)
from tests.support.site import Page, Site, serve_site

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from tests.support.databases import Database

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(missing_browser() is not None, reason=f"no rendering here: {missing_browser()}"),
]

LIMITS = RenderLimits(page_seconds=12, settle_seconds=2, sparse_quiet_seconds=1)


class Renderer:
    """A fetcher with its browser, in a loop and thread of its own, as a crawl has it."""

    def __init__(self, site: Site, mode: str, limits: RenderLimits, *, allow_private: bool) -> None:
        self.site = site
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.client = GuardedHttpClient(allow_private=True, limits=FetchLimits(page_seconds=10))
        self.fetcher = RenderingFetcher(self.client, mode, (site.url,), concurrency=3, limits=limits)
        if not allow_private:
            # Documents of the test site come from loopback; what its scripts reach is what is looked at.
            pool = self.fetcher._pool
            pool._rules = replace(pool._rules, allow_private=False)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def fetch(self, path: str, **options: Any) -> Fetched:
        fetched: Fetched = self.run(self.fetcher.fetch(self.site.url + path.lstrip("/"), **options))
        return fetched

    def fetch_all(self, *paths: str) -> list[Fetched]:
        async def work() -> list[Fetched]:
            return await asyncio.gather(*(self.fetcher.fetch(self.site.url + path.lstrip("/")) for path in paths))

        fetched: list[Fetched] = self.run(work())
        return fetched

    def browsers(self) -> list[psutil.Process]:
        """The browsers' first processes."""
        return [psutil.Process(c.pid) for c in self.fetcher._pool._browsers if c.pid is not None]

    def close(self) -> None:
        self.run(self.fetcher.cleanup())
        self.run(self.client.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextmanager
def rendering(
    site: Site, mode: str = "browser", limits: RenderLimits = LIMITS, *, allow_private: bool = True
) -> Iterator[Renderer]:
    renderer = Renderer(site, mode, limits, allow_private=allow_private)
    try:
        yield renderer
    finally:
        renderer.close()


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    """One site for the tests that share a browser; each has paths of its own."""
    with serve_site() as site:
        yield site


@pytest.fixture(scope="module")
def browser(web: Site) -> Iterator[Renderer]:
    with rendering(web) as renderer:
        yield renderer


def html_of(fetched: Fetched) -> str:
    assert fetched.error is None, (fetched.error, fetched.error_detail)
    return fetched.body.decode()


# --- what is read -------------------------------------------------------------------------------------------


def test_what_scripts_fetch_and_draw_is_read(web: Site, browser: Renderer) -> None:
    add_application(web, {"/app": ["/app/one", "relative"]})
    fetched = browser.fetch("/app")
    html = html_of(fetched)
    assert text_of("/app").strip() in html
    assert "<title>Title of /app</title>" in html
    assert "/app/one" in html
    assert "enable JavaScript" not in html
    assert (fetched.status, fetched.content_type, fetched.charset) == (200, "text/html", "utf-8")
    # They are the shell's: kept, they would say "not modified" of a page whose content has changed.
    assert "ETag" not in fetched.headers


def test_a_list_is_scrolled_to_its_end_and_not_for_ever(web: Site, browser: Renderer) -> None:
    add_endless_list(web, "/list", 5)
    assert "Item 49 of the list" in html_of(browser.fetch("/list"))
    add_endless_list(web, "/for-ever", 100_000)
    html = html_of(browser.fetch("/for-ever"))
    assert "Item 49 of the list" in html
    assert "Item 5000 of the list" not in html


def test_shadow_trees_are_read_and_a_base_is_kept(web: Site, browser: Renderer) -> None:
    add_script(
        web,
        "/deep/shadow",
        "const host = document.createElement('x-card'); const root = host.attachShadow({mode: 'open'});"
        "root.innerHTML = '<p>Words of the shadow</p><a href=\"next\">n</a>'; document.body.append(host);",
    )
    html = html_of(browser.fetch("/deep/shadow"))
    assert "Words of the shadow" in html
    assert f'<base href="{web.url}deep/shadow">' in html


def test_a_page_that_never_rests_is_read_as_it_is(web: Site, browser: Renderer) -> None:
    add_silence(web, "/silence")
    add_script(
        web,
        "/restless",
        "const tick = () => { const p = document.createElement('p'); p.append('tick'); document.body.append(p); };"
        "setInterval(tick, 50); fetch('/silence'); setInterval(() => fetch('/nothing'), 100);",
    )
    assert "tick" in html_of(browser.fetch("/restless"))


# --- where scripts lead -------------------------------------------------------------------------------------


def test_a_redirect_by_script_is_a_hop_like_any_other(web: Site, browser: Renderer) -> None:
    add_script(web, "/moved", "location.replace('/moved-again')")
    web.pages["/moved-again"] = Page(status=302, headers={"Location": "/arrived"})
    add_script(web, "/arrived", "document.body.append('Arrived by script')")
    asked: list[str] = []

    def follow(target: str) -> str | None:
        asked.append(target)
        return None

    fetched = browser.fetch("/moved", follow=follow)
    assert "Arrived by script" in html_of(fetched)
    assert fetched.final_url == web.url + "arrived"
    assert fetched.redirects == [web.url + "moved", web.url + "moved-again"]
    assert asked == [web.url + "moved-again", web.url + "arrived"]


@pytest.mark.parametrize(
    ("path", "script", "head"),
    [
        ("/off", "location.href = 'http://127.0.0.2:1/elsewhere'", ""),
        ("/off-meta", "", "<meta http-equiv='refresh' content='0; url=http://127.0.0.2:1/elsewhere'>"),
    ],
)
def test_scripts_lead_nowhere_that_a_redirect_may_not(
    web: Site, browser: Renderer, path: str, script: str, head: str
) -> None:
    add_script(web, path, script, head=head)
    fetched = browser.fetch(path, follow=lambda target: "redirect_off_site" if ":1/" in target else None)
    assert (fetched.error, fetched.final_url) == ("redirect_off_site", "http://127.0.0.2:1/elsewhere")


def test_loops_by_script_end(web: Site, browser: Renderer) -> None:
    add_script(web, "/ping", "location.href = '/pong'")
    add_script(web, "/pong", "location.href = '/ping'")
    assert browser.fetch("/ping").error == "redirect_loop"
    add_script(web, "/again", "location.reload()")
    assert "words of /again" in html_of(browser.fetch("/again"))


def test_a_script_that_leads_to_an_error_page_has_its_status(web: Site, browser: Renderer) -> None:
    add_script(web, "/to-nothing", "location.href = '/not-there'")
    fetched = browser.fetch("/to-nothing")
    assert (fetched.status, fetched.final_url, fetched.error) == (404, web.url + "not-there", None)


def test_downloads_and_popups_come_to_nothing(web: Site, browser: Renderer) -> None:
    web.pages["/file.zip"] = Page(b"PK" * 1000, headers={"Content-Type": "application/zip"})
    add_script(
        web,
        "/downloads",
        "const a = document.createElement('a'); a.href = URL.createObjectURL(new Blob(['x'])); a.download = 'x.txt';"
        "document.body.append(a); a.click(); location.href = '/file.zip';"
        "for (let i = 0; i < 20; i++) window.open('/pop');",
    )
    assert "words of /downloads" in html_of(browser.fetch("/downloads"))
    assert web.requests["/pop"] == 0


def test_scripts_are_loaded_once_for_many_pages(web: Site, browser: Renderer) -> None:
    code = b"document.body.append('drawn by a shared script')"
    web.pages["/shared.js"] = Page(code, headers={"Content-Type": "text/javascript", "Cache-Control": "max-age=600"})
    for n in range(3):
        add_script(web, f"/shared/{n}", "", body="<script src='/shared.js'></script>")
        assert "drawn by a shared script" in html_of(browser.fetch(f"/shared/{n}"))
    assert web.requests["/shared.js"] == 1


def test_dialogs_are_dismissed_and_permissions_refused(web: Site, browser: Renderer) -> None:
    add_script(
        web,
        "/dialogs",
        "for (let i = 0; i < 5; i++) alert(i); const yes = confirm('?'); document.body.append('confirmed ' + yes);"
        "navigator.geolocation.getCurrentPosition(() => document.body.append('located'),"
        " () => document.body.append('no location'));",
    )
    html = html_of(browser.fetch("/dialogs"))
    assert "confirmed false" in html
    assert "located" not in html


def test_no_page_sees_what_another_one_stored(web: Site, browser: Renderer) -> None:
    add_script(
        web,
        "/stores",
        "document.body.append('before: ' + document.cookie + localStorage.length);"
        "document.cookie = 'seen=1'; localStorage.setItem('seen', '1');",
    )
    for _ in range(3):
        assert "before: 0" in html_of(browser.fetch("/stores"))


# --- the guard ----------------------------------------------------------------------------------------------

_REACH = """
const reach = (what, url) => {
  if (what === 'fetch') fetch(url).then(r => r.text()).then(t => document.body.append('GOT ' + t)).catch(() => 0);
  if (what === 'frame') { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }
  if (what === 'script') { const s = document.createElement('script'); s.src = url; document.body.append(s); }
  if (what === 'style') { const l = document.createElement('link'); l.rel = 'stylesheet'; l.href = url;
                          document.head.append(l); }
  if (what === 'beacon') navigator.sendBeacon(url, 'x');
  if (what === 'image') new Image().src = url;
  if (what === 'socket') new WebSocket(url.replace('http', 'ws'));
  if (what === 'events') new EventSource(url);
};
"""
_WAYS = ("fetch", "frame", "script", "style", "beacon", "image", "socket", "events")


def _reach_all(url: str) -> str:
    return _REACH + "".join(f"reach('{way}', '{url}{way}');" for way in _WAYS)


class Listener:
    """Counts connections to a port that nobody should reach, TCP and UDP."""

    def __init__(self, host: str) -> None:
        self.tcp = socket.create_server((host, 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((host, self.port))
        for end in (self.tcp, self.udp):
            end.settimeout(0.2)

    def was_reached(self) -> bool:
        for ask in (self.tcp.accept, lambda: self.udp.recv(1)):
            try:
                ask()
            except TimeoutError:
                continue
            return True
        return False

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener("127.0.0.2")
    yield made
    made.close()


def test_pages_reach_no_private_address_by_any_way(web: Site, listener: Listener) -> None:
    spellings = ("127.0.0.2", "2130706434", "0x7f000002", "127.2", "[::ffff:127.0.0.2]")
    scripts = "".join(
        f"for (const way of {list(_WAYS)}) reach(way, 'http://{host}:{listener.port}/' + way);" for host in spellings
    )
    add_script(web, "/reach", _REACH + scripts)
    with rendering(web, allow_private=False) as renderer:
        assert "GOT" not in html_of(renderer.fetch("/reach"))
        assert not listener.was_reached()
        assert renderer.fetcher.counts["refused"] >= 5


def test_a_private_site_lets_its_pages_reach_itself_and_no_other_port(
    web: Site, browser: Renderer, listener: Listener
) -> None:
    web.pages["/own"] = Page(b"own words", headers={"Content-Type": "text/plain"})
    add_script(
        web,
        "/neighbours",
        _REACH + f"reach('fetch', '/own'); reach('fetch', 'http://127.0.0.2:{listener.port}/');"
        "reach('fetch', 'http://169.254.169.254/latest/meta-data/');",
    )
    html = html_of(browser.fetch("/neighbours"))
    assert "GOT own words" in html
    assert not listener.was_reached()


def test_a_redirect_of_a_subresource_is_checked_like_the_first(
    web: Site, browser: Renderer, listener: Listener
) -> None:
    web.pages["/lure"] = Page(status=302, headers={"Location": f"http://127.0.0.2:{listener.port}/secret"})
    add_script(web, "/lured", _reach_all("/lure?").replace("/lure?", web.url + "lure?"))
    for way in _WAYS:
        web.pages[f"/lure?{way}"] = web.pages["/lure"]
    html_of(browser.fetch("/lured"))
    assert web.requests["/lure?fetch"] == 1
    assert not listener.was_reached()


def test_nothing_goes_past_the_proxy_by_udp(web: Site, browser: Renderer, listener: Listener) -> None:
    add_script(
        web,
        "/udp",
        f"const pc = new RTCPeerConnection({{iceServers: [{{urls: 'stun:127.0.0.2:{listener.port}'}}]}});"
        "pc.createDataChannel('x'); pc.createOffer().then(o => pc.setLocalDescription(o));",
    )
    html_of(browser.fetch("/udp"))
    assert not listener.was_reached()


# --- bounds -------------------------------------------------------------------------------------------------


def test_requests_and_bytes_of_a_page_are_bounded(web: Site) -> None:
    add_flood(web, "/flood", 64)
    add_script(web, "/flooded", "fetch('/flood').then(r => r.text()).then(t => document.body.append('GOT'))")
    add_script(
        web, "/many", "for (let i = 0; i < 500; i++) fetch('/n?' + i).catch(() => 0); document.body.append('sent')"
    )
    with rendering(web, limits=replace(LIMITS, max_bytes=2**20, max_requests=50)) as renderer:
        fetched = renderer.fetch("/flooded")
        assert "GOT" not in html_of(fetched)
        assert fetched.http_bytes < 4 * 2**20
        assert "sent" in html_of(renderer.fetch("/many"))
        assert sum(n for path, n in web.requests.items() if path.startswith("/n?")) <= 50


def test_a_page_that_grows_without_end_is_refused(web: Site, browser: Renderer) -> None:
    add_script(
        web,
        "/grows",
        "setInterval(() => { const f = document.createDocumentFragment(); for (let i = 0; i < 20000; i++)"
        " f.append(document.createElement('i')); document.body.append(f); }, 100);",
    )
    fetched = browser.fetch("/grows")
    assert (fetched.error, fetched.body) == ("render_too_large", b"")


def test_trouble_costs_its_own_page_and_no_other(web: Site) -> None:
    add_application(web, {"/fine": []})
    add_script(web, "/hangs", "while (true);")
    add_script(web, "/hangs-later", "setTimeout(() => { while (true); }, 50)")
    add_script(web, "/alerts", "setTimeout(() => { while (true) alert('again'); }, 50)")
    add_script(
        web,
        "/hog",
        "const all = []; setTimeout(() => { while (true) all.push(new Array(1e5).fill(all.length + 0.5)); }, 50)",
    )
    limits = replace(LIMITS, page_seconds=7, heap_megabytes=128)
    with rendering(web, limits=limits) as renderer:
        paths = ("/hangs", "/fine", "/hangs-later", "/alerts", "/fine", "/hog", "/fine")
        found = renderer.fetch_all(*paths)
        errors = [(path, fetched.error) for path, fetched in zip(paths, found, strict=True)]
        assert errors == [
            ("/hangs", "render_timeout"),
            ("/fine", None),
            ("/hangs-later", "render_timeout"),
            ("/alerts", "render_timeout"),
            ("/fine", None),
            ("/hog", "render_crashed"),
            ("/fine", None),
        ]
        assert renderer.fetcher.counts["render_failed"] == 4
        assert "Title of /fine" in html_of(renderer.fetch("/fine"))


def test_a_process_with_too_much_memory_is_ended(web: Site) -> None:
    # Not on the heap of the scripts, so the engine's own limit does not see it.
    add_script(web, "/buffers", "const all = []; setInterval(() => all.push(new Uint8Array(2e7).fill(1)), 20)")
    with rendering(web, limits=replace(LIMITS, process_bytes=600 * 2**20)) as renderer:
        fetched = renderer.fetch("/buffers")
        assert fetched.error == "render_crashed"
        assert "600 MB" in (fetched.error_detail or "")


def test_a_browser_that_dies_is_replaced_and_its_pages_tried_again(web: Site) -> None:
    add_application(web, {"/fine": []})
    with rendering(web) as renderer:
        html_of(renderer.fetch("/fine"))
        (first,) = renderer.browsers()
        pending = asyncio.run_coroutine_threadsafe(renderer.fetcher.fetch(web.url + "fine"), renderer._loop)
        time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        assert "Title of /fine" in html_of(pending.result(60))
        assert renderer.fetcher.counts["browsers"] == 2


def test_a_browser_that_hangs_is_replaced(web: Site) -> None:
    add_application(web, {"/fine": []})
    with rendering(web, limits=replace(LIMITS, page_seconds=8)) as renderer:
        html_of(renderer.fetch("/fine"))
        (first,) = renderer.browsers()
        os.killpg(first.pid, signal.SIGSTOP)
        assert "Title of /fine" in html_of(renderer.fetch("/fine"))
        assert [p.pid for p in renderer.browsers()] != [first.pid]


def test_a_worn_browser_is_replaced(web: Site) -> None:
    add_script(web, "/small", "document.body.append('drawn')")
    limits = replace(LIMITS, pages_per_browser=2, sparse_quiet_seconds=0.5)
    with rendering(web, limits=limits) as renderer:
        for fetched in renderer.fetch_all(*["/small"] * 5):
            assert "drawn" in html_of(fetched)
        assert renderer.fetcher.counts["browsers"] >= 2
        assert len(renderer.browsers()) == 1


# --- auto ---------------------------------------------------------------------------------------------------


def test_auto_renders_what_is_empty_without(web: Site) -> None:
    add_application(web, {"/shell": []})
    web.add("/plain", ["/shell"], title="A page by the server")
    with rendering(web, "auto") as renderer:
        assert "A page by the server" in html_of(renderer.fetch("/plain"))
        assert renderer.browsers() == []
        assert text_of("/shell").strip() in html_of(renderer.fetch("/shell"))
        assert renderer.fetcher.counts["rendered"] == 1


def test_auto_leaves_alone_what_gains_nothing(web: Site) -> None:
    for n in range(8):
        web.pages[f"/thin/{n}"] = Page(b"<p>Thin.</p><script src='/thin.js'></script>")
    with rendering(web, "auto", replace(LIMITS, sparse_quiet_seconds=0.3)) as renderer:
        for n in range(8):
            assert "Thin." in html_of(renderer.fetch(f"/thin/{n}"))
        assert renderer.fetcher.counts["rendered"] == 4


# --- a crawl ------------------------------------------------------------------------------------------------


def test_a_crawl_with_a_browser_is_the_same_crawl(site: Site, database: Database) -> None:
    add_application(site, {"/": ["/a", "/b"], "/a": ["/c", "/"], "/b": ["/gone", "/moved", "/secret"], "/c": []})
    add_script(site, "/moved", "location.href = '/c'")
    add_script(site, "/hangs", "while (true);")
    site.pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /secret", headers={"Content-Type": "text/plain"})
    outcome = crawl(database, site.url, render="browser", concurrency=3)
    found = results(database)
    assert outcome.finish_reason == "exhausted"
    assert {path for path, row in found.items() if row["status"] == "success"} == {"/", "/a", "/b", "/c"}
    assert found["/gone"]["http_status"] == 404
    assert (found["/moved"]["status"], found["/moved"]["skip_reason"]) == ("skipped", "redirect")
    assert found["/secret"]["skip_reason"] == "robots_txt"
    assert site.requests["/secret"] == 0
    assert database.value("SELECT count(*) FROM website_content WHERE text LIKE '%told by a script%'") == 4
    assert outcome.progress.rendering["rendered"] >= 4
    # Without one there is nothing on such a site.
    crawl(database, site.url, "without")
    assert set(results(database, "without")) == {"/"}


def test_stopping_ends_the_browser_and_resuming_is_exact(site: Site, database: Database) -> None:
    pages = [f"/p{n}" for n in range(8)]
    add_application(site, {"/": pages, **{page: [] for page in pages}})
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=3, render="browser")
    make_job(database, "stopped", plan)
    run = make_crawl(database, "stopped", plan)
    stopped_at: list[float] = []
    before = _browsers_below(os.getpid())

    def stop() -> None:
        while run.progress.rendering.get("rendered", 0) < 3:
            time.sleep(0.05)
        stopped_at.append(time.monotonic())
        run.stop("paused")

    threading.Thread(target=stop, daemon=True).start()
    assert run.run().finish_reason == "paused"
    assert time.monotonic() - stopped_at[0] < 10
    assert _browsers_below(os.getpid()) <= before
    assert 3 <= len(results(database, "stopped")) < 9
    assert all(row["status"] == "success" for row in results(database, "stopped").values())
    assert make_crawl(database, "stopped", plan).run().finish_reason == "exhausted"
    assert [row["status"] for row in results(database, "stopped").values()] == ["success"] * 9


def _browsers_below(pid: int) -> set[psutil.Process]:
    """Whole browsers: a shared one may start or end processes for its pages."""
    family = psutil.Process(pid).children(recursive=True)
    return {p for p in family if "chrom" in p.name() and "--type=" not in " ".join(p.cmdline())}


_ALONE = """
import asyncio, sys
from resources.crawler.client import GuardedHttpClient
from resources.crawler.rendering.fetcher import RenderingFetcher

async def main():
    fetcher = RenderingFetcher(GuardedHttpClient(allow_private=True), "browser", (sys.argv[1],), concurrency=2)
    await fetcher.start()
    print("started", flush=True)
    await fetcher.fetch(sys.argv[1])

asyncio.run(main())
"""


def test_no_browser_outlives_a_killed_crawl(web: Site) -> None:
    add_script(web, "/hangs", "while (true);")
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", _ALONE, web.url + "hangs"], stdout=subprocess.PIPE, cwd=root, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    while web.requests["/hangs"] == 0:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("chrom" in p.name() for p in family)
    process.kill()
    process.wait(10)
    process.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
