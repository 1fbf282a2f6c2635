"""The cache: what a crawl pays for it, and what a call costs while Redis is away.

Two questions. How much slower is a crawl that copies its results to Valkey than one that does not: both take turns,
round after round, and the ratio is taken within a round. And how long does a caller wait for a client whose breaker
is open: single calls, one after the other, against an address where nobody is.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench.crawl import Bench, bench, how_it_was_run
from resources.redis import AsyncRedisWithFallback, RateLimiter, ReadThroughCache, RedisWithFallback
from resources.redis.fallback import State
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS, search_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.measure import Measured

PAGES = 2_000
ROUNDS = 5
CALLS = 20_000
WANTED_SHARE = 0.9
WANTED_MS = 1.0
# With and without: each pair of neighbours is one comparison.
PAIRS = {
    "omniops": ("omniops", "omniops without cache"),
    "omniops-text": ("omniops-text", "omniops-text without cache"),
}


def run_rounds(here: Bench, rounds: int) -> tuple[dict[str, list[Measured]], list[str]]:
    """Crawls with and without the cache, by turns; the first of a pair is now the one and now the other."""
    runs: dict[str, list[Measured]] = {name: [] for pair in PAIRS.values() for name in pair}
    faults = []
    for number in range(1, rounds + 1):
        for pair in PAIRS.values():
            for name in pair if number % 2 else reversed(pair):
                arguments = ["omniops"]
                arguments += ["--text"] if "text" in name else []
                arguments += ["--no-cache"] if "without" in name else []
                measured, fault = here.run(name, arguments)
                if fault or measured is None:
                    faults.append(f"round {number}: {fault}")
                    here.console.print(f"  round {number}: {name}: WRONG {fault}", markup=False)
                    continue
                runs[name].append(measured)
                rate = measured.pages / measured.seconds
                here.console.print(f"  round {number}: {name}: {rate:,.0f} pages/s", markup=False)
    return runs, faults


def crawl_table(runs: dict[str, list[Measured]]) -> Table:
    """Ratios within a round, and CPU."""
    table = Table(title="A crawl with the cache, of one without: median (least-most)", title_justify="left")
    for heading in ("", "pages/s, of those without", "wanted", "", "CPU ms/page with", "without", "Valkey ms/page"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for label, (with_, without) in PAIRS.items():
        if not runs[with_] or len(runs[with_]) != len(runs[without]):
            table.add_row(label, "none: a run was wrong", f">= {WANTED_SHARE:g}", "", "", "", "")
            continue
        ratios = [
            (a.pages / a.seconds) / (b.pages / b.seconds) for a, b in zip(runs[with_], runs[without], strict=True)
        ]
        middle = statistics.median(ratios)
        table.add_row(
            label,
            f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f">= {WANTED_SHARE:g}",
            "reached" if middle >= WANTED_SHARE else "missed",
            *(f"{statistics.median(r.cpu_seconds * 1_000 / r.pages for r in runs[n]):.2f}" for n in (with_, without)),
            f"{statistics.median(r.valkey_cpu_seconds * 1_000 / r.pages for r in runs[with_]):.3f}",
        )
    return table


def each(call: Callable[[], object], calls: int) -> list[float]:
    """Milliseconds of single calls."""
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1_000)
    return times


def calls_without_redis(calls: int) -> dict[str, list[float]]:
    """What single calls cost while the breaker is open: milliseconds, by operation."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"unix://{Path(folder) / 'nobody.sock'}?db=0"
        client = RedisWithFallback(url)
        limiter, cache = RateLimiter(client), ReadThroughCache(client)
        job, results, search = CRAWL_JOB.key("j"), CRAWL_RESULTS.key("j"), search_key("acme", "opening hours", 10)
        value = CRAWL_JOB.encode({"job_id": "j", "status": "running", "config": {"urls": ["https://x/"] * 10}})
        figures = {"the first call, which opens the breaker": each(lambda: client.set(job, value), 1)}
        if client.fallback.state is not State.OPEN:
            msg = f"the breaker is {client.fallback.state}: somebody is at {url}"
            raise RuntimeError(msg)
        figures |= {
            "get": each(lambda: client.get(job), calls),
            "set": each(lambda: client.set(job, value), calls),
            "incr": each(lambda: client.incr("cron:bench"), calls),
            "rpush": each(lambda: client.rpush(results, b"x" * 200), calls),
            "read through": each(lambda: cache.get_or_load(search, lambda: ["found"]), calls),
            "rate limit": each(lambda: limiter.acquire("shop.example", 60), calls),
        }
        figures["get, in an event loop"] = asyncio.run(_in_a_loop(client, calls))
        client.close()
    return figures


async def _in_a_loop(client: RedisWithFallback, calls: int) -> list[float]:
    there = AsyncRedisWithFallback(client.fallback)
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        await there.get(CRAWL_JOB.key("j"))
        times.append((time.perf_counter() - begun) * 1_000)
    return times


def calls_table(figures: dict[str, list[float]]) -> Table:
    """Median and 99th percentile."""
    table = Table(title="A call while Redis is away, ms", title_justify="left")
    for heading in ("", "p50", "p99", "calls", "wanted (p99)", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, times in figures.items():
        p50, p99 = statistics.median(times), _percentile(times, 0.99)
        opened = len(times) > 1
        wanted = (f"<= {WANTED_MS:g}", "reached" if p99 <= WANTED_MS else "missed") if opened else ("", "")
        table.add_row(name, f"{p50:.4f}", f"{p99:.4f}", f"{len(times):,}", *wanted)
    return table


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measure both, and fail only if a crawl lost or doubled a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=PAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="one small round: does the benchmark itself work?")
    options = parser.parse_args()
    if options.quick:
        options.pages, options.rounds = 200, 1
    # The one line that the breaker has to say is not for the figures.
    logging.getLogger("resources.redis").setLevel(logging.ERROR)
    # Wide enough for the tables also where the output goes to a file.
    console, started = Console(width=130), time.time()
    calls = calls_table(calls_without_redis(CALLS // 10 if options.quick else CALLS))
    with bench(console, options.pages) as here:
        facts = here.facts()
        runs, faults = run_rounds(here, options.rounds)
    for table in (crawl_table(runs), calls):
        console.print(table)
    console.print("\nHow it was run")
    settings = (
        f"{options.pages:,} pages of 25 KB with 30 links, {options.rounds} rounds by turns, 16 requests at once"
    )
    lines = how_it_was_run(facts, settings, started)
    for line in [*lines[:-1], f"command: python -m bench.redis {shlex.join(sys.argv[1:])}".rstrip()]:
        console.print(f"  {line}", markup=False, highlight=False)
    for fault in faults:
        console.print(f"WRONG {fault}", style="bold red", markup=False)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
