"""Which documents are empty shells, and what is learned of a site."""

from __future__ import annotations

import asyncio

import pytest

from resources.crawler.rendering.shells import TRIALS, PatternMemory, is_shell

URL = "https://shop.example/a/b"
WORDS = "<p>" + "A page that the server wrote, with quite some words on it. " * 30 + "</p>"
BUNDLE = "<script src='/main.3f2a.js'></script>"


@pytest.mark.parametrize(
    "html",
    [
        f"<div id='root'></div>{BUNDLE}",
        f"<div id=app><!-- drawn by script --></div>{BUNDLE}",
        f"<app-root></app-root>{BUNDLE}",
        f"<noscript>You need to enable JavaScript to run this app.</noscript>{BUNDLE}",
        f"<body><header>Acme</header><div class='spinner'>Loading …</div>{BUNDLE}</body>",
        "<div id='root'></div><noscript>Bitte aktivieren Sie JavaScript.</noscript><script>boot()</script>",
        f"<noscript>{WORDS} JavaScript is required</noscript><div id='__next'></div>{BUNDLE}",
        f"<div id='root'></div><noscript>Please enable JavaScript</noscript>{'Imprint and terms. ' * 30}{BUNDLE}",
    ],
)
def test_what_waits_for_scripts(html: str) -> None:
    assert asyncio.run(is_shell(html.encode(), URL))


@pytest.mark.parametrize(
    "html",
    [
        "",
        "<p>Short, and without any script.</p>",
        WORDS + BUNDLE,
        f"<div id='root'>{WORDS}</div>{BUNDLE}",
        f"{WORDS}<noscript><img src='/pixel'></noscript>{BUNDLE}",
        f"{WORDS}<div id='app'></div>{BUNDLE}",
        "<p>Short.</p><script>window.dataLayer = []</script>",
    ],
)
def test_what_the_server_has_said(html: str) -> None:
    assert not asyncio.run(is_shell(html.encode(), URL))


def test_signs_are_found_in_bounded_time_in_anything() -> None:
    for piece in (b"<noscript>", b"<noscript>javascript", b"<div id='root'>", b"<x-y>", b"<script ", b"<a-a>\n"):
        asyncio.run(is_shell(b"<script src=x></script>" + piece * (2**19 // len(piece)), URL))


def test_a_part_of_a_site_that_gains_nothing_is_left_alone_for_a_while() -> None:
    memory = PatternMemory()
    for n in range(TRIALS):
        assert memory.worth(f"https://shop.example/thin/{n}")
        memory.learn(f"https://shop.example/thin/{n}", 10, 20)
    assert not memory.worth("https://shop.example/thin/more")
    assert memory.worth("https://shop.example/rich/more")
    assert memory.worth("https://other.example/thin/more")
    assert any(memory.worth("https://shop.example/thin/later") for _ in range(200))


def test_a_part_of_a_site_that_gained_once_is_always_rendered() -> None:
    memory = PatternMemory()
    memory.learn("https://shop.example/app/1", 0, 5_000)
    for n in range(3 * TRIALS):
        memory.learn(f"https://shop.example/app/{n}", 0, 0)
    assert memory.worth("https://shop.example/app/next")
