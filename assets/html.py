"""Reports as pages that can be sent to somebody: one HTML file each, which needs nothing else.

A report is made of sections of text, tables and pictures. The same sections become the file and, by `metadata`, what
Dagster's UI shows of the materialisation. The file loads nothing and runs nothing (its content security policy
says so to the browser as well), all text in it is escaped, and it can be printed.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assets.plots import Svg, as_markdown, format_bytes
from resources.services.privileges import give_to_owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from sqlalchemy import Engine

REPORTS_FOLDER: Final = "reports"

# A page of a thousand rows is read by nobody, and an event in Dagster's log by nothing.
MAX_PAGE_ROWS: Final = 500
MAX_EVENT_ROWS: Final = 50


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to be shown.

    Attributes:
        title: what they are.
        columns: names; the values of one that ends with `_bytes` or ` bytes` are written in kB, MB, GB.
        rows: values, as many as columns each.
        empty: what is said where there is no row.
        note: below the table; where a figure is an estimate, it says so.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    empty: str = "None."
    note: str = ""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, title: str, *, empty: str = "None.", note: str = "") -> Table:
        """The rows of a frame; missing values (None, NaN, NaT) are shown as nothing."""
        clean = frame.astype(object).where(frame.notna(), None)
        return cls(title, [str(c) for c in frame.columns], clean.to_numpy().tolist(), empty, note)

    def cells(self, limit: int) -> list[list[str]]:
        """The first rows as text."""
        return [
            [format_cell(value, column) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows[:limit]
        ]

    def headings(self) -> list[str]:
        """The columns' names as they are shown: a size says its unit at each value."""
        return [heading(column) for column in self.columns]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and stand to the right."""
        return [
            any(row[i] is not None for row in self.rows)
            and all(row[i] is None or (isinstance(row[i], int | float) and row[i] is not True) for row in self.rows)
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report.

    Attributes:
        title: its heading.
        text: a few plain sentences.
        tables: in their order.
        plots: pictures made by `plots`; they come before the tables.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Svg] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report.

    Attributes:
        name: of the asset and of the file.
        title: its heading.
        figures: what a reader wants first, by label.
        sections: the rest.
        database: which one it was made over, in words, without secrets.
        made_at: when.
        extra: for Dagster's metadata alone.
    """

    name: str
    title: str
    sections: Sequence[Section]
    database: str
    figures: Mapping[str, object] = field(default_factory=dict)
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    extra: Mapping[str, object] = field(default_factory=dict)

    def with_metadata(self, more: Mapping[str, object]) -> Report:
        """The report with more for Dagster, which its page does not show."""
        return replace(self, extra={**self.extra, **more})

    def write(self, home: Path) -> Path:
        """Write the file; see `write_report`."""
        return write_report(
            self.name,
            self.title,
            self.sections,
            home,
            figures=self.figures,
            database=self.database,
            made_at=self.made_at,
        )

    def metadata(self, path: Path | None = None) -> dict[str, Any]:
        """What Dagster's UI shows of it: figures, tables and pictures, each cut to what an event should hold."""
        shown: dict[str, Any] = {name: _plain(value) for name, value in {**self.figures, **self.extra}.items()}
        for section in self.sections:
            for plot in section.plots:
                shown[_free(shown, f"{section.title}: plot")] = dg.MetadataValue.md(as_markdown(plot, section.title))
            for table in section.tables:
                shown[_free(shown, table.title)] = dg.MetadataValue.md(as_markdown_table(table))
        shown.setdefault("dagster/row_count", sum(len(t.rows) for section in self.sections for t in section.tables))
        if path is not None:
            shown["file"] = dg.MetadataValue.path(path)
        return shown


