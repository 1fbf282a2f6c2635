"""An HTTP proxy on loopback that makes tunnels (CONNECT), and remembers what it was asked for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class TunnelProxy:
    """Connects to wherever it is asked to.

    Attributes:
        credentials: user name and password that it wants, if any.
        answer: given to everything, instead of a tunnel.
        asked: what it was asked for, in order: the request line's target.
        headers: of each request.
    """

    credentials: tuple[str, str] | None = None
    answer: bytes | None = None
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *fields = head.strip().split("\r\n")
            method, target, _ = line.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
            self.asked.append(target)
            self.headers.append(headers)
            answer = self.answer or self._refusal(method, headers)
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            else:
                await self._tunnel(target, reader, writer)
        writer.close()

    def _refusal(self, method: str, headers: dict[str, str]) -> bytes | None:
        if method != "CONNECT":
            return b"HTTP/1.1 405 Only Tunnels\r\n\r\n"
        if self.credentials is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
            if headers.get("proxy-authorization") != wanted:
                return b"HTTP/1.1 407 Who Are You\r\n\r\n"
        return None

    def _lets_through(self, data: bytes) -> bool:
        """Say whether what a client sends is passed on; if not, its tunnel ends."""
        return True

    async def _tunnel(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Not There\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                if source is reader and not self._lets_through(data):
                    return
                sink.write(data)
                await sink.drain()

        pumps = [asyncio.ensure_future(pump(reader, far_writer)), asyncio.ensure_future(pump(far_reader, writer))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        far_writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TunnelProxy]:
        """Listen on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
