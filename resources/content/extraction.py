"""What a page says, without its furniture: `extract` for one page, `survey` for what a site repeats.

No bytes make these raise. A page that the better ways cannot read is given as all of its visible text, and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resources.content.boilerplate import block_hash, repeated_blocks
from resources.content.dom import blocks_of, read_document
from resources.content.main_content import main_blocks
from resources.content.metadata import Metadata, read_metadata
from resources.content.rendering import render_markdown, render_text
from resources.crawler.page import clean_text, decode

if TYPE_CHECKING:
    from datetime import date, datetime

    from selectolax.lexbor import LexborHTMLParser

    from resources.content.dom import Block, Document, Element

__all__ = ["Extracted", "extract", "survey"]

_WORDS: Final = re.compile(r"\w+").findall


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


class _Read:
    """A page that was decoded and taken apart."""

    __slots__ = ("base", "cleaned", "document", "metadata")

    def __init__(self, text: str, url: str, cleaned: int) -> None:
        self.metadata = Metadata()
        self.base: str | None = None
        self.cleaned = cleaned

        def on_first(tree: LexborHTMLParser) -> None:
            self.metadata = read_metadata(tree, url)

        self.document: Document = read_document(text, on_first)


def _decoded(html: str | bytes, content_type: str | None, charset: str | None) -> tuple[str, int]:
    """Give a page's text without NUL and half surrogate pairs, and how many characters were lost."""
    if isinstance(html, bytes):
        text, _ = decode(html, content_type, charset)
        lost = text.count("\ufffd") - html.count(b"\xef\xbf\xbd")
    else:
        text, lost = html, 0
    text, cleaned = clean_text(text)
    return text, cleaned + max(0, lost)


def survey(
    html: str | bytes, url: str, *, content_type: str | None = None, charset: str | None = None
) -> frozenset[int]:
    """Give the page's blocks of text as signed 64-bit numbers, for `SiteBoilerplate.learn`."""
    if content_type == "text/plain":
        return frozenset()
    text, _ = _decoded(html, content_type, charset)
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
) -> Extracted:
    """Read a page: what it says of itself, and its main content.

    Args:
        html: The page. Bytes are decoded as a browser does.
        url: Its final url, what its links are relative to.
        content_type: Of the answer; ``text/plain`` is kept as it is.
        charset: From the answer's Content-Type.
        boilerplate: Blocks that its site repeats, of `SiteBoilerplate.known`.
    """
    text, cleaned = _decoded(html, content_type, charset)
    if content_type == "text/plain":
        return _plain(text, cleaned)
    read = _Read(text, url, cleaned)
    root = read.document.root
    blocks = blocks_of(root)
    if boilerplate:
        gone = repeated_blocks(blocks, boilerplate, {}, lambda element: True)
        blocks = [block for index, block in enumerate(blocks) if index not in gone]
    chosen, method = main_blocks(read.document, blocks, read.metadata)
    if not chosen:
        return _extracted(read, url, blocks, "fallback", "no main content was found")
    return _extracted(read, url, chosen, method, None)


def _plain(text: str, cleaned: int) -> Extracted:
    lines = [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]
    return Extracted(
        text="\n".join(lines),
        markdown=text.strip(),
        word_count=len(_WORDS(text)),
        method="plain",
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
        word_count=len(_WORDS(text)),
        method=method,
        fallback_reason=reason,
        cleaned=read.cleaned,
    )
