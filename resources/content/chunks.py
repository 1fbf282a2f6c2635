"""Pages in pieces that a model can read whole: cut at headings, paragraphs and sentences, with some overlap.

A piece knows under which headings it stands. They are put before it when it is embedded, because "It takes 14 days."
says little and "Returns > Refunds: It takes 14 days." says what it is about. A piece's hash is that of what the model
reads: the same hash under the same model is the same vector.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from resources.content.embeddings.wordpiece import tokeniser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEPARATOR: Final = " > "

# What a piece repeats of the one before it, where a section had to be cut, in tokens.
OVERLAP_TOKENS: Final = 32
# The headings may take so much of a model's length.
_MAX_HEADING_SHARE: Final = 0.25
# Sections that are shorter are joined with what follows them: a line by itself is a poor answer.
_SMALL_SECTION_TOKENS: Final = 48
# What is embedded of one page; a longer one is cut, and the result says so.
MAX_CHUNKS: Final = 1_000
_MAX_CHARACTERS: Final = 1_000_000
# A tokeniser may count a word of any length as one unknown token. Of real text no token stands for so many.
_CHARACTERS_OF_A_TOKEN: Final = 16
_MAX_HEADING_CHARACTERS: Final = 1_000
# Longer sections are cut in two steps, since the splitter's time grows faster than what it is given.
_PART_CHARACTERS: Final = 16_000

# Each of these takes time in proportion to the text, whatever it is: a page's author chooses that, and nothing can
# interrupt an expression that goes back and forth over it.
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t](.*)$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_MARKUP = re.compile(r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}")
# A link or an image, whose address says little to a model and takes many tokens. Its text may hold one pair of
# brackets (as of a footnote), and no more: a longer search could go over the text again from each bracket in it.
_LINK = re.compile(
    r"!?(?<!\\)\[((?:[^\[\]\\\n]|\\.|\[[^\[\]\n]*+\])*+)\]"
    r"\((?:[^()\s]|\([^()\s]*+\))++(?:\s{1,9}\"[^\"\n]*+\")?\)"
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a page.

    Attributes:
        index: its place in the page, from 0.
        heading: the headings that it stands under, outermost first, joined by " > "; the page's title where it has
            none.
        text: what the page says there, as markdown without the addresses of links.
        hash: of `model_input`, in hexadecimal.
    """

    index: int
    heading: str
    text: str
    hash: str

    @property
    def model_input(self) -> str:
        """What the model reads."""
        return model_input(self.heading, self.text)


@dataclass(frozen=True, slots=True)
class ChunkedPage:
    """The pieces of a page.

    Attributes:
        chunks: in the page's order.
        cut: the page was longer than what is embedded of one.
    """

    chunks: tuple[Chunk, ...]
    cut: bool


def model_input(heading: str, text: str) -> str:
    """A piece as the model reads it."""
    return f"{heading}\n\n{text}" if heading else text


def chunk_page(
    *,
    title: str | None,
    markdown: str | None,
    text: str,
    max_tokens: int,
    count_tokens: Callable[[str], int],
) -> ChunkedPage:
    """Cut a page.

    Args:
        title: of the page.
        markdown: what it says; None or empty: `text` is cut.
        text: what it says, without any form.
        max_tokens: of a piece with its headings.
        count_tokens: the model's own count, special tokens included.
    """
    source = markdown or text
    cut = len(source) > _MAX_CHARACTERS
    source = _without_addresses(source[:_MAX_CHARACTERS])
    sections = _joined(list(_sections(source, _line(title or ""))) if markdown else [(_line(title or ""), source)])
    chunks: list[Chunk] = []
    for path, body in sections:
        heading = _shortened(path, int(max_tokens * _MAX_HEADING_SHARE), count_tokens)
        for piece in _pieces(body, heading, max_tokens, count_tokens):
            if len(chunks) == MAX_CHUNKS:
                return ChunkedPage(tuple(chunks), True)
            chunks.append(Chunk(len(chunks), heading, piece, hash_of(model_input(heading, piece))))
    return ChunkedPage(tuple(chunks), cut)


