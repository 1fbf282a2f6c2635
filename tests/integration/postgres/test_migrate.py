"""Migrations: all of it or nothing, one at a time, forwards and back, with rows and without."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, text

from resources.postgres import migrate as migrations
from resources.postgres.catalogue import TABLES
from resources.postgres.connection import DatabaseError, DatabaseUnreachable, connect_once
from resources.postgres.migrate import (
    MigrationBlocked,
    MigrationFailed,
    RowsWouldBeLost,
    SchemaNewerThanCode,
    UnknownRevision,
    dry_run,
    migrate,
    migration_state,
    rollback,
    verify_database,
)
from resources.postgres.migrations import run_script
from resources.postgres.verify import dump_access, dump_schema
from tests.support.databases import REVISIONS
from tests.support.rows import make_customer, new_row, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from resources.postgres.verify import Dump
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_LOCK = 0x6F6D6E69
_WAYS: dict[str, Callable[..., object]] = {
    "migrate": migrate,
    "dry_run": dry_run,
    "rollback": partial(rollback, revision="0001"),
}


def schema_of(url: str) -> Dump:
    """Everything that migrations make, as Postgres writes it."""
    with connect_once(url) as connection:
        return {**dump_schema(connection), **dump_access(connection)}


def public_tables(database: Database) -> set[str]:
    found = database.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {str(row["tablename"]) for row in found}


@contextmanager
def held(url: str, statement: str) -> Iterator[tuple[Connection, int]]:
    """A session that is inside a transaction with this statement's locks, and its process id."""
    with connect_once(url) as connection:
        connection.execute(text(statement))
        yield connection, int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)
        connection.rollback()


def add_revision(folder: Path, monkeypatch: pytest.MonkeyPatch, up: str, down: str = "SELECT 1") -> None:
    """Let there be a revision 9999 with these statements."""
    (folder / "r9999_added.py").write_text(
        f'"""An added revision."""\nfrom resources.postgres.migrations import run_script\nfrom alembic import op\n'
        f'revision = "9999"\ndown_revision = "{REVISIONS[-1]}"\nbranch_labels = None\ndepends_on = None\n'
        f"def upgrade(): run_script(op.get_bind(), {up!r})\ndef downgrade(): run_script(op.get_bind(), {down!r})\n"
    )
    monkeypatch.setattr(migrations, "REVISION_FOLDERS", [*migrations.REVISION_FOLDERS, folder])


# --- forwards --------------------------------------------------------------------------------------------------


def test_migrating_an_empty_database_makes_the_tables_of_the_catalogue_and_no_others(
    empty_database: Database,
) -> None:
    done = migrate(empty_database.owner_url, runtime_url=empty_database.url)
    assert (done.before.current, done.pending, done.after) == (None, REVISIONS, REVISIONS[-1])
    assert public_tables(empty_database) == set(TABLES)
    assert migration_state(empty_database.url).up_to_date


def test_a_migration_says_table_by_table_what_it_did(empty_database: Database) -> None:
    done = migrate(empty_database.owner_url, runtime_url=empty_database.url)
    assert [(step.revision, step.direction) for step in done.steps] == [
        *((revision, "up") for revision in REVISIONS), ("access", "up"),
    ]  # fmt: skip
    first, second, *_, access = (dict(step.by_table()) for step in done.steps)
    assert "created" in first["public.scrape_jobs"]
    assert "index" in first["public.scrape_jobs"]
    assert "scrape_jobs_unfinished" in first["public.scrape_jobs"]
    assert "scrape_jobs_before_update" in first["public.scrape_jobs"]
    assert "crawl_commit_batch" in first["functions"]
    assert second["public.scrape_jobs"] == "created index scrape_jobs_finished"
    assert "cleanup_old_scrape_jobs" in second["functions"]
    assert set(access) >= {f"public.{table}" for table in TABLES}
    created = {c.name for step in done.steps for c in step.changes if (c.change, c.kind) == ("created", "table")}
    assert {f"public.{table}" for table in TABLES} <= created


def test_migrating_twice_does_nothing_the_second_time(database: Database) -> None:
    done = migrate(database.owner_url, runtime_url=database.url)
    assert (done.pending, done.steps) == ((), ())


