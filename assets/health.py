"""Assets of the group `health`: storage, orphans, slow statements, the message queue.

No `from __future__ import annotations`: Dagster reads the annotations of assets.
"""

from typing import TYPE_CHECKING, Final

import dagster as dg
from sqlalchemy import Connection, text

from assets.audit import AUDIT_TABLES
from assets.content import CONTENT_TABLES
from assets.html import Report, Section, Table
from assets.plots import Series, Svg, bars, format_bytes, line
from assets.publish import WEEKLY, publish, snapshot
from assets.specs import MATERIALISED, POSTGRES_STATISTICS, report_spec, table_spec
from resources.postgres.reports import orphans, queue, slow_queries, storage
from resources.postgres.reports.queue import EXPIRED_DAYS, QueueHealth
from resources.postgres.reports.slow_queries import SlowQueries, Statement
from resources.postgres.reports.storage import StorageReport
from resources.postgres.resource import PostgresResource
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from resources.postgres.reports.orphans import Orphans

# --- storage_snapshots -------------------------------------------------------------------------------------------

_ESTIMATES: Final = (
    "Sizes are exact. Rows and dead rows are by Postgres's statistics; bloat is an estimate: what the table takes "
    "beyond its live rows, whose width is measured on a sample of a hundred pages. Partitions count as their table."
)


def report_of_storage(report: StorageReport, database: str) -> Report:
    """The page of a storage report."""
    sizes = Table(
        "Tables, the largest first",
        ["table", "rows", "total_bytes", "table_bytes", "index_bytes", "toast_bytes", "dead rows", "bloat_bytes",
         "bloat share"],
        [
            [s.table, s.row_estimate, s.total_bytes, s.table_bytes, s.index_bytes, s.toast_bytes, s.dead_rows,
             s.bloat_bytes, _share(s.bloat_bytes, s.table_bytes)]
            for s in report.sizes
        ],
        note=_ESTIMATES,
    )  # fmt: skip
    whole = [g for g in report.growth if g.table is None]
    growing = sorted((g for g in report.growth if g.table and g.per_day), key=lambda g: -(g.per_day or 0))
    growth = Table(
        "Growth",
        ["table", "now_bytes", "a day, over 7 days_bytes", "a day, over 30 days_bytes"],
        [[g.table or "all tables", g.bytes_now, g.per_day_7, g.per_day_30] for g in (*whole, *growing)],
        note="The median of the slopes between all pairs of days: one bulk load or one vacuum does not move it. "
        "Tables that do not change are left out; with fewer than two days of snapshots there is no growth yet.",
    )  # fmt: skip
    return Report(
        "storage_snapshots",
        "Storage: size, growth and budget",
        [
            Section("Growth", "", [growth], [_history_plot(report)]),
            Section("Size", "", [sizes]),
        ],
        database,
        {
            "database bytes": report.database_bytes,
            "budget bytes": report.budget_bytes,
            "share of the budget": f"{report.share:.1%}",
            "days to full": "not in ten years" if report.days_to_full is None else int(report.days_to_full),
            "rows (estimate)": sum(size.row_estimate for size in report.sizes),
        },
        report.taken_at,
    )


def _share(part: int | None, whole: int) -> str:
    return "" if part is None or not whole else f"{part / whole:.0%}"


def _history_plot(report: StorageReport) -> Svg:
    days: list[date] = sorted({day for points in report.history.values() for day in points})
    series = [
        Series(table, [float(points[day]) if day in points else None for day in days])
        for table, points in report.history.items()
    ]
    return line(days, series, title="Size of the tables", unit="bytes")


def build_storage_report(connection: Connection, database: str) -> Report:
    """Take a snapshot, and report on it and the ones before."""
    storage.take_snapshot(connection)
    budget = Settings.from_environment().storage_budget_bytes
    report = report_of_storage(storage.storage_report(connection, budget), database)
    rows = connection.execute(text("SELECT count(*) FROM storage_snapshots")).scalar_one()
    return report.with_metadata({"dagster/row_count": rows})


# Their rows are counted by what writes them.
_COUNTED_ELSEWHERE: Final = MATERIALISED | {table.name for table in (*AUDIT_TABLES, *CONTENT_TABLES)}


