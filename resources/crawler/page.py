"""What a page says: its links, its metadata, its visible text.

What belongs here: reading the bytes of one page, in the fetch loop, in a third of a millisecond. What does
not: the main content (`resources.content`, in a process of its own), and whether a link is wanted (`urls`).

The bytes are hostile: nothing here recurses, what makes an HTML parser slow is cut off in front of it (`pieces`), and
a large page is read in steps, between which the loop has its turn (`parse_in_turns`).
"""

from __future__ import annotations

import codecs
import re
import time
import types
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeVar

from selectolax.lexbor import LexborHTMLParser

from resources.crawler.identity import ROBOTS_TOKEN
from resources.crawler.pieces import pieces, without_formatting
from resources.crawler.urls import InvalidUrl, Joiner, UnsupportedScheme, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from selectolax.lexbor import LexborNode

__all__ = [
    "MAX_LINKS",
    "Page",
    "clean_text",
    "decode",
    "parse",
    "parse_in_turns",
    "robots_directives",
]

_T = TypeVar("_T")


@types.coroutine
def _turn() -> Generator[None]:
    """The loop has its turn. As `asyncio.sleep(0)`, and processes that only read pages load no asyncio."""
    yield


MAX_LINKS: Final = 10_000
"""Links of one page that are followed; real sitemap pages have a few thousand."""
MAX_TRIED_LINKS: Final = 20_000
"""Links of one page that are looked at, those among them that are no urls, or the same again."""
PAGE_SECONDS: Final = 2.0
"""Of CPU time for one page, after which no further piece is begun. An honest page of 16 MB takes about 1 s."""
LINKS_AT_ONCE: Final = 200
DECODED_AT_ONCE: Final = 512 * 1024
_MAX_METAS: Final = 1_000
_MAX_TITLE: Final = 1_000
_MAX_DESCRIPTION: Final = 5_000


@dataclass(slots=True)
class Page:
    """What was read of one page."""

    url: str
    title: str | None = None
    description: str | None = None
    canonical_url: str | None = None
    """Normal url; None where none is given, or it is malformed."""
    lang: str | None = None
    """Of the html element, as written there: ``en``, ``de-AT``."""
    links: list[str] = field(default_factory=list)
    """Normal urls on any host, in order, each once, at most 10,000."""
    nofollow_links: list[str] = field(default_factory=list)
    """The same of those that are not to be followed: `rel=nofollow`, or all of a page that says nofollow."""
    malformed_links: int = 0
    """Links that are no urls. Other schemes (``mailto:``) are not counted."""
    noindex: bool = False
    nofollow: bool = False
    text: str = ""
    """Visible text, a line for each block; empty if not asked for."""
    content_hash: str = ""
    """BLAKE2b-128, hexadecimal: of the visible text, of all texts as they stand, or of the bytes: as was asked."""
    cleaned: int = 0
    """Characters replaced or removed: NUL, half surrogate pairs, bytes that are not their charset."""
    truncated: bool = False
    """It took too much work to read it, and only its beginning was read."""
    charset: str = "utf-8"
    """The one that it was decoded with, by Python's name."""


_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def clean_text(text: str) -> tuple[str, int]:
    """Make a text storable in Postgres: no NUL (removed) and no half surrogate pair (replaced by U+FFFD).

    Returns:
        The text, and how many characters were removed or replaced.
    """
    # Both tests are memory scans; the expression is for the rare text that needs it.
    if text.isascii():
        count = text.count("\0")
        return (text.replace("\0", ""), count) if count else (text, 0)
    return _UNSTORABLE.subn(lambda match: "" if match[0] == "\0" else "\ufffd", text)


# ------------------------------------------------------------------------------------------ charset

