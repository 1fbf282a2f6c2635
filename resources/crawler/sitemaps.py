"""Sitemaps, read while they arrive: sitemaps.org's XML and its indexes, plain text, RSS and Atom, gzipped or not.

What belongs here: turning bytes into the urls that they list. What does not: where sitemaps are found and how they
are fetched (`discovery`), and whether a url is wanted (`link_rules`).

The bytes are hostile. XML is read by expat as a stream of events: no tree is built, a declared entity ends the
reading (so none is ever expanded), nothing external is loaded, and nesting, one token, one text and the whole are
bounded. What was listed before the point where a file breaks counts; `SitemapReader.problem` says why the rest does
not.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from resources.crawler.urls import InvalidUrl, normalise

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_BYTES", "MAX_URLS", "SitemapEntry", "SitemapReader", "read_lastmod"]

MAX_URLS: Final = 50_000
"""Of one file, by the standard; what a file lists beyond is left out."""
MAX_BYTES: Final = 52_428_800
"""Of one file, decompressed, by the standard; what follows is not read."""
_MAX_GZIP_RATIO: Final = 1_000
_RATIO_FROM: Final = 8 * 2**20
"""Gzip gives 1,032:1 at most, and long lists of similar urls come near 100:1. The ratio is looked at from 8 MiB on;
below that there is nothing to win."""
_SLICE: Final = 64 * 1024
_MAX_DEPTH: Final = 64
"""Open elements. A sitemap has four, a feed with pictures and authors some more; expat remembers each."""
_MAX_TOKEN: Final = 1024 * 1024
"""Bytes of one tag, comment or the like: expat begins a token that is not complete again with each piece."""
_MAX_TEXT: Final = 16 * 1024
"""Characters kept of one text. A url has 2,048, and some more where it is not escaped as it will be."""
_MAX_ALTERNATES: Final = 200
"""Languages of one page."""
_START_OF_TEXT: Final = re.compile(r"https?://", re.IGNORECASE).match


@dataclass(frozen=True, slots=True)
class SitemapEntry:
    """One url that a sitemap lists.

    Attributes:
        url: normal.
        lastmod: when the site says that it changed last, in UTC; None where it says nothing that can be read.
        is_sitemap: True for an entry of an index: the url is another sitemap's.
    """

    url: str
    lastmod: datetime | None = None
    is_sitemap: bool = False

    def with_url(self, url: str) -> SitemapEntry:
        """Give the same entry under another spelling of its url."""
        return replace(self, url=url)


# W3C's profile of ISO 8601, and how it is misspelled: a space for the T, no colon in the zone, single digits.
_W3C: Final = re.compile(
    r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[Tt ]\s*(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9})\d*)?)?"
    r"\s*(?:([Zz]|UTC|GMT)|([+-])(\d{2}):?(\d{2})?)?)?)?)?"
).fullmatch


def read_lastmod(text: str | None) -> datetime | None:
    """Read a date of a sitemap or a feed: W3C's spellings, their common misspellings, and RFC 822's.

    Args:
        text: as it stands there. A date without a zone is UTC, one without a day or a time is its beginning.

    Returns:
        The moment in UTC, or None for what is no date.
    """
    if not text or len(text) > 100:
        return None
    text = text.strip()
    match = _W3C(text)
    try:
        if match is None:
            moment = parsedate_to_datetime(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        year, month, day, hour, minute, second, fraction, _, sign, zone_hours, zone_minutes = match.groups()
        zone: timezone = UTC
        if sign:
            offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes or 0))
            zone = timezone(-offset if sign == "-" else offset)
        return datetime(
            int(year),
            int(month or 1),
            int(day or 1),
            int(hour or 0),
            int(minute or 0),
            min(int(second or 0), 59),  # a leap second is not worth losing the date for
            int((fraction or "0").ljust(6, "0")[:6]),
            tzinfo=zone,
        ).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class _Broken(Exception):
    """The file is not read any further; the text is the end of a sentence."""


class _Gunzip:
    """Undoes gzip in pieces of at most `_SLICE` bytes; several members too."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)
        self._in = self._out = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        self._in += len(data)
        while data:
            if self._inflate.eof:
                if not data.startswith(b"\x1f\x8b"):  # padding after the last member
                    return
                self._inflate = zlib.decompressobj(31)
            try:
                piece = self._inflate.decompress(data, _SLICE)
            except zlib.error as error:
                msg = f"it cannot be decompressed ({error})"
                raise _Broken(msg) from error
            self._out += len(piece)
            if self._out > _RATIO_FROM and self._out > _MAX_GZIP_RATIO * self._in:
                msg = f"{self._in:,} compressed bytes became more than {_MAX_GZIP_RATIO:,} times as many"
                raise _Broken(msg)
            if piece:
                yield piece
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail

    @property
    def complete(self) -> bool:
        return self._inflate.eof


