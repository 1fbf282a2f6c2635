"""A site's keys: what a customer gave us so that we may read a site that not everybody may read.

What belongs here: the keys as a value that never shows itself, to whom they are sent, and what a site's cookies
may do. What does not: how they are kept (`resources.postgres.credentials`) and the proxy's protocol (`tunnel`).

Keys go to one origin (scheme, host and port) and nowhere else. They are never part of a job, of a run's
configuration or of what an op returns: whoever needs them reads them from the sealed column again.
"""

from __future__ import annotations

import base64
import html
import json
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import text

from resources.crawler.urls import InvalidUrl, normalise, origin_of, site_of
from resources.postgres.credentials import read_credentials
from resources.postgres.customers import find_customer
from resources.postgres.tenancy import service_connection
from resources.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.settings import Settings

__all__ = [
    "NAMES",
    "Proxy",
    "SessionCookies",
    "SiteAccess",
    "UnusableAccess",
    "access_for_crawl",
    "check_access",
    "find_site",
    "load_site_access",
]

NAMES: Final = ("origin", "headers", "basic", "cookies", "proxy")
"""Names in a configuration's credentials that are a site's keys; others are somebody else's and stay as they are."""

MAX_VALUE: Final = 4_096
MAX_ENTRIES: Final = 20
MAX_SENT_BYTES: Final = 8_192
"""Of all keys together; servers refuse requests with more than that in their headers."""
_MAX_SESSION_COOKIES: Final = 50
_MAX_SESSION_BYTES: Final = 8_192
# A shorter value is a word that pages have anyway, and masking it would spoil their text.
_LEAST_MASKED: Final = 6
_MASK: Final = "********"

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}").fullmatch
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?").fullmatch
_COOKIE_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*").fullmatch
# What says where a request goes, how long it is and in which form; a key has no business there.
_NOT_KEYS: Final = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "cookie",
        "expect", "host", "if-modified-since", "if-none-match", "keep-alive", "proxy-authorization",
        "proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
    }
)  # fmt: skip


class UnusableAccess(ValueError):
    """A site's keys cannot be used as they stand. The message says why, and nothing of what they are."""


@dataclass(frozen=True, slots=True, repr=False)
class Proxy:
    """An HTTP proxy that a site is reached through.

    Attributes:
        host: name or address, without brackets.
        port: TCP port.
        authorization: value of Proxy-Authorization, if it wants one.
    """

    host: str
    port: int
    authorization: Secret | None = None

    def __repr__(self) -> str:
        return "Proxy(…)"

    @property
    def name(self) -> str:
        """Its url, in which no user name or password ever stands."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class SiteAccess:
    """The keys of one site.

    Attributes:
        origin: the only one that they are sent to: ``https://shop.example``.
        headers: by name.
        basic: value of Authorization, made of user name and password.
        cookies: by name.
        proxy: that all requests of the crawl go through; it gets no key but its own.
        private_proxy: the proxy may be at a private address; the platform's decision, not the customer's.
    """

    origin: str
    headers: Mapping[str, Secret] = field(default_factory=dict)
    basic: Secret | None = None
    cookies: Mapping[str, Secret] = field(default_factory=dict)
    proxy: Proxy | None = None
    private_proxy: bool = False
    _masked: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SiteAccess({self.origin}: {', '.join(self.described()) or 'nothing'})"

    def described(self) -> list[str]:
        """What there is, by name and without any value."""
        return [
            *(f"header {name}" for name in self.headers),
            *(["basic authentication"] if self.basic else []),
            *(f"cookie {name}" for name in self.cookies),
            *([f"proxy{' with credentials' if self.proxy.authorization else ''}"] if self.proxy else []),
        ]

    @property
    def has_keys(self) -> bool:
        """Whether anything is sent to the site itself."""
        return bool(self.headers or self.basic or self.cookies)

    def is_for(self, url: str) -> bool:
        """Say whether the keys go to a normal url: same scheme, host and port, and nothing less."""
        return self.has_keys and origin_of(url) == self.origin

    def headers_for(self, url: str, session: SessionCookies | None = None) -> dict[str, str]:
        """The headers that a request to a normal url carries; none for any other origin.

        Args:
            url: of this very request, which may be a redirect's target.
            session: what the site has set since.
        """
        if not self.is_for(url):
            return {}
        sent = {name: str(value.reveal()) for name, value in self.headers.items()}
        if self.basic is not None:
            sent["Authorization"] = str(self.basic.reveal())
        cookies = {name: str(value.reveal()) for name, value in self.cookies.items()}
        if session is not None:
            cookies.update(session.for_path(urlsplit(url).path))
        if cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        return sent

    # -- a server that repeats a key

    def repeated_in(self, url: str) -> bool:
        """Say whether a url repeats a key: it would stand in results and in other servers' logs."""
        plain = unquote(url)
        return any(value in url or value in plain for value in self._masked)

    def mask(self, words: str) -> str:
        """Replace what a server repeats of the keys."""
        for value in self._masked:
            if value in words:
                words = words.replace(value, _MASK)
        return words

    def mask_bytes(self, body: bytes) -> bytes:
        """As `mask`, for a body in any charset that has ASCII in it."""
        for value in self._masked:
            raw = value.encode("ascii")
            if raw in body:
                body = body.replace(raw, _MASK.encode("ascii"))
        return body


