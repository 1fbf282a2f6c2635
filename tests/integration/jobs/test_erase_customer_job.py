"""The job `erase_customer`: what it asks for, what it refuses, what it proves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.postgres.compliance import place_hold
from tests.integration.jobs.conftest import failures, metadata
from tests.integration.retention.seeds import checksums, counts, make_conversation, make_customer, make_job

if TYPE_CHECKING:
    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

OP = "erase_everything"


def seed(database: Database) -> None:
    for slug in ("acme", "globex"):
        customer = make_customer(database, slug)
        make_job(database, customer, f"{slug}-job", age_days=1, results=5)
        make_conversation(database, customer, age_days=1, messages=3)


def test_by_default_it_only_looks(database: Database, run_job: RunJob) -> None:
    seed(database)
    before = counts(database)
    result = run_job("erase_customer", **{OP: {"customer": "acme"}})
    assert result.success
    shown = metadata(result, OP)
    assert shown["dry_run"] is True
    assert {(row["table"], row["rows"]) for row in shown["by table"]} >= {("scrape_job_results", 5), ("messages", 3)}
    after = counts(database)
    assert {table: after[table] - before[table] for table in after if after[table] != before[table]} == {
        "gdpr_audit_log": 1
    }


def test_with_the_slug_typed_again_everything_goes_and_the_proof_is_named(
    database: Database, run_job: RunJob
) -> None:
    seed(database)
    other = database.value("SELECT id FROM customers WHERE slug = 'globex'")
    before = checksums(database, other)  # type: ignore[arg-type]
    result = run_job("erase_customer", **{OP: {"customer": "acme", "confirm": "acme", "dry_run": False}})
    assert result.success, failures(result)
    shown = metadata(result, OP)
    entry = shown["proof: entry of gdpr_audit_log"]
    (proof,) = database.rows("SELECT * FROM gdpr_audit_log WHERE id = :id", id=entry)
    assert (proof["action"], proof["status"]) == ("erasure", "completed")
    assert {row["table"]: row["rows"] for row in shown["by table"]}["scrape_job_results"] == 5
    assert database.value("SELECT count(*) FROM customers WHERE slug = 'acme'") == 0
    assert checksums(database, other) == before  # type: ignore[arg-type]
    again = run_job("erase_customer", **{OP: {"customer": "acme", "confirm": "acme", "dry_run": False}})
    assert metadata(again, OP)["already done"] is True


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"customer": "acme", "dry_run": False}, "repeat its slug"),
        ({"customer": "acme", "confirm": "ACME", "dry_run": False}, "repeat its slug"),
        ({"customer": "acme", "confirm": "globex", "dry_run": False}, "repeat its slug"),
        ({"customer": "nobody", "confirm": "nobody", "dry_run": False}, "there is no customer 'nobody'"),
        ({"customer": "nobody"}, "there is no customer 'nobody'"),
        ({"customer": "No Slug", "confirm": "No Slug", "dry_run": False}, "not a slug"),
        ({"customer": "", "confirm": "", "dry_run": False}, "not a slug"),
    ],
)
def test_what_is_not_meant_is_refused_and_nothing_is_written(
    config: dict[str, object], words: str, database: Database, run_job: RunJob
) -> None:
    seed(database)
    before = counts(database)
    result = run_job("erase_customer", **{OP: config})
    assert words in failures(result)[OP]
    assert counts(database) == before


def test_a_legal_hold_refuses_it_and_says_how_it_is_released(database: Database, run_job: RunJob) -> None:
    seed(database)
    hold = place_hold(database.engine, "acme", "case 7")
    before = checksums(database, hold.customer_id)
    result = run_job("erase_customer", **{OP: {"customer": "acme", "confirm": "acme", "dry_run": False}})
    assert "omniops holds release acme" in failures(result)[OP]
    # All but the log, which has the refusal.
    after = checksums(database, hold.customer_id)
    assert {table for table in after if after[table] != before[table]} <= {"gdpr_audit_log"}
