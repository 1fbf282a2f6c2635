"""Jobs and results on given days, and what their daily statistics must be, counted in plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from tests.support.databases import Database

# A Monday long enough ago that nothing on it is in the future.
DAY = date(2026, 3, 2)
ENDED = ("completed", "failed", "cancelled")

COMPARED = (
    "jobs_completed", "jobs_failed", "jobs_cancelled", "jobs_unfinished", "total_pages", "successful_pages",
    "failed_pages", "skipped_pages", "changed_pages", "unchanged_pages", "retries", "bytes", "p50_ms", "p95_ms",
    "p99_ms", "active_seconds", "pages_per_second", "pages_by_reason", "pages_by_http_status",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A result; `at` in seconds after midnight of DAY."""

    at: int
    status: str = "success"
    http_status: int | None = 200
    ms: int | None = 100
    tries: int | None = 1
    bytes: int | None = 1000
    changed: bool | None = True
    skip_reason: str | None = None
    error: str | None = None

    @property
    def moment(self) -> datetime:
        return at(self.at)


@dataclass(frozen=True)
class Job:
    """A job; times in seconds after midnight of DAY."""

    customer: str = "acme"
    domain: str = "shop.example"
    status: str = "completed"
    created: int = 0
    started: int | None = 1
    completed: int | None = 600
    paused: float = 0.0
    pages: Sequence[Page] = field(default=())


def at(seconds: int) -> datetime:
    return datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC) + timedelta(seconds=seconds)


def on(day: int, *pages: Page, **fields: Any) -> Job:
    """A job that is done within an hour of a day, so many after DAY."""
    begin = day * 86_400 + 3_600
    moved = tuple(Page(**{**page.__dict__, "at": begin + 60 + page.at}) for page in pages)
    return Job(created=begin, started=begin + 1, completed=begin + 3_000, pages=moved, **fields)


def fill(database: Database, jobs: Iterable[Job]) -> dict[str, UUID]:
    """Store the jobs (j0, j1, …) and their results; customers' ids by slug."""
    jobs = list(jobs)
    with database.engine.begin() as connection:
        known = {row.slug: row.id for row in connection.execute(text("SELECT slug, id FROM customers"))}
        for slug in sorted({job.customer for job in jobs} - set(known)):
            known[slug] = connection.scalar(
                text("INSERT INTO customers (name, slug) VALUES (:slug, :slug) RETURNING id"), {"slug": slug}
            )
        first = connection.scalar(text("SELECT count(*) FROM scrape_jobs")) or 0
        for number, job in enumerate(jobs, start=first):
            connection.execute(
                text("""INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at,
                                                 started_at, completed_at, paused_seconds)
                        VALUES (:id, :customer, :domain, 'full_crawl', :status, :created, :started, :completed,
                                :paused)"""),
                {"id": f"j{number}", "customer": known[job.customer], "domain": job.domain, "status": job.status,
                 "created": at(job.created), "started": None if job.started is None else at(job.started),
                 "completed": None if job.completed is None else at(job.completed), "paused": job.paused},
            )  # fmt: skip
            add_pages(connection, f"j{number}", known[job.customer], job.pages)
    return known


def add_pages(connection: Any, job_id: str, customer: UUID, pages: Sequence[Page], start: int = 0) -> None:
    if not pages:
        return
    connection.execute(
        text("""INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status, processing_time_ms,
                    error_message, skip_reason, tries, bytes, changed, created_at)
                SELECT :job, :customer, 'https://shop.example/' || n, p.status, p.http_status, p.ms, p.error, p.skip,
                       p.tries, p.bytes, p.changed, p.at
                FROM unnest(CAST(:n AS integer[]), CAST(:status AS text[]), CAST(:http AS integer[]),
                            CAST(:ms AS integer[]), CAST(:error AS text[]), CAST(:skip AS text[]),
                            CAST(:tries AS integer[]), CAST(:bytes AS bigint[]), CAST(:changed AS boolean[]),
                            CAST(:at AS timestamptz[]))
                         AS p (n, status, http_status, ms, error, skip, tries, bytes, changed, at)"""),
        {"job": job_id, "customer": customer, "n": list(range(start, start + len(pages))),
         "status": [p.status for p in pages], "http": [p.http_status for p in pages], "ms": [p.ms for p in pages],
         "error": [p.error for p in pages], "skip": [p.skip_reason for p in pages],
         "tries": [p.tries for p in pages], "bytes": [p.bytes for p in pages],
         "changed": [p.changed for p in pages], "at": [p.moment for p in pages]},
    )  # fmt: skip


