"""That no step of reading a page is large, whatever the page is: by counts, not by the clock."""

from __future__ import annotations

import asyncio
import re

import pytest
from selectolax.lexbor import LexborHTMLParser

from resources.crawler import page
from resources.crawler.page import LINKS_AT_ONCE, MAX_TRIED_LINKS, parse, parse_in_turns
from resources.crawler.pieces import LEAST_CHARACTERS, MAX_OPEN, WHOLE_CHARACTERS, is_harmless, pieces
from resources.crawler.urls import Joiner
from tests.unit.crawler.test_page import HOSTILE, URL

# What a tag may have at most: all of the smallest piece, or what is written with quotes and pays with a "<" for each.
MOST_ATTRIBUTES = max(LEAST_CHARACTERS // 2, MAX_OPEN + 1_000)

MANY = "".join(f"{chr(0x100 + n)}/" for n in range(30_000))
TRICKS = {
    "plain": f"<x {MANY}>",
    "a page of 60 KB": f"<x {MANY[:55_000]}>",
    "behind a comment that looks like an open quote": f'<!-- <a title=" --><x {MANY}>"',
    "behind a value that looks like a tag": f"<x q='>' {MANY}>",
    "behind a script that looks like a tag": f"<script><a b='</script><x {MANY}>",
    "in an end tag": f"<p></p {MANY}>",
    "each with a quoted end": "<x " + "".join(f"{chr(0x100 + n)}='>'" for n in range(60_000)) + ">",
    "each with a quoted beginning and end": "<x " + "".join(f"{chr(0x100 + n)}='<>'" for n in range(50_000)) + ">",
    "no end at all": f"<x {MANY}",
}


def most_attributes(text: str) -> int:
    tree = LexborHTMLParser(text)
    return max((len(node.attributes) for node in tree.css("*")), default=0)


@pytest.mark.parametrize("name", TRICKS)
def test_no_piece_has_a_tag_with_very_many_attributes(name: str) -> None:
    cut = list(pieces(TRICKS[name]))
    assert max(map(most_attributes, cut)) <= MOST_ATTRIBUTES


@pytest.mark.parametrize("name", HOSTILE)
def test_each_piece_is_harmless_or_small(name: str) -> None:
    text = HOSTILE[name].decode("latin-1").replace("\0", "")[: 2**20]
    for piece in pieces(text):
        assert len(piece) <= LEAST_CHARACTERS + len("<table>") or (
            len(piece) <= WHOLE_CHARACTERS and is_harmless(piece)
        )


def test_nothing_of_a_page_is_lost_between_its_pieces() -> None:
    text = "".join(f"<p>{n} words" for n in range(60_000))
    assert "".join(pieces(text)) == text
    assert len(list(pieces(text))) > 10


def test_an_ordinary_page_is_one_piece() -> None:
    text = "<!doctype html><title>x</title>" + "<div class=a><p>Some <b>words</b> <a href=/x>x</a></p></div>\n" * 900
    assert len(text) > 40_000
    assert list(pieces(text)) == [text]


def test_data_in_an_attribute_does_not_cut_a_page() -> None:
    data = "".join(f"&quot;name {n}&quot;: &quot;some words&quot;, " for n in range(4_000))
    found = parse(f'<title>T</title><div id=app data-page="{data}"><p>Hello <a href=/x>there</a></div>'.encode(), URL)
    assert (found.title, found.text, found.links) == ("T", "Hello there", ["https://example.com/x"])


@pytest.mark.parametrize("name", HOSTILE)
def test_between_the_steps_the_loop_has_its_turn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE_SECONDS", float("inf"))
    body = HOSTILE[name][: 300 * 1024]

    async def main() -> tuple[page.Page, int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.ensure_future(others())
        found = await parse_in_turns(body, URL)
        beside.cancel()
        return found, turns

    found, turns = asyncio.run(main())
    text = body.decode("latin-1").replace("\0", "")
    assert turns >= sum(1 for _ in pieces(text)) - 1
    assert found == parse(body, URL)


@pytest.mark.parametrize(
    "link", ["<a href=/p>", "<a href='http://['>", "<iframe src=/p></iframe>", "<link rel=next href=/x>"]
)
def test_links_are_read_some_at_a_time_and_not_without_end(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE_SECONDS", float("inf"))
    joined: list[int] = [0]

    class _Counting(Joiner):
        def __call__(self, target: str) -> str:
            joined[-1] += 1
            return super().__call__(target)

    monkeypatch.setattr(page, "Joiner", _Counting)
    reading = page._reading(
        (link * 30_000).encode(), URL, "text/html", None, with_text=False, respect_nofollow=True, robots_header=None
    )
    for _ in reading:
        joined.append(0)
    assert max(joined) <= LINKS_AT_ONCE
    assert sum(joined) == MAX_TRIED_LINKS


def test_large_texts_and_odd_bytes_are_read_in_steps() -> None:
    for body, kind, charset in ((b"a\n" * 2**20, "text/plain", None), (b"\xff\x81" * 2**20, "text/html", "gb18030")):
        steps = page._reading(body, URL, kind, charset, with_text=True, respect_nofollow=True, robots_header=None)
        assert sum(1 for _ in steps) >= len(body) // page.DECODED_AT_ONCE


def test_bytes_that_a_charset_does_not_have_are_replaced() -> None:
    found = parse(b"<p>caf\xe9 \x81 \x80" + b"\x8f" * 1_000, URL, "text/html", "windows-1252")
    assert re.fullmatch("café \ufffd €\ufffd{1000}", found.text)
    assert found.cleaned == 1_001
