"""`omniops crawl` and `omniops demo`: the Dagster job `crawl`, run in this process with a progress bar."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from resources.crawler.crawl_order import CrawlOrder, PlannedCrawl

_RENDER_MODES = ("http", "browser", "auto")
_JOB_TYPES = ("full_crawl", "incremental", "sitemap", "single_page")

# What `--json` ends with, in this order.
SUMMARY_FIELDS = (
    "job_id",
    "run_id",
    "status",
    "finish_reason",
    "total_pages",
    "successful_pages",
    "failed_pages",
    "skipped_pages",
    "pages_per_second",
    "seconds",
)


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `crawl` and `demo` share."""
    options = (
        click.option("--customer", help="Slug of the customer whose pages these are.  [default: default]"),
        click.option("--max-pages", type=int, help="At most so many urls are fetched.  [default: 1000]"),
        click.option("--max-bytes", type=int, help="At most so many bytes for the job.  [default: 10 GiB]"),
        click.option("--max-depth", type=int, help="How many links away from a start url.  [default: 20]"),
        click.option("--max-seconds", type=int, help="Longest duration of this run.  [default: 3600]"),
        click.option("--concurrency", type=int, help="Requests at once, of each worker.  [default: 16]"),
        click.option(
            "--requests-per-minute", type=int, help="To one domain, by all crawls together.  [default: no limit]"
        ),
        click.option("--shards", type=int, help="Workers that share the job, each a process.  [default: 1]"),
        click.option(
            "--keep-html-days", type=int, help="Keep pages as they were fetched for so long.  [default: not at all]"
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output at the end."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("urls", nargs=-1, metavar="URL...")
@click.option("--job-id", help="Id of the job. Naming an unfinished one resumes it; URL may be left out then.")
@click.option("--job-type", type=click.Choice(_JOB_TYPES), help="[default: full_crawl]")
@click.option("--include", multiple=True, metavar="GLOB", help="Follow only links that match one. Repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not follow links that match. Repeatable.")
@click.option("--respect-robots/--no-respect-robots", default=None, help="Obey robots.txt.  [default: yes]")
@click.option(
    "--allow-private/--no-allow-private",
    default=None,
    help="Allow private and loopback addresses: for sites on your own machine.  [default: no]",
)
@click.option(
    "--embed/--no-embed", default=None, help="Embed the pages that changed, when the crawl has ended.  [default: no]"
)
@click.option(
    "--render",
    type=click.Choice(_RENDER_MODES),
    help="Run pages' scripts: in a browser, always or (auto) where the server sends an empty shell.  [default: http]",
)
@_limits
def crawl(urls: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Crawl websites, and keep what they say.

    Killed or interrupted, it is resumed with the same --job-id: no page is lost, and none is kept twice.
    """
    if not urls and not options.get("job_id"):
        msg = "name at least one URL, or --job-id of a job to resume"
        raise click.UsageError(msg)
    return run_order(urls, options, as_json=as_json)


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=8643, show_default=True, help="0: any free one.")
@click.option("--serve", is_flag=True, help="Only serve the site, until Ctrl-C.")
@_limits
def demo(port: int, serve: bool, as_json: bool, **options: Any) -> int:
    """Crawl a small company site that comes with the project, served on loopback by this command."""
    from omniops_pipelines.cli.output import screen
    from omniops_pipelines.demo import serve_demo_site

    with _open_site(serve_demo_site, port) as site:
        if serve:
            screen.print(f"The demo site is at {site.url} (Ctrl-C ends it)")
            _wait_for_interrupt()
            return 0
        screen.print(f"Serving the demo site at {site.url}")
        return run_order(
            (site.url,), {"customer": "default", **_said(options), "allow_private": True}, as_json=as_json
        )


def _open_site(serve: Callable[..., AbstractContextManager[Any]], port: int) -> AbstractContextManager[Any]:
    """The demo site on its usual port, so that a second crawl finds the same urls; on any port if that is taken."""
    import socket

    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                port = 0
    return serve(port=port)


def _wait_for_interrupt() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were named."""
    return {name: value for name, value in options.items() if value is not None}


def run_order(urls: tuple[str, ...], options: Mapping[str, Any], *, as_json: bool) -> int:
    """Check what is ordered, run the job in this process, print its summary; returns the exit status.

    Args:
        urls: to start from; none for a job that is to be resumed.
        options: fields of an order by name; None for those that nobody named.
        as_json: the summary as JSON.
    """
    from dataclasses import replace

    from omniops_pipelines.instance import open_stack
    from resources import stack
    from resources.crawler import crawl_order
    from resources.crawler.plan import CrawlPlan
    from resources.crawler.site_access import access_for_crawl
    from resources.settings import Settings

    given = _said(options)
    order = crawl_order.CrawlOrder(urls=urls, **given)
    try:
        if not order.job_id:
            crawl_order.check_order(order)
        open_stack()
        manager = stack.get_persistent_job_manager()
        known = manager.get_job_from_postgres(order.job_id) if order.job_id else None
        if known is not None and "customer" not in given:
            order = replace(order, customer=known["customer"])
        if known is not None:
            kept = CrawlPlan.from_config({"urls": (), **known["config"]})
            # The run's configuration names every field, so those that nobody named say what the job says.
            order = replace(order, **{name: getattr(kept, name) for name in ("shards", "embed") if name not in given})
        planned = crawl_order.plan_crawl(order, manager, given.keys())
        if not planned.finished or "embed" in given:
            crawl_order.check_embeddings(planned.plan, stack.database_engine())
        if not planned.finished:
            crawl_order.check_browser(planned.plan)
            access = access_for_crawl(
                stack.database_engine(), planned.customer, planned.plan.urls, Settings.from_environment()
            )
            crawl_order.check_hosts(planned.plan, access)
    except crawl_order.InvalidOrder as error:
        raise click.UsageError(str(error)) from error
    if planned.finished and not _has_pages_to_embed(planned):
        return _already_finished(planned, as_json)
    return _execute(order, planned, as_json)


def _has_pages_to_embed(planned: PlannedCrawl) -> bool:
    """True if a complete job's run ended before all of its pages were embedded."""
    if not planned.plan.embed or planned.status != "completed":
        return False
    from resources import stack
    from resources.content.embeddings import provider_from_settings
    from resources.postgres.embeddings import count_waiting
    from resources.postgres.tenancy import service_connection

    provider = provider_from_settings()
    if provider is None:
        return False
    with service_connection(engine=stack.database_engine()) as connection:
        return count_waiting(connection, provider.model, job_id=planned.job_id, most=1) > 0


def _already_finished(planned: PlannedCrawl, as_json: bool) -> int:
    from omniops_pipelines.cli.output import screen
    from resources import stack

    screen.print(f"Job {planned.job_id} is {planned.status} already: nothing was fetched.", soft_wrap=True)
    manager = stack.get_persistent_job_manager()
    job = manager.get_job_from_postgres(planned.job_id) or {}
    _print_summary(_summary(planned.job_id, job.get("run_id")), as_json)
    return 0


def _summary(job_id: str, run_id: str | None) -> dict[str, Any]:
    from omniops_pipelines.job_summary import summarise
    from resources import stack

    return summarise(stack.get_persistent_job_manager(), job_id, run_id)


def _print_summary(summary: Mapping[str, Any], as_json: bool) -> None:
    from omniops_pipelines.cli import output

    if as_json:
        output.print_json({name: summary[name] for name in SUMMARY_FIELDS})
    else:
        output.print_facts(summary, title="\nSummary")


def _execute(order: CrawlOrder, planned: PlannedCrawl, as_json: bool) -> int:
    """Run the Dagster job in this process."""
    from dataclasses import asdict

    import dagster as dg

    from omniops_pipelines import progress
    from omniops_pipelines.cli.interruption import keep_interruptions_out_of_the_log
    from omniops_pipelines.cli.output import screen
    from omniops_pipelines.cli.progress_bar import CrawlBar
    from omniops_pipelines.jobs.crawl import crawl_alone
    from resources.postgres.job_status import QUOTAS
    from resources.run_tags import TAG_ON_INTERRUPT

    config = asdict(order)
    # The plan that was kept with the job counts; its urls are what the configuration has to name.
    config.update(
        urls=list(planned.plan.urls),
        job_id=planned.job_id,
        include=list(order.include),
        exclude=list(order.exclude),
        **{name: int(getattr(planned.plan, name)) for name in QUOTAS},
    )
    keep_interruptions_out_of_the_log()
    screen.print(f"Job {planned.job_id}", soft_wrap=True)
    failure: str | None = None
    run_id: str | None = None
    interrupted = False
    with (
        dg.DagsterInstance.get() as instance,
        CrawlBar(screen) as bar,
        progress.listening(bar.update),
        progress.listening_to_embedding(bar.update_embedding),
    ):
        try:
            run: dict[str, Any] = {
                "run_config": {
                    "ops": {"plan_crawl": {"config": config}},
                    # The run's log is in Postgres, for the UI; the terminal has the progress bar.
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                "instance": instance,
                "tags": {TAG_ON_INTERRUPT: "paused"},
                "raise_on_error": False,
            }
            result: dg.ExecuteInProcessResult | dg.JobExecutionResult
            if order.shards == 1:
                result = crawl_alone().execute_in_process(**run)
            else:
                with progress.following_database(planned.job_id, planned.plan), _quiet_children():
                    result = dg.execute_job(dg.reconstructable(crawl_alone), **run)
            run_id = result.run_id
            if not result.success:
                interrupted = _was_interrupted(result, planned.job_id)
                failure = _failure_of(result)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            interrupted = True
    if interrupted:
        command = shlex.join(("omniops", "crawl", "--job-id", planned.job_id))
        screen.print(f"Interrupted. Resume it with: {command}", soft_wrap=True)
    elif failure:
        screen.print(f"omniops: {failure}", style="red", soft_wrap=True)
    summary = _summary(planned.job_id, run_id)
    if summary["status"] in ("paused", "cancelled") and not interrupted and not failure:
        screen.print(f"Job {planned.job_id} was {summary['status']} by another program.", soft_wrap=True)
    _print_summary(summary, as_json)
    return 0 if summary["status"] == "completed" and failure is None and not interrupted else 1


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Keep what Dagster says in each step's process off the terminal: the run's log has it.

    Those processes inherit the file behind standard error, so this process writes to a copy of it meanwhile.
    """
    import os
    import sys

    own = sys.stderr
    own.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with os.fdopen(os.dup(saved), "w", buffering=1, encoding=own.encoding) as copy:
            sys.stderr = copy
            try:
                yield
            finally:
                sys.stderr = own
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _was_interrupted(result: Any, job_id: str) -> bool:
    """True if Ctrl-C (or SIGTERM) ended the run.

    Dagster gives it as the failure of the op that it met; where ops have processes of their own, as the failure of
    none, and the job was paused.
    """
    from omniops_pipelines.jobs.crawl import INTERRUPTED
    from omniops_pipelines.jobs.embedding import INTERRUPTED_EMBEDDING
    from resources import stack

    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if not failures:
        job = stack.get_persistent_job_manager().get_job_from_postgres(job_id)
        # Completed: it was interrupted while its pages were embedded.
        return job is not None and job["status"] in ("paused", "completed")
    said = (INTERRUPTED, INTERRUPTED_EMBEDDING)
    return any(
        (failure.user_failure_data is not None and failure.user_failure_data.description in said)
        or (failure.error is not None and failure.error.cls_name == "DagsterExecutionInterruptedError")
        for failure in failures
    )


def _failure_of(result: Any) -> str:
    """Why the run failed, in the words of the op that failed."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            if data.error is not None:
                return str(data.error.message).strip().splitlines()[0]
    return "the run failed; its log in the Dagster UI says more"