def _spellings(values: Iterable[str]) -> tuple[str, ...]:
    """Values as pages repeat them, longest first, so that no rest of one stays behind another."""
    found = set()
    for value in values:
        for spelling in (value, quote(value, safe=""), quote(value), html.escape(value), json.dumps(value)[1:-1]):
            if len(spelling) >= _LEAST_MASKED:
                found.add(spelling)
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


# ------------------------------------------------------------------------------------------ the site's cookies


class SessionCookies:
    """Cookies that the site sets while it is crawled with keys: a login's session, in memory, for this run.

    Only the keys' own origin reads and sets them, so their Domain says nothing. What the site removes falls back
    to what was configured: a page that logs out ends no session that the customer gave us.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, str]] = {}

    def take(self, set_cookies: Iterable[str]) -> None:
        """Read the Set-Cookie headers of an answer; what is malformed or too much is left out."""
        for header in set_cookies:
            pair, *attributes = header[:MAX_VALUE].split(";")
            name, equals, value = (part.strip() for part in pair.partition("="))
            value = value.removeprefix('"').removesuffix('"')
            if not equals or not _TOKEN(name) or not _COOKIE_VALUE(value):
                continue
            path, gone = "/", not value
            for attribute in attributes:
                key, _, said = (part.strip() for part in attribute.partition("="))
                if key.lower() == "path" and said.startswith("/"):
                    path = said
                elif key.lower() == "max-age":
                    gone = gone or said.startswith(("-", "0"))
                elif key.lower() == "expires":
                    gone = gone or _is_past(said)
            self._kept.pop(name, None)
            if not gone:
                self._kept[name] = (value, path)
        while len(self._kept) > _MAX_SESSION_COOKIES or self._size() > _MAX_SESSION_BYTES:
            del self._kept[next(iter(self._kept))]

    def _size(self) -> int:
        return sum(len(name) + len(value) + 3 for name, (value, _) in self._kept.items())

    def for_path(self, path: str) -> dict[str, str]:
        """The cookies for a path (RFC 6265, 5.1.4)."""
        return {
            name: value
            for name, (value, scope) in self._kept.items()
            if path == scope or path.startswith(scope if scope.endswith("/") else scope + "/")
        }


def _is_past(date: str) -> bool:
    try:
        return parsedate_to_datetime(date.replace("-", " ")).timestamp() < time.time()
    except (ValueError, TypeError, OverflowError):
        return False


# ------------------------------------------------------------------------------------------ checks


def check_access(domain: str, credentials: Mapping[str, Any], *, private_proxy: bool = False) -> SiteAccess:
    """Read a site's keys, and refuse what cannot be sent.

    Args:
        domain: of the configuration, as `site_of` gives it.
        credentials: as they are kept; a value may be a `Secret`. Names that are no keys of a site are left alone.
            ``origin``: text; ``headers``, ``cookies``: texts by name; ``basic``: ``username`` and ``password``;
            ``proxy``: ``url``, and perhaps ``username`` and ``password``.
        private_proxy: see `SiteAccess`.

    Raises:
        UnusableAccess: with what is wrong, by name, and no value.
    """
    given = {name: _plain(credentials[name]) for name in NAMES if credentials.get(name)}
    origin = _origin(domain, given.get("origin"))
    headers = _entries("headers", given.get("headers"))
    cookies = _entries("cookies", given.get("cookies"))
    for name, value in headers.items():
        if name.lower() in _NOT_KEYS:
            msg = f"header {name} cannot be one of a site's keys: the crawler decides about it itself"
            raise UnusableAccess(msg)
        if not _VALUE(value):
            msg = f"the value of header {name} cannot be sent: it may have printable ASCII characters only"
            raise UnusableAccess(msg)
    for name, value in cookies.items():
        if not _COOKIE_VALUE(value):
            msg = f"the value of cookie {name} cannot be sent: it may have no spaces, quotes, commas, semicolons"
            raise UnusableAccess(msg)
    if len({name.lower() for name in headers}) < len(headers):
        raise UnusableAccess("a header is given twice, in different spellings")
    basic, password = _basic("basic", given.get("basic"))
    if basic and "authorization" in {name.lower() for name in headers}:
        raise UnusableAccess("header Authorization and basic authentication are the same header: give one of them")
    proxy, proxy_password = _proxy(given.get("proxy"))
    sent = [*headers.items(), *cookies.items(), ("Authorization", basic or "")]
    if sum(len(name) + len(value) + 4 for name, value in sent) > MAX_SENT_BYTES:
        msg = f"the keys are longer than {MAX_SENT_BYTES:,} bytes together, which servers refuse"
        raise UnusableAccess(msg)
    values = [*headers.values(), *cookies.values(), password, proxy_password]
    # "Bearer abc" is repeated without its first word as well, and so are the Base64 forms.
    values += [value.rpartition(" ")[2] for value in (*headers.values(), basic or "")]
    if proxy is not None and proxy.authorization is not None:
        values.append(str(proxy.authorization.reveal()).rpartition(" ")[2])
    return SiteAccess(
        origin=origin,
        headers=MappingProxyType({name: Secret(value) for name, value in headers.items()}),
        basic=Secret(basic) if basic else None,
        cookies=MappingProxyType({name: Secret(value) for name, value in cookies.items()}),
        proxy=proxy,
        private_proxy=private_proxy,
        _masked=_spellings(values),
    )


def _plain(value: Any) -> Any:
    return value.reveal() if isinstance(value, Secret) else value


def _origin(domain: str, given: Any) -> str:
    """Keys are sent by https, unless somebody said http when giving them."""
    if given is None:
        return origin_of(normalise(f"https://{domain}/"))
    try:
        origin = origin_of(normalise(given)) if isinstance(given, str) else ""
    except InvalidUrl:
        origin = ""
    if not origin or site_of(origin) != domain:
        msg = f"the origin that the keys are for is not one of {domain}"
        raise UnusableAccess(msg)
    return origin


def _entries(what: str, given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        msg = f"{what} must be texts by name"
        raise UnusableAccess(msg)
    if len(given) > MAX_ENTRIES:
        msg = f"{what}: there are {len(given)}, and at most {MAX_ENTRIES} can be sent"
        raise UnusableAccess(msg)
    for name, value in given.items():
        if not _TOKEN(name):
            msg = f"{what}: a name may have letters, digits and some punctuation, and one has something else"
            raise UnusableAccess(msg)
        if not 0 < len(value) <= MAX_VALUE:
            msg = f"the value of {name} in {what} must have 1 to {MAX_VALUE:,} characters"
            raise UnusableAccess(msg)
    return given


def _basic(what: str, given: Any) -> tuple[str | None, str]:
    """The header's value and the password."""
    if given is None:
        return None, ""
    if not isinstance(given, dict):
        msg = f"{what} must have a username and a password"
        raise UnusableAccess(msg)
    user, password = given.get("username"), given.get("password")
    if not isinstance(user, str) or not isinstance(password, str) or not user:
        msg = f"{what} must have a username and a password, both texts"
        raise UnusableAccess(msg)
    if ":" in user or not (user + password).isprintable() or len(user) + len(password) > MAX_VALUE // 2:
        msg = f"{what}: the username may have no colon, and both only printable characters"
        raise UnusableAccess(msg)
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii"), password


