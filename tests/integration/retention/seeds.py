"""Rows of a given age, for tests of retention and erasure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from resources.postgres.catalogue import TABLES

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import Database


def make_customer(database: Database, slug: str) -> UUID:
    with database.engine.begin() as connection:
        made: UUID = connection.execute(
            text("INSERT INTO customers (name, slug) VALUES (:slug, :slug) RETURNING id"), {"slug": slug}
        ).scalar_one()
    return made


def execute(database: Database, sql: str, **parameters: Any) -> int:
    with database.engine.begin() as connection:
        return connection.execute(text(sql), parameters).rowcount


def make_job(
    database: Database, customer: UUID, job_id: str, *, age_days: float, results: int = 0, status: str = "completed",
    frontier: int = 0,
) -> None:  # fmt: skip
    """A job that ended so many days ago (or, unfinished, began then), with its results of an hour before."""
    execute(
        database,
        """INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, started_at,
                                    completed_at)
           SELECT :job, :customer, 'shop.example', 'full_crawl', :status, t.at - interval '2 hours',
                  t.at - interval '2 hours', CASE WHEN :ended THEN t.at END
           FROM (SELECT now() - make_interval(secs => :age * 86400) AS at) AS t""",
        job=job_id, customer=customer, status=status, age=age_days,
        ended=status in ("completed", "failed", "cancelled"),
    )  # fmt: skip
    execute(
        database,
        """INSERT INTO scrape_job_results (job_id, customer_id, url, status, processing_time_ms, skip_reason, bytes,
                                           tries, created_at)
           SELECT :job, :customer, 'https://shop.example/' || n,
                  (ARRAY['success', 'success', 'failed', 'skipped'])[1 + n % 4], n,
                  CASE WHEN n % 4 = 3 THEN 'robots' END, 100, 1 + n % 2,
                  now() - make_interval(secs => :age * 86400) - interval '1 hour'
           FROM generate_series(1, :n) AS n""",
        job=job_id, customer=customer, n=results, age=age_days,
    )  # fmt: skip
    execute(
        database,
        """INSERT INTO crawl_frontier (job_id, url_hash, customer_id, url, depth)
           SELECT :job, n, :customer, 'https://shop.example/' || n, 1 FROM generate_series(1, :n) AS n""",
        job=job_id, customer=customer, n=frontier,
    )  # fmt: skip


def make_messages(
    database: Database, customer: UUID, count: int, *, expired_hours: float, status: str = "pending",
    leased_seconds: float | None = None, session: str = "s",
) -> None:  # fmt: skip
    execute(
        database,
        """INSERT INTO message_queue (customer_id, session_id, message_key, message_data, status, expires_at,
                                      leased_until)
           SELECT :customer, :session, gen_random_uuid()::text, '{}', :status,
                  now() - make_interval(secs => :hours * 3600),
                  now() + make_interval(secs => CAST(:leased AS double precision))
           FROM generate_series(1, :n)""",
        customer=customer, n=count, hours=expired_hours, status=status, leased=leased_seconds, session=session,
    )  # fmt: skip


def make_conversation(
    database: Database, customer: UUID, *, age_days: float, messages: int = 2, domain: str | None = None,
    last_message_days: float | None = None,
) -> UUID:  # fmt: skip
    with database.engine.begin() as connection:
        made: UUID = connection.execute(
            text("""INSERT INTO conversations (customer_id, session_id, domain, created_at)
                    VALUES (:customer, 's', :domain, now() - make_interval(secs => :age * 86400)) RETURNING id"""),
            {"customer": customer, "domain": domain, "age": age_days},
        ).scalar_one()
        connection.execute(
            text("""INSERT INTO messages (conversation_id, customer_id, role, content, created_at)
                    SELECT :id, :customer, 'user', 'hello', now() - make_interval(secs => :age * 86400)
                    FROM generate_series(1, :n)"""),
            {"id": made, "customer": customer, "n": messages,
             "age": age_days if last_message_days is None else last_message_days},
        )  # fmt: skip
        connection.execute(
            text("INSERT INTO conversation_metadata (conversation_id, customer_id) VALUES (:id, :customer)"),
            {"id": made, "customer": customer},
        )
    return made


def checksums(database: Database, customer: UUID) -> dict[str, str]:
    """One digest for each table over all rows of a customer, so that a test can say that nothing has changed."""
    found = {}
    for entry in TABLES.values():
        if entry.tenant_column is not None:
            rows = database.rows(
                f"SELECT CAST(x AS text) AS row FROM {entry.name} AS x WHERE {entry.tenant_column} = :id ORDER BY 1",
                id=customer,
            )
            found[entry.name] = f"{len(rows)} {hashlib.sha256(repr(rows).encode()).hexdigest()}"
    return found


def counts(database: Database) -> dict[str, int]:
    """Rows of every table of the catalogue."""
    return {name: int(str(database.value(f"SELECT count(*) FROM {name}"))) for name in TABLES}
