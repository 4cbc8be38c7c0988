"""The report's drawing: one panel per arm, one colour and dash per variant, SVG text.

A figure is as wide as its panels for the report's page, and as a column of a paper where `styled`
is given its width: the panels then stand below each other where they do not fit side by side.

The same folder gives the same bytes: ids are salted with the figure's name, and no date is written.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullLocator

from testbed.errors import InputError
from testbed.metrics.intervals import mean_interval
from testbed.report.results import Results
from testbed.report.words import FIGURES

# Okabe and Ito, without black, which is for references, and with yellow last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.2)))
REFERENCE = "#444444"
STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": False,
}
PRINT: dict[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "lines.linewidth": 1.1,
    # Letters that are the same wherever the file is shown, and that journals take.
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
"""What differs from STYLE in a figure for a paper."""
NARROWEST = 0.5
"""A panel of a paper has at least this share of its width on the page, or the column's width."""
COLUMN: ContextVar[float | None] = ContextVar("COLUMN", default=None)
"""The width of a figure for a paper, in inches; None on the report's page."""
UNITS = {"in": 1.0, "cm": 2.54, "mm": 25.4, "pt": 72.27}
"""The units of a width, as many as make an inch; pt is TeX's point."""
WIDTHS = (1.0, 20.0)
"""The least and the largest width of a figure for a paper, in inches."""
DECADES = 8
"""The most decades that a panel shows."""
PAGE, PIXELS_PER_INCH = 1080, 150
"""The largest width of a figure in pixels, and the pixels for an inch of a narrower one."""
SIGMA = "noise level σ"


@dataclass(frozen=True, repr=False)
class Picture:
    """A figure of the report: its file's stem, its title, the SVG text, and what to look for.

    `pdf` is the content of a PDF file for a figure that is as wide as a column, and else empty.
    """

    name: str
    title: str
    svg: str
    caption: str
    pdf: bytes = field(default=b"", repr=False)

    def __repr__(self) -> str:
        return f"<Picture {self.name!r}: {self.title}>"

    def _repr_svg_(self) -> str:
        return self.svg


Band = pd.DataFrame
"""Columns x, value; for a measurement, low and high; for one by level, maybe `trained`."""

End = tuple[str, float, float, str]
"""Name, x, y and colour of a line's end."""


def picture(figure: Figure, kind: str, case: str, note: str = "") -> Picture:
    """Returns a finished figure with its text; `note` is appended to the caption of its kind."""
    name = f"{kind}_{slug(case)}"
    title, caption = FIGURES[kind]
    lay_out(figure)
    pdf = b"" if COLUMN.get() is None else pdf_of(figure)
    return Picture(name, title, text_of(figure, name), f"{caption} {note}".strip(), pdf)


def ink(variant: str, order: Sequence[str]) -> dict[str, Any]:
    """Returns colour and dash of a variant, which are the same in every figure of a study."""
    i = order.index(variant)
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


@contextmanager
def styled(column: float | None = None) -> Iterator[None]:
    """Sets matplotlib's defaults and the report's own, whatever the user's settings are.

    Args:
        column: The width of every figure in inches, for a paper; None for the report's page.
    """
    token = COLUMN.set(column)
    try:
        with matplotlib.style.context(["default", STYLE, {} if column is None else PRINT]):
            yield
    finally:
        COLUMN.reset(token)


def inches(width: str) -> float:
    """Returns a width such as "84mm", "8.4cm", "3.25in" or "240pt" in inches.

    Raises:
        InputError: It is none of these, or no width of a column.
    """
    found = re.fullmatch(rf"\s*([0-9.]+)\s*({'|'.join(UNITS)})\s*", width)
    low, high = WIDTHS
    try:
        size = float(found[1]) / UNITS[found[2]] if found else 0.0
    except ValueError:  # more than one point
        size = 0.0
    if not low <= size <= high:
        raise InputError(
            f"width {width!r}: expected a number and its unit, {', '.join(UNITS)}, from {low:g} to "
            f"{high:g} inches: for example 84mm."
        )
    return size


def lay_out(figure: Figure) -> None:
    """Places the panels for good: under a layout, each file draws the figure twice."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)


def pdf_of(figure: Figure) -> bytes:
    """Returns the content of the figure's PDF file, without a date."""
    stream = io.BytesIO()
    figure.savefig(stream, format="pdf", dpi=300, metadata={"CreationDate": None})
    return stream.getvalue()


