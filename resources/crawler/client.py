"""The HTTP client of the crawl: one guarded session, manual redirects, and a bound on everything.

What belongs here: getting the bytes of one url, or the named reason why not. What does not: whether a url
should be fetched (`urls`, `robots`), when (the politeness of the crawl), and what the bytes mean (`page`).

A server decides nothing about what a fetch costs: connecting, headers, redirects, bytes on the wire, bytes
after decompression and the whole time are all bounded, and every address is checked by `guard` when it is
connected to. Crawlee's own helpers go through the same session, so that they cannot go around it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
from aiohttp import hdrs
from crawlee import HttpHeaders
from crawlee.errors import ProxyError
from crawlee.http_clients import HttpClient, HttpCrawlingResult, HttpResponse
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from resources.crawler.guard import AddressRefused, guarded_connector
from resources.crawler.identity import USER_AGENT
from resources.crawler.site_access import SessionCookies
from resources.crawler.tunnel import ProxyTrouble, tunnel_connector
from resources.crawler.urls import InvalidUrl, normalise

try:
    import brotli  # type: ignore[import-untyped, unused-ignore]
except ImportError:  # pragma: no cover - comes with aiohttp[speedups]
    brotli = None
try:
    from backports import zstd
except ImportError:  # pragma: no cover - comes with aiohttp[speedups] before Python 3.14
    try:
        from compression import zstd  # type: ignore[import-not-found, no-redef, unused-ignore]
    except ImportError:
        zstd = None  # type: ignore[assignment, unused-ignore]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from datetime import timedelta
    from pathlib import Path

    from crawlee import Request
    from crawlee._types import HttpMethod, HttpPayload
    from crawlee.proxy_configuration import ProxyInfo
    from crawlee.sessions import Session
    from crawlee.statistics import Statistics

    from resources.crawler.site_access import SiteAccess

__all__ = [
    "FetchFailed",
    "FetchLimits",
    "Fetched",
    "GuardedHttpClient",
    "Hop",
]

_ACCEPT: Final = "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1"
_ACCEPT_ENCODING: Final = "gzip, deflate, br" if brotli is not None else "gzip, deflate"
_PAGE_TYPES: Final = frozenset({"text/html", "application/xhtml+xml", "text/plain"})
# What a redirect does not take along: conditions, which are about the page asked for; and secrets, to elsewhere.
_CONDITIONS: Final = frozenset({"if-none-match", "if-modified-since"})
_SECRETS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_STATUS: Final = frozenset({408, 425, 429})
_DRAIN_BYTES: Final = 64 * 1024
"""An unwanted body up to this size is read to keep its connection; a new one costs more than that."""
_MAX_RETRY_AFTER: Final = 60.0
_RATIO_FROM: Final = 1024 * 1024
_MAX_RATIO: Final = 250
"""Decompressed to compressed bytes, looked at from 1 MiB on. Real pages stay under 30; zeros are 1,000:1 in
gzip, and nested or in brotli without limit."""
_SLICE: Final = 64 * 1024
_NO_HEADERS: Final[CIMultiDictProxy[str]] = CIMultiDictProxy(CIMultiDict())


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one fetch may cost."""

    max_body_bytes: int = 16 * 2**20
    """For the bytes on the wire, and for those after decompression."""
    page_seconds: float = 30.0
    """For everything: name, connection, redirects, body."""
    connect_seconds: float = 10.0
    """For one connection, with its TLS handshake."""
    first_byte_seconds: float = 20.0
    """For silence of the server, within its answer too, and for all of an answer's head, however it drips."""
    max_redirects: int = 10
    max_line_bytes: int = 16 * 1024
    """For the status line and for one header; a Location can be as long as a url, encoded."""
    max_headers: int = 128
    max_header_bytes: int = 64 * 1024
    """For all headers of an answer together."""
    connections: int = 64
    """Open connections of the client, to all hosts."""


@dataclass(slots=True)
class Hop:
    """One redirect that was followed."""

    url: str
    status: int
    location: str


