"""The client against real servers on loopback, most of them hostile."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import struct
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import brotli
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from backports import zstd
from crawlee import Request
from crawlee.errors import ProxyError
from crawlee.proxy_configuration import ProxyInfo

from resources.crawler import guard
from resources.crawler.client import Fetched, FetchFailed, FetchLimits, GuardedHttpClient
from resources.crawler.identity import USER_AGENT
from tests.integration.crawler.servers import Handler, RawServer, answer, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LIMITS = FetchLimits(max_body_bytes=2 * 2**20, page_seconds=5, connect_seconds=2, first_byte_seconds=2)
HTML = b"<!doctype html><title>x</title>" + b"<p>hello</p>" * 100


def fetch(
    answers: dict[str, bytes | Handler], path: str = "/", limits: FetchLimits = LIMITS, **options: Any
) -> Fetched:
    """Serve, fetch one path, and give the result."""

    async def work() -> Fetched:
        async with serving(answers) as server, GuardedHttpClient(allow_private=True, limits=limits) as client:
            return await client.fetch(server.origin + path, **options)

    return asyncio.run(asyncio.wait_for(work(), 30))


def with_server(
    answers: dict[str, bytes | Handler], work: Callable[[GuardedHttpClient, RawServer], Coroutine[Any, Any, Any]]
) -> Any:
    async def main() -> Any:
        async with serving(answers) as server, GuardedHttpClient(allow_private=True, limits=LIMITS) as client:
            return await work(client, server)

    return asyncio.run(asyncio.wait_for(main(), 30))


# ------------------------------------------------------------------------------------------ honest


def test_a_page_is_fetched_with_its_type_charset_and_headers() -> None:
    fetched = fetch({"/": answer(HTML, Content_Type="Text/HTML; Charset='ISO-8859-1'", ETag='"x"')})
    assert fetched.error is None
    assert (fetched.status, fetched.body) == (200, HTML)
    assert (fetched.content_type, fetched.charset) == ("text/html", "iso-8859-1")
    assert fetched.headers["etag"] == '"x"'
    assert fetched.http_bytes == len(HTML)
    assert fetched.redirects == []
    assert not fetched.retryable
    assert fetched.retry_after is None


def test_the_agent_is_honest_and_keeps_no_cookies() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        for _ in range(2):
            await client.fetch(server.origin + "/", headers={"If-None-Match": '"x"'})
        path, headers = server.requests[-1]
        assert path == "/"
        assert headers["user-agent"] == USER_AGENT
        assert "OmniOps" in USER_AGENT
        assert headers["if-none-match"] == '"x"'
        assert "cookie" not in headers
        assert server.connections == 1

    with_server({"/": answer(HTML, Set_Cookie="id=1")}, work)


def test_the_path_is_sent_as_it_is_spelled() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        fetched = await client.fetch(server.origin + "/a%2Fb/%C3%BC?q=a+b%20c&x=%25")
        assert fetched.status == 404
        assert server.requests[0][0] == "/a%2Fb/%C3%BC?q=a+b%20c&x=%25"

    with_server({}, work)


@pytest.mark.parametrize(
    "status", ["404 Not Found", "410 Gone", "403 Forbidden", "304 Not Modified", "204 No Content"]
)
def test_an_answer_that_is_no_page_has_no_body_and_is_not_retried(status: str) -> None:
    body = b"" if status[:3] in ("304", "204") else HTML
    fetched = fetch({"/": answer(body, status)})
    assert (fetched.status, fetched.body, fetched.error) == (int(status[:3]), b"", None)
    assert not fetched.retryable


@pytest.mark.parametrize("status", ["429 Slow Down", "500 Oops", "503 Busy", "408 Late"])
def test_a_busy_server_is_to_be_asked_again(status: str) -> None:
    fetched = fetch({"/": answer(HTML, status, Retry_After="7")})
    assert (fetched.retryable, fetched.retry_after, fetched.body) == (True, 7.0, b"")


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("3", 3, 3),
        ("100000", 60, 60),
        (format_datetime(datetime.now(UTC) + timedelta(seconds=3_000), usegmt=True), 60, 60),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), None, None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("9" * 500, 60, 60),
        ("", None, None),
    ],
    ids=["seconds", "huge", "date", "past", "zero", "negative", "word", "digits", "empty"],
)
def test_retry_after_is_read_and_nonsense_is_ignored(value: str, low: float | None, high: float | None) -> None:
    fetched = fetch({"/": answer(b"", "503 Busy", Retry_After=value)})
    if low is None or high is None:
        assert fetched.retry_after is None
    else:
        assert fetched.retry_after is not None
        assert low <= fetched.retry_after <= high


@pytest.mark.parametrize("kind", ["application/pdf", "image/png", "application/json", "text/css"])
def test_a_body_of_another_type_is_not_read(kind: str) -> None:
    fetched = fetch({"/": answer(b"%PDF" * 1_000_000, Content_Type=kind)})
    assert (fetched.status, fetched.content_type, fetched.body, fetched.error) == (200, kind, b"", None)
    assert fetched.http_bytes == 0


def test_any_type_is_read_when_asked_for_and_cut_when_told() -> None:
    answers: dict[str, bytes | Handler] = {"/": answer(b"User-agent: *\n" * 1_000, Content_Type="image/png")}
    assert len(fetch(answers, any_type=True).body) == 14_000
    cut = fetch(answers, any_type=True, max_bytes=1_000, truncate=True)
    assert (len(cut.body), cut.error) == (1_000, None)
    packed = answer(gzip.compress(b"x" * 100_000), Content_Type="image/png", Content_Encoding="gzip")
    cut = fetch({"/": packed}, any_type=True, max_bytes=1_000, truncate=True)
    assert (cut.body, cut.error) == (b"x" * 1_000, None)


def test_a_missing_type_is_sniffed() -> None:
    html = fetch({"/": answer(b"\n <!DOCTYPE html>" + HTML, Content_Type=None)})
    assert (html.content_type, html.error) == ("text/html", None)
    assert html.body
    other = fetch({"/": answer(b"\x89PNG" + b"\0" * 500_000, Content_Type=None)})
    assert (other.content_type, other.body, other.error) == (None, b"", None)


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("X-GZip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", _raw_deflate),
        ("br", brotli.compress),
        ("zstd", zstd.compress),
        ("identity", bytes),
        ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
        ("gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]) + b"\0\0padding"),
    ],
)
def test_every_content_coding_that_servers_use_is_undone(coding: str, pack: Callable[[bytes], bytes]) -> None:
    page = HTML + b"".join(b"<p>%d</p>" % n for n in range(60_000))
    packed = pack(page)
    fetched = fetch({"/": answer(packed, Content_Encoding=coding)})
    assert fetched.error is None, fetched.error_detail
    assert fetched.body == page
    assert fetched.http_bytes == len(packed)


def test_a_chunked_body_is_read() -> None:
    chunks = b"5\r\n<p>ab\r\n3;x=y\r\ncd!\r\n0\r\nTrailer: x\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert fetch({"/": head + chunks}).body == b"<p>abcd!"


# ------------------------------------------------------------------------------------------ redirects


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(b"moved", status, Location=to)


def test_redirects_are_followed_by_hand_and_told() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        fetched = await client.fetch(server.origin + "/a?utm_source=x")
        assert fetched.url == server.origin + "/a"
        assert fetched.final_url == server.origin + "/d?x=1"
        assert fetched.redirects == [server.origin + path for path in ("/a", "/b", "/c")]
        assert [hop.status for hop in fetched.hops] == [301, 307, 308]
        assert fetched.body == HTML
        assert server.connections == 1

    with_server(
        {
            "/a": redirect("b#frag", "301 Moved"),
            "/b": redirect("../c", "307 Temporary"),
            "/c": redirect("/d?x=1", "308 Permanent"),
            "/d?x=1": answer(HTML),
        },
        work,
    )


def test_a_redirect_loop_ends() -> None:
    fetched = fetch({"/": redirect("/b"), "/b": redirect("/")})
    assert (fetched.error, fetched.retryable, fetched.status) == ("redirect_loop", False, 302)
    assert len(fetched.redirects) == 2
    assert fetch({"/": redirect("/#x")}).error == "redirect_loop"


def test_endless_redirects_end_after_ten() -> None:
    answers: dict[str, bytes | Handler] = {f"/{n}": redirect(f"/{n + 1}") for n in range(30)}
    fetched = fetch(answers, "/0")
    assert fetched.error == "too_many_redirects"
    assert len(fetched.redirects) == 11


@pytest.mark.parametrize(
    "target", ["http://[", "javascript:alert(1)", "file:///etc/passwd", "ftp://h/", "http://u:p@h/"]
)
def test_a_redirect_to_no_web_address_is_invalid(target: str) -> None:
    assert fetch({"/": redirect(target)}).error == "redirect_invalid"


def test_a_redirect_without_location_is_invalid() -> None:
    fetched = fetch({"/": answer(b"", "302 Found")})
    assert (fetched.error, fetched.status) == ("redirect_invalid", 302)


def test_the_caller_stops_a_redirect_before_its_target_is_asked() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        fetched = await client.fetch(
            server.origin + "/", follow=lambda url: "redirect_off_site" if "b" in url else None
        )
        assert (fetched.error, fetched.final_url) == ("redirect_off_site", server.origin + "/b")
        assert fetched.redirects == [server.origin + "/"]
        assert [path for path, _ in server.requests] == ["/"]

    with_server({"/": redirect("/b")}, work)


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://2852039166/"]
)
def test_a_redirect_to_a_metadata_address_is_refused_even_when_private_is_allowed(target: str) -> None:
    fetched = fetch({"/": redirect(target)})
    assert (fetched.error, fetched.retryable, fetched.status) == ("address_refused", False, None)


# ------------------------------------------------------------------------------------------ guard


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "0",
        "\uff11\uff12\uff17.0.0.1",
        "[::ffff:127.0.0.1]",
        "127.0.0.1.",
        "localhost",
        "localhost.",
        "[::1]",
        "LOCALHOST",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    async def work() -> None:
        async with serving({"/": answer(HTML)}) as server:
            port = server.origin.rpartition(":")[2]
            async with GuardedHttpClient(limits=LIMITS) as client:
                fetched = await client.fetch(f"http://{host}:{port}/")
                assert fetched.error == "address_refused", fetched
                with pytest.raises(FetchFailed, match="address_refused"):
                    await client.send_request(f"http://{host}:{port}/")
            assert server.connections == 0

    asyncio.run(asyncio.wait_for(work(), 30))


def test_a_spelling_that_only_the_system_understands_reaches_no_private_address() -> None:
    async def work() -> None:
        async with serving({"/": answer(HTML)}) as server:
            port = server.origin.rpartition(":")[2]
            async with aiohttp.ClientSession(connector=guard.guarded_connector()) as session:
                for host in ("127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", "[::ffff:7f00:1]"):
                    with pytest.raises((aiohttp.ClientError, OSError)):
                        await session.get(f"http://{host}:{port}/")
            assert server.connections == 0

    asyncio.run(asyncio.wait_for(work(), 30))


class _Rebinding(AbstractResolver):
    """Lies: says what it likes, past the guard of names."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
                for address in ("127.0.0.1", "127.0.0.2")]  # fmt: skip

    async def close(self) -> None: ...


