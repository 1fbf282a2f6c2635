"""`omniops cleanup`, `erase`, `export` and `holds`: what is removed by age, what goes with a customer, what stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from resources.postgres.retention import RetentionResult

_ROW_COLUMNS = ("policy", "customer", "table", "rows", "bytes", "oldest")


@click.command()
@click.argument("policies", nargs=-1, metavar="[POLICY]…")
@click.option("--days", type=int, help="Another age than the policy's own.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def cleanup(policies: tuple[str, ...], days: int | None, dry_run: bool, as_json: bool) -> int:
    """Remove what has expired: by every policy, or by those named.

    The policies are message_queue, scrape_jobs, conversations and analytics. What a dry run shows is what a run
    removes: both ask the same question. Customers under a legal hold are left alone.
    """
    from omniops_pipelines.cli import output
    from resources.postgres.connection import DatabaseError
    from resources.postgres.retention import (
        REMOVABLE,
        InvalidRetentionDays,
        UnknownPolicy,
        check_days,
        run,
    )

    wanted = tuple(dict.fromkeys(policies)) or REMOVABLE
    ages: dict[str, int | None] = {}
    for policy in wanted:
        try:
            ages[policy] = check_days(policy, days)
        except UnknownPolicy as error:
            raise click.BadParameter(str(error), param_hint="POLICY") from error
        except InvalidRetentionDays as error:
            raise click.BadParameter(str(error), param_hint="--days") from error
    engine = _engine()
    results: list[RetentionResult] = []
    failures: dict[str, str] = {}
    for policy, age in ages.items():
        try:
            results.append(run(engine, policy, age, dry_run=dry_run))
        except DatabaseError as error:
            # The other policies have nothing to do with it.
            failures[policy] = str(error)
    if as_json:
        output.print_json([r.as_dict() for r in results] + [{"policy": p, "error": e} for p, e in failures.items()])
    else:
        _show(results, dry_run)
    for failure in failures.values():
        click.echo(f"omniops: {failure}", err=True)
    return 1 if failures else 0


def _show(results: list[RetentionResult], dry_run: bool) -> None:
    from omniops_pipelines.cli import output

    rows = [{"policy": r.policy, **row.as_dict()} for r in results for row in r.rows]
    if rows:
        output.print_table(_ROW_COLUMNS, rows, title="Would be removed" if dry_run else "Removed")
    for result in results:
        count = result.rows_removed
        said = f"{count:,} rows {'would be ' if dry_run else ''}removed" if count else "nothing has expired"
        click.echo(f"{result.policy}: {said} ({result.seconds:.1f} s)")
    held = sorted({slug for result in results for slug in result.held})
    if held:
        click.echo(f"Under a legal hold, so nothing of theirs goes: {', '.join(held)}")


@click.command()
@click.argument("slug")
@click.option("--confirm", metavar="SLUG", help="The customer's slug once more: there is no way back.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and erase nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def erase(slug: str, confirm: str | None, dry_run: bool, as_json: bool) -> None:
    """Erase a customer: everything of theirs, in every tier, for good."""
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.postgres.erasure import erase_customer, preview_erasure

    if not dry_run and confirm != slug:
        msg = f"erasing {slug} cannot be undone: repeat its slug, --confirm {slug}, or look first with --dry-run"
        raise click.UsageError(msg)
    engine = _engine()
    if dry_run:
        rows = [row.as_dict() for row in preview_erasure(engine, slug)]
        if as_json:
            output.print_json({"customer": slug, "rows": rows})
        else:
            output.print_table(("table", "rows", "bytes"), rows, title=f"Would be erased with {slug}")
        return
    result = erase_customer(engine, slug, cache=stack.cache())
    if as_json:
        output.print_json(result.as_dict())
        return
    if result.already_done:
        click.echo(f"Nothing to do: the erasure was completed at {output.shown(result.completed_at)}.")
    rows = [{"table": table, "rows": count} for table, count in result.rows.items()]
    output.print_table(("table", "rows"), rows, title="Erased")
    click.echo(f"Proof: entry {result.entry} of gdpr_audit_log, customer id {result.customer_id}")
    if not result.cache_reached:
        click.echo("Redis is away: what it holds of the customer's crawls expires within 24 hours.", err=True)


@click.command()
@click.argument("slug")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output.")
def export(slug: str, out: Path | None) -> None:
    """A customer's data as JSON lines, without secrets: {"table": …, "row": …}."""
    from resources.postgres.export import export_customer

    try:
        counts = export_customer(_engine(), slug, sys.stdout if out is None else out)
    except OSError as error:
        msg = f"{out or 'standard output'} cannot be written: {error.strerror or error}"
        raise click.ClickException(msg) from error
    total = sum(counts.values())
    click.echo(f"{total:,} rows of {len(counts)} tables{f' in {out}' if out else ''}", err=True)


@click.group()
def holds() -> None:
    """Legal holds: while one is in force, nothing of its customer is removed."""


@holds.command("place")
@click.argument("slug")
@click.option("--reason", required=True, help="Which case, which letter.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def place(slug: str, reason: str, as_json: bool) -> None:
    """Put a customer under a legal hold."""
    from omniops_pipelines.cli import output
    from resources.postgres.compliance import place_hold

    try:
        hold = place_hold(_engine(), slug, reason)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        output.print_json(hold.as_dict())
    else:
        click.echo(f"Nothing of {slug} is removed from now on: hold {hold.id}")


@holds.command("release")
@click.argument("slug")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def release(slug: str, as_json: bool) -> None:
    """Release a customer's holds."""
    from omniops_pipelines.cli import output
    from resources.postgres.compliance import release_holds

    released = [hold.as_dict() for hold in release_holds(_engine(), slug)]
    if as_json:
        output.print_json(released)
    else:
        click.echo(f"Released {len(released)} of {slug}: what has expired goes with the next cleanup")


@holds.command("list")
@click.option("--all", "released", is_flag=True, help="Those that were released too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_(released: bool, as_json: bool) -> None:
    """Holds in force."""
    from omniops_pipelines.cli import output
    from resources.postgres.compliance import list_holds

    found: list[dict[str, Any]] = [hold.as_dict() for hold in list_holds(_engine(), released=released)]
    if as_json:
        output.print_json(found)
    elif found:
        output.print_table(("customer", "reason", "placed_by", "placed_at", "released_at", "id"), found)
    else:
        click.echo("There is no legal hold.")


def _engine() -> Engine:
    from omniops_pipelines.instance import prepare_database
    from resources import stack

    prepare_database(stack.endpoints())
    return stack.database_engine()
