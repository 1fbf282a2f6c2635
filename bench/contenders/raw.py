"""The practical limit: aiohttp, lexbor and uvloop, 16 at once, a set of urls seen, nothing kept.

It parses what the others parse (title and links) and obeys, limits and survives nothing.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from urllib.parse import urljoin

import aiohttp
import uvloop
from selectolax.lexbor import LexborHTMLParser
from yarl import URL

from bench.measure import Meter

CONCURRENCY = 16


async def crawl(start: str, meter: Meter) -> None:
    """Crawl everything below `start`."""
    queue: deque[str] = deque([start])
    origin = start.rstrip("/")
    seen = {start}
    titles: set[str] = set()
    pages = 0
    work = asyncio.Semaphore(0)
    work.release()
    under_way = 0
    over = asyncio.Event()

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal pages, under_way
        while True:
            await work.acquire()
            url = queue.popleft()
            under_way += 1
            async with session.get(URL(url, encoded=True), allow_redirects=False) as response:
                body = await response.read()
            tree = LexborHTMLParser(body)
            titles.add(tree.tags("title")[0].text())
            for node in tree.tags("a"):
                href = node.attributes.get("href")
                if href is None:
                    continue
                # urljoin is right for every link, and costs more than all else that is done with one.
                target = origin + href if href[:1] == "/" and href[:2] != "//" else urljoin(url, href)
                if target not in seen:
                    seen.add(target)
                    queue.append(target)
                    work.release()
            pages += 1
            under_way -= 1
            meter.page_count(pages)
            if not queue and not under_way:
                over.set()

    meter.start()
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        workers = [asyncio.create_task(worker(session)) for _ in range(CONCURRENCY)]
        done, _ = await asyncio.wait(
            [*workers, asyncio.create_task(over.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        measured = meter.stop(len(titles))
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for task in done:
            task.result()
    measured.print()


def main() -> None:
    """Crawl once and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    options = parser.parse_args()
    uvloop.run(crawl(options.url, Meter("raw")))


if __name__ == "__main__":
    main()
