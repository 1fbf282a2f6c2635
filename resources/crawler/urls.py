"""Urls: their one spelling, whose site they are on, and whether they are wanted.

What belongs here: everything that can be said of a url by looking at it. What does not: addresses (`guard`)
and robots rules (`robots`).

Two urls are the same page if `normalise` gives the same text for both: RFC 3986, with what browsers do to
links that no standard allows (tabs, backslashes, spaces, raw UTF-8), and without tracking parameters.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import idna

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_URL_LENGTH",
    "GlobError",
    "Globs",
    "InvalidUrl",
    "Joiner",
    "UnsupportedScheme",
    "looks_binary",
    "normalise",
    "origin_of",
    "same_site",
    "site_of",
    "url_hash",
]

MAX_URL_LENGTH: Final = 2_048
"""Characters; a normal url is ASCII, so bytes too. A url is part of keys, and an entry of a Postgres B-tree may have
2,704 bytes with the customer's or the job's id beside it."""


class InvalidUrl(ValueError):
    """A url that cannot be fetched.

    Attributes:
        url: The url, cut to 200 characters.
        reason: Why, as the end of a sentence: "it has no host".
    """

    def __init__(self, url: str, reason: str) -> None:
        self.url = url if len(url) <= 200 else url[:200] + "…"
        self.reason = reason
        super().__init__(f"{self.url!r} is not a url that can be crawled: {reason}")


class UnsupportedScheme(InvalidUrl):
    """A well-formed url of another kind (``mailto:``, ``javascript:``): not for a crawler, and no mistake."""


_PCHAR: Final = r"A-Za-z0-9\-._~!$&'()*+,;=@/"
# Nearly every link is this: ASCII, unescaped, an http(s) origin or none, then path and query. A colon in the
# path is left to the slow way, since it may be a scheme.
_FAST: Final = re.compile(
    r"(?:(https?)://([A-Za-z0-9.\-]+(?::[0-9]+)?))?"
    rf"([{_PCHAR}]*)"
    rf"(?:\?([{_PCHAR}:?]*))?"
    r"(?:\#.*)?",
    re.DOTALL,
).fullmatch
# RFC 3986, appendix B, with the scheme's own alphabet.
_SPLIT: Final = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:\#.*)?", re.DOTALL
).fullmatch
_TRACKING: Final = re.compile(r"(?:^|&)(?:utm_|(?:gclid|fbclid)(?:[=&]|$))", re.IGNORECASE).search
_TRACKING_PARAMETER: Final = re.compile(r"(?:utm_[^=]*|gclid|fbclid)(?:=|$)", re.IGNORECASE).match
_PATH_ODD: Final = re.compile(r"%(?:[0-9A-Fa-f]{2})?|[^A-Za-z0-9\-._~!$&'()*+,;=:@/]+")
_QUERY_ODD: Final = re.compile(r"%(?:[0-9A-Fa-f]{2})?|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?]+")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# WHATWG: C0 controls and spaces are cut off both ends, tabs and line ends are dropped anywhere.
_EDGES: Final = "".join(map(chr, range(0x21)))
_LINE_ENDS: Final = {0x09: None, 0x0A: None, 0x0D: None}
_HOST_LABELS: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_\-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_\-]{0,61}[a-z0-9_])?)*"
).fullmatch
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*").fullmatch
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


def _regular(match: re.Match[str]) -> str:
    """Give what does not belong in a url as regular percent-encoding, and decode what needs none."""
    text = match[0]
    if text[0] != "%":
        # "replace" is not for UTF-8 encoding of half a surrogate pair; browsers send U+FFFD.
        return "".join(
            f"%{byte:02X}" for byte in text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        )
    if len(text) == 1:
        return "%25"
    character = chr(int(text[1:], 16))
    return character if character in _UNRESERVED else text.upper()


def _without_dot_segments(path: str) -> str:
    """Resolve ``.`` and ``..`` (RFC 3986, 5.2.4) in a path that starts with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _clean_query(query: str) -> str:
    """Give the query, regular and without tracking parameters, with its question mark; or nothing."""
    if query and _TRACKING(query):
        query = "&".join(part for part in query.split("&") if not _TRACKING_PARAMETER(part))
    return "?" + query if query else ""


