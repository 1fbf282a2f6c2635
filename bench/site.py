"""A generated website, served from memory by something faster than any crawler.

Page 0 is `/`, page n is `/page/n`. A page has about 25 KB of HTML and 30 links; it is put together for each
request from three pieces: a head of its own (title, links), one of 256 shared articles, and a foot. So the
server's memory does not grow with the number of pages, and the pages still have different texts.

Run: `python -m bench.site --pages 2000` prints the url and serves until it is killed.
`python -m bench.site --check` prints how many requests a second it answers to one raw client.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS = 30
# A page links to this many pages that no page in front of it links to, so every page is reachable, and the whole
# site within five clicks at 20,000 pages.
CHILDREN = 10
ARTICLES = 256
_SEED = 20261124

_STOP_WORDS = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or had
    an they which one you were all her she there would their we him been has when who will no more if
    out so up said what its about than into them can only other time new some could these two may first
    then do
"""
_STEMS = """
    account adapt agree arrang assembl balanc bear blend board bottl branch bright brush build camp
    carry cast chain charg check clean clear climb coat collect colour compar connect contain cook cool
    cover craft cut deliver design develop direct display divid draw drive edit engin equip examin
    expand fasten filter finish fit flow fold form frame freez garden gather glaz grain grind guard guid
    handl harden heat hold improv insulat invent join kettl knit label lamp layer lead learn level lift
    light line load lock machin maintain manag mark match measur melt mend mill mix mount mould order
    organ pack paint panel pattern plan plant plat polish pour prepar press print process protect pump
    quilt rais record reduc refin repair replac report rest return roast roll sail sand seal select serv
    shap sharpen shelter ship shift slic smooth solder sort spin spray stack stain steam stitch stor
    stretch supply support surfac switch tailor tann test thread tight till tool trac train trim tub
    turn upholster valu varnish ventilat wash weav weigh weld wind work wrap
"""
_ENDINGS = ("", "e", "ed", "er", "ers", "ing", "ings", "able", "ment", "ments", "ation", "ly", "ness", "or", "ive")
_SYLLABLES = """
    ba co du fe gra hi jo ka lu mo ne or pra qui ro sta tu vel wo xan yo zen tri lor min dar
"""


def _vocabulary(chance: random.Random) -> list[str]:
    words = [stem + ending for stem in _STEMS.split() for ending in _ENDINGS]
    # Names of products and places, which no stemmer knows; sorted, since the order of a set is none.
    syllables = _SYLLABLES.split()
    words += sorted({"".join(chance.choices(syllables, k=3)).capitalize() for _ in range(1_500)})
    chance.shuffle(words)
    return words


