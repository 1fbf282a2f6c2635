"""Blocks of a page as plain text and as Markdown.

Plain text is a line for each block, a row of a table in one line. Markdown keeps what the blocks stood in:
headings, lists, tables, code, quotations, links (absolute).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from resources.content.dom import HEADINGS, Element, unescape
from resources.crawler.urls import InvalidUrl, Joiner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resources.content.dom import Block

__all__ = ["data_table_of", "render_markdown", "render_text"]

_CELLS: Final = frozenset({"td", "th"})
_LISTS: Final = frozenset({"ul", "ol", "menu", "dir"})
_STRONG: Final = frozenset({"b", "strong"})
_EMPHASIS: Final = frozenset({"i", "em"})
_CODE: Final = frozenset({"code", "kbd", "samp", "tt"})
_LANGUAGE: Final = re.compile(
    r"(?:^|\s)(?:language|lang|highlight|brush:?)[-\s]?(?:source-)?([a-z0-9+#]{1,20})\b", re.I
).search
_MAX_CELL: Final = 2_000
_MAX_CELLS: Final = 60


def data_table_of(block: Block, tables: dict[Element, bool]) -> Element | None:
    """Give the table that a block is a cell of; None if there is none, or it is only for layout.

    Args:
        block: The block.
        tables: What was already found of tables; it is added to.
    """
    table = block.around.table
    if table is None or block.around.cell is None:
        return None
    known = tables.get(table)
    if known is None:
        known = tables[table] = _is_data(table)
    return table if known else None


def _is_data(table: Element) -> bool:
    """Tell a table of data from one that only places things."""
    if table.get("role") in ("presentation", "none"):
        return False
    if any(ancestor.tag == "table" for ancestor in table.ancestors() if ancestor is not table):
        return False
    headed = titled = False
    wide = rows = cells = 0
    for element in table.iter():
        tag = element.tag
        if tag == "table" and element is not table:
            return False
        if tag == "th":
            headed = True
        elif tag in HEADINGS:
            titled = True
        elif tag == "tr":
            rows += 1
            count = sum(1 for child in element.children if not isinstance(child, str) and child.tag in _CELLS)
            cells += count
            wide = max(wide, count)
            if count > _MAX_CELLS:
                return False
    if headed:
        return True
    # Cells for layout hold paragraphs, one row of them; cells of data hold a few words.
    return wide >= 2 and rows >= 2 and not titled and len(table.words()) <= 200 * cells


class _Run:
    """Consecutive blocks of one table, or one other block."""

    __slots__ = ("blocks", "table")

    def __init__(self, table: Element | None) -> None:
        self.table = table
        self.blocks: list[Block] = []


def _runs(blocks: Sequence[Block]) -> list[_Run]:
    tables: dict[Element, bool] = {}
    runs: list[_Run] = []
    for block in blocks:
        table = data_table_of(block, tables)
        if table is None or not runs or runs[-1].table is not table:
            runs.append(_Run(table))
        runs[-1].blocks.append(block)
    return runs


def _rows(run: _Run) -> list[tuple[Element | None, list[tuple[Element | None, list[Block]]]]]:
    """Put a table's blocks into cells, and those into rows."""
    rows: list[tuple[Element | None, list[tuple[Element | None, list[Block]]]]] = []
    for block in run.blocks:
        cell = row = None
        for element in block.container.ancestors():
            if element.tag in _CELLS and cell is None:
                cell = element
            elif element.tag == "tr":
                row = element
                break
            elif element is run.table:
                break
        if not rows or rows[-1][0] is not row:
            rows.append((row, []))
        cells = rows[-1][1]
        if not cells or cells[-1][0] is not cell:
            cells.append((cell, []))
        cells[-1][1].append(block)
    return rows


# ------------------------------------------------------------------------------------------ text


def render_text(blocks: Sequence[Block]) -> str:
    """Give the blocks as plain text: a line each, the cells of a row in one line with tabs between."""
    lines: list[str] = []
    for run in _runs(blocks):
        if run.table is None:
            lines.append(run.blocks[0].text)
            continue
        for _, cells in _rows(run):
            lines.append("\t".join(" ".join(b.text.replace("\n", " ") for b in cell) for _, cell in cells))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ Markdown