# Labels that browsers read otherwise than Python does (WHATWG Encoding Standard, 4.2).
_LABELS: Final = {
    label: codec
    for codec, labels in {
        "cp1252": "ascii us-ascii ansi_x3.4-1968 iso-8859-1 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 "
        "iso-ir-100 latin1 l1 cp819 ibm819 csisolatin1 x-cp1252 windows-1252 cp1252 x-user-defined",
        "cp1254": "iso-8859-9 iso8859-9 latin5 l5 windows-1254 x-cp1254 cp1254",
        "cp874": "iso-8859-11 iso8859-11 tis-620 windows-874 dos-874",
        "cp932": "shift_jis shift-jis sjis ms_kanji x-sjis windows-31j ms932",
        "gb18030": "gb18030 gb2312 gb_2312 gb_2312-80 gbk x-gbk chinese csgb2312 iso-ir-58",
        "cp949": "euc-kr ks_c_5601-1987 ksc5601 ksc_5601 korean windows-949",
        "big5hkscs": "big5 big5-hkscs cn-big5 x-x-big5",
        "mac_roman": "macintosh mac x-mac-roman",
        "utf-8": "utf-8 utf8 unicode-1-1-utf-8 x-unicode20utf8 unicode11utf8",
        "utf-16-le": "utf-16 utf-16le unicode ucs-2 iso-10646-ucs-2 csunicode",
        "utf-16-be": "utf-16be",
        "iso8859_8": "iso-8859-8-i logical",
    }.items()
    for label in labels.split()
}
# What else browsers decode, and nothing more: Python's other codecs are not for text (rot13, zlib), or are
# known for smuggling markup past filters (utf-7).
_OTHER_CODECS: Final = """
    iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 iso8859-13 iso8859-14
    iso8859-15 iso8859-16 cp866 koi8-r koi8-u cp1250 cp1251 cp1253 cp1255 cp1256 cp1257 cp1258 mac-cyrillic
    euc_jp iso2022_jp
"""
_CODECS: Final = frozenset(_OTHER_CODECS.split())
_META_CHARSET: Final = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:\-]+)", re.IGNORECASE).search
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@lru_cache(maxsize=256)
def _codec(label: str) -> str | None:
    """Give Python's codec for a charset label; None for one that no browser knows."""
    label = label.strip().lower()
    known = _LABELS.get(label)
    if known is not None:
        return known
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return name if name in _CODECS else None


def _decoding(body: bytes, charset: str | None, *, html: bool) -> Generator[None, None, tuple[str, str, int]]:
    """Decode a body, in steps: (text, codec, characters that had to be replaced)."""
    codec: str | None = None
    for bom, name in _BOMS:
        if body.startswith(bom):
            body, codec = body[len(bom) :], name
            break
    if codec is None and charset:
        codec = _codec(charset)
    if codec is None and html and (match := _META_CHARSET(body, 0, 1024)):
        codec = _codec(match[1].decode("ascii"))
        if codec in ("utf-16-le", "utf-16-be"):  # it was read as ASCII, so that is not true
            codec = "utf-8"
    try:
        return body.decode(codec or "utf-8"), codec or "utf-8", 0
    except UnicodeDecodeError:
        pass
    codec = codec or "cp1252"
    table = _table(codec)
    if table is not None:
        text = codecs.charmap_decode(body, "strict", table)[0]
    else:
        decoder = codecs.getincrementaldecoder(codec)("replace")
        parts = []
        for start in range(0, len(body), DECODED_AT_ONCE):
            parts.append(decoder.decode(body[start : start + DECODED_AT_ONCE]))
            yield
        text = "".join([*parts, decoder.decode(b"", final=True)])
    return text, codec, text.count("\ufffd")


@lru_cache(maxsize=64)
def _table(codec: str) -> str | None:
    """The characters of a codec of single bytes, U+FFFD for those that it has not; None for other codecs.

    Python's own handling of errors costs 0.3 s for a megabyte of them.
    """
    if not codec.startswith(("cp125", "cp866", "cp874", "iso8859", "koi8", "mac")):
        return None
    return bytes(range(256)).decode(codec, "replace")


def _finish(steps: Generator[None, None, _T]) -> _T:
    """Do all steps now."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def decode(body: bytes, content_type: str | None, charset: str | None) -> tuple[str, str]:
    """Decode the bytes of a page: by BOM, header, meta tag, as UTF-8, and else as windows-1252.

    Returns:
        The text, and Python's name of the charset. Bytes that are not their charset are U+FFFD.
    """
    text, codec, _ = _finish(_decoding(body, charset, html=content_type != "text/plain"))
    return text, codec


# ------------------------------------------------------------------------------------------ text

_NO_TEXT: Final = [
    "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "noframes", "noembed",
    "xmp", "plaintext", "head",
]  # fmt: skip
_BLOCKS: Final = """
    address article aside blockquote body br button caption center dd details dialog dir div dl dt fieldset
    figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup
    option p pre search section select summary table tbody textarea tfoot thead tr ul
