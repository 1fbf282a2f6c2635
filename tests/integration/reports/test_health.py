"""Storage, orphans, slow statements and the queue, against rows made for them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from assets.health import build_queue_report, build_storage_report, report_of_statements
from resources.postgres.catalogue import TABLES
from resources.postgres.connection import driver_url
from resources.postgres.reports.orphans import KINDS, orphaned_rows
from resources.postgres.reports.queue import queue_health
from resources.postgres.reports.slow_queries import slow_queries
from resources.postgres.reports.storage import storage_report, table_sizes, take_snapshot
from resources.settings import DEFAULT_STORAGE_BUDGET_BYTES
from tests.integration.retention.seeds import execute, make_customer, make_job, make_messages
from tests.support.rows import make_customer as make_full_customer

if TYPE_CHECKING:
    from pathlib import Path

    from resources.postgres.reports.orphans import Orphans
    from tests.support.databases import Database


def _as_admin(database: Database, *statements: str) -> None:
    engine = create_engine(driver_url(database.admin_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


# --- storage -----------------------------------------------------------------------------------------------------


def test_a_snapshot_has_one_row_for_each_table_and_adds_up(database: Database) -> None:
    with database.engine.begin() as connection:
        sizes = take_snapshot(connection)
    rows = database.rows("SELECT table_name, count(DISTINCT taken_at) AS n FROM storage_snapshots GROUP BY 1")
    assert {row["table_name"] for row in rows} == {size.table for size in sizes} == set(TABLES)
    for size in sizes:
        whole = database.value(f"SELECT pg_total_relation_size('{size.table}')")
        if size.table != "storage_snapshots":  # grows by being written
            assert size.total_bytes == whole, size.table


def test_a_partitioned_tables_parts_count_as_it(database: Database) -> None:
    _as_admin(
        database,
        "ALTER TABLE orders RENAME TO orders_1",
        "CREATE TABLE orders (LIKE orders_1 INCLUDING DEFAULTS) PARTITION BY RANGE (created_at)",
        "ALTER TABLE orders ATTACH PARTITION orders_1 FOR VALUES FROM ('2020-01-01') TO ('2030-01-01')",
        "CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM ('2030-01-01') TO ('2040-01-01')"
        " PARTITION BY RANGE (created_at)",
        "CREATE TABLE orders_2a PARTITION OF orders_2 FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
    )
    _as_admin(
        database,
        """DO $$ BEGIN
               SET LOCAL session_replication_role = replica;
               INSERT INTO orders (id, customer_id, external_id, status, total_amount, currency, created_at)
               SELECT gen_random_uuid(), gen_random_uuid(), n::text, 'paid', 1, 'EUR', '2030-05-01'
               FROM generate_series(1, 1000) AS n;
           END $$""",
        "ANALYZE orders_2a",
        "GRANT SELECT ON orders TO service_role",
    )
    with database.engine.connect() as connection:
        (orders,) = (size for size in table_sizes(connection) if size.table == "orders")
    assert orders.row_estimate == 1000
    assert orders.total_bytes == sum(
        int(str(database.value(f"SELECT pg_total_relation_size('{part}')"))) for part in ("orders_1", "orders_2a")
    )


def test_bloat_is_what_deleted_rows_leave_behind(database: Database) -> None:
    customer = make_customer(database, "acme")
    _as_admin(database, "ALTER TABLE cart_operations SET (autovacuum_enabled = off)")
    execute(
        database,
        """INSERT INTO cart_operations (customer_id, session_id, operation, details)
           SELECT :c, md5(n::text), 'add', jsonb_build_object('a', repeat('x', n % 300), 'n', n)
           FROM generate_series(1, 20000) AS n""",
        c=customer,
    )
    _as_admin(database, "ANALYZE cart_operations")

    def bloat() -> tuple[int, int]:
        with database.engine.connect() as connection:
            (size,) = table_sizes(connection, ["cart_operations"])
        assert size.bloat_bytes is not None
        return size.bloat_bytes, size.table_bytes

    before, heap = bloat()
    assert before < 0.12 * heap, "a table that was only written has next to none"
    execute(database, "DELETE FROM cart_operations WHERE id % 4 <> 0")
    _as_admin(database, "VACUUM ANALYZE cart_operations")
    after, heap = bloat()
    assert 0.65 * heap < after < 0.85 * heap, "three quarters of it are"


def test_a_table_whose_long_values_stand_in_toast_has_no_bloat_of_them(database: Database) -> None:
    customer = make_customer(database, "acme")
    execute(
        database,
        """INSERT INTO webhook_endpoints (customer_id, url) VALUES (:c, 'https://x.example')""",
        c=customer,
    )
    execute(
        database,
        """INSERT INTO webhook_events (endpoint_id, customer_id, event, payload)
           SELECT e.id, e.customer_id, 'x', jsonb_build_object('t', (
                      SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300 + n % 2)))
           FROM webhook_endpoints AS e, generate_series(1, 2000) AS n""",
    )
    _as_admin(database, "ANALYZE webhook_events")
    with database.engine.connect() as connection:
        (size,) = table_sizes(connection, ["webhook_events"])
    assert size.toast_bytes > 10 * size.table_bytes
    assert size.bloat_bytes is not None
    assert size.bloat_bytes < 0.3 * size.table_bytes
    execute(database, "DELETE FROM webhook_events WHERE id % 4 <> 0")
    _as_admin(database, "VACUUM ANALYZE webhook_events")
    with database.engine.connect() as connection:
        (size,) = table_sizes(connection, ["webhook_events"])
    assert size.bloat_bytes is not None
    assert 0.55 * size.table_bytes < size.bloat_bytes < 0.85 * size.table_bytes


def _snapshot_days_ago(database: Database, days: float, size: int, table: str = "scrape_jobs") -> None:
    execute(
        database,
        """INSERT INTO storage_snapshots (taken_at, table_name, table_bytes)
           VALUES (now() - make_interval(secs => :days * 86400), :table, :size)""",
        days=days, table=table, size=size,
    )  # fmt: skip


def test_growth_is_by_day_over_a_week_and_a_month_and_says_when_the_budget_is_used_up(database: Database) -> None:
    for day in range(60, 0, -1):
        # Ten megabytes a day, and twice as much in the last week; one bulk load in between that is gone the next day.
        size = (60 - day) * 10_000_000 + (500_000_000 if day == 20 else 0) + max(0, 8 - day) * 10_000_000
        _snapshot_days_ago(database, day, size)
    _snapshot_days_ago(database, 0, 680_000_000)
    with database.engine.connect() as connection:
        used = int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
        report = storage_report(connection, used + 200_000_000)
    whole = report.growth[-1]
    assert whole.table is None
    assert whole.per_day_7 == pytest.approx(20_000_000, rel=0.01)
    assert whole.per_day_30 == pytest.approx(10_000_000, rel=0.25)
    assert report.days_to_full == pytest.approx(10, abs=0.5)
    assert report.share == pytest.approx(used / (used + 200_000_000))


def test_several_snapshots_of_a_day_are_one_point_and_the_newest_counts(database: Database) -> None:
    for minutes in range(5):
        _snapshot_days_ago(database, 2 + minutes / 1440, 1_000)
    _snapshot_days_ago(database, 0, 5_000)
    _snapshot_days_ago(database, 100, 9_000)
    with database.engine.connect() as connection:
        report = storage_report(connection, 10**12)
    history = report.history["scrape_jobs"]
    assert history[max(history)] == 5_000
    assert len(history) <= 3, "what is older than 90 days tells nothing of the trend"
    assert 9_000 not in history.values()
    assert [size.total_bytes for size in report.sizes] == [5_000]


def test_a_first_snapshot_has_no_growth_yet_and_says_so(home: Path, database: Database) -> None:
    with pytest.raises(LookupError, match="no storage snapshot"), database.engine.connect() as connection:
        storage_report(connection, 1)
    with database.engine.begin() as connection:
        report = build_storage_report(connection, "db")
    assert report.figures["days to full"] == "not in ten years"
    assert report.figures["budget bytes"] == DEFAULT_STORAGE_BUDGET_BYTES
    assert report.extra["dagster/row_count"] == len(TABLES)
    assert "no growth yet" in report.write(home).read_text()


# --- orphans -----------------------------------------------------------------------------------------------------

# What makes exactly one orphan of each kind, beside a customer with a valid row in every table.
_PLANTED = {
    "page_without_content": """INSERT INTO scraped_pages (customer_id, domain, url, http_status)
        SELECT id, 'd', 'https://d/empty', 200 FROM customers LIMIT 1""",
    "content_without_page": """INSERT INTO website_content (page_id, customer_id, search)
        SELECT 999999, id, '' FROM customers LIMIT 1""",
    "content_not_indexed": "UPDATE website_content SET search = NULL, updated_at = now() - interval '2 hours'",
    "embedding_without_page": """INSERT INTO page_embeddings
        SELECT 999999, customer_id, model, 7, chunk_text, chunk_hash, embedding, created_at
        FROM page_embeddings LIMIT 1""",
    "embedding_of_another_model": """INSERT INTO page_embeddings
        SELECT page_id, customer_id, 'old-model', chunk_index, chunk_text, chunk_hash, embedding,
               created_at - interval '1 day' FROM page_embeddings""",
    "page_of_another_customers_job": """UPDATE scraped_pages SET last_job_id = 'theirs' WHERE id = (
        SELECT min(id) FROM scraped_pages)""",
    "page_of_a_lost_job": "UPDATE scraped_pages SET last_job_id = 'nowhere'",
    "message_of_another_customers_conversation": """UPDATE message_queue SET conversation_id = (
        SELECT id FROM conversations WHERE session_id = 'theirs')""",
    "message_without_conversation": """UPDATE message_queue SET conversation_id = gen_random_uuid(),
        status = 'completed', completed_at = now() - interval '2 hours'""",
    "order_of_another_customers_conversation": """UPDATE orders SET conversation_id = (
        SELECT id FROM conversations WHERE session_id = 'theirs')""",
    "funnel_step_of_another_customers_conversation": """UPDATE conversation_funnel SET conversation_id = (
        SELECT id FROM conversations WHERE session_id = 'theirs')""",
    "funnel_step_without_conversation": "UPDATE conversation_funnel SET conversation_id = gen_random_uuid()",
    "frontier_held_by_nobody": """WITH j AS (UPDATE scrape_jobs SET status = 'running' WHERE job_id <> 'theirs')
        UPDATE crawl_frontier SET worker_id = 77, done = false""",
    "worker_of_a_finished_job": """INSERT INTO omniops_meta.crawl_workers
            (job_id, customer_id, machine, pid, pid_started, leased_until)
        SELECT job_id, customer_id, 'm', 1, 0, now() - interval '1 day' FROM scrape_jobs WHERE job_id = 'theirs'""",
}


def _orphans(database: Database, **options: int) -> dict[str, Orphans]:
    with database.engine.connect() as connection:
        return {found.kind: found for found in orphaned_rows(connection, **options)}


def _seed_orphanage(database: Database) -> None:
    with database.engine.begin() as connection:
        make_full_customer(connection)
        # The row of content that every customer gets has just been stored, and is indexed.
        connection.execute(text("UPDATE website_content SET search = to_tsvector('simple', text)"))
    theirs = make_customer(database, "theirs")
    make_job(database, theirs, "theirs", age_days=1)
    execute(database, "INSERT INTO conversations (customer_id, session_id) VALUES (:c, 'theirs')", c=theirs)


def test_valid_rows_of_every_table_are_no_orphans(database: Database) -> None:
    _seed_orphanage(database)
    found = _orphans(database)
    assert tuple(found) == KINDS
    assert {kind: orphan.rows for kind, orphan in found.items() if orphan.rows} == {}


def test_each_kind_of_orphan_is_found_and_nothing_else(database: Database) -> None:
    _seed_orphanage(database)
    engine = create_engine(driver_url(database.admin_url), poolclass=NullPool)
    with engine.connect() as connection:
        for kind in KINDS:
            with connection.begin() as planted:
                connection.execute(text("SET LOCAL session_replication_role = replica"))
                connection.execute(text(_PLANTED[kind]))
                found = {orphan.kind: orphan for orphan in orphaned_rows(connection)}
                assert {name: orphan.rows for name, orphan in found.items() if orphan.rows} == {kind: 1}
                assert len(found[kind].samples) == 1
                assert found[kind].meaning.endswith(".")
                planted.rollback()
    engine.dispose()


def test_large_tables_are_sampled_and_their_count_is_an_estimate(database: Database) -> None:
    customer = make_customer(database, "acme")
    execute(
        database,
        """INSERT INTO scraped_pages (customer_id, domain, url, http_status)
           SELECT :c, 'd', 'https://d/' || n, 200 FROM generate_series(1, 20000) AS n""",
        c=customer,
    )
    _as_admin(database, "ANALYZE scraped_pages")
    exact = _orphans(database)["page_without_content"]
    assert (exact.rows, exact.estimated) == (20000, False)
    assert len(exact.samples) == 5
    estimate = _orphans(database, max_rows=8000)["page_without_content"]
    assert estimate.estimated
    assert estimate.rows == pytest.approx(20000, rel=0.3)


# --- slow statements ---------------------------------------------------------------------------------------------


def test_the_statements_that_take_the_time_are_listed_without_their_values(
    database: Database, tmp_path: Path
) -> None:
    with database.engine.connect() as connection:
        for _ in range(6):
            connection.exec_driver_sql(
                "SELECT /* who */ count(*), 'jane@example.org' FROM generate_series(1, 200000) AS costly"
            )
        found = slow_queries(connection)
    assert found.unavailable is None
    assert found.since is not None
    costly = next(s for s in found.by_total if "costly" in s.query)
    assert (costly.calls, costly.rows) == (6, 6)
    assert costly.mean_ms == pytest.approx(costly.total_ms / 6)
    assert costly in found.by_mean
    page = report_of_statements(found, "db").write(tmp_path).read_text()
    assert "costly" in page
    assert "jane@example.org" not in page


def test_a_role_that_may_not_read_statistics_is_told_what_to_do(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE service_role")
        found = slow_queries(connection)
    assert found.unavailable is not None
    assert "GRANT pg_read_all_stats" in found.unavailable
    assert found.by_total == ()


def test_a_database_without_the_extension_is_told_what_to_do(database: Database, tmp_path: Path) -> None:
    _as_admin(database, "DROP EXTENSION pg_stat_statements")
    with database.engine.connect() as connection:
        found = slow_queries(connection)
    assert found.unavailable is not None
    assert "CREATE EXTENSION pg_stat_statements" in found.unavailable
    assert "CREATE EXTENSION" in report_of_statements(found, "db").write(tmp_path).read_text()


def test_an_extension_in_a_schema_of_its_own_is_found(database: Database) -> None:
    _as_admin(
        database,
        'CREATE SCHEMA "ext ensions"',
        'GRANT USAGE ON SCHEMA "ext ensions" TO PUBLIC',
        'ALTER EXTENSION pg_stat_statements SET SCHEMA "ext ensions"',
    )
    with database.engine.connect() as connection:
        assert slow_queries(connection).unavailable is None


def test_large_tables_that_are_read_as_a_whole_are_named(database: Database) -> None:
    customer = make_customer(database, "acme")
    make_messages(database, customer, 12_000, expired_hours=-1)
    scan = "SELECT count(*) FROM message_queue WHERE retry_count = 1"
    _as_admin(database, "ANALYZE message_queue", scan, "SELECT pg_stat_force_next_flush()")
    with database.engine.connect() as connection:
        (found,) = (w for w in slow_queries(connection).whole_reads if w.table == "message_queue")
    assert found.rows == 12_000
    assert found.scans >= 1


# --- queue -------------------------------------------------------------------------------------------------------


def test_the_queues_depth_leases_and_dead_are_counted_by_customer(database: Database) -> None:
    acme, bolt = make_customer(database, "acme"), make_customer(database, "bolt")
    make_messages(database, acme, 3, expired_hours=-5, session="a")
    make_messages(database, acme, 2, expired_hours=-5, status="completed", session="b")
    make_messages(database, bolt, 1, expired_hours=-5, status="processing", leased_seconds=60, session="c")
    make_messages(database, bolt, 1, expired_hours=-5, status="processing", leased_seconds=-60, session="d")
    make_messages(database, bolt, 2, expired_hours=-5, status="failed", session="e")
    execute(database, "UPDATE message_queue SET error_message = 'Timeout: jane@example.org' WHERE status = 'failed'")
    execute(database, "UPDATE message_queue SET retry_count = 2 WHERE status <> 'pending'")
    execute(database, "UPDATE message_queue SET created_at = now() - interval '90 minutes' WHERE session_id = 'd'")
    with database.engine.connect() as connection:
        health = queue_health(connection)
        report = build_queue_report(connection, "db")
    by_name = {customer.customer: customer for customer in health.customers}
    first, second = by_name["acme"], by_name["bolt"]
    assert (first.pending, first.completed, first.leased, first.dead, first.retries) == (3, 2, 0, 0, 0)
    assert (second.leased, second.lease_expired, second.dead, second.retries) == (1, 1, 2, 8)
    assert health.open == 5
    assert health.oldest_open_age is not None
    assert timedelta(minutes=89) < health.oldest_open_age < timedelta(minutes=92)
    assert [(error, count) for error, count, _ in health.dead_by_error] == [("Timeout", 2)]
    assert report.figures["dead"] == 2


def test_a_session_behind_a_failing_message_is_reported_and_one_that_only_waits_is_not(
    database: Database, tmp_path: Path
) -> None:
    customer = make_customer(database, "acme")
    make_messages(database, customer, 4, expired_hours=-5, session="failing")
    make_messages(database, customer, 2, expired_hours=-5, session="waiting")
    make_messages(database, customer, 3, expired_hours=-5, session="second fails")
    make_messages(database, customer, 1, expired_hours=-5, status="processing", leased_seconds=-9, session="deserted")
    make_messages(database, customer, 1, expired_hours=-5, status="processing", leased_seconds=99, session="at work")
    first = "SELECT min(position) FROM message_queue WHERE session_id = 'failing'"
    execute(database, f"UPDATE message_queue SET retry_count = 3 WHERE position = ({first})")
    execute(
        database,
        """UPDATE message_queue SET retry_count = 1 WHERE position = (
               SELECT max(position) FROM message_queue WHERE session_id = 'second fails')""",
    )
    with database.engine.connect() as connection:
        health = queue_health(connection)
        page = build_queue_report(connection, "db").write(tmp_path).read_text()
    blocked = {session.state: session for session in health.blocked}
    assert set(blocked) == {"failing", "lease_expired"}
    assert health.blocked_total == len(health.blocked) == 2
    assert (blocked["failing"].retries, blocked["failing"].waiting) == (3, 3)
    head = database.value(f"SELECT id FROM message_queue WHERE position = ({first})")
    assert blocked["failing"].message_id == head
    assert str(head) in page
    assert "second fails" not in page


def test_messages_that_expired_unhandled_are_told_by_run(database: Database) -> None:
    for days, count in ((1, 4), (3, 0), (40, 9)):
        execute(
            database,
            """INSERT INTO retention_runs (policy, dry_run, status, started_at, expired_unprocessed)
               VALUES ('message_queue', false, 'completed', now() - make_interval(days => :days), :count)""",
            days=days, count=count,
        )  # fmt: skip
    with database.engine.connect() as connection:
        assert [count for _, count in queue_health(connection).expired_unprocessed] == [4]


def test_an_empty_queue_is_healthy(database: Database, tmp_path: Path) -> None:
    with database.engine.connect() as connection:
        report = build_queue_report(connection, "db")
    assert report.figures["open"] == 0
    assert report.figures["oldest open, minutes"] is None
    page = report.write(tmp_path).read_text()
    assert "The queue is empty." in page
    assert "No session is blocked." in page
