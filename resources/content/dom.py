"""A page as a small tree of Python objects, and as its blocks of text.

lexbor reads the HTML as a browser does and writes it back as regular HTML; one expression takes that apart, which
is several times faster than a walk over its nodes. What makes parsing slow is cut off before (`crawler.page`), the
depth of the tree is bounded, and only its walks recurse.
"""

from __future__ import annotations

import re
import time
from html import escape
from html import unescape as html_unescape
from typing import TYPE_CHECKING, Final

from selectolax.lexbor import LexborHTMLParser

from resources.crawler.page import PAGE_SECONDS
from resources.crawler.pieces import pieces, without_formatting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "BLOCK_TAGS",
    "HEADINGS",
    "Block",
    "Document",
    "Element",
    "Surroundings",
    "as_without_scripts",
    "block_of",
    "blocks_of",
    "html_of_xhtml",
    "read_document",
    "unescape",
    "without_scripts",
]

MAX_DEPTH: Final = 150
"""Elements below stay, as children of the one at this depth; real pages have up to 60."""

HEADINGS: Final = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BLOCK_TAGS: Final = """
    address article aside blockquote body button caption center dd details dialog dir div dl dt fieldset figcaption
    figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol optgroup option p pre
    search section select summary table tbody td tfoot th thead tr ul
"""
BLOCK_TAGS: Final = frozenset(_BLOCK_TAGS.split())
_NO_TEXT: Final = [
    "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "noframes", "noembed",
    "xmp", "plaintext", "head", "canvas", "audio", "video", "datalist", "textarea", "map",
]  # fmt: skip
_VOID_TAGS: Final = (
    "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr"
)
_VOID: Final = frozenset(_VOID_TAGS.split())
_CUT: Final = "<!--cut-->"
_MAX_REOPENED: Final = 8 * 1024
"""Characters of tags that are opened again in the next piece of a page that was cut."""
_TABLE_PARTS: Final = frozenset({"table", "tbody", "thead", "tfoot"})
_MARKUP: Final = re.compile(r"<(?:(/?[A-Za-z][^\s/>\"]*+)([^>\"]*+(?:\"[^\"]*+\"[^>\"]*+)*+)>|!--.*?-->)", re.DOTALL)
_ATTRIBUTES: Final = re.compile(r"([^\s=\"]++)=\"([^\"]*+)\"").findall


def unescape(text: str) -> str:
    """Undo what lexbor escapes in texts and attributes."""
    if "&" not in text:
        return text
    return (
        text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&nbsp;", "\xa0")
        .replace("&quot;", '"')
        .replace("&amp;", "&")
    )


class Element:
    """An element: its children are elements and texts, which are still escaped."""

    __slots__ = ("_attributes", "children", "depth", "has_block", "parent", "raw", "tag")

    def __init__(self, tag: str, raw: str, parent: Element | None) -> None:
        self.tag = tag
        self.raw = raw
        self.parent = parent
        self.children: list[Element | str] = []
        self.has_block = False
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self._attributes: dict[str, str] | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes; names in lower case."""
        if self._attributes is None:
            self._attributes = {name: unescape(value) for name, value in _ATTRIBUTES(self.raw)} if self.raw else {}
        return self._attributes

    def get(self, name: str) -> str:
        """Give an attribute, or the empty text."""
        return self.attributes.get(name, "") if self.raw else ""

    def ancestors(self) -> Iterator[Element]:
        """Give the element itself and what it stands in, from inside to outside."""
        element: Element | None = self
        while element is not None:
            yield element
            element = element.parent

    def iter(self) -> Iterator[Element]:
        """Give the element and all below it, in the page's order."""
        stack: list[Element] = [self]
        while stack:
            element = stack.pop()
            yield element
            stack.extend(child for child in reversed(element.children) if not isinstance(child, str))

    def words(self) -> str:
        """Give all text below, whitespace folded."""
        parts: list[str] = []
        _collect(self, parts)
        return " ".join(unescape("".join(parts)).split())


def _collect(element: Element, parts: list[str]) -> None:
    for child in element.children:
        if isinstance(child, str):
            parts.append(child)
        elif child.tag == "br":
            parts.append(" ")
        else:
            block = child.tag in BLOCK_TAGS
            if block:
                parts.append(" ")
            _collect(child, parts)
            if block:
                parts.append(" ")


