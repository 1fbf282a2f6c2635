"""The audit trail: how fast results are written and read, beside the fastest plain bulk insert.

Writing: `PersistentJobManager.add_job_results` in batches of 500 (statistics trigger, row-level security, indexes,
and the cache), beside a table that is identical but for trigger and policies, filled by COPY and by one multi-row
INSERT in the same batches and commits. Reading: `get_job_stats` and the first page of
`get_job_results_from_postgres`, with the table as large as asked for. All of it is set up here and removed after.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.jobs import PersistentJobManager
from resources.postgres.migrate import migrate
from resources.redis import RedisWithFallback
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from resources.services import Endpoints

BATCH = 500
WRITTEN = 100_000
LONG_JOB = 1_000_000
EDGE = 50_000
READ_ROWS = 10_000_000
WANTED_SHARE = 0.6
WANTED_DRIFT = 0.15
WANTED_MS = 5.0

Row = dict[str, Any]


def batch_of(first: int) -> list[Row]:
    """500 results as a crawl gives them; their urls come in no order."""
    return [
        {
            "url": f"https://shop.example/{(n * 2_654_435_761) % 2**32:08x}/{n}.html",
            "status": "success",
            "http_status": 200,
            "processing_time_ms": n % 900,
            "content_hash": f"{n:032x}",
        }
        for n in range(first, first + BATCH)
    ]


class Bench:
    """A migrated cluster with one customer, and the plain table beside it."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        engine = engine_for(endpoints.database_url)
        self.cached = PersistentJobManager(engine, RedisWithFallback(endpoints.redis_url))
        self.uncached = PersistentJobManager(engine, None)
        self.admin = make_url(endpoints.database_url).set(username="postgres").render_as_string(hide_password=False)
        self._jobs = 0
        with psycopg.connect(self.admin, autocommit=True) as c:
            c.execute("CREATE SCHEMA bench")
            c.execute("CREATE TABLE bench.plain (LIKE scrape_job_results INCLUDING ALL)")
            c.execute("""ALTER TABLE bench.plain ADD FOREIGN KEY (job_id, customer_id)
                         REFERENCES scrape_jobs (job_id, customer_id) ON DELETE CASCADE""")
            row = c.execute("INSERT INTO customers (name, slug) VALUES ('c', 'c') RETURNING id").fetchone()
        self.customer: UUID = row[0] if row else None  # type: ignore[assignment]

    def job(self) -> str:
        """A new running job."""
        self._jobs += 1
        job_id = f"job-{self._jobs}"
        metadata = {"customer_id": self.customer, "domain": "shop.example", "job_type": "full_crawl"}
        self.cached.create_job(job_id, None, metadata)
        self.cached.update_job_status(job_id, "running")
        return job_id

    def at_rest(self) -> None:
        """The next contender begins with a checkpoint behind it."""
        with psycopg.connect(self.admin, autocommit=True) as c:
            c.execute("CHECKPOINT")

    # --- contenders: write so many results, return the seconds of each batch ---------------------------------------

    def through(self, manager: PersistentJobManager, rows: int) -> list[float]:
        """Through the manager."""
        job_id = self.job()
        times = []
        for first in range(0, rows, BATCH):
            batch = [({"url": row["url"]}, row) for row in batch_of(first)]
            begun = time.perf_counter()
            manager.add_job_results(job_id, batch)
            times.append(time.perf_counter() - begun)
        stats = manager.get_job_stats(job_id)
        if stats.total_pages != rows:
            msg = f"{stats.total_pages} pages were counted of {rows}"
            raise RuntimeError(msg)
        return times

    def copy(self, rows: int) -> list[float]:
        """COPY into the plain table."""
        job_id, times = self.job(), []
        with psycopg.connect(self.admin) as c:
            for first in range(0, rows, BATCH):
                batch = batch_of(first)
                begun = time.perf_counter()
                with (
                    c.cursor() as cursor,
                    cursor.copy(
                        "COPY bench.plain (job_id, customer_id, url, status, http_status, processing_time_ms, "
                        "content_hash) FROM STDIN"
                    ) as out,
                ):
                    for row in batch:
                        out.write_row((job_id, self.customer, *row.values()))
                c.commit()
                times.append(time.perf_counter() - begun)
        return times

    def unnest(self, rows: int) -> list[float]:
        """One INSERT … SELECT unnest(…) into the plain table."""
        job_id, times = self.job(), []
        with psycopg.connect(self.admin) as c:
            for first in range(0, rows, BATCH):
                batch = batch_of(first)
                begun = time.perf_counter()
                columns = [[row[name] for row in batch] for name in batch[0]]
                c.execute(
                    """INSERT INTO bench.plain (job_id, customer_id, url, status, http_status, processing_time_ms,
                                                content_hash)
                       SELECT %s, %s, *
                       FROM unnest(%s::text[], %s::text[], %s::integer[], %s::integer[], %s::text[])""",
                    (job_id, self.customer, *columns),
                )
                c.commit()
                times.append(time.perf_counter() - begun)
        return times

    def empty(self) -> None:
        """All results away, so that each round begins alike."""
        with psycopg.connect(self.admin, autocommit=True) as c:
            c.execute("TRUNCATE scrape_job_results, bench.plain")

    def fill(self, rows: int, per_job: int) -> None:
        """So many results of many jobs, for reading."""
        with psycopg.connect(self.admin, autocommit=True) as c:
            for number in range(rows // per_job):
                c.execute(
                    """INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status)
                       VALUES (%s, %s, 'shop.example', 'full_crawl', 'running')""",
                    (f"filled-{number}", self.customer),
                )
                c.execute(
                    """INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status,
                                                       processing_time_ms, content_hash)
                       SELECT %s, %s, 'https://shop.example/' || md5(n::text) || '.html', 'success', 200, n %% 900,
                              md5(n::text)
                       FROM generate_series(1, %s) AS n""",
                    (f"filled-{number}", self.customer, per_job),
                )
            c.execute("VACUUM (ANALYZE) scrape_job_results")
            c.execute("CHECKPOINT")


def write(console: Console, bench: Bench, rows: int, rounds: int) -> None:
    """Rates beside the plain table's."""
    contenders: dict[str, Callable[[], list[float]]] = {
        "manager": lambda: bench.through(bench.cached, rows),
        "manager, no cache": lambda: bench.through(bench.uncached, rows),
        "plain table, COPY": lambda: bench.copy(rows),
        "plain table, INSERT": lambda: bench.unnest(rows),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        bench.empty()
        for name, contender in contenders.items():
            bench.at_rest()
            rates[name].append(rows / sum(contender()))
    best = max(statistics.median(rates[name]) for name in contenders if name.startswith("plain"))
    table = Table(title=f"Writing {rows:,} results in batches of {BATCH}, each committed", title_justify="left")
    for heading in ("", "rows/s", "of the fastest plain one"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, found in rates.items():
        table.add_row(name, f"{statistics.median(found):,.0f}", f"{statistics.median(found) / best:.2f}")
    console.print(table)
    share = statistics.median(rates["manager"]) / best
    console.print(
        f"manager: {share:.2f} of the fastest plain insert; wanted {WANTED_SHARE}: "
        f"{'reached' if share >= WANTED_SHARE else 'missed'}\n"
    )


def long_job(console: Console, bench: Bench, rows: int, edge: int) -> None:
    """The first and the last results of one large job; the plain table tells what the index alone costs."""
    contenders: dict[str, Callable[[], list[float]]] = {
        "manager": lambda: bench.through(bench.cached, rows),
        "plain table, INSERT": lambda: bench.unnest(rows),
    }
    table = Table(title=f"One job of {rows:,} results", title_justify="left")
    for heading in ("", f"first {edge:,}, rows/s", f"last {edge:,}, rows/s", "drift", "drift, median batch"):
        table.add_column(heading, justify="left" if not heading else "right")
    drifts = {}
    for name, contender in contenders.items():
        bench.empty()
        bench.at_rest()
        times = contender()
        first, last = times[: edge // BATCH], times[-(edge // BATCH) :]
        drifts[name] = sum(first) / sum(last) - 1
        of_medians = statistics.median(first) / statistics.median(last) - 1
        table.add_row(
            name,
            f"{edge / sum(first):,.0f}",
            f"{edge / sum(last):,.0f}",
            f"{drifts[name]:+.1%}",
            f"{of_medians:+.1%}",
        )
    console.print(table)
    console.print(
        f"manager: {drifts['manager']:+.1%}; wanted within {WANTED_DRIFT:.0%}: "
        f"{'reached' if drifts['manager'] >= -WANTED_DRIFT else 'missed'}\n"
    )


def read(console: Console, bench: Bench, rows: int) -> None:
    """Times of the two questions."""
    bench.empty()
    per_job = min(100_000, max(1_000, rows // 20))
    bench.fill(rows, per_job)
    jobs = [f"filled-{n}" for n in range(rows // per_job)]
    manager = bench.uncached
    questions: dict[str, Callable[[str], object]] = {
        "get_job_stats": manager.get_job_stats,
        "first page of 100": lambda job: manager.get_job_results_from_postgres(job, limit=100),
        "first page of 500 (the default)": manager.get_job_results_from_postgres,
    }
    table = Table(title=f"Reading, with {rows:,} results of {len(jobs)} jobs", title_justify="left")
    for heading in ("", "median, ms", "p99, ms", f"wanted < {WANTED_MS:g}"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, question in questions.items():
        times = []
        for n in range(300):
            begun = time.perf_counter()
            question(jobs[(n * 7_919) % len(jobs)])
            times.append((time.perf_counter() - begun) * 1_000)
        times.sort()
        median = statistics.median(times)
        table.add_row(name, f"{median:.2f}", f"{times[296]:.2f}", "reached" if median < WANTED_MS else "missed")
    console.print(table)


def main() -> int:
    """Run it; 1 if a count was wrong, never for its time."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--written", type=int, default=WRITTEN, help=f"results of a contender (default {WRITTEN:,})")
    parser.add_argument("--long", type=int, default=LONG_JOB, help=f"results of the long job (default {LONG_JOB:,})")
    parser.add_argument("--rows", type=int, default=READ_ROWS, help=f"results to read among (default {READ_ROWS:,})")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of writing (default 3)")
    parser.add_argument("--quick", action="store_true", help="small: does it work at all?")
    options = parser.parse_args()
    edge = EDGE
    if options.quick:
        options.written, options.long, options.rows, options.rounds, edge = 10_000, 20_000, 200_000, 1, 5_000
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    started, load = time.time(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            bench = Bench(endpoints)
            write(console, bench, options.written, options.rounds)
            long_job(console, bench, options.long, edge)
            read(console, bench, options.rows)
            with psycopg.connect(bench.admin) as c:
                server = c.execute(
                    "SELECT current_setting('server_version'), current_setting('shared_buffers')"
                ).fetchone()
            dispose_engines()
    console.print("\nHow it was run")
    console.print(
        f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(started))}, {time.time() - started:.0f} s in all"
    )
    console.print(
        f"  {platform.system()} {platform.release()}, {os.cpu_count()} cores, load at the start {load:.2f}, "
        f"PostgreSQL {server[0] if server else '?'}, shared_buffers {server[1] if server else '?'}, fsync on"
    )
    console.print(f"  command: python -m bench.audit {shlex.join(sys.argv[1:])}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
