"""What each access may do with each table, tried out against the database: one cell for each combination.

Expectations are read from the catalogue. `violations` is what the tests and the mutation test share: it lists every
cell whose outcome is another than the catalogue says.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from sqlalchemy import and_, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from resources.postgres.access import ANON, CLIENT, SERVICE
from resources.postgres.catalogue import TABLES, TableEntry
from resources.postgres.models import metadata
from tests.support.rows import is_generated_always, new_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import ColumnElement, Connection, Table

    from tests.support.rows import CustomerRows

Operation = Literal["select", "insert", "update", "delete", "upsert", "copy from", "copy to"]
Context = Literal["own", "other", "none", "anon", "service"]

OPERATIONS: tuple[Operation, ...] = ("select", "insert", "update", "delete", "upsert", "copy from", "copy to")
CONTEXTS: tuple[Context, ...] = ("own", "other", "none", "anon", "service")

DONE = "done"
NOTHING = "no row"  # hidden by USING: silently absent
REFUSED = "42501"  # WITH CHECK, or no grant
UNSUPPORTED = "0A000"  # COPY FROM under row-level security

_KEPT_BY_TRIGGER = "scrape_job_stats"


@dataclass(frozen=True)
class Tenants:
    """Two customers, each with one row in every table."""

    a: CustomerRows
    b: CustomerRows


def expected(entry: TableEntry, operation: Operation, context: Context, *, bypass: bool = False) -> str:
    """The outcome that the catalogue asks for.

    Args:
        entry: the table.
        operation: what is tried.
        context: own: as A on A's row; other: as A on B's row; none: without claims; anon: with A's claims as anon.
        bypass: whether service_role has BYPASSRLS (Supabase), under which COPY FROM works.
    """
    writes = operation not in ("select", "copy to")
    if context == "service":
        if entry.name == _KEPT_BY_TRIGGER and writes:
            return REFUSED
        return UNSUPPORTED if operation == "copy from" and not bypass else DONE
    access = entry.client_access if entry.tenant_column else "none"
    if context == "anon" or access == "none" or (access == "read" and writes):
        return REFUSED
    if operation == "copy from":
        return UNSUPPORTED
    if context == "own":
        return DONE
    return REFUSED if operation in ("insert", "upsert") else NOTHING


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """A savepoint that is rolled back, whatever happened in it."""
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def become(connection: Connection, role: str, claims: str | None) -> None:
    """Set the role and the claims for the transaction (or savepoint)."""
    connection.execute(
        text("SELECT set_config('request.jwt.claims', :claims, true), set_config('role', :role, true)"),
        {"claims": claims or "", "role": role},
    )


def claims_of(customer: CustomerRows) -> str:
    """Claims in Supabase's form."""
    return json.dumps({"customer_id": str(customer.customer_id), "role": "authenticated"})


def outcome(connection: Connection, entry: TableEntry, operation: Operation, context: Context, on: Tenants) -> str:
    """Try one cell in a savepoint that is rolled back, and say what happened."""
    target = on.b if context == "other" else on.a
    role = {"anon": ANON, "service": SERVICE}.get(context, CLIENT)
    claims = None if context in ("none", "service") else claims_of(on.a)
    savepoint = connection.begin_nested()
    try:
        if operation == "insert":
            _make_room(connection, entry, target)
        become(connection, role, claims)
        return DONE if _OPERATIONS[operation](connection, entry, target) else NOTHING
    except DBAPIError as error:
        return str(getattr(error.orig, "sqlstate", error.orig))
    except psycopg.Error as error:
        return str(error.sqlstate)
    finally:
        savepoint.rollback()


def violations(
    connection: Connection,
    on: Tenants,
    *,
    tables: Iterable[str] = tuple(TABLES),
    contexts: Iterable[Context] = CONTEXTS,
    bypass: bool = False,
) -> Iterator[str]:
    """Each cell whose outcome is another than the catalogue says, in words."""
    for name, operation, context in itertools.product(tables, OPERATIONS, contexts):
        entry = TABLES[name]
        found, wanted = (
            outcome(connection, entry, operation, context, on),
            expected(entry, operation, context, bypass=bypass),
        )
        if found != wanted:
            yield f"{name}: {operation} as {context}: {found}, and not {wanted}"
        if operation == "select":
            yield from _leaks(connection, entry, on)


def uncounted_results(connection: Connection, on: Tenants) -> Iterator[str]:
    """A tenant's result that the statistics trigger does not count is a violation too."""
    table = metadata.tables["scrape_job_results"]
    stats = metadata.tables["scrape_job_stats"]
    savepoint = connection.begin_nested()
    try:
        become(connection, CLIENT, claims_of(on.a))
        total = select(stats.c.total_pages).where(stats.c.job_id == on.a.rows["scrape_jobs"]["job_id"])
        before = connection.scalar(total)
        connection.execute(insert(table).values(new_row(table, on.a.rows)).inline())
        after = connection.scalar(total)
        if before is None or after != before + 1:
            yield f"scrape_job_stats: a tenant's result moved total_pages from {before} to {after}"
    except DBAPIError as error:
        yield f"scrape_job_stats: a tenant's result cannot be written: {error.orig}"
    finally:
        savepoint.rollback()


