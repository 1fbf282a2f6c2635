"""Small pictures for reports: lines over time and bars, as SVG text.

Made by hand and not by a plotting library, which would bring a hundred megabytes for what two functions draw. A
picture stands alone (in Dagster's markdown, on paper) and, set into a page that defines `--ink` and `--paper`, takes
the page's colours. Whatever text it is given is escaped.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from datetime import date, datetime
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_WIDTH: Final = 720
_HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP = 76, 16, 34
_BOTTOM: Final = 34
_LEGEND_ROW: Final = 16
_LEGEND_COLUMNS: Final = 4

# Okabe and Ito's colours, which people with any colour vision tell apart; on white and on black.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#888888")
# A second way to tell lines apart, for print.
_DASHES: Final = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4", "6 6")
MAX_SERIES: Final = len(_COLOURS)

_INK = "fill:var(--ink,#333)"
_GRID = "stroke:var(--rule,#ddd);stroke-width:1"


class Svg(str):
    """A picture made here: safe to set into a page, since all text in it is escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or one colour of stacked bars.

    Attributes:
        name: for the legend.
        values: one for each place on the x axis; None (or NaN) where there is none.
    """

    name: str
    values: Sequence[float | None]


def line(
    x: Sequence[date | datetime | str],
    series: Sequence[Series],
    *,
    title: str,
    unit: str = "",
    limit: float | None = None,
) -> Svg:
    """Lines over time; a missing value is a gap.

    Args:
        x: days or moments (drawn to scale, in order), or words (evenly spaced).
        series: at most `MAX_SERIES` are drawn, those with the greatest last values; the title says if some are not.
        title: what is shown.
        unit: of the values; "bytes" is written in kB, MB, GB. A long one stands at the values and not at the axis.
        limit: a value to mark with a line across, for example a budget.

    Raises:
        ValueError: a series has another length than `x`.
    """
    _check_lengths(len(x), series)
    drawn = sorted(series, key=lambda one: _last(one.values), reverse=True)[:MAX_SERIES]
    if len(drawn) < len(series):
        title = f"{title} (the {len(drawn)} largest of {len(series)})"
    top = _nice_top([*(v for one in drawn for v in _present(one.values)), limit or 0.0])
    across = _positions(x)
    parts = [*_frame(title, drawn, top, unit), *_x_labels(x, across)]
    for number, one in enumerate(drawn):
        colour, dash = _COLOURS[number], _DASHES[number]
        for run in _runs(one.values):
            points = " ".join(f"{across[i]:.1f},{_y(value, top):.1f}" for i, value in run)
            style = f"fill:none;stroke:{colour};stroke-width:2;stroke-dasharray:{dash}"
            parts.append(f'<polyline points="{points}" style="{style}"/>')
        for i, value in _numbered(one.values):
            label = _escape(f"{one.name} {_x_text(x[i])}: {format_value(value, unit)}")
            parts.append(
                f'<circle cx="{across[i]:.1f}" cy="{_y(value, top):.1f}" r="2.5" style="fill:{colour}">'
                f"<title>{label}</title></circle>"
            )
    return _picture(title, drawn, [*parts, *_limit(limit, top, unit)])


def bars(
    x: Sequence[date | datetime | str],
    series: Sequence[Series],
    *,
    title: str,
    unit: str = "",
    limit: float | None = None,
) -> Svg:
    """Bars, stacked where there are several series.

    Args:
        x: what each bar is about; evenly spaced.
        series: beyond `MAX_SERIES`, the smallest are drawn together as "others".
        title: what is shown.
        unit: of the values; "bytes" is written in kB, MB, GB. A long one stands at the values and not at the axis.
        limit: a value to mark with a line across.

    Raises:
        ValueError: a series has another length than `x`, or a value is negative.
    """
    _check_lengths(len(x), series)
    if any(value < 0 for one in series for value in _present(one.values)):
        msg = f"bars of {title!r} have a negative value: bars begin at 0, draw lines instead"
        raise ValueError(msg)
    drawn = _gather(series)
    heights = [sum(value for one in drawn for value in _present([one.values[i]])) for i in range(len(x))]
    top = _nice_top([*heights, limit or 0.0])
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(x), 1)
    width = min(room * 0.8, 60.0)
    across = [_LEFT + room * (i + 0.5) for i in range(len(x))]
    parts = [*_frame(title, drawn, top, unit), *_x_labels(x, across)]
    for i, middle in enumerate(across):
        below = 0.0
        for number, one in enumerate(drawn):
            for value in _present([one.values[i]]):
                if value == 0:
                    continue
                label = _escape(f"{one.name} {_x_text(x[i])}: {format_value(value, unit)}")
                upper, lower = _y(below + value, top), _y(below, top)
                parts.append(
                    f'<rect x="{middle - width / 2:.1f}" y="{upper:.1f}" width="{width:.1f}" '
                    f'height="{max(lower - upper, 0.5):.1f}" style="fill:{_COLOURS[number]}">'
                    f"<title>{label}</title></rect>"
                )
                below += value
    return _picture(title, drawn, [*parts, *_limit(limit, top, unit)])


def as_markdown(svg: Svg, alt: str = "plot") -> str:
    """The picture as a markdown image, for `dg.MetadataValue.md`: Dagster's UI shows `data:` images."""
    text = "".join(character for character in alt if character not in "[]\n\r\\")
    return f"![{text}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def format_value(value: float, unit: str = "") -> str:
    """A number as people read it: 1,234 pages; 1.5 GB; 0.25."""
    if unit == "bytes":
        return format_bytes(value)
    text = f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def format_bytes(value: float) -> str:
    """A size in the largest unit of 1,000 that leaves a number of at least 1."""
    size = float(value)
    for name in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {name}" if name == "bytes" or size == round(size) else f"{size:.1f} {name}"
        size /= 1000
    return f"{size:,.1f} TB"


