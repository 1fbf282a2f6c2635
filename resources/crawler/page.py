"""What a page says: its links, its metadata, its visible text.

What belongs here: reading the bytes of one page, in the fetch loop, in a third of a millisecond. What does
not: the main content (`resources.content`, in a process of its own), and whether a link is wanted (`urls`).

The bytes are hostile: nothing here recurses, and what makes an HTML parser slow (nesting, many attributes on
one tag, millions of tags) is cut off in front of it.
"""

from __future__ import annotations

import codecs
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from selectolax.lexbor import LexborHTMLParser

from resources.crawler.client import ROBOTS_TOKEN
from resources.crawler.urls import InvalidUrl, Joiner, UnsupportedScheme, normalise

__all__ = [
    "MAX_LINKS",
    "Page",
    "clean_text",
    "decode",
    "parse",
    "pieces",
    "robots_directives",
    "without_formatting",
]

MAX_LINKS: Final = 10_000
"""Links of one page that are followed; real sitemap pages have a few thousand."""
PIECE_CHARACTERS: Final = 64 * 1024
PIECE_TAGS: Final = 10_000
WHOLE_CHARACTERS: Final = 512 * 1024
MAX_ATTRIBUTES: Final = 512
"""When a page is parsed in one go: up to the first size always; up to the third, if it has at most so many
``<`` and no tag has more attributes. Otherwise in pieces of the first two sizes.

The HTML standard's parser walks all open elements for a tag, and compares an attribute with all before it, so
its time grows with the square of both. Measured with lexbor: 10,000 nested divs 0.08 s, 40,000 1.3 s, 40,000
attributes 2 s, so 16 MB of either are hours. A piece costs half a second at its most hostile. No check in
front of the parser can be sure of what the parser will see (scripts, comments, foreign content), so the bound
does not depend on one."""
PAGE_SECONDS: Final = 2.0
"""After this time no further piece is begun. An honest page of 16 MB takes about 1 s."""
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
    """BLAKE2b-128, hexadecimal: of the visible text, or of the bytes if no text was asked for."""
    cleaned: int = 0
    """Characters replaced or removed: NUL, half surrogate pairs, bytes that are not their charset."""
    truncated: bool = False
    """The page was too large, too deep or too odd, and only its beginning was read."""
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


def _decode(body: bytes, charset: str | None, *, html: bool) -> tuple[str, str, int]:
    """Decode a body: (text, codec, characters that had to be replaced)."""
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
    text = body.decode(codec, "replace")
    return text, codec, text.count("\ufffd")


def decode(body: bytes, content_type: str | None, charset: str | None) -> tuple[str, str]:
    """Decode the bytes of a page: by BOM, header, meta tag, as UTF-8, and else as windows-1252.

    Returns:
        The text, and Python's name of the charset. Bytes that are not their charset are U+FFFD.
    """
    text, codec, _ = _decode(body, charset, html=content_type != "text/plain")
    return text, codec


# ------------------------------------------------------------------------------------------ bounds

# One tag, as the HTML tokenizer reads it, or its beginning where it does not end within so many attributes.
# Possessive, and each match goes on where the last one ended, so a scan is linear whatever the page holds.
_SPACE: Final = r"\t\n\f\r "
_TAG_ENDS: Final = re.compile(
    rf"</?[A-Za-z][^{_SPACE}/>]*+"
    rf"(?:[{_SPACE}/]++|[^{_SPACE}/>][^{_SPACE}/>=]*+"
    rf"(?:[{_SPACE}]*+=[{_SPACE}]*+(?:\"[^\"]*+\"|'[^']*+'|[^{_SPACE}>\"'][^{_SPACE}>]*+)?+)?+)"
    rf"{{0,{2 * MAX_ATTRIBUTES}}}+(>?)"
).findall
# Where a page is cut with the least harm.
_CUTS: Final = re.compile(r"<(?:div|p|li|tr|dt|dd|section|article|table|ul|h[1-6])\b", re.IGNORECASE)


def _is_harmless(text: str) -> bool:
    if len(text) <= PIECE_CHARACTERS:
        return True
    return text.count("<") <= PIECE_TAGS and len(text) <= WHOLE_CHARACTERS and "" not in _TAG_ENDS(text)


