"""A hostile website on loopback: raw sockets, and a trap behind each link, with what a crawl has to say of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import struct
import threading
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import brotli
from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]
ORDINARY = 40
"""Ordinary pages beside the traps: /ok/0 and so on, the last reached only through the others."""


@dataclass(frozen=True)
class Trap:
    """One trap.

    Attributes:
        says: the bytes of the answer, or what writes them.
        status: of the result that it has to have.
        reason: how its error or its skip reason begins; empty where there is none.
    """

    says: bytes | Write
    status: str = "failed"
    reason: str = ""


def head(status: str = "200 OK", **headers: str | None) -> bytes:
    """The head of an answer; header names with underscores, None leaves one out."""
    fields = {"Content_Type": "text/html", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{n.replace('_', '-')}: {v}" for n, v in fields.items() if v is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def whole(body: bytes, status: str = "200 OK", **headers: str | None) -> bytes:
    """A whole answer."""
    return head(status, Content_Length=str(len(body)), **headers) + body


def page(body: str = "", title: str = "x") -> bytes:
    """An answer with a page."""
    return whole(f"<!doctype html><title>{title}</title><p>words {body}".encode("utf-8", "surrogatepass"))


def redirect(to: str, status: str = "302 Found") -> bytes:
    """An answer that leads on."""
    return whole(b"", status, Location=to)


def flood(first: bytes, piece: bytes, pause: float = 0.0, count: int = 1_000_000) -> Write:
    """Write on and on, until the other side has enough."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return write


def _then_close(data: bytes, *, reset: bool = False) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if reset:
            await asyncio.sleep(0.05)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        writer.close()

    return write


def _zeros(megabytes: int = 100) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


# One layer of zlib's is a thousand times as large: 8 MiB are reached before the ratio is looked at in full.
_BOMB_ENDS = {"gzip": "body_too_large", "deflate": "body_too_large"}