def hash_of(text: str) -> str:
    """BLAKE2b-128 of what a model reads."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _sections(markdown: str, title: str) -> Iterator[tuple[str, str]]:
    """(headings, text) of each section; a `#` in a code block is none."""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""
    for line in markdown.split("\n"):
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark.group(1)
            elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        if any(one.strip() for one in lines):
            yield _joined_path(path, title), "\n".join(lines).strip("\n")
        lines = []
        level, name = len(heading.group(1)), _heading_text(heading.group(2))
        path = [(depth, above) for depth, above in path if depth < level]
        if name:
            path.append((level, name))
    if any(one.strip() for one in lines):
        yield _joined_path(path, title), "\n".join(lines).strip("\n")


def _joined_path(path: list[tuple[int, str]], title: str) -> str:
    """The headings as one line. The title comes first where the first heading does not say the same."""
    names = [name for _, name in path]
    if title and not (names and (names[0].casefold() in title.casefold() or title.casefold() in names[0].casefold())):
        names.insert(0, title)
    return SEPARATOR.join(names)


def _joined(sections: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Small sections with those that follow them under the same heading; their own headings stay as lines."""
    joined: list[tuple[str, str]] = []
    small = 0
    for path, body in sections:
        # Four letters are about a token: exact enough for what is only a matter of taste.
        size = len(body) // 4
        if joined and small and small + size <= _SMALL_SECTION_TOKENS * 2 and _are_near(joined[-1][0], path):
            above, before = joined[-1]
            common = _common(above, path)
            first = f"{_below(above, common)}\n\n{before}" if _below(above, common) else before
            joined[-1] = (common, f"{first}\n\n{_below(path, common)}\n\n{body}".replace("\n\n\n\n", "\n\n"))
            small = small + size if small + size < _SMALL_SECTION_TOKENS else 0
        else:
            joined.append((path, body))
            small = size if 0 < size < _SMALL_SECTION_TOKENS else 0
    return joined


def _are_near(one: str, other: str) -> bool:
    """The same section, or sections of one."""
    common = _common(one, other)
    return bool(common) and max(_depth(one), _depth(other)) - _depth(common) <= 1


def _common(one: str, other: str) -> str:
    names = []
    for left, right in zip(one.split(SEPARATOR), other.split(SEPARATOR), strict=False):
        if left != right:
            break
        names.append(left)
    return SEPARATOR.join(names)


def _below(path: str, common: str) -> str:
    return path[len(common) :].removeprefix(SEPARATOR) if common else path


def _depth(path: str) -> int:
    return len(path.split(SEPARATOR)) if path else 0


def _pieces(body: str, heading: str, max_tokens: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    """The text of a section in pieces that fit, headings included."""
    stripped = body.strip()
    if not stripped:
        return
    if _fits(stripped, heading, max_tokens, count_tokens):
        yield stripped
        return
    room = max(8, max_tokens - count_tokens(heading) - 2 if heading else max_tokens - 2)
    splitter = _splitter(room, min(OVERLAP_TOKENS, room // 4))
    for part in _parts(stripped):
        for piece in splitter.chunks(part):
            if _fits(piece, heading, max_tokens, count_tokens):
                yield piece
            else:
                # Another tokeniser than the one that cut, or a word without an end: its pieces may be longer.
                yield from _halves(piece, heading, max_tokens, count_tokens)


def _parts(body: str) -> Iterator[str]:
    """A section in parts of bounded length, cut between paragraphs, lines or words where it has any."""
    start = 0
    while len(body) - start > _PART_CHARACTERS:
        end = start + _PART_CHARACTERS
        for gap in ("\n\n", "\n", " "):
            at = body.rfind(gap, start + _PART_CHARACTERS // 2, end)
            if at > 0:
                end = at
                break
        yield body[start:end]
        start = end
    yield body[start:]


def _fits(piece: str, heading: str, max_tokens: int, count_tokens: Callable[[str], int]) -> bool:
    if len(piece) > max_tokens * _CHARACTERS_OF_A_TOKEN:
        return False
    return count_tokens(model_input(heading, piece)) <= max_tokens


def _halves(piece: str, heading: str, max_tokens: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    if len(piece) < 16 or _fits(piece, heading, max_tokens, count_tokens):
        yield piece
        return
    middle = len(piece) // 2
    at = piece.rfind(" ", len(piece) // 4, middle)
    at = at if at > 0 else middle
    for half in (piece[:at].strip(), piece[at:].strip()):
        if half:
            yield from _halves(half, heading, max_tokens, count_tokens)


@lru_cache(maxsize=256)
def _splitter(tokens: int, overlap: int) -> Any:
    from semantic_text_splitter import MarkdownSplitter  # noqa: PLC0415 - only whoever cuts

    return MarkdownSplitter.from_huggingface_tokenizer(tokeniser(), tokens, overlap)


def _shortened(path: str, max_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The headings, without outer ones where they are too long."""
    names = path.split(SEPARATOR) if path else []
    while len(names) > 1 and count_tokens(SEPARATOR.join(names)) > max_tokens:
        del names[0]
    short = SEPARATOR.join(names)
    while len(short) > 8 and count_tokens(short) > max_tokens:
        short = short[: len(short) * 3 // 4].rstrip()
    return short


def _without_addresses(markdown: str) -> str:
    return _LINK.sub(r"\1", markdown)


def _heading_text(given: str) -> str:
    """A heading without markup, and without the `#` that may close it."""
    given = given[:_MAX_HEADING_CHARACTERS].strip()
    without = given.rstrip("#")
    if not without or without[-1] in " \t":
        given = without
    return _line(_MARKUP.sub("", _without_addresses(given)))


def _line(text: str) -> str:
    return " ".join(text.split()).replace(SEPARATOR, " - ")
