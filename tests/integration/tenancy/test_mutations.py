"""The checks themselves, checked: each policy dropped or weakened in turn, and each time they have to notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from resources.postgres.access import ANON, CLIENT, Policy, policies_of
from resources.postgres.catalogue import TABLES
from tests.integration.tenancy.cells import Tenants, uncounted_results, undone, violations
from tests.integration.tenancy.conftest import two_customers
from tests.integration.tenancy.structure import grants_of, openings, policies_unlike_the_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def admin(tenancy_database: Database) -> Iterator[tuple[Connection, Tenants]]:
    """As the superuser, who may change policies and become each role, with two customers in the transaction."""
    with two_customers(tenancy_database.admin_url) as made:
        yield made


def _mutants(policy: Policy) -> Iterator[tuple[str, str]]:
    name = f"{policy.name} ON public.{policy.table}"
    yield "dropped", f"DROP POLICY {name}"
    if policy.using != "true":
        yield "sees all", f"ALTER POLICY {name} USING (true)"
        yield "sees nothing", f"ALTER POLICY {name} USING (false)"
        yield "sees all but its own", f"ALTER POLICY {name} USING (NOT ({policy.using}))"
        yield "sees where there is no context", f"ALTER POLICY {name} USING ({policy.using} IS NOT false)"
    if policy.check is not None and policy.check != "true":
        yield "writes all", f"ALTER POLICY {name} WITH CHECK (true)"
        yield "writes nothing", f"ALTER POLICY {name} WITH CHECK (false)"
    if policy.role == CLIENT:
        yield "is for anon", f"ALTER POLICY {name} TO {ANON}"
        if policy.command == "ALL":
            # What somebody writes who thinks of reading alone.
            drop = f"DROP POLICY {name}; CREATE POLICY {name}"
            yield "is for reading alone", f"{drop} FOR SELECT TO {CLIENT} USING ({policy.using})"
    if policy.role == "service_role":
        yield "is for clients", f"ALTER POLICY {name} TO {CLIENT}"


def _table_mutants(table: str) -> Iterator[tuple[str, str]]:
    yield "row-level security off", f"ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY"
    yield "not forced", f"ALTER TABLE public.{table} NO FORCE ROW LEVEL SECURITY"
    yield "anon may read", f"GRANT SELECT ON public.{table} TO {ANON}"
    yield "everybody may write", f"GRANT INSERT ON public.{table} TO PUBLIC"
    if TABLES[table].client_access != "none":
        # Without a grant it would let nobody in.
        yield "a second policy", f"CREATE POLICY second ON public.{table} TO {CLIENT} USING (true)"


_MUTANTS = [
    pytest.param(entry.name, statement, id=f"{entry.name}-{what}")
    for entry in TABLES.values()
    for what, statement in (
        *(
            (f"{policy.name}-{policy.role}-{what}", statement)
            for policy in policies_of(entry)
            for what, statement in _mutants(policy)
        ),
        *_table_mutants(entry.name),
    )
]


def _complaints(connection: Connection, tenants: Tenants, table: str) -> Iterator[str]:
    # The trigger's policies show in what they are for; the others in their own table's cells.
    around = {table, "scrape_job_results"} if table in ("scrape_jobs", "scrape_job_stats") else {table}
    yield from violations(connection, tenants, tables=sorted(around))
    yield from uncounted_results(connection, tenants)
    yield from openings(connection)
    yield from grants_of(connection, ANON)
    yield from policies_unlike_the_catalogue(connection)


@pytest.mark.parametrize(("table", "statement"), _MUTANTS)
def test_a_dropped_or_weakened_policy_is_noticed(
    table: str, statement: str, admin: tuple[Connection, Tenants]
) -> None:
    connection, tenants = admin
    with undone(connection):
        connection.execute(text(statement))
        noticed = next(_complaints(connection, tenants, table), None)
    assert noticed is not None


def test_without_a_change_nothing_is_noticed(admin: tuple[Connection, Tenants]) -> None:
    connection, tenants = admin
    for table in TABLES:
        assert list(_complaints(connection, tenants, table)) == []