def _proxy(given: Any) -> tuple[Proxy | None, str]:
    if given is None:
        return None, ""
    url = given.get("url") if isinstance(given, dict) else None
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        host, port = (parts.hostname, parts.port) if parts else (None, None)
    except ValueError:
        parts = host = port = None
    if parts is None or parts.scheme != "http" or not host or not port or parts.path not in ("", "/"):
        raise UnusableAccess("the proxy's url must be like http://proxy.example:3128: http, a host and a port")
    if parts.query or parts.fragment or not host.isascii():
        raise UnusableAccess("the proxy's url must be like http://proxy.example:3128 and nothing more")
    if parts.username is not None or parts.password is not None:
        raise UnusableAccess("the proxy's user name and password are given beside its url, not in it")
    value, password = None, ""
    if given.get("username") or given.get("password"):
        value, password = _basic("proxy", given)
    return Proxy(host, port, Secret(value) if value else None), password


# ------------------------------------------------------------------------------------------ the database


def find_site(connection: Connection, customer_id: UUID, domain: str) -> UUID | None:
    """The id of the customer's configuration of a domain, however it is spelled there; None if there is none."""
    rows = connection.execute(
        text("SELECT id, domain FROM public.customer_configs WHERE customer_id = :customer ORDER BY created_at, id"),
        {"customer": customer_id},
    ).all()
    for config_id, known in rows:
        try:
            if known == domain or site_of(normalise(f"https://{known}/")) == domain:
                return config_id  # type: ignore[no-any-return]
        except InvalidUrl:
            continue
    return None


