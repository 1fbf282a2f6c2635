"""Removing old jobs: the retention run beside one `DELETE … CASCADE`, and what each does to concurrent inserts.

Everything is set up here and removed afterwards. Each contender gets its own copy of the same database (CREATE
DATABASE … TEMPLATE), after a checkpoint. Meanwhile a process of its own inserts single rows into
`scrape_job_results`, each a transaction; their latencies are compared with those of a quiet database.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from bench.copies import Copied
from bench.measure import cpu_of
from resources.postgres.connection import driver_url
from resources.postgres.migrate import migrate
from resources.postgres.retention import BATCH_ROWS, run
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resources.services import Endpoints

RESULTS = 2_000_000
JOBS = 400
WANTED_RATIO = 10.0
WANTED_P99 = 2.0
_QUIET_SECONDS = 8.0

_CASCADE = """
    DELETE FROM scrape_jobs WHERE status IN ('completed', 'failed', 'cancelled')
      AND coalesce(completed_at, created_at) < now() - interval '90 days'
"""


@dataclass
class Figures:
    """One contender's."""

    name: str
    seconds: float
    postgres_cpu: float
    wal_mb: float
    latencies_ms: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def insert_rows(url: str, stop: Any, out: Any) -> None:
    """Insert single rows, each a transaction, about 200 a second, until told to stop; in a process of its own."""
    latencies = []
    with psycopg.connect(url, autocommit=True) as connection:
        customer = connection.execute("SELECT customer_id FROM scrape_jobs WHERE job_id = 'live'").fetchone()
        number = 0
        while not stop.is_set():
            number += 1
            begun = time.monotonic()
            connection.execute(
                "INSERT INTO scrape_job_results (job_id, customer_id, url, status, processing_time_ms) "
                "VALUES ('live', %s, %s, 'success', 5)",
                (customer[0] if customer else None, f"https://live.example/{os.getpid()}/{number}"),
            )
            latencies.append((begun, (time.monotonic() - begun) * 1_000))
            time.sleep(0.004)
    out.put(latencies)


@contextmanager
def inserting(url: str, latencies: list[tuple[float, float]]) -> Iterator[None]:
    """Concurrent inserts, under way before the block begins; when each began (monotonic) and its milliseconds."""
    context = multiprocessing.get_context("spawn")
    stop, out = context.Event(), context.Queue()
    process = context.Process(target=insert_rows, args=(url, stop, out))
    process.start()
    time.sleep(2.0)  # until it is under way
    try:
        yield
    finally:
        stop.set()
        latencies.extend(out.get(timeout=60))
        process.join()


