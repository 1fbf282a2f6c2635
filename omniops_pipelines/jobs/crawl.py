"""The job `crawl`: plan_crawl → crawl_pages, once for each worker → complete_crawl.

The ops are thin. What is asked for is checked by `crawl_order`, what is fetched is `resources.crawler`'s, what is
kept is `resources.postgres`'s; here they meet Dagster: configuration, progress, cancellation, materialisations.

Annotations are evaluated here (no `from __future__ import annotations`): Dagster reads the ops' own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import dagster as dg
from pydantic import Field
from sqlalchemy import text

from assets.audit import AUDIT_TABLES
from assets.content import CONTENT_TABLES
from assets.row_counts import count_rows
from omniops_pipelines import progress, shards
from omniops_pipelines.job_summary import summarise
from omniops_pipelines.jobs.embedding import embed_pages
from omniops_pipelines.jobs.executor import crawl_executor
from omniops_pipelines.jobs.job_record import JobRecord
from resources.awaited_thread import AwaitedThread
from resources.content.search_cache import forget_searches
from resources.crawler import completion, crawl_order
from resources.crawler.crawl_order import CrawlOrder, InvalidOrder, PlannedCrawl, RefusedOrder
from resources.crawler.plan import (
    DEFAULT_CONCURRENCY,
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_DEPTH,
    DEFAULT_MAX_PAGES,
    DEFAULT_MAX_SECONDS,
    CrawlOutcome,
    CrawlPlan,
    CrawlProgress,
)
from resources.crawler.politeness import shared_limiter
from resources.crawler.reading import SiteMemory
from resources.crawler.site_access import UnusableAccess, access_for_crawl
from resources.crawler.stored_order import plan_for_queued_job
from resources.crawler.tunnel import ProxyUnusable
from resources.crawler.urls import site_of
from resources.postgres.connection import DatabaseError, DatabaseUnreachable
from resources.postgres.content import index_waiting_content
from resources.postgres.customers import ensure_customer
from resources.postgres.frontier import CrawlFrontier, FinishedUrl, WorkerReplaced
from resources.postgres.job_status import InvalidJobTransition
from resources.postgres.jobs import MAX_CACHED_RESULTS, JobIdTaken, PersistentJobManager
from resources.postgres.resource import PostgresResource
from resources.postgres.secret_keys import SecretError
from resources.run_tags import TAG_CUSTOMER, TAG_DOMAIN, TAG_JOB, TAG_ON_INTERRUPT
from resources.services import ServiceError
from resources.settings import Settings

if TYPE_CHECKING:
    from resources.crawler.crawl import Crawl

# A line in the run's log costs a connection (20 to 30 ms), so they come less often as a run grows old.
_FIRST_REPORT_SECONDS = 1.5
_REPORT_SECONDS = ((60.0, 5.0), (600.0, 15.0), (float("inf"), 60.0))

# After an interruption the crawl has so long to commit what is finished before it is left behind: its transaction
# is atomic, and its lease runs out by itself.
_STOP_SECONDS = 20.0

# A worker whose process was killed is started again so often; what it had under way is another's by then, or its own.
_RESTARTS = 2
# A worker that was held up past its lease joins again so often, where others of its run are at the job.
_REJOINS = 3


INTERRUPTED = "the crawl was interrupted: what was finished is kept, and the job can be resumed"


class JobType(str, Enum):  # noqa: UP042 - Dagster's Launchpad types enums by member name; both are the same here
    """How a job goes about a site."""

    full_crawl = "full_crawl"
    incremental = "incremental"
    sitemap = "sitemap"
    single_page = "single_page"


class Render(str, Enum):  # noqa: UP042 - as JobType
    """Who makes a page: the server, or scripts in a browser."""

    http = "http"
    browser = "browser"
    auto = "auto"


class CrawlConfig(dg.Config):
    """What to crawl, and within which limits."""

    urls: list[str] = Field(
        description="Start urls, http or https. The crawl stays on their hosts. The only required field."
    )
    customer: str = Field(
        default=crawl_order.DEFAULT_CUSTOMER,
        description="Slug of the customer whose pages these are; made on first use.",
    )
    job_id: str = Field(
        default="",
        description="Id of the job; made if empty. Naming an unfinished job resumes it where it stopped.",
    )
    job_type: JobType = Field(
        default=JobType.full_crawl,
        description="full_crawl: everything reachable within the limits. incremental: the same, but only what has "
        "changed since the last crawl is fetched and written. sitemap: what the site's sitemaps list, and no link "
        "is followed; a start url may be a sitemap itself. single_page: the start urls alone.",
    )
    max_pages: int = Field(
        default=DEFAULT_MAX_PAGES, description="At most so many urls are fetched, failures and skips included."
    )
    max_bytes: int = Field(
        default=DEFAULT_MAX_BYTES,
        description="At most so many bytes are fetched for the whole job, as they come over the wire; what has just "
        "arrived may lie beyond it.",
    )
    max_depth: int = Field(default=DEFAULT_MAX_DEPTH, description="How many links away from a start url.")
    max_seconds: int = Field(default=DEFAULT_MAX_SECONDS, description="Longest duration of this run, in seconds.")
    concurrency: int = Field(default=DEFAULT_CONCURRENCY, description="Requests at once.")
    keep_html_days: int = Field(
        default=0,
        description="Pages are kept as they were fetched, compressed, for so many days: the job reprocess reads them "
        "again without a visit. 0: not at all.",
    )
    requests_per_minute: int = Field(
        default=0,
        description="To one domain, by all crawls together; the strictest limit that is known holds. 0: no limit.",
    )
    include: list[str] = Field(
        default=[],
        description="Globs: where there are any, only links that match one are followed "
        "(/docs/** on the path, https://example.com/docs/** on the whole url).",
    )
    exclude: list[str] = Field(default=[], description="Globs: links that match one are not followed.")
    respect_robots: bool = Field(default=True, description="Obey robots.txt, noindex and nofollow.")
    allow_private: bool = Field(
        default=False,
        description="Allow private and loopback addresses. For sites on one's own machine, never for a customer's.",
    )
    embed: bool = Field(
        default=False,
        description="When the crawl has ended, embed the pages whose text changed, with the model of "
        "OMNIOPS_EMBEDDINGS. Off: the night's run does it.",
    )
    shards: int = Field(
        default=1,
        description="Workers that share the job, 1 to 32; with several each has a process of its own.",
    )

    render: Render = Field(
        default=Render.http,
        description="http: pages as the server sends them. browser: every page's scripts run, in a Chromium on the "
        "machine of the run. auto: only where the server sends an empty shell.",
    )

    def order(self) -> CrawlOrder:
        """The configuration as an order."""
        return CrawlOrder(
            urls=tuple(self.urls),
            customer=self.customer,
            job_id=self.job_id,
            job_type=self.job_type.value,
            max_pages=self.max_pages,
            max_bytes=self.max_bytes,
            max_depth=self.max_depth,
            max_seconds=self.max_seconds,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            keep_html_days=self.keep_html_days,
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            respect_robots=self.respect_robots,
            allow_private=self.allow_private,
            embed=self.embed,
            shards=self.shards,
            render=self.render.value,
        )


def _refuse(error: Exception) -> dg.Failure:
    """A clear end of the run, without retries: the same order would be refused again."""
    return dg.Failure(description=str(error), allow_retries=False)


def _crawler() -> "type[Crawl]":
    """The crawler, loaded by who crawls: of the time that the definitions take to load it would be a fifth."""
    from resources.crawler.crawl import Crawl  # noqa: PLC0415 - says so itself

    return Crawl


@dg.op(
    description="Checks what is asked for, and records the job. Nothing is written before all of it is right.",
    out=dg.DynamicOut(dict[str, Any], description="What each worker has to know."),
)
def plan_crawl(
    context: dg.OpExecutionContext,
    config: CrawlConfig,
    postgres: PostgresResource,
    job_record: JobRecord,  # for what it does at the end of the run
) -> list[dg.DynamicOutput[dict[str, Any]]]:
    """Turn the configuration into a recorded job, and say what its workers have to know."""
    order = config.order()
    try:
        if not order.job_id:
            crawl_order.check_order(order)
        crawl_order.check_database(postgres.endpoints().database_url)
        manager = postgres.job_manager()
        planned = _plan(order, manager, postgres, _given(context))
        # Before the job is written, so that the run can always be asked which job it has.
        context.instance.add_run_tags(
            context.run_id,
            {
                TAG_JOB: planned.job_id,
                # The host that is asked, whatever a queued row calls it: the limit of runs is about that.
                TAG_DOMAIN: site_of(planned.plan.urls[0]),
                TAG_CUSTOMER: planned.customer,
            },
        )
        if not planned.finished:
            # An interruption while it loads finds nothing that is to be given back.
            _crawler()
            _close_run_of_killed_process(context, postgres, planned.job_id)
            if planned.status is None:
                with postgres.engine().begin() as connection:
                    customer_id = ensure_customer(connection, planned.customer)
                manager.create_job(
                    planned.job_id,
                    None,
                    {
                        "customer_id": customer_id,
                        "domain": planned.domain,
                        "job_type": planned.plan.job_type,
                        "config": planned.plan.as_config(),
                        # From its first moment, so that nobody takes it for one that waits for a run.
                        "run_id": context.run_id,
                    },
                )
            # Queued by another program, perhaps in other words than the plan that is carried out now.
            checked = planned.plan.as_config() if planned.status == "queued" or planned.raised else None
            manager.update_job_status(planned.job_id, "running", run_id=context.run_id, config=checked)
    except (
        InvalidOrder, RefusedOrder, DatabaseError, ServiceError, SecretError, UnusableAccess, JobIdTaken,
        InvalidJobTransition,
    ) as error:  # fmt: skip
        raise _refuse(error) from error
    if planned.finished:
        context.log.info(f"job {planned.job_id} is {planned.status} already: nothing is fetched")
    elif planned.status is not None:
        raised = "".join(f", {name} is {getattr(planned.plan, name):,} now" for name in planned.raised)
        context.log.info(f"job {planned.job_id} was {planned.status}: it is resumed where it stopped{raised}")
    else:
        context.log.info(f"job {planned.job_id}: {', '.join(planned.plan.urls)}")
    workers = 1 if planned.finished else order.shards
    known = {
        "job_id": planned.job_id,
        "customer": planned.customer,
        "domain": planned.domain,
        "finished": planned.finished,
        "allow_private": planned.plan.allow_private,
        "shards": workers,
        "embed": planned.plan.embed,
    }
    return [dg.DynamicOutput(known, mapping_key=str(number)) for number in range(1, workers + 1)]


@dg.op(
    description="Crawls: fetches, reads and keeps pages, batch by batch, each in one transaction. Several workers "
    "share one frontier.",
    # For a process that was killed: what the crawl itself refuses or fails for is not tried again.
    retry_policy=dg.RetryPolicy(max_retries=_RESTARTS),
)
def crawl_pages(
    context: dg.OpExecutionContext, planned: dict[str, Any], postgres: PostgresResource
) -> dict[str, Any]:
    """Run the crawl in a thread of its own, report its progress, and pass an interruption on to it."""
    job_id: str = planned["job_id"]
    if planned["finished"]:
        return {**planned, "finish_reason": None, "detail": None, "complete": True, "seconds": 0.0}
    manager = postgres.job_manager()
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        msg = f"job {job_id} was removed while its run was starting"
        raise _refuse(RuntimeError(msg))
    # A customer may write the row; what was checked is what is allowed.
    plan = replace(
        CrawlPlan.from_config(job["config"]), allow_private=planned["allow_private"], shards=planned["shards"]
    )
    frontier = postgres.frontier(job_id, job["customer_id"])
    settings = Settings.from_environment()
    try:
        # Read here and not in plan_crawl, because what an op returns is kept.
        access = access_for_crawl(postgres.engine(), job["customer_id"], plan.urls, settings)
        crawl_order.check_rendering(plan, access)
    except (RefusedOrder, SecretError, UnusableAccess) as error:
        _set_aside(manager, job_id, str(error))
        raise _refuse(error) from error

    def crawl_of_job() -> "Crawl":
        stats = manager.get_job_stats(job_id)
        return _crawler()(
            plan,
            frontier,
            start_from=CrawlProgress(
                total=stats.total_pages,
                successful=stats.successful_pages,
                failed=stats.failed_pages,
                skipped=stats.skipped_pages,
            ),
            on_committed=_result_cache(manager, job_id, job["customer_id"]),
            index=partial(index_waiting_content, postgres.crawl_engine()),
            reconnect=postgres.endpoints().ensure_running,
            run_id=context.run_id,
            limiter=shared_limiter(manager.cache),
            access=access,
            memory=SiteMemory.of_customer(postgres.engine(), job["customer_id"]),
            ca_bundle=settings.ca_bundle,
        )

    on_interrupt = context.run.tags.get(TAG_ON_INTERRUPT, "cancelled")
    try:
        crawl, outcome = _crawl(context, planned, crawl_of_job, on_interrupt)
    except WorkerReplaced as error:
        # The job goes on elsewhere: this run has failed, the job has not.
        raise _refuse(error) from error
    except (DatabaseUnreachable, ProxyUnusable) as error:
        _set_aside(manager, job_id, str(error))
        raise _refuse(error) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        manager.fail_job(job_id, reason)
        context.log.exception("the crawl failed")
        raise dg.Failure(description=f"job {job_id} failed: {reason}", allow_retries=False) from error
    except BaseException as error:  # an interruption
        _interrupted(manager, job_id, on_interrupt)
        if on_interrupt == "paused":
            # By Ctrl-C, of which Dagster does not know: without a word it would call the run failed.
            context.instance.report_run_canceling(context.run, message="interrupted at the command line")
        # Not the interruption itself: Dagster would start the op again, by the policy that is for killed workers.
        raise dg.Failure(description=INTERRUPTED, allow_retries=False) from error
    progress.publish(job_id, plan, outcome.progress)
    return {
        **planned,
        "finish_reason": outcome.finish_reason,
        "detail": outcome.detail,
        "complete": outcome.complete,
        "seconds": round(outcome.progress.seconds, 3),
        "bytes": outcome.progress.bytes,
        "retries": outcome.progress.retries,
        "repairs": outcome.progress.repairs,
        "unread": outcome.progress.unread,
        "rendering": dict(outcome.progress.rendering),
        "phases": {name: round(seconds, 3) for name, seconds in outcome.progress.phases.items()},
        "politeness": crawl.politeness.in_force(),
    }


@dg.op(
    description="Ends the job's record, and reports what the content and audit tables hold now.",
    out={
        "result": dg.Out(dict[str, Any], description="The job's figures."),
        "to_embed": dg.Out(
            dict[str, Any], is_required=False, description="The job, where its pages are to be embedded."
        ),
    },
)
def complete_crawl(
    context: dg.OpExecutionContext, crawls: list[dict[str, Any]], postgres: PostgresResource
) -> Iterator[dg.Output[dict[str, Any]]]:
    """Complete (or fail) the job, materialise the assets, and put the job's figures on the run's page."""
    crawled = shards.merge(crawls)
    job_id: str = crawled["job_id"]
    manager = postgres.job_manager()
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        msg = f"job {job_id} was removed while its run was ending"
        raise _refuse(RuntimeError(msg))
    if not crawled["finished"] and crawled["complete"] and job["status"] == "running":
        frontier = postgres.frontier(job_id, job["customer_id"])
        job = _wait_for_other_workers(context, manager, frontier, job)
        if job["status"] != "running":
            context.log.info(f"job {job_id} is {job['status']} already, by another worker's run")
        else:
            job = _end_job(context, manager, frontier, crawled)
    elif job["status"] in ("paused", "cancelled"):
        context.log.info(f"job {job_id} was {job['status']} while it was crawled: what was finished is kept")
    if not crawled["finished"] and manager.cache is not None and _has_changed(postgres, job):
        # Again: what was cached while the last texts were not indexed yet lacks them.
        forget_searches(manager.cache, job["customer_id"])
    summary = summarise(manager, job_id, context.run_id)
    for table in (*CONTENT_TABLES, *AUDIT_TABLES):
        rows = count_rows(postgres.engine(), table, job_id=job_id, customer_id=job["customer_id"])
        context.log_event(
            dg.AssetMaterialization(
                asset_key=table.name,
                description=f"{rows} rows of {table.scope} after job {job_id}",
                metadata={
                    "dagster/row_count": rows,
                    "job_id": job_id,
                    "customer": crawled["customer"],
                    "domain": crawled["domain"],
                },
            )
        )
    figures = {name: value for name, value in summary.items() if value is not None}
    redis = manager.cache.snapshot().as_dict() if manager.cache is not None else {}
    rendering = {"rendering": crawled["rendering"]} if crawled.get("rendering") else {}
    metadata = {
        **figures,
        "pages_without_main_text": crawled.get("unread", 0),
        "phases": crawled.get("phases") or {},
        "politeness": crawled.get("politeness") or {},
        **rendering,
        "redis": redis,
    }
    if job["status"] == "failed":
        raise dg.Failure(
            description=f"job {job_id} failed: {job['error_message']}", metadata=figures, allow_retries=False
        )
    yield dg.Output(summary, "result", metadata=metadata)
    if crawled["embed"] and job["status"] == "completed":
        yield dg.Output({"job_id": job_id, "customer": crawled["customer"]}, "to_embed")


@dg.job(
    name="crawl",
    description="Crawls a website into Redis (for hours) and Postgres (for good). Kill it at any moment and launch "
    "it again with the same job_id: it goes on where it stopped.",
    executor_def=crawl_executor,
    tags={"dagster/kind": "crawl"},
)
def crawl_job() -> None:
    """The main job."""
    crawls = plan_crawl().map(crawl_pages).collect()
    # What is to be done once for all workers' pages stands here: it takes their reports and hands them on.
    _, to_embed = complete_crawl(crawls)
    embed_pages(to_embed)


def crawl_alone() -> dg.JobDefinition:
    """The job with its resources and nothing else of the project: the command line needs no report and no pandas."""
    resources = {"postgres": PostgresResource(), "job_record": JobRecord()}
    return dg.Definitions(jobs=[crawl_job], resources=resources).resolve_job_def("crawl")


def _given(context: dg.OpExecutionContext) -> frozenset[str]:
    """The fields that the run's configuration names; of the others Dagster only gives the defaults."""
    ops: Any = context.run.run_config.get("ops") or {}
    return frozenset((ops.get("plan_crawl") or {}).get("config") or {})


