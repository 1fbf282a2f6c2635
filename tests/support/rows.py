"""Valid rows for every table, made from the models alone: a new table needs nothing here.

A value is taken from the column's foreign key, else from its check, else made from its type. What a pattern asks for
and cannot be read from it (a currency, a url) stands in `_BY_NAME`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, Date, DateTime, Identity, LargeBinary, Numeric, Table, Text, insert, select
from sqlalchemy.dialects.postgresql import JSONB, UUID

from resources.postgres.catalogue import TABLES
from resources.postgres.models import EMBEDDING_DIMENSIONS, HalfVector, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Column, Connection

_numbers = itertools.count(1)
_BY_NAME = {"currency": "EUR", "url": "https://shop.example/{n}"}
# Kept by a trigger: its row comes with the job's first result.
_KEPT_BY_TRIGGERS = ("scrape_job_stats",)


@dataclass(frozen=True)
class CustomerRows:
    """A customer with one row in every table.

    Attributes:
        customer_id: whose rows they are.
        rows: by table, each as it stands in the database. A platform table's row is nobody's.
    """

    customer_id: uuid.UUID
    rows: dict[str, dict[str, Any]]


def tables() -> Iterator[Table]:
    """All tables, parents before children; a trigger's table after what fires it."""
    ordered = metadata.sorted_tables
    yield from (table for table in ordered if table.name not in _KEPT_BY_TRIGGERS)
    yield from (table for table in ordered if table.name in _KEPT_BY_TRIGGERS)


def new_row(table: Table, parents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values for a row that can be inserted: all that is required, and every foreign key.

    Args:
        table: whose row.
        parents: rows by table, for the foreign keys and the tenant.
    """
    row: dict[str, Any] = {}
    for key in table.foreign_key_constraints:
        for element in key.elements:
            row[element.parent.name] = parents[element.column.table.name][element.column.name]
    tenant = TABLES[table.name].tenant_column
    if tenant is not None and table.name != "customers":
        row[tenant] = parents["customers"]["id"]
    for column in table.columns:
        if column.name not in row and not column.nullable and column.server_default is None:
            row[column.name] = _value(column)
    return row


def _value(column: Column[Any]) -> Any:  # noqa: PLR0911 - one for each type
    n = next(_numbers)
    for constraint in (*column.constraints, *column.table.constraints):
        if isinstance(constraint, CheckConstraint):
            allowed = re.match(rf"{column.name} IN \('([^']*)'", str(constraint.sqltext))
            if allowed:
                return allowed[1]
    if column.name in _BY_NAME:
        return _BY_NAME[column.name].format(n=n)
    kind = column.type
    if isinstance(kind, Text):
        # No punctuation: slugs, flags' names and addresses all allow letters and digits.
        return f"{column.name.replace('_', '')}{n}"
    if isinstance(kind, UUID):
        return uuid.uuid4()
    if isinstance(kind, JSONB):
        return {}
    if isinstance(kind, LargeBinary):
        return n.to_bytes(8, "big")
    if isinstance(kind, HalfVector):
        return "[" + ",".join(["0.5"] * EMBEDDING_DIMENSIONS) + "]"
    if isinstance(kind, DateTime):
        return dt.datetime.now(dt.UTC)
    if isinstance(kind, Date):
        return dt.date(2026, 1, 1) + dt.timedelta(days=n)
    if isinstance(kind, Numeric):
        return n
    return bool(n % 2) if kind.python_type is bool else n


def is_generated_always(column: Column[Any]) -> bool:
    """True for an identity column that an INSERT may give only with OVERRIDING SYSTEM VALUE."""
    return isinstance(column.server_default, Identity)


def make_customer(connection: Connection) -> CustomerRows:
    """Make a customer with one valid row in every table; the connection has service access."""
    rows: dict[str, dict[str, Any]] = {}
    for table in tables():
        if table.name in _KEPT_BY_TRIGGERS:
            key = {"job_id": rows["scrape_jobs"]["job_id"]}
            found = connection.execute(select(table).filter_by(**key)).mappings().one()
        else:
            statement = insert(table).values(new_row(table, rows)).returning(*table.columns)
            found = connection.execute(statement).mappings().one()
        rows[table.name] = dict(found)
    return CustomerRows(rows["customers"]["id"], rows)
