"""The cleanup jobs in Dagster: what they show, what they refuse, how they end."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from sqlalchemy import text

from resources.postgres.compliance import place_hold
from resources.postgres.connection import connect_once
from resources.postgres.retention import preview
from tests.acceptance.program import wait_until
from tests.integration.jobs.conftest import failures, metadata
from tests.integration.retention.seeds import execute, make_conversation, make_customer, make_job, make_messages

if TYPE_CHECKING:
    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

OPS = {
    "message_queue": "remove_expired_messages",
    "scrape_jobs": "remove_expired_scrape_jobs",
    "conversations": "remove_expired_conversations",
    "analytics": "remove_expired_analytics",
}


def seed(database: Database, slug: str = "acme") -> None:
    """Something of each policy that has expired, and something that has not."""
    customer = make_customer(database, slug)
    make_messages(database, customer, 3, expired_hours=1)
    make_messages(database, customer, 2, expired_hours=-5, session="other")
    make_job(database, customer, f"{slug}-old", age_days=100, results=8)
    make_job(database, customer, f"{slug}-new", age_days=3, results=4)
    make_conversation(database, customer, age_days=120, messages=5)
    make_conversation(database, customer, age_days=2)
    execute(
        database,
        """INSERT INTO storage_snapshots (taken_at, table_name)
           SELECT now() - make_interval(days => d), 't' FROM unnest(ARRAY[10, 400]) AS d""",
    )


def run_row(database: Database, policy: str) -> dict[str, Any]:
    (row,) = database.rows(
        "SELECT * FROM retention_runs WHERE policy = :policy ORDER BY id DESC LIMIT 1", policy=policy
    )
    return row


@pytest.mark.parametrize("policy", OPS)
def test_by_default_a_cleanup_looks_and_then_removes_exactly_what_it_showed(
    policy: str, database: Database, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    seed(database)
    looked = run_job(f"cleanup_{policy}")
    assert looked.success
    shown = metadata(looked, OPS[policy])
    assert shown["dry_run"] is True
    with database.engine.connect() as connection:
        expired = preview(connection, policy)
    assert shown["rows"] == sum(row.rows for row in expired) > 0
    assert (run_row(database, policy)["dry_run"], run_row(database, policy)["run_id"]) == (True, looked.run_id)

    removed = run_job(f"cleanup_{policy}", **{OPS[policy]: {"dry_run": False}})
    assert removed.success
    told = metadata(removed, OPS[policy])
    assert told["rows"] == shown["rows"]
    assert {(r["table"], r["rows"]) for r in told["by table and customer"]} == {(r.table, r.rows) for r in expired}
    row = run_row(database, policy)
    assert (row["dry_run"], row["status"], row["run_id"]) == (False, "completed", removed.run_id)
    assert (row["rows_removed"], row["id"]) == (told["rows"], told["record in retention_runs"])
    assert told["removals of the last 35 days"].startswith(f"1 completed, 0 failed, {told['rows']} rows")
    with database.engine.connect() as connection:
        assert preview(connection, policy) == []
    # Each table's asset says what it lost.
    for table in {r.table for r in expired}:
        (event,) = ephemeral.fetch_observations(dg.AssetKey(table), limit=10).records
        observed = event.asset_observation.metadata["rows_removed"].value
        assert observed == sum(r.rows for r in expired if r.table == table)
    again = run_job(f"cleanup_{policy}", **{OPS[policy]: {"dry_run": False}})
    assert metadata(again, OPS[policy])["rows"] == 0


def test_a_look_leaves_no_observation_and_no_row_less(
    database: Database, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    seed(database)
    tables = ("message_queue", "scrape_jobs", "scrape_job_results", "conversations", "messages", "storage_snapshots")
    before = {table: database.value(f"SELECT count(*) FROM {table}") for table in tables}
    assert run_job("retention").success
    assert {table: database.value(f"SELECT count(*) FROM {table}") for table in tables} == before
    for table in tables:
        assert ephemeral.fetch_observations(dg.AssetKey(table), limit=1).records == []


def test_another_age_is_taken_and_one_that_cannot_be_is_refused_before_anything_is_written(
    database: Database, run_job: RunJob
) -> None:
    seed(database)
    op = OPS["scrape_jobs"]
    assert metadata(run_job("cleanup_scrape_jobs", **{op: {"days": 2}}), op)["rows of scrape_jobs"] == 2
    for days in (0, -1, 40_000):
        before = database.value("SELECT count(*) FROM retention_runs")
        result = run_job("cleanup_scrape_jobs", **{op: {"days": days, "dry_run": False}})
        assert not result.success
        (said,) = failures(result).values()
        assert f"{days}" in said
        assert "from 1 to 36500" in said
        assert database.value("SELECT count(*) FROM retention_runs") == before
    assert database.value("SELECT count(*) FROM scrape_jobs") == 2


def test_nothing_of_a_customer_under_a_hold_goes_and_the_run_says_whose(database: Database, run_job: RunJob) -> None:
    seed(database)
    held = make_customer(database, "held")
    make_job(database, held, "held-old", age_days=200, results=3)
    place_hold(database.engine, "held", "case 7")
    result = run_job("cleanup_scrape_jobs", remove_expired_scrape_jobs={"dry_run": False})
    shown = metadata(result, "remove_expired_scrape_jobs")
    assert shown["customers under a legal hold"] == "held"
    assert {row["customer"] for row in shown["by table and customer"]} == {"acme"}
    assert database.value("SELECT count(*) FROM scrape_job_results WHERE job_id = 'held-old'") == 3


def test_where_one_policy_fails_the_others_still_run_and_the_run_fails(database: Database, run_job: RunJob) -> None:
    seed(database)
    configs: dict[str, Any] = {op: {"dry_run": False} for op in OPS.values()}
    configs["remove_expired_scrape_jobs"]["days"] = 0
    result = run_job("retention", **configs)
    assert not result.success
    assert set(failures(result)) == {"remove_expired_scrape_jobs"}
    rows = database.rows("SELECT policy, status, run_id FROM retention_runs ORDER BY policy")
    assert [(row["policy"], row["status"]) for row in rows] == [
        (policy, "completed") for policy in ("analytics", "conversations", "message_queue")
    ]
    assert {row["run_id"] for row in rows} == {result.run_id}
    assert database.value("SELECT count(*) FROM scrape_jobs") == 2
    assert database.value("SELECT count(*) FROM conversations") == 1


def test_a_cancelled_removal_ends_at_once_and_its_record_says_so(database: Database, run_job: RunJob) -> None:
    seed(database)
    with connect_once(database.admin_url) as blocker:
        # The removal waits for this lock (and would for 5 seconds, six times).
        blocker.execute(text("LOCK TABLE scrape_job_results IN ACCESS EXCLUSIVE MODE"))

        def interrupt() -> None:
            wait_until(
                lambda: database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"), why="the removal's waiting"
            )
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            result = run_job("cleanup_scrape_jobs", remove_expired_scrape_jobs={"dry_run": False})
            interrupted = not result.success
        except dg.DagsterExecutionInterruptedError:
            interrupted = True
        thread.join()
        blocker.rollback()
    assert interrupted
    row = run_row(database, "scrape_jobs")
    assert (row["status"], row["rows_removed"]) == ("failed", 0)
    assert row["completed_at"] is not None
    assert "cancelled" in str(row["error_message"])
    assert database.value("SELECT count(*) FROM scrape_job_results") == 12


def test_the_table_of_rows_is_bounded_however_many_customers_there_are(database: Database, run_job: RunJob) -> None:
    execute(
        database,
        "INSERT INTO customers (name, slug) SELECT 'c' || n, 'c' || n FROM generate_series(1, 250) AS n",
    )
    execute(
        database,
        """INSERT INTO message_queue (customer_id, session_id, message_key, message_data, expires_at)
           SELECT id, 's', 'k', '{}', now() - interval '1 hour' FROM customers""",
    )
    shown = metadata(run_job("cleanup_message_queue"), "remove_expired_messages")
    assert shown["rows"] == 250
    assert len(shown["by table and customer"]) == 201
    assert shown["by table and customer"][-1]["customer"] == "and 50 more"


def test_a_database_that_is_not_migrated_is_refused_in_words(empty_database: Database) -> None:
    from omniops_pipelines.definitions import build_defs
    from resources.postgres.resource import PostgresResource

    defs = build_defs({"postgres": PostgresResource(database_url=empty_database.url)})
    result = defs.resolve_job_def("cleanup_analytics").execute_in_process(raise_on_error=False)
    assert "omniops migrate" in failures(result)["remove_expired_analytics"]