def test_a_name_that_is_rebound_after_it_was_checked_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GuardedResolver", lambda **_: _Rebinding())

    async def work() -> None:
        async with serving({"/": answer(HTML)}) as server, GuardedHttpClient(limits=LIMITS) as client:
            port = server.origin.rpartition(":")[2]
            fetched = await client.fetch(f"http://rebound.example:{port}/")
            assert fetched.error == "address_refused", fetched
            assert server.connections == 0

    asyncio.run(asyncio.wait_for(work(), 30))


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert fetch({"/": answer(HTML)}).body == HTML


# ------------------------------------------------------------------------------------------ hostile

ZEROS = 100 * 2**20


def _gzip_zeros() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()


BOMB = _gzip_zeros()


@pytest.mark.parametrize("name", ["gzip", "gzip twice", "br", "zstd"])
def test_a_decompression_bomb_is_cut_off_within_its_limits(name: str) -> None:
    body, coding = {
        "gzip": lambda: (BOMB, "gzip"),
        "gzip twice": lambda: (gzip.compress(BOMB), "gzip, gzip"),
        "br": lambda: (brotli.compress(bytes(ZEROS), quality=5), "br"),
        "zstd": lambda: (zstd.compress(bytes(ZEROS)), "zstd"),
    }[name]()
    assert len(body) < 110_000
    fetched = fetch({"/": answer(body, Content_Encoding=coding)})
    assert fetched.error in ("decompression", "body_too_large")
    assert (fetched.body, fetched.retryable) == (b"", False)


