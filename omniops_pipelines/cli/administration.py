"""`omniops services`, `env` and `doctor`: what the platform stands on."""

from __future__ import annotations

import shlex
from typing import Any

import click


@click.group()
def services() -> None:
    """The embedded Postgres and Valkey."""


@services.command("start")
def start_services() -> None:
    """Start them, to stay until `omniops services stop`."""
    from omniops_pipelines.instance import prepare_database
    from resources.services import start
    from resources.settings import Settings

    endpoints = start(Settings.from_environment())
    prepare_database(endpoints)
    click.echo('The servers run until `omniops services stop`. Their addresses: eval "$(omniops env)"')


@services.command("stop")
@click.option("--force", is_flag=True, help="Also while other processes use them.")
def stop_services(force: bool) -> None:
    """Stop them."""
    from resources.services import stop
    from resources.settings import Settings

    stopped = stop(Settings.from_environment(), force=force)
    click.echo("Stopped." if stopped else "Nothing was running.")


@services.command("status")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def services_status(as_json: bool) -> None:
    """Which run, since when, for whom."""
    from dataclasses import asdict

    from omniops_pipelines.cli import output
    from resources.services import status
    from resources.settings import Settings

    found = [
        {name: str(value) if name in ("data_directory", "log") else value for name, value in asdict(s).items()}
        for s in status(Settings.from_environment())
    ]
    if as_json:
        output.print_json(found)
    elif found:
        output.print_table(("name", "running", "version", "pid", "kept", "users", "url", "data_directory"), found)
    else:
        click.echo("Both stores are configured by url: nothing is embedded.")


@click.command()
def env() -> None:
    """The settings in force, as `export` lines: eval "$(omniops env)"."""
    from omniops_pipelines.instance import dagster_database_url
    from resources.services import Endpoints
    from resources.settings import CacheSettings, EmbeddingSettings, Settings

    settings = Settings.from_environment()
    cache = CacheSettings.from_environment()
    embeddings = EmbeddingSettings.from_environment()
    # Describes only: the servers need not run for their addresses to be known.
    endpoints = Endpoints(settings)
    values = {
        "OMNIOPS_HOME": str(settings.home),
        "OMNIOPS_DATABASE_URL": endpoints.database_url,
        "OMNIOPS_OWNER_DATABASE_URL": endpoints.owner_database_url,
        "OMNIOPS_REDIS_URL": endpoints.redis_url or "",
        "OMNIOPS_SEARCH_CACHE_SECONDS": str(cache.search_cache_seconds),
        "OMNIOPS_RATE_LIMIT_SHARES": str(cache.rate_limit_shares),
        **embeddings.as_environment(),
        "OMNIOPS_DAGSTER_DATABASE_URL": dagster_database_url(endpoints.database_url),
        "OMNIOPS_STORAGE_BUDGET_BYTES": str(settings.storage_budget_bytes),
        # Not the webhooks' urls and their secret: whoever sees those can write there.
        "OMNIOPS_UI_URL": settings.ui_url,
        "OMNIOPS_ALERT_ALLOW_PRIVATE": "1" if settings.alert_allow_private else "0",
        "OMNIOPS_ALERT_SETTLE_SECONDS": f"{settings.alert_settle_seconds:g}",
        "OMNIOPS_STATISTICS_FIRST_DAY": settings.statistics_first_day.isoformat(),
        "OMNIOPS_SOURCE_URL": settings.source_url or "",
        "OMNIOPS_CHROMIUM": settings.chromium or "",
        "OMNIOPS_PRIVATE_PROXIES": "1" if settings.private_proxies else "0",
        "OMNIOPS_CA_BUNDLE": str(settings.ca_bundle or ""),
    }
    for name, value in values.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def doctor(as_json: bool) -> int:
    """Look at each part: does it answer, which version, is it ready, what to do."""
    from omniops_pipelines.cli import output
    from omniops_pipelines.health import examine

    findings = examine()
    if as_json:
        output.print_json([finding.as_dict() for finding in findings])
    else:
        rows: list[dict[str, Any]] = [
            {**finding.as_dict(), "ok": "yes" if finding.ok else "NO"} for finding in findings
        ]
        output.print_table(("part", "ok", "found", "what_to_do"), rows)
    return 0 if all(finding.ok for finding in findings) else 1
