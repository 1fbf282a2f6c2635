"""What row-level security costs the audit trail's queries: as a tenant against as the service.

    python -m bench.tenancy [--tenants 50] [--rows 200000] [--rounds 15] [--per-round 40]

An embedded Postgres of its own is filled, vacuumed and analysed. The same statements that the job manager sends are
sent by both, on one connection each, in rounds that alternate; a round is so many transactions. Two times are taken:
of the query alone, and of the whole transaction (BEGIN, role and claims, query, COMMIT), which both kinds of access
pay alike. The median over all is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, text

from resources.postgres.connection import connect_once, dispose_engines, driver_url, engine_for
from resources.postgres.jobs import PersistentJobManager
from resources.postgres.migrate import migrate
from resources.postgres.tenancy import service_connection, tenant_connection
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine

_WANTED_RATIO = 1.10
_JOBS_OF_A_TENANT = 8
_FILL = (
    """INSERT INTO customers (id, name, slug)
       SELECT ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'Customer ' || i, 'c' || i
       FROM generate_series(1, :tenants) AS i""",
    """INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, created_at)
       SELECT c.slug || '-' || j, c.id, 'shop.example', 'full_crawl', now() - make_interval(hours => j)
       FROM customers AS c, generate_series(1, :jobs) AS j""",
    """INSERT INTO scrape_job_results (
           job_id, customer_id, url, status, http_status, processing_time_ms, content_hash)
       SELECT j.job_id, j.customer_id, 'https://shop.example/products/' || lpad(u::text, 7, '0'),
              (ARRAY['success', 'success', 'success', 'failed', 'skipped'])[1 + u % 5], 200, u % 900, md5(u::text)
       FROM scrape_jobs AS j, generate_series(1, :per_job) AS u""",
)
_TENANT = "00000000-0000-4000-8000-000000000007"
_JOB = "c7-3"

# The service asks for the same rows by naming the customer; the tenant need not.
_QUESTIONS: dict[str, tuple[Callable[[PersistentJobManager], object], Callable[[PersistentJobManager], object]]] = {
    "jobs of a customer": (lambda m: m.list_jobs(), lambda m: m.list_jobs(customer="c7")),
    "first page of results (1,000 rows)": (
        lambda m: m.get_job_results_from_postgres(_JOB),
        lambda m: m.get_job_results_from_postgres(_JOB),
    ),
    "page of 100 in the middle": (
        lambda m: m.get_job_results_from_postgres(_JOB, after_url="https://shop.example/products/0000250", limit=100),
        lambda m: m.get_job_results_from_postgres(_JOB, after_url="https://shop.example/products/0000250", limit=100),
    ),
    "statistics of a job": (lambda m: m.get_job_stats(_JOB), lambda m: m.get_job_stats(_JOB)),
    "reasons of a job": (lambda m: m.count_by_reason(_JOB), lambda m: m.count_by_reason(_JOB)),
}


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.tenancy", description=__doc__)
    parser.add_argument("--tenants", type=int, default=50)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--per-round", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="omniops-bench-", ignore_cleanup_errors=True) as folder:
        settings = Settings(Path(folder) / "home", None, None, None)
        with acquire(settings, redis=False) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            _fill(endpoints.database_url, endpoints.owner_database_url, options.tenants, options.rows)
            _compare(endpoints.database_url, options)
            dispose_engines()


def _fill(url: str, owner_url: str, tenants: int, rows: int) -> None:
    per_job = max(1, rows // (tenants * _JOBS_OF_A_TENANT))
    with service_connection(engine=engine_for(url)) as connection:
        for statement in _FILL:
            connection.execute(text(statement), {"tenants": tenants, "jobs": _JOBS_OF_A_TENANT, "per_job": per_job})
    with connect_once(owner_url) as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM (ANALYZE)"))


def _statement(engine: Engine, ask: Callable[[PersistentJobManager], object]) -> tuple[str, Any]:
    """The statement, with its parameters, that a method of the manager sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        ask(PersistentJobManager(engine, None))
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return sent[-1]