class Surroundings:
    """What a block stands in, as far as that says how it is shown. Blocks next to each other share one of these.

    Attributes:
        table: The innermost table.
        cell: The innermost cell of that table; None for a caption.
        definitions: The innermost ``dl``.
        pre: The outermost ``pre``.
        items: Items of lists, from outside to inside.
        heading: Tag of the innermost heading; empty for none.
        kind: The innermost of ``dt``, ``dd``, ``summary``; empty for none.
        quotes: How many quotations.
    """

    __slots__ = ("cell", "definitions", "heading", "items", "kind", "pre", "quotes", "table")

    def __init__(self, outer: Surroundings | None = None) -> None:
        self.table: Element | None = outer.table if outer else None
        self.cell: Element | None = outer.cell if outer else None
        self.definitions: Element | None = outer.definitions if outer else None
        self.pre: Element | None = outer.pre if outer else None
        self.items: tuple[Element, ...] = outer.items if outer else ()
        self.heading: str = outer.heading if outer else ""
        self.kind: str = outer.kind if outer else ""
        self.quotes: int = outer.quotes if outer else 0

    def inside(self, element: Element) -> Surroundings:
        """Give what stands in this element, which stands here."""
        tag = element.tag
        if tag not in _SURROUND:
            return self
        inner = Surroundings(self)
        if tag == "li":
            inner.items = (*self.items, element)
        elif tag in HEADINGS:
            inner.heading = tag
        elif tag in ("td", "th"):
            inner.cell = element
        elif tag == "table":
            inner.table, inner.cell = element, None
        elif tag == "pre":
            inner.pre = self.pre or element
        elif tag == "blockquote":
            inner.quotes += 1
        elif tag == "dl":
            inner.definitions = element
        else:
            inner.kind = tag
        return inner


_SURROUND: Final = HEADINGS | {"table", "td", "th", "dl", "dt", "dd", "summary", "li", "blockquote", "pre"}


class Block:
    """Text that stands together: a paragraph, a heading, an item, a cell.

    Attributes:
        container: The element whose block it is.
        around: What that stands in.
        nodes: Its inline content, texts and elements, in order.
        text: What it says; whitespace folded, but a line break where the page has one (in ``pre``: all of them).
        size: Letters and digits of the text, roughly: characters without spaces.
        linked: How many of them stand in links.
    """

    __slots__ = ("around", "container", "linked", "nodes", "size", "text")

    def __init__(
        self,
        container: Element,
        around: Surroundings,
        nodes: list[Element | str],
        text: str,
        size: int,
        linked: int,
    ) -> None:
        self.container = container
        self.around = around
        self.nodes = nodes
        self.text = text
        self.size = size
        self.linked = linked


class Document:
    """A page: its tree, and the clean HTML of its body.

    Attributes:
        root: The html element.
        html: Regular HTML without scripts and the like.
        truncated: Only the beginning was read.
    """

    __slots__ = ("html", "root", "truncated")

    def __init__(self, root: Element, html: str, *, truncated: bool) -> None:
        self.root = root
        self.html = html
        self.truncated = truncated


_NO_CONTENT: Final = re.compile(r"<(?:(script|style)(?=[\s/>])|!--)", re.IGNORECASE)
_ENDS: Final = {
    "script": re.compile(r"</script[\s/>]", re.IGNORECASE),
    "style": re.compile(r"</style[\s/>]", re.IGNORECASE),
    "": re.compile("-->"),
}


def without_scripts(text: str) -> str:
    """Leave out scripts, styles and comments: most of a page, and what makes it slow to read."""
    kept: list[str] = []
    position = 0
    while (match := _NO_CONTENT.search(text, position)) is not None:
        kind = (match[1] or "").lower()
        end = _ENDS[kind].search(text, match.end())
        if end is None:
            break
        kept.append(text[position : match.start()])
        # The end tag itself stays out too.
        position = end.end() if not kind else text.find(">", end.start()) + 1 or len(text)
    kept.append(text[position:])
    return "".join(kept)


_MAX_UNFOLDED: Final = 100
# None looks beyond the next "<": many that never end would be read to the page's end each.
_SHADOW: Final = re.compile(r"<template\b[^<>]*?shadowrootmode[^<>]*+>", re.IGNORECASE)
_END_TEMPLATE: Final = re.compile(r"</template\s*+>", re.IGNORECASE)
_SRCDOC: Final = re.compile(r"\ssrcdoc\s*=\s*(?:\"([^\"]*)\"|'([^']*)')([^<>]*+>)", re.IGNORECASE)
_WITHOUT: Final = re.compile(r"</?(?:noscript|noframes|frameset|frame)\b[^<>]*+>", re.IGNORECASE)
_CLOSED: Final = re.compile(
    r"<(script|style|title|textarea|iframe|noscript|div|span|p|a|i|b|em|strong|td|th|tr|li|ul|ol|dl|dt|dd|table"
    r"|section|article|h[1-6]|button|select|option|label|canvas|video|audio|object)\b([^<>]*+)(?<=/)>",
    re.IGNORECASE,
)


