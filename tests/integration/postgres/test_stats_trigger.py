"""scrape_job_stats equals the aggregate over a job's results, whatever is done to them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.crawler.plan import CrawlPlan
from tests.support.crawling import make_job

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_JOBS = ("one", "two", "three")
_STATUS = st.sampled_from(("success", "failed", "skipped"))
_MS = st.one_of(st.none(), st.integers(0, 5_000))
_URL = st.integers(0, 12).map(lambda n: f"http://x/{n}")
_ROW = st.tuples(st.sampled_from(_JOBS), _URL, _STATUS, _MS)
_STEP = st.one_of(
    st.tuples(st.just("insert"), st.lists(_ROW, max_size=8, unique_by=lambda r: r[:2])),
    st.tuples(st.just("upsert"), st.lists(_ROW, max_size=8, unique_by=lambda r: r[:2])),
    st.tuples(st.just("update"), st.tuples(_STATUS, _STATUS, _MS)),
    st.tuples(st.just("move"), st.tuples(st.sampled_from(_JOBS), st.sampled_from(_JOBS))),
    st.tuples(st.just("delete"), st.tuples(st.sampled_from(_JOBS), _STATUS)),
    st.tuples(st.just("truncate"), st.none()),
)

_INSERT = """
    INSERT INTO scrape_job_results (job_id, customer_id, url, status, processing_time_ms)
    SELECT r.job_id, j.customer_id, r.url, r.status, r.ms
    FROM unnest(CAST(:jobs AS text[]), CAST(:urls AS text[]), CAST(:statuses AS text[]), CAST(:ms AS integer[]))
             AS r (job_id, url, status, ms)
    JOIN scrape_jobs AS j ON j.job_id = r.job_id
    ON CONFLICT (job_id, url) DO {action}
"""
_AGGREGATE = """
    SELECT j.job_id, count(r.url) AS total_pages, count(*) FILTER (WHERE r.status = 'success') AS successful_pages,
           count(*) FILTER (WHERE r.status = 'failed') AS failed_pages,
           count(*) FILTER (WHERE r.status = 'skipped') AS skipped_pages,
           round(avg(r.processing_time_ms)) AS avg_processing_time_ms
    FROM scrape_jobs AS j LEFT JOIN scrape_job_results AS r USING (job_id) GROUP BY 1 ORDER BY 1
"""
_KEPT = """
    SELECT j.job_id, coalesce(s.total_pages, 0) AS total_pages, coalesce(s.successful_pages, 0) AS successful_pages,
           coalesce(s.failed_pages, 0) AS failed_pages, coalesce(s.skipped_pages, 0) AS skipped_pages,
           s.avg_processing_time_ms
    FROM scrape_jobs AS j LEFT JOIN scrape_job_stats AS s USING (job_id) ORDER BY 1
"""


def _apply(connection: Any, step: tuple[str, Any]) -> None:
    kind, what = step
    if kind in ("insert", "upsert"):
        action = (
            "NOTHING"
            if kind == "insert"
            else "UPDATE SET status = EXCLUDED.status, processing_time_ms = EXCLUDED.processing_time_ms"
        )
        columns = {
            "jobs": [row[0] for row in what],
            "urls": [row[1] for row in what],
            "statuses": [row[2] for row in what],
            "ms": [row[3] for row in what],
        }
        connection.execute(text(_INSERT.format(action=action)), columns)
    elif kind == "update":
        connection.execute(
            text("UPDATE scrape_job_results SET status = :new, processing_time_ms = :ms WHERE status = :old"),
            {"old": what[0], "new": what[1], "ms": what[2]},
        )
    elif kind == "move":
        connection.execute(
            text("""UPDATE scrape_job_results AS r SET job_id = :new WHERE job_id = :old AND NOT EXISTS (
                        SELECT 1 FROM scrape_job_results AS o WHERE o.job_id = :new AND o.url = r.url)"""),
            {"old": what[0], "new": what[1]},
        )
    elif kind == "delete":
        connection.execute(
            text("DELETE FROM scrape_job_results WHERE job_id = :job AND status = :status"),
            {"job": what[0], "status": what[1]},
        )
    else:
        connection.execute(text("TRUNCATE scrape_job_results"))


@pytest.fixture
def jobs(database: Database) -> Database:
    for job in _JOBS:
        make_job(database, job, CrawlPlan(urls=("http://x/",)))
    return database


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEP, max_size=10))
def test_the_counters_equal_the_aggregate(jobs: Database, steps: list[tuple[str, Any]]) -> None:
    from sqlalchemy import create_engine

    from resources.postgres.connection import driver_url

    # TRUNCATE is nobody's but the owner's, and to the owner row-level security shows no row of this table.
    engine = create_engine(driver_url(jobs.admin_url))
    try:
        with engine.connect() as connection:
            for step in steps:
                _apply(connection, step)
            wanted = [dict(row) for row in connection.execute(text(_AGGREGATE)).mappings()]
            kept = [dict(row) for row in connection.execute(text(_KEPT)).mappings()]
            assert kept == wanted
            connection.rollback()
    finally:
        engine.dispose()


def test_concurrent_writers_lose_no_count(jobs: Database) -> None:
    errors: list[BaseException] = []

    def write(worker: int) -> None:
        try:
            for batch in range(10):
                jobs.manager.add_job_results(
                    "one",
                    [
                        ({"url": f"http://x/{worker}/{batch}/{n}"}, {"status": "success", "processing_time_ms": n})
                        for n in range(20)
                    ],
                )
        except Exception as error:  # noqa: BLE001 - asserted on below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert jobs.manager.get_job_stats("one").total_pages == 1000
    assert jobs.rows(_KEPT) == jobs.rows(_AGGREGATE)


def test_the_program_itself_may_not_write_the_counters(jobs: Database) -> None:
    for statement in (
        "UPDATE scrape_job_stats SET total_pages = 5",
        "DELETE FROM scrape_job_stats",
        "SELECT scrape_job_stats_apply('{one}', NULL, '{1}', '{1}', '{0}', '{0}', '{0}', '{0}', '{0}')",
    ):
        with pytest.raises(DBAPIError, match="permission denied"), jobs.engine.begin() as connection:
            connection.execute(text(statement))


def test_removing_a_job_removes_its_results_and_counters(jobs: Database) -> None:
    jobs.manager.add_job_result("one", {"url": "http://x/"}, {"status": "success"})
    with jobs.engine.begin() as connection:
        connection.execute(text("DELETE FROM scrape_jobs WHERE job_id = 'one'"))
    assert jobs.value("SELECT count(*) FROM scrape_job_results") == 0
    assert jobs.value("SELECT count(*) FROM scrape_job_stats") == 0
