"""Through a customer's proxy, and still guarded.

A proxy that is asked for a name looks it up itself, and nobody knows what it connects to. So the name is resolved
here, its addresses are checked like any others, and the proxy is asked (CONNECT, for http too) for the address
that was checked. Host header and TLS name stay the site's. The proxy's own address is checked as well.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import aiohappyeyeballs
import aiohttp

from resources.crawler.guard import (
    AddressRefused,
    GuardedResolver,
    GuardedSockets,
    address_of,
    guarded_connector,
    is_allowed_address,
)

if TYPE_CHECKING:
    import socket
    import ssl

    from aiohappyeyeballs import AddrInfoType

    from resources.crawler.site_access import Proxy

__all__ = ["ProxyTrouble", "ProxyUnusable", "tunnel_connector"]

_MAX_ANSWER: Final = 8_192
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r\n)").match
# Addresses of one name that the proxy is asked for, if it cannot reach the first.
_MAX_ADDRESSES: Final = 3


class ProxyTrouble(aiohttp.ClientError):
    """The proxy, and not the site, is why there is no connection.

    Attributes:
        code: `proxy_unreachable` (no connection to it), `proxy_refused` (it says no), `unreachable` (it cannot
            reach the site).
        retryable: whether another try can end otherwise.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.retryable = retryable


class ProxyUnusable(RuntimeError):
    """The site's proxy lets nothing through, so nothing can be said of the site. The message names the proxy."""


class _TunnelConnector(aiohttp.TCPConnector):
    """Makes each connection through the proxy; pooling, TLS and time limits are aiohttp's own."""

    proxy: Proxy
    allow_private: bool
    private_proxy: bool

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: list[AddrInfoType],
        req: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
        client_error: type[Exception] = aiohttp.ClientConnectorError,
        **kwargs: Any,
    ) -> Any:
        async with asyncio.timeout(timeout.sock_connect):
            sock = await self._tunnel(addr_infos)
        try:
            return await self._wrap_existing_connection(
                *args, req=req, timeout=timeout, client_error=client_error, sock=sock, **kwargs
            )
        except BaseException:
            sock.close()
            raise

    async def _tunnel(self, addr_infos: list[AddrInfoType]) -> socket.socket:
        """A socket that is connected to one of the addresses, through the proxy."""
        targets = []
        for info in addr_infos:
            address = address_of(info[4])
            if not is_allowed_address(address, allow_private=self.allow_private):
                raise AddressRefused(address, address)
            targets.append((address, int(info[4][1])))
        problem: ProxyTrouble | None = None
        for address, port in targets[:_MAX_ADDRESSES]:
            sock = await self._reach_proxy()
            try:
                await self._ask_for(sock, address, port)
            except ProxyTrouble as error:
                sock.close()
                problem = error
                if error.code != "unreachable":
                    raise
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise problem or ProxyTrouble("unreachable", "the site has no address", retryable=True)

    @property
    def _named(self) -> str:
        return f"the site's proxy {self.proxy.name}"

    async def _reach_proxy(self) -> socket.socket:
        resolver = GuardedResolver(allow_private=self.private_proxy)
        try:
            found = await resolver.resolve(self.proxy.host, self.proxy.port)
            infos = self._convert_hosts_to_addr_infos(found)
            return await aiohappyeyeballs.start_connection(
                addr_infos=infos,
                loop=self._loop,
                happy_eyeballs_delay=0.25,
                socket_factory=GuardedSockets(allow_private=self.private_proxy),
            )
        except AddressRefused as error:
            msg = f"{self._named} is at an address that is not public, and OMNIOPS_PRIVATE_PROXIES is off"
            raise ProxyTrouble("proxy_refused", msg) from error
        except OSError as error:
            msg = f"{self._named} cannot be reached ({error.strerror or type(error).__name__})"
            raise ProxyTrouble("proxy_unreachable", msg, retryable=True) from error

    async def _ask_for(self, sock: socket.socket, address: str, port: int) -> None:
        """CONNECT. The answer is read to its empty line; a server that speaks unasked is none of ours."""
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self.proxy.authorization.reveal()}")
        loop = self._loop
        answer = b""
        try:
            await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            while b"\r\n\r\n" not in answer:
                piece = await loop.sock_recv(sock, 4_096)
                answer += piece
                if not piece or len(answer) > _MAX_ANSWER:
                    break
        except OSError as error:
            raise ProxyTrouble("proxy_unreachable", f"{self._named} broke off", retryable=True) from error
        head, end, rest = answer.partition(b"\r\n\r\n")
        match = _STATUS(head + b"\r\n")
        if match is None or not end:
            raise ProxyTrouble("proxy_unreachable", f"{self._named} gave no proper answer", retryable=True)
        status = int(match[1])
        if 200 <= status < 300:
            if rest:
                raise ProxyTrouble("proxy_refused", f"{self._named} sent more than its answer")
            return
        if status == 407:
            raise ProxyTrouble("proxy_refused", f"{self._named} wants another user name or password (407)")
        if status in (502, 503, 504):
            raise ProxyTrouble("unreachable", f"{self._named} cannot reach it ({status})", retryable=True)
        raise ProxyTrouble("proxy_refused", f"{self._named} refuses to connect ({status})")


def tunnel_connector(
    proxy: Proxy,
    *,
    allow_private: bool,
    private_proxy: bool,
    limit: int = 100,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.TCPConnector:
    """Make a connector that goes through a proxy and cannot reach a refused address.

    Args:
        proxy: whose own address is checked too.
        allow_private: for the site, as for `guarded_connector`.
        private_proxy: the same for the proxy.
        limit: open connections in all.
        tls: as for `guarded_connector`.
    """
    made = guarded_connector(allow_private=allow_private, limit=limit, kind=_TunnelConnector, tls=tls)
    made.proxy, made.allow_private, made.private_proxy = proxy, allow_private, private_proxy
    return made
