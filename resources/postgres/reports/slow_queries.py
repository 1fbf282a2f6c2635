"""Which statements take the time, from pg_stat_statements, and which tables are read as a whole.

The texts are normalised by Postgres (constants are `$1`), but not those of every utility statement: what looks like a
literal is taken out here once more, so that no value of a customer is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.postgres.catalogue import TABLES

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

MAX_TEXT: Final = 300
MAX_STATEMENTS: Final = 25

# A table that is smaller is rightly read as a whole.
_LARGE_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement's figures since the statistics were reset.

    Attributes:
        query: normalised, without literals, cut to `MAX_TEXT`.
        calls: how often.
        total_ms: time of all calls.
        mean_ms: of a call.
        max_ms: of the slowest call.
        rows: returned or touched, of all calls.
        cache_share: of the blocks it read, those that were in memory; None if it read none.
        temp_bytes: written to temporary files.
    """

    query: str
    calls: int
    total_ms: float
    mean_ms: float
    max_ms: float
    rows: int
    cache_share: float | None
    temp_bytes: int


@dataclass(frozen=True, slots=True)
class WholeReads:
    """A large table that queries read as a whole.

    Attributes:
        table: in schema `public`.
        rows: estimate.
        scans: how often it was read as a whole, since the statistics were reset.
        rows_read: by those scans.
        index_scans: beside them.
    """

    table: str
    rows: int
    scans: int
    rows_read: int
    index_scans: int


@dataclass(frozen=True, slots=True)
class SlowQueries:
    """What takes the time.

    Attributes:
        unavailable: why there are no statements, and what to do; None where there are.
        since: reset of the statement statistics.
        total_ms: of all statements of this database.
        by_total: statements that took the most time together.
        by_mean: statements that take the most time each, of those called at least 5 times.
        whole_reads: large tables that are read as a whole.
    """

    unavailable: str | None
    since: datetime | None
    total_ms: float
    by_total: tuple[Statement, ...]
    by_mean: tuple[Statement, ...]
    whole_reads: tuple[WholeReads, ...]


_WHAT_TO_DO: Final = {
    "no extension": "the extension pg_stat_statements is not in this database: have a superuser run "
    "CREATE EXTENSION pg_stat_statements (on Supabase: Database, Extensions)",
    "not loaded": "the server does not load pg_stat_statements: add it to shared_preload_libraries and restart the "
    "server",
    "not allowed": "this role may not read the statements of others: GRANT pg_read_all_stats TO the role of "
    "OMNIOPS_DATABASE_URL",
}


def slow_queries(connection: Connection) -> SlowQueries:
    """What takes the time in this database; says so where it cannot be known."""
    whole = tuple(_whole_reads(connection))
    reason, since, total, by_total, by_mean = _statements(connection)
    return SlowQueries(reason, since, total, by_total, by_mean, whole)


def _statements(
    connection: Connection,
) -> tuple[str | None, datetime | None, float, tuple[Statement, ...], tuple[Statement, ...]]:
    nothing: tuple[Statement, ...] = ()
    schema = connection.scalar(
        text("""
            SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
            WHERE e.extname = 'pg_stat_statements'
        """)
    )
    if schema is None:
        return _WHAT_TO_DO["no extension"], None, 0.0, nothing, nothing
    if not connection.scalar(text("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")):
        return _WHAT_TO_DO["not allowed"], None, 0.0, nothing, nothing
    try:
        # A library that is not loaded makes reading an error; the transaction shall survive it.
        with connection.begin_nested():
            since, total = connection.execute(text(_SUM.format(schema=schema))).one()
            by_total = _top(connection, schema, "s.total_exec_time", 1)
            by_mean = _top(connection, schema, "s.mean_exec_time", 5)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "55000":
            raise
        return _WHAT_TO_DO["not loaded"], None, 0.0, nothing, nothing
    return None, since, float(total), by_total, by_mean


# Schemas are the database's own answer (quote_ident); the order is one of two constants.
_SUM: Final = """
    SELECT (SELECT i.stats_reset FROM {schema}.pg_stat_statements_info AS i), coalesce(sum(s.total_exec_time), 0)
    FROM {schema}.pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
    WHERE d.datname = current_database() AND s.toplevel
"""
_TOP: Final = """
    SELECT s.query, s.calls, s.total_exec_time, s.mean_exec_time, s.max_exec_time, s.rows,
           s.shared_blks_hit AS hit, s.shared_blks_hit + s.shared_blks_read AS blocks,
           s.temp_blks_written * current_setting('block_size')::bigint AS temp_bytes
    FROM {schema}.pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
    WHERE d.datname = current_database() AND s.toplevel AND s.calls >= :calls
    ORDER BY {order} DESC LIMIT :statements
"""


def _top(connection: Connection, schema: str, order: str, calls: int) -> tuple[Statement, ...]:
    rows = connection.execute(
        text(_TOP.format(schema=schema, order=order)), {"calls": calls, "statements": MAX_STATEMENTS}
    )
    return tuple(
        Statement(
            without_literals(row.query),
            row.calls,
            row.total_exec_time,
            row.mean_exec_time,
            row.max_exec_time,
            row.rows,
            row.hit / row.blocks if row.blocks else None,
            row.temp_bytes,
        )
        for row in rows
    )


def _whole_reads(connection: Connection) -> list[WholeReads]:
    rows = connection.execute(
        text("""
            SELECT s.relname, greatest(c.reltuples, s.n_live_tup)::bigint AS rows, s.seq_scan, s.seq_tup_read,
                   coalesce(s.idx_scan, 0)
            FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid
            WHERE s.schemaname = 'public' AND s.relname = ANY (:tables) AND s.seq_scan > 0
              AND greatest(c.reltuples, s.n_live_tup) >= :large
            ORDER BY s.seq_tup_read DESC
        """),
        {"tables": list(TABLES), "large": _LARGE_ROWS},
    )
    return [WholeReads(*row) for row in rows]


# In the order in which they would hide each other. A text that was cut has no closing quote.
_LITERALS: Final = re.compile(
    r"""
    (?P<comment> /\*.*?(?:\*/|$) | --[^\n]* )
    | (?P<name> "(?:[^"]|"")*(?:"|$) )
    | (?P<dollar> \$(?P<tag>[A-Za-z_]\w*)?\$ .*? (?:\$(?(tag)(?P=tag))\$|$) )
    | (?P<escaped> \b[Ee]'(?:[^'\\]|''|\\.)*(?:'|$) )
    | (?P<quoted> (?:\b[BbXxNn])?'(?:[^']|'')*(?:'|$) )
    | (?P<number> (?<![\w$])\d+(?:\.\d*)?(?:[eE][+-]?\d+)? )
    """,
    re.DOTALL | re.VERBOSE,
)


def without_literals(query: str, length: int = MAX_TEXT) -> str:
    """A statement's text on one line, with `?` for each literal, without comments, cut to a length."""

    def replaced(found: re.Match[str]) -> str:
        if found["comment"]:
            return " "
        return found["name"] or "?"

    line = " ".join(_LITERALS.sub(replaced, query).split())
    return line if len(line) <= length else line[: length - 1] + "…"
