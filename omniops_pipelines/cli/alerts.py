"""`omniops alerts`: what is wrong now, and whether the receivers can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from resources.alerts import AlertSettings


@click.group()
def alerts() -> None:
    """Alerts: those that are open, those that were, and a test of the webhooks."""


@alerts.command("list")
@click.option("--all", "closed", is_flag=True, help="Those that are over too.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_(closed: bool, limit: int, as_json: bool) -> None:
    """Open alerts, the newest first."""
    from omniops_pipelines.cli import output
    from omniops_pipelines.instance import prepare_database
    from resources import stack
    from resources.alerts import Alerts

    prepare_database(stack.endpoints())
    settings = _settings()
    found = Alerts(stack.database_engine(), settings).list(closed=closed, limit=limit)
    for row in found:
        row["run_url"] = f"{settings.ui_url}/runs/{row['run_id']}" if row["run_id"] else None
    if as_json:
        output.print_json(found)
    elif found:
        columns = ("severity", "alert", "episode", "message", "what_to_do", "opened_at", "occurrences", "run_url")
        output.print_table((*columns, "closed_at") if closed else columns, found)
    else:
        click.echo("There is no alert." if closed else "There is no open alert.")


@alerts.command("test")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def send_test(as_json: bool) -> int:
    """Send a message to each receiver of OMNIOPS_ALERT_WEBHOOKS. Nothing is written anywhere else."""
    from omniops_pipelines.cli import output
    from resources.alerts.trial import send_trial

    settings = _settings()
    if not settings.endpoints and not settings.problems:
        msg = "OMNIOPS_ALERT_WEBHOOKS names no receiver: set it to one or more urls, separated by spaces"
        raise click.UsageError(msg)
    rows: list[dict[str, Any]] = [result.as_dict() for result in send_trial(settings)]
    rows += [{"receiver": "(unusable)", "delivered": False, "error": problem} for problem in settings.problems]
    if as_json:
        output.print_json(rows)
    else:
        shown = [{**row, "delivered": "yes" if row["delivered"] else "NO"} for row in rows]
        output.print_table(("receiver", "delivered", "error"), shown)
    return 0 if all(row["delivered"] for row in rows) else 1


def _settings() -> AlertSettings:
    from resources.alerts import AlertSettings
    from resources.settings import Settings

    return AlertSettings.of(Settings.from_environment())
