"""`make bench`: this crawl beside the practical limit and beside Scrapy, in interleaved rounds.

Everything is set up here and removed afterwards: Postgres and Valkey embedded in a temporary folder, the generated
site in a process of its own, each run of a contender in a process of its own. Times fail nothing; a run that lost or
doubled a row does, and no ratio is printed from it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
from redis import Redis
from rich.console import Console
from rich.table import Table

from bench.measure import Measured
from bench.site import requests_per_second, serving
from resources.postgres.jobs import MAX_CACHED_RESULTS
from resources.postgres.migrate import migrate
from resources.redis.keys import CRAWL_RESULTS
from resources.services import acquire
from resources.services.layout import Layout
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from resources.services import Endpoints

PAGES = 2_000
ROUNDS = 5
MEMORY_PAGES = (1_000, 20_000)
MEMORY_WANTED_MB = 10.0
# A crawl of 20,000 pages by the slowest contender takes some minutes; one that hangs shall not hold the others up.
CONTENDER_SECONDS = 1_800.0
CONTENDERS: dict[str, tuple[str, ...]] = {
    "raw": ("raw",),
    "omniops": ("omniops",),
    "omniops-text": ("omniops", "--text"),
    "scrapy": ("scrapy_pipeline",),
    "scrapy-text": ("scrapy_pipeline", "--text"),
}
# With `--main`: both keep the pages' main text.
MAIN_CONTENDERS: dict[str, tuple[str, ...]] = {
    "omniops-text": ("omniops", "--text"),
    "scrapy-main": ("scrapy_pipeline", "--main"),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison that is wanted, of two contenders in the same round."""

    label: str
    of: str
    to: str
    wanted: float


RATIOS = (
    Ratio("omniops / raw, pages a second", "omniops", "raw", 0.55),
    Ratio("omniops / scrapy, pages a second", "omniops", "scrapy", 8.0),
    Ratio("omniops-text / scrapy-text, pages a second", "omniops-text", "scrapy-text", 5.0),
)
MAIN_RATIOS = (Ratio("omniops-text / scrapy-main, pages a second", "omniops-text", "scrapy-main", 3.0),)
POSTGRES_WANTED_MS = 0.1


@dataclass(slots=True)
class Results:
    """All runs by contender, and what was wrong with any."""

    runs: defaultdict[str, list[Measured]] = field(default_factory=lambda: defaultdict(list))
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def sound(self, *contenders: str) -> bool:
        """True if each of them ran, and never wrongly."""
        return all(self.runs[name] and not self.faults[name] for name in contenders)