def _plan(
    order: CrawlOrder, manager: PersistentJobManager, postgres: PostgresResource, given: frozenset[str]
) -> PlannedCrawl:
    """The checked order, hosts included. A queued job that cannot be done as it stands fails, with the reason.

    Raises:
        InvalidOrder: the order, or what the job was queued with, is wrong.
        RefusedOrder: the job is somebody else's or was made for other urls, or a host says no.
        UnusableAccess, SecretError: the site's keys cannot be used, or not be read.
    """

    def check_hosts(customer: str, plan: CrawlPlan) -> None:
        access = access_for_crawl(postgres.engine(), customer, plan.urls, Settings.from_environment())
        crawl_order.check_hosts(plan, access)

    job = manager.get_job_from_postgres(order.job_id) if order.job_id else None
    if job is None or job["status"] != "queued" or job["run_id"] or job["customer"] != order.customer:
        planned = crawl_order.plan_crawl(order, manager, given)
        if not planned.finished:
            crawl_order.check_browser(planned.plan)
            crawl_order.check_embeddings(planned.plan, postgres.engine())
            check_hosts(planned.customer, planned.plan)
        return planned
    # Another program wrote the row, and nobody has checked what it asks for.
    try:
        plan = plan_for_queued_job(order, job["job_type"], job["config"])
        wanted = crawl_order.check_urls(order.urls) if order.urls else plan.urls
        if wanted == plan.urls:
            crawl_order.check_browser(plan)
            crawl_order.check_embeddings(plan, postgres.engine())
            check_hosts(order.customer, plan)
    except (InvalidOrder, RefusedOrder, UnusableAccess) as error:
        manager.fail_job(order.job_id, str(error))
        raise
    if wanted != plan.urls:
        msg = (
            f"job {order.job_id} was queued for {', '.join(plan.urls)}, not for {', '.join(order.urls)}: "
            "leave the url out to run it, or choose another job id"
        )
        raise RefusedOrder(msg)
    return PlannedCrawl(order.job_id, job["customer"], job["domain"], plan, "queued")


