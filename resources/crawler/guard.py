"""The guard on every way out: which addresses may be connected to.

What belongs here: the table of addresses, the resolver and the connector that enforce it, and the check that
a command runs before it starts. What does not: which *urls* belong to a crawl (`urls`), and how an answer is
read (`client`).

A name proves nothing (it can resolve to another address a second later), and neither does the spelling of an
address (``getaddrinfo`` reads ``2130706433``, ``0x7f.1``, ``0177.0.0.1`` and fullwidth digits as 127.0.0.1).
So the check that counts stands where the socket is made, on the very address that is about to be connected.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    import ssl

    from aiohappyeyeballs import AddrInfoType

__all__ = [
    "AddressRefused",
    "GuardedResolver",
    "GuardedSockets",
    "HostCheckError",
    "HostRefused",
    "HostUnreachable",
    "HostUnresolvable",
    "address_of",
    "check_host",
    "guarded_connector",
    "is_allowed_address",
    "is_public_address",
]

# The own table, because `ipaddress.is_global` answers True for NAT64, 6to4 and v4-compatible spellings of
# private addresses, for fec0::/10, for multicast and for Azure's 168.63.129.16. Sources: IANA's registries of
# special-purpose IPv4 and IPv6 addresses, and the providers' documentation for the metadata services.
_V4_REFUSED: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches the own machine on Linux
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598; Alibaba's metadata at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local; metadata of AWS, GCP, Azure, DigitalOcean, Oracle
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata at 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112, RFC 7535
        "192.52.193.0/24",  # AMT, RFC 7450
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "192.175.48.0/24",  # AS112, RFC 7534
        "198.18.0.0/15",  # benchmarking, RFC 2544
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and limited broadcast
    )
)

# IPv6 is the other way round: only global unicast is assigned (RFC 4291, IANA), so everything outside of
# 2000::/3 is refused, and with it ::, ::1, ::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48, 100::/64, 5f00::/16,
# fc00::/7, fe80::/10, fec0::/10 and ff00::/8. Inside it, these are not websites:
_V6_GLOBAL: Final = IPv6Network("2000::/3")
_V6_REFUSED: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo (embeds IPv4), benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: embeds IPv4, and deprecated by RFC 7526
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the 6bone, given back in 2006
        "3fff::/20",  # documentation, RFC 9637
    )
)
# DNS64 gives these for every site that has IPv4 only, so they are judged by the address that they embed.
_NAT64: Final = IPv6Network("64:ff9b::/96")
_V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")
# ISATAP (RFC 5214) embeds an IPv4 address behind these in the lower half of an address of any network.
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})

# What `allow_private` adds: a person's own machine and network. Link-local, metadata and multicast stay
# refused, because nobody develops a website there and a cloud machine keeps its credentials there.
_V4_PRIVATE: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/32",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
    )
)
_V6_PRIVATE: Final = tuple(IPv6Network(network) for network in ("::/128", "::1/128", "fc00::/7"))
_V4_METADATA: Final = (IPv4Network("100.100.100.200/32"),)  # Alibaba
_V6_METADATA: Final = tuple(
    IPv6Network(network)
    for network in (
        "fd00:ec2::/32",  # AWS: metadata, time, names, pod identity
        "fd20:ce::/64",  # GCP
        "fd00:42::42/128",  # Scaleway
    )
)

_C = TypeVar("_C", bound=aiohttp.TCPConnector)

_DNS_CACHE_SECONDS: Final = 60
"""How long aiohttp keeps an answer. A crawl asks for one name thousands of times."""


def _parse(address: str | IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
    """Read an address; None where it is not one, in its canonical spelling."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        parsed: IPv4Address | IPv6Address = address
    elif isinstance(address, str):
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None
    else:
        return None
    if isinstance(parsed, IPv6Address) and parsed.scope_id is None and (parsed in _V4_MAPPED or parsed in _NAT64):
        return IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed


