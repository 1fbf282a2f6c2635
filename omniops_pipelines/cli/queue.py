"""`omniops queue`: what is on its way, what holds it up, trying again, removing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

_STATUSES = ("pending", "processing", "completed", "failed")
_COLUMNS = (
    "id", "customer", "session_id", "key", "type", "status", "retry_count", "created_at", "error_message",
)  # fmt: skip


@click.group()
def queue() -> None:
    """Chat messages on their way."""


@queue.command("list")
@click.option("--customer", help="Only this customer's (slug).")
@click.option("--session", help="Only this session's.")
@click.option("--status", type=click.Choice(_STATUSES), help="Only messages that are so.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_messages(customer: str | None, session: str | None, status: str | None, limit: int, as_json: bool) -> None:
    """The newest messages first. Those that were given up: --status failed."""
    from omniops_pipelines.cli import output
    from resources.postgres import queue_admin

    found = queue_admin.list_messages(_engine(), customer=customer, session=session, status=status, limit=limit)
    if as_json:
        output.print_json(found)
    elif found:
        output.print_table(_COLUMNS, found)
    else:
        click.echo("There is no such message.")


@queue.command("show")
@click.argument("message_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def show_message(message_id: UUID, as_json: bool) -> None:
    """One message: what it says, what became of it, and what stands before and behind it in its session."""
    from omniops_pipelines.cli import output
    from resources.postgres import queue_admin

    found = queue_admin.show_message(_engine(), message_id)
    if as_json:
        output.print_json(found)
        return
    message = found.pop("message")
    output.print_facts(found)
    output.print_facts(message, title="\nMessage")


@queue.command("retry")
@click.argument("message_ids", nargs=-1, type=click.UUID, metavar="[MESSAGE_ID]…")
@click.option("--customer", help="All failed messages of this customer (slug).")
@click.option("--session", help="With --customer: of this session only.")
@click.option("--all", "everything", is_flag=True, help="All failed messages of all customers.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def retry(
    message_ids: tuple[UUID, ...], customer: str | None, session: str | None, everything: bool, as_json: bool
) -> None:
    """Let failed messages be tried again, at their places in their sessions, for another 24 hours."""
    from omniops_pipelines.cli import output
    from resources.postgres import queue_admin

    _check_selection(message_ids, customer, session, everything, "--all")
    engine = _engine()
    ids = list(message_ids) or queue_admin.failed_messages(engine, customer=customer, session=session)
    done = queue_admin.redrive(engine, ids) if ids else []
    if as_json:
        output.print_json(done)
        return
    if not done:
        click.echo("No message has failed.")
        return
    output.print_table(("id", "customer", "session_id", "key", "status", "overtaken_by"), done)
    waiting = sum(row["status"] == "failed" for row in done)
    later = f"; {waiting} of them when the message of their session that is being handled is done" if waiting else ""
    click.echo(f"{len(done):,} to be tried again{later}.")


@queue.command("drop")
@click.argument("message_ids", nargs=-1, type=click.UUID, metavar="[MESSAGE_ID]…")
@click.option("--customer", help="Messages of this customer (slug).")
@click.option("--session", help="With --customer: of this session only.")
@click.option("--status", type=click.Choice(_STATUSES), help="With --customer: only messages that are so.")
@click.option("--yes", is_flag=True, help="Remove them: there is no way back.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def drop(
    message_ids: tuple[UUID, ...],
    customer: str | None,
    session: str | None,
    status: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove messages, whatever has become of them. Without --yes it only shows which."""
    from omniops_pipelines.cli import output
    from resources.postgres import queue_admin

    _check_selection(message_ids, customer, session, False, None)
    if status and message_ids:
        msg = "--status goes with --customer, not with ids"
        raise click.UsageError(msg)
    found = queue_admin.drop(
        _engine(), messages=message_ids or None, customer=customer, session=session, status=status, dry_run=not yes
    )
    if as_json and (yes or not found):
        output.print_json({"removed": found if yes else []})
    elif found:
        title = "Removed" if yes else "Would be removed"
        if as_json:
            click.echo(f"{title}: {len(found):,} messages", err=True)
        else:
            output.print_table(_COLUMNS, found, title=title)
    else:
        click.echo("There is no such message: nothing was removed.")
    if found and not yes:
        msg = f"{len(found):,} messages would be removed, and there is no way back: say --yes"
        raise click.UsageError(msg)


@queue.command("stats")
@click.option("--customer", help="Only this customer's (slug).")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Held-up sessions shown."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def stats(customer: str | None, limit: int, as_json: bool) -> None:
    """How much is in the queue, and which sessions are held up by a message that failed or whose handler died."""
    from omniops_pipelines.cli import output
    from resources.postgres import queue_admin

    found: dict[str, Any] = queue_admin.stats(_engine(), customer=customer, limit=limit)
    if as_json:
        output.print_json(found)
        return
    if not found["customers"]:
        click.echo("The queue is empty.")
        return
    output.print_table(
        (
            "customer", "pending", "processing", "completed", "failed", "expired_unprocessed", "open_sessions",
            "oldest_open_seconds",
        ),
        found["customers"],
    )  # fmt: skip
    if found["blocked_sessions"]:
        output.print_table(
            (
                "customer", "session_id", "blocked_by", "key", "status", "retry_count", "age_seconds", "next_try_at",
                "messages_behind", "error_message",
            ),
            found["blocked_sessions"],
            title="\nHeld up",
        )  # fmt: skip
    else:
        click.echo("No session is held up.")


def _check_selection(
    message_ids: tuple[UUID, ...], customer: str | None, session: str | None, everything: bool, option: str | None
) -> None:
    ways = sum((bool(message_ids), customer is not None, everything))
    if ways != 1:
        msg = f"which messages? Name them, or --customer{f', or {option}' if option else ''} (one of these)"
        raise click.UsageError(msg)
    if session is not None and customer is None:
        msg = "a session belongs to a customer: say --customer too"
        raise click.UsageError(msg)


def _engine() -> Engine:
    from omniops_pipelines.instance import prepare_database
    from resources import stack

    prepare_database(stack.endpoints())
    return stack.database_engine()