class Bench(Copied):
    """A migrated cluster with a database full of old jobs, to be copied."""

    def __init__(self, endpoints: Endpoints, settings: Settings, options: argparse.Namespace) -> None:
        super().__init__(endpoints, settings)
        self._options = options

    def fill(self) -> None:
        """Old jobs, their results in the order of time and with urls in no order, and some live ones."""
        o = self._options
        each = o.results // o.jobs
        with psycopg.connect(self.endpoints.database_url, autocommit=True) as c:
            c.execute("INSERT INTO customers (name, slug) SELECT 'c', 'c' || n FROM generate_series(1, 20) AS n")
            c.execute(
                """
                INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, started_at,
                                         completed_at)
                SELECT 'old-' || n, (SELECT id FROM customers WHERE slug = 'c' || (1 + n %% 20)), 'd' || n %% 20,
                       'full_crawl', 'completed', t.at - interval '1 hour', t.at - interval '1 hour', t.at
                FROM generate_series(1, %(jobs)s) AS n,
                     LATERAL (SELECT now() - make_interval(days => 91 + ((%(jobs)s - n) * 30 / %(jobs)s)) AS at) AS t
                """,
                {"jobs": o.jobs},
            )
            c.execute("""INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status)
                         SELECT 'live', id, 'live.example', 'full_crawl', 'running' FROM customers LIMIT 1""")
            for number in range(1, o.jobs + 1):
                c.execute(
                    """
                    INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status,
                        processing_time_ms, content_hash, depth, tries, bytes, created_at)
                    SELECT j.job_id, j.customer_id, 'https://shop.example/' || md5(n::text) || '/page.html',
                           'success', 200, n %% 1000, md5(n::text), 3, 1, 25000,
                           j.completed_at - interval '30 minutes'
                    FROM scrape_jobs AS j, generate_series(1, %s) AS n WHERE j.job_id = %s
                    """,
                    (each, f"old-{number}"),
                )
                c.execute(
                    """INSERT INTO scrape_job_results (job_id, customer_id, url, status, created_at)
                       SELECT 'live', (SELECT customer_id FROM scrape_jobs WHERE job_id = 'live'),
                              'https://live.example/' || %s || '/' || n, 'success', now()
                       FROM generate_series(1, %s) AS n""",
                    (number, each // 20),
                )
        self.settle()

    def wal_bytes(self) -> int:
        """Position of the write-ahead log."""
        with psycopg.connect(self.admin("postgres")) as c:
            row = c.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        return int(row[0]) if row else 0

    def measure(self, name: str, work: Callable[[str], None]) -> Figures:
        """One contender, with concurrent inserts, on a copy of its own."""
        with self.copy() as url:
            if "before" in name:
                with psycopg.connect(url) as c:
                    c.execute("""SELECT freeze_daily_statistics(array_agg(d.day), array_agg(d.customer_id)) FROM (
                                     SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date AS day, customer_id
                                     FROM scrape_job_results WHERE job_id LIKE 'old-%'
                                     UNION SELECT (completed_at AT TIME ZONE 'UTC')::date, customer_id
                                     FROM scrape_jobs WHERE completed_at IS NOT NULL) AS d""")
            latencies: list[tuple[float, float]] = []
            with inserting(url, latencies):
                wal, cpu, begun = self.wal_bytes(), cpu_of(self.postmaster), time.monotonic()
                work(url)
                ended = time.monotonic()
                time.sleep(0.2)  # until its backend is gone, whose time counts then
                figures = Figures(
                    name,
                    ended - begun,
                    cpu_of(self.postmaster) - cpu,
                    (self.wal_bytes() - wal) / 2**20,
                )
            figures.latencies_ms = [ms for at, ms in latencies if begun <= at <= ended]
            if name != "quiet" and "TRUNCATE" not in name:
                with psycopg.connect(url) as c:
                    left = c.execute("SELECT count(*) FROM scrape_job_results WHERE job_id LIKE 'old-%'").fetchone()
                    if left and left[0]:
                        msg = f"{name} left {left[0]} rows"
                        raise RuntimeError(msg)
        return figures

    def owner_url(self, url: str) -> str:
        """The same database as the role that owns the tables."""
        database = make_url(url).database
        return (
            make_url(self.endpoints.owner_database_url).set(database=database).render_as_string(hide_password=False)
        )


def _cascade(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(_CASCADE)


def _retention(batch: int, pace: float) -> Callable[[str], None]:
    def work(url: str) -> None:
        engine = create_engine(driver_url(url))
        run(engine, "scrape_jobs", batch_rows=batch, pace=pace)
        engine.dispose()

    return work


def main() -> int:
    """Run what was asked for; 1 if a run was wrong, never for its time."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=RESULTS, help=f"of old jobs (default {RESULTS:,})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"old jobs (default {JOBS})")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[BATCH_ROWS], help="rows of a batch; several: compared"
    )
    parser.add_argument("--pace", type=float, nargs="*", default=[0.0], help="rest after a batch, by its own length")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work at all?")
    options = parser.parse_args()
    if options.quick:
        options.results, options.jobs, options.rounds = 60_000, 60, 1
    console = Console(width=None if sys.stdout.isatty() else 120)
    started = time.time()
    load = os.getloadavg()[0]
    contenders: dict[str, Callable[[str], None]] = {
        "quiet": lambda _: time.sleep(_QUIET_SECONDS),
        "one DELETE, by CASCADE": _cascade,
    }
    for batch in options.batch:
        for pace in options.pace:
            contenders[f"retention run, {batch:,} rows, pace {pace:g}"] = _retention(batch, pace)
    # Where the time goes: the same run, its statistics computed and frozen outside of the measured time.
    contenders["retention run, statistics computed before"] = _retention(options.batch[0], 0.0)
    figures: dict[str, list[Figures]] = {name: [] for name in (*contenders, "TRUNCATE (a dropped partition)")}
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            bench = Bench(endpoints, settings, options)
            bench.fill()
            console.print(f"Filled in {time.time() - started:.0f} s")

            def truncate(url: str) -> None:
                with psycopg.connect(bench.owner_url(url)) as connection:
                    connection.execute("TRUNCATE scrape_job_results")

            contenders["TRUNCATE (a dropped partition)"] = truncate
            for _ in range(options.rounds):
                for name, work in contenders.items():
                    measured = bench.measure(name, work)
                    figures[name].append(measured)
                    console.print(f"  {name}: {measured.seconds:.2f} s")
            with psycopg.connect(endpoints.database_url) as c:
                server = c.execute(
                    "SELECT version(), current_setting('shared_buffers'), current_setting('fsync')"
                ).fetchone()
    _report(console, figures, options)
    console.print("\nHow it was run")
    console.print(
        f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(started))}, {time.time() - started:.0f} s in all"
    )
    console.print(f"  {platform.system()} {platform.release()}, {os.cpu_count()} cores, load at the start {load:.2f}")
    console.print(f"  {server[0].split(' on ')[0]}, shared_buffers {server[1]}, fsync {server[2]}" if server else "")
    console.print(
        f"  {options.results:,} results of {options.jobs} jobs of 30 days, {options.rounds} rounds, medians"
    )
    console.print(f"  command: python -m bench.retention {shlex.join(sys.argv[1:])}".rstrip())
    return 0


def _report(console: Console, figures: dict[str, list[Figures]], options: argparse.Namespace) -> None:
    table = Table(title="Removing old jobs, with single-row inserts meanwhile", title_justify="left")
    for heading in (
        "",
        "seconds",
        "rows/s",
        "CPU of Postgres, s",
        "WAL, MB",
        "insert p50, ms",
        "p99, ms",
        "worst, ms",
    ):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    median: dict[str, float] = {}
    p99: dict[str, float] = {}
    for name, runs in figures.items():
        median[name] = statistics.median(run_.seconds for run_ in runs)
        p99[name] = statistics.median(run_.percentile(0.99) for run_ in runs)
        table.add_row(
            name,
            f"{median[name]:.2f}",
            "-" if name == "quiet" else f"{options.results / median[name]:,.0f}",
            f"{statistics.median(run_.postgres_cpu for run_ in runs):.2f}",
            f"{statistics.median(run_.wal_mb for run_ in runs):,.0f}",
            f"{statistics.median(run_.percentile(0.5) for run_ in runs):.2f}",
            f"{p99[name]:.2f}",
            f"{max(run_.percentile(1.0) for run_ in runs):.0f}",
        )
    console.print(table)
    cascade = "one DELETE, by CASCADE"
    for name in figures:
        if name not in ("quiet", cascade):
            ratio = median[cascade] / median[name]
            console.print(
                f"{name}: {ratio:.2f} times as fast as the cascade (wanted {WANTED_RATIO:g}: "
                f"{'reached' if ratio >= WANTED_RATIO else 'missed'}); inserts' p99 {p99[name] / p99['quiet']:.2f} "
                f"times the quiet one (wanted at most {WANTED_P99:g})"
            )
    console.print(f"{cascade}: inserts' p99 {p99[cascade] / p99['quiet']:.2f} times the quiet one")


if __name__ == "__main__":
    sys.exit(main())