def pieces(text: str) -> list[str]:
    """Cut a page into what is parsed in one go each; nearly always it is one piece, the whole page."""
    if _is_harmless(text):
        return [text]
    text = _without_scripts(text)
    if _is_harmless(text):
        return [text]
    cut: list[str] = []
    start = 0
    while start < len(text):
        end = start + PIECE_CHARACTERS
        if text.count("<", start, end) > PIECE_TAGS:
            end = start
            for _ in range(PIECE_TAGS):
                end = text.index("<", end + 1)
        if end < len(text):
            # Not in the middle of an element, if one begins in the last quarter of the piece.
            cuts = [match.start() for match in _CUTS.finditer(text, start + 3 * (end - start) // 4, end)]
            end = cuts[-1] if cuts else end
        piece = text[start:end]
        # Outside of a table, rows are no elements, and their cells would run together.
        cut.append("<table>" + piece if piece[:3].lower() == "<tr" else piece)
        start = end
    return cut


# Formatting elements that are open when a block ends are opened again in the next one (HTML standard,
# "reconstruct the active formatting elements"), so n of them and n blocks are n² elements: 64 KiB of
# "<b x=1><p>" with counted attributes took 9 GB. "a" and "nobr" are not here: only one of each is ever open.
_FORMATTING: Final = re.compile(
    r"(?<=<)(/?)(?:b|big|code|em|font|i|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE
)
_FEW_TAGS: Final = 1_500
_MAX_REOPENED: Final = 2_000_000


def without_formatting(text: str) -> str:
    """Make spans of the formatting elements where they could multiply; its text and links stay the same.

    The bound is counted on the text alone, so nothing in the page can get around it.
    """
    tags = text.count("<")
    if tags <= _FEW_TAGS:
        return text
    formatting = len(_FORMATTING.findall(text))
    if formatting * (tags - formatting // 2) <= _MAX_REOPENED:
        return text
    return _FORMATTING.sub(r"\1span", text)


def _without_scripts(text: str) -> str:
    """Leave out scripts, styles and comments, roughly: a piece must not begin in the middle of one."""
    kept: list[str] = []
    position = 0
    lower = text.lower() if text.isascii() else text
    for opening, closing in (("<script", "</script"), ("<style", "</style"), ("<!--", "-->")):
        kept, position = [], 0
        while (start := lower.find(opening, position)) >= 0:
            end = lower.find(closing, start)
            if end < 0:
                break
            kept.append(text[position:start])
            position = end + 3 if closing == "-->" else lower.find(">", end) + 1 or len(text)
        kept.append(text[position:])
        text = " ".join(kept)
        lower = text.lower() if text.isascii() else text
    return text


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
        respect_nofollow: Keep links with ``rel=nofollow``, and all links of a page that says nofollow, apart.
        robots_header: Value of X-Robots-Tag.

    Returns:
        What was read. No bytes make this raise, and none make it take more than some seconds.
    """
    page = Page(url)
    html = content_type != "text/plain"
    text, page.charset, page.cleaned = _decode(body, charset, html=html)
    if "\0" in text:
        page.cleaned += text.count("\0")
        text = text.replace("\0", "")
    if robots_header:
        page.noindex, page.nofollow = robots_directives(robots_header)
    if html:
        _read_html(page, text, with_text=with_text, respect_nofollow=respect_nofollow)
    elif with_text:
        page.text = _fold(text.splitlines())
    hashed = page.text.encode() if with_text else body
    page.content_hash = blake2b(hashed, digest_size=16).hexdigest()
    return page


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


def _read_html(page: Page, text: str, *, with_text: bool, respect_nofollow: bool) -> None:
    links: dict[str, None] = {}
    nofollow: dict[str, None] = {}
    texts: list[str] = []
    join: Joiner | None = None
    deadline = time.monotonic() + PAGE_SECONDS
    for piece in pieces(text):
        tree = LexborHTMLParser(without_formatting(piece))
        if join is None:
            _read_metadata(page, tree)
            join = _base(page, tree)
        elif time.monotonic() > deadline:
            page.truncated = True
            break
        _read_links(page, tree, join, links, nofollow, respect_nofollow=respect_nofollow)
        if with_text:
            texts.append(_visible_text(tree))
    page.links = list(links)
    page.nofollow_links = [url for url in nofollow if url not in links]
    page.text = texts[0] if len(texts) == 1 else "\n".join(filter(None, texts))


def _read_links(  # noqa: PLR0912 - five kinds of links
    page: Page,
    tree: LexborHTMLParser,
    join: Joiner,
    links: dict[str, None],
    nofollow: dict[str, None],
    *,
    respect_nofollow: bool,
) -> None:
    """Read the links, and the canonical url, which is one of them by its form."""
    followed = nofollow if respect_nofollow and page.nofollow else links

    def add(target: str, to: dict[str, None]) -> None:
        if len(to) >= MAX_LINKS:
            return
        try:
            to[join(target)] = None
        except UnsupportedScheme:
            pass
        except InvalidUrl:
            page.malformed_links += 1

    for tag in ("a", "area"):
        for node in tree.tags(tag):
            attrs = node.attributes
            href = attrs.get("href")
            # Most links of other kinds, and links within the page, without the cost of an exception.
            if href is None or href[:1] == "#" or href[:7] in ("mailto:", "javascr"):
                continue
            add(href, nofollow if respect_nofollow and "rel" in attrs and _says_nofollow(attrs["rel"]) else followed)
    for tag in ("iframe", "frame"):
        for node in tree.tags(tag)[:MAX_LINKS]:
            src = node.attributes.get("src")
            if src and src != "about:blank":
                add(src, followed)
    for node in tree.tags("link")[:MAX_LINKS]:
        attrs = node.attributes
        href = attrs.get("href")
        rel = (attrs.get("rel") or "").lower().split()
        if not href or not rel:
            continue
        if "canonical" in rel and page.canonical_url is None:
            try:
                page.canonical_url = join(href)
            except InvalidUrl:
                page.malformed_links += 1
        elif ("next" in rel or "alternate" in rel) and "stylesheet" not in rel:
            kind = (attrs.get("type") or "text/html").partition(";")[0].strip().lower()
            if kind in ("text/html", "application/xhtml+xml"):
                add(href, followed)
    for node in tree.tags("meta")[:_MAX_METAS]:
        attrs = node.attributes
        if (attrs.get("http-equiv") or "").lower() == "refresh":
            match = _REFRESH(attrs.get("content") or "")
            target = (match[1] or match[2] or match[3] or "").strip() if match else ""
            if target:
                add(target, followed)


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