"""
# What each tag leaves of itself in the text; the others leave nothing.
_TRACES: Final[dict[str | None, str]] = {
    **{tag: "\0" for name in _BLOCKS.split() for tag in (name, "/" + name)},
    "td": " ",
    "th": " ",
    "img": " ",
}
_MARKUP: Final = re.compile(r"<(?:(/?[A-Za-z][^\s/>\"]*+)[^>\"]*+(?:\"[^\"]*+\"[^>\"]*+)*+>|!--.*?-->)", re.DOTALL)


def _fold(lines: list[str]) -> str:
    """Fold whitespace and drop empty lines."""
    return "\n".join([folded for line in lines if (folded := " ".join(line.split()))])


def _visible_text(tree: LexborHTMLParser) -> str:
    """Give the visible text of a document, a line for each block. The tree loses what is not text.

    lexbor writes its tree back as regular HTML (every element closed, attributes in double quotes, ``<`` in
    text escaped), so one expression takes it apart, faster than a walk over the nodes in Python.
    """
    tree.strip_tags(_NO_TEXT, recursive=True)
    root = tree.root
    html = (root.html or "") if root is not None else ""
    traces: dict[str | None, str] = _TRACES
    parts = _MARKUP.split(html)
    parts[1::2] = [traces.get(tag, "") for tag in parts[1::2]]
    text = _fold("".join(parts).split("\0"))
    if "&" in text:
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&")
    return text


# ------------------------------------------------------------------------------------------ page

_REFRESH: Final = re.compile(
    r"\s*[\d.]+\s*[;,]\s*(?:url\s*=\s*)?(?:\"([^\"]*)|'([^']*)|(.*))", re.IGNORECASE | re.DOTALL
).match
_NOT_AN_AGENT: Final = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_LANG: Final = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*").fullmatch
_ROBOTS_NAMES: Final = frozenset({"robots", ROBOTS_TOKEN.lower()})


def robots_directives(content: str) -> tuple[bool, bool]:
    """Read the value of a robots meta tag or an X-Robots-Tag header for us.

    A header may name the agents that it is for ("otherbot: noindex"); what is for others is not for us.

    Returns:
        (noindex, nofollow)
    """
    noindex = nofollow = False
    ours = True
    for part in content.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = part.strip()
        if colon and name.strip() not in _NOT_AN_AGENT:
            ours = name.strip() in _ROBOTS_NAMES
            directive = rest.strip()
        if ours:
            noindex = noindex or directive in ("noindex", "none")
            nofollow = nofollow or directive in ("nofollow", "none")
    return noindex, nofollow


def _folded(text: str | None, limit: int) -> str | None:
    if not text:
        return None
    return " ".join(text[: 4 * limit].split())[:limit] or None


def parse(
    body: bytes,
    url: str,
    content_type: str | None = "text/html",
    charset: str | None = None,
    *,
    with_text: bool = True,
    hash_texts: bool = False,
    respect_nofollow: bool = True,
    robots_header: str | None = None,
) -> Page:
    """Read a page.

    Args:
        body: Its bytes, decompressed.
        url: Its final, normal url: what its links are relative to.
        content_type: Of the answer; ``text/plain`` is text without links.
        charset: From the answer's Content-Type.
        with_text: Extract the visible text. Without it, `Page.content_hash` is over the bytes.
        hash_texts: Where it is not extracted, the hash is over what stands between the tags, scripts and styles left
            out. It costs a sixth of the text, and the order of attributes or a nonce makes no difference either.
        respect_nofollow: Keep links with ``rel=nofollow``, and all links of a page that says nofollow, apart.
        robots_header: Value of X-Robots-Tag.

    Returns:
        What was read. No bytes make this raise, and none make it take more than some seconds.
    """
    return _finish(
        _reading(
            body, url, content_type, charset,
            with_text=with_text, hash_texts=hash_texts, respect_nofollow=respect_nofollow,
            robots_header=robots_header,
        )
    )  # fmt: skip


async def parse_in_turns(
    body: bytes,
    url: str,
    content_type: str | None = "text/html",
    charset: str | None = None,
    *,
    with_text: bool = True,
    hash_texts: bool = False,
    respect_nofollow: bool = True,
    robots_header: str | None = None,
) -> Page:
    """As `parse`, with a turn for the event loop after each step: none takes long, whatever the bytes are."""
    steps = _reading(
        body, url, content_type, charset,
        with_text=with_text, hash_texts=hash_texts, respect_nofollow=respect_nofollow, robots_header=robots_header,
    )  # fmt: skip
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        await _turn()


def _reading(
    body: bytes,
    url: str,
    content_type: str | None,
    charset: str | None,
    *,
    with_text: bool,
    hash_texts: bool = False,
    respect_nofollow: bool,
    robots_header: str | None,
) -> Generator[None, None, Page]:
    """The steps of `parse`."""
    page = Page(url)
    html = content_type != "text/plain"
    text, page.charset, page.cleaned = yield from _decoding(body, charset, html=html)
    if "\0" in text:
        page.cleaned += text.count("\0")
        text = text.replace("\0", "")
    if robots_header:
        page.noindex, page.nofollow = robots_directives(robots_header)
    hashed = blake2b(digest_size=16)
    if html:
        use = _add_text if with_text else partial(_add_hash, hashed) if hash_texts else None
        yield from _read_html(page, text, use, respect_nofollow=respect_nofollow)
    elif with_text:
        lines = []
        for start in range(0, len(text), DECODED_AT_ONCE):
            # Where a line is cut, it is two lines: only in texts that are larger than this.
            lines.append(_fold(text[start : start + DECODED_AT_ONCE].splitlines()))
            yield
        page.text = "\n".join(filter(None, lines))
    if with_text:
        hashed.update(page.text.encode())
    elif not (html and hash_texts):
        hashed.update(body)
    page.content_hash = hashed.hexdigest()
    return page


def _add_text(page: Page, tree: LexborHTMLParser) -> None:
    """Add the visible text of a piece to its page's."""
    text = _visible_text(tree)
    page.text = f"{page.text}\n{text}" if page.text and text else page.text or text


