"""A customer's erasure takes all of theirs and nothing of anybody else's, and leaves a proof that names nobody."""

from __future__ import annotations

import io
import json
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from resources.postgres.catalogue import KEYS, TABLES, erasure_order, tenant_tables
from resources.postgres.compliance import NoHold, list_holds, place_hold, release_holds
from resources.postgres.customer_rows import UnknownCustomer, condition
from resources.postgres.erasure import JOB_KEYS, ErasureRefused, ErasureResult, erase_customer, preview_erasure
from resources.postgres.export import export_customer, exported_columns
from resources.postgres.models import metadata
from resources.redis import RedisWithFallback
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS, KEY_PATTERNS, content_hash_key, search_key
from tests.integration.retention.seeds import checksums, execute, make_conversation, make_customer, make_job
from tests.support.rows import make_customer as make_full_customer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


def _erase(database: Database, slug: str, **options: Any) -> ErasureResult:
    return erase_customer(database.engine, slug, cache=RedisWithFallback(database.redis_url), **options)


def _full_customer(database: Database) -> tuple[Any, str]:
    """A customer with a row in every table; its hold is released."""
    with database.engine.begin() as connection:
        made = make_full_customer(connection)
        connection.execute(text("UPDATE legal_holds SET released_at = now()"))
    return made.customer_id, made.rows["customers"]["slug"]


def _log(database: Database) -> list[dict[str, Any]]:
    return database.rows("SELECT * FROM gdpr_audit_log WHERE action LIKE 'erasure%' ORDER BY id")


# --- the catalogue -----------------------------------------------------------------------------------------------


def test_every_tenant_table_is_erased_children_first() -> None:
    order = [entry.name for entry in erasure_order()]
    # The proof outlives its customer; nothing else does.
    assert {entry.name for entry in tenant_tables()} - set(order) == {"gdpr_audit_log"}
    assert order[-1] == "customers"
    by_cascade = {"scrape_job_stats"}
    for name in order:
        for key in metadata.tables[name].foreign_key_constraints:
            parent = key.referred_table.name
            if parent in order and name not in by_cascade:
                assert order.index(name) < order.index(parent), f"{name} must go before {parent}"


def test_every_key_of_the_ephemeral_tier_that_knows_a_customer_is_erased() -> None:
    # A key by job belongs to the job's customer, one of a customer's content has the customer in its field; the
    # others hold nothing of one customer's.
    shared = {"rate:{domain}", "rate:delay:{domain}", "cron:{name}"}
    of_tenants = {pattern.pattern for pattern in KEY_PATTERNS if pattern.of_tenant}
    assert set(KEYS) - {pattern.pattern for pattern in JOB_KEYS} - of_tenants == shared