def _ipv4(host: str) -> str | None:
    """Read what a browser reads as an IPv4 address; None if it only looks like one (WHATWG, 4.5)."""
    parts = host.split(".")
    if len(parts) > 4:
        return None
    numbers: list[int] = []
    for part in parts:
        if not _NUMBER(part):
            return None
        try:
            if part[:2] in ("0x", "0X"):
                numbers.append(int(part[2:] or "0", 16))
            else:
                numbers.append(int(part, 8 if part[0] == "0" else 10))
        except ValueError:
            return None
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        return None
    value = numbers[-1]
    for index, number in enumerate(numbers[:-1]):
        value += number << (8 * (3 - index))
    return str(ipaddress.IPv4Address(value))


def _ascii_host(host: str, url: str) -> str:
    """Give a host in lower case, as punycode."""
    if "%" in host:
        host = re.sub(
            r"(?:%[0-9A-Fa-f]{2})+",
            lambda match: bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace"),
            host,
        )
    if host.isascii():
        return host.lower()
    if len(host) > 255:
        raise InvalidUrl(url, "its host is too long")
    try:
        host = idna.uts46_remap(host, std3_rules=False, transitional=False)
    except idna.IDNAError as error:
        raise InvalidUrl(url, f"its host is not a name ({error})") from error
    labels: list[str] = []
    for label in host.split("."):
        if label.isascii():
            labels.append(label)
            continue
        try:
            labels.append(idna.alabel(label).decode("ascii"))
        except idna.IDNAError:
            # Symbols and emoji are not in IDNA 2008, but such names are registered and browsers open them.
            labels.append("xn--" + label.encode("punycode").decode("ascii"))
    return ".".join(labels)


def _host(host: str, url: str) -> str:
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1] if host.endswith("]") else "")
        except ValueError as error:
            raise InvalidUrl(url, "its host is not an IPv6 address") from error
        if address.scope_id is not None:
            raise InvalidUrl(url, "a scope id means nothing outside its own machine")
        mapped = address.ipv4_mapped
        if mapped is None:
            return f"[{address.compressed}]"
        # Python 3.13 changed how it writes these; a key in the database must not depend on that.
        return f"[::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}]"
    host = _ascii_host(host, url).removesuffix(".")
    if not _HOST_LABELS(host):
        raise InvalidUrl(url, "it has no host" if not host else "its host is not a name")
    if _NUMBER(host.rpartition(".")[2]):
        address4 = _ipv4(host)
        if address4 is None:
            raise InvalidUrl(url, "its host is neither a name nor an IPv4 address")
        return address4
    return host


@lru_cache(maxsize=4_096)
def _origin(scheme: str, authority: str) -> str:
    """Give the normal spelling of scheme, host and port. A site has few, so they are remembered."""
    url = f"{scheme}://{authority}"
    if "@" in authority:
        raise InvalidUrl(url, "user names and passwords do not belong in a url, and are not sent")
    host, colon, port = authority, "", ""
    if not authority.endswith("]"):
        host, colon, port = authority.rpartition(":")
        if not colon:
            host, port = authority, ""
    host = _host(host, url)
    if port:
        if not (port.isascii() and port.isdigit() and len(port) <= 8 and 0 < int(port) <= 65_535):
            raise InvalidUrl(url, "its port is not a number from 1 to 65535")
        if int(port) != _DEFAULT_PORT[scheme]:
            return f"{scheme}://{host}:{int(port)}"
    return f"{scheme}://{host}"


_KNOWN_LINKS: Final = 1_000
"""Links remembered for each of the last 64 folders: a site's pages have its navigation in common, and that comes
first."""


@lru_cache(maxsize=64)
def _known_links(folder: str) -> dict[str, str]:
    """Give what is known of the links of a folder's pages: as written, and their normal urls."""
    return {}