def test_a_gzip_bomb_is_cut_off_at_the_body_limit() -> None:
    # Noise keeps the ratio honest, so that only the limit is left to stop it.
    page = b"".join(os.urandom(1_000).hex().encode() for _ in range(1_600))
    fetched = fetch({"/": answer(gzip.compress(page, 1), Content_Encoding="gzip")})
    assert fetched.error == "body_too_large"
    assert "2,097,152" in (fetched.error_detail or "")


@pytest.mark.parametrize("coding", ["gzip, gzip, gzip", "rot13", "compress", "gzip, identity, br, deflate"])
def test_codings_that_no_browser_reads_are_refused(coding: str) -> None:
    fetched = fetch({"/": answer(HTML, Content_Encoding=coding)})
    assert (fetched.error, fetched.status, fetched.body) == ("bad_encoding", 200, b"")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_garbage_that_claims_to_be_compressed_is_a_named_error(coding: str) -> None:
    fetched = fetch({"/": answer(b"\x13\x37 no such thing" * 100, Content_Encoding=coding)})
    assert fetched.error in ("decompression", "incomplete")


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstd.compress)]
)
def test_a_compressed_body_that_ends_too_early_is_incomplete(coding: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(bytes(range(256)) * 500)
    fetched = fetch({"/": answer(packed[:-20], Content_Encoding=coding)})
    assert (fetched.error, fetched.retryable) == ("incomplete", True)


def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    announced = fetch({"/": answer(b"x", length=10**12)})
    assert announced.error == "body_too_large"

    async def endless(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()

    fetched = fetch({"/": endless})
    assert fetched.error == "body_too_large"
    assert fetched.http_bytes < 8 * 2**20


def test_a_body_shorter_than_it_said_is_incomplete() -> None:
    async def short(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(HTML, length=len(HTML) + 10))
        await writer.drain()
        writer.close()

    fetched = fetch({"/": short})
    assert (fetched.error, fetched.retryable, fetched.status, fetched.body) == ("incomplete", True, 200, b"")


def test_a_body_longer_than_it_said_is_cut_and_harms_no_later_answer() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        first = await client.fetch(server.origin + "/long")
        assert first.body == HTML
        second = await client.fetch(server.origin + "/")
        assert second.body == b"<p>second"

    with_server(
        {"/long": answer(HTML + b"HTTP/1.1 200 OK\r\n\r\nsmuggled", length=len(HTML)), "/": answer(b"<p>second")},
        work,
    )


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n", b"5\r\nab", b"-1\r\n", b"ffffffffffffffffff\r\n"])
def test_a_broken_chunk_is_a_named_error(chunk: bytes) -> None:
    async def broken(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        await writer.drain()
        writer.close()

    fetched = fetch({"/": broken})
    assert fetched.error in ("incomplete", "protocol")
    assert fetched.body == b""


@pytest.mark.parametrize("after", ["nothing", "headers", "half"])
def test_a_reset_connection_is_to_be_tried_again(after: str) -> None:
    async def reset(_: str, writer: asyncio.StreamWriter) -> None:
        if after != "nothing":
            writer.write(answer(b"x" * (500 if after == "half" else 0), length=1_000))
            await writer.drain()
            await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    fetched = fetch({"/": reset})
    assert fetched.error in ("connection_reset", "incomplete")
    assert fetched.retryable


def test_a_server_that_closes_without_a_word_is_to_be_tried_again() -> None:
    async def close(_: str, writer: asyncio.StreamWriter) -> None:
        writer.close()

    fetched = fetch({"/": close})
    assert (fetched.error, fetched.retryable, fetched.status) == ("connection_reset", True, None)


def test_a_dripping_server_is_cut_off_at_the_time_of_a_page() -> None:
    async def drip(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", length=1_000))
        for _ in range(1_000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    started = time.monotonic()
    fetched = fetch({"/": drip}, limits=FetchLimits(page_seconds=0.5, first_byte_seconds=2))
    assert (fetched.error, fetched.retryable, fetched.body) == ("timeout", True, b"")
    assert time.monotonic() - started < 10


def test_a_silent_server_is_cut_off_at_the_time_for_its_first_byte() -> None:
    async def silent(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)

    fetched = fetch({"/": silent}, limits=FetchLimits(page_seconds=20, first_byte_seconds=0.3))
    assert (fetched.error, fetched.retryable, fetched.status) == ("timeout", True, None)
    assert fetched.elapsed_ms < 10_000


def test_endless_headers_are_cut_off() -> None:
    async def many(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            writer.write(b"X-%d: y\r\n" % number)
            await writer.drain()

    # On a busy machine the two need their time: it is not time that has to end this.
    limits = FetchLimits(page_seconds=29, connect_seconds=10, first_byte_seconds=19)
    fetched = fetch({"/": many}, limits=limits)
    assert (fetched.error, fetched.status, fetched.retryable) == ("header_too_large", None, False)


def test_an_endless_header_is_cut_off() -> None:
    async def long(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(1_000):
            writer.write(b"y" * 65_536)
            await writer.drain()

    assert fetch({"/": long}).error == "header_too_large"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\1\2\3\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"+PONG\r\n",
        b"<html>hi</html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    ],
)
def test_garbage_instead_of_http_is_a_named_error(garbage: bytes) -> None:
    async def say(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await writer.drain()
        writer.close()

    fetched = fetch({"/": say})
    assert fetched.error in ("protocol", "connection_reset", "header_too_large")
    assert fetched.error_detail


def test_headers_that_are_not_utf_8_do_no_harm() -> None:
    raw = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=\xff\r\nX-\x41: \xfc\xff\r\nContent-Length: 2\r\n\r\nab"
    )
    fetched = fetch({"/": raw})
    assert fetched.body == b"ab" or fetched.error == "protocol"


def test_a_refused_connection_and_an_unknown_name_are_named() -> None:
    async def work() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            async with GuardedHttpClient(allow_private=True, limits=LIMITS) as client:
                refused = await client.fetch(f"http://127.0.0.1:{port}/")
                assert (refused.error, refused.status) == ("connection_refused", None)
                unknown = await client.fetch("http://does-not-exist.invalid/")
                assert unknown.error == "dns"
                wrong = await client.fetch("mailto:x@y")
                assert wrong.error == "invalid_url"

    asyncio.run(asyncio.wait_for(work(), 30))


def test_plain_http_on_a_tls_url_is_a_named_error() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(HTML))
        await writer.drain()
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with GuardedHttpClient(allow_private=True, limits=LIMITS) as client:
            fetched = await client.fetch(f"https://127.0.0.1:{port}/")
            assert (fetched.error, fetched.retryable) == ("tls", False), fetched
        server.close()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_cancelling_a_fetch_is_raised_and_leaves_the_client_usable() -> None:
    async def silent(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)

    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        task = asyncio.create_task(client.fetch(server.origin + "/slow"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.fetch(server.origin + "/")).body == HTML

    with_server({"/": answer(HTML), "/slow": silent}, work)


def test_one_client_can_be_used_in_one_loop_after_another() -> None:
    client = GuardedHttpClient(allow_private=True, limits=LIMITS)

    async def work() -> None:
        async with serving({"/": answer(HTML)}) as server:
            assert (await client.fetch(server.origin + "/")).body == HTML
            await client.cleanup()
            assert (await client.fetch(server.origin + "/")).body == HTML
            await client.cleanup()

    asyncio.run(work())
    asyncio.run(work())


# ------------------------------------------------------------------------------------------ Crawlee


def test_crawlees_own_ways_go_through_the_same_client() -> None:
    async def work(client: GuardedHttpClient, server: RawServer) -> None:
        request = Request.from_url(server.origin + "/old")
        result = await client.crawl(request)
        assert result.http_response.status_code == 200
        assert await result.http_response.read() == HTML
        assert request.loaded_url == server.origin + "/"
        sent = await client.send_request(server.origin + "/", method="POST", payload=b"abc", headers={"X-A": "b"})
        assert await sent.read() == HTML
        assert sent.headers["content-type"].startswith("text/html")
        async with client.stream(server.origin + "/") as streamed:
            assert b"".join([piece async for piece in streamed.read_stream()]) == HTML
            with pytest.raises(RuntimeError):
                streamed.read_stream()
        with pytest.raises(FetchFailed, match=r"decompression|body_too_large"):
            await client.send_request(server.origin + "/bomb")
        with pytest.raises(FetchFailed, match="address_refused"):
            await client.send_request(server.origin + "/metadata")
        with pytest.raises(TimeoutError):
            await client.send_request(server.origin + "/silent", timeout=timedelta(seconds=0.2))
        proxy = ProxyInfo(url="http://p:1", scheme="http", hostname="p", port=1, username="", password="")
        with pytest.raises(ProxyError):
            await client.send_request(server.origin + "/", proxy_info=proxy)

    async def silent(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)

    with_server(
        {
            "/": answer(gzip.compress(HTML), Content_Encoding="gzip"),
            "/old": redirect("/"),
            "/bomb": answer(BOMB, Content_Encoding="gzip"),
            "/metadata": redirect("http://169.254.169.254/"),
            "/silent": silent,
        },
        work,
    )
