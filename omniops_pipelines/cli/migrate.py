"""`omniops migrate`: bring the database to this version's schema, look at it, compare it, go back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from resources.postgres.migrate import Migration
    from resources.services import Endpoints


@click.command()
@click.option("--dry-run", is_flag=True, help="Show the SQL, run it in a transaction, and take all of it back.")
@click.option("--verify", is_flag=True, help="Compare the live database with this version, and name each difference.")
@click.option(
    "--rollback",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[REVISION]",
    help="Go back one revision, or to the one named (`base`: all the way).",
)
@click.option("--status", is_flag=True, help="Where the database stands, and what is pending.")
@click.option("--yes", is_flag=True, help="With --rollback: tables may go with their rows.")
@click.option(
    "--lock-wait",
    type=click.FloatRange(min=0.001, max=3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a statement may wait for a table that others use; then nothing is done.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def migrate(
    dry_run: bool,
    verify: bool,
    rollback: str | None,
    status: bool,
    yes: bool,
    lock_wait: float,
    as_json: bool,
) -> int:
    """Bring the database to this version's schema: all of it, or nothing.

    With none of --dry-run, --verify, --rollback and --status it applies what is pending and sets roles, grants and
    policies. Exit status 1: it failed, or (with --verify) there are differences.
    """
    asked = {"--dry-run": dry_run, "--verify": verify, "--rollback": rollback is not None, "--status": status}
    given = [option for option, is_given in asked.items() if is_given]
    if len(given) > 1:
        msg = f"{' and '.join(given)} exclude each other"
        raise click.UsageError(msg)
    if yes and rollback is None:
        msg = "--yes belongs to --rollback"
        raise click.UsageError(msg)

    from resources import stack

    endpoints = stack.endpoints()
    if status:
        return _status(endpoints, as_json=as_json)
    if verify:
        return _verify(endpoints, as_json=as_json)
    if rollback is not None:
        return _rollback(endpoints, rollback or None, yes=yes, lock_wait=lock_wait, as_json=as_json)
    if dry_run:
        return _dry_run(endpoints, lock_wait=lock_wait, as_json=as_json)
    return _apply(endpoints, lock_wait=lock_wait, as_json=as_json)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _as_dict(done: Migration, revisions: tuple[str, ...]) -> dict[str, Any]:
    return {
        "from": done.before.current,
        "to": done.after,
        "applied": list(revisions),
        "steps": [step.as_dict() for step in done.steps],
    }


def _print_steps(done: Migration) -> None:
    for step in done.steps:
        verb = "" if step.revision == "access" else "applied " if step.direction == "up" else "undone "
        click.echo(f"{verb}{step.revision}: {step.title}")
        for table, what in step.by_table():
            click.echo(f"  {table}: {what}")


def _apply(endpoints: Endpoints, *, lock_wait: float, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources.postgres.connection import redact
    from resources.postgres.migrate import migrate as apply_migrations

    done = apply_migrations(
        endpoints.owner_database_url, runtime_url=endpoints.database_url, say=_say, lock_wait_seconds=lock_wait
    )
    if as_json:
        output.print_json(_as_dict(done, done.pending))
        return 0
    where = redact(endpoints.owner_database_url)
    if done.pending:
        click.echo(f"{where}: applied {', '.join(done.pending)} (it stood at {done.before.current or 'nothing'})")
    elif done.steps:
        click.echo(f"{where}: it stands at {done.after} already; its access was not as it should be, and is now")
    else:
        click.echo(f"{where}: nothing to do, it stands at {done.after}")
    _print_steps(done)
    return 0


def _dry_run(endpoints: Endpoints, *, lock_wait: float, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources.postgres.connection import redact
    from resources.postgres.migrate import dry_run

    done = dry_run(
        endpoints.owner_database_url, runtime_url=endpoints.database_url, say=_say, lock_wait_seconds=lock_wait
    )
    if as_json:
        would = {
            ("would_apply" if name == "applied" else name): v for name, v in _as_dict(done, done.pending).items()
        }
        output.print_json({**would, "sql": list(done.sql), "loads": True, "rolled_back": True})
        return 0
    # SQL on standard output, all else as comments: what is printed can be kept in a file and run.
    pending = ", ".join(done.pending) or "nothing"
    click.echo(f"-- {redact(endpoints.owner_database_url)}: {pending} pending, it stands at {done.before.current}")
    click.echo("BEGIN;")
    for statement in done.sql:
        click.echo(statement)
    click.echo("COMMIT;")
    click.echo("-- All of this was run in a transaction, loaded, and was rolled back: the database is as it was.")
    for step in done.steps:
        click.echo(f"-- {step.revision}: {step.title}")
        for table, what in step.by_table():
            click.echo(f"--   {table}: {what}")
    return 0


def _verify(endpoints: Endpoints, *, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources.postgres.connection import redact
    from resources.postgres.migrate import verify_database

    found = verify_database(endpoints.owner_database_url, runtime_url=endpoints.database_url)
    if as_json:
        output.print_json({"agrees": not found, "differences": [difference.as_dict() for difference in found]})
    elif found:
        for difference in found:
            click.echo(difference.sentence())
        number = f"{len(found)} difference{'' if len(found) == 1 else 's'}"
        click.echo(f"{redact(endpoints.owner_database_url)}: {number} from this version", err=True)
    else:
        click.echo(f"{redact(endpoints.owner_database_url)}: it is as this version wants it")
    return 1 if found else 0


def _status(endpoints: Endpoints, *, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources.postgres.connection import redact
    from resources.postgres.migrate import migration_state, refuse_newer

    state = migration_state(endpoints.owner_database_url)
    if as_json:
        output.print_json(
            {
                "current": state.current,
                "head": state.head,
                "pending": list(state.pending),
                "known": state.known,
                "revisions": list(state.revisions),
            }
        )
        return 0 if state.known else 1
    refuse_newer(state)
    pending = ", ".join(state.pending) or "nothing"
    where = redact(endpoints.owner_database_url)
    click.echo(f"{where}: at {state.current or 'nothing'}, newest {state.head}, pending {pending}")
    return 0


def _rollback(endpoints: Endpoints, revision: str | None, *, yes: bool, lock_wait: float, as_json: bool) -> int:
    from omniops_pipelines.cli import output
    from resources.postgres.connection import redact
    from resources.postgres.migrate import BASE, RowsWouldBeLost, rollback

    url = endpoints.owner_database_url
    try:
        done = rollback(url, revision, discard_rows=yes, say=_say, lock_wait_seconds=lock_wait)
    except RowsWouldBeLost as refusal:
        if as_json or not _is_terminal():
            raise
        for table, rows in refusal.tables.items():
            click.echo(f"  {table}: {rows:,} row{'' if rows == 1 else 's'}", err=True)
        click.confirm("These tables go, with their rows. Go on?", abort=True, err=True)
        done = rollback(url, revision, discard_rows=True, say=_say, lock_wait_seconds=lock_wait)
    undone = tuple(step.revision for step in done.steps)
    if as_json:
        facts = {("undone" if name == "applied" else name): value for name, value in _as_dict(done, undone).items()}
        output.print_json({**facts, "rows_lost": done.rows_lost})
        return 0
    where = redact(url)
    if undone:
        click.echo(f"{where}: undone {', '.join(undone)}; it stands at {done.after or BASE}")
    else:
        click.echo(f"{where}: nothing to do, it stands at {done.after or BASE}")
    for table, rows in done.rows_lost.items():
        click.echo(f"  {table}: dropped with {rows:,} row{'' if rows == 1 else 's'}")
    _print_steps(done)
    return 0