# What an entry is called, and in it: the url, the date.
_ENTRIES: Final = {"url", "sitemap", "item", "entry"}
_ROOTS: Final = {"urlset", "sitemapindex", "rss", "feed", "rdf"}
_DATES: Final = {"lastmod", "pubdate", "updated", "date"}


@dataclass(slots=True)
class _Open:
    """The entry that is being read."""

    name: str
    depth: int
    loc: str | None = None
    date: str | None = None
    links: list[str] = field(default_factory=list)


class _Xml:
    """Expat's events become entries."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._entity
        self._fed = 0
        self._depth = 0
        self._entry: _Open | None = None
        self._kept: list[str] | None = None
        self._kept_size = 0
        self.root: str | None = None
        self.invalid = 0
        self.found: list[SitemapEntry] = []

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Read on.

        Raises:
            _Broken: this is no well-formed sitemap, or one that does harm.
        """
        self._fed += len(data)
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            what = f"its XML is broken at line {error.lineno:,} ({expat.ErrorString(error.code)})"
            msg = what if self.root is not None else f"it is no sitemap: {what}"
            raise _Broken(msg) from error
        except ValueError as error:  # an encoding that Python has no table for
            msg = f"its encoding cannot be read ({error})"
            raise _Broken(msg) from error
        if not final and self._fed - self._parser.CurrentByteIndex > _MAX_TOKEN:
            msg = f"it has a tag or comment of more than {_MAX_TOKEN:,} bytes"
            raise _Broken(msg)

    def _entity(self, *_: object) -> None:
        msg = "it declares an entity, which no sitemap needs"
        raise _Broken(msg)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            msg = f"it is nested more than {_MAX_DEPTH} deep"
            raise _Broken(msg)
        name = name.rpartition(":")[2].lower()
        if self.root is None:
            self.root = name
            if name not in _ROOTS:
                msg = f"it is no sitemap: its root is <{name[:40]}>"
                raise _Broken(msg)
            return
        entry = self._entry
        if entry is None:
            if name in _ENTRIES:
                self._entry = _Open(name, self._depth)
            return
        if name == "link":
            self._link(entry, attributes)
        if self._depth == entry.depth + 1 and (name in ("loc", "link") or name in _DATES):
            self._kept, self._kept_size = [], 0

    def _link(self, entry: _Open, attributes: dict[str, str]) -> None:
        """`xhtml:link` of a sitemap's url, or Atom's `link`."""
        href = attributes.get("href")
        rel = attributes.get("rel", "alternate").lower()
        if not href or rel != "alternate":
            return
        if entry.name == "entry":
            entry.loc = entry.loc or href
        elif entry.name == "url" and len(entry.links) < _MAX_ALTERNATES:
            entry.links.append(href)

    def _text(self, text: str) -> None:
        if self._kept is not None and self._kept_size < _MAX_TEXT:
            self._kept.append(text[: _MAX_TEXT - self._kept_size])
            self._kept_size += len(text)

    def _end(self, name: str) -> None:
        entry = self._entry
        if entry is not None:
            if self._depth == entry.depth:
                self._close(entry)
                self._entry = self._kept = None
            elif self._kept is not None and self._depth == entry.depth + 1:
                text = "".join(self._kept).strip()
                self._kept = None
                name = name.rpartition(":")[2].lower()
                if name in _DATES:
                    # A feed's entry may have two; "updated" says more than "published".
                    entry.date = text or entry.date
                elif text and entry.loc is None:
                    entry.loc = text
        self._depth -= 1

    def _close(self, entry: _Open) -> None:
        lastmod = read_lastmod(entry.date)
        is_sitemap = entry.name == "sitemap"
        if entry.loc:
            self._add(entry.loc, lastmod, is_sitemap=is_sitemap)
        else:
            self.invalid += 1
        for link in entry.links:
            self._add(link, None)

    def _add(self, link: str, lastmod: datetime | None, *, is_sitemap: bool = False) -> None:
        try:
            self.found.append(SitemapEntry(normalise(link, self._base), lastmod, is_sitemap))
        except InvalidUrl:
            self.invalid += 1


