"""The audit trail's own queries as a tenant: the context is read once, and the indexes are used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from resources.postgres.access import CLIENT
from resources.postgres.connection import connect_once
from resources.postgres.jobs import PersistentJobManager
from tests.integration.tenancy.cells import become

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_FILL = """
    INSERT INTO customers (id, name, slug)
    SELECT ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'c', 'c' || i
    FROM generate_series(1, 40) AS i;
    INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, created_at)
    SELECT c.slug || '-' || j, c.id, 'shop.example', 'full_crawl', now() - make_interval(hours => j)
    FROM customers AS c, generate_series(1, 10) AS j;
    INSERT INTO scrape_job_results (job_id, customer_id, url, status)
    SELECT j.job_id, j.customer_id, 'https://shop.example/' || u, 'success'
    FROM scrape_jobs AS j, generate_series(1, 100) AS u;
"""
# A page of a job's results comes in the order of the index: no sort, and nothing read that is not shown.
_UNSORTED = ("a page of results",)
_TENANT = "00000000-0000-4000-8000-000000000007"
_QUESTIONS: dict[str, tuple[Callable[[PersistentJobManager], object], str]] = {
    "the customer's jobs": (lambda manager: manager.list_jobs(), "scrape_jobs_customer_created"),
    "one job": (
        lambda manager: manager.get_job_from_postgres("c7-3"),
        # Which of two keys is used does not matter; both begin with the job.
        "scrape_jobs_job_id_customer_id_key scrape_jobs_pkey",
    ),
    "a page of results": (
        lambda manager: manager.get_job_results_from_postgres("c7-3", after_url="https://shop.example/3", limit=20),
        "scrape_job_results_pkey",
    ),
    "a job's statistics": (lambda manager: manager.get_job_stats("c7-3"), "scrape_job_stats_pkey"),
    "reasons": (lambda manager: manager.count_by_reason("c7-3"), "scrape_job_results_pkey"),
}


@pytest.fixture(scope="module")
def audited(tenancy_database: Database) -> Iterator[Connection]:
    """40 customers with 10 jobs of 100 results, analysed, in a transaction that is rolled back."""
    with connect_once(tenancy_database.admin_url) as connection:
        connection.execute(text(_FILL))
        connection.execute(text("ANALYZE customers, scrape_jobs, scrape_job_results, scrape_job_stats"))
        yield connection
        connection.rollback()


def _asked(database: Database, ask: Callable[[PersistentJobManager], object]) -> tuple[str, Any]:
    """The statement, with its parameters, that a method of the manager sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    engine = database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        ask(PersistentJobManager(engine, None))
    finally:
        event.remove(engine, "before_cursor_execute", note)
        engine.dispose()
    return sent[-1]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


@pytest.mark.parametrize("question", _QUESTIONS)
def test_the_context_is_read_once_and_the_index_is_used(
    question: str, audited: Connection, tenancy_database: Database
) -> None:
    ask, index = _QUESTIONS[question]
    statement, parameters = _asked(tenancy_database, ask)
    savepoint = audited.begin_nested()
    become(audited, CLIENT, json.dumps({"customer_id": _TENANT}))
    explained = audited.exec_driver_sql(f"EXPLAIN (ANALYZE, VERBOSE, FORMAT JSON) {statement}", parameters)
    [answer] = explained.scalar_one()
    savepoint.rollback()
    nodes = list(_nodes(answer["Plan"]))
    contexts = [node for node in nodes if node.get("Parent Relationship") == "InitPlan"]
    assert contexts
    assert all(node["Actual Loops"] <= 1 for node in contexts)
    # Nowhere else: a filter or a condition that calls it would do so for each row.
    for node in nodes:
        if node not in contexts:
            shown = json.dumps({k: v for k, v in node.items() if k != "Plans"})
            assert "current_customer_id" not in shown
            assert "request.jwt.claims" not in shown
    used = {node.get("Index Name") for node in nodes}
    assert used.intersection(index.split()), used
    assert not [n for n in nodes if n["Node Type"] == "Seq Scan" and n["Relation Name"] != "customers"]
    if question in _UNSORTED:
        assert "Sort" not in {node["Node Type"] for node in nodes}
