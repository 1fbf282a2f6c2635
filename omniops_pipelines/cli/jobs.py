"""`omniops jobs`: the audit trail at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from resources.postgres.jobs import PersistentJobManager

_STATUSES = ("queued", "running", "paused", "completed", "failed", "cancelled")


@click.group()
def jobs() -> None:
    """What was crawled, when, with what outcome."""


@jobs.command("list")
@click.option("--customer", help="Only this customer's (slug).")
@click.option("--status", type=click.Choice(_STATUSES), help="Only jobs that are so.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_jobs(customer: str | None, status: str | None, limit: int, as_json: bool) -> None:
    """The newest jobs first."""
    from omniops_pipelines.cli import output

    manager = _manager()
    found = manager.list_jobs(customer=customer, status=status, limit=limit)
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        (
            "job_id",
            "customer",
            "domain",
            "job_type",
            "status",
            "finish_reason",
            "total_pages",
            "successful_pages",
            "failed_pages",
            "skipped_pages",
            "created_at",
        ),
        found,
    )


@jobs.command("show")
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def show_job(job_id: str, as_json: bool) -> None:
    """One job: its record, its counters, and how its urls ended."""
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.postgres.discovery import read_discovery
    from resources.postgres.jobs import UnknownJob

    manager = _manager()
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        raise UnknownJob(job_id)
    stats = manager.get_job_stats(job_id)
    reasons = manager.count_by_reason(job_id)
    met = read_discovery(stack.database_engine(), job_id)
    if as_json:
        output.print_json({**job, "stats": stats.as_dict(), "reasons": reasons, **met})
        return
    output.print_facts({name: value for name, value in job.items() if name not in ("config", "metadata")})
    output.print_facts(stats.as_dict(), title="\nCounters")
    output.print_facts(job["config"], title="\nConfiguration")
    output.print_table(("status", "reason", "pages"), reasons, title="\nHow its urls ended")
    if met["not_followed"]:
        rows = [{"reason": reason, "urls": urls} for reason, urls in met["not_followed"].items()]
        output.print_table(("reason", "urls"), rows, title="\nMet and not fetched")
    if met["sitemaps"]:
        output.print_facts(met["sitemaps"], title="\nSitemaps")


@jobs.command("results")
@click.argument("job_id")
@click.option("--status", type=click.Choice(("success", "failed", "skipped")), help="Only results that are so.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Rows of a page.")
@click.option("--after", "after_url", help="Go on after this url (the last one of the page before).")
@click.option("--all", "everything", is_flag=True, help="All pages, one after the other.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, one result a line.")
def job_results(
    job_id: str, status: str | None, limit: int, after_url: str | None, everything: bool, as_json: bool
) -> None:
    """The outcome of each url of a job, in the order of the urls."""
    from omniops_pipelines.cli import output
    from resources.postgres.jobs import UnknownJob

    manager = _manager()
    if manager.get_job_from_postgres(job_id) is None:
        raise UnknownJob(job_id)
    while True:
        page = manager.get_job_results_from_postgres(job_id, after_url=after_url, limit=limit, status=status)
        if as_json:
            for row in page:
                output.print_json(row)
        elif page or after_url is None:
            output.print_table(
                ("url", "status", "http_status", "skip_reason", "error_message", "processing_time_ms"), page
            )
        if len(page) < limit:
            return
        after_url = page[-1]["url"]
        if not everything:
            if not as_json:
                click.echo(f"There may be more: --after '{after_url}', or --all.", err=True)
            return


@jobs.command("stats")
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def job_stats(job_id: str, as_json: bool) -> None:
    """The counters of a job, and of the urls that it met and did not fetch."""
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.postgres.discovery import read_discovery
    from resources.postgres.jobs import UnknownJob

    manager = _manager()
    if manager.get_job_from_postgres(job_id) is None:
        raise UnknownJob(job_id)
    stats = manager.get_job_stats(job_id).as_dict()
    stats["not_followed"] = read_discovery(stack.database_engine(), job_id)["not_followed"]
    if as_json:
        output.print_json({"job_id": job_id, **stats})
    else:
        output.print_facts({"job_id": job_id, **stats})


@jobs.command("pause")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB...")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 600),
    default=15,
    show_default=True,
    help="So many seconds for the workers to leave.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON array on standard output, one object for each job.")
def pause_jobs(job_ids: tuple[str, ...], wait_seconds: float, as_json: bool) -> int:
    """Stop crawls that can go on later, wherever they run. What they have finished is kept."""
    return _stop(job_ids, "pause", wait_seconds, as_json)


@jobs.command("cancel")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB...")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0, 600),
    default=15,
    show_default=True,
    help="So many seconds for the workers to leave.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON array on standard output, one object for each job.")
def cancel_jobs(job_ids: tuple[str, ...], wait_seconds: float, as_json: bool) -> int:
    """End crawls for good, wherever they run or wait. What they have finished is kept."""
    return _stop(job_ids, "cancel", wait_seconds, as_json)


@jobs.command("resume")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB...")
@click.option("--max-pages", type=int, help="Raise this quota; a job that it completed goes on then.")
@click.option("--max-bytes", type=int, help="Raise this quota; a job that it completed goes on then.")
@click.option("--max-seconds", type=int, help="Raise this quota; a job that it completed goes on then.")
@click.option("--shards", type=int, help="Workers that share the job.  [default: as it was ordered]")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, one summary for each job.")
def resume_jobs(job_ids: tuple[str, ...], as_json: bool, **options: int | None) -> int:
    """Go on with crawls in this process, one after the other, as `omniops crawl --job-id` does."""
    from omniops_pipelines.cli.crawl import run_order
    from omniops_pipelines.cli.output import screen

    manager = _manager()
    failed = False
    for job_id in dict.fromkeys(job_ids):
        refusal = _why_not_resumed(manager, job_id)
        if refusal:
            screen.print(f"omniops: {refusal}", style="red", soft_wrap=True)
            failed = True
            continue
        failed |= run_order((), {"job_id": job_id, **options}, as_json=as_json) != 0
    return 1 if failed else 0


@jobs.command("settle")
@click.argument("job_id")
@click.option("--accept-removals", is_flag=True, help="Remove them; else they are shown.")
@click.option("--yes", is_flag=True, help="With --accept-removals: do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def settle_job(job_id: str, accept_removals: bool, yes: bool, as_json: bool) -> None:
    """Pages that a crawl did not find any more, and kept, because they were most of the site: show or remove them."""
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.content.search_cache import forget_searches
    from resources.postgres.removals import settle_held_back

    _manager()
    found = settle_held_back(stack.database_engine(), job_id, accept=accept_removals and yes)
    if not as_json:
        output.print_table(("url", "reason"), [{"url": url, "reason": reason} for url, reason in found.pages])
        more = f", {len(found.pages)} of them above" if found.total > len(found.pages) else ""
        click.echo(f"{found.total:,} of {found.alive:,} pages{more}", err=True)
    if accept_removals and not yes and found.total:
        click.confirm("Remove them?", abort=True, err=True)
        found = settle_held_back(stack.database_engine(), job_id, accept=True)
    if found.accepted:
        forget_searches(stack.cache(), found.customer_id)
    if as_json:
        output.print_json(found.as_dict())
    elif found.accepted:
        click.echo(f"Removed {found.total:,} pages: they come back when a crawl finds them again", err=True)
    else:
        click.echo("Nothing was changed: --accept-removals removes them", err=True)


def _why_not_resumed(manager: PersistentJobManager, job_id: str) -> str | None:
    from resources.postgres.jobs import UnknownJob

    job = manager.get_job_from_postgres(job_id)
    if job is None:
        return str(UnknownJob(job_id))
    if job["status"] in ("cancelled", "failed"):
        return f"job {job_id} is {job['status']}, and that is final: start a new one"
    return None


def _stop(job_ids: tuple[str, ...], action: str, wait_seconds: float, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.postgres.job_control import stop_jobs

    manager = _manager()
    stopped = stop_jobs(manager, stack.database_engine(), job_ids, action, wait_seconds=wait_seconds)
    if as_json:
        output.print_json([job.as_dict() for job in stopped])
    for job in stopped:
        if job.error:
            output.screen.print(f"omniops: {job.error}", style="red", soft_wrap=True)
        elif not as_json:
            click.echo(f"Job {job.job_id} {'is' if job.changed else 'was'} {job.status}{_still_there(job.workers)}")
    return 1 if any(job.error for job in stopped) else 0


def _still_there(workers: int) -> str:
    return f"; {workers} of its workers have not left yet, but will at their next look" if workers else ""


def _manager() -> PersistentJobManager:
    from omniops_pipelines.instance import prepare_database
    from resources import stack

    prepare_database(stack.endpoints())
    return stack.get_persistent_job_manager()
