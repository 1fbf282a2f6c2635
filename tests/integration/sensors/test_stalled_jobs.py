"""A crawl whose worker is gone goes on, one that is alive is left alone, and what dies every time ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from omniops_pipelines.definitions import defs
from resources.postgres.frontier import CrawlFrontier
from resources.settings import PROJECT_ROOT
from sensors.stalled_jobs import MAX_ATTEMPTS
from tests.acceptance.program import assert_exact, count_results, wait_until
from tests.integration.sensors.conftest import RUN_KEY, Daemon, execute, queue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

SENSOR = "stalled_jobs_sensor"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
LONG_AGO = "clock_timestamp() - interval '5 minutes'"
PLAN = '{"urls": ["https://shop.example/"]}'


def expire_leases(database: Database) -> None:
    execute(database, f"UPDATE omniops_meta.crawl_workers SET leased_until = {LONG_AGO}")


def requests(daemon: Daemon) -> list[Any]:
    return list(daemon.tick(SENSOR).run_requests or [])


def claimed(database: Database, daemon: Daemon, job_id: str, status: dg.DagsterRunStatus, **tags: str) -> str:
    """A running job with a run in this state."""
    run_id = daemon.make_run("crawl", status, tags={"omniops/job_id": job_id, **tags})
    queue(database, job_id, config=PLAN, status="queued")
    execute(database, "UPDATE scrape_jobs SET status = 'running', run_id = :r WHERE job_id = :j", r=run_id, j=job_id)
    return run_id


def leave_lease(database: Database, job_id: str) -> int:
    """What a worker that is killed leaves."""
    job = database.manager.get_job_from_postgres(job_id)
    assert job is not None
    return CrawlFrontier(database.engine, job_id, job["customer_id"]).register_worker()


def test_a_crawl_of_the_command_line_that_was_killed_is_resumed_to_its_exact_end(
    database: Database, daemon: Daemon, site: Site, tmp_path: Path
) -> None:
    site.chain(40)
    site.latency = 0.05
    with subprocess.Popen(
        [sys.executable, "-m", "omniops_pipelines", "crawl", site.url, "--job-id", "killed", "--allow-private",
         "--concurrency", "1"],
        cwd=PROJECT_ROOT, env={**os.environ, **database.environment(tmp_path / "home")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_until(lambda: count_results(database, "killed") >= 3)
        # Alive: nobody else is to touch it.
        assert requests(daemon) == []
        process.send_signal(signal.SIGKILL)
    killed = str(database.value("SELECT run_id FROM scrape_jobs"))
    run = daemon.instance.get_run_by_id(killed)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.STARTED
    assert requests(daemon) == []
    expire_leases(database)
    (request,) = requests(daemon)
    assert request.run_key == "job-killed-attempt-1"
    # Its run does not take up the website's place in the run queue any more.
    run = daemon.instance.get_run_by_id(killed)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    execute(database, "UPDATE dagster.runs SET end_time = end_time - 600")
    assert [again.run_key for again in requests(daemon)] == [request.run_key]
    site.latency = 0
    result = defs.resolve_job_def("crawl").execute_in_process(
        run_config={**request.run_config, **QUIET}, tags={**request.tags, RUN_KEY: request.run_key},
        instance=daemon.instance, raise_on_error=False,
    )  # fmt: skip
    assert result.success
    assert_exact(database, "killed", [site.url, *(f"{site.url}p{n}" for n in range(1, 40))])
    assert requests(daemon) == []


def test_a_job_with_a_live_worker_is_never_touched(database: Database, daemon: Daemon) -> None:
    claimed(database, daemon, "alive", dg.DagsterRunStatus.FAILURE)
    leave_lease(database, "alive")
    execute(database, "UPDATE scrape_jobs SET started_at = now() - interval '3 days'")
    assert requests(daemon) == []
    assert database.value("SELECT status FROM scrape_jobs") == "running"


def test_a_paused_job_waits_for_a_person_and_another_programs_job_is_its_own(
    database: Database, daemon: Daemon
) -> None:
    claimed(database, daemon, "paused", dg.DagsterRunStatus.FAILURE)
    leave_lease(database, "paused")
    execute(database, "UPDATE scrape_jobs SET status = 'paused'")
    queue(database, "theirs", config=PLAN)
    execute(database, "UPDATE scrape_jobs SET status = 'running', started_at = now() - interval '9 days' "
                      "WHERE job_id = 'theirs'")  # fmt: skip
    expire_leases(database)
    assert requests(daemon) == []
    rows = database.rows("SELECT job_id, status FROM scrape_jobs ORDER BY 1")
    assert [(row["job_id"], row["status"]) for row in rows] == [("paused", "paused"), ("theirs", "running")]


def test_a_job_that_kills_its_runs_fails_after_several_with_the_reason(database: Database, daemon: Daemon) -> None:
    claimed(database, daemon, "poison", dg.DagsterRunStatus.STARTED)
    leave_lease(database, "poison")
    seen = []
    for _ in range(MAX_ATTEMPTS):
        expire_leases(database)
        (request,) = requests(daemon)
        seen.append(request.run_key)
        run_id = daemon.submit(request, SENSOR)
        assert run_id is not None
        assert requests(daemon) == []  # it is about to be resumed
        execute(database, "UPDATE scrape_jobs SET run_id = :r", r=run_id)
        run = daemon.instance.get_run_by_id(run_id)
        assert run is not None
        daemon.instance.report_run_failed(run)
        assert requests(daemon) == []  # not at once
        execute(database, "UPDATE dagster.runs SET end_time = end_time - 7200 WHERE run_id = :r", r=run_id)
    assert seen == [f"job-poison-attempt-{n}" for n in range(1, MAX_ATTEMPTS + 1)]
    assert requests(daemon) == []
    (job,) = database.rows("SELECT status, finish_reason, error_message FROM scrape_jobs")
    assert (job["status"], job["finish_reason"]) == ("failed", "error")
    assert f"{MAX_ATTEMPTS} runs of it died" in str(job["error_message"])


def test_a_worker_that_comes_in_the_last_moment_saves_its_job(database: Database, daemon: Daemon) -> None:
    from sensors.crawl_jobs import End, end_job

    claimed(database, daemon, "saved", dg.DagsterRunStatus.STARTED)
    leave_lease(database, "saved")
    end = End("saved", "failed", "no worker")
    assert end_job(database.engine, database.manager, end, expected="running") is False
    assert database.value("SELECT status FROM scrape_jobs") == "running"
    expire_leases(database)
    assert end_job(database.engine, database.manager, end, expected="queued") is False
    assert end_job(database.engine, database.manager, end, expected="running") is True
    job = database.manager.get_job("saved")
    assert job is not None
    assert (job["status"], job["error_message"]) == ("failed", "no worker")


def test_a_run_that_was_cancelled_and_could_not_say_so_is_not_resumed(database: Database, daemon: Daemon) -> None:
    claimed(database, daemon, "stopped", dg.DagsterRunStatus.CANCELED)
    claimed(database, daemon, "left", dg.DagsterRunStatus.CANCELED, **{"omniops/on_interrupt": "paused"})
    execute(database, "UPDATE dagster.runs SET end_time = end_time - 600")
    assert requests(daemon) == []
    rows = database.rows("SELECT job_id, status FROM scrape_jobs ORDER BY 1")
    assert [(row["job_id"], row["status"]) for row in rows] == [("left", "paused"), ("stopped", "cancelled")]


def test_a_row_that_names_another_jobs_run_does_not_end_that_run(database: Database, daemon: Daemon) -> None:
    others = daemon.make_run("crawl", dg.DagsterRunStatus.STARTED, tags={"omniops/job_id": "another"})
    queue(database, "mine", config=PLAN, run_id=others)
    execute(database, "UPDATE scrape_jobs SET status = 'running'")
    execute(database, "UPDATE scrape_jobs SET started_at = now() - interval '3 hours'")
    assert [request.run_key for request in requests(daemon)] == ["job-mine-attempt-1"]
    run = daemon.instance.get_run_by_id(others)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.STARTED


def test_a_run_outside_of_its_crawl_is_believed_by_its_last_word(database: Database, daemon: Daemon) -> None:
    run_id = claimed(database, daemon, "embedding", dg.DagsterRunStatus.STARTED)
    execute(database, "UPDATE scrape_jobs SET started_at = now() - interval '3 hours'")
    execute(database, "UPDATE dagster.runs SET start_time = start_time - 7200, "
                      "create_timestamp = create_timestamp - interval '3 hours'")  # fmt: skip
    assert requests(daemon) == []
    # It has been silent for two hours: it is dead. (The record's time is the column's; the entry's is in its body.)
    execute(database, "UPDATE dagster.event_logs SET timestamp = timestamp - interval '2 hours', "
                      "event = replace(event, split_part((event::jsonb ->> 'timestamp'), '.', 1), "
                      "(split_part((event::jsonb ->> 'timestamp'), '.', 1)::bigint - 7200)::text) "
                      "WHERE run_id = :r", r=run_id)  # fmt: skip
    assert [request.run_key for request in requests(daemon)] == ["job-embedding-attempt-1"]
