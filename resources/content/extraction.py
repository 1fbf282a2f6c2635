"""What a page says, without its furniture: `extract` for one page, `survey` for what a site repeats.

No bytes make these raise. A page that the better ways cannot read is given as all of its visible text, and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Final, Literal

from resources.content.boilerplate import block_hash, repeated_blocks
from resources.content.careful import CarefulFailed, careful_blocks
from resources.content.declared import missing_facts
from resources.content.dom import (
    as_without_scripts,
    block_of,
    blocks_of,
    html_of_xhtml,
    read_document,
    without_scripts,
)
from resources.content.main_content import choose_blocks
from resources.content.metadata import Metadata, read_metadata
from resources.content.rendering import render_markdown, render_text
from resources.crawler.page import clean_text, decode

if TYPE_CHECKING:
    from datetime import date

    from selectolax.lexbor import LexborHTMLParser

    from resources.content.dom import Block, Document, Element

__all__ = ["Extracted", "extract", "survey"]

Mode = Literal["mixture", "fast", "careful"]
_TAG: Final = re.compile(r"<[^<>]*+>")
MAX_BLOCKS: Final = 20_000
"""Blocks of one page that are looked at; the rest is cut off."""
_XHTML: Final = "application/xhtml+xml"
_LITTLE: Final = 200
"""Characters of a page up to which it is looked at what it says to a browser without scripts."""
UNSURE: Final = 0.5
"""Share of an article page's text up to which the fast choice is not trusted."""
MIN_CAREFUL: Final = 0.3
"""Share of the fast choice that the careful one must have to be believed."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What one page says."""

    title: str | None = None
    description: str | None = None
    canonical_url: str | None = None
    """Normal url."""
    language: str | None = None
    """As the page says it: ``en``, ``de-AT``."""
    published: date | datetime | None = None
    text: str = ""
    """Main content as plain text, a line for each block; cells of a table's row are separated by tabs."""
    markdown: str = ""
    """The same with headings, lists, tables, code and links (absolute)."""
    word_count: int = 0
    method: str = "fallback"
    """Who chose the main content: ``fast``, ``careful``, ``plain`` (text/plain), ``fallback`` (all visible text)."""
    fallback_reason: str | None = None
    """Why it is the fallback; None for the other methods."""
    cleaned: int = 0
    """Characters that were removed or replaced, since they cannot be stored or were not of their charset."""
    truncated: bool = False
    """It took too much work to read it, and only its beginning was read."""

    @property
    def published_at(self) -> datetime | None:
        """`published` as a moment: midnight UTC where the page gives a day alone."""
        if self.published is None or isinstance(self.published, datetime):
            return self.published
        return datetime.combine(self.published, time(), UTC)


class _Read:
    """A page that was decoded and taken apart."""

    __slots__ = ("base", "cleaned", "document", "metadata")

    def __init__(self, text: str, url: str, cleaned: int) -> None:
        self.metadata = Metadata()
        self.base: str | None = None
        self.cleaned = cleaned

        def on_first(tree: LexborHTMLParser) -> None:
            self.metadata = read_metadata(tree, text, url)

        self.document: Document = read_document(text, on_first)


def _decoded(html: str | bytes, content_type: str | None, charset: str | None) -> tuple[str, int]:
    """Give a page's text without NUL and half surrogate pairs, and how many characters were lost."""
    if isinstance(html, bytes):
        text, _ = decode(html, content_type, charset)
        lost = max(0, text.count("\ufffd") - html.count(b"\xef\xbf\xbd")) if "\ufffd" in text else 0
        if "\0" in text:  # half surrogate pairs cannot come out of a decoder
            lost += text.count("\0")
            text = text.replace("\0", "")
        return text, lost
    return clean_text(html)


def survey(
    html: str | bytes, url: str, *, content_type: str | None = None, charset: str | None = None
) -> frozenset[int]:
    """Give the page's blocks of text as signed 64-bit numbers, for `SiteBoilerplate.learn`."""
    if content_type == "text/plain":
        return frozenset()
    text, _ = _decoded(html, content_type, charset)
    if content_type == _XHTML:
        text = html_of_xhtml(text)
    places: dict[Element, str] = {}
    found = (block_hash(block, places) for block in blocks_of(read_document(text).root))
    return frozenset(number for number in found if number is not None)


