"""Pages that hang, crash or swell cost themselves alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from resources.content.extraction import extract
from resources.content.pool import ExtractionPool
from resources.postgres.page_html import FetchedHtml

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "https://shop.example/page"
PAGE = (
    b"<html lang='en'><title>Grinder</title><nav><a href='/'>Home</a></nav><main><h1>Grinder</h1>"
    + b"<p>The grinder has forty steps and costs 129 euros, with a brush and a spare burr.</p>" * 5
    + b"</main></html>"
)


def page(name: str = "page", body: bytes = PAGE) -> FetchedHtml:
    return FetchedHtml(f"https://shop.example/{name}", body, "text/html", "utf-8")


@pytest.fixture
def pool() -> Iterator[ExtractionPool]:
    with ExtractionPool(2, page_seconds=30, memory_bytes=700 * 2**20) as made:
        yield made


def test_a_page_says_the_same_as_without_the_pool(pool: ExtractionPool) -> None:
    read = asyncio.run(pool.extract(page()))
    assert read.failure is None
    assert read.extracted == extract(PAGE, URL, content_type="text/html", charset="utf-8")
    assert "129 euros" in read.extracted.text


@pytest.mark.parametrize(("name", "reason", "page_seconds"), [
    ("hang", "timeout", 1), ("sleep", "timeout", 1), ("crash", "crash", 60), ("swell", "memory", 60),
])  # fmt: skip
@pytest.mark.usefixtures("mischief")
def test_a_hostile_page_costs_itself_alone(name: str, reason: str, page_seconds: float) -> None:
    pool = ExtractionPool(2, page_seconds=page_seconds, memory_bytes=700 * 2**20)

    async def read_all() -> list[str | None]:
        pages = await asyncio.gather(*(pool.extract(page(n)) for n in ("one", name, "two", "three")))
        assert all("129 euros" in read.extracted.text for read in pages)
        return [read.failure for read in pages]

    with pool:
        assert asyncio.run(read_all()) == [None, reason, None, None]
    assert pool.failures == {reason: 1}


@pytest.mark.usefixtures("mischief")
def test_many_hostile_pages_do_not_write_many_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def read_all(pool: ExtractionPool) -> None:
        for _ in range(6):  # one after the other, so that the order of the lines is known
            await pool.extract(page("crash"))

    with ExtractionPool(1, page_seconds=60) as pool:
        asyncio.run(read_all(pool))
        assert pool.failures == {"crash": 6}
    one = "the main text of https://shop.example/crash could not be told (crash): all that is visible is kept"
    several = "the main text of {} pages could not be told (crash)"
    assert [record.getMessage() for record in caplog.records] == [one] * 3 + [several.format(4), several.format(6)]


def test_the_careful_extractor_runs_where_the_fast_one_is_unsure(pool: ExtractionPool) -> None:
    paragraphs = "".join(
        f"<p>Step {n} of the grinder takes {n} seconds, costs {100 + n} euros, and comes with a brush and a burr.</p>"
        for n in range(8)
    )
    comments = "".join(
        f"<div class='comment'><p>Visitor {n} has a word to say on all of it, and says it at length.</p></div>"
        for n in range(40)
    )
    body = (
        "<html lang='en'><head><title>Grinder</title><meta property='og:type' content='article'></head><body>"
        f"<article><h1>Grinder</h1>{paragraphs}</article><div class='comments'>{comments}</div></body></html>"
    ).encode()
    read = asyncio.run(pool.extract(page("article", body)))
    assert (read.extracted.method, read.failure) == ("careful", None)
    assert "104 euros" in read.extracted.text
    assert "Visitor" not in read.extracted.text


def test_what_a_site_repeats_is_left_out(pool: ExtractionPool) -> None:
    banner = b"<div class='bar'><p>We use cookies to improve your visit and remember what you like</p></div>"
    ours = page("ours", PAGE.replace(b"<main>", b"<main>" + banner))
    other = page("other", ours.body.replace(b"rinder", b"oaster"))

    async def read() -> tuple[str, str]:
        repeated = await pool.survey(ours) & await pool.survey(other)
        before, after = await pool.extract(ours), await pool.extract(ours, repeated)
        return before.extracted.text, after.extracted.text

    before, after = asyncio.run(read())
    assert "cookies" in before
    assert "129 euros" in before
    assert "cookies" not in after
    assert "129 euros" in after


def test_closing_ends_every_process_whatever_it_does(mischief: None) -> None:
    async def leave() -> list[psutil.Process]:
        with ExtractionPool(2, page_seconds=60) as pool:
            reading = [asyncio.ensure_future(pool.extract(page(n))) for n in ("hang", "sleep")]
            me = psutil.Process()
            while len(workers := _workers(me)) < 2:  # noqa: ASYNC110 - other processes set no event
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
        await asyncio.gather(*reading, return_exceptions=True)
        return workers

    for worker in asyncio.run(leave()):
        assert not worker.is_running()


def test_no_process_outlives_a_killed_crawl() -> None:
    program = (
        "import asyncio, sys\n"
        "from resources.content.pool import ExtractionPool\n"
        "from resources.postgres.page_html import FetchedHtml\n"
        "async def main():\n"
        "    pool = ExtractionPool(2)\n"
        f"    page = FetchedHtml({URL!r}, b'<p>one</p>', 'text/html', None)\n"
        "    await asyncio.gather(pool.extract(page), pool.extract(page))\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    crawl = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert crawl.stdout is not None
    assert crawl.stdout.readline() == "ready\n"
    workers = _workers(psutil.Process(crawl.pid))
    assert len(workers) == 2
    crawl.send_signal(signal.SIGKILL)
    crawl.wait()
    deadline = time.monotonic() + 20
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_running() for worker in workers)


def _workers(process: psutil.Process) -> list[psutil.Process]:
    return [c for c in process.children(recursive=True) if "resources.content.worker" in " ".join(c.cmdline())]
