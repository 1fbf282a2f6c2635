"""What the schema itself refuses, and whether each index answers the question that stands beside it."""

# ruff: noqa: E501 - a question, or the filling of a table, is read best on one line

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import CheckConstraint, Float, Integer, Numeric, insert, text
from sqlalchemy.exc import IntegrityError

from resources.postgres.catalogue import TABLES
from resources.postgres.connection import connect_once
from resources.postgres.models import EMBEDDED_MODEL, EMBEDDING_DIMENSIONS, metadata
from tests.support.databases import Database, administer, create_database
from tests.support.rows import CustomerRows, make_customer, new_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, Connection, ForeignKeyConstraint, Table

    from resources.services import Endpoints

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared(cluster: Endpoints, migrated_template: str) -> Iterator[Database]:
    """A database for tests that leave nothing behind in it."""
    made = create_database(cluster, migrated_template)
    yield made
    administer(cluster, f"DROP DATABASE {made.name} WITH (FORCE)")


def test_public_holds_the_tables_of_the_catalogue_and_no_others(shared: Database) -> None:
    found = {str(r["tablename"]) for r in shared.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert found == set(TABLES)
    assert len(found) == 31


# --- what is refused -------------------------------------------------------------------------------------------

# Numbers that may be negative, or that a key makes.
_NOT_COUNTS = {
    "crawl_frontier.url_hash": "a hash has a sign",
    "scraped_pages.simhash": "a hash has a sign",
    "crawl_frontier.worker_id": "a number from a sequence",
    "crawl_frontier.position": "a number from a sequence",
    "message_queue.position": "a number from a sequence",
    "website_content.page_id": "a foreign key",
    "page_embeddings.page_id": "a foreign key",
    "billing_events.amount": "a refund is negative",
}


def _numbers() -> Iterator[Column[Any]]:
    for table in metadata.sorted_tables:
        for column in table.columns:
            if (
                isinstance(column.type, Integer | Numeric | Float)
                and column.name != "id"
                and f"{table.name}.{column.name}" not in _NOT_COUNTS
            ):
                yield column


def _states() -> Iterator[Column[Any]]:
    """Columns whose values are a list of words."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            named = column.name in ("status", "role", "job_type", "stage", "severity", "operation", "action")
            listed = any(
                isinstance(c, CheckConstraint) and str(c.sqltext).startswith(f"{column.name} IN (")
                for c in (*column.constraints, *table.constraints)
            )
            if named or listed:
                yield column


def _name(column: Column[Any]) -> str:
    return f"{column.table.name}.{column.name}"


def _write(connection: Connection, made: CustomerRows, table: Table, values: dict[str, Any]) -> None:
    """A row that is right but for these values."""
    if table.name == "scrape_job_stats":
        assignments = ", ".join(f"{name} = {value!r}" for name, value in values.items())
        connection.execute(text(f"UPDATE scrape_job_stats SET {assignments}"))
        return
    connection.execute(insert(table).values({**new_row(table, made.rows), **values}))


def _refused(shared: Database, column: Column[Any], value: Any) -> str:
    """The constraint that refuses this value."""
    with connect_once(shared.admin_url) as connection:
        made = make_customer(connection)
        with pytest.raises(IntegrityError) as caught:
            _write(connection, made, column.table, {column.name: value})
        connection.rollback()
    return str(caught.value.orig)


@pytest.mark.parametrize("column", list(_states()), ids=_name)
def test_a_status_that_there_is_not_is_refused(shared: Database, column: Column[Any]) -> None:
    assert re.search(rf'violates check constraint "{column.table.name}_\w+"', _refused(shared, column, "no_such"))


@pytest.mark.parametrize("column", list(_numbers()), ids=_name)
def test_a_negative_number_is_refused(shared: Database, column: Column[Any]) -> None:
    assert re.search(rf'violates check constraint "{column.table.name}_\w+"', _refused(shared, column, -1))


def test_what_counts_as_no_count_is_there() -> None:
    columns = {_name(column) for table in metadata.sorted_tables for column in table.columns}
    assert set(_NOT_COUNTS) <= columns


def _composite_keys() -> Iterator[ForeignKeyConstraint]:
    for table in metadata.sorted_tables:
        for key in sorted(table.foreign_key_constraints, key=lambda key: key.column_keys):
            if len(key.elements) > 1:
                yield key


@pytest.mark.parametrize(
    "key", list(_composite_keys()), ids=lambda key: f"{key.table.name}-{key.referred_table.name}"
)
def test_a_child_of_another_customers_parent_is_refused(shared: Database, key: ForeignKeyConstraint) -> None:
    with connect_once(shared.admin_url) as connection:
        own, other = make_customer(connection), make_customer(connection)
        if key.table.name == "scrape_job_stats":
            statement = text("UPDATE scrape_job_stats SET customer_id = :other WHERE customer_id = :own")
            parameters: dict[str, Any] = {"own": own.customer_id, "other": other.customer_id}
        else:
            row = {**new_row(key.table, own.rows), "customer_id": other.customer_id}
            if key.table.name in ("website_content", "conversation_metadata"):
                # One row for each parent, which is there already.
                connection.execute(text(f"DELETE FROM {key.table.name}"))
            statement, parameters = insert(key.table).values(row), {}  # type: ignore[assignment]
        with pytest.raises(IntegrityError, match="violates foreign key constraint"):
            connection.execute(statement, parameters)
        connection.rollback()


# --- what is asked ---------------------------------------------------------------------------------------------

_CUSTOMERS = 40

# Enough rows, of enough customers, that reading all of them is the wrong answer. Values are spread so that a question
# is about few of them, as in life.
_ROWS = (
    """INSERT INTO customers (name, slug) SELECT 'c' || g, 'c' || g FROM generate_series(1, 40) AS g""",
    """INSERT INTO user_accounts (customer_id, email) SELECT {customer}, 'u' || g || '@x' {from_3000}""",
    """INSERT INTO customer_members (customer_id, user_id, role) SELECT customer_id, id, 'viewer' FROM user_accounts""",
    """INSERT INTO conversations (customer_id, session_id, created_at)
       SELECT {customer}, 's' || g, now() - g * interval '1 hour' {from_3000}""",
    """INSERT INTO messages (conversation_id, customer_id, role, content)
       SELECT c.id, c.customer_id, 'user', 'hello' FROM generate_series(1, 4) AS n, conversations AS c""",
    """INSERT INTO conversation_metadata (conversation_id, customer_id) SELECT id, customer_id FROM conversations""",
    """INSERT INTO scraped_pages (customer_id, domain, url) SELECT {customer}, 'x', 'https://x/' || g {from_3000}""",
    """INSERT INTO website_content (page_id, customer_id, text, search, title_search)
       SELECT id, customer_id, 'word' || id, to_tsvector('simple', 'word' || id || ' common'), '' FROM scraped_pages""",
    f"""INSERT INTO page_embeddings (page_id, customer_id, model, chunk_index, chunk_text, chunk_hash, embedding)
       SELECT id, customer_id, '{EMBEDDED_MODEL}', 0, '', '',
              (SELECT array_agg(sin(id * 7.13 + d * (id % 13))) FROM generate_series(1, {EMBEDDING_DIMENSIONS}) AS d)::real[]::halfvec
       FROM scraped_pages LIMIT 1500""",
    """INSERT INTO cart_operations (customer_id, session_id, operation) SELECT {customer}, 's' || g, 'add' {from_3000}""",
    """INSERT INTO conversation_funnel (customer_id, stage, created_at)
       SELECT {customer}, 'opened', now() - g * interval '1 hour' {from_3000}""",
    """INSERT INTO alert_history (customer_id, alert, episode, severity, message, opened_at, closed_at)
       SELECT CASE WHEN g % 3 = 0 THEN {customer} END, 'a', 'e' || g, 'info', '', now() - g * interval '1 hour',
              CASE WHEN g % 50 > 0 THEN now() END {from_3000}""",
    """INSERT INTO daily_job_stats (day, customer_id)
       SELECT current_date - (g / 40), {customer} {from_3000}""",
    """INSERT INTO daily_domain_stats (day, customer_id, domain)
       SELECT current_date - (g / 40), {customer}, 'x' {from_3000}""",
    """INSERT INTO storage_snapshots (taken_at, table_name)
       SELECT now() - g * interval '1 hour', 't' || g % 31 {from_3000}""",
    """INSERT INTO feature_flags (name) SELECT 'f' || g FROM generate_series(1, 75) AS g""",
    """INSERT INTO feature_flag_rollouts (flag_name, customer_id) SELECT f.name, c.id FROM feature_flags AS f, customers AS c""",
    """INSERT INTO gdpr_audit_log (customer_id, action, actor, status) SELECT {customer}, 'export', '', 'completed' {from_3000}""",
    """INSERT INTO legal_holds (customer_id, reason, placed_by, released_at)
       SELECT {customer}, 'r', '', CASE WHEN g % 100 > 0 THEN now() END {from_3000}""",
    """INSERT INTO retention_runs (policy, dry_run, status, started_at)
       SELECT 'p' || g % 4, false, 'completed', now() - g * interval '1 day' {from_3000}""",
    """INSERT INTO webhook_endpoints (customer_id, url) SELECT {customer}, 'https://x/' || g FROM generate_series(1, 400) AS g""",
    """INSERT INTO webhook_events (endpoint_id, customer_id, event, status, created_at)
       SELECT id, customer_id, 'e', CASE WHEN n = 1 AND random() < 0.2 THEN 'pending' ELSE 'delivered' END,
              now() - n * interval '1 day' FROM generate_series(1, 10) AS n, webhook_endpoints""",
    """INSERT INTO subscriptions (customer_id, plan, status) SELECT {customer}, 'p', 'active' {from_3000}""",
    """INSERT INTO billing_events (customer_id, subscription_id, event) SELECT customer_id, id, 'e' FROM subscriptions""",
    """INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, completed_at)
       SELECT 'j' || g, {customer}, 'x', 'full_crawl', CASE WHEN g % 100 > 0 THEN 'completed' ELSE 'queued' END,
              now() - g * interval '1 hour', CASE WHEN g % 100 > 0 THEN now() - g * interval '1 hour' END {from_3000}""",
    """INSERT INTO scrape_job_results (job_id, customer_id, url, status, created_at)
       SELECT j.job_id, j.customer_id, 'https://x/' || n, 'success', j.created_at
       FROM (SELECT * FROM scrape_jobs ORDER BY created_at) AS j, generate_series(1, 20) AS n ORDER BY j.created_at""",
    """INSERT INTO crawl_frontier (job_id, url_hash, customer_id, url, depth, worker_id)
       SELECT j.job_id, n, j.customer_id, 'https://x/' || n, n % 5, CASE WHEN n > 40 THEN NULL ELSE 1 END
       FROM (SELECT * FROM scrape_jobs LIMIT 200) AS j, generate_series(1, 50) AS n""",
    """INSERT INTO message_queue (customer_id, session_id, message_key, message_data, status, expires_at)
       SELECT {customer}, 's' || g % 500, 'k' || g, '{}',
              CASE WHEN g % 10 > 0 THEN 'completed' ELSE 'pending' END, now() + g * interval '1 minute' {from_3000}""",
)

# Index → the question that stands beside it in models.py, in SQL.
_QUESTIONS = {
    "customer_members_user": "SELECT role FROM customer_members WHERE user_id = {user}",
    "conversations_customer_updated": "SELECT id FROM conversations WHERE customer_id = {one} AND updated_at < now() - interval '90 days'",
    "conversations_session": "SELECT id FROM conversations WHERE customer_id = {one} AND session_id = 's47'",
    "messages_conversation": "SELECT content FROM messages WHERE conversation_id = {conversation} ORDER BY id",
    "messages_customer": "SELECT id FROM messages WHERE customer_id = {one} AND id > 0 ORDER BY id LIMIT 50",
    "conversation_metadata_customer": "SELECT * FROM conversation_metadata WHERE customer_id = {one}",
    "website_content_search": "SELECT page_id FROM website_content WHERE ARRAY[customer_id] @> ARRAY[{one}::uuid] AND search @@ to_tsquery('simple', 'common')",
    "website_content_unembedded": f"SELECT page_id FROM website_content WHERE customer_id = {{one}} AND NOT embedded_models @> ARRAY['{EMBEDDED_MODEL}'] ORDER BY page_id LIMIT 50",
    "scraped_pages_removed": "SELECT id FROM scraped_pages WHERE customer_id = {one} AND removed_at IS NOT NULL ORDER BY id LIMIT 50",
    "website_content_unindexed": "SELECT page_id FROM website_content WHERE search IS NULL OR title_search IS NULL ORDER BY (search IS NOT NULL), page_id LIMIT 50",
    "crawl_frontier_unfollowed": "SELECT skip_reason, count(*) FROM crawl_frontier WHERE job_id = {job} AND skip_reason IS NOT NULL GROUP BY skip_reason",
    "website_content_customer": "SELECT count(*) FROM website_content WHERE customer_id = {one}",
    "page_embeddings_nearest": f"SELECT page_id FROM page_embeddings WHERE model = '{EMBEDDED_MODEL}' ORDER BY embedding::halfvec({EMBEDDING_DIMENSIONS}) <=> {{vector}} LIMIT 10",
    "page_embeddings_customer": "SELECT count(*) FROM page_embeddings WHERE customer_id = {one}",
    "cart_operations_session": "SELECT operation FROM cart_operations WHERE customer_id = {one} AND session_id = 's47' ORDER BY id",
    "conversation_funnel_customer_created": "SELECT stage, count(*) FROM conversation_funnel WHERE customer_id = {one} AND created_at > now() - interval '5 days' GROUP BY 1",
    "alert_history_open": "SELECT id FROM alert_history WHERE alert = 'a' AND episode = 'e50' AND closed_at IS NULL",
    "alert_history_opened": "SELECT id FROM alert_history ORDER BY opened_at DESC LIMIT 20",
    "alert_history_customer": "SELECT * FROM alert_history WHERE customer_id = {one}",
    "daily_job_stats_customer": "SELECT * FROM daily_job_stats WHERE customer_id = {one} ORDER BY day",
    "daily_domain_stats_customer": "SELECT * FROM daily_domain_stats WHERE customer_id = {one} ORDER BY day",
    "storage_snapshots_table_taken": "SELECT * FROM storage_snapshots WHERE table_name = 't3' ORDER BY taken_at",
    "storage_snapshots_taken": "SELECT id FROM storage_snapshots WHERE taken_at < now() - interval '120 days'",
    "feature_flag_rollouts_customer": "SELECT flag_name FROM feature_flag_rollouts WHERE customer_id = {one}",
    "gdpr_audit_log_customer": "SELECT * FROM gdpr_audit_log WHERE customer_id = {one} ORDER BY created_at",
    "legal_holds_in_force": "SELECT 1 FROM legal_holds WHERE customer_id = {one} AND released_at IS NULL",
    "legal_holds_customer": "SELECT * FROM legal_holds WHERE customer_id = {one}",
    "retention_runs_policy_started": "SELECT * FROM retention_runs WHERE policy = 'p1' ORDER BY started_at DESC LIMIT 1",
    "retention_runs_started": "SELECT id FROM retention_runs WHERE started_at < now() - interval '2950 days'",
    "webhook_events_pending": "SELECT id FROM webhook_events WHERE status = 'pending' ORDER BY id LIMIT 10",
    "webhook_events_endpoint": "SELECT * FROM webhook_events WHERE endpoint_id = {endpoint} ORDER BY id DESC LIMIT 5",
    "webhook_events_customer_created": "SELECT id FROM webhook_events WHERE customer_id = {one} AND created_at < now() - interval '9 days'",
    "subscriptions_customer": "SELECT * FROM subscriptions WHERE customer_id = {one}",
    "billing_events_customer": "SELECT * FROM billing_events WHERE customer_id = {one} ORDER BY id LIMIT 20",
    "billing_events_subscription": "SELECT * FROM billing_events WHERE subscription_id = {subscription}",
    "scrape_jobs_customer_created": "SELECT * FROM scrape_jobs WHERE customer_id = {one} ORDER BY created_at DESC LIMIT 20",
    "scrape_jobs_unfinished": "SELECT job_id FROM scrape_jobs WHERE status = 'queued' ORDER BY created_at LIMIT 10",
    "scrape_jobs_finished": "SELECT job_id FROM expired_scrape_jobs(120)",
    "scrape_job_results_created": "SELECT count(*) FROM scrape_job_results WHERE created_at >= now() - interval '1 day'",
    "crawl_frontier_claimable": "SELECT url FROM crawl_frontier WHERE job_id = {job} AND worker_id IS NULL AND skip_reason IS NULL ORDER BY depth, position LIMIT 10",
    "message_queue_open": "SELECT id FROM message_queue WHERE customer_id = {one} AND session_id = 's47' AND is_open ORDER BY position LIMIT 1",
    "message_queue_redrive": "SELECT 1 FROM message_queue WHERE customer_id = {one} AND session_id = 's47' AND redrive_requested_at IS NOT NULL",
    "message_queue_expires": "SELECT id FROM message_queue WHERE expires_at < now() + interval '30 minutes'",
}  # fmt: skip


@pytest.fixture(scope="module")
def filled(cluster: Endpoints, migrated_template: str) -> Iterator[Connection]:
    """A database with some thousand rows in each table, as the program sees it."""
    made = create_database(cluster, migrated_template)
    with connect_once(made.url) as connection:
        connection.execute(text("SET statement_timeout = '120s'"))
        customers = connection.execute(text(_ROWS[0])).rowcount
        assert customers == _CUSTOMERS
        numbered = "(SELECT array_agg(id ORDER BY slug) FROM customers)"
        for statement in _ROWS[1:]:
            # The sub-select is evaluated once; a customer has one row in forty.
            filled_in = statement.replace("{customer}", f"({numbered})[g % 40 + 1]")
            filled_in = filled_in.replace("{from_3000}", "FROM generate_series(1, 3000) AS g")
            connection.exec_driver_sql(filled_in.replace("%", "%%"))
        connection.commit()
        with connect_once(made.admin_url) as administrator:
            administrator.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
        yield connection
        connection.rollback()
    administer(cluster, f"DROP DATABASE {made.name} WITH (FORCE)")


def _literal(connection: Connection, query: str) -> str:
    value = connection.scalar(text(query))
    assert value is not None, query
    return f"'{value}'"


def _indexes(plan: Any) -> set[str]:
    """Every index that a plan reads."""
    found = {plan["Index Name"]} if "Index Name" in plan else set()
    for child in plan.get("Plans", ()):
        found |= _indexes(child)
    return found


@pytest.mark.parametrize("index", _QUESTIONS)
def test_an_index_answers_its_question(filled: Connection, index: str) -> None:
    question = _QUESTIONS[index]
    values = {
        "one": "SELECT id FROM customers WHERE slug = 'c7'",
        "user": "SELECT id FROM user_accounts WHERE email = 'u77@x'",
        "conversation": "SELECT id FROM conversations WHERE session_id = 's77'",
        "endpoint": "SELECT id FROM webhook_endpoints WHERE url = 'https://x/77'",
        "subscription": "SELECT id FROM subscriptions LIMIT 1",
        "job": "SELECT job_id FROM crawl_frontier LIMIT 1",
    }
    given = {name: _literal(filled, query) for name, query in values.items() if f"{{{name}}}" in question}
    given["vector"] = "'[" + ",".join(["0.5"] * EMBEDDING_DIMENSIONS) + "]'::halfvec"
    statement = question.format(**given)
    plan = filled.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}".replace("%", "%%")).scalar()
    (root,) = json.loads(plan) if isinstance(plan, str) else plan
    assert index in _indexes(root["Plan"]), json.dumps(root, indent=1)


def test_every_index_is_asked() -> None:
    """Keys are not listed here: a primary or unique key is a promise about rows, whether or not it is read."""
    assert set(_QUESTIONS) == {str(index.name) for table in metadata.tables.values() for index in table.indexes}


def test_no_two_indexes_of_a_table_begin_alike(shared: Database) -> None:
    """An index whose columns begin another one of the same rows would be paid for and never needed."""
    rows = shared.rows("""
        SELECT a.indrelid::regclass::text AS table_name, a.indexrelid::regclass::text AS shorter,
               b.indexrelid::regclass::text AS longer
        FROM pg_index AS a JOIN pg_index AS b ON b.indrelid = a.indrelid AND b.indexrelid <> a.indexrelid
        JOIN pg_class AS c ON c.oid = a.indrelid
        WHERE c.relnamespace = 'public'::regnamespace AND NOT a.indisunique AND a.indexprs IS NULL
          AND a.indpred IS NULL AND b.indpred IS NULL AND a.indnkeyatts <= b.indnkeyatts
          AND (b.indkey::smallint[])[0:a.indnkeyatts - 1] = a.indkey::smallint[]
    """)
    assert rows == []
