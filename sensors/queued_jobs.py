"""`queued_jobs_sensor`: a job that another program queued becomes a run, exactly once.

Another program queues a crawl by one INSERT into `scrape_jobs`. Nothing is claimed here: the sensor asks for a run by
a key, and the run's first op moves the job from `queued` to `running`. So a program that dies in between loses
nothing, and a tick that is repeated asks for the same run.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the sensor's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg
from sqlalchemy import Connection, Engine, text

from resources.crawler.crawl_order import CrawlOrder, InvalidOrder, check_order
from resources.crawler.plan import CrawlPlan
from resources.crawler.stored_order import ORDER_TYPES, queued_config
from resources.crawler.urls import InvalidUrl, normalise, site_of
from resources.postgres.jobs import PersistentJobManager
from resources.postgres.resource import PostgresResource
from resources.run_tags import TAG_CUSTOMER, TAG_JOB
from sensors.crawl_jobs import (
    CRAWL_JOB,
    IN_FLIGHT,
    MAX_CONFIG_BYTES,
    WAITING,
    Decision,
    End,
    JobRun,
    Launch,
    Status,
    Tick,
    Wait,
    close_dead_run,
    end_job,
    job_run,
    next_attempt,
    request_run,
    runs_in_flight,
    runs_of,
)

INTERVAL_SECONDS: Final = 10
# A run costs the daemon up to a second to start; the next tick goes on.
MAX_REQUESTS: Final = 20
# Runs that wait already. More would only be the same queue in another place, where nobody's turn is looked after.
MAX_WAITING: Final = 100
# Rows looked at in a tick; bad ones are more quickly done with than a run is started.
MAX_ROWS: Final = 100
# A run that ends without having claimed the job was killed, or could not start.
MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A row that waits for its run.

    Attributes:
        job_id: its key.
        customer: slug.
        domain: as the row has it.
        job_type: as the row has it.
        config: JSON text, since what stands there is another program's; None: too long to be read.
    """

    job_id: str
    customer: str
    domain: str
    job_type: str
    config: str | None


# --- what a row asks for ----------------------------------------------------------------------------------------


def read_config(job: QueuedJob) -> dict[str, Any]:
    """The row's configuration: names that are known, values of the right type.

    Raises:
        InvalidOrder: the first thing that is wrong.
    """
    if job.config is None:
        msg = f"config has more than {MAX_CONFIG_BYTES:,} bytes: name fewer urls, a crawl finds the others"
        raise InvalidOrder(msg)
    try:
        config = json.loads(job.config)
    except (ValueError, RecursionError) as error:
        msg = f"config cannot be read as JSON: {error}"
        raise InvalidOrder(msg) from error
    if not isinstance(config, dict):
        msg = f"config must be an object, not {type(config).__name__}"
        raise InvalidOrder(msg)
    return queued_config(config)


def read_order(job: QueuedJob) -> tuple[CrawlOrder, CrawlPlan, dict[str, Any]]:
    """What the row orders: as an order, checked as a plan, and as the run's configuration.

    Raises:
        InvalidOrder: the first thing that is wrong.
    """
    config = read_config(job)
    said = config.pop("job_type", job.job_type)
    if said != job.job_type:
        msg = f"config.job_type is {said[:40]!r}, but the job's own is {job.job_type!r}: leave it out"
        raise InvalidOrder(msg)
    given = {name: value for name, value in config.items() if name in ORDER_TYPES}
    order = replace(
        CrawlOrder(customer=job.customer, job_id=job.job_id, job_type=job.job_type, **given),
        urls=given.get("urls") or (_home_page(job.domain),),
    )
    plan = check_order(order)
    run_config = {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in given.items()},
        "urls": list(plan.urls),
        "customer": job.customer,
        "job_id": job.job_id,
        "job_type": job.job_type,
    }
    return order, plan, run_config


def _home_page(domain: str) -> str:
    url = f"https://{domain}/"
    try:
        normal = normalise(url)
    except InvalidUrl as error:
        msg = f"domain {domain[:80]!r} is no host ({error}): correct it, or name urls in config"
        raise InvalidOrder(msg) from error
    if normal != f"https://{site_of(normal)}/" or "@" in domain:
        msg = f"domain {domain[:80]!r} is more than a host: name urls in config"
        raise InvalidOrder(msg)
    return normal


# --- what is done with it ---------------------------------------------------------------------------------------


def decide(job: QueuedJob, runs: Sequence[JobRun], now: datetime) -> Decision:
    """What becomes of a queued job. Pure: of the row, its runs (oldest first) and the time alone.

    Raises:
        InvalidOrder: the row cannot be crawled as it stands.
    """
    in_flight = [run for run in runs if run.status in IN_FLIGHT and not run.has_had_its_time(now)]
    unsubmitted = [run for run in in_flight if run.unsubmitted]
    if in_flight and not unsubmitted:
        return Wait(f"run {in_flight[-1].run_id} has it")
    ended = [run for run in runs if run not in in_flight]
    if not unsubmitted and ended and ended[-1].status is Status.CANCELED:
        return End(job.job_id, "cancelled", f"its run {ended[-1].run_id} was cancelled before it began")
    failed = [run for run in ended if run.status is not Status.CANCELED]
    if not unsubmitted and len(failed) >= MAX_ATTEMPTS:
        return End(
            job.job_id,
            "failed",
            f"{len(failed)} runs ended before they could begin with it, the last is {failed[-1].run_id}: "
            "its log says why; queue a new job when that is mended",
        )
    _, plan, run_config = read_order(job)
    attempt = unsubmitted[-1].attempt if unsubmitted else None
    return Launch(
        request_run(
            job.job_id,
            attempt or next_attempt(runs),
            run_config,
            # The limit for a domain is about the host that is asked, whatever the row calls it.
            domain=site_of(plan.urls[0]),
            customer=job.customer,
        )
    )