def _add_hash(hashed: blake2b, _: Page, tree: LexborHTMLParser) -> None:
    """Add a piece's texts to its page's hash. The tree loses what is not text."""
    tree.strip_tags(_NO_TEXT, recursive=True)
    if tree.root is not None:
        hashed.update(tree.root.text().encode("utf-8", "surrogatepass"))


def _read_metadata(page: Page, tree: LexborHTMLParser) -> None:
    """Read title, description, language and the robots meta tags."""
    titles = tree.tags("title")
    if titles:
        # An svg has titles too, but the document's own stands in front of them.
        page.title = _folded(titles[0].text(), _MAX_TITLE)
    root = tree.root
    if root is not None:
        lang = root.attrs.sget("lang").strip()
        page.lang = lang if lang and len(lang) <= 35 and _LANG(lang) else None
    for meta in tree.tags("meta")[:_MAX_METAS]:
        attributes = meta.attributes
        name = (attributes.get("name") or attributes.get("property") or "").lower()
        if name in _ROBOTS_NAMES:
            noindex, nofollow = robots_directives(attributes.get("content") or "")
            page.noindex, page.nofollow = page.noindex or noindex, page.nofollow or nofollow
        elif name == "description" or (name == "og:description" and page.description is None):
            page.description = _folded(attributes.get("content"), _MAX_DESCRIPTION) or page.description


class _Links:
    """The links of a page, as they are found."""

    __slots__ = ("followed", "join", "links", "nofollow", "page", "respect_nofollow", "tried")

    def __init__(self, page: Page, join: Joiner, *, respect_nofollow: bool) -> None:
        self.page = page
        self.join = join
        self.respect_nofollow = respect_nofollow
        self.links: dict[str, None] = {}
        self.nofollow: dict[str, None] = {}
        self.followed = self.nofollow if respect_nofollow and page.nofollow else self.links
        self.tried = 0

    def add(self, target: str, to: dict[str, None]) -> None:
        """Keep a link, unless there are too many, or it is none."""
        self.tried += 1
        if len(to) >= MAX_LINKS or self.tried > MAX_TRIED_LINKS:
            return
        try:
            to[self.join(target)] = None
        except UnsupportedScheme:
            pass
        except InvalidUrl:
            self.page.malformed_links += 1

    def done(self) -> None:
        """Give them to the page."""
        self.page.links = list(self.links)
        self.page.nofollow_links = [url for url in self.nofollow if url not in self.links]