class Bench:
    """The servers and the site of one benchmark."""

    def __init__(self, console: Console, settings: Settings, endpoints: Endpoints, url: str, pages: int) -> None:
        self.console = console
        self.url = url
        self.pages = pages
        self._environment = {**os.environ, "OMNIOPS_HOME": str(settings.home)}
        # The embedded cluster's superuser, for TRUNCATE and CHECKPOINT.
        self.admin_url = Layout(settings.home).postgres_url("postgres")
        self._redis_url = endpoints.redis_url or ""

    def run(self, contender: str, arguments: Sequence[str]) -> tuple[Measured | None, str | None]:
        """Run a contender once on empty tables.

        Returns:
            What it measured, and what was wrong with it.
        """
        self._empty_stores()
        measured, fault = self.run_again(contender, arguments)
        options = arguments[1:]
        if measured is None:
            return None, fault
        return measured, self._fault(
            measured, text="--text" in options or "--main" in options, cache="--no-cache" not in options
        )

    def run_again(self, contender: str, arguments: Sequence[str]) -> tuple[Measured | None, str | None]:
        """Run a contender on what is there; what it left behind is not looked at."""
        module, *options = arguments
        command = [sys.executable, "-m", f"bench.contenders.{module}", self.url, *options]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=CONTENDER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, f"{contender} did not end within {CONTENDER_SECONDS:.0f} s"
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            return None, f"{contender} failed: {done.stderr.strip()[-800:] or 'it printed nothing'}"
        measured = Measured.read(lines[-1])
        measured.contender = contender
        return measured, None

    def _empty_stores(self) -> None:
        """Every run inserts into empty tables, and pays for no checkpoint of the one before."""
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute("TRUNCATE customers CASCADE")
            connection.execute("CHECKPOINT")
        with Redis.from_url(self._redis_url) as redis:
            redis.flushdb()

    def _fault(self, measured: Measured, *, text: bool, cache: bool) -> str | None:
        """What the stores hold must be the site, once."""
        counts: dict[str, int] = {"pages reported": measured.pages}
        expected: dict[str, int] = {"pages reported": self.pages}
        if measured.job_id is not None:
            queries = {
                "results": "SELECT count(*) FROM scrape_job_results WHERE job_id = %(job)s AND status = 'success'",
                "results of any status": "SELECT count(*) FROM scrape_job_results",
                "pages counted by the trigger": "SELECT total_pages FROM scrape_job_stats WHERE job_id = %(job)s",
                "pages kept": "SELECT count(*) FROM scraped_pages WHERE title IS NOT NULL AND last_job_id = %(job)s",
                "texts": "SELECT count(*) FROM website_content WHERE length(text) > 5000 AND length(search) > 300",
            }
            expected |= dict.fromkeys(queries, self.pages)
            if not text:
                expected["texts"] = 0
            if measured.contender.startswith("omniops"):
                queries["urls done"] = "SELECT count(*) FROM crawl_frontier WHERE done"
                queries["urls known"] = "SELECT count(*) FROM crawl_frontier"
                expected |= {"urls done": self.pages, "urls known": self.pages}
                expected["results in Valkey"] = min(self.pages, MAX_CACHED_RESULTS) if cache else 0
                with Redis.from_url(self._redis_url) as redis:
                    batches = redis.lrange(CRAWL_RESULTS.key(measured.job_id), 0, -1)
                    counts["results in Valkey"] = sum(len(CRAWL_RESULTS.decode(batch)) for batch in batches)  # type: ignore[union-attr]
            with psycopg.connect(self.admin_url) as connection:
                for name, query in queries.items():
                    row = connection.execute(query, {"job": measured.job_id}).fetchone()  # type: ignore[call-overload]
                    counts[name] = int(row[0]) if row else 0
        wrong = [f"{name}: {counts[name]}, not {want}" for name, want in expected.items() if counts[name] != want]
        return f"{measured.contender}: {'; '.join(wrong)}" if wrong else None

    def facts(self) -> list[str]:
        """What one has to know about the servers to believe the figures."""
        with psycopg.connect(self.admin_url) as connection:
            row = connection.execute(
                "SELECT current_setting('server_version'), current_setting('fsync'), "
                "current_setting('synchronous_commit'), current_setting('shared_buffers')"
            ).fetchone()
        server, fsync, synchronous, buffers = row or ("?", "?", "?", "?")
        return [
            f"PostgreSQL {server}: fsync {fsync}, synchronous_commit {synchronous}, shared_buffers {buffers}",
            f"the site alone answers {requests_per_second(self.url, 1.0):,.0f} requests/s to one raw client",
        ]


@contextmanager
def bench(console: Console, pages: int) -> Iterator[Bench]:
    """Servers in a temporary folder, migrated, and a site of so many pages."""
    # The folder itself is made by the services, which let their servers' user in.
    home = Path(tempfile.gettempdir()) / f"omniops-bench-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
    environment = {"OMNIOPS_HOME": str(home)}
    settings = Settings.from_environment(environment)
    # What the environment says about other servers is not for the contenders either.
    for name in ("OMNIOPS_DATABASE_URL", "OMNIOPS_OWNER_DATABASE_URL", "OMNIOPS_REDIS_URL"):
        os.environ.pop(name, None)
    try:
        with acquire(settings) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            with serving(pages) as url:
                yield Bench(console, settings, endpoints, url, pages)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def choose_scrapy(here: Bench) -> tuple[str, ...]:
    """Scrapy at its best here: link idiom, concurrency and event loop are tried, the fastest is taken."""
    best: tuple[float, tuple[str, ...]] = (0.0, ())
    for links, concurrency, loop in itertools.product(("css", "extractor"), ("16", "32"), ("", "--uvloop")):
        options = ("--links", links, "--concurrency", concurrency, *((loop,) if loop else ()))
        measured, fault = here.run("scrapy", ("scrapy_pipeline", *options))
        if measured is None or fault:
            here.console.print(f"  scrapy {' '.join(options)}: {fault}", markup=False)
            continue
        rate = measured.pages / measured.seconds
        here.console.print(f"  scrapy {' '.join(options)}: {rate:.0f} pages/s", markup=False)
        best = max(best, (rate, options))
    return best[1]


