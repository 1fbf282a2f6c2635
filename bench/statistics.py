"""A year's daily statistics: the job `statistics` over 365 partitions beside the plain SQL for the same rows.

Everything is set up here and removed afterwards. Each contender is a process of its own on a copy of the same
database (CREATE DATABASE … TEMPLATE), after a checkpoint; they take turns, and ratios are taken within a round. What
they wrote is compared, row by row: where they differ the command ends with status 1.

    plain SQL       what one would write: for each of the two tables an INSERT … SELECT … GROUP BY, in one transaction
    function        `compute_daily_statistics`, what the asset calls: keeps what is gone, replaces what is there
    job             the job `statistics` over the range, in process, Dagster's storage in Postgres: one run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from bench.copies import Copied
from bench.measure import cpu_of
from resources.postgres.migrate import migrate
from resources.services import acquire
from resources.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from resources.services import Endpoints

DAYS = 365
RESULTS = 2_000_000
JOBS = 20_000
CUSTOMERS = 20
WANTED_RATIO = 1.5
WANTED_MB = 500.0
PLAIN, FUNCTION, JOB = "plain SQL", "function", "job"

_JOBS = """
    INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, started_at, completed_at)
    SELECT 'job-' || lpad(n::text, 7, '0'), c.id, 'shop' || n / {customers} % 3 || '.example', 'full_crawl',
           CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'completed' END, t.at, t.at + interval '1 second',
           t.at + interval '11 minutes'
    FROM generate_series(0, {jobs} - 1) AS n JOIN customers AS c ON c.slug = 'c' || n % {customers},
         LATERAL (SELECT date_trunc('day', now(), 'UTC')
                         - make_interval(secs => {days} * 86400.0 * ({jobs} - n) / {jobs}) AS at) AS t
"""
# In the order of time, with urls in no order.
_RESULTS = """
    INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status, processing_time_ms, error_message,
        skip_reason, content_hash, depth, tries, bytes, changed, created_at)
    SELECT j.job_id, j.customer_id, 'https://' || j.domain || '/' || md5(n::text) || '/page.html',
           CASE WHEN h.v < 90 THEN 'success' WHEN h.v < 95 THEN 'failed' ELSE 'skipped' END,
           CASE WHEN h.v < 90 THEN 200 WHEN h.v < 93 THEN 500 WHEN h.v >= 95 THEN 304 END,
           CASE WHEN h.v < 95 THEN abs(hashint4(n * 13 + j.k)) % 3000 END,
           CASE WHEN h.v >= 90 AND h.v < 93 THEN 'http_error: 500' WHEN h.v >= 93 AND h.v < 95 THEN 'timeout' END,
           CASE WHEN h.v >= 95 THEN 'not_modified' END, md5(n::text), 3, 1 + (h.v = 91)::int, 25000 + n,
           CASE WHEN h.v < 90 THEN h.v < 30 END, j.created_at + make_interval(secs => 600.0 * n / {each})
    FROM (SELECT *, substr(job_id, 5)::int AS k FROM scrape_jobs WHERE job_id BETWEEN '{first}' AND '{last}') AS j,
         generate_series(1, {each}) AS n,
         LATERAL (SELECT abs(hashint4(n * 31 + j.k)) % 100 AS v) AS h
    ORDER BY j.job_id, n
