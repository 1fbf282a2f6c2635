"""What follows a commit: nothing that was committed is left out at the end."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict

from resources.crawler.after_commit import INDEXERS, CommitFollowers
from resources.postgres.frontier import FinishedUrl, PageContent


def page(number: int) -> FinishedUrl:
    content = PageContent("x.example", None, None, None, None, 200, None, None, None, "words", 1)
    return FinishedUrl(number, f"https://x.example/{number}", 0, "success", content=content)


def test_a_commit_that_comes_while_texts_are_being_indexed_is_indexed_before_the_end() -> None:
    waiting: list[int] = []
    lock, let_go = threading.Lock(), threading.Event()
    started = threading.Semaphore(0)

    def index(most: int) -> int:
        # As the database does: what is committed later is not seen by a statement that has begun.
        with lock:
            seen = waiting[:most]
            del waiting[: len(seen)]
        started.release()
        assert let_go.wait(10)
        return len(seen)

    async def crawl() -> None:
        with CommitFollowers(None, index, defaultdict(float)) as followers:
            for number in range(INDEXERS):
                waiting.append(number)
                await followers.after_commit([page(number)])
                assert await asyncio.to_thread(started.acquire, timeout=10)
            # All are busy with what was there when they began.
            waiting.append(INDEXERS)
            await followers.after_commit([page(INDEXERS)])
            end = asyncio.create_task(followers.finish(None))
            await asyncio.sleep(0)
            let_go.set()
            await asyncio.wait_for(end, 10)

    asyncio.run(crawl())
    assert waiting == []
