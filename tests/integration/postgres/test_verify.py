"""`--verify`: a database that is as it should be has no difference, and each kind of difference is named."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from resources.postgres import verify as verification
from resources.postgres.connection import connect_once, driver_url, role_of
from resources.postgres.models import metadata
from resources.postgres.verify import (
    SNAPSHOT,
    Difference,
    dump_access,
    dump_schema,
    expected_access,
    read_snapshot,
    verify,
    written_snapshot,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def owner(database: Database) -> Iterator[Connection]:
    """As the role that owns the tables, in a transaction that is rolled back."""
    with connect_once(database.owner_url) as connection:
        yield connection
        connection.rollback()


@pytest.fixture(autouse=True)
def fresh_snapshot(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that is out of date fails its own test, and no other."""
    with connect_once(database.owner_url) as connection:
        fresh = dump_schema(connection)
    monkeypatch.setattr(verification, "read_snapshot", lambda: fresh)


@pytest.fixture
def administrator(database: Database) -> Iterator[Connection]:
    """As the cluster's superuser, for what the owner cannot do."""
    engine = create_engine(driver_url(database.admin_url), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def named(found: list[Difference]) -> set[tuple[str, str, str]]:
    return {(difference.kind, difference.name, difference.problem) for difference in found}


def test_models_functions_policies_and_the_database_agree(database: Database, owner: Connection) -> None:
    with warnings.catch_warnings():
        # Alembic and SQLAlchemy warn of types that they do not know.
        warnings.simplefilter("error")
        assert verify(owner, role_of(database.url)) == []


def test_the_snapshot_is_up_to_date(owner: Connection) -> None:
    fresh = written_snapshot(dump_schema(owner))
    assert SNAPSHOT.read_text(encoding="utf-8") == fresh, "run: python -m resources.postgres.verify --write"


def test_the_snapshot_names_no_role_of_this_installation() -> None:
    assert "omniops_owner" not in SNAPSHOT.read_text(encoding="utf-8")


def test_reading_the_snapshot_gives_back_what_was_written(owner: Connection, tmp_path: Path) -> None:
    dump = dump_schema(owner)
    (tmp_path / "snapshot.json").write_text(written_snapshot(dump), encoding="utf-8")
    assert read_snapshot(tmp_path / "snapshot.json") == dump


def test_verifying_changes_nothing(owner: Connection) -> None:
    before = (dump_schema(owner), dump_access(owner), owner.scalar(text("SHOW search_path")))
    verify(owner)
    assert (dump_schema(owner), dump_access(owner), owner.scalar(text("SHOW search_path"))) == before
    assert owner.scalar(text("SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()")) == 0


def test_verifying_takes_no_lock_that_stops_a_crawl(owner: Connection) -> None:
    verify(owner)
    taken = owner.scalars(
        text("""SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid() AND granted
                AND relation IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)""")
    )
    assert set(taken) <= {"AccessShareLock"}


def test_the_catalogue_wants_what_access_set(owner: Connection) -> None:
    assert expected_access(owner) == dump_access(owner)


_BREAKS = {
    "dropped index": ("DROP INDEX messages_customer", "index", "public.messages.messages_customer", "missing"),
    "other index": (
        "DROP INDEX messages_customer; CREATE INDEX messages_customer ON messages (customer_id)",
        "index", "public.messages.messages_customer", "different",
    ),
    "further index": ("CREATE INDEX mine ON messages (role)", "index", "public.messages.mine", "unexpected"),
    "changed function body": (
        "CREATE OR REPLACE FUNCTION public.current_customer_id() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE "
        "SET search_path = '' AS 'SELECT null::uuid'",
        "function", "public.current_customer_id()", "different",
    ),
    "function with another search path": (
        "ALTER FUNCTION scrape_job_results_counted() RESET search_path",
        "function", "public.scrape_job_results_counted()", "different",
    ),
    "function that anybody may call": (
        "GRANT EXECUTE ON FUNCTION scrape_job_stats_apply TO PUBLIC",
        "execute grant",
        "public.scrape_job_stats_apply(jobs text[], customers uuid[], totals bigint[], successes bigint[], "
        "failures bigint[], skips bigint[], timed bigint[], milliseconds bigint[], sizes numeric[])",
        "different",
    ),
    "dropped function": (
        "DROP FUNCTION cleanup_old_scrape_jobs",
        "function", "public.cleanup_old_scrape_jobs(days integer)", "missing",
    ),
    "disabled trigger": (
        "ALTER TABLE scrape_job_results DISABLE TRIGGER scrape_job_results_deleted",
        "trigger", "public.scrape_job_results.scrape_job_results_deleted", "different",
    ),
    "dropped trigger": (
        "DROP TRIGGER conversations_before_insert ON conversations",
        "trigger", "public.conversations.conversations_before_insert", "missing",
    ),
    "further trigger": (
        "CREATE TRIGGER mine BEFORE INSERT ON orders EXECUTE FUNCTION conversations_before_insert()",
        "trigger", "public.orders.mine", "unexpected",
    ),
    "weakened policy": (
        "ALTER POLICY tenant ON orders USING (true)", "policy", "public.orders.tenant", "different",
    ),
    "policy with a weakened check": (
        "ALTER POLICY tenant ON orders WITH CHECK (true)", "policy", "public.orders.tenant", "different",
    ),
    "policy for another role": (
        "ALTER POLICY tenant ON orders TO PUBLIC", "policy", "public.orders.tenant", "different",
    ),
    "dropped policy": ("DROP POLICY service ON orders", "policy", "public.orders.service", "missing"),
    "further policy": (
        "CREATE POLICY mine ON orders TO anon USING (true)", "policy", "public.orders.mine", "unexpected",
    ),
    "row-level security not forced": (
        "ALTER TABLE messages NO FORCE ROW LEVEL SECURITY", "row security", "public.messages", "different",
    ),
    "row-level security off": (
        "ALTER TABLE messages DISABLE ROW LEVEL SECURITY", "row security", "public.messages", "different",
    ),
    "missing column": (
        "ALTER TABLE orders DROP conversation_id", "column", "public.orders.conversation_id", "missing",
    ),
    "further column": ("ALTER TABLE orders ADD note text", "column", "public.orders.note", "unexpected"),
    "other type": (
        "ALTER TABLE scrape_job_stats ALTER avg_processing_time_ms TYPE bigint",
        "column", "public.scrape_job_stats.avg_processing_time_ms", "different",
    ),
    "changed default": (
        "ALTER TABLE orders ALTER created_at SET DEFAULT clock_timestamp()",
        "column", "public.orders.created_at", "different",
    ),
    "dropped NOT NULL": (
        "ALTER TABLE orders ALTER status DROP NOT NULL", "column", "public.orders.status", "different",
    ),
    "missing check": (
        "ALTER TABLE orders DROP CONSTRAINT orders_status_check",
        "constraint", "public.orders.orders_status_check", "missing",
    ),
    "weaker check": (
        "ALTER TABLE orders DROP CONSTRAINT orders_status_check; "
        "ALTER TABLE orders ADD CONSTRAINT orders_status_check CHECK (status <> '')",
        "constraint", "public.orders.orders_status_check", "different",
    ),
    "missing foreign key": (
        "ALTER TABLE messages DROP CONSTRAINT messages_conversation_id_customer_id_fkey",
        "constraint", "public.messages.messages_conversation_id_customer_id_fkey", "missing",
    ),
    "missing unique key": (
        "ALTER TABLE orders DROP CONSTRAINT orders_customer_id_external_id_key",
        "constraint", "public.orders.orders_customer_id_external_id_key", "missing",
    ),
    "missing comment": ("COMMENT ON TABLE orders IS NULL", "comment", "public.orders", "missing"),
    "other comment": (
        "COMMENT ON COLUMN orders.currency IS 'Pounds'", "comment", "public.orders.currency", "different",
    ),
    "further table": ("CREATE TABLE mine (a int)", "table", "public.mine", "unexpected"),
    "missing table": ("DROP TABLE cart_operations", "table", "public.cart_operations", "missing"),
    "other storage": (
        "ALTER TABLE crawl_frontier RESET (fillfactor)", "table", "public.crawl_frontier", "different",
    ),
    "missing grant": (
        "REVOKE SELECT ON scrape_jobs FROM service_role", "grant", "public.scrape_jobs to service_role", "different",
    ),
    "all grants missing": (
        "REVOKE ALL ON scrape_jobs FROM authenticated", "grant", "public.scrape_jobs to authenticated", "missing",
    ),
    "grant to anon": ("GRANT SELECT ON customers TO anon", "grant", "public.customers to anon", "unexpected"),
    "grant to everybody": (
        "GRANT SELECT ON customers TO PUBLIC", "grant", "public.customers to PUBLIC", "unexpected",
    ),
    "grant on a column": (
        "GRANT SELECT (slug) ON customers TO anon", "grant", "public.customers.slug to anon", "unexpected",
    ),
    "grant of more": (
        "GRANT TRUNCATE ON messages TO authenticated", "grant", "public.messages to authenticated", "different",
    ),
    "grant on the project's own tables": (
        "GRANT INSERT ON omniops_meta.alembic_version TO anon", "grant", "omniops_meta.alembic_version to anon",
        "unexpected",
    ),
    "no way into a schema": (
        "REVOKE USAGE ON SCHEMA omniops_meta FROM service_role", "grant", "omniops_meta to service_role", "missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _BREAKS)
def test_each_kind_of_difference_is_named_and_no_other(owner: Connection, what: str) -> None:
    statement, kind, name, problem = _BREAKS[what]
    owner.exec_driver_sql(statement)
    found = verify(owner)
    assert named(found) == {(kind, name, problem)}
    (difference,) = found
    assert difference.sentence().startswith(f"{kind} {name} ")


def test_what_differs_is_shown(owner: Connection) -> None:
    owner.exec_driver_sql("ALTER TABLE orders ALTER status SET DEFAULT 'paid'")
    (found,) = verify(owner)
    assert found.sentence() == (
        "column public.orders.status differs: expected `text NOT NULL`, found `text NOT NULL DEFAULT 'paid'::text`"
    )


def test_a_grant_on_a_partition_is_named(owner: Connection) -> None:
    # None of the 31 tables has partitions today, so one is made into a table that has.
    owner.exec_driver_sql(
        "ALTER TABLE cart_operations RENAME TO old; CREATE TABLE cart_operations (LIKE old) PARTITION BY RANGE (id); "
        "CREATE TABLE cart_operations_1 PARTITION OF cart_operations FOR VALUES FROM (0) TO (10); "
        "GRANT SELECT ON cart_operations_1 TO anon"
    )
    found = named(verify(owner))
    assert ("grant", "public.cart_operations_1 to anon", "unexpected") in found
    # A partition is part of its table, and no further one.
    assert ("table", "public.cart_operations_1", "unexpected") not in found


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW theirs AS SELECT 1 AS a",
        "CREATE SEQUENCE theirs",
        "CREATE TYPE theirs AS ENUM ('a')",
        "CREATE SCHEMA theirs; CREATE TABLE theirs.orders (a int)",
    ],
)
def test_what_belongs_to_others_is_no_difference(
    administrator: Connection, database: Database, statement: str
) -> None:
    administrator.exec_driver_sql(statement)
    administrator.commit()
    with connect_once(database.owner_url) as owner:
        assert verify(owner) == []


def test_extensions_tables_and_functions_are_no_difference(administrator: Connection, database: Database) -> None:
    administrator.exec_driver_sql(
        "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public; CREATE EXTENSION IF NOT EXISTS pg_stat_statements"
    )
    administrator.commit()
    with connect_once(database.owner_url) as owner:
        assert verify(owner) == []


def test_where_pgvector_lives_makes_no_difference(administrator: Connection, database: Database) -> None:
    administrator.exec_driver_sql("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
    administrator.exec_driver_sql(f"ALTER DATABASE {database.name} SET search_path = public, extensions")
    administrator.exec_driver_sql("GRANT USAGE ON SCHEMA extensions TO PUBLIC")
    administrator.commit()
    with connect_once(database.owner_url) as owner:
        assert verify(owner) == []


def test_the_role_that_runs_must_be_bound_and_let_in(
    administrator: Connection, database: Database, owner: Connection
) -> None:
    role = f"verify_{database.name}"
    assert named(verify(owner, role)) == {("role", role, "missing")}
    administrator.exec_driver_sql(f"CREATE ROLE {role} BYPASSRLS")
    administrator.commit()
    try:
        assert named(verify(owner, role)) == {
            ("role", role, "different"),
            ("grant", f"service_role to {role}", "missing"),
            ("grant", f"authenticated to {role}", "missing"),
        }
    finally:
        administrator.exec_driver_sql(f"DROP ROLE {role}")
        administrator.commit()


def test_a_model_that_the_database_lacks_is_named_by_the_models_alone(
    owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot and the models are two witnesses; where the snapshot says nothing, the models are heard."""
    owner.exec_driver_sql("ALTER TABLE orders DROP details; ALTER TABLE orders ALTER currency DROP NOT NULL")
    owner.exec_driver_sql("ALTER TABLE orders ALTER total_amount TYPE numeric(14, 2); DROP INDEX messages_customer")
    owner.exec_driver_sql("ALTER TABLE customers ALTER created_at DROP DEFAULT; COMMENT ON TABLE orders IS 'x'")
    altered = dump_schema(owner)
    monkeypatch.setattr(verification, "read_snapshot", lambda: altered)
    assert {(kind, name) for kind, name, _ in named(verify(owner))} == {
        ("column", "public.orders.details"),
        ("column", "public.orders.currency"),
        ("column", "public.orders.total_amount"),
        ("column", "public.customers.created_at"),
        ("index", "public.messages.messages_customer"),
        ("comment", "public.orders"),
    }


def test_every_table_of_the_models_is_in_the_snapshot() -> None:
    tables = {name.removeprefix("public.") for name in read_snapshot()["table"] if name.startswith("public.")}
    assert tables == set(metadata.tables)
