"""A customer's data as JSON lines, `{"table": …, "row": …}`: all of it, as it stood at one moment.

Left out are secrets (whatever is stored as bytes is one), the full-text vector and the embeddings, which can be made
again from the texts beside them, and the queue's fencing tokens.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import LargeBinary, text
from sqlalchemy.dialects.postgresql import TSVECTOR

from resources.postgres.compliance import PROGRAM, finish_action, log_action
from resources.postgres.customer_rows import condition, customer_id_of, tenant_table_names
from resources.postgres.models import HalfVector, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO
    from uuid import UUID

    from sqlalchemy import Connection, Engine

_LEFT_OUT_TYPES: Final = (LargeBinary, TSVECTOR, HalfVector)
_LEFT_OUT_COLUMNS: Final = frozenset({("message_queue", "lease_token")})

# Rows that are fetched at a time: memory stays the same however large the customer is.
_ROWS_AT_A_TIME: Final = 500


def exported_columns(table: str) -> list[str]:
    """The columns of a table that an export holds."""
    return [
        column.name
        for column in metadata.tables[table].columns
        if not isinstance(column.type, _LEFT_OUT_TYPES) and (table, column.name) not in _LEFT_OUT_COLUMNS
    ]


def export_customer(engine: Engine, slug: str, out: Path | TextIO, *, actor: str = PROGRAM) -> dict[str, int]:
    """Write a customer's data as JSON lines, and an entry in `gdpr_audit_log`.

    Args:
        engine: the permanent tier, as the role that runs the program.
        slug: the customer.
        out: a file to be written whole or not at all (mode 0600), or an open stream.
        actor: the role or program that asked.

    Returns:
        How many rows were written, by table.

    Raises:
        UnknownCustomer: there is no such customer.
        OSError: the file cannot be written; there is none then.
    """
    with engine.begin() as connection:
        customer_id = customer_id_of(connection, slug)
        entry = log_action(connection, customer_id, "export", "started", actor=actor)
    counts: dict[str, int] = {}
    try:
        if isinstance(out, Path):
            with _whole_file(out) as stream:
                _write(engine, customer_id, stream, counts)
        else:
            _write(engine, customer_id, out, counts)
    except BaseException as error:
        with engine.begin() as connection:
            finish_action(connection, entry, "failed", {"rows": counts, "error": type(error).__name__})
        raise
    with engine.begin() as connection:
        finish_action(connection, entry, "completed", {"rows": counts})
    return counts


def _write(engine: Engine, customer_id: UUID, stream: TextIO, counts: dict[str, int]) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as connection:
        # Times are written with their offset; that of Greenwich is read the same everywhere.
        connection.execute(text("SELECT set_config('TimeZone', 'UTC', true)"))
        for table in tenant_table_names():
            count = 0
            for line in _lines(connection, table, customer_id):
                stream.write(line)
                stream.write("\n")
                count += 1
            if count:
                counts[table] = count


def _lines(connection: Connection, table: str, customer_id: UUID) -> Iterator[str]:
    columns = ", ".join(f'x."{name}"' for name in exported_columns(table))
    # The database writes the JSON: no value passes through a type that could change it.
    rows: Any = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_A_TIME).scalars(
        text(f"""
            SELECT row_to_json(r)::text FROM (SELECT {columns} FROM {table} AS x WHERE {condition(table)}) AS r
        """),  # noqa: S608 - names of the catalogue and the models
        {"customer_id": customer_id},
    )
    for row in rows:
        yield f'{{"table": "{table}", "row": {row}}}'


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A file that appears under its name when all of it is on the disk."""
    # mkstemp makes it 0600: it holds personal data.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
