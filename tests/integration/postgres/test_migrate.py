"""Migrations."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from alembic import command
from sqlalchemy import text

from resources.postgres.connection import DatabaseError, DatabaseUnreachable, connect_once
from resources.postgres.migrate import SchemaNewerThanCode, _config, migrate, migration_state

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_TABLES = {
    "customers",
    "customer_configs",
    "scraped_pages",
    "website_content",
    "scrape_jobs",
    "scrape_job_results",
    "scrape_job_stats",
    "crawl_frontier",
}
_SHAPE = """
    SELECT 'column' AS kind, table_schema || '.' || table_name || '.' || column_name AS name,
           data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '') AS detail
    FROM information_schema.columns WHERE table_schema IN ('public', 'omniops_meta')
    UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname IN ('public', 'omniops_meta')
    UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
    UNION ALL SELECT 'function', proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
        AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    ORDER BY 1, 2, 3
"""


def test_migrating_an_empty_database_makes_the_tables_and_no_others(empty_database: Database) -> None:
    before = migrate(empty_database.owner_url, runtime_url=empty_database.url)
    assert (before.current, before.pending) == (None, ("0001",))
    tables = {
        str(r["tablename"])
        for r in empty_database.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    }
    assert tables == _TABLES
    assert migration_state(empty_database.url).up_to_date


def test_migrating_twice_does_nothing_the_second_time(database: Database) -> None:
    assert migrate(database.owner_url, runtime_url=database.url).pending == ()


def test_two_migrations_at_once_are_one_after_the_other(empty_database: Database) -> None:
    states: list[object] = []
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
    assert sorted(states, key=len) == [(), (), ("0001",)]


def test_down_and_up_again_leaves_the_same_schema(database: Database) -> None:
    with connect_once(database.owner_url) as connection:
        before = connection.execute(text(_SHAPE)).all()
        command.downgrade(_config(connection), "base")
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        functions = connection.scalars(
            text("""SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
                    AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')""")
        ).all()
        assert (tables, functions) == ([], [])
        command.upgrade(_config(connection), "head")
        assert connection.execute(text(_SHAPE)).all() == before
        connection.rollback()


def test_a_newer_database_is_refused(database: Database) -> None:
    with connect_once(database.owner_url) as connection:
        connection.execute(text("UPDATE omniops_meta.alembic_version SET version_num = '9999'"))
        connection.commit()
    with pytest.raises(SchemaNewerThanCode, match="9999"):
        migrate(database.owner_url)


def test_the_program_may_not_change_the_schema(database: Database) -> None:
    for statement in (
        "CREATE TABLE public.x (a int)",
        "DROP TABLE crawl_frontier",
        "ALTER TABLE customers ADD x int",
    ):
        with pytest.raises(DatabaseError, match=r"permission denied|must be owner"), connect_once(database.url) as c:
            c.execute(text(statement))


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        migration_state("postgresql://someone:secret@127.0.0.1:1/none")
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", ""])
def test_a_url_that_is_not_for_postgres_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="postgresql://"):
        migration_state(url)