def run_rounds(
    here: Bench, rounds: int, scrapy_options: tuple[str, ...], contenders: dict[str, tuple[str, ...]]
) -> Results:
    """All contenders one after the other, and again: what the machine does meanwhile hits them alike."""
    results = Results()
    for number in range(1, rounds + 1):
        for name, arguments in contenders.items():
            options = scrapy_options if arguments[0] == "scrapy_pipeline" else ()
            measured, fault = here.run(name, (*arguments, *options))
            if measured is not None:
                results.runs[name].append(measured)
                figure = f"{measured.pages / measured.seconds:,.0f} pages/s"
            else:
                figure = "no figure"
            if fault:
                results.faults[name].append(f"round {number}: {fault}")
            here.console.print(
                f"  round {number}: {name}: {figure}{'  WRONG: ' + fault if fault else ''}", markup=False
            )
    return results


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def figures_table(results: Results) -> Table:
    """Medians, least and most."""
    table = Table(title="Medians (least-most) of all rounds", title_justify="left")
    for heading in ("", "pages/s", "CPU ms/page", "Postgres CPU ms/page", "Valkey CPU ms/page", "peak RSS MB"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    columns: tuple[tuple[Callable[[Measured], float], str], ...] = (
        (lambda run: run.pages / run.seconds, ",.0f"),
        (lambda run: run.cpu_seconds * 1_000 / run.pages, ".2f"),
        (lambda run: run.postgres_cpu_seconds * 1_000 / run.pages, ".3f"),
        (lambda run: run.valkey_cpu_seconds * 1_000 / run.pages, ".3f"),
        (lambda run: run.rss_peak_mb, ".0f"),
    )
    for name in results.runs:
        runs = [run for run in results.runs[name] if run.pages]
        table.add_row(name, *(_spread([figure(run) for run in runs], form) for figure, form in columns))
    return table


def ratios_table(results: Results, ratios: Sequence[Ratio]) -> Table:
    """What is wanted, and what came out; nothing where a run was wrong."""
    table = Table(title="Ratios within a round: median (least-most)", title_justify="left")
    for heading in ("", "measured", "wanted", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for ratio in ratios:
        wanted = f">= {ratio.wanted:g}"
        if not results.sound(ratio.of, ratio.to):
            table.add_row(ratio.label, "none: a run was wrong", wanted, "")
            continue
        pairs = zip(results.runs[ratio.of], results.runs[ratio.to], strict=True)
        values = [(ours.pages / ours.seconds) / (other.pages / other.seconds) for ours, other in pairs]
        reached = statistics.median(values) >= ratio.wanted
        table.add_row(ratio.label, _spread(values, ".2f"), wanted, "reached" if reached else "missed")
    if "omniops" not in results.runs:
        return table
    label, wanted = "omniops, Postgres CPU ms a page", f"<= {POSTGRES_WANTED_MS:g}"
    if results.sound("omniops"):
        values = [run.postgres_cpu_seconds * 1_000 / run.pages for run in results.runs["omniops"]]
        reached = statistics.median(values) <= POSTGRES_WANTED_MS
        table.add_row(label, _spread(values, ".3f"), wanted, "reached" if reached else "missed")
    else:
        table.add_row(label, "none: a run was wrong", wanted, "")
    return table


def where_the_time_goes(results: Results) -> Table:
    """Of a page of omniops, without and with text: CPU by place, and what is waited for."""
    table = Table(title="Where the time goes, ms a page (medians)", title_justify="left")
    table.add_column("")
    columns: list[dict[str, str]] = []
    for name in ("omniops", "omniops-text"):
        table.add_column(name, justify="right")
        runs = [_parts(run) for run in results.runs.get(name, []) if run.pages]
        labels = runs[0] if runs else ()
        columns.append({label: f"{statistics.median(run[label] for run in runs):.3f}" for label in labels})
    for label in columns[0] or columns[1]:
        table.add_row(label, *(column.get(label, "-") for column in columns))
    return table


def _parts(run: Measured) -> dict[str, float]:
    details: dict[str, Any] = run.details
    phases = details["phases"]
    seconds = {
        "wall time": run.seconds,
        "CPU of the crawler, all threads": run.cpu_seconds,
        # By the clock: with waits for the interpreter's lock and for a core, so they are no parts of the CPU.
        "  in parsing, by the clock": phases["parse"],
        "  from fetched to read, by the clock": phases["read"],
        "  in commits, by the clock": phases["write"],
        "  in writing the cache, by the clock": phases["cache"],
        "  in full-text indexing, by the clock": phases["index"],
        "CPU of Postgres": run.postgres_cpu_seconds,
        "CPU of Valkey": run.valkey_cpu_seconds,
    }
    spread = {label: value * 1_000 / run.pages for label, value in seconds.items()}
    # A page's own waiting, which overlaps with that of 15 others.
    spread["a fetch, as its page sees it (16 at once)"] = phases["fetch"] * 1_000 / run.pages
    return spread


def how_it_was_run(facts: Sequence[str], settings: str, started: float) -> list[str]:
    """What somebody needs to judge the figures or to get them again."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    packages = ("aiohttp", "crawlee", "psycopg", "scrapy", "selectolax", "SQLAlchemy", "Twisted", "uvloop")
    return [
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(started))}, {time.time() - started:.0f} s",
        f"{platform.system()} {platform.release()}, {model}, {os.cpu_count()} cores, {memory:.0f} GB; "
        f"load average at the start {_LOAD_AT_START:.2f} (the cores are shared by site, contender and servers)",
        f"Python {platform.python_version()}; " + ", ".join(f"{name} {version(name)}" for name in packages),
        *facts,
        settings,
        f"command: python -m bench.crawl {shlex.join(sys.argv[1:])}".rstrip(),
    ]


_LOAD_AT_START = os.getloadavg()[0]


def compare(console: Console, options: argparse.Namespace) -> bool:
    """The comparison; False if a run was wrong."""
    started = time.time()
    tried_pages = 200 if options.quick else 500
    console.print(f"Scrapy's fastest settings, on {tried_pages} pages:")
    with bench(console, tried_pages) as here:
        scrapy_options = choose_scrapy(here)
    console.print(f"{options.pages:,} pages, {options.pairs} rounds:")
    with bench(console, options.pages) as here:
        facts = here.facts()
        results = run_rounds(here, options.pairs, scrapy_options, MAIN_CONTENDERS if options.main else CONTENDERS)
    console.print()
    for table in (
        figures_table(results),
        ratios_table(results, MAIN_RATIOS if options.main else RATIOS),
        where_the_time_goes(results),
    ):
        console.print(table)
    settings = (
        f"{options.pages:,} pages of 25 KB with 30 links, {options.pairs} interleaved rounds, 16 requests at once; "
        f"scrapy {' '.join(scrapy_options)}"
    )
    console.print("\nHow it was run")
    for line in how_it_was_run(facts, settings, started):
        console.print(f"  {line}", markup=False, highlight=False)
    if options.pairs < ROUNDS:
        console.print(f"  Fewer than {ROUNDS} rounds: a smoke test, not a measurement.")
    if options.json:
        runs = {name: [asdict(run) for run in runs] for name, runs in results.runs.items()}
        Path(options.json).write_text(json.dumps({"runs": runs, "faults": results.faults}, indent=1))
    faults = [fault for list_ in results.faults.values() for fault in list_]
    for fault in faults:
        console.print(f"WRONG {fault}", style="bold red", markup=False)
    return not faults


def memory(console: Console, options: argparse.Namespace) -> bool:
    """Resident memory of a small and a large crawl; False if a run was wrong."""
    started = time.time()
    ends: list[float] = []
    table = Table(title="Resident memory of omniops, MB", title_justify="left")
    for heading in ("pages", "start", "at 1,000", "end", "peak", "pages/s"):
        table.add_column(heading, justify="right")
    facts: list[str] = []
    curve: dict[int, float] = {}
    sizes = (200, 1_000) if options.quick else MEMORY_PAGES
    for pages in sizes:
        with bench(console, pages) as here:
            facts = here.facts()
            measured, fault = here.run("omniops", CONTENDERS["omniops"])
        if measured is None or fault:
            console.print(f"WRONG {fault}", style="bold red", markup=False)
            return False
        ends.append(measured.rss_end_mb)
        curve = measured.rss_curve_mb
        figures = (measured.rss_start_mb, measured.rss_1000_mb, measured.rss_end_mb, measured.rss_peak_mb)
        cells = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
        table.add_row(f"{measured.pages:,}", *cells, f"{measured.pages / measured.seconds:,.0f}")
    console.print(table)
    console.print("Curve of the larger: " + ", ".join(f"{n:,}: {mb:.1f}" for n, mb in curve.items()))
    difference = ends[-1] - ends[0]
    verdict = "reached" if difference <= MEMORY_WANTED_MB else "missed"
    console.print(
        f"{difference:+.1f} MB from {sizes[0]:,} to {sizes[-1]:,} pages; wanted within "
        f"{MEMORY_WANTED_MB:g} MB: {verdict}"
    )
    console.print("\nHow it was run")
    for line in how_it_was_run(facts, "omniops without text, one run for each size", started):
        console.print(f"  {line}", markup=False, highlight=False)
    return True


def main() -> int:
    """Run what was asked for; 1 if a run was wrong, never for its time."""
    parser = argparse.ArgumentParser(prog="python -m bench.crawl", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=PAGES, help=f"of the site (default {PAGES:,})")
    parser.add_argument("--pairs", type=int, default=ROUNDS, help=f"interleaved rounds (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work at all?")
    parser.add_argument("--memory", action="store_true", help="memory at 1,000 and 20,000 pages instead")
    parser.add_argument("--main", action="store_true", help="main texts: beside Scrapy with trafilatura, instead")
    parser.add_argument("--json", metavar="FILE", help="write every run's figures to a file too")
    options = parser.parse_args()
    if options.quick:
        options.pages, options.pairs = min(options.pages, 300), 1
    # Wide enough for the tables where the output goes to a file.
    console = Console(width=None if sys.stdout.isatty() else 120)
    sound = memory(console, options) if options.memory else compare(console, options)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
