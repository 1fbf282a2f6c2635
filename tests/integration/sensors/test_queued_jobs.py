"""What other programs queue becomes runs, each exactly once, whatever happens between the ticks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from omniops_pipelines.definitions import defs
from sensors.queued_jobs import MAX_ATTEMPTS, MAX_REQUESTS
from tests.integration.sensors.conftest import RUN_KEY, Daemon, execute, queue

if TYPE_CHECKING:
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration

SENSOR = "queued_jobs_sensor"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
BAD = {
    "bad-field": {"config": '{"max_page": 1}'},
    "bad-type": {"config": '{"max_pages": "many"}'},
    "bad-number": {"config": '{"max_pages": ' + "9" * 6_000 + "}"},
    "bad-depth": {"config": "[" * 1_000 + "]" * 1_000, "as_field": True},
    "bad-domain": {"domain": "not a host"},
    "bad-url": {"config": '{"urls": ["ftp://shop.example/"]}'},
    "bad-size": {"config": json.dumps({"urls": ["https://a.example/" + "x" * 300_000]})},
}


def queue_bad(database: Database) -> None:
    for job_id, columns in BAD.items():
        given = dict(columns)
        if given.pop("as_field", False):
            given["config"] = '{"include": ' + str(given["config"]) + "}"
        queue(database, job_id, **given)


def keys(daemon: Daemon) -> list[str]:
    return [request.run_key for request in daemon.tick(SENSOR).run_requests or []]


def statuses(database: Database) -> dict[str, str]:
    rows = database.rows("SELECT job_id, status FROM scrape_jobs ORDER BY job_id")
    return {str(row["job_id"]): str(row["status"]) for row in rows}


def test_fifty_rows_become_fifty_runs_and_bad_ones_fail_with_their_reason(database: Database, daemon: Daemon) -> None:
    for n in range(50):
        queue(database, f"job {n:02}", domain=f"site{n % 7}.example", customer=f"c{n % 3}")
    queue_bad(database)
    made: list[str] = []
    for _ in range(6):
        result = daemon.tick(SENSOR)
        # The tick's result is lost, and the next one asks for the same.
        assert [r.run_key for r in result.run_requests or []] == keys(daemon)
        for request in result.run_requests or []:
            if daemon.submit(request, SENSOR) is not None:
                made.append(str(request.run_key))
    assert sorted(made) == [f"job-job {n:02}-attempt-1" for n in range(50)]
    assert keys(daemon) == []
    found = statuses(database)
    assert {job for job, status in found.items() if status == "failed"} == set(BAD)
    assert {status for job, status in found.items() if job not in BAD} == {"queued"}
    reasons = database.rows("SELECT job_id, error_message, finish_reason FROM scrape_jobs WHERE status = 'failed'")
    for row in reasons:
        assert str(row["error_message"]).startswith("it cannot be crawled as it was queued:"), row
        assert row["finish_reason"] == "error"
    runs = daemon.instance.get_runs(filters=dg.RunsFilter(job_name="crawl"))
    assert len({run.tags["omniops/job_id"] for run in runs}) == len(runs) == 50


def test_a_queued_row_is_crawled_and_its_job_is_the_rows_own(database: Database, daemon: Daemon, site: Site) -> None:
    site.chain(5)
    queue(
        database, "by sql", domain=f"127.0.0.1:{site.port}", job_type="full_crawl",
        config=json.dumps({"urls": [site.url], "max_pages": 3, "allow_private": True}),
    )  # fmt: skip
    (request,) = daemon.tick(SENSOR).run_requests
    result = defs.resolve_job_def("crawl").execute_in_process(
        run_config={**request.run_config, **QUIET}, tags=request.tags, instance=daemon.instance, raise_on_error=False
    )
    assert result.success
    (job,) = database.rows("SELECT * FROM scrape_jobs")
    assert (job["status"], job["finish_reason"], job["run_id"]) == ("completed", "max_pages", result.run_id)
    assert database.value("SELECT count(*) FROM scrape_job_results WHERE job_id = 'by sql'") == 3
    assert keys(daemon) == []


def test_a_row_without_urls_is_crawled_by_its_domain(database: Database, daemon: Daemon) -> None:
    queue(database, "bare", domain="nowhere.invalid")
    (request,) = daemon.tick(SENSOR).run_requests
    result = defs.resolve_job_def("crawl").execute_in_process(
        run_config={**request.run_config, **QUIET}, tags=request.tags, instance=daemon.instance, raise_on_error=False
    )
    assert not result.success
    (job,) = database.rows("SELECT status, error_message FROM scrape_jobs")
    assert job["status"] == "failed"
    assert "nowhere.invalid" in str(job["error_message"])


def test_jobs_that_runs_made_for_themselves_are_left_alone(database: Database, daemon: Daemon) -> None:
    queue(database, "of a run", run_id="r-1")
    for status in ("running", "paused"):
        queue(database, status)
        execute(database, "UPDATE scrape_jobs SET status = 'running' WHERE job_id = :j", j=status)
    execute(database, "UPDATE scrape_jobs SET status = 'paused' WHERE job_id = 'paused'")
    assert keys(daemon) == []


def test_a_flood_of_one_customer_keeps_nobody_waiting(database: Database, daemon: Daemon) -> None:
    old = datetime.now(UTC) - timedelta(hours=1)
    for n in range(MAX_REQUESTS + 15):
        queue(
            database, f"flood-{n:03}", customer="flood", domain="big.example", created_at=old + timedelta(seconds=n)
        )
    asked = daemon.tick(SENSOR).run_requests
    assert len(asked) == MAX_REQUESTS
    for request in asked:
        daemon.submit(request, SENSOR)
    queue(database, "small", customer="small")
    queue(database, "other-domain", customer="flood", domain="second.example")
    asked = [request.run_key for request in daemon.tick(SENSOR).run_requests]
    assert asked[0] == "job-small-attempt-1"
    # Of a customer's, its domains in turns, the oldest first.
    assert asked[1:4] == ["job-flood-020-attempt-1", "job-other-domain-attempt-1", "job-flood-021-attempt-1"]


def test_no_more_runs_wait_in_dagsters_queue_than_a_bound(
    database: Database, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensors.queued_jobs.MAX_WAITING", 7)
    monkeypatch.setattr("sensors.queued_jobs.MAX_REQUESTS", 4)
    for n in range(12):
        queue(database, f"job-{n:03}")
    asked = []
    for _ in range(4):
        requests = daemon.tick(SENSOR).run_requests or []
        asked.append(len(requests))
        for request in requests:
            daemon.submit(request, SENSOR)
    assert asked == [4, 3, 0, 0]


def test_a_run_that_was_killed_is_followed_by_another_and_in_the_end_the_job_fails(
    database: Database, daemon: Daemon
) -> None:
    queue(database, "doomed")
    seen = []
    for _ in range(MAX_ATTEMPTS):
        (request,) = daemon.tick(SENSOR).run_requests
        seen.append(request.run_key)
        run_id = daemon.submit(request, SENSOR)
        assert keys(daemon) == []
        run = daemon.instance.get_run_by_id(run_id or "")
        assert run is not None
        daemon.instance.report_run_failed(run)
    assert seen == [f"job-doomed-attempt-{n}" for n in range(1, MAX_ATTEMPTS + 1)]
    assert keys(daemon) == []
    (job,) = database.rows("SELECT status, error_message FROM scrape_jobs")
    assert (job["status"], "ended before they could begin" in str(job["error_message"])) == ("failed", True)


def test_a_daemon_that_died_before_it_submitted_its_run_is_asked_again_by_the_same_key(
    database: Database, daemon: Daemon
) -> None:
    queue(database, "half way")
    (request,) = daemon.tick(SENSOR).run_requests
    daemon.make_run(
        "crawl", dg.DagsterRunStatus.NOT_STARTED, config=request.run_config,
        tags={**request.tags, RUN_KEY: request.run_key},
    )  # fmt: skip
    assert keys(daemon) == ["job-half way-attempt-1"]


def test_a_run_that_a_person_cancelled_in_the_queue_cancels_its_job(database: Database, daemon: Daemon) -> None:
    queue(database, "unwanted")
    (request,) = daemon.tick(SENSOR).run_requests
    daemon.make_run(
        "crawl", dg.DagsterRunStatus.CANCELED, config=request.run_config,
        tags={**request.tags, RUN_KEY: request.run_key},
    )  # fmt: skip
    assert keys(daemon) == []
    assert statuses(database) == {"unwanted": "cancelled"}


def test_a_row_that_the_database_refuses_to_end_does_not_stop_the_others(database: Database, daemon: Daemon) -> None:
    from sqlalchemy import create_engine, text

    from resources.postgres.connection import driver_url

    queue(database, "stubborn", domain="not a host", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    queue(database, "good")
    owner = create_engine(driver_url(database.owner_url))
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE scrape_jobs ADD CHECK (job_id <> 'stubborn' OR status = 'queued')"))
    owner.dispose()
    assert keys(daemon) == ["job-good-attempt-1"]
    assert statuses(database)["stubborn"] == "queued"


def test_a_queue_that_cannot_be_read_is_not_an_empty_one(database: Database, daemon: Daemon) -> None:
    from sqlalchemy import create_engine, text

    from resources.postgres.connection import driver_url

    queue(database, "waits")
    owner = create_engine(driver_url(database.owner_url))
    with owner.begin() as connection:
        connection.execute(text("REVOKE SELECT ON scrape_jobs FROM service_role"))
    owner.dispose()
    with pytest.raises(Exception, match="permission denied"):
        daemon.tick(SENSOR)
