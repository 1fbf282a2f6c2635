"""`omniops pages`: what a page says, what it said before, and reading kept pages again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine


@click.group()
def pages() -> None:
    """What pages say, and what they said before."""


def _moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        msg = f"{value!r} is no moment: write it like 2026-11-24 or 2026-11-24T15:30+00:00"
        raise click.BadParameter(msg, param_hint="--at") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@pages.command("show")
@click.argument("url")
@click.option("--customer", default="default", show_default=True, help="Whose page it is (slug).")
@click.option("--at", help="What it said then, for example 2026-11-24T15:30+00:00 (UTC where no zone is given).")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def show_page(url: str, customer: str, at: str | None, as_json: bool) -> None:
    """What a page says, as markdown; or what it said at another time."""
    from omniops_pipelines.cli import output
    from resources.postgres.page_history import page_at, page_versions

    moment = _moment(at)
    normal = _normal(url)
    engine, customer_id = _customer(customer)
    with engine.connect() as connection:
        if moment is None:
            version = page_versions(connection, customer_id, normal)[0]
        else:
            version = page_at(connection, customer_id, normal, moment)
    if as_json:
        output.print_json(version.as_dict())
        return
    until = f"until {output.shown(version.valid_to)}" if version.valid_to else "and still"
    url = output.harmless(version.url)
    output.screen.print(f"{url}, since {output.shown(version.valid_from)} {until}", soft_wrap=True)
    moment = version.published_at
    published = None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    for name, value in (
        ("title", version.title),
        ("description", version.description),
        ("canonical url", version.canonical_url),
        ("language", version.language),
        ("published", published),
    ):
        if value is not None:
            output.screen.print(f"{name}: {output.harmless(value)}", soft_wrap=True, markup=False)
    click.echo(output.harmless(version.markdown or version.text))


@pages.command("history")
@click.argument("url")
@click.option("--customer", default="default", show_default=True, help="Whose page it is (slug).")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def history(url: str, customer: str, as_json: bool) -> None:
    """The versions of a page that are kept: the present one and up to ten before."""
    from omniops_pipelines.cli import output
    from resources.postgres.page_history import page_versions

    normal = _normal(url)
    engine, customer_id = _customer(customer)
    with engine.connect() as connection:
        versions = page_versions(connection, customer_id, normal)
    if as_json:
        output.print_json([version.as_dict() for version in versions])
        return
    rows: list[dict[str, object]] = []
    for newer, version in zip([None, *versions], versions, strict=False):
        if newer is not None and version.valid_to is not None and version.valid_to < newer.valid_from:
            rows.append({"valid_from": version.valid_to, "valid_to": newer.valid_from, "begins": "(it was away)"})
        words = len(version.text.split())
        rows.append({
            "valid_from": version.valid_from, "valid_to": version.valid_to, "words": words,
            "begins": version.text[:60],
        })  # fmt: skip
    output.print_table(("valid_from", "valid_to", "words", "begins"), rows)


@pages.command("duplicates")
@click.option("--customer", default="default", show_default=True, help="Whose pages (slug).")
@click.option("--domain", help="One site's alone.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def duplicates(customer: str, domain: str | None, as_json: bool) -> None:
    """Pages of a site that say nearly the same, in groups: the one that was seen first, then the others."""
    from omniops_pipelines.cli import output
    from resources.content.duplicates import near_duplicates

    engine, customer_id = _customer(customer)
    with engine.connect() as connection:
        groups = near_duplicates(connection, customer_id, domain)
    if as_json:
        output.print_json([group.as_dict() for group in groups])
    elif groups:
        rows = [{"group": number, "url": url} for number, group in enumerate(groups, start=1) for url in group.urls]
        output.print_table(("group", "url"), rows)
    else:
        click.echo("No two pages of a site say nearly the same.")


@pages.command("reprocess")
@click.option("--customer", default="default", show_default=True, help="Whose pages (slug).")
@click.option("--domain", help="One site's alone.")
@click.option("--dry-run", is_flag=True, help="Count what would come out otherwise, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def reprocess_pages(customer: str, domain: str | None, dry_run: bool, as_json: bool) -> None:
    """Read pages whose HTML is kept once more, with today's extractor and without a request."""
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.content.reprocess import reprocess

    engine, customer_id = _customer(customer)
    result = reprocess(engine, customer_id, domain=domain, dry_run=dry_run, cache=stack.cache())
    if as_json:
        output.print_json({"dry_run": dry_run, **result.as_dict()})
        return
    if not result.read:
        click.echo("No HTML is kept of these pages: see keep_html_days in the customer's settings.")
        return
    said = "would be written anew" if dry_run else "came out otherwise and were written"
    click.echo(f"{result.read:,} pages read, {result.changed:,} {said}")


def _normal(url: str) -> str:
    from resources.crawler.urls import InvalidUrl, normalise

    try:
        return normalise(url)
    except InvalidUrl as error:
        raise click.BadParameter(str(error), param_hint="URL") from error


def _customer(slug: str) -> tuple[Engine, UUID]:
    from omniops_pipelines.instance import prepare_database
    from resources import stack
    from resources.postgres.customer_rows import customer_id_of

    prepare_database(stack.endpoints())
    engine = stack.database_engine()
    with engine.connect() as connection:
        return engine, customer_id_of(connection, slug)