def test_a_customers_rows_are_found_by_an_index_in_every_table(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        for entry in tenant_tables():
            plan = connection.scalars(
                text(f"EXPLAIN SELECT 1 FROM {entry.name} AS x WHERE {condition(entry.name)}"),
                {"customer_id": uuid4()},
            ).all()
            assert not any("Seq Scan" in line for line in plan), (entry.name, plan)


# --- erasure -----------------------------------------------------------------------------------------------------


def test_erasure_takes_all_of_a_customer_and_nothing_of_another(database: Database) -> None:
    other, _ = _full_customer(database)
    customer, slug = _full_customer(database)
    make_job(database, customer, "large", age_days=1, results=50, frontier=20)
    make_conversation(database, customer, age_days=1, messages=30)
    before = checksums(database, other)
    platform = {name: database.value(f"SELECT count(*) FROM {name}")
                for name, entry in TABLES.items() if entry.tenant_column is None}  # fmt: skip
    seen = {row.table: row.rows for row in preview_erasure(database.engine, slug)}
    assert set(seen) == {entry.name for entry in erasure_order()}
    batches: list[tuple[str, int]] = []
    result = _erase(database, slug, batch_rows=10, on_batch=lambda table, rows: batches.append((table, rows)))
    assert result.rows == seen
    assert not result.already_done
    assert max(rows for _, rows in batches) == 10
    for entry in tenant_tables():
        left = database.value(f"SELECT count(*) FROM {entry.name} WHERE {entry.tenant_column} = :c", c=customer)
        assert (entry.name, bool(left)) == (entry.name, entry.name == "gdpr_audit_log")
    assert checksums(database, other) == before
    for name, count in platform.items():
        assert database.value(f"SELECT count(*) FROM {name}") == count


def test_the_proof_counts_by_table_and_names_nobody(database: Database) -> None:
    customer = make_customer(database, "acme-shop")
    make_job(database, customer, "secret-job", age_days=1, results=3)
    result = _erase(database, "acme-shop")
    (entry,) = _log(database)
    assert (entry["action"], entry["status"], entry["customer_id"]) == ("erasure", "completed", customer)
    assert entry["details"]["rows"] == result.rows
    assert result.rows == {"scrape_job_results": 3, "scrape_job_stats": 1, "scrape_jobs": 1, "customers": 1}
    assert entry["completed_at"] >= entry["created_at"]
    for word in ("acme", "secret", "shop.example"):
        assert word not in str(entry)


def test_erasing_again_says_that_it_is_done_and_a_stranger_is_unknown(database: Database) -> None:
    make_customer(database, "acme")
    first = _erase(database, "acme")
    again = _erase(database, "acme")
    assert again.already_done
    assert (again.customer_id, again.rows, again.completed_at) == (first.customer_id, first.rows, first.completed_at)
    assert len(_log(database)) == 1
    with pytest.raises(UnknownCustomer, match="no customer 'acmee'"):
        _erase(database, "acmee")


def test_the_cache_forgets_the_customers_jobs_and_no_others(database: Database) -> None:
    redis = RedisWithFallback(database.redis_url)
    jobs = {slug: f"{slug}-{uuid4()}" for slug in ("acme", "globex")}
    for slug, job in jobs.items():
        make_job(database, make_customer(database, slug), job, age_days=1)
        database.manager.get_job(job)
        database.manager.add_job_result(job, {"url": "https://x/"}, {"status": "success"})
    assert _erase(database, "acme").cache_reached
    for slug, there in (("acme", 0), ("globex", 2)):
        keys = [pattern.key(jobs[slug]) for pattern in (CRAWL_JOB, CRAWL_RESULTS)]
        assert sum(map(redis.exists, keys)) == there


def test_the_cache_forgets_what_was_made_of_the_customers_content(database: Database) -> None:
    redis = RedisWithFallback(database.redis_url)
    keys = {}
    for slug in ("acme", "globex"):
        customer = make_customer(database, slug)
        keys[slug] = (search_key(customer, "opening hours", 10), content_hash_key(customer, "0" * 32))
        for key in keys[slug]:
            redis.set(key, b"[]")
    assert _erase(database, "acme").cache_reached
    assert [redis.exists(key) for slug in ("acme", "globex") for key in keys[slug]] == [False, False, True, True]


def test_erasure_without_redis_says_so(database: Database) -> None:
    make_job(database, make_customer(database, "acme"), "job", age_days=1)
    away = RedisWithFallback("redis://127.0.0.1:1/0")
    assert not erase_customer(database.engine, "acme", cache=away).cache_reached


def test_a_legal_hold_refuses_erasure_until_it_is_released(database: Database) -> None:
    customer, slug = _full_customer(database)
    place_hold(database.engine, slug, "case 7")
    before = {name: digest for name, digest in checksums(database, customer).items() if name != "gdpr_audit_log"}
    with pytest.raises(ErasureRefused, match=f"{slug} is under a legal hold since .* holds release {slug}"):
        _erase(database, slug)
    after = checksums(database, customer)
    assert {name: after[name] for name in before} == before
    assert [(e["status"], e["details"]) for e in _log(database)][-1] == ("refused", {"reason": "legal hold"})
    release_holds(database.engine, slug)
    assert not _erase(database, slug).already_done


def test_a_hold_placed_in_the_middle_stops_the_erasure_and_it_goes_on_after_the_release(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "job", age_days=1, results=40)

    def hold(table: str, _: int) -> None:
        if table == "scrape_job_results" and not list_holds(database.engine):
            place_hold(database.engine, "acme", "case 8")

    with pytest.raises(ErasureRefused, match="legal hold"):
        _erase(database, "acme", batch_rows=10, on_batch=hold)
    assert database.value("SELECT count(*) FROM scrape_job_results") == 30
    release_holds(database.engine, "acme")
    assert _erase(database, "acme").rows["scrape_job_results"] == 40
    assert [entry["status"] for entry in _log(database)] == ["completed", "refused"]


def test_a_crawl_under_way_refuses_erasure(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "crawling", age_days=0.1, status="running")
    worker = database.frontier("crawling").register_worker()
    with pytest.raises(ErasureRefused, match="job crawling of customer acme is being crawled: cancel it"):
        _erase(database, "acme")
    database.frontier("crawling").release_worker(worker)
    assert _erase(database, "acme").rows["scrape_jobs"] == 1


_PROGRAM = """
import sys, time
from resources.postgres.connection import engine_for
from resources.postgres.erasure import erase_customer
erase_customer(engine_for(sys.argv[1]), "acme", cache=None, batch_rows=10,
               on_batch=lambda table, n: (print(table, n, flush=True), time.sleep(0.1)))
"""


def test_a_killed_erasure_goes_on_where_it_was_and_its_proof_is_exact(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "job", age_days=1, results=200)
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, database.url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    (entry,) = _log(database)
    assert entry["status"] == "started"
    left = database.value("SELECT count(*) FROM scrape_job_results")
    assert entry["details"]["rows"] == {"scrape_job_results": 200 - int(str(left))}
    assert _erase(database, "acme").rows["scrape_job_results"] == 200
    assert [entry["status"] for entry in _log(database)] == ["completed"]


# --- export ------------------------------------------------------------------------------------------------------


def test_an_export_holds_every_row_of_the_customer_and_no_secret(database: Database, tmp_path: Path) -> None:
    _full_customer(database)
    customer, slug = _full_customer(database)
    execute(database, "UPDATE customer_configs SET credentials = 'TOPSECRET'")
    path = tmp_path / "export.jsonl"
    counts = export_customer(database.engine, slug, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [set(line) for line in lines] == [{"table", "row"}] * len(lines)
    assert set(counts) == {entry.name for entry in tenant_tables()}
    for entry in tenant_tables():
        rows = [line["row"] for line in lines if line["table"] == entry.name]
        assert len(rows) == counts[entry.name]
        assert {row[entry.tenant_column] for row in rows} == {str(customer)}
        assert all(list(row) == exported_columns(entry.name) for row in rows)
    text_ = path.read_text()
    for secret in ("TOPSECRET", "5c78544f50534543524554", "credentials", '"secret"', '"embedding"', '"search"'):
        assert secret not in text_
    (logged,) = database.rows("SELECT * FROM gdpr_audit_log WHERE action = 'export' AND actor = 'omniops'")
    assert (logged["status"], logged["details"]["rows"]) == ("completed", counts)  # type: ignore[index]


def test_an_export_is_one_moment_however_long_it_takes(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "job", age_days=1, results=1200)

    class Slow(io.StringIO):
        def write(self, line: str) -> int:
            if self.tell() == 0:
                execute(database, "DELETE FROM scrape_jobs")
                execute(database, "INSERT INTO user_accounts (customer_id, email) VALUES (:c, 'a@b.c')", c=customer)
            return super().write(line)

    out = Slow()
    counts = export_customer(database.engine, "acme", out)
    assert counts["scrape_job_results"] == 1200
    assert "user_accounts" not in counts
    assert out.getvalue().count("\n") == sum(counts.values())


def test_an_export_that_fails_leaves_no_file(database: Database, tmp_path: Path) -> None:
    make_customer(database, "acme")
    with pytest.raises(OSError, match="nowhere"):
        export_customer(database.engine, "acme", tmp_path / "nowhere" / "export.jsonl")
    path = tmp_path / "export.jsonl"
    path.mkdir()
    with pytest.raises(OSError, match="export"):
        export_customer(database.engine, "acme", path)
    assert [found.name for found in tmp_path.iterdir()] == ["export.jsonl"]
    assert [row["status"] for row in database.rows("SELECT status FROM gdpr_audit_log")] == ["failed", "failed"]


# --- holds -------------------------------------------------------------------------------------------------------


def test_holds_are_placed_listed_released_and_logged(database: Database) -> None:
    make_customer(database, "acme")
    placed = place_hold(database.engine, "acme", "letter of 1 May", actor="compliance")
    assert [(hold.id, hold.customer, hold.reason) for hold in list_holds(database.engine)] == [
        (placed.id, "acme", "letter of 1 May")
    ]
    release_holds(database.engine, "acme")
    assert list_holds(database.engine) == []
    assert [hold.released_at is None for hold in list_holds(database.engine, released=True)] == [False]
    log = database.rows("SELECT action, status, actor FROM gdpr_audit_log ORDER BY id")
    assert log == [
        {"action": "hold", "status": "completed", "actor": "compliance"},
        {"action": "release", "status": "completed", "actor": "omniops"},
    ]
    with pytest.raises(NoHold, match="acme is under no legal hold"):
        release_holds(database.engine, "acme")
    with pytest.raises(ValueError, match="needs a reason"):
        place_hold(database.engine, "acme", " \x00")
    with pytest.raises(UnknownCustomer, match="nobody"):
        place_hold(database.engine, "nobody", "case 9")