def as_shown(text: str) -> str:
    """Put in its place what a browser shows and a parser does not: documents in attributes, shadow trees."""
    if "shadowrootmode" in text and text.count("shadowrootmode") <= _MAX_UNFOLDED:
        kept: list[str] = []
        position = 0
        while (start := _SHADOW.search(text, position)) is not None:
            end = _END_TEMPLATE.search(text, start.end())
            if end is None:
                break
            kept += [text[position : start.start()], "<div>", text[start.end() : end.start()], "</div>"]
            position = end.end()
        text = "".join([*kept, text[position:]])
    if "srcdoc" in text and text.count("srcdoc") <= _MAX_UNFOLDED:
        text = _SRCDOC.sub(
            lambda found: f"{found[3]}</iframe><div>{html_unescape(found[1] or found[2] or '')}</div>", text
        )
    return text


def as_without_scripts(text: str) -> str | None:
    """Give a page as a browser without scripts and frames shows it; None if that is no other page."""
    found, count = _WITHOUT.subn("", without_scripts(text))
    return found if count else None


def html_of_xhtml(text: str) -> str:
    """Write as HTML what is XHTML only: closed elements that HTML takes for open ones, and CDATA."""
    text = _CLOSED.sub(lambda found: f"<{found[1]}{found[2][:-1]}></{found[1]}>", text)
    if text.count("<![CDATA[") > _MAX_UNFOLDED:
        return text
    kept: list[str] = []
    position = 0
    while (start := text.find("<![CDATA[", position)) >= 0 and (end := text.find("]]>", start)) >= 0:
        # In a script or a style it is what keeps XML from reading it.
        in_script = any(
            text.rfind(f"<{tag}", 0, start) > text.rfind(f"</{tag}", 0, start) for tag in ("script", "style")
        )
        inner = text[start + 9 : end]
        kept += [text[position:start], text[start : end + 3] if in_script else escape(inner, quote=False)]
        position = end + 3
    return "".join([*kept, text[position:]])


def read_document(text: str, on_first: Callable[[LexborHTMLParser], None] | None = None) -> Document:
    """Read a page.

    Args:
        text: HTML without NUL.
        on_first: Is given the tree of the page's beginning, with its head: for metadata.
    """
    root = Element("html", "", None)
    htmls: list[str] = []
    truncated = False
    # CPU time: a machine that has no time for us does not make a page shorter.
    until = time.thread_time() + PAGE_SECONDS
    open_elements: list[Element] = []
    parts = [piece for piece in pieces(without_scripts(as_shown(text))) if piece] or [""]
    for number, part in enumerate(parts):
        if number and time.thread_time() > until:
            truncated = True
            break
        piece = part
        if number:
            piece = _reopened(open_elements, part)
        if number + 1 < len(parts):
            piece += _CUT
        tree = LexborHTMLParser(without_formatting(piece))
        if number == 0 and on_first is not None:
            on_first(tree)
        tree.strip_tags(_NO_TEXT, recursive=True)
        html = (tree.root.html or "") if tree.root is not None else ""
        open_elements = _build(root, html, open_elements)
        htmls.append(html)
    return Document(root, htmls[0] if len(htmls) == 1 else "\n".join(htmls), truncated=truncated)


def _reopened(open_elements: list[Element], piece: str) -> str:
    """Give a piece of a page with the tags of what was open where it was cut: its end tags are meant for them."""
    tags = "".join([f"<{element.tag}{element.raw}>" for element in open_elements[2:]])
    if not tags or len(tags) > _MAX_REOPENED or len(open_elements) > MAX_DEPTH // 2:
        open_elements.clear()
        return piece
    if open_elements[-1].tag in _TABLE_PARTS:
        piece = piece.removeprefix("<table>")  # that the cut put there, for want of these
    return tags + piece


