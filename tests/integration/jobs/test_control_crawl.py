"""Jobs that are paused and cancelled from Dagster and at the terminal, wherever their crawl runs."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from omniops_pipelines.cli import cli
from resources.crawler.plan import CrawlPlan
from tests.integration.jobs.conftest import failures, metadata
from tests.support.crawling import make_crawl, make_job, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration


@pytest.fixture
def crawling(site: Site, database: Database) -> Iterator[threading.Thread]:
    """The job `far`, which is crawled meanwhile as another program would do it."""
    site.chain(500)
    site.latency = 0.05
    plan = CrawlPlan(urls=(site.url,), allow_private=True, concurrency=2)
    make_job(database, "far", plan)
    run = make_crawl(database, "far", plan)
    thread = threading.Thread(target=run.run)
    thread.start()
    while run.progress.total < 5:
        time.sleep(0.01)
    yield thread
    run.stop("cancelled")
    thread.join(200)


def omniops(*arguments: str) -> tuple[int, Any, str]:
    """Exit status, standard output as JSON, standard error, of a command in this process."""
    ended = CliRunner().invoke(cli, list(arguments), standalone_mode=False)
    assert ended.exception is None, ended.exception
    return int(ended.return_value or 0), json.loads(ended.stdout) if ended.stdout else None, ended.stderr


def status(database: Database, job_id: str) -> tuple[Any, Any]:
    job = database.manager.get_job_from_postgres(job_id)
    assert job is not None
    return job["status"], job["finish_reason"]


@pytest.mark.usefixtures("crawling")
def test_a_crawl_is_paused_from_dagster_and_goes_on(site: Site, database: Database, run_job: RunJob) -> None:
    paused = run_job("control_crawl", control_jobs={"job_ids": ["far"]})
    assert paused.success
    (row,) = metadata(paused, "control_jobs")["jobs"]
    assert (row["status"], row["changed"], row["workers"]) == ("paused", True, 0)
    assert status(database, "far") == ("paused", "paused")
    assert len(results(database, "far")) < 400
    site.latency = 0
    resumed = run_job(
        "crawl", plan_crawl={"urls": [site.url], "customer": "acme", "job_id": "far", "allow_private": True}
    )
    assert resumed.success, failures(resumed)
    assert status(database, "far") == ("completed", "exhausted")
    assert len(results(database, "far")) == 500


@pytest.mark.usefixtures("crawling")
def test_a_crawl_is_cancelled_from_dagster(database: Database, run_job: RunJob) -> None:
    assert run_job("control_crawl", control_jobs={"job_ids": ["far"], "action": "cancel"}).success
    assert status(database, "far") == ("cancelled", "cancelled")
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0
    refused = run_job("control_crawl", control_jobs={"job_ids": ["far", "nobody"]})
    said = failures(refused)["control_jobs"]
    assert "job far is cancelled and cannot become paused" in said
    assert "no job 'nobody'" in said


@pytest.mark.usefixtures("crawling", "defs")
def test_jobs_are_paused_and_cancelled_at_the_terminal(site: Site, database: Database) -> None:
    make_job(database, "done", CrawlPlan(urls=(site.url,)))
    database.manager.complete_job("done")
    code, said, errors = omniops("jobs", "pause", "far", "done", "nobody", "--json")
    assert code == 1
    assert [(job["job_id"], job["status"], job["changed"]) for job in said] == [
        ("far", "paused", True),
        ("done", "completed", False),
        ("nobody", None, False),
    ]
    assert "job done is completed and cannot become paused" in errors
    assert "no job 'nobody'" in errors
    code, said, _ = omniops("jobs", "pause", "far", "--json")
    assert (code, said[0]["changed"], said[0]["workers"]) == (0, False, 0)
    code, said, _ = omniops("jobs", "cancel", "far", "--json")
    assert (code, said[0]["status"]) == (0, "cancelled")
    code, _, errors = omniops("jobs", "resume", "far", "--json")
    assert code == 1
    assert "job far is cancelled, and that is final" in errors


def test_a_quota_that_is_raised_lets_a_completed_job_go_on(
    site: Site, database: Database, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    site.chain(40)
    order = {"urls": [site.url], "customer": "acme", "job_id": "q", "allow_private": True}
    assert run_job("crawl", plan_crawl={**order, "max_pages": 10}).success
    assert status(database, "q") == ("completed", "max_pages")
    site.requests.clear()
    # A default says nothing of a job that there is, and the same quota raises nothing.
    for given in (order, {**order, "max_pages": 10}, {**order, "max_pages": 5}, {**order, "max_bytes": 2**40}):
        assert run_job("crawl", plan_crawl=given).success
        assert sum(site.requests.values()) == 0
        assert status(database, "q") == ("completed", "max_pages")
    assert run_job("crawl", plan_crawl={**order, "max_pages": 25}).success
    assert len(results(database, "q")) == 25
    assert run_job("crawl", plan_crawl={**order, "max_pages": 1_000}).success
    assert status(database, "q") == ("completed", "exhausted")
    assert len(results(database, "q")) == 40
    pages = [count for path, count in site.requests.items() if path != "/robots.txt"]
    assert sum(pages) == 30
