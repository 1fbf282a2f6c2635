"""Which blocks of a page are its main content.

An article is where its paragraphs are: the element whose blocks add up to most, links counting against it,
less what goes with an article (captions, the author, tags). Any other page is all that is not furniture, since its
facts stand in tables, lists and short lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from resources.content.boilerplate import repeated_blocks
from resources.content.dom import HEADINGS, Element
from resources.content.metadata import is_contact_page
from resources.content.regions import (
    first_heading,
    furniture_of,
    is_footer,
    leads_elsewhere,
    lists_itself,
    named_as_furniture,
    names_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.content.dom import Block, Document
    from resources.content.metadata import Metadata

__all__ = ["Choice", "choose_blocks", "is_article"]

# Chosen with the pages of the article benchmark at hand (bench/extraction.py); none of them was held out.
_COST: Final = 25
"""Characters that a block must have before it speaks for its element."""
_MOST: Final = 300
"""Characters from which a block speaks no louder."""
_LINK_COST: Final = 10
_ZOOM: Final = 0.8
"""Share of the worth that an element inside must have to be taken instead."""
_LARGE: Final = 0.5
"""Share of a page's unlinked text from which an element is no furniture, whatever it is called."""
_LINKED: Final = 0.5
"""Share of linked text from which an element of an article is a list of links."""
_LISTING: Final = 0.35
"""Share of linked text from which a main element is a list of links, as it is meant to be."""
_LONG: Final = 120
"""Characters of a paragraph."""
_PROSE: Final = 0.75
"""Share of unlinked text in paragraphs from which an undeclared page is an article."""
_FLOW: Final = frozenset({"p", "pre", "dl", "table", "blockquote", "ul", "ol", "h2", "h3", "h4", "h5", "h6"})
_NOT_OF_ARTICLES: Final = frozenset({"figcaption", "figure", "h1", "address", "time", "form", "button", "header"})
_ARTICLE_KINDS: Final = frozenset(
    {"article", "newsarticle", "blogposting", "reportagenewsarticle", "scholarlyarticle"}
)
_OTHER_KINDS: Final = frozenset(
    {"product", "faqpage", "qapage", "discussionforumposting", "contactpage", "collectionpage", "localbusiness",
     "itemlist", "store", "restaurant", "techarticle", "howto", "event", "jobposting", "softwareapplication"}
)  # fmt: skip
_MARKUP: Final = re.compile(r"<[a-z]+ [a-z-]+=[\"']", re.IGNORECASE).match


@dataclass(frozen=True, slots=True)
class Choice:
    """The blocks that were chosen, and how sure that is.

    Attributes:
        blocks: In the page's order.
        share: Their size, of all unlinked text in blocks that are no labels.
    """

    blocks: list[Block]
    share: float


class _Totals:
    """What the blocks below an element add up to."""

    __slots__ = ("linked", "size", "worth")

    def __init__(self) -> None:
        self.size = 0
        self.linked = 0
        self.worth = 0.0


def _worth(block: Block) -> float:
    """Say how much a block speaks for the element around it, or against."""
    size = block.size
    density = block.linked / size
    if density > _LINKED:
        return -_LINK_COST - 0.2 * min(size, 100)
    if block.container.tag in HEADINGS:
        return 0.0
    return max(min(size, _MOST) * (1 - density) - _COST, 0.0)


_depth: Final = attrgetter("depth")


def _totals(blocks: list[Block], *, with_worth: bool = False) -> dict[Element, _Totals]:
    totals: dict[Element, _Totals] = {}
    for block in blocks:
        total = totals.get(block.container)
        if total is None:
            total = totals[block.container] = _Totals()
            above = block.container.parent
            while above is not None and above not in totals:
                totals[above] = _Totals()
                above = above.parent
        total.size += block.size
        total.linked += block.linked
        if with_worth:
            total.worth += _worth(block)
    for element in sorted(totals, key=_depth, reverse=True):
        if element.parent is not None:
            total, above_total = totals[element], totals[element.parent]
            above_total.size += total.size
            above_total.linked += total.linked
            above_total.worth += total.worth
    return totals


class _Within:
    """Answers "does it stand in this, and in nothing barred between?" for many blocks, each element once.

    Args:
        top: What they shall stand in; None for the page.
        barred: Asked of elements below it.
    """

    __slots__ = ("barred", "known")

    def __init__(self, top: Element | None, barred: Callable[[Element], bool]) -> None:
        self.barred = barred
        self.known: dict[Element | None, bool] = {top: True}

    def holds(self, element: Element | None) -> bool:
        path: list[Element] = []
        while element is not None and element not in self.known:
            path.append(element)
            element = element.parent
        found = self.known.get(element, False)
        for passed in reversed(path):
            found = self.known[passed] = found and not self.barred(passed)
        return found


