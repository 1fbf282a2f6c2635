"""Keys and proxies on the wire: who gets them, who does not, and that a proxy gets around no guard."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from resources.crawler import guard
from resources.crawler.client import Fetched, FetchLimits, GuardedHttpClient
from resources.crawler.robots import fetch_policy
from resources.crawler.site_access import check_access
from resources.crawler.urls import site_of
from tests.integration.crawler.servers import RawServer, answer, serving
from tests.support.proxy import TunnelProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from resources.crawler.site_access import SiteAccess

LIMITS = FetchLimits(page_seconds=5, connect_seconds=2, first_byte_seconds=2)
KEYS: dict[str, Any] = {
    "headers": {"X-Api-Key": "sesame-open-1"},
    "basic": {"username": "reader", "password": "swordfish"},
    "cookies": {"session": "c0ffee-c0ffee"},
}
SECRETS = ("sesame-open-1", "swordfish", "c0ffee-c0ffee", base64.b64encode(b"reader:swordfish").decode())


def keys_for(server: RawServer, **changed: Any) -> SiteAccess:
    return check_access(
        site_of(server.origin + "/"), {"origin": server.origin, **KEYS, **changed}, private_proxy=True
    )


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, Location=to)


def has_keys(headers: dict[str, str]) -> bool:
    return any(secret in value for secret in SECRETS for value in headers.values())


def test_each_request_to_the_site_carries_its_keys_robots_too() -> None:
    async def work() -> None:
        answers: dict[str, Any] = {"/robots.txt": answer(b""), "/": redirect("/b"), "/b": answer(b"<p>b")}
        async with serving(answers) as server:
            async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=keys_for(server)) as client:
                await fetch_policy(client, server.origin)
                assert (await client.fetch(server.origin + "/")).body == b"<p>b"
            assert [path for path, _ in server.requests] == ["/robots.txt", "/", "/b"]
            for _, headers in server.requests:
                assert headers["x-api-key"] == "sesame-open-1"
                assert base64.b64decode(headers["authorization"].split()[1]) == b"reader:swordfish"
                assert headers["cookie"] == "session=c0ffee-c0ffee"

    run(work)


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize("asked_for", ["/", "/robots.txt"])
def test_no_other_origin_gets_a_key_by_a_redirect(status: str, asked_for: str) -> None:
    async def work() -> None:
        async with serving({"/x": answer(b"<p>x")}) as other:
            # The same host on another port, another name of the same address, and back again.
            port = other.origin.rpartition(":")[2]
            answers: dict[str, Any] = {asked_for: redirect(f"http://localhost:{port}/x", status)}
            async with serving(answers) as server:
                async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=keys_for(server)) as client:
                    if asked_for == "/robots.txt":
                        await fetch_policy(client, server.origin)
                    else:
                        assert (await client.fetch(server.origin + "/")).body == b"<p>x"
                assert has_keys(server.requests[0][1])
                assert [path for path, _ in other.requests] == ["/x"]
                assert not has_keys(other.requests[0][1])

    run(work)


def test_a_key_comes_back_only_with_the_site_itself() -> None:
    async def work() -> None:
        answers: dict[str, Any] = {"/end": answer(b"<p>end")}
        async with serving(answers) as server, serving({"/": redirect(server.origin + "/end")}) as other:
            answers["/"] = redirect(other.origin + "/")
            async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=keys_for(server)) as client:
                assert (await client.fetch(server.origin + "/")).body == b"<p>end"
            assert [has_keys(headers) for _, headers in server.requests] == [True, True]
            assert [has_keys(headers) for _, headers in other.requests] == [False]

    run(work)


def test_keys_for_https_are_not_sent_over_http() -> None:
    async def work() -> None:
        async with serving({"/": answer(b"<p>a")}) as server:
            access = check_access(site_of(server.origin + "/"), KEYS)
            async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=access) as client:
                assert (await client.fetch(server.origin + "/")).body == b"<p>a"
            assert not has_keys(server.requests[0][1])

    run(work)


def test_a_session_is_kept_for_the_site_with_keys_and_for_no_other() -> None:
    async def work() -> None:
        async with serving({"/": answer(b"", Set_Cookie="id=5; Domain=localhost"), "/x": answer(b"")}) as server:
            async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=keys_for(server)) as client:
                await client.fetch(server.origin + "/")
                await client.fetch(server.origin + "/x")
                await client.fetch(server.origin.replace("127.0.0.1", "localhost") + "/")
                await client.fetch(server.origin.replace("127.0.0.1", "localhost") + "/x")
            cookies = [headers.get("cookie") for _, headers in server.requests]
            assert cookies == ["session=c0ffee-c0ffee", "session=c0ffee-c0ffee; id=5", None, None]

    run(work)


def test_what_the_site_repeats_of_its_keys_is_kept_nowhere() -> None:
    encoded = SECRETS[3]
    page = f"<title>{SECRETS[0]}</title><p>{SECRETS[1]} {encoded} {SECRETS[2]}".encode()
    answers: dict[str, Any] = {
        "/echo": answer(page, ETag=f'"{SECRETS[2]}"', X_You=f"Basic {encoded}"),
        "/away": redirect(f"/?key={SECRETS[0]}"),
        "/late": redirect("/away"),
        "/broken": f"HTTP/1.1 200 {SECRETS[1]}\r\nContent-Length: {SECRETS[0]}\r\n\r\n".encode(),
        "/coding": answer(b"x", Content_Encoding=SECRETS[0]),
    }

    async def work() -> None:
        async with (
            serving(answers) as server,
            GuardedHttpClient(allow_private=True, limits=LIMITS, access=keys_for(server)) as client,
        ):
            found = {path: await client.fetch(server.origin + path) for path in answers}
        assert found["/echo"].body.startswith(b"<title>********</title><p>******** ******** ********")
        assert {path: fetched.error for path, fetched in found.items()} == {
            "/echo": None,
            "/away": "redirect_invalid",
            "/late": "redirect_invalid",
            "/broken": "protocol",
            "/coding": "bad_encoding",
        }
        for fetched in found.values():
            for secret in SECRETS:
                assert secret not in repr(fetched), fetched

    run(work)


# ------------------------------------------------------------------------------------------ proxies


def through(
    path: str = "/",
    *,
    proxy: TunnelProxy | None = None,
    allow_private: bool = True,
    private_proxy: bool = True,
    url: str = "",
    **keys: Any,
) -> tuple[Fetched, TunnelProxy, RawServer]:
    """Fetch a path of a server through a proxy."""
    answers: dict[str, Any] = {"/": answer(b"<p>a"), "/b": redirect("http://169.254.169.254/")}

    async def main() -> tuple[Fetched, TunnelProxy, RawServer]:
        async with (proxy or TunnelProxy()).running() as running, serving(answers) as server:
            port = server.origin.rpartition(":")[2]
            access = check_access(
                site_of(server.origin + "/"),
                {"origin": server.origin, **KEYS, "proxy": {"url": running.url, **keys}},
                private_proxy=private_proxy,
            )
            async with GuardedHttpClient(allow_private=allow_private, limits=LIMITS, access=access) as client:
                fetched = await client.fetch(url.replace("PORT", port) if url else server.origin + path)
            return fetched, running, server

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_through_a_proxy_the_checked_address_is_asked_for_and_the_site_gets_its_keys() -> None:
    fetched, proxy, server = through(proxy=TunnelProxy(("p", "proxy-pass")), username="p", password="proxy-pass")
    assert (fetched.error, fetched.body) == (None, b"<p>a")
    assert proxy.asked == [server.origin.removeprefix("http://")]
    assert not has_keys(proxy.headers[0])
    path, headers = server.requests[0]
    assert (path, headers["host"]) == ("/", proxy.asked[0])
    assert has_keys(headers)
    assert "proxy-authorization" not in headers


def test_a_name_is_resolved_here_and_not_by_the_proxy() -> None:
    fetched, proxy, server = through(url="http://localhost:PORT/")
    assert fetched.body == b"<p>a"
    assert proxy.asked[0].rpartition(":")[0] in ("127.0.0.1", "[::1]")
    assert server.requests[0][1]["host"].startswith("localhost:")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:PORT/",
        "http://127.0.0.1:PORT/",
        "http://2130706433:PORT/",
        "http://[::ffff:127.0.0.1]:PORT/",
    ],
)
def test_no_private_address_is_reached_through_a_proxy(url: str) -> None:
    fetched, proxy, server = through(url=url, allow_private=False)
    assert fetched.error == "address_refused", fetched
    assert proxy.asked == []
    assert server.connections == 0


def test_a_redirect_to_metadata_is_refused_through_a_proxy_too() -> None:
    fetched, proxy, _ = through("/b")
    assert fetched.error == "address_refused"
    assert len(proxy.asked) == 1


def test_a_rebound_name_is_refused_through_a_proxy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Lying(guard.GuardedResolver):
        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> Any:
            if host == "rebound.example":
                return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]
            return await super().resolve(host, port, family)

    monkeypatch.setattr(guard, "GuardedResolver", _Lying)
    fetched, proxy, _ = through(url="http://rebound.example:PORT/", allow_private=False)
    assert (fetched.error, proxy.asked) == ("address_refused", [])


def test_a_proxy_on_a_private_address_needs_the_platforms_word() -> None:
    fetched, proxy, _ = through(private_proxy=False)
    assert fetched.error == "proxy_refused"
    assert "OMNIOPS_PRIVATE_PROXIES" in (fetched.error_detail or "")
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("says", "error", "retryable"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "proxy_refused", False),
        (b"HTTP/1.1 403 No\r\n\r\n", "proxy_refused", False),
        (b"HTTP/1.1 502 No\r\n\r\n", "unreachable", True),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "proxy_refused", False),
        (b"SSH-2.0\r\n\r\n", "proxy_unreachable", True),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000, "proxy_unreachable", True),
        (b"x" * 100_000, "proxy_unreachable", True),
    ],
)
def test_a_proxys_refusal_is_named(says: bytes, error: str, retryable: bool) -> None:
    fetched, _, server = through(proxy=TunnelProxy(answer=says), username="p", password="proxy-pass")
    assert (fetched.error, fetched.retryable) == (error, retryable)
    assert "proxy" in (fetched.error_detail or "")
    assert server.connections == 0
    assert "proxy-pass" not in repr(fetched)


def test_a_dead_proxy_is_not_gone_around() -> None:
    async def work() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            async with serving({"/": answer(b"<p>a")}) as server:
                access = keys_for(server, proxy={"url": f"http://127.0.0.1:{port}"})
                async with GuardedHttpClient(allow_private=True, limits=LIMITS, access=access) as client:
                    fetched = await client.fetch(server.origin + "/")
                assert (fetched.error, fetched.retryable) == ("proxy_unreachable", True)
                assert server.connections == 0

    run(work)


# ------------------------------------------------------------------------------------------ https through a proxy


def make_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority of this test's own: its PEM file, and what a server on loopback that it vouches for shows."""
    now = datetime.now(UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])

    def certificate(name: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    root = certificate("Test authority", authority_key.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    leaf = certificate("localhost", key.public_key()).add_extension(names, critical=False)
    bundle, chain = folder / "authority.pem", folder / "server.pem"
    bundle.write_bytes(root.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    chain.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + leaf.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(chain)
    return bundle, shown


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("allow_private", [True, False])
def test_https_through_a_proxy(tmp_path: Path, trusted: bool, allow_private: bool) -> None:
    bundle, shown = make_authority(tmp_path)
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(b"<p>a"))
        await writer.drain()
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=shown)
        origin = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with server, TunnelProxy().running() as proxy:
            access = check_access(
                site_of(origin + "/"), {"origin": origin, **KEYS, "proxy": {"url": proxy.url}}, private_proxy=True
            )
            async with GuardedHttpClient(
                allow_private=allow_private, limits=LIMITS, access=access, ca_bundle=bundle if trusted else None
            ) as client:
                fetched = await client.fetch(origin + "/")
        if not allow_private:
            assert (fetched.error, proxy.asked, seen) == ("address_refused", [], [])
        elif not trusted:
            assert (fetched.error, seen) == ("tls", [])
        else:
            assert (fetched.error, fetched.body) == (None, b"<p>a")
            assert b"sesame-open-1" in seen[0]
            assert {target.rpartition(":")[0] for target in proxy.asked} <= {"127.0.0.1", "[::1]"}
            assert not any(has_keys(headers) for headers in proxy.headers)

    run(work)
