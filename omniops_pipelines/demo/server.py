"""Serves the demonstration site on loopback, from memory, for as long as a ``with`` block lasts.

Only the standard library, and only what a crawler can tell apart from a real web server's behaviour:
persistent connections, validators and 304, GET and HEAD. What the pages say is in :mod:`.site`.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RD
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

from omniops_pipelines.demo.site import render_site

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omniops_pipelines.demo.site import Answer, RenderedSite

STOP_SECONDS = 2.0
"""How long an answer under way may take to finish when the site stops."""


class DemoSite:
    """A site that is being served: where it is, and what a crawl of it should find.

    Paths are as a browser requests them, such as ``/shop/`` or ``/contact``; ``url`` without its last
    slash and a path make the address of a page.
    """

    def __init__(self, url: str, rendered: RenderedSite) -> None:
        """Describe the site at ``url``, which ends with a slash."""
        self.url: str = url
        self._rendered = rendered
        self._requests: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def pages(self) -> frozenset[str]:
        """Pages that a crawl should end with as ``success``. All can be reached by links from ``/``."""
        return self._rendered.pages

    @property
    def redirects(self) -> Mapping[str, str]:
        """Old addresses that are linked to, and the pages they answer 301 for."""
        return self._rendered.redirects

    @property
    def missing(self) -> frozenset[str]:
        """Addresses that are linked to and answer 404."""
        return self._rendered.missing

    @property
    def disallowed(self) -> frozenset[str]:
        """Addresses that are linked to, and that robots.txt asks crawlers to leave alone."""
        return self._rendered.disallowed

    @property
    def documents(self) -> frozenset[str]:
        """Files that are linked to and are not HTML."""
        return self._rendered.documents

    @property
    def requests(self) -> Counter[str]:
        """How often each path was asked for until now, by GET or HEAD and with any answer. A copy."""
        with self._lock:
            return self._requests.copy()

    def answer(self, path: str) -> Answer:
        """Count a request for ``path`` and return what to send."""
        with self._lock:
            self._requests[path] += 1
        return self._rendered.answer(path)


@contextmanager
def serve_demo_site(host: str = "127.0.0.1", port: int = 0) -> Iterator[DemoSite]:
    """Serve the site in a daemon thread until the block ends; port 0 takes a free one.

    ``host`` is an IPv4 address or a name for one. After the block the port is free again and no
    thread of the server is left.

    Raises:
        OSError: The address cannot be listened on.
    """
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        hint = "Leave the port at 0 to take a free one."
        raise OSError(
            error.errno, f"The demo site cannot listen on {host}:{port}: {error.strerror}. {hint}"
        ) from error
    base = f"http://{host}:{server.server_address[1]}"
    thread: threading.Thread | None = None
    try:
        # The canonical links and the sitemap hold the port, so the pages are rendered after binding.
        server.site = DemoSite(f"{base}/", render_site(base))
        # shutdown() waits for the next look at a flag: a short interval makes leaving the block quick.
        thread = threading.Thread(
            target=server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name=f"demo-site-{server.server_port}",
            daemon=True,
        )
        thread.start()
        yield server.site
    finally:
        if thread is not None:
            server.shutdown()
            thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    site: DemoSite

    # A crawler opens all its connections at once, and the default of 5 makes some wait a second for a
    # retransmitted SYN.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._connections: dict[threading.Thread, Any] = {}
        self._connections_lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for the host's full name here, which takes seconds without a network.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        # The standard library forgets its daemon threads; these are kept, so that stopping can end them.
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name=f"demo-site-{self.server_port}-connection",
            daemon=True,
        )
        with self._connections_lock:
            self._connections[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._connections_lock:
                self._connections.pop(threading.current_thread(), None)

    def server_close(self) -> None:
        super().server_close()
        with self._connections_lock:
            connections = dict(self._connections)
        for request in connections.values():
            # Only the reading half: idle connections end at once, and an answer under way is still sent.
            with suppress(OSError):
                request.shutdown(SHUT_RD)
        for thread in connections:
            thread.join(STOP_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet: what goes wrong in a connection is a client that left, as when a crawl is cancelled."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    protocol_version = "HTTP/1.1"
    server_version = "OmniOpsDemo"
    sys_version = ""
    disable_nagle_algorithm = True
    # Buffered, so that headers and body leave in one segment; the base class flushes after each request.
    wbufsize = -1

    _ALLOWED: ClassVar = "GET, HEAD"

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _refuse(self) -> None:
        body = f"This site answers {self._ALLOWED} only.\n".encode()
        self.send_response(405)
        self.send_header("Allow", self._ALLOWED)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        # The body of the request was not read, and what follows it cannot be told from it.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    # The base class finds methods by these names.
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _respond(self, *, with_body: bool) -> None:
        answer = self.server.site.answer(_path(self.path))
        unchanged = answer.status == 200 and self._has_current(answer)
        self.send_response(304 if unchanged else answer.status)
        if answer.status == 200:
            self.send_header("ETag", answer.etag)
            self.send_header("Cache-Control", "no-cache")
        if answer.modified is not None:
            self.send_header("Last-Modified", format_datetime(answer.modified, usegmt=True))
        if answer.location is not None:
            self.send_header("Location", answer.location)
        if not unchanged:
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            # A GET may carry a body, which nobody reads here; see _refuse.
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body and not unchanged:
            self.wfile.write(answer.body)

    def _has_current(self, answer: Answer) -> bool:
        """Whether the client's copy is the current one: an entity tag outranks a date (RFC 9110, 13.2.2)."""
        tags = self.headers.get_all("If-None-Match")
        if tags is not None:
            given = [tag.strip().removeprefix("W/") for tag in ",".join(tags).split(",")]
            return "*" in given or answer.etag in given
        since = self.headers.get("If-Modified-Since")
        if since is None or answer.modified is None:
            return False
        try:
            date = parsedate_to_datetime(since)
        except ValueError:
            return False
        # "-0000" is read as a date without a zone, which cannot be compared; a cache sends GMT.
        return date.tzinfo is not None and answer.modified <= date

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Write nothing: the crawl's progress has the terminal."""


def _path(target: str) -> str:
    """Return the path of a request's target, without its query; a proxy's client sends the whole url."""
    path = urlsplit(target).path if target.startswith(("http://", "https://")) else target.partition("?")[0]
    return unquote(path.partition("#")[0]) or "/"
