"""The program as a person or a script runs it: its processes, and what they left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resources.settings import PROJECT_ROOT
from tests.support.forked import Forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.support.databases import Database

# Longer than anything here takes on a busy machine; what hangs is killed and fails then.
PATIENCE_SECONDS = 240.0


def wait_until(what: Callable[[], object], seconds: float = PATIENCE_SECONDS, why: str = "") -> None:
    """Poll until something is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {why or what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON value that it has to be."""
        return json.loads(self.out)

    def expect(self, status: int) -> Ended:
        """This, if it ended with the status; all that it said otherwise."""
        assert self.status == status, f"exit {self.status}, not {status}\n--- out\n{self.out}\n--- err\n{self.err}"
        assert "Traceback" not in self.err, self.err
        return self


Process = subprocess.Popen[str] | Forked


@dataclass
class Program:
    """Starts processes of the program in one environment, and leaves none behind.

    Attributes:
        environment: all variables.
        forked: spare them the loading; what they do is the same. Not for tests of the start itself.
        started: all of them.
    """

    environment: dict[str, str]
    forked: bool = True
    started: list[Process] = field(default_factory=list)

    def start(self, *arguments: str, log: Path | None = None, **environment: str) -> Process:
        """A process that runs; with `log` its output goes there."""
        process = self._start(arguments, log, {**self.environment, "PYTHONFAULTHANDLER": "1", **environment})
        self.started.append(process)
        return process

    def _start(self, arguments: tuple[str, ...], log: Path | None, environment: dict[str, str]) -> Process:
        if self.forked:
            if log is None:
                return Forked(arguments, environment)
            with log.open("w") as file:
                return Forked(arguments, environment, file.fileno())
        with open(log or "/dev/null", "w") as file:  # noqa: PTH123 - one call for both
            return subprocess.Popen(
                [sys.executable, "-m", "omniops_pipelines", *arguments],
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file if log else subprocess.PIPE,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def run(self, *arguments: str, **environment: str) -> Ended:
        """Run it to its end."""
        return finish(self.start(*arguments, **environment))

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            process.kill()
            process.communicate()


def finish(process: Process, seconds: float = PATIENCE_SECONDS) -> Ended:
    """Wait for a process to end; of one that does not, say where each of its threads stood."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python writes the threads' stacks then
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        msg = f"{process.args} did not end within {seconds:.0f} s\n--- out\n{out}\n--- err\n{err}"
        raise AssertionError(msg) from None
    return Ended(process.returncode, out or "", err or "")


def count_results(database: Database, job_id: str) -> int:
    """How many urls of a job have their result, counted by row."""
    found = database.value("SELECT count(*) FROM scrape_job_results WHERE job_id = :job", job=job_id)
    assert isinstance(found, int)
    return found


def job_status(database: Database, job_id: str) -> object:
    """The status of a job, None if there is none."""
    return database.value("SELECT status FROM scrape_jobs WHERE job_id = :job", job=job_id)


def assert_exact(database: Database, job_id: str, urls: Iterable[str], status: str = "completed") -> None:
    """One result for each url, none twice, counters that equal the rows, content for each success, no lease left."""
    found = [row["url"] for row in database.rows("SELECT url FROM scrape_job_results WHERE job_id = :j", j=job_id)]
    wanted = sorted(urls)
    assert sorted(found) == wanted, {
        "missing": sorted(set(wanted) - set(found)),
        "not wanted": sorted(set(found) - set(wanted)),
        "twice": len(found) - len(set(found)),
    }
    (counted,) = database.rows(
        """
        SELECT count(*) AS total, count(*) FILTER (WHERE status = 'success') AS successful,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'skipped') AS skipped,
               round(avg(processing_time_ms)) AS average
        FROM scrape_job_results WHERE job_id = :job
        """,
        job=job_id,
    )
    (kept,) = database.rows(
        """
        SELECT total_pages AS total, successful_pages AS successful, failed_pages AS failed,
               skipped_pages AS skipped, avg_processing_time_ms AS average
        FROM scrape_job_stats WHERE job_id = :job
        """,
        job=job_id,
    )
    assert kept == counted
    without_content = database.rows(
        """
        SELECT r.url FROM scrape_job_results AS r JOIN scrape_jobs AS j USING (job_id)
        LEFT JOIN scraped_pages AS p ON p.customer_id = j.customer_id AND p.url = r.url
        LEFT JOIN website_content AS c ON c.page_id = p.id
        WHERE r.job_id = :job AND r.status = 'success' AND c.page_id IS NULL
        """,
        job=job_id,
    )
    assert without_content == []
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers WHERE job_id = :job", job=job_id) == 0
    assert job_status(database, job_id) == status


def assert_nothing_written(database: Database) -> None:
    """No customer, no job, no run."""
    for table in ("customers", "scrape_jobs", "crawl_frontier", "scraped_pages", "dagster.runs"):
        if database.value("SELECT to_regclass(:table) IS NOT NULL", table=table):
            assert database.value(f"SELECT count(*) FROM {table}") == 0, table
