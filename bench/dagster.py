"""What Dagster costs a crawl: `omniops crawl` of one page beside a Dagster job of three empty ops.

Both in fresh processes, on the same storage, in turns; medians, and the ratio within each round. Further: how long
the code location takes to load. Everything is set up here and removed afterwards.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from omniops_pipelines.instance import dagster_database_url, open_stack
from resources import stack
from resources.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WANTED_RATIO = 1.3
WANTED_LOAD_SECONDS = 3.0

# What one would write to learn what Dagster itself takes: no line of this project in it.
_EMPTY_JOB = """
import dagster as dg

@dg.op
def first(): return {}
@dg.op
def second(value): return value
@dg.op
def third(value): return value
@dg.job(executor_def=dg.in_process_executor)
def three_empty_ops(): third(second(first()))

with dg.DagsterInstance.get() as instance:
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    assert three_empty_ops.execute_in_process(instance=instance, run_config=quiet).success
"""
_LOAD = "import omniops_pipelines.definitions"
_ONE_PAGE = """
import threading
from tests.support.site import serve_site

with serve_site() as site:
    site.add("/")
    print(site.url, flush=True)
    threading.Event().wait()
"""


@dataclass
class Figures:
    """Seconds of each run."""

    empty: list[float] = field(default_factory=list)
    crawl: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of a crawl to the empty job, within a round, in the median."""
        return statistics.median(c / e for c, e in zip(self.crawl, self.empty, strict=True))


def main() -> int:
    """Measure, print, and say by the exit status whether the runs did their work (never how fast)."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--json", type=Path, help="Every run's figures.")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        environment = prepare(Path(folder) / "home")
        figures = measure_run_overhead(environment, options.rounds)
        stack.release()
    show(figures)
    if options.json:
        options.json.write_text(json.dumps({**asdict(figures), "ratio": figures.ratio}), encoding="utf-8")
    return 0


def prepare(home: Path) -> dict[str, str]:
    """Servers, a migrated database and Dagster's storage; the environment of the processes that are measured."""
    for name in [name for name in os.environ if name.startswith(("OMNIOPS_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ["OMNIOPS_HOME"] = str(home)
    _, endpoints = open_stack()
    # This process holds the servers, so that no run pays for their start.
    return {**os.environ, "OMNIOPS_DAGSTER_DATABASE_URL": dagster_database_url(endpoints.database_url)}


def measure_run_overhead(environment: Mapping[str, str], rounds: int) -> Figures:
    """The empty job, the crawl and the load of the code location, in turns."""
    figures = Figures()
    site = subprocess.Popen([sys.executable, "-c", _ONE_PAGE], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert site.stdout is not None
        url = site.stdout.readline().strip()
        # A crawl is given its own home's instance, and the empty job the same one by DAGSTER_HOME.
        crawl_environment = {k: v for k, v in environment.items() if not k.startswith("DAGSTER_")}
        crawl = [sys.executable, "-m", "omniops_pipelines", "crawl", url, "--allow-private", "--json"]
        for number in range(rounds + 1):
            empty_seconds, _ = timed([sys.executable, "-c", _EMPTY_JOB], environment)
            crawl_seconds, said = timed(crawl, crawl_environment)
            load_seconds, _ = timed([sys.executable, "-W", "error", "-c", _LOAD], crawl_environment, strict=False)
            assert json.loads(said)["successful_pages"] == 1, said
            if number:  # the first round warms the disk's cache
                figures.empty.append(empty_seconds)
                figures.crawl.append(crawl_seconds)
                figures.load.append(load_seconds)
    finally:
        site.kill()
        site.wait()
    return figures


def timed(command: Sequence[str], environment: Mapping[str, str], *, strict: bool = True) -> tuple[float, str]:
    """Run a process to its end: seconds, and its standard output.

    Raises:
        RuntimeError: it did not end well.
    """
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=dict(environment), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        msg = f"{command[1:3]} ended with status {done.returncode}:\n{done.stderr}"
        raise RuntimeError(msg)
    if not strict and done.stderr:
        msg = f"{command[1:3]} warned:\n{done.stderr}"
        raise RuntimeError(msg)
    return seconds, done.stdout


def show(figures: Figures) -> None:
    """Print the medians with the least and the most."""
    table = Table("", "seconds (median)", "least-most")
    for name, seconds in (
        ("a Dagster job of three empty ops", figures.empty),
        ("omniops crawl of one page", figures.crawl),
        ("import omniops_pipelines.definitions", figures.load),
    ):
        table.add_row(name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}")
    console = Console()
    console.print(table)
    console.print(f"crawl / empty job, in each round: {figures.ratio:.2f} (wanted: at most {WANTED_RATIO})")
    console.print(f"load: {statistics.median(figures.load):.2f} s (wanted: under {WANTED_LOAD_SECONDS:.0f} s)")


if __name__ == "__main__":
    sys.exit(main())