class Joiner:
    """Resolves the links of one page: what depends on the page's url alone is done once."""

    __slots__ = ("_directory", "_known", "_origin", "_page", "_path", "_scheme")

    def __init__(self, base: str) -> None:
        """Make a joiner.

        Args:
            base: Url of the page, or its ``<base href>``. It is normalised.

        Raises:
            InvalidUrl: The base cannot be crawled itself.
        """
        base = normalise(base)
        self._page = base
        scheme, _, rest = base.partition("://")
        authority = rest.partition("/")[0]
        self._scheme = scheme
        self._origin = f"{scheme}://{authority}"
        self._path = base[len(self._origin) :].partition("?")[0]
        self._directory = self._path[: self._path.rindex("/") + 1]
        self._known = _known_links(self._origin + self._directory)

    def __call__(self, link: str) -> str:
        """Give the normal url that a link of this page means.

        Raises:
            UnsupportedScheme: It is well formed and not http(s).
            InvalidUrl: It cannot be crawled.
        """
        known = self._known
        url = known.get(link)
        if url is None:
            url = self._resolve(link)
            # What begins with ? or # (or is empty, or begins with what is cut off) may mean the page, not its folder.
            if len(known) < _KNOWN_LINKS and link[:1] > " " and link[0] not in "?#":
                known[link] = url
        return url

    def _resolve(self, link: str) -> str:
        match = _FAST(link)
        if match is None or len(link) > MAX_URL_LENGTH:
            return _slow(link, self)
        scheme, authority, path, query = match.groups()
        if authority is not None:
            if path and path[0] != "/":  # the host has characters that the fast expression does not know
                return _slow(link, self)
            origin = _origin(scheme, authority)
            path = path or "/"
        elif not path:
            if query is None:
                return self._page
            origin, path = self._origin, self._path
        elif path[0] == "/":
            if path[:2] == "//":
                return _slow(link, self)
            origin = self._origin
        elif path[0] == ".":
            return _slow(link, self)
        else:
            origin, path = self._origin, self._directory + path
        if "/." in path:
            path = _without_dot_segments(path)
        url = origin + path
        if query:
            url += _clean_query(query)
        return url if len(url) <= MAX_URL_LENGTH else _too_long(link)


def _too_long(url: str) -> str:
    raise InvalidUrl(url, f"it is longer than {MAX_URL_LENGTH:,} characters")


def _slow(link: str, base: Joiner | None) -> str:  # noqa: PLR0912 - RFC 3986, 5.2.2, is this long
    """Normalise any url, by RFC 3986 (5.2) and with what browsers forgive."""
    url = link.strip(_EDGES).translate(_LINE_ENDS)
    if len(url) > 8 * MAX_URL_LENGTH:
        _too_long(url)
    head = url.partition("#")[0]
    if "\\" in head:
        # Browsers read a backslash as a slash, in front of the query.
        before, mark, after = head.partition("?")
        if ":" not in before.split("\\")[0] or before[:4].lower() == "http":
            url = before.replace("\\", "/") + mark + after
    match = _SPLIT(url)
    if match is None:  # the expression takes any text
        raise InvalidUrl(link, "it cannot be read")
    scheme, authority, path, query = match.groups()
    if scheme is not None:
        scheme = scheme.lower()
        if scheme not in _DEFAULT_PORT:
            raise UnsupportedScheme(link, f"only http and https are crawled, not {scheme}")
        if authority is None:
            raise InvalidUrl(link, "it has no host")
    elif base is None:
        raise InvalidUrl(link, "it does not start with http:// or https://")
    if authority is not None:
        origin = _origin(scheme or (base._scheme if base else ""), authority)
    elif base is not None:
        origin = base._origin
    else:
        raise InvalidUrl(link, "it has no host")
    path = _PATH_ODD.sub(_regular, path)
    if authority is None and base is not None:
        if not path:
            path = base._path
            if query is None:
                return base._page
        elif path[0] != "/":
            path = base._directory + path
    path = _without_dot_segments(path) if path else "/"
    if query:
        query = _clean_query(_QUERY_ODD.sub(_regular, query))
    normal = origin + path + (query or "")
    return normal if len(normal) <= MAX_URL_LENGTH else _too_long(link)


@lru_cache(maxsize=64)
def _joiner(base: str) -> Joiner:
    return Joiner(base)