def is_public_address(address: str | IPv4Address | IPv6Address) -> bool:
    """Say whether an address is one of the public internet.

    Args:
        address: An address in its canonical spelling. A host name, a short or octal spelling, and anything
            else that is not an address is not public.

    Returns:
        True only for addresses on which a public website can be. An IPv4 address that is embedded in an IPv6
        one is judged by itself where networks really use that (v4-mapped, NAT64), and refused elsewhere
        (6to4, Teredo, v4-compatible).
    """
    parsed = _parse(address)
    if parsed is None:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _V4_REFUSED)
    # A scope id means link-local; on any other address it is an attempt to look like something else.
    if parsed.scope_id is not None or int(parsed) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return parsed in _V6_GLOBAL and not any(parsed in network for network in _V6_REFUSED)


def is_allowed_address(address: str | IPv4Address | IPv6Address, *, allow_private: bool) -> bool:
    """Say whether a crawl may connect to an address.

    Args:
        address: As for `is_public_address`.
        allow_private: Allow loopback, RFC 1918, shared (100.64/10), benchmarking and unique local addresses
            too. Link-local, metadata, multicast and reserved addresses stay refused.
    """
    if is_public_address(address):
        return True
    if not allow_private:
        return False
    parsed = _parse(address)
    if parsed is None:
        return False
    if isinstance(parsed, IPv4Address):
        return any(parsed in network for network in _V4_PRIVATE) and not any(parsed in n for n in _V4_METADATA)
    if parsed.scope_id is not None or any(parsed in network for network in _V6_METADATA):
        return False
    return any(parsed in network for network in _V6_PRIVATE)


class AddressRefused(OSError):
    """A connection was not made, because its address is not allowed.

    It is an OSError so that aiohttp and the happy-eyeballs race carry it like any failed connection.

    Attributes:
        host: What was asked for: a name, or the address itself.
        address: The address that is refused.
    """

    def __init__(self, host: str, address: str) -> None:
        # One errno and one text for each host: aiohappyeyeballs keeps the type of an exception only where
        # all the addresses of a host failed with the same text.
        super().__init__(errno.EACCES, f"{host} is at {address}, which is not a public address")
        self.host = host
        self.address = address


class GuardedResolver(AbstractResolver):
    """Resolves names with the system's resolver and drops the addresses that are not allowed.

    This is for a clear message and for names that have a public and a private address; the check that
    nothing gets around is the one in `guarded_connector`. aiohttp caches what is returned here.
    """

    def __init__(self, *, allow_private: bool = False) -> None:
        """Make a resolver.

        Args:
            allow_private: As for `is_allowed_address`.
        """
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a name.

        Raises:
            AddressRefused: The name has addresses, and none of them is allowed.
            OSError: The name does not resolve.
        """
        # Encoded here, since the "idna" codec behind getaddrinfo raises UnicodeError, which is no OSError.
        try:
            name = host.encode("ascii") if host.isascii() else host.encode("idna")
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not a host name") from error
        infos = await asyncio.get_running_loop().getaddrinfo(
            name.decode("ascii"), port, type=socket.SOCK_STREAM, family=family
        )
        results: list[ResolveResult] = []
        refused = ""
        for found_family, _, proto, _, sockaddr in infos:
            address = address_of(sockaddr)
            if not is_allowed_address(address, allow_private=self._allow_private):
                refused = refused or address
                continue
            results.append(
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=found_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if not results:
            if refused:
                raise AddressRefused(host, refused)
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        return results

    async def close(self) -> None:
        """Nothing is held."""


def address_of(sockaddr: tuple[object, ...]) -> str:
    """Give the address of a socket address, with the scope of a link-local one."""
    address = str(sockaddr[0])
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in address:
        address = f"{address}%{sockaddr[3]}"
    return address


class GuardedSockets:
    """Makes sockets, but none for an address that is not allowed; a `socket_factory` of aiohttp."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    def __call__(self, addr_info: AddrInfoType) -> socket.socket:
        family, kind, proto, _, sockaddr = addr_info
        address = address_of(sockaddr) if family in (socket.AF_INET, socket.AF_INET6) else str(sockaddr)
        if not is_allowed_address(address, allow_private=self._allow_private):
            raise AddressRefused(address, address)
        return socket.socket(family=family, type=kind, proto=proto)


