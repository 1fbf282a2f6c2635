"""Which blocks of text a site repeats: learnt over its pages, left out of each.

A block is known by what it says and where it stands (the tags and first classes around it), as one number. So the
telephone number in every page's header is no reason to lose it from the contact page's text.
"""

from __future__ import annotations

import math
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from resources.content.dom import BLOCK_TAGS, HEADINGS
from resources.content.rendering import data_table_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resources.content.dom import Block, Element

__all__ = ["SiteBoilerplate", "block_hash", "repeated_blocks"]

MIN_PAGES: Final = 5
"""Pages that a site must have shown before anything of it counts as repeated."""
MIN_COUNT: Final = 3
MIN_SHARE: Final = 0.25
"""Share of the pages that a block must stand on."""
MAX_BLOCKS: Final = 20_000
MAX_KNOWN: Final = 5_000
_PLACES: Final = 5
_CLASSES: Final = 2
_NOT_LETTERS: Final = re.compile(r"[\W_]+")
_NAME: Final = re.compile(r"[A-Za-z_-]+").match


def _place(container: Element, places: dict[Element, str]) -> str:
    """Say where a block stands: tags of the blocks around it, and the first class of the nearest."""
    known = places.get(container)
    if known is not None:
        return known
    parts: list[str] = []
    classes = 0
    for element in container.ancestors():
        if element.tag not in BLOCK_TAGS:
            continue
        name = ""
        # A body's first class often names the page.
        if (
            classes < _CLASSES
            and element.raw
            and element.tag != "body"
            and (match := _NAME(element.get("class").strip()))
        ):
            name = match[0]
            classes += 1
        parts.append(f"{element.tag}.{name}")
        if len(parts) == _PLACES:
            break
    place = places[container] = ">".join(parts)
    return place


def block_hash(block: Block, places: dict[Element, str]) -> int | None:
    """Give a block's signed 64-bit number; None if it has no letters or digits.

    Args:
        block: The block.
        places: Of containers that were already seen; it is added to.
    """
    text = _NOT_LETTERS.sub("", block.text.lower())
    if not text:
        return None
    key = f"{_place(block.container, places)}\0{text}".encode("utf-8", "replace")
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big", signed=True)


class SiteBoilerplate:
    """Counts on how many pages of a site each block stands. Bounded: 20,000 blocks, the rarest go first."""

    __slots__ = ("_counts", "_known", "pages")

    def __init__(self) -> None:
        self.pages = 0
        """Pages that were learnt from."""
        self._counts: dict[int, int] = {}
        self._known: tuple[tuple[int, float], frozenset[int]] = ((0, 0.0), frozenset())

    def learn(self, blocks: frozenset[int]) -> None:
        """Count the blocks of one page, as `survey` gave them."""
        self.pages += 1
        counts = self._counts
        for block in blocks:
            counts[block] = counts.get(block, 0) + 1
        if len(counts) > MAX_BLOCKS:
            self._forget(MAX_BLOCKS // 2)

    def _forget(self, kept: int) -> None:
        """Keep the most frequent; among equals those that came last, since they may still grow."""
        ranked = sorted(enumerate(self._counts.items()), key=lambda item: (-item[1][1], -item[0]))[:kept]
        self._counts = dict(item for _, item in reversed(ranked))

    def known(self, share: float = MIN_SHARE) -> frozenset[int]:
        """Give the blocks that stand on at least this share of the pages and on three; none before five pages."""
        if self.pages < MIN_PAGES:
            return frozenset()
        at, blocks = self._known
        if at != (self.pages, share):
            enough = max(MIN_COUNT, math.ceil(self.pages * share))
            found = sorted(((c, b) for b, c in self._counts.items() if c >= enough), reverse=True)[:MAX_KNOWN]
            blocks = frozenset(b for _, b in found)
            self._known = ((self.pages, share), blocks)
        return blocks

    def to_json(self) -> dict[str, Any]:
        """Give what is worth keeping for the site's next crawl: at most 5,000 blocks seen at least twice."""
        worth = sorted(((c, b) for b, c in self._counts.items() if c > 1), reverse=True)[:MAX_KNOWN]
        return {"pages": self.pages, "blocks": [[block, count] for count, block in worth]}

    @classmethod
    def from_json(cls, value: object) -> SiteBoilerplate:
        """Read what `to_json` gave. What is no such thing is read as a site of which nothing is known."""
        site = cls()
        if not isinstance(value, dict):
            return site
        pages, blocks = value.get("pages"), value.get("blocks")
        if not isinstance(pages, int) or isinstance(pages, bool) or pages < 0 or not isinstance(blocks, list):
            return site
        site.pages = pages
        for pair in blocks[:MAX_KNOWN]:
            match pair:
                case [int(block), int(count)] if -(2**63) <= block < 2**63 and 0 < count <= pages:
                    site._counts[block] = count
                case _:
                    pass
        return site


# ------------------------------------------------------------------------------------------ on one page

_ISOLATED: Final = 40
"""Characters up to which a repeated block alone among new ones stays: a label, "In stock"."""


def repeated_blocks(blocks: list[Block], known: frozenset[int], places: dict[Element, str]) -> set[int]:
    """Give the indices of the blocks of one page that are the site's, not the page's.

    A short one that stands alone among new ones stays, since it belongs to them: a label, "In stock", a column's
    name. So do the cells of a table and the terms of a list of definitions, unless all of it is known; and a
    heading, unless what follows it is.

    Args:
        blocks: All blocks of the page, in order.
        known: The site's.
        places: See `block_hash`.
    """
    repeated = [known_hash is not None and known_hash in known for known_hash in _hashes(blocks, places)]
    units: dict[Element, list[int]] = {}
    tables: dict[Element, bool] = {}
    for index, block in enumerate(blocks):
        unit = data_table_of(block, tables) or block.around.definitions
        if unit is not None:
            units.setdefault(unit, []).append(index)
    for members in units.values():
        if not all(repeated[index] for index in members):
            for index in members:
                repeated[index] = False
    gone: set[int] = set()
    for start, end in _stretches(repeated):
        size = sum(blocks[index].size for index in range(start, end))
        linked = sum(blocks[index].linked for index in range(start, end))
        between = start > 0 and end < len(blocks)
        if between and size <= _ISOLATED and linked < 0.5 * size and end - start <= 2:
            continue
        last = end
        # The heading of new text, at the end of what is repeated.
        while last > start and end < len(blocks) and blocks[last - 1].container.tag in HEADINGS:
            last -= 1
        gone.update(range(start, last))
    return gone


def _hashes(blocks: Iterable[Block], places: dict[Element, str]) -> list[int | None]:
    return [block_hash(block, places) for block in blocks]


def _stretches(flags: list[bool]) -> Iterable[tuple[int, int]]:
    start = None
    for index, flag in enumerate(flags):
        if flag and start is None:
            start = index
        elif not flag and start is not None:
            yield start, index
            start = None
    if start is not None:
        yield start, len(flags)
