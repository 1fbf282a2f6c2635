"""Pictures: right, readable by a machine, and harmless whatever they are given."""

from __future__ import annotations

import base64
import math
from datetime import UTC, date, datetime, timedelta
from xml.etree import ElementTree

import pytest

from assets.plots import MAX_SERIES, Series, Svg, as_markdown, bars, format_bytes, format_value, line

_SVG = "{http://www.w3.org/2000/svg}"
_HOSTILE = "</svg><script>alert(1)</script>\"'&\x01"


def _parts(svg: Svg, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(_SVG + tag))


def _texts(svg: Svg) -> list[str]:
    return [element.text or "" for element in (*_parts(svg, "text"), *_parts(svg, "title"))]


def test_a_line_goes_up_where_the_values_do_and_across_as_time_passes() -> None:
    days = [date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 11)]
    svg = line(days, [Series("rows", [0, 10, 20])], title="Rows")
    (drawn,) = _parts(svg, "polyline")
    points = [tuple(float(n) for n in pair.split(",")) for pair in drawn.attrib["points"].split()]
    assert points[0][1] > points[1][1] > points[2][1]
    # Ten days lie between the ends, one of them between the first two.
    assert (points[1][0] - points[0][0]) / (points[2][0] - points[0][0]) == pytest.approx(0.1, abs=0.01)


def test_a_missing_value_is_a_gap_and_not_a_zero() -> None:
    days = [date(2026, 1, 1) + timedelta(days=n) for n in range(5)]
    svg = line(days, [Series("rows", [1, 2, None, math.nan, 5])], title="Rows")
    assert len(_parts(svg, "polyline")) == 2
    assert len(_parts(svg, "circle")) == 3


def test_bars_are_as_high_as_their_values_and_stacked_on_each_other() -> None:
    svg = bars(["a", "b"], [Series("one", [10, 20]), Series("two", [10, 0])], title="Rows")
    drawn = [e for e in _parts(svg, "rect") if list(e)]
    heights = [float(e.attrib["height"]) for e in drawn]
    tops = [float(e.attrib["y"]) for e in drawn]
    first, second, third = heights
    assert first == pytest.approx(second, abs=0.2)
    assert third == pytest.approx(2 * first, abs=0.2)
    assert tops[1] + heights[1] == pytest.approx(tops[0], abs=0.2)
    assert "one b: 20" in _texts(svg)


def test_no_series_is_lost_without_a_word() -> None:
    many = [Series(f"customer {n}", [n, n]) for n in range(MAX_SERIES + 5)]
    drawn = bars(["a", "b"], many, title="Rows")
    assert "6 others" in _texts(drawn)
    total = sum(float(t.rsplit(": ", 1)[1]) for t in _texts(drawn) if " a: " in t)
    assert total == sum(range(MAX_SERIES + 5))
    lines = line(["a", "b"], many, title="Rows")
    assert f"Rows (the {MAX_SERIES} largest of {MAX_SERIES + 5})" in _texts(lines)
    assert f"customer {MAX_SERIES + 4}" in _texts(lines)
    assert "customer 0" not in _texts(lines)


def test_a_limit_is_drawn_and_said() -> None:
    svg = line(["a", "b"], [Series("size", [1e9, 2e9])], title="Size", unit="bytes", limit=10e9)
    assert "limit 10 GB" in _texts(svg)


@pytest.mark.parametrize("draw", [line, bars])
def test_hostile_text_stays_text(draw: object) -> None:
    assert callable(draw)
    svg = draw([_HOSTILE], [Series(_HOSTILE, [1]), Series("b", [2])], title=_HOSTILE, unit="")
    assert {element.tag.removeprefix(_SVG) for element in ElementTree.fromstring(svg).iter()} <= {
        "svg", "rect", "text", "line", "title", "circle", "polyline",
    }  # fmt: skip
    assert any(text.startswith("</svg><script>") for text in _texts(svg))


@pytest.mark.parametrize("draw", [line, bars])
def test_nothing_to_draw_is_an_empty_frame(draw: object) -> None:
    assert callable(draw)
    for x, series in (([], []), (["a"], [Series("none", [None])]), ([datetime.now(UTC)], [Series("one", [0])])):
        assert "Rows" in _texts(draw(x, series, title="Rows"))


def test_series_of_another_length_and_negative_bars_are_refused() -> None:
    with pytest.raises(ValueError, match="has 1 values for 2 places"):
        line(["a", "b"], [Series("x", [1])], title="Rows")
    with pytest.raises(ValueError, match="negative value"):
        bars(["a"], [Series("x", [-1])], title="Rows")


def test_markdown_holds_the_picture_itself() -> None:
    svg = bars(["a"], [Series("x", [1])], title="Rows")
    text = as_markdown(svg, "rows](x)")
    assert text.startswith("![rows(x)](data:image/svg+xml;base64,")
    assert base64.b64decode(text.partition("base64,")[2].removesuffix(")")).decode() == svg


def test_numbers_are_written_as_people_read_them() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 1_500_000, 2_000_000_000, 3e12)] == [
        "0 bytes", "999 bytes", "1 kB", "1.5 MB", "2 GB", "3.0 TB",
    ]  # fmt: skip
    assert [format_value(1234567.0, "rows"), format_value(0.25), format_value(10, "bytes")] == [
        "1,234,567 rows", "0.25", "10 bytes",
    ]  # fmt: skip