def extract(
    html: str | bytes,
    url: str,
    *,
    content_type: str | None = None,
    charset: str | None = None,
    boilerplate: frozenset[int] = frozenset(),
    mode: Mode = "mixture",
) -> Extracted:
    """Read a page: what it says of itself, and its main content.

    Args:
        html: The page. Bytes are decoded as a browser does.
        url: Its final url, what its links are relative to.
        content_type: Of the answer; ``text/plain`` is kept as it is.
        charset: From the answer's Content-Type.
        boilerplate: Blocks that its site repeats, of `SiteBoilerplate.known`.
        mode: The fast extractor, the careful one, or the careful one where the fast one is unsure.
    """
    text, cleaned = _decoded(html, content_type, charset)
    if content_type == "text/plain":
        return _plain(text, cleaned)
    if content_type == _XHTML:
        text = html_of_xhtml(text)
    try:
        read = _Read(text, url, cleaned)
        every = blocks_of(read.document.root)[:MAX_BLOCKS]
        if sum(block.size for block in every) < _LITTLE and (other := as_without_scripts(text)) is not None:
            read, every = _fuller(read, every, other, url)
    except Exception as error:  # noqa: BLE001 - whatever a hostile page does to the parser
        return _crude(text, cleaned, _named(error))
    try:
        chosen, method, reason = _main_content(read, every, boilerplate, mode)
        if read.metadata.facts:
            missing = missing_facts(read.metadata.facts, render_text(chosen))
            chosen = [*chosen, *(block_of(line, read.document.root) for line in missing)]
        return _extracted(read, url, chosen, method, reason)
    except Exception as error:  # noqa: BLE001 - a page is not lost because its main content cannot be told
        return _plain(render_text(every), cleaned, read.metadata, _named(error))


def _fuller(read: _Read, every: list[Block], other: str, url: str) -> tuple[_Read, list[Block]]:
    """Give a page as it is without scripts and frames, if it says much more then and does not only ask for them."""
    second = _Read(other, url, read.cleaned)
    blocks = blocks_of(second.document.root)[:MAX_BLOCKS]
    said = " ".join(block.text for block in blocks).casefold()
    if "javascript" in said or sum(b.size for b in blocks) < 1.5 * sum(b.size for b in every):
        return read, every
    return second, blocks


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _crude(text: str, cleaned: int, reason: str) -> Extracted:
    """Give a page's text without a parser: whatever stands between tags."""
    return _plain(_TAG.sub("\n", without_scripts(text)), cleaned, Metadata(), reason)


def _main_content(
    read: _Read, every: list[Block], boilerplate: frozenset[int], mode: Mode
) -> tuple[list[Block], str, str | None]:
    """Give the main content's blocks, who chose them, and why it is the fallback."""
    if not every:
        return [], "fast", None
    choice = choose_blocks(read.document, every, read.metadata, boilerplate)
    if mode == "careful" or (mode == "mixture" and choice.share < UNSURE):
        try:
            flags = careful_blocks(read.document, every)
        except CarefulFailed:
            flags = []  # the fast choice stands
        careful = [block for block, flag in zip(every, flags, strict=False) if flag]
        if boilerplate:
            gone = repeated_blocks(careful, boilerplate, {})
            careful = [block for index, block in enumerate(careful) if index not in gone]
        if careful and sum(block.size for block in careful) >= MIN_CAREFUL * sum(
            block.size for block in choice.blocks
        ):
            return careful, "careful", None
    if not choice.blocks:
        return every, "fallback", "no main content was found"
    return choice.blocks, "fast", None


def _plain(
    text: str, cleaned: int, metadata: Metadata | None = None, fallback_reason: str | None = None
) -> Extracted:
    """Give text without structure: of text/plain, or of a page that could not be read better."""
    lines = [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]
    metadata = metadata or Metadata()
    folded = "\n".join(lines)
    return Extracted(
        title=metadata.title,
        description=metadata.description,
        canonical_url=metadata.canonical_url,
        language=metadata.language,
        published=metadata.published,
        text=folded,
        markdown=text.strip() if fallback_reason is None else "\n\n".join(lines),
        word_count=len(folded.split()),
        method="plain" if fallback_reason is None else "fallback",
        fallback_reason=fallback_reason,
        cleaned=cleaned,
    )


def _extracted(read: _Read, url: str, blocks: list[Block], method: str, reason: str | None) -> Extracted:
    metadata = read.metadata
    text = render_text(blocks)
    return Extracted(
        title=metadata.title,
        description=metadata.description,
        canonical_url=metadata.canonical_url,
        language=metadata.language,
        published=metadata.published,
        text=text,
        markdown=render_markdown(blocks, url, metadata.base),
        word_count=len(text.split()),
        method=method,
        fallback_reason=reason,
        cleaned=read.cleaned,
        truncated=read.document.truncated,
    )
