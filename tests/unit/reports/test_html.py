"""Pages that are sent to people: they need nothing, run nothing, and say when and over what they were made."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
import pytest
from sqlalchemy import create_engine

from assets.html import (
    MAX_EVENT_ROWS,
    MAX_PAGE_ROWS,
    Report,
    Section,
    Table,
    as_markdown_table,
    describe_database,
    format_cell,
    write_report,
)
from assets.plots import Series, bars

if TYPE_CHECKING:
    from pathlib import Path

_HOSTILE = "<script>alert('shop')</script>"
_WHEN = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)


class Page(HTMLParser):
    """A page's elements, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def _report(**fields: object) -> Report:
    plot = bars([_HOSTILE], [Series(_HOSTILE, [1])], title=_HOSTILE)
    table = Table(_HOSTILE, [_HOSTILE, "rows"], [[_HOSTILE, 1234]], note=_HOSTILE)
    section = Section(_HOSTILE, _HOSTILE, [table], [plot])
    given = {"figures": {_HOSTILE: _HOSTILE, "rows": 1234567}, "made_at": _WHEN, **fields}
    return Report("a_report", _HOSTILE, [section], f"db {_HOSTILE}", **given)  # type: ignore[arg-type]


def test_hostile_names_are_shown_as_they_are_and_run_nothing(tmp_path: Path) -> None:
    page = Page(_report().write(tmp_path).read_text())
    assert "script" not in page.tags
    assert page.text.count(_HOSTILE) >= 8
    assert not [a for a in page.attributes if a[1].startswith("on")]


def test_a_page_loads_nothing_and_says_so_to_the_browser(tmp_path: Path) -> None:
    page = Page(_report().write(tmp_path).read_text())
    assert not {"link", "img", "iframe", "object", "embed", "audio", "video", "base", "form", "a"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "data", "action", "xlink:href")]
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policies


def test_a_page_says_when_and_over_which_database_it_was_made(tmp_path: Path) -> None:
    page = Page(write_report("r", "R", [], tmp_path, database="shop on db.example", made_at=_WHEN).read_text())
    assert "2026-11-24 12:30 UTC over database shop on db.example" in page.text


def test_a_page_can_be_read_aloud_in_the_dark_and_on_paper(tmp_path: Path) -> None:
    text = _report().write(tmp_path).read_text()
    page = Page(text)
    assert ("html", "lang", "en") in page.attributes
    assert [a for a in page.attributes if a[:2] == ("svg", "aria-label")]
    assert [a for a in page.attributes if a == ("th", "scope", "col")]
    assert "caption" in page.tags
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_a_report_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    first = _report(made_at=datetime(2026, 1, 1, tzinfo=UTC)).write(tmp_path)
    second = _report().write(tmp_path)
    assert first == second == tmp_path / "reports" / "a_report.html"
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["a_report.html"]
    assert "2026-11-24 12:30" in second.read_text()


def test_a_report_that_cannot_be_made_leaves_the_one_before(tmp_path: Path) -> None:
    path = _report().write(tmp_path)
    before = path.read_text()
    with pytest.raises(TypeError, match=r"not made by assets\.plots"):
        write_report("a_report", "R", [Section("S", plots=["<svg onload=x>"])], tmp_path, database="d")  # type: ignore[list-item]
    broken = Table("T", ["a", "b"], [["one cell"]])
    with pytest.raises((ValueError, IndexError)):
        write_report("a_report", "R", [Section("S", tables=[broken])], tmp_path, database="d")
    assert path.read_text() == before
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a.b", "ü"])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is refused"):
        write_report(name, "R", [], tmp_path, database="d")
    assert not (tmp_path / "reports").exists()


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    table = Table("T", ["n"], [[n] for n in range(MAX_PAGE_ROWS + 1)])
    page = Page(write_report("r", "R", [Section("S", tables=[table])], tmp_path, database="d").read_text())
    assert page.tags.count("tr") == 1 + MAX_PAGE_ROWS
    assert f"The first {MAX_PAGE_ROWS} of {MAX_PAGE_ROWS + 1} rows." in page.text
    assert f"The first {MAX_EVENT_ROWS} of {MAX_PAGE_ROWS + 1}." in as_markdown_table(table)


def test_an_empty_table_says_what_that_means(tmp_path: Path) -> None:
    table = Table("Violations", ["n"], [], empty="No row is older than its policy.")
    page = Page(write_report("r", "R", [Section("S", tables=[table])], tmp_path, database="d").read_text())
    assert "No row is older than its policy." in page.text
    assert as_markdown_table(table) == "No row is older than its policy."


def test_markdown_tables_keep_hostile_cells_in_their_cells() -> None:
    table = Table("T", ["slug", "n"], [["a|b<img src=x onerror=y>[x](javascript:z)`", 3], ["line\nbreak", None]])
    lines = as_markdown_table(table).split("\n")
    assert lines[1] == "|---|---:|"
    assert len(lines) == 4
    assert lines[2] == "| a\\|b&lt;img src=x onerror=y&gt;\\[x\\](javascript:z)\\` | 3 |"


def test_metadata_holds_figures_tables_pictures_and_the_file(tmp_path: Path) -> None:
    report = _report(figures={"rows": 3, "share": 0.5, "when": _WHEN, "none": None, "list": ["a", "b"]})
    metadata = report.metadata(report.write(tmp_path))
    assert metadata["rows"] == 3
    assert metadata["dagster/row_count"] == 1
    assert metadata["list"] == "a, b"
    assert isinstance(metadata["when"], dg.TimestampMetadataValue)
    assert isinstance(metadata[_HOSTILE], dg.MarkdownMetadataValue)
    assert "data:image/svg+xml" in metadata[f"{_HOSTILE}: plot"].value
    dg.MaterializeResult(metadata=metadata)


def test_frames_become_tables_with_nothing_for_what_is_missing() -> None:
    frame = pd.DataFrame({
        "n": [1, None], "at": [pd.Timestamp("2026-01-01", tz="UTC"), pd.NaT], "size_bytes": [1500, 2_000_000],
    })  # fmt: skip
    table = Table.from_frame(frame, "T")
    assert table.cells(10) == [["1.00", "2026-01-01 00:00", "1.5 kB"], ["", "", "2 MB"]]
    assert table.numeric() == [True, False, True]


def test_a_database_is_described_without_secrets_and_folders() -> None:
    by_host = create_engine("postgresql+psycopg://role:secret@db.example:5432/shop")
    assert describe_database(by_host) == "shop on db.example"
    by_socket = create_engine("postgresql+psycopg://role@/shop?host=/home/somebody/sockets")
    assert describe_database(by_socket) == "shop on the reporting machine"


def test_values_are_written_as_people_read_them() -> None:
    written = [format_cell(v) for v in (None, float("nan"), True, 1234, 1.5, _WHEN, _WHEN.date(), ["x", 2])]
    assert written == ["", "", "yes", "1,234", "1.50", "2026-11-24 12:30", "2026-11-24", "x, 2"]
    assert format_cell(1500, "table_bytes") == "1.5 kB"