def test_migrating_again_repairs_access_and_says_so(database: Database) -> None:
    with connect_once(database.owner_url) as connection:
        connection.execute(text("DROP POLICY tenant ON messages"))
        connection.commit()
    (step,) = migrate(database.owner_url, runtime_url=database.url).steps
    assert dict(step.by_table()) == {"public.messages": "created policy tenant"}
    assert verify_database(database.owner_url, runtime_url=database.url) == []


def test_several_migrations_at_once_are_one_after_the_other(empty_database: Database) -> None:
    states: list[tuple[str, ...]] = []
    threads = [
        threading.Thread(
            target=lambda: states.append(migrate(empty_database.owner_url, runtime_url=empty_database.url).pending)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states, key=len) == [(), (), REVISIONS]


@pytest.mark.parametrize("way", _WAYS)
def test_whoever_comes_second_says_what_it_waits_for_and_then_goes_on(database: Database, way: str) -> None:
    said: list[str] = []
    ended = threading.Event()

    def second() -> None:
        _WAYS[way](database.owner_url, say=said.append)
        ended.set()

    with held(database.owner_url, f"SELECT pg_advisory_xact_lock({_LOCK})") as (_, pid):
        thread = threading.Thread(target=second)
        thread.start()
        assert not ended.wait(1.0)
    assert ended.wait(30)
    thread.join()
    (sentence,) = said
    assert "waiting for another migration of this database" in sentence
    assert f"session {pid}, role omniops_owner" in sentence


@pytest.mark.parametrize("way", _WAYS)
def test_a_table_in_use_makes_it_give_up_in_time_and_name_the_session(database: Database, way: str) -> None:
    before = schema_of(database.owner_url)
    started = time.monotonic()
    with held(database.url, "INSERT INTO customers (name, slug) VALUES ('A crawl', 'crawl')") as (_, pid):
        with pytest.raises(MigrationBlocked) as caught:
            _WAYS[way](database.owner_url, lock_wait_seconds=0.7)
        assert schema_of(database.owner_url) == before
    assert time.monotonic() - started < 10
    sentence = str(caught.value)
    assert "public.customers was locked for more than 0.7 s" in sentence
    assert f"session {pid} (omniops, role omniops, idle in transaction" in sentence
    assert "nothing was changed" in sentence
    assert "omniops jobs pause" in sentence


def test_others_wait_no_longer_than_the_migration_does(database: Database) -> None:
    refused: list[MigrationBlocked] = []

    def blocked() -> None:
        try:
            migrate(database.owner_url, lock_wait_seconds=1.0)
        except MigrationBlocked as error:
            refused.append(error)

    with held(database.url, "INSERT INTO customers (name, slug) VALUES ('A crawl', 'crawl')"):
        thread = threading.Thread(target=blocked)
        thread.start()
        time.sleep(0.5)
        started = time.monotonic()
        database.value("SELECT count(*) FROM customers")
        assert time.monotonic() - started < 3
        thread.join()
    assert refused


# --- what fails leaves nothing ---------------------------------------------------------------------------------


def test_a_failing_revision_leaves_nothing_in_an_empty_database(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(tmp_path, monkeypatch, "CREATE TABLE public.half_done (a int); SELECT 1 / 0")
    with pytest.raises(MigrationFailed, match="division by zero") as caught:
        migrate(empty_database.owner_url, runtime_url=empty_database.url)
    assert "nothing was changed" in str(caught.value)
    assert public_tables(empty_database) == set()
    assert empty_database.value("SELECT to_regnamespace('omniops_meta')") is None
    assert migration_state(empty_database.url).current is None


def test_a_failing_revision_leaves_the_database_where_it_stood(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = schema_of(database.owner_url)
    add_revision(
        tmp_path, monkeypatch, "ALTER TABLE public.orders ADD note text; ALTER TABLE public.nothing ADD a int"
    )
    with pytest.raises(MigrationFailed, match="nothing"):
        migrate(database.owner_url, runtime_url=database.url)
    assert schema_of(database.owner_url) == before
    assert migration_state(database.url).current == REVISIONS[-1]


def test_a_failing_way_back_leaves_the_database_where_it_stood(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(tmp_path, monkeypatch, "SELECT 1", "DROP TABLE public.orders; SELECT 1 / 0")
    migrate(database.owner_url, runtime_url=database.url)
    before = schema_of(database.owner_url)
    with pytest.raises(MigrationFailed, match="division by zero"):
        rollback(database.owner_url)
    assert schema_of(database.owner_url) == before
    assert migration_state(database.url).current == "9999"


def test_a_missing_extension_is_explained(empty_database: Database, tmp_path: Path, monkeypatch: Any) -> None:
    # What a role that may not install pgvector meets, raised as the revision raises it.
    add_revision(tmp_path, monkeypatch, "DO $$ BEGIN RAISE EXCEPTION 'the extension \"vector\" is missing'; END $$")
    with pytest.raises(MigrationFailed, match='the extension "vector" is missing'):
        migrate(empty_database.owner_url, runtime_url=empty_database.url)


# --- dry run ---------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_sql_and_changes_nothing(empty_database: Database) -> None:
    done = dry_run(empty_database.owner_url, runtime_url=empty_database.url)
    shown = "\n".join(done.sql)
    for wanted in (
        "CREATE TABLE public.customers", "CREATE TABLE public.webhook_events",
        "CREATE POLICY tenant ON public.messages",
        "GRANT USAGE ON SCHEMA public TO anon", "CREATE SCHEMA omniops_meta", "version_num='0002'",
    ):  # fmt: skip
        assert wanted in shown, wanted
    assert [step.revision for step in done.steps] == [*REVISIONS, "access"]
    assert public_tables(empty_database) == set()
    assert migration_state(empty_database.url).current is None


def test_the_sql_of_a_dry_run_makes_the_same_schema(empty_database: Database, database: Database) -> None:
    done = dry_run(empty_database.owner_url, runtime_url=empty_database.url)
    with connect_once(empty_database.owner_url) as connection, connection.begin():
        run_script(connection, "\n".join(done.sql))
    assert schema_of(empty_database.owner_url) == schema_of(database.owner_url)
    assert migration_state(empty_database.url).up_to_date


def test_a_dry_run_finds_a_revision_that_does_not_load(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_revision(tmp_path, monkeypatch, "CREATE TABLE public.x (a no_such_type)")
    with pytest.raises(MigrationFailed, match="no_such_type"):
        dry_run(database.owner_url, runtime_url=database.url)


# --- back ------------------------------------------------------------------------------------------------------


def test_down_and_up_again_leaves_the_same_schema(database: Database) -> None:
    before = schema_of(database.owner_url)
    for target in ("0001", "base"):
        rollback(database.owner_url, target)
        migrate(database.owner_url, runtime_url=database.url)
        assert schema_of(database.owner_url) == before, target


def test_going_back_all_the_way_leaves_no_table_and_no_function(database: Database) -> None:
    done = rollback(database.owner_url, "base")
    assert [step.revision for step in done.steps] == [*reversed(REVISIONS)]
    assert public_tables(database) == set()
    assert schema_of(database.owner_url)["function"] == {}
    state = migration_state(database.url)
    assert (state.current, state.pending) == (None, REVISIONS)


def test_going_back_goes_one_revision_unless_one_is_named(database: Database) -> None:
    done = rollback(database.owner_url)
    assert (done.before.current, done.after) == (REVISIONS[-1], REVISIONS[-2])
    done = rollback(database.owner_url, "0001")
    assert "dropped" in dict(done.steps[-1].by_table())["public.messages"]
    assert rollback(database.owner_url, "0001").steps == ()


def test_without_policies_client_access_reaches_nothing(database: Database) -> None:
    rollback(database.owner_url, "0001")
    for role in ("anon", "authenticated"):
        for table in ("customers", "customer_configs", "scraped_pages", "scrape_jobs", "scrape_job_stats"):
            assert not database.value("SELECT has_table_privilege(:role, :table, 'SELECT')", role=role, table=table)


def test_a_revision_that_there_is_not_is_named_with_those_that_there_are(database: Database) -> None:
    with pytest.raises(UnknownRevision, match="'0999'; there are: base, 0001, 0002"):
        rollback(database.owner_url, "0999")


def test_going_back_leads_not_forwards(database: Database) -> None:
    rollback(database.owner_url, "0001")
    with pytest.raises(UnknownRevision, match="older than 0002"):
        rollback(database.owner_url, "0002")
    rollback(database.owner_url, "base")
    with pytest.raises(UnknownRevision, match="never migrated"):
        rollback(database.owner_url)


def test_going_back_over_rows_is_refused_with_their_number(database: Database) -> None:
    with database.engine.begin() as connection:
        make_customer(connection)
        make_customer(connection)
    before = schema_of(database.owner_url)
    with pytest.raises(RowsWouldBeLost) as caught:
        rollback(database.owner_url, "0001")
    assert caught.value.tables["public.messages"] == 2
    assert "public.customers" not in caught.value.tables
    assert "public.messages (2 rows)" in str(caught.value)
    assert schema_of(database.owner_url) == before
    done = rollback(database.owner_url, "0001", discard_rows=True)
    assert done.rows_lost == caught.value.tables
    assert database.value("SELECT count(*) FROM customers") == 2


# --- with rows -------------------------------------------------------------------------------------------------


def _contents(database: Database, names: list[str]) -> dict[str, list[dict[str, object]]]:
    return {name: database.rows(f"SELECT to_jsonb(t) AS row FROM {name} AS t ORDER BY 1") for name in names}


def _fill(database: Database, names: set[str]) -> None:
    """A row in each of these tables, with the columns that they have at this revision."""
    rows: dict[str, dict[str, Any]] = {}
    with database.engine.begin() as connection:
        for table in tables():
            if table.name not in names or table.name == "scrape_job_stats":
                continue
            there = set(
                connection.scalars(
                    text("SELECT attname FROM pg_attribute WHERE attrelid = CAST(:t AS regclass) AND attnum > 0"),
                    {"t": f"public.{table.name}"},
                )
            )
            values = {name: value for name, value in new_row(table, rows).items() if name in there}
            key = list(table.primary_key.columns)
            found = connection.execute(insert(table).values(values).returning(*key)).mappings().one()
            rows[table.name] = {**values, **found}


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_survive_the_way_up_and_the_way_back(database: Database, revision: str) -> None:
    rollback(database.owner_url, revision)
    names = sorted(public_tables(database))
    _fill(database, set(names))
    before = _contents(database, names)
    assert all(before.values()), [name for name in names if not before[name]]

    migrate(database.owner_url, runtime_url=database.url)
    # A later revision adds columns; those that there were say what they said.
    risen = _contents(database, names)
    for name in names:
        (row,), (earlier,) = ((found["row"] for found in rows[name]) for rows in (risen, before))
        assert isinstance(row, dict)
        assert {column: row[column] for column in earlier} == earlier, name
    with database.engine.begin() as connection:
        make_customer(connection)

    rollback(database.owner_url, revision, discard_rows=True)
    after = _contents(database, names)
    for name in names:
        assert len(after[name]) == len(before[name]) + 1, name
        assert all(row in after[name] for row in before[name]), name


def test_a_customer_reads_what_was_written_before_there_were_policies(database: Database) -> None:
    rollback(database.owner_url, "0001")
    _fill(database, public_tables(database))
    migrate(database.owner_url, runtime_url=database.url)
    customer = database.value("SELECT id FROM customers")
    with database.engine.begin() as connection:
        connection.execute(
            text("SELECT set_config('request.jwt.claims', :claims, true), set_config('role', 'authenticated', true)"),
            {"claims": json.dumps({"customer_id": str(customer)})},
        )
        for table in ("scrape_jobs", "scrape_job_results", "scraped_pages", "website_content", "crawl_frontier"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 1, table


# --- other databases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*_WAYS, "verify_database"])
def test_a_newer_database_is_refused_everywhere(database: Database, way: str) -> None:
    with connect_once(database.owner_url) as connection:
        connection.execute(text("UPDATE omniops_meta.alembic_version SET version_num = '9999'"))
        connection.commit()
    with pytest.raises(SchemaNewerThanCode, match="9999"):
        {**_WAYS, "verify_database": verify_database}[way](database.owner_url)
    assert not migration_state(database.url).known


def test_the_program_may_not_change_the_schema(database: Database) -> None:
    for statement in (
        "CREATE TABLE public.x (a int)",
        "DROP TABLE crawl_frontier",
        "ALTER TABLE customers ADD x int",
    ):
        with pytest.raises(DatabaseError, match=r"permission denied|must be owner"), connect_once(database.url) as c:
            c.execute(text(statement))


def test_an_unreachable_database_is_named_without_its_password() -> None:
    for way in (migration_state, migrate, dry_run, rollback, verify_database):
        with pytest.raises(DatabaseUnreachable) as caught:
            way("postgresql://someone:secret@127.0.0.1:1/none")
        assert "127.0.0.1:1" in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", ""])
def test_a_url_that_is_not_for_postgres_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="postgresql://"):
        migration_state(url)
