"""`python -m bench.incremental`: what a second crawl of a site that has not changed costs, beside the first.

The site gives ETags. Each round: empty tables, a first crawl, an incremental one; without texts and with them, in
turns. Times fail nothing; a run that read a page again or wrote a row of content again does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import psycopg
from rich.console import Console
from rich.table import Table

from bench.crawl import Bench, bench

if TYPE_CHECKING:
    from bench.measure import Measured

PAGES = 2_000
ROUNDS = 3
WANTED = {"": 1.5, "--text": 4.0}
UNMODIFIED_WANTED = 0.95
_CONTENT = """
    SELECT coalesce(md5(string_agg(page_id || ':' || xmin::text, ',' ORDER BY page_id)), '') FROM website_content
"""


def _content_rows(here: Bench) -> str:
    """Which version each row of content has: a row that is written again has another."""
    with psycopg.connect(here.admin_url) as connection:
        row = connection.execute(_CONTENT).fetchone()
    return str(row[0]) if row else ""


def _unmodified(here: Bench, job_id: str) -> float:
    """The share of a job's urls that were answered 304."""
    with psycopg.connect(here.admin_url) as connection:
        row = connection.execute(
            "SELECT coalesce(avg((http_status = 304 AND skip_reason = 'not_modified')::int), 0) "
            "FROM scrape_job_results WHERE job_id = %s",
            (job_id,),
        ).fetchone()
    return float(row[0]) if row else 0.0


def one_round(here: Bench, text: str) -> tuple[Measured, Measured, str | None]:
    """A first and a second crawl; and what was wrong."""
    options = [text] if text else []
    first, fault = here.run("omniops", ("omniops", *options))
    if first is None or fault:
        raise RuntimeError(fault)
    before = _content_rows(here)
    second, fault = here.run_again("omniops", ("omniops", *options, "--job-type", "incremental"))
    if second is None or second.job_id is None:
        raise RuntimeError(fault)
    share = _unmodified(here, second.job_id)
    wrong = []
    if share < UNMODIFIED_WANTED:
        wrong.append(f"only {share:.1%} of the pages were answered 304")
    if second.pages != here.pages:
        wrong.append(f"{second.pages} pages, not {here.pages}")
    if _content_rows(here) != before:
        wrong.append("content was written again")
    return first, second, "; ".join(wrong) or None


def main() -> int:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=PAGES)
    parser.add_argument("--pairs", type=int, default=ROUNDS, help="rounds")
    options = parser.parse_args()
    console = Console()
    runs: dict[str, list[tuple[Measured, Measured]]] = defaultdict(list)
    faults: list[str] = []
    with bench(console, options.pages) as here:
        for number in range(1, options.pairs + 1):
            for text in WANTED:
                first, second, fault = one_round(here, text)
                runs[text].append((first, second))
                if fault:
                    faults.append(f"round {number}{' with text' if text else ''}: {fault}")
    table = Table(title="An incremental crawl of a site that has not changed: medians", title_justify="left")
    for heading in ("", "first, pages/s", "second, pages/s", "Postgres ms/page", "ratio", "wanted", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for text, pairs in runs.items():
        ratios = [(b.pages / b.seconds) / (a.pages / a.seconds) for a, b in pairs]
        ratio = statistics.median(ratios)
        table.add_row(
            "with text" if text else "without text",
            f"{statistics.median(a.pages / a.seconds for a, _ in pairs):,.0f}",
            f"{statistics.median(b.pages / b.seconds for _, b in pairs):,.0f}",
            f"{statistics.median(b.postgres_cpu_seconds * 1_000 / b.pages for _, b in pairs):.3f}",
            f"{ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f">= {WANTED[text]:g}",
            "reached" if ratio >= WANTED[text] else "missed",
        )
    console.print(table)
    for fault in faults:
        console.print(f"WRONG: {fault}", markup=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