"""

# `key`: what it is grouped by beside the day.
_PLAIN = """
    WITH results AS (
        SELECT (r.created_at AT TIME ZONE 'UTC')::date AS day, r.customer_id, j.domain, r.job_id, r.status,
               r.http_status, r.processing_time_ms, r.tries, r.bytes, r.changed, r.skip_reason, r.error_message
        FROM scrape_job_results AS r JOIN scrape_jobs AS j USING (job_id)
        WHERE r.created_at >= '{first}' AND r.created_at < '{end}'
    ), pages AS (
        SELECT day, {key}, count(DISTINCT job_id) AS jobs, count(*) AS total,
               count(*) FILTER (WHERE status = 'success') AS successful,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'skipped') AS skipped,
               count(*) FILTER (WHERE changed) AS changed,
               count(*) FILTER (WHERE NOT changed OR skip_reason = 'not_modified') AS unchanged,
               coalesce(sum(greatest(tries - 1, 0)), 0) AS retries, coalesce(sum(bytes), 0) AS bytes,
               percentile_disc(0.5) WITHIN GROUP (ORDER BY processing_time_ms) AS p50,
               percentile_disc(0.95) WITHIN GROUP (ORDER BY processing_time_ms) AS p95,
               percentile_disc(0.99) WITHIN GROUP (ORDER BY processing_time_ms) AS p99
        FROM results GROUP BY day, {key}
    ), reasons AS (
        SELECT day, {key}, jsonb_object_agg(reason, pages) AS pages FROM (
            SELECT day, {key}, coalesce(skip_reason, split_part(error_message, ':', 1), 'unknown') AS reason,
                   count(*) AS pages
            FROM results WHERE status <> 'success' GROUP BY day, {key}, reason) AS n GROUP BY day, {key}
    ), codes AS (
        SELECT day, {key}, jsonb_object_agg(http_status, pages) AS pages FROM (
            SELECT day, {key}, http_status, count(*) AS pages FROM results
            WHERE http_status IS NOT NULL GROUP BY day, {key}, http_status) AS n GROUP BY day, {key}
    ), jobs AS (
        SELECT (coalesce(completed_at, created_at) AT TIME ZONE 'UTC')::date AS day, {key},
               count(*) FILTER (WHERE status = 'completed') AS completed,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE status NOT IN ('completed', 'failed', 'cancelled')) AS unfinished,
               sum(extract(epoch FROM completed_at - started_at) - paused_seconds) AS active
        FROM scrape_jobs WHERE coalesce(completed_at, created_at) >= '{first}'
            AND coalesce(completed_at, created_at) < '{end}' GROUP BY 1, {key}
    )
    INSERT INTO {table} (day, {key}, {jobs_column} total_pages, successful_pages, failed_pages, skipped_pages,
        changed_pages, unchanged_pages, retries, bytes, p50_ms, p95_ms, p99_ms, jobs_completed, jobs_failed,
        jobs_cancelled, jobs_unfinished, active_seconds, pages_per_second, pages_by_reason, pages_by_http_status)
    SELECT day, {key}, {jobs_value} coalesce(p.total, 0), coalesce(p.successful, 0), coalesce(p.failed, 0),
           coalesce(p.skipped, 0), coalesce(p.changed, 0), coalesce(p.unchanged, 0), coalesce(p.retries, 0),
           coalesce(p.bytes, 0), p.p50, p.p95, p.p99, coalesce(j.completed, 0), coalesce(j.failed, 0),
           coalesce(j.cancelled, 0), coalesce(j.unfinished, 0), coalesce(j.active, 0),
           coalesce(p.total, 0) / nullif(j.active, 0), coalesce(reasons.pages, '{{}}'), coalesce(codes.pages, '{{}}')
    FROM pages AS p FULL JOIN jobs AS j USING (day, {key}) LEFT JOIN reasons USING (day, {key})
    LEFT JOIN codes USING (day, {key})
"""

_WRITTEN = """
    SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY t::text)) FROM (
        SELECT day, customer_id, jobs_completed, jobs_failed, jobs_cancelled, jobs_unfinished, total_pages,
               successful_pages, failed_pages, skipped_pages, changed_pages, unchanged_pages, retries, bytes, p50_ms,
               p95_ms, p99_ms, round(active_seconds::numeric, 3) AS active,
               round(pages_per_second::numeric, 3) AS rate, pages_by_reason, pages_by_http_status, {more}
        FROM {table}) AS t
"""


# --- contenders, each in a process of its own ---------------------------------------------------------------------


@dataclass
class Figures:
    """One contender's run."""

    seconds: float
    created_seconds: float
    postgres_cpu: float
    peak_mb: float
    rows: dict[str, tuple[int, str]]


def plain(first: date, last: date) -> tuple[float, float]:
    """Two statements, one transaction."""
    span = {"first": f"{first} 00:00+00", "end": f"{last + timedelta(days=1)} 00:00+00"}
    with psycopg.connect(os.environ["OMNIOPS_DATABASE_URL"]) as connection:
        begun = time.perf_counter()
        connection.execute("SET LOCAL work_mem = '64MB'")
        for table, key, column, value in (
            ("daily_job_stats", "customer_id", "", ""),
            ("daily_domain_stats", "customer_id, domain", "jobs,", "coalesce(p.jobs, 0),"),
        ):
            statement = _PLAIN.format(table=table, key=key, jobs_column=column, jobs_value=value, **span)
            connection.execute(statement.encode())
        connection.commit()
        return time.perf_counter() - begun, 0.0


def function(first: date, last: date) -> tuple[float, float]:
    """What the asset calls."""
    from resources.postgres.connection import engine_for
    from resources.postgres.statistics import compute

    engine = engine_for(os.environ["OMNIOPS_DATABASE_URL"])
    with engine.connect():
        pass
    begun = time.perf_counter()
    compute(engine, first, last)
    return time.perf_counter() - begun, 0.0