def guarded_connector(
    *,
    allow_private: bool = False,
    limit: int = 100,
    limit_per_host: int = 0,
    keepalive_seconds: float = 15.0,
    tls: ssl.SSLContext | None = None,
    kind: type[_C] = aiohttp.TCPConnector,  # type: ignore[assignment]
) -> _C:
    """Make a connector that cannot connect to a refused address.

    Its `socket_factory` gets the very address that is to be connected (aiohappyeyeballs calls it just before
    `connect`), after names, caches and every spelling have been resolved, so nothing is left to the name.

    Args:
        allow_private: As for `is_allowed_address`.
        limit: Open connections in all; 0 is no limit.
        limit_per_host: Open connections to one host and port; 0 is no limit.
        keepalive_seconds: How long an idle connection is kept.
        tls: Whom to trust; None: the system's authorities.
        kind: The connector's class.

    Returns:
        A connector for `aiohttp.ClientSession`; give the session `trust_env=False`, because through a proxy
        the connected address is the proxy's. Must be called in a running loop.
    """
    return kind(
        resolver=GuardedResolver(allow_private=allow_private),
        socket_factory=GuardedSockets(allow_private=allow_private),
        limit=limit,
        limit_per_host=limit_per_host,
        ttl_dns_cache=_DNS_CACHE_SECONDS,
        keepalive_timeout=keepalive_seconds,
        ssl=tls if tls is not None else True,
    )


class HostCheckError(OSError):
    """A host cannot be crawled; the text is one sentence for the person who asked."""


class HostUnresolvable(HostCheckError):
    """The name has no address."""


class HostRefused(HostCheckError):
    """The host is at an address that the guard refuses."""


class HostUnreachable(HostCheckError):
    """Nothing accepts a connection there."""


def check_host(
    host: str, port: int, allow_private: bool = False, *, timeout_seconds: float = 5.0, connect: bool = True
) -> str:
    """Check before a crawl that a host resolves, may be connected to, and accepts a connection.

    For the command line and for `plan_crawl`: blocking, and nothing is sent.

    Args:
        host: A name or an address, without brackets.
        port: TCP port.
        allow_private: As for `is_allowed_address`.
        timeout_seconds: For connecting, over all the addresses of the host. Resolving takes as long as the
            system's resolver does.
        connect: False for a host that is reached through a proxy: its addresses are checked and nothing more.

    Returns:
        The address that accepted the connection, or the first allowed one.

    Raises:
        HostUnresolvable: The name has no address.
        HostRefused: Every address is refused by the guard.
        HostUnreachable: No allowed address accepted a connection in time.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise HostUnresolvable(f"The host {host!r} has no address: check its spelling and your network.") from error
    allowed = [info for info in infos if is_allowed_address(address_of(info[4]), allow_private=allow_private)]
    if not allowed:
        address = address_of(infos[0][4])
        at = f"{host!r} is" if address == host else f"{host!r} is at {address}, which is"
        if not allow_private and is_allowed_address(address, allow_private=True):
            raise HostRefused(f"{at} a private address, and those are never crawled unless you say --allow-private.")
        raise HostRefused(f"{at} an address that is never crawled.")
    if not connect:
        return address_of(allowed[0][4])
    deadline = time.monotonic() + timeout_seconds
    problem: OSError = TimeoutError()
    for family, kind, proto, _, sockaddr in allowed:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            with socket.socket(family, kind, proto) as connection:
                connection.settimeout(left)
                connection.connect(sockaddr)
                return address_of(sockaddr)
        except OSError as error:
            problem = error
    if isinstance(problem, ConnectionRefusedError):
        raise HostUnreachable(
            f"{host} refused the connection on port {port}: is a web server running there?"
        ) from problem
    if isinstance(problem, TimeoutError):
        raise HostUnreachable(
            f"{host} did not accept a connection on port {port} within {timeout_seconds:g} s."
        ) from problem
    reason = (problem.strerror or str(problem)).lower()
    raise HostUnreachable(f"{host} cannot be reached on port {port}: {reason}.") from problem
