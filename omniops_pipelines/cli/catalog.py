"""`omniops catalog`: the data catalogue, for people, programs and the documentation."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The page docs/data-catalogue.md on standard output.")
def catalog(as_json: bool, as_markdown: bool) -> None:
    """What is kept where, whose it is, for how long, and who removes it."""
    from omniops_pipelines.cli import output
    from resources.postgres.catalogue import KEYS, POLICIES, TABLES

    if as_json and as_markdown:
        msg = "--json and --markdown exclude each other"
        raise click.UsageError(msg)
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    tables = [entry.as_dict() for entry in TABLES.values()]
    keys = [entry.as_dict() for entry in KEYS.values()]
    if as_json:
        policies = [policy.as_dict() for policy in POLICIES.values()]
        output.print_json({"tables": tables, "keys": keys, "policies": policies})
        return
    columns = ("name", "tier", "policy", "kept", "tenant_column", "client_access", "owner", "description")
    for group, entries in groupby(tables, key=lambda entry: entry["group"]):
        output.print_table(columns, entries, title=str(group))
    output.print_table(("pattern", "tier", "ttl_seconds", "owner", "holds"), keys, title="keys")


_OPENING = """\
# The data catalogue

What is kept where, whose it is, for how long, and who removes it. This page is generated from
`resources/postgres/catalogue.py` by `omniops catalog --markdown`, and a test fails while it is old; row-level
security, cleanup, erasure and lineage are driven from the same entries.
"""


def markdown() -> str:
    """The catalogue as the page in `docs/`."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    from resources.postgres.catalogue import KEYS, POLICIES, TABLES, erasure_order

    yield _OPENING
    yield "## Tables\n"
    yield f"The permanent tier: {len(TABLES)} tables in schema `public` of Postgres.\n"
    for group, entries in groupby(TABLES.values(), key=lambda entry: entry.group):
        yield f"### {group}\n"
        yield from _rows(
            ("table", "what it holds", "tenant", "client access", "retention", "written by"),
            (
                (
                    f"`{entry.name}`",
                    entry.description,
                    f"`{entry.tenant_column}`" if entry.tenant_column else "the platform's",
                    entry.client_access,
                    f"`{entry.policy}`",
                    entry.owner,
                )
                for entry in entries
            ),
        )
    yield "## Retention\n"
    yield from _rows(
        ("policy", "kept", "removed by", "when"),
        (
            (f"`{policy.name}`", policy.keeps, f"`{policy.removes}`", policy.schedule or "when asked for")
            for policy in POLICIES.values()
        ),
    )
    yield "## Erasure of a customer\n"
    yield "Children before their parents. What is not listed stays: the platform's own, and the erasure's proof.\n"
    for order, tables in groupby(erasure_order(), key=lambda entry: entry.erase_order):
        yield f"- {order}: " + ", ".join(f"`{entry.name}`" for entry in tables)
    yield "\n## Keys\n"
    yield (
        "The ephemeral tier, in Redis. Every key has a time to live; losing all of them loses nothing. A feature\n"
        "that brings a key adds its pattern to `resources/redis/keys.py`, and it appears here.\n"
    )
    yield from _rows(
        ("pattern", "what it holds", "lives", "written by"),
        ((f"`{key.pattern}`", key.holds, f"{key.ttl_seconds:,} s", key.owner) for key in KEYS.values()),
    )
    yield "## The client tier\n"
    yield "The browser's storage holds preferences alone: never credentials, personal data, payments or messages."


def _rows(heads: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        # A bar would end the cell.
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""