def normalise(url: str, base: str | None = None) -> str:
    """Give the one spelling of a url.

    Scheme and host are in lower case, the host as punycode (UTS 46) or a canonical address, without a last
    dot; default port, fragment, empty query and tracking parameters (``utm_*``, ``gclid``, ``fbclid``) are
    dropped; dot segments are resolved; percent-encoding is regular: unreserved characters decoded, upper-case
    digits, a lone ``%`` as ``%25``, everything that RFC 3986 does not allow encoded as UTF-8. The order of a
    query, the case of a path and its last slash stay.

    Args:
        url: An absolute url, or any reference when there is a base.
        base: The url that it is relative to.

    Returns:
        ASCII text that normalises to itself.

    Raises:
        UnsupportedScheme: It is well formed and not http(s).
        InvalidUrl: It cannot be crawled: no or a malformed host, a user name, a port out of range, more than
            2,048 characters.
    """
    if base is not None:
        return _joiner(base)(url)
    match = _FAST(url)
    if match is not None and match[1] is not None and len(url) <= MAX_URL_LENGTH:
        scheme, authority, path, query = match.groups()
        if (not path or path[0] == "/") and "/." not in path:
            normal = _origin(scheme, authority) + (path or "/")
            if query:
                normal += _clean_query(query)
            return normal if len(normal) <= MAX_URL_LENGTH else _too_long(url)
    return _slow(url, None)


def origin_of(url: str) -> str:
    """Give scheme, host and port of a normal url: ``https://example.com:8443``."""
    end = url.find("/", url.find("://") + 3)
    return url if end < 0 else url[:end]


def site_of(url: str) -> str:
    """Give the site of a normal url: its host, and its port where that is not the scheme's own.

    So ``http://example.com`` and ``https://example.com`` are one site (nearly every site redirects from one
    to the other), and another port is another site.
    """
    start = url.find("://") + 3
    if start == 2:  # not a url, so it is a site already
        return url
    end = url.find("/", start)
    return url[start:] if end < 0 else url[start:end]


def same_site(url: str, origin: str, *, subdomains: bool = False) -> bool:
    """Say whether a url is on the site of another; both normal.

    Args:
        url: The url in question.
        origin: Any url of the site, or `site_of` it.
        subdomains: Count ``docs.example.com`` to the site ``example.com`` (not the other way round).
    """
    site, home = site_of(url), site_of(origin)
    return site == home or (subdomains and site.endswith("." + home))


def url_hash(url: str) -> int:
    """Give the key of a normal url: BLAKE2b of 8 bytes, as a signed number for a Postgres ``bigint``."""
    return int.from_bytes(blake2b(url.encode(), digest_size=8).digest(), "big", signed=True)


# "Plainly binary" only: what people link to as a document (.pdf) is fetched and gets the row that says so,
# and what can be HTML all the same (.xml, .php, no extension) is fetched too.
# Pictures; sound and film; archives; programs; fonts; office; data and drawings.
_BINARY: Final = """
    apng avif bmp eps gif heic heif ico jfif jpeg jpg jxl png psd raw svg svgz tif tiff webp
    3gp aac aif aiff avi flac flv m3u8 m4a m4v mid midi mkv mov mp2 mp3 mp4 mpeg mpg oga ogg ogv
    opus ts wav weba webm wma wmv
    7z apk bz2 cab deb dmg gz img iso jar lz lzma msi msix pkg rar rpm tar tbz tbz2 tgz txz vhd whl
    xz z zip zst
    bin class dll dylib ear exe ipa so war wasm
    eot otf ttc ttf woff woff2
    doc docm docx dot dotx key numbers odp ods odt pages pot potx pps ppsx ppt pptm pptx vsd vsdx
    xls xlsb xlsm xlsx xlt epub mobi azw3
    accdb ai avro dat db dwg dxf mdb npy npz onnx parquet pickle pkl sketch sqlite sqlite3 swf
    torrent
"""
_BINARY_EXTENSIONS: Final = frozenset(_BINARY.split())


def looks_binary(url: str) -> bool:
    """Say whether the extension of a normal url's path is plainly that of a binary file."""
    path = url.partition("?")[0]
    dot = path.rfind(".", -8)
    if dot < 0:
        return False
    extension = path[dot + 1 :].lower()
    # The dot must be in the path: http://example.com has a host that ends in "com".
    return extension in _BINARY_EXTENSIONS and path.find("/", 8) != -1


class GlobError(ValueError):
    """A glob that can match nothing, or is not one; the text says what to write instead."""


_MAX_GLOB_LENGTH: Final = 1_000
_GLOB_TOKENS: Final = re.compile(r"\*+|\?|[^*?]+")
_GLOB_STARTS: Final = ("/", "*", "?", "http:", "https:")