class _Markdown:
    def __init__(self, url: str, base: str | None) -> None:
        try:
            self.join: Joiner | None = Joiner(base or url)
        except InvalidUrl:
            self.join = None
        self.out: list[str] = []
        self.item: Element | None = None
        self.counters: dict[Element, int] = {}
        self.targets: dict[str, str | None] = {}

    def target(self, href: str) -> str | None:
        """Give a link's absolute url; None if it leads nowhere from outside of the page."""
        href = href.strip()
        if not href or href[0] == "#" or href[:11].lower() == "javascript:":
            return None
        if href[:7].lower() == "mailto:" or href[:4].lower() == "tel:":
            return href.replace(" ", "%20").replace(")", "%29").replace("(", "%28")
        if href not in self.targets:
            try:
                found = self.join(href) if self.join else None
            except InvalidUrl:
                found = None
            self.targets[href] = found.replace("(", "%28").replace(")", "%29") if found else None
        return self.targets[href]

    def inline(self, nodes: Sequence[Element | str], *, plain: bool = False) -> str:
        parts: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                parts.append(unescape(node))
                continue
            tag = node.tag
            if tag == "br":
                parts.append("\1")
                continue
            if not node.children:
                continue
            if tag in _CODE and not plain:
                code = unescape("".join(_texts(node))).strip()
                if code:
                    fence = "``" if "`" in code else "`"
                    pad = " " if code[0] == "`" or code[-1] == "`" else ""
                    parts.append(f"{fence}{pad}{code}{pad}{fence}")
                continue
            inner = self.inline(node.children, plain=plain)
            if not inner or inner.isspace():
                parts.append(inner)
            elif tag == "a" and not plain:
                target = self.target(node.get("href"))
                parts.append(_around(inner, "[", f"]({target})") if target else inner)
            elif tag in _STRONG and not plain:
                parts.append(_around(inner, "**", "**"))
            elif tag in _EMPHASIS and not plain:
                parts.append(_around(inner, "*", "*"))
            else:
                parts.append(inner)
        return "".join(parts)

    def folded(self, block: Block, *, plain: bool = False) -> str:
        raw = self.inline(block.nodes, plain=plain)
        target = None if plain else _outer_link(block)
        lines = [line for part in raw.split("\1") if (line := " ".join(part.split()))]
        text = "\n".join(lines)
        if target is not None and "](" not in text and text:
            link = self.target(target)
            if link:
                return f"[{' '.join(lines)}]({link})"
        return text

    # -- blocks

    def add(self, text: str, *, tight: bool = False) -> None:
        if self.out:
            self.out.append("\n" if tight else "\n\n")
        self.out.append(text)

    def block(self, block: Block) -> None:
        around = block.around
        kind = around.kind
        if around.pre is not None:
            language = _code_language(around.pre)
            fence = "````" if "```" in block.text else "```"
            text = f"{fence}{language}\n{block.text}\n{fence}"
        elif around.heading:
            text = (
                "#" * int(around.heading[1])
                + " "
                + self.folded(block, plain=True).replace("\n", " ").removesuffix("¶").rstrip()
            )
        else:
            text = self.folded(block)
            if kind in ("dt", "summary"):
                text = _around(text.replace("**", "").replace("\n", " "), "**", "**")
            elif kind == "dd":
                text = ": " + text.replace("\n", "\n  ")
            elif (not around.items and text[:1] in ("#", ">")) or text[:2] in ("- ", "+ "):
                text = "\\" + text
        self.place(text, around.items, around.quotes, tight=kind == "dd")

    def place(self, text: str, items: Sequence[Element], quotes: int, *, tight: bool = False) -> None:
        """Add a block, indented as its list items say."""
        item = items[-1] if items else None
        if item is not None:
            indent = ""
            for outer in items[:-1]:
                indent += " " * len(self.marker(outer, step=False))
            marker = self.marker(item, step=item is not self.item)
            first = item is not self.item
            pad = indent + " " * len(marker)
            lines = text.split("\n")
            text = "\n".join([(indent + marker if first else pad) + lines[0], *(pad + line for line in lines[1:])])
            tight = tight or (first and self.item is not None)
        self.item = item
        if quotes:
            prefix = "> " * min(quotes, 5)
            text = "\n".join(prefix + line for line in text.split("\n"))
        self.add(text, tight=tight)

    def marker(self, item: Element, *, step: bool) -> str:
        parent = item.parent
        if parent is None or parent.tag != "ol":
            return "- "
        count = self.counters.get(parent)
        if count is None:
            start = parent.get("start")
            count = int(start) - 1 if start.isascii() and start.isdigit() and len(start) < 7 else 0
        if step:
            count += 1
        self.counters[parent] = count
        return f"{count}. "

    def table(self, run: _Run) -> None:
        self.item = None
        rows = _rows(run)
        lines: list[list[str]] = []
        header = False
        for number, (row, cells) in enumerate(rows):
            texts: dict[int, str] = {}
            # Cells of which nothing was kept hold their columns.
            places = _places(row) if row is not None else {}
            for index, (cell, blocks) in enumerate(cells):
                text = " ".join(self.folded(b).replace("\n", " ") for b in blocks).replace("|", "\\|")[:_MAX_CELL]
                texts[places.get(cell, index) if cell is not None else index] = text
            if number == 0:
                header = all(cell is not None and cell.tag == "th" for cell, _ in cells)
            lines.append([texts.get(i, "") for i in range(max(texts) + 1)])
        width = min(max(len(line) for line in lines), _MAX_CELLS)
        if width == 1:
            for line in lines:
                self.add(line[0])
            return
        if not header:
            lines.insert(0, [])
        formatted = ["| " + " | ".join((line + [""] * width)[:width]) + " |" for line in lines]
        formatted.insert(1, "|" + " --- |" * width)
        self.add("\n".join(formatted))