def _build(root: Element, html: str, open_elements: list[Element]) -> list[Element]:  # noqa: PLR0912, PLR0915
    """Add to the root what regular HTML holds.

    Args:
        root: The page's.
        html: What lexbor wrote of the page, or of a piece of it.
        open_elements: What was open at the end of the piece before, from outside to inside, and is opened again here.

    Returns:
        What is open at the last comment.
    """
    parts = _MARKUP.split(html)
    top = root
    depth = 0
    cut = root
    reopened = len(open_elements)
    skipped = 0  # open elements beyond the depth
    children = root.children
    for index in range(0, len(parts) - 3, 3):
        text = parts[index]
        if text:
            children.append(text)
        tag = parts[index + 1]
        if tag is None:
            cut = top
            continue
        if tag[0] != "/":
            if depth < reopened:
                if open_elements[depth].tag == tag:
                    top = open_elements[depth]
                    children = top.children
                    depth += 1
                    continue
                reopened = 0
            if tag in _VOID:
                if tag in ("br", "img", "hr", "wbr"):
                    children.append(Element(tag, parts[index + 2], top))
                continue
            if depth >= MAX_DEPTH:
                skipped += 1
                if tag in BLOCK_TAGS:
                    children.append(Element("br", "", top))
                continue
            element = Element(tag, parts[index + 2], top)
            children.append(element)
            children = element.children
            top = element
            depth += 1
            if tag in BLOCK_TAGS:
                ancestor = element.parent
                while ancestor is not None and not ancestor.has_block:
                    ancestor.has_block = True
                    ancestor = ancestor.parent
        elif skipped:
            skipped -= 1
        elif top.parent is not None:
            top = top.parent
            children = top.children
            depth -= 1
            reopened = 0
    if parts[-1]:
        root.children.append(parts[-1])
    return [element for element in cut.ancestors() if element is not root][::-1]


# ------------------------------------------------------------------------------------------ blocks

_SPACES: Final = re.compile(r"[^\S\n]*\n\s*|[^\S\n]+")


def blocks_of(root: Element) -> list[Block]:
    """Give the blocks of text below an element, in the page's order."""
    blocks: list[Block] = []
    _walk(root, Surroundings(), blocks, linked=False)
    return blocks


def _walk(container: Element, around: Surroundings, blocks: list[Block], *, linked: bool) -> None:
    run: list[Element | str] = []
    breaks = 0
    for child in container.children:
        if isinstance(child, str):
            if breaks and not child.isspace():
                if breaks > 1 and run:
                    _flush(container, around, run, blocks, linked)
                    run = []
                breaks = 0
            run.append(child)
            continue
        tag = child.tag
        if tag == "br":
            breaks += 1
            run.append(child)
        elif tag == "hr":
            if run:
                _flush(container, around, run, blocks, linked)
                run = []
        elif child.has_block or tag in BLOCK_TAGS:
            if run:
                _flush(container, around, run, blocks, linked)
                run = []
            breaks = 0
            _walk(child, around.inside(child), blocks, linked=linked or tag == "a")
        else:
            if breaks > 1 and run:
                _flush(container, around, run, blocks, linked)
                run = []
            breaks = 0
            run.append(child)
    if run:
        _flush(container, around, run, blocks, linked)


def _flush(
    container: Element, around: Surroundings, run: list[Element | str], blocks: list[Block], all_linked: bool
) -> None:
    parts: list[str] = []
    linked = _inline(run, parts)
    raw = unescape("".join(parts))
    if not raw or raw.isspace():
        return
    if container.tag == "pre":
        text = raw.replace("\1", "\n").strip("\n")
    elif "\1" in raw:
        text = "\n".join(line for part in raw.split("\1") if (line := " ".join(part.split())))
    else:
        text = " ".join(raw.split())
    if container.tag in HEADINGS or container.tag == "dt":
        text = text.removesuffix("¶").rstrip()  # the link to itself that documentation tools add
    if text:
        size = len(text) - text.count(" ")
        if linked and container.tag in HEADINGS and not _leads_away(run):
            linked = 0  # documentation tools link a heading to its line in the table of contents
        blocks.append(Block(container, around, run, text, size, size if all_linked else min(linked, size)))


def block_of(text: str, root: Element) -> Block:
    """Give a text as a block of its own that ends a page."""
    element = Element("p", "", root)
    return Block(element, Surroundings(), [escape(text, quote=False)], text, len(text) - text.count(" "), 0)


def _leads_away(nodes: list[Element | str]) -> bool:
    """Tell whether inline content links to anything but a place on its own page."""
    for node in nodes:
        if isinstance(node, str):
            continue
        if node.tag == "a":
            if not node.get("href").startswith("#"):
                return True
        elif _leads_away(node.children):
            return True
    return False


def _inline(nodes: list[Element | str], parts: list[str]) -> int:
    """Collect the texts of inline content; give how many characters of it are linked."""
    linked = 0
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif node.tag == "br":
            parts.append("\1")
        elif node.tag == "a":
            before = len(parts)
            _inline(node.children, parts)
            linked += sum(len(part) - part.count(" ") for part in parts[before:])
        elif node.children:
            linked += _inline(node.children, parts)
    return linked