# --- the oracle ---------------------------------------------------------------------------------------------------


def expected(jobs: Iterable[Job]) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """What must stand in daily_job_stats by day and slug, and in daily_domain_stats by day, slug and domain."""
    pages: dict[Any, list[tuple[int, Page]]] = defaultdict(list)
    ended: dict[Any, list[Job]] = defaultdict(list)
    for number, job in enumerate(jobs):
        moment = at(job.completed if job.completed is not None else job.created)
        for key in ((moment.date(), job.customer), (moment.date(), job.customer, job.domain)):
            ended[key].append(job)
        for page in job.pages:
            for key in ((page.moment.date(), job.customer), (page.moment.date(), job.customer, job.domain)):
                pages[key].append((number, page))
    rows: dict[Any, dict[str, Any]] = {}
    for key in {*pages, *ended}:
        rows[key] = _row([page for _, page in pages[key]], ended[key])
        if len(key) == 3:
            rows[key]["jobs"] = len({number for number, _ in pages[key]})
    return {k: v for k, v in rows.items() if len(k) == 2}, {k: v for k, v in rows.items() if len(k) == 3}


def _row(pages: list[Page], jobs: list[Job]) -> dict[str, Any]:
    statuses = Counter(job.status for job in jobs)
    outcomes = Counter(page.status for page in pages)
    reasons = Counter(reason(page) for page in pages if page.status != "success")
    times = sorted(page.ms for page in pages if page.ms is not None)
    active = sum(active_seconds(job) for job in jobs)
    return {
        "jobs_completed": statuses["completed"], "jobs_failed": statuses["failed"],
        "jobs_cancelled": statuses["cancelled"],
        "jobs_unfinished": statuses["queued"] + statuses["running"] + statuses["paused"],
        "total_pages": len(pages), "successful_pages": outcomes["success"], "failed_pages": outcomes["failed"],
        "skipped_pages": outcomes["skipped"], "changed_pages": sum(page.changed is True for page in pages),
        "unchanged_pages": sum(
            page.changed is False or (page.status != "success" and reason(page) == "not_modified") for page in pages
        ),
        "retries": sum(max(0, (page.tries or 0) - 1) for page in pages),
        "bytes": min(sum(page.bytes or 0 for page in pages), 2**63 - 1),
        "p50_ms": nearest_rank(times, 0.5), "p95_ms": nearest_rank(times, 0.95), "p99_ms": nearest_rank(times, 0.99),
        "active_seconds": active, "pages_per_second": len(pages) / active if active else None,
        "pages_by_reason": dict(reasons),
        "pages_by_http_status": dict(Counter(str(p.http_status) for p in pages if p.http_status is not None)),
    }  # fmt: skip


def reason(page: Page) -> str:
    return (page.skip_reason or (page.error or "").split(":")[0] or "unknown")[:80]


def active_seconds(job: Job) -> float:
    if job.status not in ENDED or job.completed is None or job.started is None:
        return 0.0
    return max(0.0, job.completed - job.started - job.paused)


def nearest_rank(times: Sequence[int], part: float) -> int | None:
    return times[max(math.ceil(part * len(times)), 1) - 1] if times else None


# --- what is there ------------------------------------------------------------------------------------------------


def stored(database: Database) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Both tables, keyed as `expected` does."""
    columns = ", ".join(COMPARED)
    customers = database.rows(f"""
        SELECT s.day, c.slug, {columns} FROM daily_job_stats AS s JOIN customers AS c ON c.id = s.customer_id""")
    domains = database.rows(f"""
        SELECT s.day, c.slug, s.domain, s.jobs, {columns}
        FROM daily_domain_stats AS s JOIN customers AS c ON c.id = s.customer_id""")
    return (
        {(row.pop("day"), row.pop("slug")): row for row in customers},
        {(row.pop("day"), row.pop("slug"), row.pop("domain")): row for row in domains},
    )


def rounded(
    tables: tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]],
) -> tuple[dict[Any, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """The same, with fractions to a millionth: sums of floats depend on their order."""

    def near(value: Any) -> Any:
        return round(value, 6) if isinstance(value, float) else value

    first, second = tables
    return (
        {key: {name: near(value) for name, value in row.items()} for key, row in first.items()},
        {key: {name: near(value) for name, value in row.items()} for key, row in second.items()},
    )