def _leaks(connection: Connection, entry: TableEntry, on: Tenants) -> Iterator[str]:
    """Rows of anybody else in an unfiltered read as A."""
    if entry.tenant_column is None or entry.client_access == "none":
        return
    table = metadata.tables[entry.name]
    savepoint = connection.begin_nested()
    try:
        become(connection, CLIENT, claims_of(on.a))
        theirs = select(func.count()).where(table.c[entry.tenant_column].is_distinct_from(on.a.customer_id))
        count = connection.scalar(theirs)
        if count:
            yield f"{entry.name}: {count} rows of others are read as A"
    except DBAPIError as error:
        yield f"{entry.name}: cannot be read as A: {error.orig}"
    finally:
        savepoint.rollback()


# --- operations: each returns how many of the target's rows it reached --------------------------------------------


def _key(table: Table, row: dict[str, Any]) -> ColumnElement[bool]:
    return and_(*(column == row[column.name] for column in table.primary_key))


def _make_room(connection: Connection, entry: TableEntry, target: CustomerRows) -> None:
    """A row whose key is its parents' cannot be there twice: the one that is goes first."""
    table = metadata.tables[entry.name]
    foreign = {element.parent.name for element in table.foreign_keys}
    if entry.client_access == "write" and {column.name for column in table.primary_key} <= foreign:
        become(connection, SERVICE, None)
        connection.execute(delete(table).where(_key(table, target.rows[entry.name])))


def _select(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    table = metadata.tables[entry.name]
    counted = select(func.count()).select_from(table).where(_key(table, target.rows[entry.name]))
    return connection.scalar(counted) or 0


def _insert(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    table = metadata.tables[entry.name]
    row = new_row(table, target.rows)
    if entry.name == "customers":
        row["id"] = target.customer_id  # a primary key already taken: the policy speaks first, or nobody does
    elif entry.name == "feature_flag_rollouts":
        row["flag_name"] = target.rows["feature_flags"]["name"]
    if entry.name in ("customers", "feature_flag_rollouts"):
        # Their one possible key is taken, and clients may not write them: only the service gets as far as the key.
        return connection.execute(upsert(table).values(row).on_conflict_do_nothing()).rowcount or 1
    # Inline: a RETURNING of the key would ask the reading policy too, and hide a writing one that lets all through.
    return connection.execute(insert(table).values(row).inline()).rowcount


def _update(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    table = metadata.tables[entry.name]
    column = next(c for c in table.columns if not is_generated_always(c))
    statement = update(table).where(_key(table, target.rows[entry.name])).values({column.name: column})
    return connection.execute(statement).rowcount


def _delete(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    table = metadata.tables[entry.name]
    row = target.rows[entry.name]
    if entry.name == "customers":
        # A hold keeps its customer; it is not what is tried here.
        connection.execute(text("DELETE FROM legal_holds WHERE customer_id = :id"), {"id": target.customer_id})
    return connection.execute(delete(table).where(_key(table, row))).rowcount


def _upsert(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    table = metadata.tables[entry.name]
    column = next(c for c in table.columns if not is_generated_always(c))
    generated = {c.name for c in table.columns if c.computed is not None}
    statement = upsert(table).values({n: v for n, v in target.rows[entry.name].items() if n not in generated})
    statement = statement.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={column.name: statement.excluded[column.name]}
    )
    compiled = statement.compile(dialect=connection.dialect)
    # Only so can a conflict on an identity column be had; the right to do it is INSERT's.
    sql = str(compiled).replace(") VALUES (", ") OVERRIDING SYSTEM VALUE VALUES (", 1)
    processors = compiled._bind_processors
    parameters = {name: processors.get(name, lambda v: v)(value) for name, value in compiled.params.items()}
    return connection.exec_driver_sql(sql, parameters).rowcount


def _copy_from(connection: Connection, entry: TableEntry, _target: CustomerRows) -> int:
    # No row is sent: what is asked is whether the door is open.
    with _cursor(connection) as cursor, cursor.copy(f"COPY public.{entry.name} FROM STDIN"):
        pass
    return 1


def _copy_to(connection: Connection, entry: TableEntry, target: CustomerRows) -> int:
    column = entry.tenant_column or next(iter(metadata.tables[entry.name].primary_key)).name
    wanted = str(target.rows[entry.name][column])
    with _cursor(connection) as cursor, cursor.copy(f"COPY public.{entry.name} ({column}) TO STDOUT") as copied:
        return [str(row[0]) for row in copied.rows()].count(wanted)


def _cursor(connection: Connection) -> psycopg.Cursor[Any]:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.cursor()


_OPERATIONS: dict[Operation, Callable[[Connection, TableEntry, CustomerRows], int]] = {
    "select": _select,
    "insert": _insert,
    "update": _update,
    "delete": _delete,
    "upsert": _upsert,
    "copy from": _copy_from,
    "copy to": _copy_to,
}
