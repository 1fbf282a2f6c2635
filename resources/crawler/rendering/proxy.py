"""The only way out of a browser: a forward proxy on loopback, which connects to checked addresses alone.

Chromium resolves names and makes connections by itself, out of sight of the guarded connector. So it is given a
proxy and nothing else: frames, scripts' requests and web sockets all come here by name, are resolved here, and the
address that is connected to is the one that was checked. Each page has a gate (a port) of its own, so what it
transfers is counted and cut by page.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from resources.crawler.guard import AddressRefused, GuardedResolver, is_allowed_address

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

__all__ = ["Gate", "GateRules", "Usage"]

logger = logging.getLogger(__name__)

_HEAD_BYTES: Final = 64 * 1024
_PIECE: Final = 64 * 1024
_CONNECT_SECONDS: Final = 10.0
_HEAD_SECONDS: Final = 30.0
_MAX_REFUSALS: Final = 20
# Of one hop, not of the message.
_HOP_HEADERS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate"}
)


@dataclass(frozen=True, slots=True)
class GateRules:
    """Where pages may connect to.

    Attributes:
        allow_private: as for `guard.is_allowed_address`, and then still for `private_sites` alone: a page on a
            person's own machine is no reason to let its scripts at everything else that listens there.
        private_sites: (host, port) pairs.
        connections: open at once, of one page.
    """

    allow_private: bool = False
    private_sites: frozenset[tuple[str, int]] = frozenset()
    connections: int = 32


@dataclass(slots=True)
class Usage:
    """What one page has transferred."""

    requests: int = 0
    """Plain requests and tunnels."""
    bytes_in: int = 0
    bytes_out: int = 0
    refused: list[str] = field(default_factory=list)
    """Hosts that were not connected to, the first twenty; see `refusals` for how many."""
    refusals: int = 0
    cut: str | None = None
    """Which bound was reached; from then on the page has no network."""


class _Refused(Exception):
    """Not connected: the status for the browser, and why."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gate:
    """A proxy for one page at a time. Closed until `begin`, and closed again by `end`."""

    def __init__(self, rules: GateRules) -> None:
        self._rules = rules
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._max_bytes = 0
        self._max_requests = 0
        self._open = False
        self.usage = Usage()
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    def begin(self, *, max_bytes: int, max_requests: int) -> Usage:
        """Let a page through, within these bounds; its use is counted in what is returned."""
        self.end()
        self._max_bytes, self._max_requests = max_bytes, max_requests
        self.usage = Usage()
        self._open = True
        return self.usage

    def end(self) -> None:
        """Close all connections, and refuse new ones."""
        self._open = False
        for task in self._connections:
            task.cancel()

    def cut(self, reason: str) -> None:
        """The page has had enough: it goes on without a network."""
        if self.usage.cut is None:
            self.usage.cut = reason
        self.end()

    async def close(self) -> None:
        """Stop listening."""
        self.end()
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # --- one connection -------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or not self._open or len(self._connections) >= self._rules.connections:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            logger.debug("a page's connection ended: %s", error)
        except asyncio.CancelledError:
            # The server's own callback would log it; whoever cancelled this wanted it gone.
            logger.debug("a page's connection was cut")
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        usage = self.usage
        usage.requests += 1
        if usage.requests > self._max_requests:
            self.cut(f"more than {self._max_requests} requests")
            return
        try:
            method, target, version, headers = _parse(head)
            host, port = _target(method, target)
            upstream_reader, upstream_writer = await self._connect(host, port)
        except _Refused as refused:
            usage.refusals += 1
            if len(usage.refused) < _MAX_REFUSALS:
                usage.refused.append(str(refused))
            writer.write(f"HTTP/1.1 {refused.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        try:
            if method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._both_ways(
                    self._pump(reader, upstream_writer, outwards=True), self._pump(upstream_reader, writer)
                )
            else:
                upstream_writer.write(_request(method, target, version, headers))
                await self._both_ways(
                    self._pump(reader, upstream_writer, outwards=True), self._answer(upstream_reader, writer)
                )
        finally:
            upstream_writer.close()

    async def _both_ways(self, out: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None]) -> None:
        """Until what comes back has ended."""
        sending = asyncio.ensure_future(out)
        try:
            await back
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a plain answer on, saying that the connection ends with it: the next request may be for elsewhere."""
        while True:
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            self._count(len(head))
            status, *lines = head[:-4].split(b"\r\n")
            if not status.startswith(b"HTTP/1.1 1"):
                break
        writer.write(b"\r\n".join((status, *_end_to_end(lines), b"Connection: close", b"", b"")))
        await self._pump(reader, writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outwards: bool = False
    ) -> None:
        while data := await reader.read(_PIECE):
            self._count(len(data), outwards=outwards)
            writer.write(data)
            await writer.drain()
        if outwards and writer.can_write_eof():
            writer.write_eof()

    def _count(self, size: int, *, outwards: bool = False) -> None:
        usage = self.usage
        if outwards:
            usage.bytes_out += size
        else:
            usage.bytes_in += size
        if usage.bytes_in + usage.bytes_out > self._max_bytes:
            self.cut(f"more than {self._max_bytes:,} bytes")

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address of a host that is allowed and answers."""
        rules = self._rules
        private = rules.allow_private and (host, port) in rules.private_sites
        try:
            addresses = await GuardedResolver(allow_private=private).resolve(host, port)
        except AddressRefused as refused:
            raise _Refused("403 Forbidden", f"{host}:{port} at {refused.address}") from refused
        except OSError as error:
            raise _Refused("502 Bad Gateway", f"{host}:{port}: {error.strerror or error}") from error
        problem = "has no address"
        for found in addresses[:4]:
            address = found["host"]
            # The very address that is connected to: nothing is resolved after this.
            if not is_allowed_address(address, allow_private=private):
                continue
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(address, port, family=found["family"])
            except (OSError, TimeoutError) as error:
                problem = str(error) or "did not answer"
        raise _Refused("502 Bad Gateway", f"{host}:{port}: {problem}")


def _parse(head: bytes) -> tuple[bytes, bytes, bytes, list[bytes]]:
    line, *headers = head[:-4].split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise _Refused("400 Bad Request", "a request line that is none")
    return parts[0], parts[1], parts[2], headers


def _target(method: bytes, target: bytes) -> tuple[str, int]:
    text = target.decode("latin-1")
    try:
        parts = urlsplit(f"//{text}" if method == b"CONNECT" else text)
        port = parts.port or (0 if method == b"CONNECT" else 80)
    except ValueError as error:
        raise _Refused("400 Bad Request", f"{text[:80]!r} is no target") from error
    if not parts.hostname or not port or (method != b"CONNECT" and parts.scheme != "http"):
        raise _Refused("400 Bad Request", f"{text[:80]!r} is no target")
    return parts.hostname, port


def _request(method: bytes, target: bytes, version: bytes, headers: list[bytes]) -> bytes:
    """The request as an origin server wants it."""
    path = b"/" + target.split(b"//", 1)[1].partition(b"/")[2]
    lines = (b" ".join((method, path, version)), *_end_to_end(headers), b"Connection: close", b"", b"")
    return b"\r\n".join(lines)


def _end_to_end(headers: list[bytes]) -> list[bytes]:
    return [line for line in headers if line.partition(b":")[0].strip().lower() not in _HOP_HEADERS]