@dataclass(slots=True)
class Fetched:
    """What came of fetching a url. An answer of any status is one; `error` says why there is no body."""

    url: str
    """The one asked for, normalised."""
    final_url: str
    """The one that answered; where a redirect was stopped, its target."""
    status: int | None = None
    """None: there was no answer."""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    """Of the last answer; names in any case."""
    body: bytes = b""
    """Decompressed; empty unless the status is 2xx and the type is wanted."""
    content_type: str | None = None
    """Lower case, without parameters; None if the server gave none and the body is no HTML."""
    charset: str | None = None
    """From the Content-Type header alone."""
    hops: list[Hop] = field(default_factory=list)
    elapsed_ms: int = 0
    error: str | None = None
    """One of: invalid_url, dns, address_refused, connection_refused, unreachable, connection_reset, timeout,
    tls, protocol, header_too_large, incomplete, body_too_large, bad_encoding, decompression,
    redirect_invalid, redirect_loop, too_many_redirects, proxy_unreachable, proxy_refused, stopped, or
    what `follow` said."""
    error_detail: str | None = None
    retryable: bool = False
    """Whether another try can end otherwise: resets, time-outs, cut bodies, 408, 425, 429, 5xx."""
    retry_after: float | None = None
    """Seconds that the server asked to wait, at most 60."""
    http_bytes: int = 0
    """Bytes of the body on the wire."""

    @property
    def redirects(self) -> list[str]:
        """The urls that redirected, in order."""
        return [hop.url for hop in self.hops]