class _Lines:
    """One url a line, in UTF-8."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._rest = b""
        self._listed = False
        self.invalid = 0
        self.found: list[SitemapEntry] = []

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Read on.

        Raises:
            _Broken: this is no list of urls.
        """
        data = self._rest + data
        lines = re.split(rb"[\r\n]+", data)
        self._rest = b"" if final else lines.pop()
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._line(text)
        if len(self._rest) > _MAX_TEXT:
            self._line(self._rest[:_MAX_TEXT].decode("utf-8", "replace"))
            self._rest = b""

    def _line(self, text: str) -> None:
        if not _START_OF_TEXT(text):
            if not self._listed:
                msg = "it is no sitemap: it is no XML, and does not begin with a url"
                raise _Broken(msg)
            self.invalid += 1
            return
        self._listed = True
        try:
            self.found.append(SitemapEntry(normalise(text, self._base)))
        except InvalidUrl:
            self.invalid += 1


class SitemapReader:
    """Reads one sitemap file, piece by piece.

    Attributes:
        problem: why reading ended before the file did, or what was wrong with it: the end of a sentence whose
            subject is the file. None while all is well.
        listed: entries given so far.
        invalid: entries that are no urls.
        size: bytes read, decompressed.
    """

    def __init__(self, url: str) -> None:
        """Make a reader.

        Args:
            url: Of the file, normal: what a relative url in it is relative to (the standard allows none, sites do).
        """
        self._url = url
        self._head = b""
        self._gunzip: _Gunzip | None = None
        self._body: _Xml | _Lines | None = None
        self.problem: str | None = None
        self.listed = 0
        self.size = 0

    @property
    def invalid(self) -> int:
        """Entries that are no urls."""
        return self._body.invalid if self._body is not None else 0

    @property
    def is_sitemap(self) -> bool:
        """True if this is one, by what was read of it."""
        if isinstance(self._body, _Xml):
            return self._body.root in _ROOTS
        return self.listed > 0

    def feed(self, data: bytes) -> list[SitemapEntry]:
        """Read on; gives the entries that are complete. After a `problem` it gives nothing more."""
        found: list[SitemapEntry] = []
        if self.problem is None:
            try:
                self._feed(data, found)
            except _Broken as broken:
                self._take(found)
                self.problem = str(broken)
        return found

    def close(self) -> list[SitemapEntry]:
        """The file is at its end; gives the last entries."""
        found: list[SitemapEntry] = []
        if self.problem is not None:
            return found
        try:
            if self._gunzip is None and self._head:
                self._plain(self._head, found)
            if self._body is None:
                self.problem = "it is empty"
                return found
            self._body.feed(b"", final=True)
            self._take(found)
            if self._gunzip is not None and not self._gunzip.complete:
                self.problem = "its compressed data ends too early"
        except _Broken as broken:
            self._take(found)
            self.problem = str(broken)
        return found

    def _feed(self, data: bytes, found: list[SitemapEntry]) -> None:
        if self._gunzip is None and self._body is None:
            # The first two bytes tell gzip, whatever the file is called and the server says of it.
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, b""
            if data.startswith(b"\x1f\x8b"):
                self._gunzip = _Gunzip()
        if self._gunzip is None:
            self._plain(data, found)
            return
        for piece in self._gunzip.pieces(data):
            self._plain(piece, found)

    def _plain(self, data: bytes, found: list[SitemapEntry]) -> None:
        room = MAX_BYTES - self.size
        self.size += len(data)
        data = data[: max(room, 0)]
        for start in range(0, len(data), _SLICE):
            self._piece(data[start : start + _SLICE])
            self._take(found)
        if self.size > MAX_BYTES:
            msg = f"it is longer than {MAX_BYTES:,} bytes"
            raise _Broken(msg)

    def _piece(self, data: bytes) -> None:
        if self._body is None:
            # XML may not begin with whitespace, and many a sitemap does.
            data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
            if not data:
                return
            markup = data.startswith((b"<", b"\xff\xfe", b"\xfe\xff"))
            self._body = _Xml(self._url) if markup else _Lines(self._url)
        self._body.feed(data)

    def _take(self, found: list[SitemapEntry]) -> None:
        body = self._body
        if body is None:
            return
        new, body.found = body.found, []
        room = MAX_URLS - self.listed
        self.listed += min(len(new), room)
        found.extend(new[:room])
        if len(new) > room:
            msg = f"it lists more than {MAX_URLS:,} urls"
            raise _Broken(msg)
