"""What Dagster's daemon does by itself: queued jobs become runs, though it is killed."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from resources.settings import PROJECT_ROOT
from tests.acceptance.program import wait_until
from tests.acceptance.ui import serve_ui
from tests.support.site import serve_site

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.program import Program
    from tests.support.databases import Database

pytestmark = pytest.mark.acceptance

# So many that the daemon is killed with runs of every kind under way: done, running, queued in Dagster, not yet seen.
# Each is a process, so there are more of them only where somebody asked for a long test (`make soak`).
JOBS = 24 if "OMNIOPS_SOAK_ROUNDS" in os.environ else 8
# Queued at the moment of the kill.
UNSEEN = 2
# Done before the kill.
DONE = 2

# A run for a website waits for the one before, so the jobs are about several, and fewer than there are jobs.
HOSTS = tuple(f"127.0.0.{n}" for n in range(1, 5))


def queue(database: Database, job_id: str, config: dict[str, Any], domain: str = "127.0.0.1") -> None:
    """What another program does to have something crawled."""
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO customers (name, slug) VALUES ('Acme', 'acme') ON CONFLICT DO NOTHING"),
        )
        connection.execute(
            text("""INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config)
                    SELECT :job, id, :domain, 'single_page', CAST(:config AS jsonb) FROM customers
                    WHERE slug = 'acme'"""),
            {"job": job_id, "domain": domain, "config": json.dumps(config)},
        )


def statuses(database: Database) -> Counter[object]:
    """Jobs by status."""
    return Counter({row["status"]: row["n"] for row in database.rows(
        "SELECT status, count(*) AS n FROM scrape_jobs GROUP BY status")})  # type: ignore[misc]  # fmt: skip


@pytest.fixture
def impatient(program: Program, home: Path) -> Program:
    """The program on an instance like its own, on which a run that does not start is given up after one minute."""
    folder = home.parent / "dagster-home"
    folder.mkdir()
    config = (PROJECT_ROOT / "omniops_pipelines" / "dagster.yaml").read_text()
    for theirs, ours in (("start_timeout_seconds: 180", "start_timeout_seconds: 60"),
                         ("poll_interval_seconds: 30", "poll_interval_seconds: 10")):  # fmt: skip
        assert config.count(theirs) == 1
        config = config.replace(theirs, ours)
    (folder / "dagster.yaml").write_text(config)
    program.environment["DAGSTER_HOME"] = str(folder)
    return program


@pytest.mark.timeout(900)
def test_queued_rows_become_jobs_exactly_once_though_the_daemon_is_killed(
    impatient: Program, database: Database, tmp_path: Path
) -> None:
    with serve_site(*HOSTS[1:]) as site:
        urls = {}
        for n in range(JOBS):
            site.add(f"/page{n}")
            urls[f"job-{n}"] = f"http://{HOSTS[n % len(HOSTS)]}:{site.port}/page{n}"
        early, late = list(urls)[:-UNSEEN], list(urls)[-UNSEEN:]
        for job_id in early:
            queue(database, job_id, {"urls": [urls[job_id]], "allow_private": True})
        bad = {
            "bad-type": {"urls": "http://127.0.0.1/"},
            "bad-number": {"urls": ["http://127.0.0.1/"], "max_pages": -1},
            "bad-address": {"urls": ["http://127.0.0.1:1/"]},
        }
        for job_id, config in bad.items():
            queue(database, job_id, config)

        with serve_ui(impatient, tmp_path / "first.log") as ui:
            wait_until(lambda: statuses(database)["completed"] >= DONE, 300, "the first jobs")
            for job_id in late:
                queue(database, job_id, {"urls": [urls[job_id]], "allow_private": True})
            ui.kill()
        before = statuses(database)
        assert DONE <= before["completed"] < len(early), before
        assert before["queued"] >= UNSEEN, before

        with serve_ui(impatient, tmp_path / "second.log"):
            wait_until(lambda: statuses(database)["completed"] >= JOBS, 600, "all jobs")
            wait_until(lambda: statuses(database) == {"completed": JOBS, "failed": 3}, 60, "the bad ones")
            # Time for whatever would be started a second time.
            ticks = "SELECT count(*) FROM dagster.job_ticks"
            seen = database.value(ticks)
            wait_until(lambda: database.value(ticks) != seen, 60, "another tick")

    results = {(row["job_id"], row["url"]) for row in database.rows("SELECT job_id, url FROM scrape_job_results")}
    assert results == set(urls.items())
    assert database.value("SELECT count(*) FROM scrape_job_results") == JOBS
    succeeded = database.rows("""
        SELECT t.value AS job_id, count(*) AS runs FROM dagster.runs AS r
        JOIN dagster.run_tags AS t ON t.run_id = r.run_id AND t.key = 'omniops/job_id'
        WHERE r.status = 'SUCCESS' GROUP BY t.value HAVING count(*) > 1""")
    assert succeeded == []
    reasons = {
        row["job_id"]: str(row["error_message"])
        for row in database.rows("SELECT job_id, error_message FROM scrape_jobs WHERE status = 'failed'")
    }
    assert set(reasons) == set(bad)
    assert "must be a list" in reasons["bad-type"]
    assert "max_pages is -1" in reasons["bad-number"]
    assert "private" in reasons["bad-address"]
