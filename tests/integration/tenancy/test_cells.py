"""Every table, operation and context, generated from the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, IntegrityError

from resources.postgres.access import ANON, CLIENT, SERVICE
from resources.postgres.catalogue import TABLES, tenant_tables
from resources.postgres.models import metadata
from tests.integration.tenancy.cells import (
    CONTEXTS,
    OPERATIONS,
    REFUSED,
    Context,
    Operation,
    Tenants,
    become,
    claims_of,
    expected,
    outcome,
    uncounted_results,
    undone,
    violations,
)
from tests.support.rows import is_generated_always, new_row

if TYPE_CHECKING:
    from sqlalchemy import Connection

pytestmark = pytest.mark.integration

_WRITABLE = [e.name for e in tenant_tables() if e.client_access == "write"]
_READABLE = [e.name for e in tenant_tables() if e.client_access != "none"]
# Children whose parent is named together with the tenant.
_CHILDREN = [
    (name, key)
    for name in _WRITABLE
    for key in metadata.tables[name].foreign_key_constraints
    if key.referred_table.name != "customers"
]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", TABLES)
def test_every_access_may_do_what_the_catalogue_says_and_nothing_else(
    name: str, operation: Operation, context: Context, populated: tuple[Connection, Tenants]
) -> None:
    connection, tenants = populated
    entry = TABLES[name]
    assert outcome(connection, entry, operation, context, tenants) == expected(entry, operation, context)


def test_no_unfiltered_read_shows_another_tenants_row(populated: tuple[Connection, Tenants]) -> None:
    connection, tenants = populated
    assert list(violations(connection, tenants, contexts=())) == []


def test_a_result_written_by_a_tenant_is_counted(populated: tuple[Connection, Tenants]) -> None:
    assert list(uncounted_results(*populated)) == []


# --- the context -------------------------------------------------------------------------------------------------

_WITHOUT_ROWS: dict[str, str] = {
    "an empty string": "",
    "an empty object": "{}",
    "claims without a customer": '{"sub": "someone", "role": "authenticated"}',
    "a customer that is null": '{"customer_id": null}',
    "a customer that is empty": '{"customer_id": ""}',
    "a customer that does not exist": '{"customer_id": "00000000-0000-4000-8000-000000000000"}',
    "claims that are a list": "[1, 2]",
    "claims that are a word": '"customer_id"',
    "a customer one level too deep": '{"app_metadata": {"customer_id": "%(a)s"}}',
}
_WITH_AN_ERROR: dict[str, str] = {
    "a customer that is no uuid": '{"customer_id": "acme"}',
    "a customer that is a list": '{"customer_id": ["%(a)s"]}',
    "a uuid with something behind it": '{"customer_id": "%(a)s OR true"}',
    "claims that are no JSON": "customer_id=%(a)s",
}


@pytest.mark.parametrize("case", _WITHOUT_ROWS)
def test_a_context_that_names_no_customer_sees_no_row_of_any_table(
    case: str, populated: tuple[Connection, Tenants]
) -> None:
    connection, tenants = populated
    claims = _WITHOUT_ROWS[case].replace("%(a)s", str(tenants.a.customer_id))
    for name in _READABLE:
        with undone(connection):
            become(connection, CLIENT, claims)
            assert connection.execute(select(metadata.tables[name])).all() == [], name


@pytest.mark.parametrize("case", _WITH_AN_ERROR)
def test_a_malformed_context_is_an_error_and_shows_no_row(case: str, populated: tuple[Connection, Tenants]) -> None:
    connection, tenants = populated
    claims = _WITH_AN_ERROR[case].replace("%(a)s", str(tenants.a.customer_id))
    for name in _READABLE:
        with undone(connection):
            become(connection, CLIENT, claims)
            with pytest.raises(DBAPIError) as caught:
                connection.execute(select(metadata.tables[name])).all()
            assert getattr(caught.value.orig, "sqlstate", "") == "22P02", name


# --- from one tenant to another ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _WRITABLE)
def test_a_row_cannot_be_moved_to_another_tenant(name: str, populated: tuple[Connection, Tenants]) -> None:
    connection, tenants = populated
    tenant = TABLES[name].tenant_column
    with undone(connection):
        become(connection, CLIENT, claims_of(tenants.a))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(update(metadata.tables[name]).values({tenant: tenants.b.customer_id}))
        assert getattr(caught.value.orig, "sqlstate", "") == REFUSED


# Keys that a client may choose. Those that the database gives are tried by the generated upserts.
_CHOSEN_KEYS = [
    name
    for name in _WRITABLE
    if not any(c.name == "customer_id" or is_generated_always(c) for c in metadata.tables[name].primary_key)
]


@pytest.mark.parametrize("name", _CHOSEN_KEYS)
def test_another_tenants_row_cannot_be_taken_over_by_its_key(
    name: str, populated: tuple[Connection, Tenants]
) -> None:
    connection, tenants = populated
    table = metadata.tables[name]
    key = {column.name: tenants.b.rows[name][column.name] for column in table.primary_key}
    statement = upsert(table).values({**new_row(table, tenants.a.rows), **key})
    statement = statement.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={"customer_id": statement.excluded["customer_id"]}
    )
    with undone(connection):
        become(connection, CLIENT, claims_of(tenants.a))
        with pytest.raises(DBAPIError) as caught:
            connection.execute(statement)
        assert getattr(caught.value.orig, "sqlstate", "") == REFUSED


@pytest.mark.parametrize(("name", "key"), _CHILDREN, ids=[f"{n}-{k.referred_table.name}" for n, k in _CHILDREN])
@pytest.mark.parametrize("role", [CLIENT, SERVICE])
def test_a_child_cannot_stand_under_another_tenants_parent(
    name: str, key: Any, role: str, populated: tuple[Connection, Tenants]
) -> None:
    connection, tenants = populated
    table = metadata.tables[name]
    row = new_row(table, tenants.a.rows)
    for element in key.elements:
        if element.parent.name != "customer_id":
            row[element.parent.name] = tenants.b.rows[key.referred_table.name][element.column.name]
    with undone(connection):
        # Where the key is the parent's, the parent's own child would be in the way.
        become(connection, SERVICE, None)
        connection.execute(delete(table).where(table.c.customer_id == tenants.b.customer_id))
        if role == CLIENT:
            become(connection, CLIENT, claims_of(tenants.a))
        with pytest.raises(IntegrityError, match="foreign key"):
            connection.execute(insert(table).values(row))


@pytest.mark.parametrize("name", TABLES)
def test_no_client_can_truncate_lock_or_refer_to_a_table(name: str, populated: tuple[Connection, Tenants]) -> None:
    connection, _ = populated
    held = connection.execute(
        text("""
            SELECT r.role, p.privilege FROM unnest(CAST(:roles AS text[])) AS r (role)
            CROSS JOIN unnest(ARRAY['TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
            WHERE has_table_privilege(r.role, 'public.' || :name, p.privilege)
        """),
        {"roles": [ANON, CLIENT, SERVICE], "name": name},
    ).all()
    assert held == []
