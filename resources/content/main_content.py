"""Which blocks of a page are its main content: the fast way, by density of text and by what elements are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resources.content.dom import HEADINGS
from resources.content.regions import furniture_of

if TYPE_CHECKING:
    from resources.content.dom import Block, Document, Element
    from resources.content.metadata import Metadata

__all__ = ["main_blocks"]

_LONG: Final = 80


def in_furniture(blocks: list[Block], furniture: set[Element]) -> list[bool]:
    """Tell of each block whether it stands in furniture."""
    known: dict[Element, bool] = {}

    def inside(element: Element | None) -> bool:
        path: list[Element] = []
        found = False
        while element is not None:
            if element in known:
                found = known[element]
                break
            path.append(element)
            if element in furniture:
                found = True
                break
            element = element.parent
        for passed in path:
            known[passed] = found
        return found

    return [inside(block.container) for block in blocks]


def main_blocks(document: Document, blocks: list[Block], metadata: Metadata) -> tuple[list[Block], str]:
    """Choose the blocks of the main content, and say how."""
    furniture = furniture_of(document.root)
    inside = in_furniture(blocks, furniture)
    candidates = [block for block, gone in zip(blocks, inside, strict=True) if not gone]
    return [b for b in candidates if b.linked < 0.5 * b.size or b.container.tag in HEADINGS], "fast"
