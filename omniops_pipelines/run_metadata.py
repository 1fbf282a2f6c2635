"""Tables for the metadata of runs and assets: bounded, whatever the number of customers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# An event is a row of Dagster's log, read whole whenever its run is looked at.
MAX_ROWS: Final = 200


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], left_out: int = 0) -> dg.TableMetadataValue:
    """Rows as a table of the UI.

    Args:
        columns: names, with their types (`string`, `int`, `timestamp`, …).
        rows: by column; what the columns do not name is left out. The first 200 are shown.
        left_out: rows that the caller has left out already.
    """
    names = list(columns)
    records = [dg.TableRecord({name: _shown(row.get(name)) for name in names}) for row in rows[:MAX_ROWS]]
    hidden = left_out + len(rows) - len(records)
    if hidden:
        blank: dict[str, Any] = dict.fromkeys(names, "")
        records.append(dg.TableRecord({**blank, names[0]: f"and {hidden:,} more"}))
    schema = dg.TableSchema(columns=[dg.TableColumn(name, type=type_) for name, type_ in columns.items()])
    return dg.MetadataValue.table(records=records, schema=schema)


def _shown(value: Any) -> str | int | float | bool:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, str | int | float | bool):
        return value
    return str(value)