def is_article(blocks: list[Block], metadata: Metadata) -> bool:
    """Tell whether a page is an article: it says so, or nearly all it says stands in paragraphs."""
    if metadata.kinds & _OTHER_KINDS:
        return False
    if metadata.kinds & _ARTICLE_KINDS:
        return True
    plain = prose = 0
    for block in blocks:
        unlinked = block.size - block.linked
        plain += unlinked
        if unlinked >= _LONG and block.container.tag != "pre":
            prose += unlinked
    return prose >= _PROSE * plain


def _is_listing(candidates: list[Block], metadata: Metadata) -> bool:
    """Tell a page whose main element, as the page calls it, holds links for the most part: a table of contents."""
    if metadata.kinds & _ARTICLE_KINDS:
        return False
    size = linked = 0
    for block in candidates:
        size += block.size
        linked += block.linked
    if linked < _LISTING * size:
        return False
    totals = _totals(candidates)
    main = _main_element(totals)
    return main is not None and totals[main].linked > _LISTING * totals[main].size


def choose_blocks(
    document: Document, blocks: list[Block], metadata: Metadata, boilerplate: frozenset[int] = frozenset()
) -> Choice:
    """Choose the blocks of the main content.

    Args:
        document: The page.
        blocks: All of its blocks.
        metadata: What it says of itself.
        boilerplate: What its site repeats.
    """
    blocks = [block for block in blocks if not _MARKUP(block.text)]
    everything = _totals(blocks)
    if document.root not in everything:
        return Choice([], 0.0)
    whole = everything[document.root]
    enough = _LARGE * (whole.size - whole.linked)

    def is_large(element: Element) -> bool:
        total = everything.get(element)
        if total is None or total.size - total.linked <= enough:
            return False
        # On a page of nothing but links the footer has most of the text that is none.
        return total.size > _LARGE * whole.size or not is_footer(element)

    content = _Within(None, furniture_of(document, is_large).__contains__)
    candidates = [block for block in blocks if content.holds(block.container)]
    if boilerplate:
        # After the furniture is gone, so that "In stock" is not one with the button below it.
        gone = repeated_blocks(candidates, boilerplate, {})
        candidates = [block for index, block in enumerate(candidates) if index not in gone]
    addresses: list[Block] = []
    if is_contact_page(metadata):
        addresses = [b for b in blocks if any(a.tag == "address" for a in b.container.ancestors())]
    if not _is_listing(candidates, metadata) and is_article(candidates, metadata):
        chosen = _with(addresses, _article(candidates))
        plain = sum(block.size - block.linked for block in blocks if block.size > 40)
        return Choice(chosen, sum(block.size for block in chosen) / max(1, plain))
    return Choice(_with(addresses, _page(candidates, metadata.title)), 1.0)


def _with(addresses: list[Block], chosen: list[Block]) -> list[Block]:
    """Give a page's blocks, and the addresses that are not among them: of a contact page's footer."""
    if not addresses or not chosen:
        return chosen
    known = set(map(id, chosen))
    return chosen + [block for block in addresses if id(block) not in known]


# ------------------------------------------------------------------------------------------ articles


def _article(candidates: list[Block]) -> list[Block]:
    totals = _totals(candidates, with_worth=True)
    if not totals:
        return []
    # The outermost of equals: the short lines beside a long paragraph are worth nothing, and are facts.
    best = max(totals, key=lambda element: (totals[element].worth, -element.depth))
    worth = totals[best].worth
    while True:
        inner = [
            child
            for child in best.children
            if isinstance(child, Element) and child in totals and totals[child].worth > _ZOOM * worth
        ]
        if not inner or _goes_on_beside(inner[0], totals):
            break
        best = inner[0]
    enough = _LARGE * totals[best].size

    def is_beside(element: Element) -> bool:
        total = totals[element]
        return total.size < enough and (
            (element.tag in _NOT_OF_ARTICLES and not _is_postal(element))
            or (total.linked > _LINKED * total.size and element.tag not in HEADINGS)
            or (element.raw != "" and named_as_furniture(names_of(element), in_article=True))
        )

    article = _Within(best, is_beside)
    return [b for b in candidates if b.linked < 0.8 * b.size and article.holds(b.container)]


def _is_postal(element: Element) -> bool:
    """Tell the address of a house or a telephone from the name of an author."""
    return element.tag == "address" and any(map(str.isdigit, element.words()))


def _goes_on_beside(part: Element, totals: dict[Element, _Totals]) -> bool:
    """Tell whether what stands beside the largest part of an article is more of it: text, or parts like it."""
    if part.parent is None:
        return False
    name = part.get("class")
    for other in part.parent.children:
        if isinstance(other, str) or other is part or other not in totals:
            continue
        total = totals[other]
        if total.linked > _LINKED * total.size or (
            other.raw != "" and named_as_furniture(names_of(other), in_article=True)
        ):
            continue
        if (
            other.tag in _FLOW
            or _is_postal(other)
            or (
                other.tag == part.tag
                and (
                    other.tag == "section"
                    or (other.get("class") == name and (name or first_heading(other) is not None))
                )
            )
        ):
            return True
    return False