class _Prose:
    """Sentences of English proportions: half of the words are stop words, the others follow Zipf's law."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._words = _vocabulary(chance)
        self._stop_words = _STOP_WORDS.split()
        total = 0.0
        self._cumulative = [total := total + 1 / (rank + 20) for rank in range(len(self._words))]

    def words(self, count: int) -> list[str]:
        chance = self._chance
        rare = chance.choices(self._words, cum_weights=self._cumulative, k=count)
        return [chance.choice(self._stop_words) if chance.random() < 0.45 else word for word in rare]

    def sentence(self) -> str:
        words = self.words(self._chance.randint(7, 22))
        if self._chance.random() < 0.15:
            words.append(str(self._chance.randint(2, 2_400)))
        text = " ".join(words)
        return text[0].upper() + text[1:] + "."

    def paragraph(self) -> str:
        return " ".join(self.sentence() for _ in range(self._chance.randint(3, 6)))

    def heading(self) -> str:
        return " ".join(self.words(4)).capitalize()


def _article(prose: _Prose, size: int) -> bytes:
    """The part of a page that pages share: markup as a site's template makes it, about half of it text."""
    parts: list[str] = []
    length = 0
    number = 0
    while length < size:
        number += 1
        part = (
            f'<section class="section section--text" id="section-{number}" data-block="text" data-order="{number}">'
            f'<h2 class="section__title">{prose.heading()}</h2>'
            f'<p class="section__text">{prose.paragraph()}</p>'
            f'<p class="section__text">{prose.paragraph()} <strong>{prose.sentence()}</strong></p>'
            f'<ul class="list list--checks"><li class="list__item">{prose.heading()}</li>'
            f'<li class="list__item">{prose.heading()}</li><li class="list__item">{prose.heading()}</li></ul>'
            f'<figure class="figure"><img class="figure__image" src="/images/{number}.jpg" '
            f'srcset="/images/{number}-480.jpg 480w, /images/{number}-960.jpg 960w" width="960" height="540" '
            f'loading="lazy" alt="{prose.heading()}"><figcaption>{prose.sentence()}</figcaption></figure>'
            "</section>\n"
        )
        parts.append(part)
        length += len(part)
    return "".join(parts).encode()


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Page %d of the workshop's catalogue</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="What to know about article %d: how it is made, what it costs, how it is kept.">
<meta property="og:title" content="Article %d">
<link rel="canonical" href="%s">
<link rel="stylesheet" href="/static/site.css">
<style>.page{max-width:72rem;margin:auto}.nav__item{display:inline-block}.card{border:1px solid #ddd}</style>
<script type="application/ld+json">{"@context":"https://schema.org","@type":"Product","sku":"%d"}</script>
</head>
<body class="page page--article">
<header class="header"><nav class="nav"><ul class="nav__list">
"""
_LINK = '<li class="nav__item"><a class="nav__link card" href="%s" title="Article %d">See article %d</a></li>\n'
_AFTER_LINKS = '</ul></nav></header>\n<main class="main">\n<h1 class="main__title">Article %d</h1>\n'
_FOOT = b"""</main>
<footer class="footer"><p>Made in the workshop, delivered to your door. All prices include tax.</p></footer>
<script>document.documentElement.classList.add("js");window.dataLayer=window.dataLayer||[];</script>
</body>
</html>
"""
_TEMPLATE = (_HEAD + _LINK * LINKS + _AFTER_LINKS).replace("\n\n", "\n")
_ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nETag: "%d"\r\n'
    b"Last-Modified: Mon, 23 Nov 2026 08:00:00 GMT\r\nContent-Length: %d\r\n\r\n"
)
_NOT_MODIFIED = b'HTTP/1.1 304 Not Modified\r\nETag: "%d"\r\n\r\n'
_CONDITION = re.compile(rb'^If-None-Match: "(\d{1,9})"\r?$', re.IGNORECASE | re.MULTILINE).search
_ROBOTS_BODY = b"User-agent: *\nAllow: /\n"
_ROBOTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_ROBOTS_BODY),
    _ROBOTS_BODY,
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"


def path_of(page: int) -> str:
    """The path of a page."""
    return f"/page/{page}" if page else "/"


class Site:
    """The pages.

    Args:
        pages: how many.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        prose = _Prose(random.Random(_SEED))
        self._articles = [_article(prose, 20_500) for _ in range(ARTICLES)]
        self._origin = ""

    def serve_at(self, origin: str) -> None:
        """Say where the site is, for its canonical urls."""
        self._origin = origin

    def links(self, page: int) -> list[int]:
        """The pages that a page links to: home, its parent, its children, its neighbours, and some anywhere."""
        pages = self.pages
        first = page * CHILDREN + 1
        children = list(range(first, min(first + CHILDREN, pages)))
        near = [0, max(0, page - 1) // CHILDREN, (page + 1) % pages, (page - 1) % pages]
        far = [(page * 7_919 + step * step * 104_729) % pages for step in range(1, LINKS + 1)]
        return (near + children + far)[:LINKS]

    def body(self, page: int) -> list[bytes]:
        """A page in three pieces."""
        path = path_of(page)
        values: list[object] = [page, page, page, self._origin + path, page]
        for target in self.links(page):
            values += (path_of(target), target, target)
        values.append(page)
        return [(_TEMPLATE % tuple(values)).encode(), self._articles[page % ARTICLES], _FOOT]

    def answer(self, path: bytes, known: int | None = None) -> bytes:
        """The whole answer to a GET of a path, by one who has the page of this ETag."""
        if path == b"/":
            page = 0
        elif path.startswith(b"/page/") and path[6:].isdigit() and 0 < int(path[6:]) < self.pages:
            page = int(path[6:])
        else:
            return _ROBOTS if path == b"/robots.txt" else _NOT_FOUND
        if page == known:
            return _NOT_MODIFIED % page
        pieces = self.body(page)
        return b"".join([_ANSWER % (page, sum(map(len, pieces))), *pieces])


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as a crawler needs it: GET without a body, keep-alive, pipelining."""

    def __init__(self, site: Site, latency: float) -> None:
        self._site = site
        self._latency = latency
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            line = request.split(b"\r\n", 1)[0].split(b" ")
            tag = _CONDITION(request)
            answer = self._site.answer(line[1], int(tag[1]) if tag else None) if len(line) == 3 else _NOT_FOUND
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve(site: Site, latency: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(site, latency), "127.0.0.1", 0, backlog=1_024)
    port = server.sockets[0].getsockname()[1]
    site.serve_at(f"http://127.0.0.1:{port}")
    print(f"http://127.0.0.1:{port}/", flush=True)
    # Ends with its parent, however that ends: then this pipe is closed.
    await loop.run_in_executor(None, sys.stdin.buffer.read)


@contextmanager
def serving(pages: int, latency: float = 0.0) -> Iterator[str]:
    """The site in a process of its own, each answer so many seconds late; gives its url."""
    command = [sys.executable, "-m", "bench.site", "--pages", str(pages), "--latency", str(latency)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or not (url := process.stdout.readline().strip()):
            msg = "the generated site did not start: run `python -m bench.site` to see why"
            raise RuntimeError(msg)
        yield url
    finally:
        process.communicate("")


def requests_per_second(url: str, seconds: float = 2.0, window: int = 16) -> float:
    """How fast a site of 100 pages or more answers one raw client on one connection, nothing parsed."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    answered = 0
    with socket.create_connection((host, int(port)), timeout=10) as connection:

        def ask(page: int) -> None:
            connection.sendall(b"GET /page/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (page % 99 + 1))

        first_line = b"HTTP/1.1 200 OK"
        tail = b""
        for page in range(window):
            ask(page)
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            data = tail + connection.recv(1 << 20)
            tail = data[1 - len(first_line) :]  # a first line may be cut by the end of a read
            for _ in range(data.count(first_line)):
                answered += 1
                ask(answered)
    return answered / elapsed


def main() -> None:
    """Serve, or measure the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=2_000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--check", action="store_true", help="measure the server against one raw client")
    options = parser.parse_args()
    if options.check:
        with serving(options.pages) as url:
            print(f"{requests_per_second(url):,.0f} requests/s")
        return
    import uvloop

    uvloop.run(_serve(Site(options.pages), options.latency))


if __name__ == "__main__":
    main()