def _close_run_of_killed_process(context: dg.OpExecutionContext, postgres: PostgresResource, job_id: str) -> None:
    """A run whose process was killed says nothing of it: whoever resumes its job does."""
    job = postgres.job_manager().get_job_from_postgres(job_id)
    if job is None or not job["run_id"] or job["run_id"] == context.run_id:
        return
    frontier = postgres.frontier(job_id, job["customer_id"])
    run = context.instance.get_run_by_id(job["run_id"])
    if run is not None and not run.is_finished and frontier.take_over_dead_workers() and not frontier.live_workers():
        message = f"the run's process was killed; its job {job_id} goes on in run {context.run_id}"
        context.instance.report_run_failed(run, message=message)


def _has_changed(postgres: PostgresResource, job: dict[str, Any]) -> bool:
    """True if the job has written or removed a page of its customer's."""
    with postgres.engine().connect() as connection:
        found = connection.scalar(
            text("""SELECT EXISTS (SELECT 1 FROM scrape_job_results WHERE job_id = :job AND changed)
                        OR EXISTS (SELECT 1 FROM scraped_pages
                                   WHERE customer_id = :customer AND removed_at >= :started)"""),
            {"job": job["job_id"], "customer": job["customer_id"], "started": job["started_at"]},
        )
    return bool(found)