def _escape(text: str) -> str:
    """For text and attributes; characters that XML does not allow would break the whole picture."""
    return escape("".join(c if c.isprintable() else " " for c in text).strip())


def _check_lengths(length: int, series: Iterable[Series]) -> None:
    for one in series:
        if len(one.values) != length:
            msg = f"series {one.name!r} has {len(one.values)} values for {length} places on the x axis"
            raise ValueError(msg)


def _present(values: Iterable[float | None]) -> Iterator[float]:
    for value in values:
        if value is not None and math.isfinite(value):
            yield float(value)


def _numbered(values: Sequence[float | None]) -> Iterator[tuple[int, float]]:
    for i, value in enumerate(values):
        for present in _present([value]):
            yield i, present


def _runs(values: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    """Stretches without a gap."""
    run: list[tuple[int, float]] = []
    for i, value in _numbered(values):
        if run and run[-1][0] != i - 1:
            yield run
            run = []
        run.append((i, value))
    if run:
        yield run


def _last(values: Sequence[float | None]) -> float:
    return next(_present(reversed(values)), -math.inf)


def _gather(series: Sequence[Series]) -> list[Series]:
    if len(series) <= MAX_SERIES:
        return list(series)
    ranked = sorted(series, key=lambda one: sum(_present(one.values)), reverse=True)
    shown, rest = ranked[: MAX_SERIES - 1], ranked[MAX_SERIES - 1 :]
    others = [sum(_present([one.values[i] for one in rest])) for i in range(len(rest[0].values))]
    return [*shown, Series(f"{len(rest)} others", others)]


def _nice_top(values: Iterable[float]) -> float:
    """The upper end of the y axis: the next even number of a power of ten, so that its quarters read well."""
    highest = max((v for v in values if math.isfinite(v)), default=0.0)
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0) if step * power >= highest)