def _places(row: Element) -> dict[Element, int]:
    places: dict[Element, int] = {}
    column = 0
    for child in row.children:
        if not isinstance(child, str) and child.tag in _CELLS:
            places[child] = column
            span = child.get("colspan")
            column += int(span) if span.isascii() and span.isdigit() and 0 < int(span[:3]) <= _MAX_CELLS else 1
    return {cell: place for cell, place in places.items() if place < _MAX_CELLS}


def _texts(element: Element) -> list[str]:
    parts: list[str] = []
    _gather(element, parts)
    return parts


def _gather(element: Element, parts: list[str]) -> None:
    for child in element.children:
        if isinstance(child, str):
            parts.append(child)
        else:
            _gather(child, parts)


def _around(text: str, before: str, after: str) -> str:
    """Put marks around a text, not around the spaces at its ends, nor across lines."""
    stripped = text.strip(" \t\n\r\f\xa0\1")
    if not stripped:
        return text
    start = text.index(stripped)
    inner = " ".join(stripped.replace("\1", " ").split())
    return text[:start] + before + inner + after + text[start + len(stripped) :]


def _outer_link(block: Block) -> str | None:
    """Give the target of the link that the whole block stands in."""
    if not block.linked:
        return None
    for element in block.container.ancestors():
        if element.tag == "a":
            return element.get("href")
    return None


def _code_language(pre: Element) -> str:
    candidates = [pre, *(child for child in pre.children if not isinstance(child, str))]
    if pre.parent is not None:
        candidates.append(pre.parent)
        if pre.parent.parent is not None:
            candidates.append(pre.parent.parent)
    for element in candidates:
        match = _LANGUAGE(element.get("class"))
        if match and match[1].lower() not in ("default", "none", "text", "plain", "source"):
            return match[1].lower()
    return ""


def render_markdown(blocks: Sequence[Block], url: str, base: str | None = None) -> str:
    """Give the blocks as Markdown.

    Args:
        blocks: In the page's order.
        url: The page's, what its links are relative to.
        base: Of the page's base element, if it has one.
    """
    markdown = _Markdown(url, base)
    for run in _runs(blocks):
        if run.table is None:
            markdown.block(run.blocks[0])
        else:
            markdown.table(run)
    return "".join(markdown.out)
