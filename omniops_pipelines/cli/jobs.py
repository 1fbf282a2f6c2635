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
    from resources.postgres.jobs import UnknownJob

    manager = _manager()
    job = manager.get_job_from_postgres(job_id)
    if job is None:
        raise UnknownJob(job_id)
    stats = manager.get_job_stats(job_id)
    reasons = manager.count_by_reason(job_id)
    if as_json:
        output.print_json({**job, "stats": stats.as_dict(), "reasons": reasons})
        return
    output.print_facts({name: value for name, value in job.items() if name not in ("config", "metadata")})
    output.print_facts(stats.as_dict(), title="\nCounters")
    output.print_facts(job["config"], title="\nConfiguration")
    output.print_table(("status", "reason", "pages"), reasons, title="\nHow its urls ended")


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
    """The counters of a job."""
    from omniops_pipelines.cli import output
    from resources.postgres.jobs import UnknownJob

    manager = _manager()
    if manager.get_job_from_postgres(job_id) is None:
        raise UnknownJob(job_id)
    stats = manager.get_job_stats(job_id).as_dict()
    if as_json:
        output.print_json({"job_id": job_id, **stats})
    else:
        output.print_facts({"job_id": job_id, **stats})


def _manager() -> PersistentJobManager:
    from omniops_pipelines.instance import prepare_database
    from resources import stack

    prepare_database(stack.endpoints())
    return stack.get_persistent_job_manager()
