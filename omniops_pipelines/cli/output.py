"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from resources.postgres.jobs import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# People read standard error while a program reads standard output.
screen = Console(stderr=True, highlight=False, markup=False)


# What a terminal obeys and does not show: control characters but tab and newline, and marks that turn the direction
# of writing. A crawled page may hold them, to recolour, overwrite or retitle the screen of whoever looks at it.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text that others wrote, as it may be printed: what a terminal would obey is shown as U+FFFD."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))


def print_json(value: object) -> None:
    """One JSON value on standard output, and nothing else there."""
    # The same value: in JSON's strings these characters may stand as their numbers.
    click.echo(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value)))


def shown(value: Any) -> str:
    """A value in a table's cell."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return harmless(str(value))


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, title: str | None = None) -> None:
    """A table on standard output, as wide as it needs where that is a file or a pipe."""
    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        numeric = column.endswith(("pages", "_ms", "seconds", "bytes", "depth", "tries"))
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    out.print(table)


def print_facts(facts: Mapping[str, Any], *, title: str | None = None) -> None:
    """Names and values, one a line, on standard output."""
    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name.replace("_", " "), shown(value))
    out.print(table)