class FetchFailed(aiohttp.ClientError):
    """A request ended without a usable answer.

    Attributes:
        code: Reason, as in `Fetched.error`.
        detail: One sentence for a person.
        retryable: Whether another try can end otherwise.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retryable = retryable


# ------------------------------------------------------------------------------------------ bodies


class _Stage:
    """One content coding, undone piece by piece: at most `_SLICE` bytes come out at a time."""

    finished = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        raise NotImplementedError


class _Zlib(_Stage):
    """Gzip (several members too) and deflate (with zlib's header, or raw as old servers send it)."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._started = False
        self._inflate = zlib.decompressobj(31) if gzip else None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        if self._inflate is None:
            zlib_header = data[0] & 0x0F == 8 and data[0] >> 4 <= 7
            self._inflate = zlib.decompressobj(15 if zlib_header else -15)
        inflate = self._inflate
        while data:
            if inflate.eof:
                # RFC 1952 lets gzip members follow one another; padding and other rests are ignored.
                if not (self._gzip and data.startswith(b"\x1f\x8b")):
                    break
                inflate = self._inflate = zlib.decompressobj(31)
            piece = inflate.decompress(data, _SLICE)
            if piece:
                yield piece
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if not data and len(piece) == _SLICE and not inflate.eof:
                while piece := inflate.decompress(b"", _SLICE):
                    yield piece
        self.finished = inflate.eof


class _Brotli(_Stage):
    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        decoder = self._decoder
        piece = b"" if decoder.is_finished() else decoder.process(data, output_buffer_limit=_SLICE)
        # `can_accept_more_data` can say yes while output is waiting, so ask until nothing comes.
        while piece:
            yield piece
            piece = b"" if decoder.is_finished() else decoder.process(b"", output_buffer_limit=_SLICE)
        self.finished = decoder.is_finished()


class _Zstd(_Stage):
    def __init__(self) -> None:
        # RFC 9659: a browser's window is 8 MiB at most.
        self._options: Final = {int(zstd.DecompressionParameter.window_log_max): 23}
        self._decoder = zstd.ZstdDecompressor(options=self._options)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data or not self._decoder.needs_input:
            if self._decoder.eof:
                self._decoder = zstd.ZstdDecompressor(options=self._options)
            piece = self._decoder.decompress(data, _SLICE)
            if piece:
                yield piece
            if self._decoder.eof:
                data = self._decoder.unused_data
                if not data:
                    break
            else:
                data = b""
        self.finished = self._decoder.eof


_DECODING_ERRORS: Final[tuple[type[Exception], ...]] = (
    zlib.error,
    *((brotli.error,) if brotli is not None else ()),
    *((zstd.ZstdError,) if zstd is not None else ()),
)


@lru_cache(maxsize=256)
def _codings(header: str) -> tuple[str, ...]:
    """Read a Content-Encoding.

    Raises:
        FetchFailed: bad_encoding, for an unknown coding or more than two on one another (no server has a
            reason for that, and each can multiply by a thousand).
    """
    codings = tuple(name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity"))
    known = {"gzip", "x-gzip", "deflate"}
    if brotli is not None:
        known.add("br")
    if zstd is not None:
        known.add("zstd")
    if len(codings) > 2 or not known.issuperset(codings):
        raise FetchFailed("bad_encoding", f"Content-Encoding {header[:80]!r} is not one that is read")
    return codings


class _Body:
    """Gathers a body and undoes its content codings, within the limits."""

    def __init__(self, codings: tuple[str, ...], max_bytes: int, *, truncate: bool = False) -> None:
        self._stages: list[_Stage] = []
        for name in reversed(codings):
            if name == "br":
                self._stages.append(_Brotli())
            elif name == "zstd":
                self._stages.append(_Zstd())
            else:
                self._stages.append(_Zlib(gzip=name != "deflate"))
        self._max_bytes = max_bytes
        self._truncate = truncate
        self.wire_bytes = 0
        self.size = 0
        self.chunks: list[bytes] = []
        self.full = False

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire.

        Raises:
            FetchFailed: body_too_large or decompression.
        """
        self.wire_bytes += len(data)
        if not self._stages:
            self._keep(data)
            return
        if self.wire_bytes > self._max_bytes:
            self._overflow("on the wire")
            return
        try:
            self._run(data, 0)
        except _DECODING_ERRORS as error:
            raise FetchFailed("decompression", f"the body cannot be decompressed ({error})") from error

    def _run(self, data: bytes, depth: int) -> None:
        if depth == len(self._stages):
            self._keep(data)
            return
        between = 0
        for piece in self._stages[depth].pieces(data):
            self._run(piece, depth + 1)
            # What one coding hands to the next is bounded like the body itself.
            between += len(piece)
            if between > self._max_bytes and not self.full:
                self._overflow("decompressed")
            if self.full:
                return

    def _keep(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)
        if self.size > self._max_bytes:
            self._overflow("decompressed" if self._stages else "on the wire")
        elif self._stages and self.size > _RATIO_FROM and self.size > _MAX_RATIO * self.wire_bytes:
            raise FetchFailed(
                "decompression",
                f"{self.wire_bytes:,} bytes became more than {_MAX_RATIO} times as many",
            )

    def _overflow(self, where: str) -> None:
        if not self._truncate:
            raise FetchFailed("body_too_large", f"the body is over {self._max_bytes:,} bytes {where}")
        self.full = True

    def take(self) -> bytes:
        """Give the body. Cut codings are the caller's to judge by `complete`."""
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        return body[: self._max_bytes] if len(body) > self._max_bytes else body

    @property
    def complete(self) -> bool:
        """False if a coding says that more should have come."""
        return self.wire_bytes == 0 or all(stage.finished for stage in self._stages)


@lru_cache(maxsize=1_024)
def _content_type(header: str) -> tuple[str | None, str | None]:
    """Read a Content-Type: (type, charset), lower case, None where it says nothing."""
    kind, _, parameters = header.partition(";")
    kind = kind.strip().lower()
    match = re.search(r"(?:^|;)\s*charset\s*=\s*[\"']?([^\s\"';,]+)", parameters, re.IGNORECASE)
    return (kind if "/" in kind else None), (match[1].lower() if match else None)


# WHATWG MIME sniffing, 7.1: what an HTML document may begin with, after whitespace and a BOM.
_HTML_START: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?[\t\n\x0c\r ]*<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|"
    rb"TITLE|B|BODY|BR|P|!--|\?xml)[\t\n\x0c\r >-]",
    re.IGNORECASE,
).match
_SNIFF_BYTES: Final = 512


def _without(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in names}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After: seconds or a date; nonsense and the past are None, and 60 s is the most."""
    value = headers.get(hdrs.RETRY_AFTER)
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, _MAX_RETRY_AFTER) if seconds > 0 else None


def _has_content(status: int) -> bool:
    """Say whether an answer's body is content; that of a 205 is none by definition (RFC 9110, 15.3.6).

    Raises:
        FetchFailed: incomplete, for a part (206) that nobody asked for.
    """
    if status == 206:
        raise FetchFailed("incomplete", "the answer is a part (206), and the whole was asked for", retryable=True)
    return 200 <= status < 300 and status != 205


# ------------------------------------------------------------------------------------------ errors


def _refused(error: BaseException) -> AddressRefused | None:
    cause: BaseException | None = getattr(error, "os_error", error)
    for _ in range(5):
        if isinstance(cause, AddressRefused) or cause is None:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _classify(error: BaseException) -> FetchFailed:  # noqa: PLR0911, PLR0912 - a table of kinds
    """Name the reason of an exception of aiohttp, asyncio or the system."""
    if isinstance(error, FetchFailed):
        return error
    if isinstance(error, ProxyTrouble):
        return FetchFailed(error.code, str(error), retryable=error.retryable)
    if (refused := _refused(error)) is not None:
        return FetchFailed("address_refused", f"{refused.strerror}.")
    text = str(error) or type(error).__name__
    if isinstance(error, TimeoutError):
        return FetchFailed("timeout", text, retryable=True)
    if isinstance(error, InvalidUrl):
        return FetchFailed("invalid_url", error.reason)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        again = getattr(error.os_error, "errno", None) == socket.EAI_AGAIN
        return FetchFailed("dns", f"{error.host} has no address ({error.strerror})", retryable=again)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError, ssl.CertificateError)):
        return FetchFailed("tls", text)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ConnectionRefusedError):
            return FetchFailed("connection_refused", f"{error.host}:{error.port} refused the connection")
        if isinstance(cause, ConnectionResetError):
            return FetchFailed("connection_reset", text, retryable=True)
        return FetchFailed("unreachable", text, retryable=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        if isinstance(error.__cause__, ConnectionResetError):
            return FetchFailed("connection_reset", text, retryable=True)
        return FetchFailed("incomplete", text, retryable=True)
    if isinstance(error, (aiohttp.ServerDisconnectedError, ConnectionError)):
        return FetchFailed("connection_reset", text, retryable=True)
    if isinstance(error, aiohttp.ClientResponseError):
        # The C parser tells its limits by text alone.
        if error.message.startswith(("Got more than", "Too many headers")):
            return FetchFailed("header_too_large", error.message)
        return FetchFailed("protocol", error.message or text)
    if isinstance(error, aiohttp.InvalidURL):
        return FetchFailed("invalid_url", text)
    if isinstance(error, OSError):
        return FetchFailed("connection_reset", text, retryable=True)
    return FetchFailed("protocol", f"{type(error).__name__}: {text}")


class _Clock:
    """The deadline of a fetch, and the seconds for which it stood still."""

    __slots__ = ("deadline", "waited")

    def __init__(self) -> None:
        self.deadline: asyncio.Timeout | None = None
        self.waited = 0.0


async def _wait_for_permission(politeness: AsksFirst, url: str, clock: _Clock | None) -> None:
    """Wait for our own politeness, which is none of the site's time.

    Raises:
        FetchFailed: stopped, where no permission comes any more.
    """
    now = asyncio.get_running_loop().time
    started = now()
    deadline = clock.deadline if clock is not None else None
    when = deadline.when() if deadline is not None else None
    if deadline is not None:
        deadline.reschedule(None)
    refused = await politeness.permission(url)
    waited = now() - started
    if clock is not None:
        clock.waited += waited
    if deadline is not None and when is not None:
        deadline.reschedule(when + waited)
    if refused:
        raise FetchFailed("stopped", "the crawl stops", retryable=True)


class _Stopped(FetchFailed):
    """A redirect that is not followed; carries where it stood."""

    def __init__(self, code: str, detail: str, url: str, response: aiohttp.ClientResponse) -> None:
        super().__init__(code, detail)
        self.url = url
        self.response = response


# ------------------------------------------------------------------------------------------ client


class AsksFirst(Protocol):
    """Who is asked before each request; see `resources.crawler.politeness`."""

    def at_once(self, url: str) -> bool:
        """True if it may be sent at once."""

    async def permission(self, url: str) -> float:
        """Wait until it may be sent; more than 0.0 if it may not, because the crawl is stopping."""


def _trusting(ca_bundle: Path) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    tls.load_verify_locations(cafile=ca_bundle)
    return tls


class GuardedHttpClient(HttpClient):
    """Fetches urls within limits and never from a refused address.

    The session is made in the loop that first needs it; `cleanup` closes it, and it can be used again.
    Proxies of the environment and netrc are not used. Cookies are kept for a site with keys, and for no other.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        limits: FetchLimits | None = None,
        access: SiteAccess | None = None,
        politeness: AsksFirst | None = None,
        ca_bundle: Path | None = None,
    ) -> None:
        """Make a client; nothing is opened yet.

        Args:
            allow_private: Let it connect to a person's own machine and network (see `guard`).
            limits: What one fetch may cost.
            politeness: Asked before each request, redirects and robots.txt included; None: nobody is.
            access: Keys of a site, sent to its origin and to no other, and the proxy for everything.
            ca_bundle: Authorities that are trusted beside the system's, a PEM file.
        """
        super().__init__(persist_cookies_per_session=False)
        self.allow_private = allow_private
        self.limits = limits or FetchLimits()
        self._politeness = politeness
        self._access = access
        self._tls = _trusting(ca_bundle) if ca_bundle is not None else None
        self._cookies = SessionCookies()
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The total is a deadline over all hops, set once in `fetch`.
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.limits.connect_seconds, sock_read=self.limits.first_byte_seconds
        )

    @property
    def proxy(self) -> str | None:
        """Name of the proxy that everything goes through."""
        access = self._access
        return access.proxy.name if access is not None and access.proxy is not None else None

    # -- session

    def _open_session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._session
        if session is not None and self._loop is loop and not session.closed:
            return session
        limits = self.limits
        self._loop = loop
        access = self._access
        connector = (
            guarded_connector(allow_private=self.allow_private, limit=limits.connections, tls=self._tls)
            if access is None or access.proxy is None
            else tunnel_connector(
                access.proxy,
                allow_private=self.allow_private,
                private_proxy=access.private_proxy,
                limit=limits.connections,
                tls=self._tls,
            )
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={
                hdrs.USER_AGENT: USER_AGENT,
                hdrs.ACCEPT: _ACCEPT,
                hdrs.ACCEPT_ENCODING: _ACCEPT_ENCODING,
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
            max_line_size=limits.max_line_bytes,
            max_field_size=limits.max_line_bytes,
            max_headers=limits.max_headers,
        )
        return self._session

    async def cleanup(self) -> None:
        """Close the session and its connections."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()

    # -- one request, with its redirects

    async def _open(
        self,
        url: str,
        hops: list[Hop],
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        payload: bytes | None = None,
        follow: Callable[[str], str | None] | None = None,
        max_redirects: int | None = None,
        permitted: bool = False,
        clock: _Clock | None = None,
    ) -> tuple[aiohttp.ClientResponse, str]:
        """Ask, and follow redirects by hand, each hop checked like the first.

        Raises:
            _Stopped: A redirect is not followed.
            Exception: What aiohttp raises; see `_classify`.
        """
        session = self._open_session()
        limit = self.limits.max_redirects if max_redirects is None else max_redirects
        seen: set[str] | None = None
        while True:
            if not permitted and self._politeness is not None and not self._politeness.at_once(url):
                await _wait_for_permission(self._politeness, url, clock)
            permitted = False
            response = await self._answer(session, method, url, headers, payload)
            status = response.status
            if status not in _REDIRECTS:
                return response, url
            location = response.headers.get(hdrs.LOCATION)
            if location is None:
                raise _Stopped("redirect_invalid", f"status {status} has no Location", url, response)
            try:
                target = normalise(location, url)
            except InvalidUrl as error:
                raise _Stopped("redirect_invalid", str(error), url, response) from error
            if self._access is not None and self._access.repeated_in(target):
                raise _Stopped("redirect_invalid", "its target repeats a key of this site", url, response)
            if seen is None:
                seen = {url}
            hops.append(Hop(url, status, target))
            if target in seen:
                raise _Stopped("redirect_loop", f"{target} redirects back to itself", target, response)
            if len(hops) > limit:
                raise _Stopped("too_many_redirects", f"more than {limit} redirects", target, response)
            if follow is not None and (reason := follow(target)) is not None:
                raise _Stopped(reason, f"{url} redirects to {target}", target, response)
            seen.add(target)
            await self._finish(response)
            if status == 303 or (method == "POST" and status in (301, 302)):
                method, payload = "GET", None
            if headers:
                same_origin = target.startswith(str(response.url.origin()) + "/")
                headers = _without(headers, _CONDITIONS if same_origin else _CONDITIONS | _SECRETS)
            url = target

    async def _answer(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        payload: bytes | None,
    ) -> aiohttp.ClientResponse:
        """Send one request, with the keys of this very url's site, and wait for the whole head of its answer."""
        access, limits = self._access, self.limits
        keyed = access is not None and access.is_for(url)
        if access is not None and keyed:
            headers = {**(headers or {}), **access.headers_for(url, self._cookies)}
        try:
            async with asyncio.timeout(limits.connect_seconds + limits.first_byte_seconds):
                response = await session.request(
                    method, URL(url, encoded=True), headers=headers, data=payload, allow_redirects=False
                )
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no whole answer within {limits.first_byte_seconds:g} s") from error
        size = sum([len(name) + len(value) for name, value in response.raw_headers])
        if size > limits.max_header_bytes:
            response.close()
            raise FetchFailed("header_too_large", f"the headers have {size:,} bytes")
        if keyed and (set_cookies := response.headers.getall(hdrs.SET_COOKIE, None)):
            self._cookies.take(set_cookies)
        return response

    async def _finish(self, response: aiohttp.ClientResponse) -> int:
        """Get rid of a body that nobody wants: keep its connection if that is cheap. Gives the bytes read."""
        content = response.content
        size = 0
        if not content.at_eof():
            length = response.content_length
            if length is None and response.headers.get(hdrs.TRANSFER_ENCODING) is None:
                response.close()
                return 0
            if length is not None and length > _DRAIN_BYTES:
                response.close()
                return 0
            try:
                while size <= _DRAIN_BYTES and not content.at_eof():
                    size += len(await content.readany())
            except (aiohttp.ClientError, OSError):
                response.close()
                return size
        if content.at_eof():
            response.release()
        else:
            response.close()
        return size

    # -- the crawl's own way in

    async def fetch(
        self,
        url: str,
        *,
        follow: Callable[[str], str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        any_type: bool = False,
        max_bytes: int | None = None,
        truncate: bool = False,
        max_redirects: int | None = None,
        permitted: bool = False,
    ) -> Fetched:
        """Fetch a url, following redirects, and say what came of it.

        Args:
            url: Where; normalised here.
            follow: Asked with the target before each hop: None goes on, a reason stops there.
            headers: More request headers, for conditional requests.
            any_type: Read a 2xx body of any content type (robots.txt, sitemaps), not only of pages.
            max_bytes: Instead of the limit for bodies.
            truncate: Keep the first `max_bytes` of a longer body, and no error.
            max_redirects: Instead of the limit for redirects.
            permitted: The politeness of the crawl has been asked for the first request already.

        Returns:
            Always an answer or a named reason; only cancellation is raised (and what `follow` raises).
        """
        started = time.perf_counter()
        clock = _Clock()
        fetched = Fetched(url, url)
        response: aiohttp.ClientResponse | None = None
        try:
            fetched.url = fetched.final_url = url = normalise(url)
            async with asyncio.timeout(self.limits.page_seconds) as clock.deadline:
                try:
                    response, fetched.final_url = await self._open(
                        url,
                        fetched.hops,
                        headers=headers,
                        follow=follow,
                        max_redirects=max_redirects,
                        permitted=permitted,
                        clock=clock,
                    )
                except _Stopped as stop:
                    fetched.final_url = stop.url
                    fetched.error, fetched.error_detail = stop.code, stop.detail
                    response = stop.response
                self._describe(fetched, response)
                if fetched.error is None:
                    limit = self.limits.max_body_bytes if max_bytes is None else max_bytes
                    await self._read_page(fetched, response, limit, any_type=any_type, truncate=truncate)
                else:
                    response.close()
        except Exception as error:  # noqa: BLE001 - whatever a server provokes is a result, never a crash
            if response is not None:
                response.close()
            failed = _classify(error)
            if fetched.hops and response is None:
                fetched.final_url = fetched.hops[-1].location
            fetched.body = b""
            fetched.error, fetched.retryable = failed.code, failed.retryable
            fetched.error_detail = failed.detail
            if failed.code == "timeout" and not str(error):
                fetched.error_detail = f"the page took longer than {self.limits.page_seconds:g} s"
        except BaseException:
            if response is not None:
                response.close()
            raise
        fetched.elapsed_ms = round((time.perf_counter() - started - clock.waited) * 1000)
        if self._access is not None:
            self._mask(fetched, self._access)
        return fetched

    @asynccontextmanager
    async def fetch_stream(
        self,
        url: str,
        *,
        follow: Callable[[str], str | None] | None = None,
        max_bytes: int | None = None,
    ) -> AsyncIterator[tuple[Fetched, AsyncIterator[bytes]]]:
        """Fetch a url of any content type, and read its body as it arrives (sitemaps).

        Args:
            url: Where; normalised here.
            follow: As in `fetch`.
            max_bytes: Of the body, decompressed, instead of the limit for bodies.

        Yields:
            What came of it, without a body, and the body's pieces: those raise `FetchFailed`. There are none where
            there is an `error`. The time of a page is for the answer's head; how long the body may take is the
            caller's to say.
        """
        fetched = Fetched(url, url)
        clock = _Clock()
        response: aiohttp.ClientResponse | None = None
        try:
            fetched.url = fetched.final_url = url = normalise(url)
            async with asyncio.timeout(self.limits.page_seconds) as clock.deadline:
                response, fetched.final_url = await self._open(url, fetched.hops, follow=follow, clock=clock)
            self._describe(fetched, response)
        except Exception as error:  # noqa: BLE001 - whatever a server provokes is a result, never a crash
            if isinstance(error, _Stopped):
                fetched.final_url, response = error.url, error.response
            failed = _classify(error)
            fetched.error, fetched.error_detail, fetched.retryable = failed.code, failed.detail, failed.retryable
        if self._access is not None:
            self._mask(fetched, self._access)
        try:
            if response is None or fetched.error is not None:
                yield fetched, _nothing()
            else:
                limit = self.limits.max_body_bytes if max_bytes is None else max_bytes
                yield fetched, _Answer(response, limit, streamed=True).read_stream()
        finally:
            if response is not None:
                fetched.http_bytes = response.content.total_bytes
                response.close()

    @staticmethod
    def _mask(fetched: Fetched, access: SiteAccess) -> None:
        """A server that repeats our keys puts them into no result and no text."""
        if fetched.error_detail:
            fetched.error_detail = access.mask(fetched.error_detail)
        fetched.body = access.mask_bytes(fetched.body)
        masked = CIMultiDict((name, access.mask(value)) for name, value in fetched.headers.items())
        fetched.headers = CIMultiDictProxy(masked)

    @staticmethod
    def _describe(fetched: Fetched, response: aiohttp.ClientResponse) -> None:
        status = fetched.status = response.status
        headers = fetched.headers = response.headers
        content_type = headers.get(hdrs.CONTENT_TYPE)
        if content_type is not None:
            fetched.content_type, fetched.charset = _content_type(content_type)
        if status >= 400:
            fetched.retryable = status >= 500 or status in _RETRYABLE_STATUS
            fetched.retry_after = _retry_after(headers)

    async def _read_page(
        self,
        fetched: Fetched,
        response: aiohttp.ClientResponse,
        limit: int,
        *,
        any_type: bool,
        truncate: bool,
    ) -> None:
        """Read the body of an answer if it is a page's."""
        kind = fetched.content_type
        sniff = kind is None and not any_type
        if not _has_content(response.status) or not (any_type or sniff or kind in _PAGE_TYPES):
            fetched.http_bytes = await self._finish(response)
            return
        headers = response.headers
        if not truncate and (response.content_length or 0) > limit:
            raise FetchFailed("body_too_large", f"the body has {response.content_length:,} bytes")
        coding = headers.get(hdrs.CONTENT_ENCODING)
        body = _Body(_codings(coding) if coding else (), limit, truncate=truncate)
        content = response.content
        try:
            while data := await content.readany():
                body.feed(data)
                if body.full:
                    break
                if sniff and body.size >= _SNIFF_BYTES:
                    if not _HTML_START(body.take()):
                        response.close()
                        return
                    sniff = False
        finally:
            fetched.http_bytes = body.wire_bytes
        if body.full:
            response.close()
        else:
            response.release()
            if not body.complete:
                raise FetchFailed("incomplete", "the compressed body ends too early", retryable=True)
        page = body.take()
        if kind is None and not any_type:
            if not _HTML_START(page):
                return
            fetched.content_type = "text/html"
        fetched.body = page

    # -- Crawlee's ways in, over the same session

    async def _request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: HttpHeaders | Mapping[str, str] | None = None,
        payload: HttpPayload | None = None,
        proxy_info: ProxyInfo | None = None,
    ) -> tuple[aiohttp.ClientResponse, str]:
        if proxy_info is not None:
            raise ProxyError("Proxies are not used: through one, the connected address cannot be checked.")
        data = payload.encode() if isinstance(payload, str) else payload
        hops: list[Hop] = []
        try:
            return await self._open(
                normalise(url),
                hops,
                method=method,
                headers=dict(headers) if headers else None,
                payload=data,
            )
        except _Stopped as stop:
            stop.response.close()
            raise
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, InvalidUrl) as error:
            raise _classify(error) from error

    async def crawl(
        self,
        request: Request,
        *,
        session: Session | None = None,
        proxy_info: ProxyInfo | None = None,
        statistics: Statistics | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - Crawlee's signature
    ) -> HttpCrawlingResult:
        """Crawlee's crawling; see `HttpClient.crawl`.

        Raises:
            TimeoutError: It took too long.
            FetchFailed: There is no usable answer.
            ProxyError: A proxy was asked for.
        """
        async with asyncio.timeout(self._seconds(timeout)):
            response, final_url = await self._request(
                request.url,
                method=request.method,
                headers=request.headers,
                payload=request.payload,
                proxy_info=proxy_info,
            )
            answer = _Answer(response, self.limits.max_body_bytes)
            await answer.load()
        if statistics is not None:
            statistics.register_status_code(response.status)
        request.loaded_url = final_url
        return HttpCrawlingResult(http_response=answer)

    async def send_request(
        self,
        url: str,
        *,
        method: HttpMethod = "GET",
        headers: HttpHeaders | dict[str, str] | None = None,
        payload: HttpPayload | None = None,
        session: Session | None = None,
        proxy_info: ProxyInfo | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109
    ) -> HttpResponse:
        """Crawlee's `context.send_request`; raises as `crawl` does."""
        async with asyncio.timeout(self._seconds(timeout)):
            response, _ = await self._request(
                url, method=method, headers=headers, payload=payload, proxy_info=proxy_info
            )
            answer = _Answer(response, self.limits.max_body_bytes)
            await answer.load()
        return answer

    @asynccontextmanager
    async def stream(
        self,
        url: str,
        *,
        method: HttpMethod = "GET",
        headers: HttpHeaders | dict[str, str] | None = None,
        payload: HttpPayload | None = None,
        session: Session | None = None,
        proxy_info: ProxyInfo | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109
    ) -> AsyncIterator[HttpResponse]:
        """Crawlee's streaming; the timeout is for the answer's head, the limits hold for its body."""
        async with asyncio.timeout(self._seconds(timeout)):
            response, _ = await self._request(
                url, method=method, headers=headers, payload=payload, proxy_info=proxy_info
            )
        try:
            yield _Answer(response, self.limits.max_body_bytes, streamed=True)
        finally:
            response.close()

    def _seconds(self, timeout: timedelta | None) -> float:
        limit = self.limits.page_seconds
        return limit if timeout is None else min(limit, timeout.total_seconds())