# Whose turn it is: the customer with the fewest runs in flight, in turns; of a customer's, its domains in turns; the
# oldest first. Configurations come as text, and only where they are short: one must not spoil the reading of all.
_QUEUE = text("""
    WITH busy AS (
        SELECT b.slug, count(*) AS runs FROM unnest(CAST(:busy AS text[])) AS b (slug) GROUP BY b.slug
    ), waiting AS (
        SELECT j.job_id, j.customer_id, j.domain, j.job_type, j.created_at,
               row_number() OVER (PARTITION BY j.customer_id, j.domain ORDER BY j.created_at, j.job_id) AS of_domain
        FROM scrape_jobs AS j
        WHERE j.status = 'queued' AND j.run_id IS NULL AND j.job_id <> ALL (CAST(:in_flight AS text[]))
    ), turns AS (
        SELECT w.*, c.slug, coalesce(b.runs, 0) + row_number() OVER (
                   PARTITION BY w.customer_id ORDER BY w.of_domain, w.created_at, w.job_id) AS turn
        FROM waiting AS w JOIN customers AS c ON c.id = w.customer_id LEFT JOIN busy AS b ON b.slug = c.slug
        ORDER BY turn, w.created_at, w.job_id LIMIT :limit
    )
    SELECT t.job_id, t.slug AS customer, t.domain, t.job_type,
           CASE WHEN octet_length(CAST(j.config AS text)) <= :longest THEN CAST(j.config AS text) END AS config
    FROM turns AS t JOIN scrape_jobs AS j ON j.job_id = t.job_id
    ORDER BY t.turn, t.created_at, t.job_id
""")


def read_queue(
    connection: Connection, in_flight: Sequence[str], busy: Sequence[str], *, limit: int = MAX_ROWS
) -> list[QueuedJob]:
    """Jobs that wait for a run, in the order of their turns.

    Args:
        connection: as the service.
        in_flight: jobs that have a run already.
        busy: customer of each run in flight.
        limit: at most so many.
    """
    rows = connection.execute(
        _QUEUE,
        {"in_flight": list(in_flight), "busy": list(busy), "limit": limit, "longest": MAX_CONFIG_BYTES},
    )
    return [QueuedJob(*row) for row in rows]


def look_at_queue(engine: Engine, manager: PersistentJobManager, instance: dg.DagsterInstance, now: datetime) -> Tick:
    """Read the queue, decide for each job on its own, and end those that cannot be crawled.

    Raises:
        DBAPIError: the queue cannot be read. Nothing is taken for an empty one.
    """
    tick = Tick()
    records = runs_in_flight(instance)
    room = MAX_WAITING - sum(record.dagster_run.status in WAITING for record in records)
    has_run, busy = [], []
    for record in records:
        job_id = record.dagster_run.tags.get(TAG_JOB)
        run = job_run(record, job_id or "")
        if job_id is None or run.has_had_its_time(now):
            continue
        busy.append(record.dagster_run.tags.get(TAG_CUSTOMER, ""))
        if not run.unsubmitted:
            has_run.append(job_id)
    with engine.connect() as connection:
        jobs = read_queue(connection, has_run, busy)
    runs = runs_of(instance, [job.job_id for job in jobs])
    for job in jobs:
        with tick.one_job(job.job_id):
            decision = _decide(job, runs[job.job_id], now)
            if not isinstance(decision, Wait):
                for run in runs[job.job_id]:
                    if run.has_had_its_time(now):
                        close_dead_run(instance, run, f"its job {job.job_id} waits for another run")
            _carry_out(tick, decision, min(MAX_REQUESTS, room), engine, manager)
    return tick


def _carry_out(tick: Tick, decision: Decision, most: int, engine: Engine, manager: PersistentJobManager) -> None:
    if isinstance(decision, End):
        if end_job(engine, manager, decision, expected="queued"):
            tick.ended.append(decision)
    elif isinstance(decision, Wait):
        tick.waiting[decision.why] += 1
    elif len(tick.requests) < most:
        tick.requests.append(decision.request)
    else:
        tick.waiting["its turn comes later"] += 1


def _decide(job: QueuedJob, runs: Sequence[JobRun], now: datetime) -> Decision:
    try:
        return decide(job, runs, now)
    except InvalidOrder as error:
        return End(job.job_id, "failed", f"it cannot be crawled as it was queued: {error}")


@dg.sensor(
    job_name=CRAWL_JOB,
    minimum_interval_seconds=INTERVAL_SECONDS,
    # Without it what other programs queue is never crawled.
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Jobs that other programs queued in scrape_jobs become runs, each exactly once. Bad ones fail, with "
    "the reason.",
)
def queued_jobs_sensor(
    context: dg.SensorEvaluationContext, postgres: PostgresResource
) -> dg.SensorResult | dg.SkipReason:
    """Start what was queued."""
    tick = look_at_queue(postgres.engine(), postgres.job_manager(), context.instance, datetime.now(UTC))
    return tick.answer(context)
