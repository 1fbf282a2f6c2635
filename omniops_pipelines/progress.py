"""Lets whoever started a run in this process watch its crawl."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resources.crawler.plan import CrawlPlan, CrawlProgress

    Listener = Callable[[str, CrawlPlan, CrawlProgress], None]

_listeners: list[Listener] = []


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