def _compare(url: str, options: argparse.Namespace) -> None:
    # One connection each, so that neither kind's prepared plans are thrown away by the other's role.
    engines = {kind: create_engine(driver_url(url), pool_size=1, max_overflow=0) for kind in ("tenant", "service")}

    def connect(kind: str) -> AbstractContextManager[Connection]:
        if kind == "tenant":
            return tenant_connection(_TENANT, engine=engines[kind])
        return service_connection(engine=engines[kind])

    print(
        f"{options.rows:,} results of {options.tenants} tenants; {options.rounds} alternating rounds of "
        f"{options.per_round} transactions; embedded Postgres, unix socket, one client; medians in ms\n"
    )
    print(f"{'':36}{'query alone':>30}{'whole transaction':>32}")
    print(f"{'':36}{'service':>10}{'tenant':>10}{'ratio':>10}  {'service':>10}{'tenant':>10}{'ratio':>10}")
    plans: dict[str, list[str]] = {}
    totals = {"service": 0.0, "tenant": 0.0}
    worst = 0.0
    for question, (as_tenant, as_service) in _QUESTIONS.items():
        sent = {
            "tenant": _statement(engine_for(url), as_tenant),
            "service": _statement(engine_for(url), as_service),
        }
        alone: dict[str, list[float]] = {"tenant": [], "service": []}
        whole: dict[str, list[float]] = {"tenant": [], "service": []}
        found: dict[str, int] = {}
        for number in range(options.rounds + 1):
            for kind in ("service", "tenant") if number % 2 else ("tenant", "service"):
                for _ in range(options.per_round):
                    begun = time.perf_counter()
                    with connect(kind) as connection:
                        asked = time.perf_counter()
                        rows = connection.exec_driver_sql(*sent[kind]).all()
                        answered = time.perf_counter()
                    if number:  # the first round warms up
                        alone[kind].append((answered - asked) * 1000)
                        whole[kind].append((time.perf_counter() - begun) * 1000)
                    found[kind] = len(rows)
        if found["tenant"] != found["service"] or not found["tenant"]:
            msg = f"{question}: the tenant sees {found['tenant']} rows, and the service {found['service']}"
            raise SystemExit(msg)
        cells = []
        for times in (alone, whole):
            service, tenant = (statistics.median(times[kind]) for kind in ("service", "tenant"))
            cells.append(f"{service:10.3f}{tenant:10.3f}{tenant / service:10.3f}")
            if times is whole:
                totals["service"] += service
                totals["tenant"] += tenant
                worst = max(worst, tenant / service)
        print(f"{question:36}{'  '.join(cells)}")
        with connect("tenant") as connection:
            statement, parameters = sent["tenant"]
            plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS OFF) {statement}", parameters)
            plans[question] = [line for line in plan.scalars() if _is_key_line(line)]
    print("\nPlans as the tenant (what reads, and how often the context is read: loops=1 is once a query)\n")
    for question, lines in plans.items():
        print(question)
        print("\n".join(lines))
    print()
    overall = totals["tenant"] / totals["service"]
    for what, ratio in (("One of each", overall), ("The worst", worst)):
        verdict = "within" if ratio <= _WANTED_RATIO else "MORE THAN"
        print(f"{what}, whole transactions: {ratio:.3f} of the service's, {verdict} the wanted 10 %.")
    print(json.dumps({"ratio": round(overall, 3), "worst_ratio": round(worst, 3), "wanted": _WANTED_RATIO}))
    for engine in engines.values():
        engine.dispose()


def _is_key_line(line: str) -> bool:
    return any(word in line for word in ("Scan", "InitPlan", "Result", "Index Cond", "Filter:", "Execution Time"))


if __name__ == "__main__":
    main()