@dg.multi_asset(name="storage_snapshots", specs=[table_spec("storage_snapshots", freshness_policy=WEEKLY)])
def storage_snapshots(context: dg.AssetExecutionContext, postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """One row for each table: its size now. The report says how it grew, and when the budget will be used up.

    Each table that others write is observed on the way, so that its rows stand at its own asset as well.
    """
    result = publish(postgres, build_storage_report, read_only=False)
    with snapshot(postgres) as connection:
        sizes = storage.newest_snapshot(connection)
    for size in sizes:
        if size.table not in _COUNTED_ELSEWHERE:
            context.log_event(
                dg.AssetObservation(
                    size.table,
                    description=f"about {size.row_estimate:,} rows, {format_bytes(size.total_bytes)}",
                    metadata={
                        "dagster/row_count": size.row_estimate, "estimated": True, "total_bytes": size.total_bytes,
                    },
                )
            )  # fmt: skip
    return result


# --- orphaned_rows -----------------------------------------------------------------------------------------------


def report_of_orphans(found: "Iterable[Orphans]", database: str) -> Report:
    """The page of the orphans."""
    found = list(found)
    present = [o for o in found if o.rows]
    return Report(
        "orphaned_rows",
        "Orphaned rows",
        [
            Section(
                "Found",
                "Rows that have lost what they belong to, or belong to another customer's, where no foreign key "
                "forbids it.",
                [
                    Table(
                        "Orphans", ["kind", "table", "rows", "estimated", "samples", "what it means, and what to do"],
                        [[o.kind, o.table, o.rows, o.estimated, o.samples, o.meaning] for o in present],
                        empty="No orphan of any kind.",
                        note="Estimated: counted on a sample of a large table.",
                    )
                ],
                [bars([o.kind for o in present], [Series("rows", [float(o.rows) for o in present])], title="Orphans",
                      unit="rows")] if present else [],
            ),
            Section(
                "Looked for",
                "",
                [Table("Kinds", ["kind", "table", "rows"], [[o.kind, o.table, o.rows] for o in found])],
            ),
        ],
        database,
        {"orphans": sum(o.rows for o in found), "kinds found": len(present), "kinds looked for": len(found)},
    )  # fmt: skip


def build_orphans_report(connection: Connection, database: str) -> Report:
    """The report over a connection of the service."""
    return report_of_orphans(orphans.orphaned_rows(connection), database)


@dg.multi_asset(
    name="orphaned_rows",
    specs=[
        report_spec(
            "orphaned_rows",
            "Rows that have lost what they belong to: pages without content, vectors of an old model, references to "
            "another customer's rows, urls that a dead worker holds; how many of each, and some of them.",
            group="health",
            deps=["website_content", "page_embeddings", "crawl_frontier", "message_queue"],
            code=build_orphans_report,
            freshness_policy=WEEKLY,
        )
    ],
)
def orphaned_rows(postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """Rows that have lost what they belong to."""
    return publish(postgres, build_orphans_report)


# --- slow_queries ------------------------------------------------------------------------------------------------


def report_of_statements(found: SlowQueries, database: str) -> Report:
    """The page of the slow statements."""
    since = found.since.strftime("%Y-%m-%d %H:%M UTC") if found.since else "unknown"
    said = found.unavailable or (
        f"All statements of this database since {since}. Constants are left out of the texts: $1 or ?."
    )
    top = found.by_total[:10]
    plot = bars(
        [str(number) for number in range(1, len(top) + 1)],
        [Series("statement", [s.total_ms / 1000 for s in top])],
        title="Time of all calls, by number of the statement",
        unit="s",
    )
    return Report(
        "slow_queries",
        "Slow statements",
        [
            Section(
                "Where the time goes",
                said,
                [
                    _statements("By time of all calls", found.by_total),
                    _statements("By time of a call", found.by_mean),
                ],
                [plot] if top else [],
            ),
            Section(
                "Tables read as a whole",
                "Tables of 10,000 rows and more that a statement read from end to end: an index may be missing, or "
                "the statement is a report.",
                [
                    Table(
                        "Sequential scans",
                        ["table", "rows", "scans", "rows read", "index scans"],
                        [[w.table, w.rows, w.scans, w.rows_read, w.index_scans] for w in found.whole_reads],
                        note="Rows are an estimate. Counted since the server's statistics were reset.",
                    )
                ],
            ),
        ],
        database,
        {
            "available": found.unavailable is None,
            "statements shown": len(found.by_total),
            "total seconds": round(found.total_ms / 1000, 1),
            "what to do": found.unavailable or "",
        },
    )


def _statements(title: str, statements: "Iterable[Statement]") -> Table:
    return Table(
        title,
        ["no.", "calls", "total s", "mean ms", "max ms", "rows", "from memory", "temp_bytes", "statement"],
        [
            [number, s.calls, s.total_ms / 1000, s.mean_ms, s.max_ms, s.rows,
             "" if s.cache_share is None else f"{s.cache_share:.0%}", s.temp_bytes, s.query]
            for number, s in enumerate(statements, 1)
        ],
    )  # fmt: skip


def build_statements_report(connection: Connection, database: str) -> Report:
    """The report over a connection of the service."""
    return report_of_statements(slow_queries.slow_queries(connection), database)


@dg.multi_asset(
    name="slow_queries",
    specs=[
        report_spec(
            "slow_queries",
            "Which statements take the time, by pg_stat_statements, without their values; and which large tables are "
            "read from end to end. Where the extension is not there, it says what to do.",
            group="health",
            deps=[POSTGRES_STATISTICS],
            code=build_statements_report,
            freshness_policy=WEEKLY,
        )
    ],
)
def slow_queries_asset(postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """Which statements take the time."""
    return publish(postgres, build_statements_report)


# --- queue_health ------------------------------------------------------------------------------------------------


def report_of_queue(health: QueueHealth, database: str) -> Report:
    """The page of the queue."""
    customers = [
        [c.customer, c.pending, c.leased, c.lease_expired, c.completed, c.dead, c.retries, c.oldest_open]
        for c in health.customers
    ]
    age = health.oldest_open_age
    expired = list(health.expired_unprocessed)
    plot = bars(
        [run for run, _ in expired], [Series("messages", [float(messages) for _, messages in expired])],
        title="Expired before anybody handled them, by retention run",
    )  # fmt: skip
    return Report(
        "queue_health",
        "Message queue",
        [
            Section(
                "Depth",
                "Messages by customer. Lease expired: a handler took it and did not come back in time; it will be "
                "given to another. Dead: failed for good.",
                [
                    Table(
                        "By customer",
                        ["customer", "pending", "leased", "lease expired", "completed", "dead", "retries",
                         "oldest open"],
                        customers,
                        empty="The queue is empty.",
                    )
                ],
                [_depth_plot(health)] if customers else [],
            ),
            Section(
                "Blocked sessions",
                "A session's messages are handled in order: while the first fails, the others wait. The first 100, "
                "the longest-blocked first. To do: see why its handler fails; it dies after its last retry and the "
                "others go on.",
                [
                    Table(
                        "Blocked",
                        ["customer", "message", "state", "retries", "waiting behind it", "since", "next try"],
                        [[b.customer, b.message_id, b.state, b.retries, b.waiting, b.since, b.next_try]
                         for b in health.blocked],
                        empty="No session is blocked.",
                    )
                ],
            ),
            Section(
                "Lost",
                f"Messages that failed for good, and those that expired unhandled in the last {EXPIRED_DAYS} days.",
                [
                    Table("Dead messages by error", ["error", "messages", "newest arrived"], health.dead_by_error),
                    Table("Expired unprocessed, by retention run", ["run", "messages"], expired),
                ],
                [plot] if expired else [],
            ),
        ],
        database,
        {
            "open": health.open,
            "pending": health.total("pending"),
            "leased": health.total("leased"),
            "lease expired": health.total("lease_expired"),
            "dead": health.total("dead"),
            "retries": health.total("retries"),
            "oldest open, minutes": None if age is None else round(age.total_seconds() / 60, 1),
            "blocked sessions": health.blocked_total,
            f"expired unprocessed in {EXPIRED_DAYS} days": sum(n for _, n in health.expired_unprocessed),
        },
        health.at,
    )  # fmt: skip


def _depth_plot(health: QueueHealth) -> Svg:
    shown = health.customers[:20]
    return bars(
        [c.customer for c in shown],
        [
            Series(field.replace("_", " "), [float(getattr(c, field)) for c in shown])
            for field in ("pending", "leased", "lease_expired", "dead")
        ],
        title="Messages that are not done, by customer",
        unit="messages",
    )


def build_queue_report(connection: Connection, database: str) -> Report:
    """The report over a connection of the service."""
    return report_of_queue(queue.queue_health(connection), database)


@dg.multi_asset(
    name="queue_health",
    specs=[
        report_spec(
            "queue_health",
            "How deep the message queue is and how old, what has failed, which sessions are held up by a failing "
            "message, and what expired before anybody handled it.",
            group="health",
            deps=["message_queue", "retention_runs"],
            code=build_queue_report,
            freshness_policy=WEEKLY,
        )
    ],
)
def queue_health(postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """How the message queue is."""
    return publish(postgres, build_queue_report)


HEALTH_ASSETS: Final = (storage_snapshots, orphaned_rows, slow_queries_asset, queue_health)