def _read_html(
    page: Page, text: str, use: Callable[[Page, LexborHTMLParser], None] | None, *, respect_nofollow: bool
) -> Generator[None]:
    """Read metadata and links; `use` gets each piece after that, and may change it."""
    found: _Links | None = None
    seconds = 0.0
    # CPU time: a machine that has no time for us does not make a page shorter.
    started = time.thread_time()
    for piece in pieces(text):
        if piece:
            tree = LexborHTMLParser(without_formatting(piece))
            if found is None:
                _read_metadata(page, tree)
                found = _Links(page, _base(page, tree), respect_nofollow=respect_nofollow)
            for _ in _reading_links(found, tree):
                seconds += time.thread_time() - started
                yield
                started = time.thread_time()
            if use is not None:
                use(page, tree)
            del tree
        if len(piece) == len(text):
            break  # it was the only one
        # Only what this page has cost: others may have had long turns.
        seconds += time.thread_time() - started
        if seconds > PAGE_SECONDS:
            page.truncated = True
            break
        yield
        started = time.thread_time()
    if found is not None:
        found.done()


def _reading_links(found: _Links, tree: LexborHTMLParser) -> Generator[None]:
    """Read the links of a piece, some in a step, and the canonical url, which is one of them by its form."""
    for tag, read in _LINK_TAGS:
        nodes = tree.tags(tag)
        if len(nodes) <= LINKS_AT_ONCE:
            if nodes:
                read(found, nodes)
            continue
        for start in range(0, min(len(nodes), MAX_TRIED_LINKS), LINKS_AT_ONCE):
            read(found, nodes[start : start + LINKS_AT_ONCE])
            yield


def _read_anchors(found: _Links, nodes: list[LexborNode]) -> None:
    respect_nofollow = found.respect_nofollow
    for node in nodes:
        attrs = node.attributes
        href = attrs.get("href")
        # Most links of other kinds, and links within the page, without the cost of an exception.
        if href is None or href[:1] == "#" or href[:7] in ("mailto:", "javascr"):
            continue
        nofollow = respect_nofollow and "rel" in attrs and _says_nofollow(attrs["rel"])
        found.add(href, found.nofollow if nofollow else found.followed)


def _read_frames(found: _Links, nodes: list[LexborNode]) -> None:
    for node in nodes:
        src = node.attributes.get("src")
        if src and src != "about:blank":
            found.add(src, found.followed)


def _read_link_elements(found: _Links, nodes: list[LexborNode]) -> None:
    page = found.page
    for node in nodes:
        attrs = node.attributes
        href = attrs.get("href")
        rel = (attrs.get("rel") or "").lower().split()
        if not href or not rel:
            continue
        if "canonical" in rel and page.canonical_url is None:
            try:
                page.canonical_url = found.join(href)
            except UnsupportedScheme:
                pass
            except InvalidUrl:
                page.malformed_links += 1
        elif ("next" in rel or "alternate" in rel) and "stylesheet" not in rel:
            kind = (attrs.get("type") or "text/html").partition(";")[0].strip().lower()
            if kind in ("text/html", "application/xhtml+xml"):
                found.add(href, found.followed)


def _read_refreshes(found: _Links, nodes: list[LexborNode]) -> None:
    for node in nodes:
        attrs = node.attributes
        if (attrs.get("http-equiv") or "").lower() == "refresh":
            match = _REFRESH(attrs.get("content") or "")
            target = (match[1] or match[2] or match[3] or "").strip() if match else ""
            if target:
                found.add(target, found.followed)


_LINK_TAGS: Final = (
    ("a", _read_anchors),
    ("area", _read_anchors),
    ("iframe", _read_frames),
    ("frame", _read_frames),
    ("link", _read_link_elements),
    ("meta", _read_refreshes),
)


def _base(page: Page, tree: LexborHTMLParser) -> Joiner:
    """Give what the links are relative to: the first base element with a usable href, or the page."""
    for node in tree.tags("base")[:1]:
        href = node.attributes.get("href")
        if href:
            try:
                return Joiner(normalise(href, page.url))
            except InvalidUrl:
                break
    return Joiner(page.url)


def _says_nofollow(rel: str | None) -> bool:
    return rel is not None and "nofollow" in rel.lower().split()