def _y(value: float, top: float) -> float:
    span = _HEIGHT - _TOP - _BOTTOM
    return _TOP + span * (1 - min(max(value, 0.0), top) / top)


def _positions(x: Sequence[date | datetime | str]) -> list[float]:
    span = _WIDTH - _LEFT - _RIGHT
    if not x:
        return []
    places = [float(i) if isinstance(at, str) else _seconds(at) for i, at in enumerate(x)]
    first, last = min(places), max(places)
    if first == last:
        return [_LEFT + span / 2] * len(places)
    return [_LEFT + span * (place - first) / (last - first) for place in places]


def _seconds(at: date | datetime) -> float:
    if isinstance(at, datetime):
        return at.timestamp()
    return float(at.toordinal() * 86_400)


def _x_text(at: date | datetime | str) -> str:
    if isinstance(at, datetime):
        return at.strftime("%Y-%m-%d %H:%M")
    return at if isinstance(at, str) else at.isoformat()


def _x_labels(x: Sequence[date | datetime | str], across: Sequence[float]) -> Iterator[str]:
    """As many as have room: a label is about 7 pixels a character wide."""
    room = 7 * max((len(_short(at)) for at in x), default=1) + 12
    free_from = -math.inf
    for at, middle in zip(x, across, strict=True):
        if middle - room / 2 >= free_from:
            edge = min(max(middle, room / 2), _WIDTH - room / 2)
            yield (
                f'<text x="{edge:.1f}" y="{_HEIGHT - 12}" style="{_INK};font-size:11px;text-anchor:middle">'
                f"{_escape(_short(at))}</text>"
            )
            free_from = middle + room / 2


def _short(at: date | datetime | str) -> str:
    text = at.strftime("%Y-%m-%d") if isinstance(at, date) else at
    return text if len(text) <= 20 else text[:19] + "…"


def _frame(title: str, series: Sequence[Series], top: float, unit: str) -> Iterator[str]:
    """Title, legend, and the grid with its numbers."""
    yield f'<text x="8" y="16" style="{_INK};font-size:13px;font-weight:bold">{_escape(title)}</text>'
    if len(series) > 1:
        yield from _legend(series)
    for part in range(5):
        value = top * part / 4
        y = _y(value, top)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" style="{_GRID}"/>'
        yield (
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" style="{_INK};font-size:11px;text-anchor:end">'
            f"{_escape(format_value(value, unit if len(unit) <= 2 or unit == 'bytes' else ''))}</text>"
        )


def _legend(series: Sequence[Series]) -> Iterator[str]:
    """Below the picture."""
    for number, one in enumerate(series):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x, y = 8 + 178 * column, _HEIGHT + 8 + _LEGEND_ROW * row
        name = one.name if len(one.name) <= 24 else one.name[:23] + "…"
        yield f'<rect x="{x}" y="{y - 9}" width="10" height="10" style="fill:{_COLOURS[number]}"/>'
        yield f'<text x="{x + 14}" y="{y}" style="{_INK};font-size:11px">{_escape(name)}</text>'


def _limit(limit: float | None, top: float, unit: str) -> Iterator[str]:
    if limit is None:
        return
    y = _y(limit, top)
    yield (
        f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" '
        'style="stroke:#c00000;stroke-width:1.5;stroke-dasharray:6 4"/>'
    )
    yield (
        f'<text x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}" style="fill:#c00000;font-size:11px;text-anchor:end">'
        f"limit {_escape(format_value(limit, unit))}</text>"
    )


def _picture(title: str, series: Sequence[Series], parts: Iterable[str]) -> Svg:
    body = "".join(parts)
    height = _HEIGHT + (_LEGEND_ROW * math.ceil(len(series) / _LEGEND_COLUMNS) + 4 if len(series) > 1 else 0)
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img" aria-label="{_escape(title)}" font-family="system-ui,sans-serif">'
        f'<rect width="100%" height="100%" style="fill:var(--paper,#fff)"/>{body}</svg>'
    )
