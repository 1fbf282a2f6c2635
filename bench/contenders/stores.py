"""The stores as a contender finds them: the embedded servers that the benchmark started, and a job of its own."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.measure import Meter
from resources import stack
from resources.crawler.urls import site_of
from resources.postgres.customers import ensure_customer
from resources.services import status
from resources.settings import Settings

if TYPE_CHECKING:
    from resources.crawler.plan import CrawlPlan
    from resources.postgres.jobs import PersistentJobManager


@dataclass(frozen=True, slots=True)
class Order:
    """A job that is recorded and running."""

    job_id: str
    customer_id: str
    manager: PersistentJobManager


def new_job(plan: CrawlPlan) -> Order:
    """Record a job of a customer whom nobody knew, so that every row is new; an incremental one is of the last."""
    manager = stack.get_persistent_job_manager()
    job_id = f"bench-{uuid.uuid4().hex[:12]}"
    with stack.database_engine().begin() as connection:
        slug = job_id
        if plan.job_type == "incremental":
            slug = connection.scalar(text("SELECT slug FROM customers ORDER BY created_at DESC LIMIT 1")) or job_id
        customer_id = ensure_customer(connection, slug)
    manager.create_job(
        job_id,
        None,
        {
            "customer_id": customer_id,
            "domain": site_of(plan.urls[0]),
            "job_type": plan.job_type,
            "config": plan.as_config(),
        },
    )
    manager.update_job_status(job_id, "running")
    return Order(job_id, str(customer_id), manager)


def meter(contender: str) -> Meter:
    """A meter that knows the servers."""
    pids = {service.name: service.pid for service in status(Settings.from_environment())}
    return Meter(contender, postgres=pids["postgres"], valkey=pids["valkey"])


def open_connections(count: int = 2) -> None:
    """Connect now: a connection is set-up, and is not measured."""
    engine = stack.database_engine()
    connections = [engine.connect() for _ in range(count)]
    for connection in connections:
        connection.execute(text("SELECT 1"))
        connection.close()
