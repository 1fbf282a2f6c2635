"""Small servers on loopback that answer with raw bytes, honest or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """Answers each request with what `handler` writes for its path."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.origin = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.strip().split("\r\n")
                path = line.split(" ")[1]
                headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
                self.requests.append((path, headers))
                if length := int(headers.get("content-length", 0)):
                    await reader.readexactly(length)
                await self._handler(path, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RawServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.origin = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()


def answer(body: bytes = b"", status: str = "200 OK", length: int | None = None, **headers: str | None) -> bytes:
    """Give the bytes of a whole answer; header names with underscores, None leaves one out."""
    fields: dict[str, str | None] = {
        "Content_Type": "text/html; charset=utf-8",
        "Content_Length": str(len(body) if length is None else length),
        **headers,
    }
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def serving(answers: dict[str, bytes | Handler]) -> AsyncIterator[RawServer]:
    """Serve raw answers by path; a callable writes its own."""

    async def handle(path: str, writer: asyncio.StreamWriter) -> None:
        found = answers.get(path, answer(b"not here", "404 Not Found"))
        if callable(found):
            await found(path, writer)
        else:
            writer.write(found)

    async with RawServer(handle).running() as server:
        yield server
