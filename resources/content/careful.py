"""Which blocks of a page are its main content: the careful way, as trafilatura says.

It costs five times the fast way. Its choice is taken over block by block, so that structure that it does not keep
(code, tables, lists of definitions) is rendered as for the fast way.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

from lxml.etree import iterwalk

if TYPE_CHECKING:
    from resources.content.dom import Block, Document

__all__ = ["CarefulFailed", "careful_blocks"]

_NOT_LETTERS: Final = re.compile(r"[\W_]+")
_INLINE: Final = frozenset({"hi", "ref", "del", "span", "a", "b", "i", "em", "strong"})
_SURE: Final = 24
"""Letters from which a text that occurs anywhere in what was chosen was chosen itself."""
MAX_CHARACTERS: Final = 1_000_000


class CarefulFailed(Exception):
    """The careful extractor gave nothing, or an error."""


def _letters(text: str) -> str:
    return _NOT_LETTERS.sub("", text.lower())


def careful_lines(html: str) -> list[str]:
    """Give the main text as trafilatura chooses it, block by block.

    Raises:
        CarefulFailed: It found none, or failed.
    """
    if len(html) > MAX_CHARACTERS:
        raise CarefulFailed("the page is too large for it")
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    try:
        from trafilatura import bare_extraction  # noqa: PLC0415 - loads for 0.3 s

        found = bare_extraction(html, fast=True, include_comments=False, include_tables=True, with_metadata=False)
    except Exception as error:
        raise CarefulFailed(f"{type(error).__name__}: {error}"[:200]) from error
    body = getattr(found, "body", None)
    lines = [] if body is None else _lines(body)
    if not lines:
        raise CarefulFailed("it found no main content")
    return lines


def _lines(body: Any) -> list[str]:
    """Give the texts of its blocks."""
    parts: list[str] = []
    for event, element in iterwalk(body, events=("start", "end")):
        inline = element.tag in _INLINE
        if event == "start":
            if not inline:
                parts.append("\n")
            parts.append(element.text or "")
        else:
            if not inline:
                parts.append("\n")
            parts.append(element.tail or "")
    return [line for line in "".join(parts).split("\n") if line and not line.isspace()]


def careful_blocks(document: Document, blocks: list[Block]) -> list[bool]:
    """Tell of each block whether the careful extractor chose it.

    Raises:
        CarefulFailed: It found nothing, or failed.
    """
    return matching_blocks(blocks, careful_lines(document.html))


def matching_blocks(blocks: list[Block], texts: list[str]) -> list[bool]:
    """Tell of each block whether it stands in these texts."""
    lines: dict[str, int] = {}
    for line in texts:
        letters = _letters(line)
        if letters:
            lines[letters] = lines.get(letters, 0) + 1
    everything = "\0".join(lines)
    long_lines = [line for line in lines if len(line) >= _SURE]
    chosen: list[bool] = []
    for block in blocks:
        letters = _letters(block.text)
        if lines.get(letters, 0) > 0:
            lines[letters] -= 1
            chosen.append(True)
        elif len(letters) >= _SURE and letters not in lines:
            chosen.append(letters in everything or 2 * sum(len(n) for n in long_lines if n in letters) > len(letters))
        else:
            chosen.append(False)
    return chosen