def job(first: date, last: date) -> tuple[float, float]:
    """One run of the job, from its first event to its last; and what creating the run took."""
    import dagster as dg

    from omniops_pipelines.definitions import defs
    from omniops_pipelines.instance import open_stack

    open_stack()
    tags = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
    made = defs.resolve_job_def("statistics")
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.get() as instance:
        begun = time.perf_counter()
        result = made.execute_in_process(instance=instance, tags=tags, run_config=quiet)
        whole = time.perf_counter() - begun
        record = instance.get_run_record_by_id(result.run_id)
        if not result.success or record is None or record.start_time is None or record.end_time is None:
            msg = f"run {result.run_id} did not succeed"
            raise RuntimeError(msg)
        if instance.get_runs_count() != 1:
            msg = f"{instance.get_runs_count()} runs, where one was expected"
            raise RuntimeError(msg)
    for event in result.all_events:
        if event.is_step_success:
            print(f"  {event.step_key}: {event.step_success_data.duration_ms / 1_000:.2f} s", file=sys.stderr)
    taken = record.end_time - record.start_time
    return taken, whole - taken


CONTENDERS = {PLAIN: plain, FUNCTION: function, JOB: job}


def contend(name: str, first: date, last: date) -> None:
    """Run one contender and print its line."""
    seconds, created = CONTENDERS[name](first, last)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
    print(json.dumps({"seconds": seconds, "created_seconds": created, "peak_mb": peak}), flush=True)


# --- the benchmark ------------------------------------------------------------------------------------------------