def _glob_chunk(tokens: list[str], *, final: bool) -> str:
    """Translate what stands between two ``**``.

    The text after a ``*`` is taken where it comes first, atomically: what follows cannot match later and not
    there. Only the last ``*`` before the end of the url looks for its place from the right.
    """
    out = ""
    stars = [index for index, part in enumerate(tokens) if part == "*"]
    for number, start in enumerate([-1, *stars]):
        end = stars[number] if number < len(stars) else len(tokens)
        fixed = "".join("[^/]" if part == "?" else re.escape(part) for part in tokens[start + 1 : end])
        if start < 0:
            out += fixed
        elif end < len(tokens) or not final:
            out += f"(?>[^/]*?{fixed})"
        else:
            out += f"[^/]*{fixed}"
    return out


def _compile_glob(pattern: str) -> re.Pattern[str]:
    if not pattern or len(pattern) > _MAX_GLOB_LENGTH or pattern != pattern.strip():
        raise GlobError(
            f"The glob {pattern[:80]!r} is empty, has spaces around it, or is longer than "
            f"{_MAX_GLOB_LENGTH:,} characters."
        )
    if not pattern.lower().startswith(_GLOB_STARTS):
        raise GlobError(
            f"The glob {pattern!r} matches no url: begin it with https:// for a whole url, with / for a path "
            f"(/{pattern}), or with ** for anywhere (**{pattern}**)."
        )
    if "***" in pattern:
        raise GlobError(f"The glob {pattern!r} has ***: write * (within a segment) or ** (across segments).")
    scheme, mark, rest = pattern.partition("://")
    if mark:
        host, slash, path = rest.partition("/")
        pattern = scheme.lower() + mark + host.lower() + slash + path
    # Urls are compared in their normal spelling, so a glob is written in it too.
    pattern = re.sub(r"[^\x21-\x7e]+", _regular, pattern)
    chunks: list[list[str]] = [[]]
    for part in _GLOB_TOKENS.findall(pattern):
        if part == "**":
            chunks.append([])
        else:
            chunks[-1].append(part)
    if len(chunks) == 1:
        return re.compile(_glob_chunk(chunks[0], final=True), re.DOTALL)
    expression = _glob_chunk(chunks[0], final=False)
    for index, chunk in enumerate(chunks[1:], 1):
        # "/**/" is any number of whole segments, none included.
        before = chunks[index - 1]
        boundary = ""
        if chunk and chunk[0][0] == "/" and before and before[-1][-1] == "/":
            chunk[0] = chunk[0][1:]
            boundary = "(?<=/)"
            if not chunk[0]:
                del chunk[0]
        final = index == len(chunks) - 1
        body = boundary + _glob_chunk(chunk, final=final)
        expression += f".*{body}" if final else f"(?>.*?{body})"
    return re.compile(expression, re.DOTALL)


class Globs:
    """Which urls are wanted, by glob patterns.

    ``*`` is any text within a segment, ``**`` any text (``/**/`` also no segment at all), ``?`` one character
    that is no slash; everything else stands for itself. A pattern that begins with ``/`` is matched against
    the path, without and with the query; another one against the whole url.
    """

    __slots__ = ("_excluded", "_included")

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Compile the patterns.

        Args:
            include: Only urls that match one of these are wanted; none means all.
            exclude: Urls that match one of these are not wanted, whatever `include` says.

        Raises:
            GlobError: A pattern can match no url; the text says what to write.
        """
        self._included = _GlobSet(include)
        self._excluded = _GlobSet(exclude)

    def __bool__(self) -> bool:
        """True if there is any pattern."""
        return bool(self._included or self._excluded)

    def wants(self, url: str) -> bool:
        """Say whether a normal url is wanted."""
        if self._included and not self._included.match(url):
            return False
        return not (self._excluded and self._excluded.match(url))


class _GlobSet:
    """Some patterns, of which any may match."""

    __slots__ = ("_on_path", "_on_url")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._on_path: list[re.Pattern[str]] = []
        self._on_url: list[re.Pattern[str]] = []
        for pattern in patterns:
            (self._on_path if pattern.startswith("/") else self._on_url).append(_compile_glob(pattern))

    def __bool__(self) -> bool:
        return bool(self._on_path or self._on_url)

    def match(self, url: str) -> bool:
        for expression in self._on_url:
            if expression.fullmatch(url):
                return True
        if self._on_path:
            start = url.find("/", url.find("://") + 3)
            query = url.find("?", start)
            for expression in self._on_path:
                if expression.fullmatch(url, start) or (query >= 0 and expression.fullmatch(url, start, query)):
                    return True
        return False
