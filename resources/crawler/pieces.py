"""How a page is cut, so that no piece of it can keep an HTML parser busy for long.

The HTML standard's parser walks all open elements for a tag, compares an attribute with all before it, and opens
formatting elements again in each block: its time grows with the square of what is nested, of a tag's attributes, and
of such elements. Measured with lexbor: 10,000 nested elements 0.1 s and 40,000 1.3 s; 8,000 attributes 0.1 s and
32,000 2 s.

What a check in front of the parser reads as a tag, the parser may read as a comment or a script, or the other way. So
the checks count only what the parser cannot do without: a ``<`` for each element, and no ``>`` within a tag but in
quotes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_COMPARED", "MAX_OPEN", "MAX_TAGS", "is_harmless", "pieces", "without_formatting"]

WHOLE_CHARACTERS: Final = 512 * 1024
"""A longer page is cut."""
PIECE_CHARACTERS: Final = 64 * 1024
LEAST_CHARACTERS: Final = 8 * 1024
"""A piece has no fewer, whatever is in it: that is 4,000 attributes, or 2,700 open elements."""
MAX_TAGS: Final = 10_000
MAX_OPEN: Final = 5_000
"""Tags that no end tag stands against."""
_GAP: Final = 1_024
"""A shorter tag may have what attributes it likes."""
MAX_COMPARED: Final = 16_000_000
"""Comparisons of attributes: those of one tag of 4,000, or of sixteen of 1,000."""
_QUOTED: Final = 1_000
_LONG_VALUES: Final = re.compile(r"=[\t\n\f\r ]*(?:\"[^\"]{2000,}\"|'[^']{2000,}')")
# An attribute ends with one of these, or with a quote.
_SEPARATORS: Final = re.compile(r"[\t\n\f\r /\"']+").findall
# Where attributes can begin: a tag; or, with a ">" in the value of one before, the end of that value.
_TAG: Final = re.compile(r"</?[A-Za-z]|[\"']").search
# Where a page is cut with the least harm.
_CUTS: Final = re.compile(r"<(?:div|p|li|tr|dt|dd|section|article|table|ul|h[1-6])\b", re.IGNORECASE)
_SPANS_AT_ONCE: Final = 1_000


def is_harmless(text: str) -> bool:
    """Say whether a text can be parsed in one go: at most some tenths of a second, whatever is in it."""
    tags = text.count("<")
    if tags > MAX_OPEN and (tags > MAX_TAGS or tags - text.count("</") > MAX_OPEN):
        return False
    # Attributes with a ">" in quotes are short of it elsewhere, or pay with a "<".
    if len(text) > PIECE_CHARACTERS // 2 and text.count(">") > tags + _QUOTED:
        return False
    return not _has_many_attributes(text)


def _has_many_attributes(text: str) -> bool:
    """Look for a tag with too many attributes, where so long no ``>`` comes."""
    position, length, compared = 0, len(text), 0
    # The fewer tags there can be, the longer each may be.
    gap = _GAP if length > PIECE_CHARACTERS // 2 else 4 * _GAP
    find_last = text.rfind
    while position + gap < length:
        last = find_last(">", position, position + gap)
        if last >= 0:
            position = last + 1
            continue
        end = text.find(">", position + gap)
        end = length if end < 0 else end
        tag = _TAG(text, position, end)
        if tag is not None and end - tag.start() > gap:
            compared += len(_SEPARATORS(text, tag.start(), end)) ** 2
            if compared > MAX_COMPARED:
                return True
        position = end + 1
    return False


def pieces(text: str) -> Iterator[str]:
    """Cut a page into what is parsed in one go each; nearly always it is one piece, the whole page.

    Yields:
        The pieces; and an empty text now and then, where the work between two of them takes longer.
    """
    if len(text) <= WHOLE_CHARACTERS and is_harmless(text):
        yield text
        return
    for kind in _HIDDEN:
        kept: list[str] = []
        for part in _without(text, *kind):
            if part is None:
                yield ""
            else:
                kept.append(part)
        text = " ".join(kept)
    # Data for scripts in attributes, which look like many attributes.
    for tried in (text, _LONG_VALUES.sub("=''", text)):
        if len(tried) <= WHOLE_CHARACTERS and is_harmless(tried):
            yield tried
            return
    yield from _cut(tried)


def _cut(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        size = PIECE_CHARACTERS
        while size > LEAST_CHARACTERS and not is_harmless(text[start : start + size]):
            size //= 2
        end = start + size
        if end < len(text):
            # Not in the middle of an element, if one begins in the last quarter of the piece.
            cuts = [match.start() for match in _CUTS.finditer(text, start + 3 * size // 4, end)]
            # Nor in the middle of a tag, which would be none on either side.
            end = cuts[-1] if cuts else max(text.rfind("<", start + 3 * size // 4, end), 0) or end
        piece = text[start:end]
        # Outside of a table, rows are no elements, and their cells would run together.
        yield "<table>" + piece if piece[:3].lower() == "<tr" else piece
        start = end


# A piece must not begin in the middle of one of these.
_HIDDEN: Final = (("<script", "</script"), ("<style", "</style"), ("<!--", "-->"))


def _without(text: str, opening: str, closing: str) -> Iterator[str | None]:
    """Leave out scripts, styles or comments, roughly; None now and then."""
    lower = text.lower() if text.isascii() else text
    position = spans = 0
    while (start := lower.find(opening, position)) >= 0:
        end = lower.find(closing, start)
        if end < 0:
            break
        yield text[position:start]
        position = end + 3 if closing == "-->" else lower.find(">", end) + 1 or len(text)
        spans += 1
        if spans % _SPANS_AT_ONCE == 0:
            yield None
    yield text[position:]


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