def make_traps() -> dict[str, Trap]:
    """The traps by path."""
    zeros = _zeros()
    chunked = head(Transfer_Encoding="chunked")
    noise = b"\x13\x37 no such thing" * 100
    bombs = {
        "gzip": (zeros, "gzip"), "gzip-twice": (gzip.compress(zeros), "gzip, gzip"),
        "br": (brotli.compress(bytes(100 * 2**20), quality=5), "br"),
        "zstd": (zstd.compress(bytes(100 * 2**20)), "zstd"),
        "deflate": (zlib.compress(bytes(100 * 2**20)), "deflate"),
    }  # fmt: skip
    private = {
        "metadata": "http://169.254.169.254/latest/meta-data/", "metadata-decimal": "http://2852039166/",
        "metadata-hex": "http://0xa9.0xfe.0xa9.0xfe/", "metadata-octal": "http://0251.0376.0251.0376/",
        "metadata-mapped": "http://[::ffff:169.254.169.254]/", "metadata-v6": "http://[fd00:ec2::254]/",
        "redis": "http://127.0.0.1:6379/", "off-site": "http://example.com/",
    }  # fmt: skip
    schemes = {"file": "file:///etc/passwd", "javascript": "javascript:alert(1)", "data": "data:text/html,x",
               "ftp": "ftp://127.0.0.1/", "no-url": "http://[", "userinfo": "http://u:p@127.0.0.1/"}  # fmt: skip
    kept = "success"
    traps: dict[str, Trap] = {
        **{
            f"/bomb/{n}": Trap(whole(b, Content_Encoding=c), reason=_BOMB_ENDS.get(n, "decompression"))
            for n, (b, c) in bombs.items()
        },
        **{f"/to/{n}": Trap(redirect(url), reason="redirect_off_site") for n, url in private.items()},
        **{f"/to/{n}": Trap(redirect(url), reason="redirect_invalid") for n, url in schemes.items()},
        "/to/nowhere": Trap(whole(b"", "302 Found"), reason="redirect_invalid"),
        "/grow/a": Trap(b"", reason="too_many_redirects"),
        "/grow/fast": Trap(b"", reason="redirect_invalid"),
        "/to/itself": Trap(redirect("/to/itself"), reason="redirect_loop"),
        "/to/https": Trap(redirect("https://127.0.0.1:1/"), reason="redirect_off_site"),
        "/to/long": Trap(redirect("/" + "x" * 5_000), reason="redirect_invalid"),
        "/lie/gzip": Trap(whole(noise, Content_Encoding="gzip"), reason="decompression"),
        "/lie/deflate": Trap(whole(noise, Content_Encoding="deflate"), reason="decompression"),
        "/lie/zstd": Trap(whole(noise, Content_Encoding="zstd"), reason="decompression"),
        "/lie/coding": Trap(whole(noise, Content_Encoding="rot13"), reason="bad_encoding"),
        "/lie/three-codings": Trap(whole(noise, Content_Encoding="gzip, gzip, gzip"), reason="bad_encoding"),
        "/lie/cut-gzip": Trap(whole(gzip.compress(noise * 9)[:-12], Content_Encoding="gzip"), reason="incomplete"),
        "/lie/too-short": Trap(_then_close(head(Content_Length="5000") + b"<p>x"), reason="incomplete"),
        "/lie/too-long": Trap(whole(b"<p>words") + b"HTTP/1.1 200 OK\r\n\r\nsmuggled", kept),
        "/lie/terabyte": Trap(_then_close(head(Content_Length=str(10**12)) + b"x"), reason="body_too_large"),
        "/lie/negative": Trap(_then_close(head(Content_Length="-5")), reason="protocol"),
        "/lie/two-lengths": Trap(
            _then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), reason="protocol"
        ),
        "/lie/html-as-pdf": Trap(whole(b"<p>words", Content_Type="application/pdf"), "skipped", "content_type"),
        "/lie/pdf-as-html": Trap(whole(b"%PDF-1.7\n" + bytes(range(256)) * 40), kept),
        "/lie/no-type": Trap(whole(b"<!doctype html><p>words", Content_Type=None), kept),
        "/lie/no-type-binary": Trap(whole(b"\x89PNG" + bytes(9_000), Content_Type=None), "skipped", "content_type"),
        "/lie/charset": Trap(whole("<p>wörter".encode("utf-16"), Content_Type="text/html; charset=ascii"), kept),
        "/lie/no-charset": Trap(whole(b"<p>w\xffrds", Content_Type="text/html; charset=x-nothing"), kept),
        "/chunk/no-number": Trap(_then_close(chunked + b"zz\r\nabc\r\n"), reason=""),
        "/chunk/cut": Trap(_then_close(chunked + b"5\r\nab"), reason="incomplete"),
        "/chunk/huge": Trap(_then_close(chunked + b"ffffffffffffffffff\r\n"), reason=""),
        "/chunk/endless": Trap(flood(chunked, b"10000\r\n" + b"x" * 0x10000 + b"\r\n"), reason="body_too_large"),
        "/reset/at-once": Trap(_then_close(b"", reset=True), reason="connection_reset"),
        "/reset/in-head": Trap(_then_close(b"HTTP/1.1 200 OK\r\nX: ", reset=True), reason=""),
        "/reset/in-body": Trap(_then_close(head(Content_Length="5000") + b"<p>", reset=True), reason=""),
        "/close": Trap(_then_close(b""), reason="connection_reset"),
        "/garbage/nul": Trap(_then_close(b"\0\1\2\3\r\n\r\n"), reason="protocol"),
        "/garbage/ssh": Trap(_then_close(b"SSH-2.0-OpenSSH_9.6\r\n"), reason="protocol"),
        "/garbage/redis": Trap(_then_close(b"+PONG\r\n"), reason="protocol"),
        "/garbage/status": Trap(_then_close(b"HTTP/1.1 abc OK\r\n\r\n"), reason="protocol"),
        "/garbage/html": Trap(_then_close(b"<html>hi</html>\r\n\r\n"), reason="protocol"),
        "/header/many": Trap(flood(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n" * 50), reason="header_too_large"),
        "/header/endless": Trap(flood(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65_536), reason="header_too_large"),
        "/header/large-in-all": Trap(
            whole(b"<p>", **{f"X_{n}": "y" * 2_000 for n in range(60)}), reason="header_too_large"
        ),
        "/header/cookies": Trap(whole(b"<p>words", Set_Cookie="a=" + "b" * 8_000), kept),
        "/drip/head": Trap(flood(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.1, 1_000), reason="timeout"),
        "/drip/body": Trap(flood(head(Content_Length="100000"), b"y", 0.1, 1_000), reason="timeout"),
        "/drip/silence": Trap(flood(b"", b"", 1.0, 60), reason="timeout"),
        "/status/1xx": Trap(flood(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10, 0.01, 10_000), reason="timeout"),
        "/status/204": Trap(head("204 No Content"), kept),
        "/status/205-body": Trap(whole(b"<p>words of nothing", "205 Reset Content"), kept),
        "/status/206": Trap(
            whole(b"<!doctype html><p>the first words", "206 Partial Content", Content_Range="bytes 0-32/900"),
            reason="incomplete",
        ),
        "/status/304": Trap(head("304 Not Modified"), reason="HTTP 304"),
        "/status/999": Trap(whole(b"<p>x", "999 Odd"), reason="HTTP 999"),
        "/empty": Trap(whole(b""), kept),
        "/dom/deep": Trap(whole(b"<div>" * 400_000), kept),
        "/dom/attributes": Trap(whole(b"<x " + b" ".join(b"a%d" % n for n in range(300_000)) + b">"), kept),
        "/dom/formatting": Trap(whole(b"".join(b"<b x=%d><p>" % n for n in range(30_000))), kept),
        "/dom/title": Trap(page(title="t" * 3_000_000), kept),
        "/dom/nul": Trap(page("a\0b &#xD800; &#0;"), kept),
        "/dom/links": Trap(page("".join(f"<a href='http://other.example/{n}'>" for n in range(100_000))), kept),
        "/dom/bad-links": Trap(page("<a href='http://['><a href='http://a:b:c/'><a href='/%zz\0'>"), kept),
        "/dom/refresh": Trap(whole(b"<meta http-equiv=refresh content='0;url=/dom/refresh'><p>words"), kept),
    }
    return traps


def _maze(path: str) -> bytes:
    """A page that leads to fifty new ones: other numbers, or one more filter."""
    head, mark, query = path.partition("?")
    seed = zlib.crc32(path.encode())
    numbers = ((seed + n * 7_919) % 2**32 for n in range(50))
    links = [f"{head}?{query}&filter_{n % 97}={n}" for n in numbers] if mark else [f"/maze/{n}" for n in numbers]
    return page("".join(f"<a href='{link}'>on</a>" for link in links), path)


class HostileSite:
    """The site: `/` links to all traps and to the first ordinary page.

    Args:
        traps: by path; all if None.
        robots: the answer of /robots.txt; there is none if None.

    Attributes:
        url: of the root, with its slash.
        traps: by path.
    """

    def __init__(self, traps: dict[str, Trap] | None = None, robots: bytes | Write | None = None) -> None:
        self.traps = make_traps() if traps is None else traps
        self.robots = robots
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def _answer(self, path: str) -> bytes | Write:
        if path == "/":
            return page("".join(f"<a href='{p}'>x</a>" for p in ("/ok/0", *self.traps)), "root")
        if path.startswith("/ok/"):
            number = int(path[4:])
            following = (n for n in (2 * number + 1, 2 * number + 2) if n < ORDINARY)
            return page("".join(f"<a href='/ok/{n}'>next</a>" for n in following), path)
        if path == "/robots.txt" and self.robots is not None:
            return self.robots
        if path.startswith("/grow/"):
            return redirect(path + ("x" * 900 if path.startswith("/grow/fast") else "/x"))
        if path.startswith("/maze/"):
            return _maze(path)
        trap = self.traps.get(path)
        return whole(b"not here", "404 Not Found") if trap is None else trap.says

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                request = await reader.readuntil(b"\r\n\r\n")
                says = self._answer(request.split(b" ")[1].decode("latin-1"))
                if isinstance(says, bytes):
                    writer.write(says)
                else:
                    await says(writer)
                await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[HostileSite]:
        """Serve, in a thread, until the block ends."""
        loop, ready = asyncio.new_event_loop(), threading.Event()

        def work() -> None:
            asyncio.set_event_loop(loop)
            server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            loop.run_forever()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0.05))
            loop.close()

        thread = threading.Thread(target=work, name="hostile site", daemon=True)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