def _wait_for_other_workers(
    context: dg.OpExecutionContext, manager: PersistentJobManager, frontier: CrawlFrontier, job: dict[str, Any]
) -> dict[str, Any]:
    """The job as it is when nobody is at it any more; who waited for the others may say that it is complete."""
    if not frontier.live_workers():
        return job
    context.log.info("another worker is still at this job: waiting for it")
    while frontier.live_workers():
        time.sleep(0.25)
        frontier.take_over_dead_workers()
    return manager.get_job_from_postgres(frontier.job_id) or job


def _end_job(
    context: dg.OpExecutionContext, manager: PersistentJobManager, frontier: CrawlFrontier, crawled: dict[str, Any]
) -> dict[str, Any]:
    """Complete or fail the job, by what the database says: a worker that died may have left urls behind."""
    job_id = frontier.job_id
    successful = manager.get_job_stats(job_id).successful_pages
    reason = shards.verdict(frontier, crawled["finish_reason"], successful)
    if reason is None:
        msg = f"a worker of job {job_id} died and left urls: resume the job with the same job id"
        if crawled["shards"] == 1:
            _set_aside(manager, job_id, msg)
        raise _refuse(RuntimeError(msg))
    detail = crawled["detail"] if reason == crawled["finish_reason"] else None
    if reason == "site_unreachable":
        return manager.fail_job(job_id, detail or "no start url could be reached", "site_unreachable")
    # Before the job is complete, so that whoever resumes it after a kill here does it again.
    job = manager.get_job_from_postgres(job_id)
    if job is not None:
        _, said = completion.settle(CrawlPlan.from_config(job["config"]), frontier, reason)
        if said:
            context.log.info(said)
    return manager.update_job_status(job_id, "completed", detail, finish_reason=reason)


