"""A crawl of a site that is far away: how near it comes to what is possible, and what a second worker adds.

`python -m bench.latency` crawls 2,000 pages, each answered after 200 ms, 32 at once: 32 / 0.2 s = 160 pages/s are
possible. `--workers 2` has two processes share the job, after one alone, and gives the ratio of both.

Everything is on: Postgres, Valkey, robots.txt, the shared limiter, which this site does not make wait. The clock runs
from the moment at which all workers are ready to the end of the last one. A run that lost or doubled a page fails.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.contenders.stores import new_job
from bench.site import serving
from resources import stack
from resources.crawler.plan import CrawlPlan
from resources.postgres.migrate import migrate
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

WANTED = 0.9
WANTED_OF_TWO = 1.9


@dataclass(frozen=True, slots=True)
class Run:
    """One crawl.

    Attributes:
        workers: processes that shared it.
        pages: finished, all together.
        seconds: from the start of all to the end of the last.
        by_worker: pages of each.
        waited: seconds that politeness held urls back, all together.
    """

    workers: int
    pages: int
    seconds: float
    by_worker: list[int]
    waited: float

    @property
    def rate(self) -> float:
        """Pages a second."""
        return self.pages / self.seconds


@contextmanager
def servers() -> Iterator[None]:
    """Postgres and Valkey in a temporary folder, which this process and its workers use."""
    home = Path(tempfile.gettempdir()) / f"omniops-bench-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    for name in ("OMNIOPS_DATABASE_URL", "OMNIOPS_OWNER_DATABASE_URL", "OMNIOPS_REDIS_URL"):
        os.environ.pop(name, None)
    os.environ["OMNIOPS_HOME"] = str(home)
    try:
        with acquire(Settings.from_environment()) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            yield
            stack.release()
    finally:
        rmtree(home, ignore_errors=True)


def crawl(url: str, pages: int, concurrency: int, workers: int) -> Run:
    """Crawl once, with so many processes on one job.

    Raises:
        RuntimeError: a worker failed, or a page is missing or there twice.
    """
    plan = CrawlPlan(urls=(url,), max_pages=1_000_000, concurrency=concurrency, allow_private=True, keep_text=False)
    order = new_job(plan)
    command = [sys.executable, "-m", "bench.contenders.worker", order.job_id]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
    ]
    for process in started:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise RuntimeError("a worker did not start: its error stands above")
    begin = time.monotonic()
    for process in started:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()
    # Each ends by itself; the lines are short, so no pipe is full meanwhile.
    lines = [process.stdout.readline() if process.stdout is not None else "" for process in started]
    seconds = time.monotonic() - begin
    for process in started:
        process.communicate()
    if not all(lines):
        raise RuntimeError("a worker failed: its error stands above")
    said = [json.loads(line) for line in lines]
    order.manager.update_job_status(order.job_id, "completed", finish_reason="exhausted")
    done = order.manager.get_job_stats(order.job_id)
    if (done.total_pages, done.successful_pages) != (pages, pages):
        msg = f"{done.successful_pages} of {done.total_pages} results are pages, and the site has {pages}"
        raise RuntimeError(msg)
    return Run(workers, pages, seconds, [line["pages"] for line in said], sum(line["politeness"] for line in said))


def report(runs: list[Run], console: Console, possible: float) -> None:
    """Medians beside what is possible and wanted."""
    table = Table(title="Medians (least-most)", title_justify="left")
    for heading in ("workers", "pages/s", "of", "ratio", "wanted", "polite wait, s"):
        table.add_column(heading, justify="right", no_wrap=True)
    rates: dict[int, float] = {}
    for workers in sorted({run.workers for run in runs}):
        chosen = [run for run in runs if run.workers == workers]
        values = [run.rate for run in chosen]
        rates[workers] = middle = statistics.median(values)
        table.add_row(
            str(workers),
            f"{middle:,.1f} ({min(values):,.1f}-{max(values):,.1f})",
            f"{possible * workers:,.0f}",
            f"{middle / (possible * workers):.3f}",
            f">= {WANTED}" if workers == 1 else "-",
            f"{statistics.median(run.waited for run in chosen):.2f}",
        )
    console.print(table)
    for workers in sorted(rates):
        if workers > 1 and 1 in rates:
            wanted = f" (wanted: {WANTED_OF_TWO})" if workers == 2 else ""
            console.print(f"{workers} workers / 1 worker: {rates[workers] / rates[1]:.2f}{wanted}")


def main() -> None:
    """Run the rounds and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once of each worker")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds before each answer")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the job, after one alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every run's figures to this file")
    options = parser.parse_args()
    console = Console()
    possible = options.concurrency / options.latency
    runs = []
    with servers(), serving(options.pages, options.latency) as url:
        for number in range(1, options.rounds + 1):
            for workers in sorted({1, options.workers}):
                run = crawl(url, options.pages, options.concurrency, workers)
                runs.append(run)
                console.print(
                    f"  round {number}: {workers} worker{'s' if workers > 1 else ''}: {run.rate:,.1f} pages/s "
                    f"of {possible * workers:,.0f} possible ({', '.join(map(str, run.by_worker))} pages)"
                )
    report(runs, console, possible)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
