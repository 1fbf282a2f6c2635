"""The crawl's progress at the terminal: pages, rate, queue, failures, time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from resources.crawler.plan import CrawlPlan, CrawlProgress

# Where standard error is no terminal (a log file, CI), a line now and then says that it goes on.
_PLAIN_LINE_SECONDS = 10.0


class CrawlBar:
    """A progress bar that a crawl's progress is told to; a line every ten seconds where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain_at = time.monotonic() + _PLAIN_LINE_SECONDS
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.completed:,.0f}[/] pages"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.1f}/s"),
            TextColumn("{task.fields[waiting]:,} waiting"),
            TextColumn("{task.fields[failed]:,} failed"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("crawl", total=None, rate=0.0, waiting=0, failed=0, left="")

    def __enter__(self) -> CrawlBar:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take it off the screen."""
        self._bar.stop()

    def update_embedding(self, job_id: str, embedded: int, pages: int) -> None:
        """Show how many of the job's pages are embedded, after its crawl."""
        del job_id
        left = f"embedding {pages:,} pages"
        self._bar.update(self._task, completed=embedded, total=pages, waiting=max(0, pages - embedded), left=left)
        if not self._console.is_terminal and time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_LINE_SECONDS
            self._console.print(f"{embedded:,} of {pages:,} pages embedded")

    def update(self, job_id: str, plan: CrawlPlan, progress: CrawlProgress) -> None:
        """Show how far the crawl is. `job_id` is for listeners with several jobs."""
        del job_id
        known = progress.total + progress.waiting + progress.in_flight
        total = min(plan.max_pages, known)
        left = ""
        if progress.pages_per_second > 0 and total > progress.total:
            # What is known now; a crawl finds more as it goes, so it is "at least".
            left = f"≥ {(total - progress.total) / progress.pages_per_second:,.0f} s left"
        self._bar.update(
            self._task,
            completed=progress.total,
            total=total,
            rate=progress.pages_per_second,
            waiting=progress.waiting,
            failed=progress.failed,
            left=left,
        )
        if not self._console.is_terminal and time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_LINE_SECONDS
            self._console.print(
                f"{progress.total:,} pages, {progress.pages_per_second:,.1f}/s, "
                f"{progress.waiting:,} waiting, {progress.failed:,} failed"
            )
