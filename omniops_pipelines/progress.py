"""Lets whoever started a run in this process watch its crawl."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resources.crawler.plan import CrawlPlan, CrawlProgress

    Listener = Callable[[str, CrawlPlan, CrawlProgress], None]
    EmbeddingListener = Callable[[str, int, int], None]

logger = logging.getLogger(__name__)

_listeners: list[Listener] = []
_embedding_listeners: list[EmbeddingListener] = []

_LOOK_SECONDS = 0.5


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener(job_id, plan, progress)` a few times a second while crawls run in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def publish(job_id: str, plan: CrawlPlan, progress: CrawlProgress) -> None:
    """Tell the listeners."""
    for listener in _listeners:
        listener(job_id, plan, progress)


@contextmanager
def listening_to_embedding(listener: EmbeddingListener) -> Iterator[None]:
    """Call `listener(job_id, pages embedded, pages to embed)` a few times a second while pages are embedded."""
    _embedding_listeners.append(listener)
    try:
        yield
    finally:
        _embedding_listeners.remove(listener)


def publish_embedding(job_id: str, embedded: int, pages: int) -> None:
    """Tell those listeners."""
    for listener in _embedding_listeners:
        listener(job_id, embedded, pages)


@contextmanager
def following_database(job_id: str, plan: CrawlPlan) -> Iterator[None]:
    """Publish what Postgres has of a job whose workers are other processes, while the body runs."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(job_id, plan, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * _LOOK_SECONDS)


def _follow(job_id: str, plan: CrawlPlan, ended: threading.Event) -> None:
    # Imported here: the crawl's own processes publish and follow nothing.
    from resources import stack  # noqa: PLC0415
    from resources.crawler.plan import CrawlProgress  # noqa: PLC0415

    manager = stack.get_persistent_job_manager()
    started = time.monotonic()
    before: int | None = None
    while not ended.wait(_LOOK_SECONDS):
        try:
            stats = manager.get_job_stats(job_id)
            waiting = manager.count_waiting_urls(job_id)
        except Exception as error:  # noqa: BLE001 - a bar that stands still for a moment; the workers say what is wrong
            logger.debug("progress of job %s cannot be read: %s", job_id, error)
            continue
        before = stats.total_pages if before is None else before
        progress = CrawlProgress(
            stats.total_pages, stats.successful_pages, stats.failed_pages, stats.skipped_pages,
            fetched=stats.total_pages - before, waiting=waiting, seconds=time.monotonic() - started,
        )  # fmt: skip
        publish(job_id, plan, progress)