# ------------------------------------------------------------------------------------------ other pages

_MAIN_IDS: Final = frozenset({"main", "content", "main-content", "maincontent", "page-content", "site-content"})
_SAME_TITLE: Final = 12
"""Characters in which a page's heading and its title must be the same, or all of the shorter."""
_LISTS: Final = frozenset({"ul", "ol", "div", "section", "p", "td", "table", "dl", "form", "fieldset", "li"})


def _main_element(totals: dict[Element, _Totals]) -> Element | None:
    """Give the element that the page calls its main one, if it holds half of the text, or of the unlinked text."""
    unlinked = max((total.size - total.linked for total in totals.values()), default=0)
    whole = max((total.size for total in totals.values()), default=0)
    found: Element | None = None
    for element, total in totals.items():
        if total.size - total.linked < 0.5 * unlinked and total.size < 0.5 * whole:
            continue
        if element.tag == "main" or (
            element.raw and (element.get("role") == "main" or element.get("id") in _MAIN_IDS)
        ):
            found = element
            if element.tag == "main":
                break
    return found


def _page(candidates: list[Block], title: str | None) -> list[Block]:
    """Give all of a page's candidates but lists of links that lead away from it."""
    totals = _totals(candidates)
    main = _main_element(totals)
    here = _Within(None, _leading_elsewhere(candidates, totals).__contains__)

    def is_menu(element: Element) -> bool:
        """Tell a list of nothing but links: a menu that is not called one."""
        total = totals[element]
        return (
            main is None
            and element.tag in ("ul", "ol", "div", "p", "td")
            and total.linked > 0.85 * total.size
            and total.size < 2_000
        )

    content = _Within(main, is_menu)
    above = _titled(candidates, totals, main, title)
    titled = _Within(above, is_menu)
    return [
        block
        for block in candidates
        if here.holds(block.container)
        and (
            content.holds(block.container)
            or (main is None and block.container.tag in HEADINGS)
            or (above is not None and titled.holds(block.container))
        )
    ]


def _titled(
    candidates: list[Block], totals: dict[Element, _Totals], main: Element | None, title: str | None
) -> Element | None:
    """Give what holds the page's heading above its main element: with it stands what the page is about.

    It must be the only one, and begin as the title does: the name of the site stands at the title's end.
    """
    found: Element | None = None
    if main is None or not title:
        return None
    for block in candidates:
        if block.container.tag != "h1":
            continue
        heading = block.container
        if found is not None or main in heading.ancestors():
            return None
        said, called = block.text.casefold(), title.casefold()
        shorter = min(len(said), len(called), _SAME_TITLE)
        if said[:shorter] != called[:shorter]:
            return None
        found = heading
    if found is None or found.parent is None or found.parent in main.ancestors():
        return found
    total = totals[found.parent]
    return found.parent if total.linked <= _LINKED * total.size else found


def _leading_elsewhere(candidates: list[Block], totals: dict[Element, _Totals]) -> set[Element]:
    """Give the elements under a heading such as "Related products"."""
    whole = max((total.size for total in totals.values()), default=0)
    found: set[Element] = set()
    for block in candidates:
        if block.size > 60 or block.container.tag not in HEADINGS or not leads_elsewhere(block.text):
            continue
        heading = block.container
        # What holds the heading first, and little else of the page, goes as a whole.
        top = heading
        while top.parent is not None and top.parent in totals and totals[top.parent].size < 0.4 * whole:
            if _first_text(top.parent) is not top:
                break
            top = top.parent
        below = [top] if top is not heading else [heading, *_following(heading)]
        if lists_itself(block.text):
            # What a page says of itself is links; the sections below may be its content all the same.
            below = [linked for element in below for linked in _linked_parts(element, totals)]
        found.update(below)
    return found


def _linked_parts(element: Element, totals: dict[Element, _Totals]) -> list[Element]:
    """Give the outermost elements, from this one inward, of which at least half is linked; headings stay."""
    found: list[Element] = []
    stack = [element]
    while stack:
        inner = stack.pop()
        total = totals.get(inner)
        if total is None or inner.tag in HEADINGS:
            continue
        if total.linked >= _LINKED * total.size:
            found.append(inner)
        else:
            stack += [child for child in inner.children if isinstance(child, Element)]
    return found


def _first_text(element: Element) -> Element | str | None:
    for child in element.children:
        if isinstance(child, Element) or not child.isspace():
            return child
    return None


def _following(heading: Element) -> list[Element]:
    """Give the elements after a heading, up to the next one of its rank."""
    parent = heading.parent
    if parent is None:
        return []
    after: list[Element] = []
    seen = False
    for child in parent.children:
        if child is heading:
            seen = True
        elif seen and isinstance(child, Element):
            if child.tag in HEADINGS and child.tag <= heading.tag:
                break
            after.append(child)
    return after
