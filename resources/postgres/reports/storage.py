"""How large the tables are, how they grow, and when the budget will be used up.

Sizes and row estimates come from Postgres's own catalogue and statistics. Bloat is estimated (pgstattuple is not
everywhere, and the planner's column widths are hidden where row-level security applies): the width of rows is
measured on a sample of a hundred pages of each table, and what the heap takes beyond that many rows of that width is
bloat. The page layout is that of the manual's chapter "Database Page Layout": 24 bytes of page header, 4 bytes of
item pointer and a tuple header of 24 for each row, tuples aligned to 8. Indexes are not looked into.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date, datetime

    from sqlalchemy import Connection

# So many pages of a table are read to measure its rows.
_SAMPLE_PAGES: Final = 100

# Beyond that a date says nothing.
MAX_DAYS_TO_FULL: Final = 3_650


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table's size at a moment; its partitions count as it.

    Attributes:
        table: in schema `public`.
        row_estimate: by the planner's statistics, else by the activity counters.
        table_bytes: the heap with its maps, without TOAST.
        index_bytes: of all its indexes.
        toast_bytes: long values, with their index.
        dead_rows: waiting for vacuum, by the activity counters.
        bloat_bytes: of the heap: estimate of what live rows do not need; None where it cannot be told.
    """

    table: str
    row_estimate: int
    table_bytes: int
    index_bytes: int
    toast_bytes: int
    dead_rows: int
    bloat_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """All that it takes on disk."""
        return self.table_bytes + self.index_bytes + self.toast_bytes

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "total_bytes": self.total_bytes}


@dataclass(frozen=True, slots=True)
class Growth:
    """How something grows.

    Attributes:
        table: which; None for all tables together.
        bytes_now: at the newest snapshot.
        per_day_7: bytes a day over the last 7 days; None where there are no two days to compare.
        per_day_30: likewise over the last 30 days.
    """

    table: str | None
    bytes_now: int
    per_day_7: float | None
    per_day_30: float | None

    @property
    def per_day(self) -> float | None:
        """The faster of the two trends: who plans ahead wants to be warned early."""
        known = [rate for rate in (self.per_day_7, self.per_day_30) if rate is not None]
        return max(known) if known else None


@dataclass(frozen=True, slots=True)
class StorageReport:
    """The permanent tier against its budget.

    Attributes:
        taken_at: of the newest snapshot.
        sizes: of every table, the largest first.
        growth: by table, in the same order; the last is of all tables together.
        history: bytes of each table by day (UTC), at the day's last snapshot.
        database_bytes: of the whole database, Dagster's own tables included.
        budget_bytes: what it may take.
        days_to_full: until the budget is used up, at the faster of the trends; None where it is not growing, or for
            longer than ten years.
    """

    taken_at: datetime
    sizes: tuple[TableSize, ...]
    growth: tuple[Growth, ...]
    history: Mapping[str, Mapping[date, int]]
    database_bytes: int
    budget_bytes: int
    days_to_full: float | None

    @property
    def share(self) -> float:
        """Of the budget, 1 being all of it."""
        return self.database_bytes / self.budget_bytes


# A partitioned table and the partitions below it, whatever their depth.
_SIZES: Final = """
    WITH RECURSIVE parts (name, relid) AS (
        SELECT t.name, to_regclass('public.' || t.name)::oid FROM unnest(CAST(:tables AS text[])) AS t (name)
        UNION ALL
        SELECT p.name, i.inhrelid FROM parts AS p JOIN pg_inherits AS i ON i.inhparent = p.relid
    ), sized AS (
        SELECT p.name, CASE WHEN c.relkind = 'p' THEN 0 WHEN c.reltuples >= 0 THEN c.reltuples
                            ELSE coalesce(s.n_live_tup, 0) END AS rows,
               coalesce(pg_table_size(c.oid), 0) AS all_bytes,
               coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes,
               coalesce(pg_indexes_size(c.oid), 0) AS index_bytes,
               coalesce(pg_relation_size(c.oid), 0) AS heap_bytes, coalesce(s.n_dead_tup, 0) AS dead,
               (SELECT o.option_value::integer FROM pg_options_to_table(c.reloptions) AS o
                WHERE o.option_name = 'fillfactor') AS fillfactor
        FROM parts AS p JOIN pg_class AS c ON c.oid = p.relid
        LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
    )
    SELECT name, sum(rows)::bigint AS row_estimate, sum(all_bytes - toast_bytes)::bigint AS table_bytes,
           sum(index_bytes)::bigint AS index_bytes, sum(toast_bytes)::bigint AS toast_bytes,
           sum(dead)::bigint AS dead_rows, sum(heap_bytes)::bigint AS heap_bytes,
           coalesce(min(fillfactor), 100) AS fillfactor
    FROM sized GROUP BY name
"""