class Bench(Copied):
    """A migrated cluster with a year of results, to be copied."""

    def __init__(self, endpoints: Endpoints, settings: Settings, options: argparse.Namespace) -> None:
        super().__init__(endpoints, settings)
        self._options = options
        self._folder = settings.home.parent
        self.last = datetime.now(UTC).date() - timedelta(days=1)
        self.first = self.last - timedelta(days=DAYS - 1)

    def fill(self) -> None:
        """A year of jobs, a few customers with three sites each, and their results."""
        o = self._options
        each = o.results // o.jobs
        with psycopg.connect(self.endpoints.database_url, autocommit=True) as c:
            c.execute(f"INSERT INTO customers (name, slug) SELECT 'c', 'c' || n "
                      f"FROM generate_series(0, {CUSTOMERS - 1}) AS n".encode())  # fmt: skip
            c.execute(_JOBS.format(jobs=o.jobs, days=DAYS, customers=CUSTOMERS).encode())
            step = max(1, 50_000 // each)
            for low in range(0, o.jobs, step):
                names = {"first": f"job-{low:07}", "last": f"job-{low + step - 1:07}"}
                c.execute(_RESULTS.format(each=each, **names).encode())
        self.settle()

    def measure(self, name: str) -> Figures:
        """One contender on a copy of its own."""
        with self.copy() as url, tempfile.TemporaryDirectory(dir=self._folder) as home:
            with psycopg.connect(url) as c:
                # Read once, so that all begin with the same cache.
                c.execute("SELECT count(*) FROM scrape_job_results")
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMNIOPS_", "DAGSTER_"))}
            cpu = cpu_of(self.postmaster)
            done = subprocess.run(
                [sys.executable, "-m", "bench.statistics", "--contender", name, str(self.first), str(self.last)],
                cwd=PROJECT_ROOT, check=True, stdout=subprocess.PIPE, text=True,
                env={**kept, "OMNIOPS_HOME": home, "OMNIOPS_DATABASE_URL": url,
                     "OMNIOPS_OWNER_DATABASE_URL": self._owner(url), "OMNIOPS_REDIS_URL": self.endpoints.redis_url
                     or "", "OMNIOPS_STATISTICS_FIRST_DAY": str(self.first)},
            )  # fmt: skip
            time.sleep(0.2)  # until its backends are gone, whose time counts then
            figures = json.loads(done.stdout.splitlines()[-1])
            return Figures(**figures, postgres_cpu=cpu_of(self.postmaster) - cpu, rows=self._written(url))

    def _owner(self, url: str) -> str:
        database = make_url(url).database
        return (
            make_url(self.endpoints.owner_database_url).set(database=database).render_as_string(hide_password=False)
        )

    def _written(self, url: str) -> dict[str, tuple[int, str]]:
        with psycopg.connect(url) as c:
            found = {}
            for table, more in (("daily_job_stats", "1"), ("daily_domain_stats", "domain, jobs")):
                row = c.execute(_WRITTEN.format(table=table, more=more).encode()).fetchone()
                found[table] = (int(row[0]), str(row[1])) if row else (0, "")
            return found


def main() -> int:
    """Run what was asked for; 1 if a contender was wrong, never for its time."""
    parser = argparse.ArgumentParser(prog="python -m bench.statistics", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=RESULTS, help=f"of the year (default {RESULTS:,})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"of the year (default {JOBS:,})")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work at all?")
    parser.add_argument("--contender", nargs=3, metavar=("NAME", "FIRST", "LAST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        name, first, last = options.contender
        contend(name, date.fromisoformat(first), date.fromisoformat(last))
        return 0
    if options.quick:
        options.results, options.jobs, options.rounds = 40_000, 2_000, 1
    console = Console(width=None if sys.stdout.isatty() else 120)
    started = time.time()
    load = os.getloadavg()[0]
    figures: dict[str, list[Figures]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        # The server runs as a user of its own.
        Path(folder).chmod(0o755)
        settings = Settings(home=Path(folder) / "home", database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            bench = Bench(endpoints, settings, options)
            bench.fill()
            console.print(f"Filled in {time.time() - started:.0f} s")
            for _ in range(options.rounds):
                for name in CONTENDERS:
                    figures[name].append(bench.measure(name))
                    console.print(f"  {name}: {figures[name][-1].seconds:.2f} s")
            with psycopg.connect(endpoints.database_url) as c:
                server = c.execute(
                    "SELECT version(), current_setting('shared_buffers'), current_setting('fsync')"
                ).fetchone()
    right = _report(console, figures)
    console.print("\nHow it was run")
    console.print(
        f"  {time.strftime('%Y-%m-%d %H:%M', time.localtime(started))}, {time.time() - started:.0f} s in all"
    )
    console.print(f"  {platform.system()} {platform.release()}, {os.cpu_count()} cores, load at the start {load:.2f}")
    console.print(f"  {server[0].split(' on ')[0]}, shared_buffers {server[1]}, fsync {server[2]}" if server else "")
    console.print(
        f"  {options.results:,} results of {options.jobs:,} jobs of {DAYS} days, {options.rounds} rounds, medians"
    )
    console.print(f"  command: python -m bench.statistics {shlex.join(sys.argv[1:])}".rstrip())
    return 0 if right else 1


def _report(console: Console, figures: dict[str, list[Figures]]) -> bool:
    table = Table(title="A year's daily statistics", title_justify="left")
    for heading in ("", "seconds", "creating the run, s", "CPU of Postgres, s", "peak RSS, MB", "rows"):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for name, runs in figures.items():
        table.add_row(
            name,
            f"{statistics.median(r.seconds for r in runs):.2f}",
            f"{statistics.median(r.created_seconds for r in runs):.2f}" if name == JOB else "-",
            f"{statistics.median(r.postgres_cpu for r in runs):.2f}",
            f"{max(r.peak_mb for r in runs):.0f}",
            f"{sum(count for count, _ in runs[0].rows.values()):,}",
        )
    console.print(table)
    for name in (FUNCTION, JOB):
        ratios = [a.seconds / b.seconds for a, b in zip(figures[name], figures[PLAIN], strict=True)]
        ratio = statistics.median(ratios)
        wanted = f" (wanted at most {WANTED_RATIO:g}: {_word(ratio <= WANTED_RATIO)})" if name == JOB else ""
        console.print(f"{name} / {PLAIN}: {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}){wanted}")
    created = [(a.seconds + a.created_seconds) / b.seconds for a, b in zip(figures[JOB], figures[PLAIN], strict=True)]
    console.print(
        f"{JOB} with the creation of its run / {PLAIN}: {statistics.median(created):.2f} "
        f"({min(created):.2f}-{max(created):.2f})"
    )
    peak = max(r.peak_mb for r in figures[JOB])
    console.print(
        f"peak memory of the run's process: {peak:.0f} MB (wanted under {WANTED_MB:g}: {_word(peak < WANTED_MB)})"
    )
    written = {json.dumps(r.rows, sort_keys=True) for runs in figures.values() for r in runs}
    if len(written) > 1:
        console.print(f"the contenders wrote different rows: {sorted(written)}")
    return len(written) == 1


def _word(reached: bool) -> str:
    return "reached" if reached else "missed"


if __name__ == "__main__":
    sys.exit(main())