def _crawl(
    context: dg.OpExecutionContext,
    planned: dict[str, Any],
    crawl_of_job: "Callable[[], Crawl]",
    on_interrupt: str,
) -> "tuple[Crawl, CrawlOutcome]":
    """Be a worker of the job; one that was replaced joins again where it has company that goes on meanwhile.

    Raises:
        WorkerReplaced: it was replaced, and is the only worker of its run; or again and again.
    """
    rejoins = 0
    while True:
        crawl = crawl_of_job()
        report = _reporter(context, planned, crawl.progress)

        def tick(crawl: "Crawl" = crawl, report: Callable[[], None] = report) -> None:
            progress.publish(planned["job_id"], crawl.plan, crawl.progress)
            report()

        try:
            return crawl, _run_interruptibly(crawl, on_interrupt, tick)
        except WorkerReplaced as error:
            if planned["shards"] == 1 or rejoins == _REJOINS:
                raise
            rejoins += 1
            context.log.warning(f"{error}; it joins again as a new one")


def _run_interruptibly(crawl: "Crawl", on_interrupt: str, tick: Callable[[], object]) -> CrawlOutcome:
    """Run the crawl in a thread and wait for it in short steps, so that an interruption is heard at once."""
    ended: list[CrawlOutcome | BaseException] = []

    def work() -> None:
        try:
            ended.append(crawl.run())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            ended.append(error)

    thread = AwaitedThread(work, "crawl")
    try:
        thread.start()
        while not thread.wait(0.2):
            tick()
        tick()
    except BaseException:
        crawl.stop(on_interrupt)
        thread.wait(_STOP_SECONDS)
        raise
    result = ended[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _result_cache(
    manager: PersistentJobManager, job_id: str, customer_id: UUID
) -> Callable[[Sequence[FinishedUrl]], None]:
    """Copies committed results to Redis, up to a bound for each run; what was found in older texts is forgotten."""
    room = MAX_CACHED_RESULTS

    def copy(finished: Sequence[FinishedUrl]) -> None:
        nonlocal room
        if manager.cache is not None and any(one.content is not None for one in finished):
            forget_searches(manager.cache, customer_id)
        if room <= 0:
            return
        chosen = finished[:room]
        room -= len(chosen)
        manager.cache_results(job_id, [_cached_result(f) for f in chosen])

    return copy


def _cached_result(finished: FinishedUrl) -> dict[str, Any]:
    result: dict[str, Any] = {
        "url": finished.url,
        "status": finished.status,
        "http_status": finished.http_status,
        "processing_time_ms": finished.processing_time_ms,
        "error_message": finished.error_message,
        "skip_reason": finished.skip_reason,
        "content_hash": finished.content_hash,
    }
    if finished.content is not None:
        result["title"] = finished.content.title
        result["lang"] = finished.content.lang
        result["text"] = finished.content.text
    return result


def _reporter(context: dg.OpExecutionContext, planned: dict[str, Any], now: CrawlProgress) -> Callable[[], None]:
    """Reports progress to the run's log and as an observation of `scraped_pages`, every few seconds."""
    started = time.monotonic()
    last = started - _REPORT_SECONDS[0][1] + _FIRST_REPORT_SECONDS

    def report() -> None:
        nonlocal last
        moment = time.monotonic()
        interval = next(every for age, every in _REPORT_SECONDS if moment - started < age)
        if moment - last < interval:
            return
        last = moment
        line = (
            f"{now.total} pages ({now.successful} kept, {now.failed} failed, {now.skipped} skipped), "
            f"{now.pages_per_second:.1f} pages/s, {now.waiting} waiting"
        )
        if now.delay:
            line += f", {now.delay:.2f} s between two requests"
        try:
            context.log.info(line)
            context.log_event(
                dg.AssetObservation(
                    asset_key="scraped_pages",
                    description=line,
                    metadata={
                        "job_id": planned["job_id"],
                        "total_pages": now.total,
                        "successful_pages": now.successful,
                        "failed_pages": now.failed,
                        "skipped_pages": now.skipped,
                        "pages_per_second": round(now.pages_per_second, 2),
                        "waiting": now.waiting,
                        "delay": round(now.delay, 3),
                    },
                )
            )
        except Exception as error:  # noqa: BLE001 - Dagster's storage may be away for a moment; the crawl is not
            dg.get_dagster_logger().debug("progress could not be reported: %s", error)

    return report


def _set_aside(manager: PersistentJobManager, job_id: str, message: str) -> None:
    """After the database was lost: pause the job if it can be reached again; else it stays `running`. Both resume."""
    try:
        manager.update_job_status(job_id, "paused", message, finish_reason="paused")
    except Exception as error:  # noqa: BLE001 - the database is still away; the first error is the one to report
        dg.get_dagster_logger().warning("job %s keeps its status, since the database is away: %s", job_id, error)


def _interrupted(manager: PersistentJobManager, job_id: str, status: str) -> None:
    """Record what became of the job; it may have ended in the same moment, and then it has."""
    try:
        manager.update_job_status(job_id, status, finish_reason=status)
    except InvalidJobTransition as error:
        dg.get_dagster_logger().warning("%s", error)
