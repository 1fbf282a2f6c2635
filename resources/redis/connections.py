"""Connections to Redis that give up in time, whatever the other end does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from resources.services.errors import ServiceError

if TYPE_CHECKING:
    import socket

# Connections of one process: threads and tasks at work at once, not a number to run into.
_MAX_CONNECTIONS = 10_000
# A call may take so many times as long as one wait for the socket: it connects, sends, and reads a few pieces.
_WAITS_OF_A_CALL = 4


class InvalidRedisUrl(ServiceError):
    """An address that is none of Redis's."""


def call_seconds(socket_seconds: float) -> float:
    """How long a call may take in all, if one wait for the socket may take so long."""
    return _WAITS_OF_A_CALL * socket_seconds


def connect(url: str, socket_seconds: float) -> Redis:
    """A client of a server, without a fallback; it connects when it is used.

    Args:
        url: of the server.
        socket_seconds: how long it may take to connect, and each piece of an answer to come.

    Raises:
        InvalidRedisUrl: the url is none that Redis has.
    """
    try:
        redis = Redis.from_url(url, **_options(socket_seconds))
        pool = redis.connection_pool
        pool.connection_class = _BOUNDED[pool.connection_class]
    except (ValueError, TypeError, KeyError) as error:
        raise _invalid(url) from error
    _insist_on_bytes(pool.connection_kwargs)
    return redis


def connect_async(url: str, socket_seconds: float) -> AsyncRedis:
    """The same for event loops; the caller bounds the time of a whole call (`call_seconds`).

    Raises:
        InvalidRedisUrl: the url is none that Redis has.
    """
    try:
        redis = AsyncRedis.from_url(url, **_options(socket_seconds))
    except (ValueError, TypeError) as error:
        raise _invalid(url) from error
    _insist_on_bytes(redis.connection_pool.connection_kwargs)
    return redis


def _options(socket_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": socket_seconds,
        "socket_connect_timeout": socket_seconds,
        # The breaker is what decides about going on.
        "retry": Retry(NoBackoff(), 0),
        "max_connections": _MAX_CONNECTIONS,
        # Of a vendor's cloud alone; everywhere else one more round trip for each connection.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _insist_on_bytes(options: dict[str, Any]) -> None:
    """What the url says goes before other options; but what is compressed cannot be text."""
    options["decode_responses"] = False


def _invalid(url: str) -> InvalidRedisUrl:
    # Not the url itself, nor redis-py's words, in which it may stand: there is a password in it.
    return InvalidRedisUrl(
        f"the address of Redis cannot be read (it begins with {url.partition(':')[0][:20]!r}): OMNIOPS_REDIS_URL has "
        "the form redis://user:password@host:6379/0, rediss://… (with TLS) or unix:///path/to/socket?db=0"
    )


class _BoundedSocket:
    """A socket that bounds the time from sending to the last piece of the answer, and not only that of each piece."""

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket = connected
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def sendall(self, data: bytes) -> None:
        """A call begins."""
        self._until = time.monotonic() + self._seconds
        self._socket.sendall(data)

    def recv(self, size: int) -> bytes:
        """A piece of its answer; one that is looked for without waiting belongs to no call."""
        if time.monotonic() > self._until and self._socket.gettimeout() != 0:
            msg = f"the answer is not complete after {self._seconds:.1f} s"
            raise TimeoutError(msg)
        return self._socket.recv(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Bounded:
    socket_timeout: float

    def _connect(self) -> _BoundedSocket:
        connected: socket.socket = super()._connect()  # type: ignore[misc]  # of redis-py's class beside this one
        return _BoundedSocket(connected, call_seconds(self.socket_timeout))


class _BoundedTcp(_Bounded, Connection):  # type: ignore[misc]  # `_connect` gives what stands in for a socket
    pass


class _BoundedTls(_Bounded, SSLConnection):  # type: ignore[misc]
    pass


class _BoundedUnix(_Bounded, UnixDomainSocketConnection):  # type: ignore[misc]
    pass


_BOUNDED: dict[Any, Any] = {
    Connection: _BoundedTcp,
    SSLConnection: _BoundedTls,
    UnixDomainSocketConnection: _BoundedUnix,
}
