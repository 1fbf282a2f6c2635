"""Which rows are a customer's, table by table: what erasure, export and their previews read.

Derived from the catalogue (whose column says so) and the models (how to find them without reading all of the table).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import UniqueConstraint, text

from resources.postgres.catalogue import TABLES, tenant_tables
from resources.postgres.customers import find_customer
from resources.postgres.models import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Connection, Table


class UnknownCustomer(LookupError):
    """There is no customer with this slug."""

    def __init__(self, slug: str) -> None:
        super().__init__(f"there is no customer {slug!r}: is the slug right?")


@dataclass(frozen=True, slots=True)
class CustomerRows:
    """A customer's rows of one table.

    Attributes:
        table: in schema `public`.
        rows: how many.
        bytes: of the rows themselves, without indexes and page overhead.
    """

    table: str
    rows: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def customer_id_of(connection: Connection, slug: str) -> UUID:
    """The customer's id.

    Raises:
        InvalidSlug: it is no slug.
        UnknownCustomer: nobody has it.
    """
    found = find_customer(connection, slug)
    if found is None:
        raise UnknownCustomer(slug)
    return found


@cache
def condition(table: str) -> str:
    """The SQL condition on `x`, a row of the table, that it is the customer's (`:customer_id`).

    By the tenant's column where an index begins with it; else by the parent's key, whose customer a child shares by
    its foreign key. Reading ten million results to find one customer's would be paid again for each batch.
    """
    entry = TABLES[table]
    if entry.tenant_column is None:
        msg = f"table {table} belongs to no customer"
        raise ValueError(msg)
    model = metadata.tables[table]
    own = f"x.{entry.tenant_column} = :customer_id"
    if entry.tenant_column in _indexed_first(model):
        return own
    for key in model.foreign_key_constraints:
        columns = {element.parent.name: element.column.name for element in key.elements}
        parent = key.referred_table
        if entry.tenant_column in columns and entry.tenant_column in _indexed_first(parent):
            column, of_parent = next((c, p) for c, p in columns.items() if c != entry.tenant_column)
            return (
                f"x.{column} IN (SELECT p.{of_parent} FROM {parent.name} AS p "  # noqa: S608 - names of the models
                f"WHERE p.{TABLES[parent.name].tenant_column} = :customer_id)"
            )
    return own


def _indexed_first(table: Table) -> set[str]:
    firsts = [next(iter(table.primary_key)).name]
    firsts += [next(iter(index.columns)).name for index in table.indexes if len(index.columns)]
    firsts += [next(iter(c.columns)).name for c in table.constraints if isinstance(c, UniqueConstraint)]
    firsts += [column.name for column in table.columns if column.unique]
    return set(firsts)


def count_customer_rows(connection: Connection, customer_id: UUID, tables: list[str]) -> list[CustomerRows]:
    """How many rows of the customer there are in these tables; tables without any are left out."""
    return [
        row
        for row in (
            CustomerRows(
                table,
                *connection.execute(
                    text(f"""
                        SELECT count(*), coalesce(sum(pg_column_size(ROW(x.*))), 0)::bigint FROM {table} AS x
                        WHERE {condition(table)}
                    """),  # noqa: S608 - names of the catalogue
                    {"customer_id": customer_id},
                ).one(),
            )
            for table in tables
        )
        if row.rows
    ]


def tenant_table_names() -> Iterator[str]:
    """Tables whose rows belong to a customer."""
    return (entry.name for entry in tenant_tables())