def write_report(
    name: str,
    title: str,
    sections: Sequence[Section],
    home: Path,
    *,
    database: str,
    figures: Mapping[str, object] | None = None,
    made_at: datetime | None = None,
) -> Path:
    """Write `home`/reports/`name`.html, whole or not at all; the one before it is replaced.

    There is one file for each report and no older ones beside it: they would keep customers' names beyond the
    customers. What has to be compared over time is in the tables.

    Args:
        name: of the report; lower case letters, digits and underscores.
        title: its heading.
        sections: what it says.
        home: the data folder (`settings.home`).
        database: which one it was made over; see `describe_database`.
        figures: what a reader wants first, by label.
        made_at: when; now, if not given.

    Raises:
        ValueError: the name would leave the folder.
        OSError: the folder cannot be written.
    """
    if not name.replace("_", "").isalnum() or not name.isascii():
        msg = f"report name {name!r} is refused: it becomes a file's name, of letters, digits and underscores"
        raise ValueError(msg)
    folder = home / REPORTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    give_to_owner_of(home, folder)
    text = render(title, sections, database=database, figures=figures or {}, made_at=made_at or datetime.now(UTC))
    handle, draft = tempfile.mkstemp(prefix=f".{name}.", suffix=".html", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        # For whoever may enter the data folder, which is its owner.
        Path(draft).chmod(0o644)
        give_to_owner_of(home, Path(draft))
        return Path(draft).replace(folder / f"{name}.html")
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def render(
    title: str, sections: Sequence[Section], *, database: str, figures: Mapping[str, object], made_at: datetime
) -> str:
    """The page as text."""
    for section in sections:
        for plot in section.plots:
            if not isinstance(plot, Svg):
                msg = (
                    f"section {section.title!r} has a plot that was not made by assets.plots: it might hold anything"
                )
                raise TypeError(msg)
    return _TEMPLATES.get_template("report.html").render(
        title=title,
        sections=sections,
        database=database,
        figures={heading(name): format_cell(value, name) for name, value in figures.items()},
        made_at=made_at.astimezone(UTC),
        max_rows=MAX_PAGE_ROWS,
    )


def heading(name: str) -> str:
    """A column's or figure's name as it is shown."""
    return name.removesuffix("_bytes").removesuffix(" bytes")


def describe_database(engine: Engine) -> str:
    """The database in words for a page that leaves the house: its name and host, no role, no password, no folder."""
    url = engine.url
    queried = url.query.get("host", "")
    host = url.host or (queried if isinstance(queried, str) else queried[0])
    where = f"on {host}" if host and not host.startswith("/") else "on the reporting machine"
    return f"{url.database} {where}"


def format_cell(value: object, column: str = "") -> str:  # noqa: PLR0911 - one for each kind of value
    """A value as people read it: times in UTC to the minute, numbers in groups of three, sizes in their unit."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return moment.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int | float):
        if column.endswith(("_bytes", " bytes")) or column == "bytes":
            return format_bytes(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(format_cell(part) for part in value)
    return str(value)


def as_markdown_table(table: Table, limit: int = MAX_EVENT_ROWS) -> str:
    """The table in markdown, for Dagster's UI; the first rows, and how many there are."""
    if not table.rows:
        return table.empty
    rule = ["---:" if numeric else "---" for numeric in table.numeric()]
    lines = [_markdown_row(table.headings()), "|" + "|".join(rule) + "|"]
    lines += [_markdown_row(row) for row in table.cells(limit)]
    after = []
    if len(table.rows) > limit:
        after.append(f"The first {limit} of {len(table.rows):,}.")
    if table.note:
        after.append(_markdown_text(table.note))
    return "\n".join(lines) + ("\n\n" + " ".join(after) if after else "")


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_markdown_text(cell) for cell in cells) + " |"


# What markdown and its HTML would read as markup: a table's cell is text and nothing else.
_MARKUP: Final = str.maketrans({
    **{c: f"\\{c}" for c in "\\`*_[]|~#!"}, "<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " ",
})  # fmt: skip


def _markdown_text(text: str) -> str:
    return text.translate(_MARKUP)


def _plain(value: object) -> object:
    """A value that Dagster's metadata takes."""
    if isinstance(value, datetime):
        return dg.MetadataValue.timestamp(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return format_cell(value)


def _free(taken: Mapping[str, object], name: str) -> str:
    """The name, with a number where it is taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _svg(plot: Svg) -> Markup:
    return Markup(plot)  # noqa: S704 - `render` has seen that it was made by `plots`, which escapes


_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["svg"] = _svg