async def _nothing() -> AsyncIterator[bytes]:
    """A body that is not there."""
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


class _Answer:
    """Crawlee's view of an answer, with a bounded body."""

    def __init__(self, response: aiohttp.ClientResponse, max_bytes: int, *, streamed: bool = False) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._streamed = streamed
        self._consumed = False
        self._body = b""

    @property
    def http_version(self) -> str:
        version = self._response.version
        return f"HTTP/{version.major}.{version.minor}" if version else "HTTP/1.1"

    @property
    def status_code(self) -> int:
        return self._response.status

    @property
    def headers(self) -> HttpHeaders:
        return HttpHeaders(dict(self._response.headers))

    async def _pieces(self) -> AsyncIterator[bytes]:
        response = self._response
        try:
            body = _Body(_codings(response.headers.get(hdrs.CONTENT_ENCODING, "")), self._max_bytes)
            while data := await response.content.readany():
                body.feed(data)
                for piece in body.chunks:
                    yield piece
                body.chunks.clear()
            if not body.complete:
                raise FetchFailed("incomplete", "the compressed body ends too early", retryable=True)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise _classify(error) from error
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def load(self) -> None:
        self._body = b"".join([piece async for piece in self._pieces()])

    async def read(self) -> bytes:
        if self._streamed:
            raise RuntimeError("A streamed answer is read with read_stream().")
        return self._body

    def read_stream(self) -> AsyncIterator[bytes]:
        if not self._streamed or self._consumed:
            raise RuntimeError("There is no stream to read: it is consumed, or the answer is not streamed.")
        self._consumed = True
        return self._pieces()