def text_of(figure: Figure, name: str) -> str:
    """The figure as an SVG element that scales, with ids of its own, to stand in a page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # In attributes, a hundredth of a point is enough.
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # A page scales a figure to its width: a single panel no further than is easy on the eye.
    widest = round(min(PAGE, figure.get_figwidth() * PIXELS_PER_INCH))
    return svg.replace("<svg ", f'<svg role="img" style="max-width: {widest}px" ', 1)


def decade(value: float, position: object = None) -> str:
    """A tick of a log axis in plain text: 0.01, 100, 10⁵."""
    power = math.log10(abs(value)) if value else 0.0
    if abs(power) <= 3 or abs(power - round(power)) > 1e-9:
        return f"{value:g}"
    digits = f"{round(power)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'-' if value < 0 else ''}10{digits}"


class LogTicks(Locator):
    """Ticks of a log axis: whole decades, or where fewer than two fit, three finer numbers."""

    def __call__(self) -> Sequence[float]:
        return self.tick_values(*sorted(self.axis.get_view_interval()))  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Returns the ticks between two positive numbers, ascending."""
        powers = range(math.ceil(math.log10(vmin)), math.floor(math.log10(vmax)) + 1)
        if len(powers) > 1:
            return [10.0**power for power in powers[:: -(-len(powers) // 9)]]
        wider = range(powers.start - 1, powers.stop + 1)
        for digits in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [digit * 10.0**power for power in wider for digit in digits]
            found = [tick for tick in found if vmin <= tick <= vmax]
            if len(found) >= 3:
                return found
        even = MaxNLocator(5).tick_values(vmin, vmax)
        return [float(tick) for tick in even if vmin <= tick <= vmax]


def scale(row: Sequence[Axes], x: str, y: str) -> None:
    """Sets both scales of panels, with ticks at whole decades where they are long enough logs.

    The ticks come last: a scale that is set takes those of every panel that shares the axis away.
    """
    for axes in row:
        axes.set(xscale=x, yscale=y)
    for axis, name in ((axis, n) for a in row for axis, n in ((a.xaxis, x), (a.yaxis, y))):
        if name != "linear":
            axis.set_major_formatter(FuncFormatter(decade))
            axis.set_minor_locator(NullLocator())
        if name == "log":
            axis.set_major_locator(LogTicks())


def panels(
    n: int, rows: int = 1, width: float = 4.6, height: float = 3.3, shared: bool = True
) -> tuple[Figure, Any]:
    """Returns a figure of rows x n panels in inches; the panels of a row share their axes.

    In a column that is too narrow for n of them, a row goes on below.
    """
    column = COLUMN.get()
    across = n if column is None else min(n, max(1, int(column / (NARROWEST * width))))
    if column is not None:
        width, height = column / across, height * min(1.0, column / across / width)
    below = -(-n // across)
    figure = Figure(figsize=(width * across, height * rows * below), layout="constrained")
    share: Literal["row", "none"] = "row" if shared else "none"
    axes = figure.subplots(rows * below, across, squeeze=False, sharex=share, sharey=share)
    if below == 1:
        return figure, axes
    folded = axes.reshape(rows, below * across)
    for spare in folded[:, n:].flat:
        spare.remove()
    for first, *others in folded[:, ::across] if shared else ():
        for other in others:
            other.sharex(first)
            other.sharey(first)
    return figure, folded[:, :n]


def band(table: pd.DataFrame, x: str, y: str, level: float) -> Band:
    """Returns the geometric mean of y over seeds with its t interval at every x that has one."""
    rows = [
        (at, *mean_interval(values.to_numpy(), level, log=True))
        for at, values in table.groupby(x)[y]
        if np.isfinite(values).all() and (values > 0).all()
    ]
    return pd.DataFrame(rows, columns=["x", "value", "low", "high"])


def draw(axes: Axes, lines: Mapping[str, Band], order: Sequence[str]) -> None:
    """Draws every line with its band; thin at the levels that were not trained."""
    for variant, line in lines.items():
        style = ink(variant, order)
        if "trained" in line:
            axes.plot(line["x"], line["value"], **style, lw=0.7, alpha=0.6)
            line = line.assign(value=line["value"].where(line["trained"]))
        axes.plot(line["x"], line["value"], **style)
        if "low" in line and line["low"].notna().any():
            bounds = (line["x"], line["low"], line["high"])
            axes.fill_between(*bounds, color=style["color"], alpha=0.14, lw=0)


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Writes every name beside the end of its line, moved apart where they collide."""
    bottom, top = sorted(axes.get_ylim())
    to_axes = axes.transData - axes.transAxes
    points = [
        (*to_axes.transform((x, min(max(y, bottom), top))), name, colour)
        for name, x, y, colour in ends
    ]
    points.sort(key=lambda point: point[1])
    heights = apart([float(y) for _, y, *_ in points])
    # In coordinates of the axes. An annotation with an arrow takes ten times as long to draw.
    own: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    size = matplotlib.rcParams["font.size"] * 8.5 / 9
    for height, (x, y, name, colour) in zip(heights, points, strict=True):
        axes.plot([x, 1.035], [y, height], color=colour, lw=0.5, scalex=False, scaley=False, **own)
        axes.text(
            1.04, height, name, color=colour, va="center", fontsize=size, fontweight="bold", **own
        )


def apart(heights: Sequence[float], gap: float = 0.065) -> list[float]:
    """Returns ascending heights in [0, 1], moved until neighbours are `gap` apart."""
    moved = np.asarray(heights, dtype=float)
    for _ in range(200):
        for i in range(len(moved) - 1):
            short = max(gap - (moved[i + 1] - moved[i]), 0)
            moved[i] -= short / 2
            moved[i + 1] += short / 2
        moved = moved.clip(0.01, 0.99)
    return [float(height) for height in moved]


def ends_of(lines: Mapping[str, Band], order: Sequence[str]) -> list[End]:
    """Returns the end of each line that has points."""
    return [
        (name, float(line["x"].iloc[-1]), float(line["value"].iloc[-1]), ink(name, order)["color"])
        for name, line in lines.items()
        if len(line)
    ]


Line = Callable[[str, str], Band]
"""The line of (arm, variant)."""


def by_arm(
    results: Results,
    case: str,
    kind: str,
    line: Line,
    ylabel: str,
    note: str = "",
    references: Callable[[Axes], list[End]] | None = None,
    yscale: str = "log",
    xscale: str = "log",
    xlabel: str = SIGMA,
    keep: Literal["high", "low"] = "high",
) -> Picture | None:
    """Returns a picture of one panel per arm with shared axes; None where no variant has a line.

    Where the lines span more decades than a panel shows, `keep` says which end stays.
    """
    order = results.variants(case)
    lines = lines_by_arm(results, case, line)
    if not any(lines.values()):
        return None
    figure, grid = panels(len(lines))
    draw_row(grid[0], lines, order, ylabel, yscale, xscale, xlabel, keep, references)
    return picture(figure, kind, case, note)


def lines_by_arm(results: Results, case: str, line: Line) -> dict[str, dict[str, Band]]:
    """Returns the lines that have points, by arm and variant."""
    return {
        arm: {v: b for v in results.variants(case, arm) if len(b := line(arm, v))}
        for arm in results.arms(case)
    }


def draw_row(
    row: Sequence[Axes],
    lines: Mapping[str, Mapping[str, Band]],
    order: Sequence[str],
    ylabel: str,
    yscale: str = "log",
    xscale: str = "log",
    xlabel: str = SIGMA,
    keep: Literal["high", "low"] = "high",
    references: Callable[[Axes], list[End]] | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws a row of panels with shared axes, one for each title in `lines`.

    `limits` are those of y; without them they follow from the lines.
    """
    scale(row, xscale, yscale)
    for axes, (title, own) in zip(row, lines.items(), strict=True):
        axes.set(title=title, xlabel=xlabel)
        draw(axes, own, order)
    for axes in row:
        place = axes.get_subplotspec()
        if place is None or place.is_first_col():
            axes.set_ylabel(ylabel)
    bands = [band for own in lines.values() for band in own.values()]
    if limits is not None:
        row[0].set_ylim(*limits)
    elif bands:
        limit(row[0], bands, yscale, keep)
    for axes, own in zip(row, lines.values(), strict=True):
        name_ends(axes, [*ends_of(own, order), *(references(axes) if references else [])])


def limit(
    axes: Axes, lines: Sequence[Band], yscale: str, keep: Literal["high", "low"] = "high"
) -> None:
    """Sets the range of y by the means: a band of three seeds may leave it, a tail of 0s too.

    A log axis of more than DECADES is cut to its `keep` end: of errors the low one, lest one
    failure flattens all that matters.
    """
    values = pd.concat([b["value"] for b in lines])
    values = values[np.isfinite(values) & ((values > 0) | (yscale != "log"))]
    if values.empty:
        return
    low, high = float(values.min()), float(values.max())
    if yscale == "log":
        if keep == "high":
            low = max(low, high / 10**DECADES)
        else:
            high = min(high, low * 10**DECADES)
        margin = max((high / low) ** 0.08, 1.15)
        axes.set_ylim(low / margin, high * margin)
    else:
        margin = max((high - low) * 0.08, 1e-9 + 0.05 * abs(high))
        axes.set_ylim(low - margin, high + margin)


def slug(case: str) -> str:
    """Returns a case's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", case) or "data"