def load_site_access(
    connection: Connection, customer_id: UUID, domain: str, *, settings: Settings
) -> SiteAccess | None:
    """The keys of a customer's site, or None where there are none.

    Args:
        connection: with service access.
        customer_id: whose job it is.
        domain: `site_of` the job's first url. Other seeds get no key.
        settings: say how to decrypt, and whether a proxy may be private.

    Raises:
        UnusableAccess: they stand there in a form that cannot be used.
        SecretError: they cannot be decrypted.
    """
    config_id = find_site(connection, customer_id, domain)
    if config_id is None:
        return None
    credentials = read_credentials(connection, customer_id, config_id, settings=settings)
    if not any(credentials.get(name) for name in NAMES):
        return None
    return check_access(domain, credentials, private_proxy=settings.private_proxies)


def access_for_crawl(
    engine: Engine, customer: UUID | str, urls: Sequence[str], settings: Settings
) -> SiteAccess | None:
    """The keys for a crawl, or None; read anew by whoever crawls, and handed on to nobody.

    Args:
        customer: id, or slug; one who is not there has none.
        urls: of the plan, normal. The first one's site is the job's.
        settings: as for `load_site_access`.

    Raises:
        UnusableAccess, SecretError: as `load_site_access` does.
    """
    with service_connection(engine=engine) as connection:
        customer_id = find_customer(connection, customer) if isinstance(customer, str) else customer
        if customer_id is None:
            return None
        return load_site_access(connection, customer_id, site_of(urls[0]), settings=settings)