def table_sizes(connection: Connection, tables: Iterable[str] = tuple(TABLES)) -> list[TableSize]:
    """The size of each table now, the largest first. Reads no rows but a sample of a hundred pages a table."""
    rows = connection.execute(text(_SIZES), {"tables": list(tables)}).mappings().all()
    block = int(connection.scalar(text("SELECT current_setting('block_size')")) or 8192)
    sizes = [
        TableSize(
            row["name"],
            row["row_estimate"],
            row["table_bytes"],
            row["index_bytes"],
            row["toast_bytes"],
            row["dead_rows"],
            heap_bloat(
                row["heap_bytes"],
                row["row_estimate"],
                _row_width(connection, row["name"], row["heap_bytes"] // block),
                row["fillfactor"],
                block,
            ),
        )
        for row in rows
    ]
    return sorted(sizes, key=lambda size: (-size.total_bytes, size.table))


def row_estimates(connection: Connection, tables: Iterable[str] = tuple(TABLES)) -> dict[str, int]:
    """How many rows each table has, by Postgres's statistics; reads none."""
    rows = connection.execute(text(_SIZES), {"tables": list(tables)}).mappings()
    return {row["name"]: row["row_estimate"] for row in rows}


def table_bytes(connection: Connection, tables: Iterable[str] = tuple(TABLES)) -> dict[str, int]:
    """What each table's rows take on disk, without indexes; reads none."""
    rows = connection.execute(text(_SIZES), {"tables": list(tables)}).mappings()
    return {row["name"]: row["table_bytes"] + row["toast_bytes"] for row in rows}


def _row_width(connection: Connection, table: str, pages: int) -> float | None:
    """Bytes of a row in its page, without headers; measured on a sample."""
    if pages == 0:
        return None
    # What is longer than 2,000 bytes stands in TOAST, and 18 bytes point to it.
    columns = " + ".join(
        f"CASE WHEN pg_column_size(x.{c.name}) > 2000 THEN 18 ELSE coalesce(pg_column_size(x.{c.name}), 0) END"
        for c in metadata.tables[table].columns
    )
    share = min(100.0, 100.0 * _SAMPLE_PAGES / pages)
    width = connection.scalar(
        text(f"SELECT avg({columns}) FROM public.{table} AS x TABLESAMPLE SYSTEM (:share)"),  # noqa: S608 - the models'
        {"share": share},
    )
    return None if width is None else float(width)


def heap_bloat(
    heap_bytes: int, rows: int, row_width: float | None, fillfactor: int = 100, block: int = 8192
) -> int | None:
    """Estimate of the bytes of a heap that its live rows do not need; None where sample and statistics disagree.

    Args:
        heap_bytes: the heap's size.
        rows: live rows.
        row_width: bytes of a row's values; None where there is no row to measure.
        fillfactor: of the table, in percent; what it leaves free in each page is no bloat.
        block: bytes of a page.
    """
    if row_width is None:
        return heap_bytes if rows <= 0 else None
    if rows <= 0:
        return None  # there are rows, and the statistics do not know of them yet
    tuple_bytes = 4 + 24 + 8 * -(-int(row_width + 0.5) // 8)
    rows_in_page = max((block - 24) * fillfactor // 100 // tuple_bytes, 1)
    needed = -(-rows // rows_in_page) * block
    return max(heap_bytes - needed, 0)


def take_snapshot(connection: Connection) -> list[TableSize]:
    """Measure every table of the catalogue and keep it: one row each in `storage_snapshots`, all of one moment."""
    sizes = table_sizes(connection)
    connection.execute(
        text("""
            INSERT INTO storage_snapshots
                (table_name, row_estimate, table_bytes, index_bytes, toast_bytes, dead_rows, bloat_bytes)
            VALUES (:table, :row_estimate, :table_bytes, :index_bytes, :toast_bytes, :dead_rows, :bloat_bytes)
        """),
        [size.as_dict() for size in sizes],
    )
    return sizes


def newest_snapshot(connection: Connection) -> list[TableSize]:
    """The sizes of the newest snapshot, the largest first; none if there is no snapshot."""
    newest = connection.execute(
        text("""
            SELECT table_name, row_estimate, table_bytes, index_bytes, toast_bytes, dead_rows, bloat_bytes
            FROM storage_snapshots WHERE taken_at = (SELECT max(s.taken_at) FROM storage_snapshots AS s)
        """)
    )
    return sorted((TableSize(*row) for row in newest), key=lambda size: (-size.total_bytes, size.table))


def storage_report(connection: Connection, budget_bytes: int, *, days: int = 90) -> StorageReport:
    """The newest snapshot, how the tables have grown until then, and when the budget will be used up.

    Args:
        connection: as the service.
        budget_bytes: what the permanent tier may take.
        days: how far back the history goes.

    Raises:
        LookupError: there is no snapshot.
    """
    taken_at = connection.scalar(text("SELECT max(taken_at) FROM storage_snapshots"))
    if taken_at is None:
        msg = "there is no storage snapshot to report on: materialise `storage_snapshots` first"
        raise LookupError(msg)
    sizes = newest_snapshot(connection)
    history = _history(connection, taken_at - timedelta(days=days), taken_at)
    growth = [_growth(size.table, size.total_bytes, history.get(size.table, {})) for size in sizes]
    whole: dict[date, int] = {}
    for points in history.values():
        for day, size_bytes in points.items():
            whole[day] = whole.get(day, 0) + size_bytes
    growth.append(_growth(None, sum(size.total_bytes for size in sizes), whole))
    database_bytes = int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    return StorageReport(
        taken_at,
        tuple(sizes),
        tuple(growth),
        history,
        database_bytes,
        budget_bytes,
        days_to_full(database_bytes, budget_bytes, growth[-1].per_day),
    )


def _history(connection: Connection, since: datetime, until: datetime) -> dict[str, dict[date, int]]:
    """Total bytes by table and day (UTC), at the day's last snapshot."""
    rows = connection.execute(
        text("""
            SELECT DISTINCT ON (s.table_name, d.day) s.table_name, d.day,
                   s.table_bytes + s.index_bytes + s.toast_bytes
            FROM storage_snapshots AS s CROSS JOIN LATERAL (SELECT (s.taken_at AT TIME ZONE 'UTC')::date AS day) AS d
            WHERE s.taken_at >= :since AND s.taken_at <= :until
            ORDER BY s.table_name, d.day, s.taken_at DESC
        """),
        {"since": since, "until": until},
    )
    history: dict[str, dict[date, int]] = {}
    for table, day, size_bytes in rows:
        history.setdefault(table, {})[day] = size_bytes
    return history


def _growth(table: str | None, bytes_now: int, points: Mapping[date, int]) -> Growth:
    rates = [
        trend_per_day(
            [(day, float(size)) for day, size in points.items() if day >= max(points) - timedelta(days=days)]
        )
        for days in (7, 30)
    ]
    return Growth(table, bytes_now, *rates)


def trend_per_day(points: Sequence[tuple[date, float]]) -> float | None:
    """The trend of measurements, in units a day; None for fewer than two days.

    The median of the slopes between all pairs (Theil and Sen): one bulk load or one vacuum among thirty days does not
    move it, as it would the difference of the ends or a regression.
    """
    ordered = sorted(points)
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0]).days
        for i, earlier in enumerate(ordered)
        for later in ordered[i + 1 :]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) if slopes else None


def days_to_full(used_bytes: int, budget_bytes: int, per_day: float | None) -> float | None:
    """Days until the budget is used up at this rate; 0 if it is; None if not within ten years."""
    if used_bytes >= budget_bytes:
        return 0.0
    if per_day is None or per_day <= 0:
        return None
    days = (budget_bytes - used_bytes) / per_day
    return days if days <= MAX_DAYS_TO_FULL else None
