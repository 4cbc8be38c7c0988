"""The figures of the first screen: every variant against the baseline, in all and by level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from testbed.metrics.curves import Array
from testbed.report import ranges
from testbed.report.comparisons import Comparisons, Versus, baseline_of, per_level
from testbed.report.drawing import REFERENCE, Band, Picture, draw_row, ink, panels, picture
from testbed.report.results import Results
from testbed.report.words import effect_text

FAR = 4.0
"""A variant whose ratio to the baseline is further from 1 than this is drawn as an arrow."""
PER_CENTS = (-30, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 30, 50)
FACTORS = (0.25, 0.5, 2.0, 3.0, 4.0)
TICKS = {
    **{1 + tick / 100: f"{tick} %".replace("-", "−") for tick in PER_CENTS},
    **{factor: f"{factor:g} times" for factor in FACTORS},
}
"""The ratios that an axis of effects may name, in the words of `effect_text`."""
Window = tuple[float, float]


def pictures(results: Results, compared: Comparisons, case: str) -> list[Picture]:
    """Returns the forest plot of a case and its ratios by noise level, as far as there are any."""
    found = (forest(results, compared, case), ratios(results, compared, case))
    return [one for one in found if one is not None]


def running(compared: Comparisons, case: str, arm: str) -> list[Versus]:
    """Returns the comparisons with the baseline in which neither side lost."""
    every = compared.with_baseline(case, arm)
    return [one for one in every if one.comparison is not None and not one.lost]


def window(results: Results, members: Sequence[Versus]) -> Window:
    """Returns the range of ratios that the variants in the running need, far ones left out."""
    least = math.exp(2 * results.settings.smallest_effect)
    found = [1 / least, least]
    for one in members:
        c = one.comparison
        if c is not None and 1 / FAR <= c.ratio <= FAR:
            bounds = (c.ratio,) if math.isnan(c.low) else (c.ratio, c.low, c.high)
            found += [min(max(bound, 1 / FAR), FAR) for bound in bounds]
    return min(found) / 1.04, max(found) * 1.04


def forest(results: Results, compared: Comparisons, case: str) -> Picture | None:
    """Draws the effect of every variant with its interval, and its seeds as dots; None for none."""
    arms = [arm for arm in results.arms(case) if compared.with_baseline(case, arm)]
    members = [one for arm in arms for one in running(compared, case, arm)]
    if not members:
        return None
    rows = max(len(compared.with_baseline(case, arm)) for arm in arms)
    figure, grid = panels(len(arms), width=5.4, height=1.2 + 0.34 * rows, shared=False)
    limits = window(results, members)
    for axes, arm in zip(grid[0], arms, strict=True):
        every = compared.with_baseline(case, arm)
        reference = baseline_of(results, case, arm)
        _frame(axes, results, limits)
        for height, one in enumerate(reversed(every)):
            _row(axes, results, one, height, limits)
        axes.set_yticks(range(len(every)), [one.variant for one in reversed(every)])
        axes.set_ylim(-0.6, len(every) - 0.4)
        axes.grid(False, axis="y")
        axes.set(title=arm, xlabel=f"effect against {reference}; lower is better")
    note = f"Bars: {results.level:.0%} t interval. {_other_levels(results, members)}"
    return picture(figure, "forest", case, note.strip())


def over_other_levels(results: Results, one: Versus) -> bool:
    """Whether a comparison is over other levels than those that its baseline was trained on."""
    own = ranges.common(results, one.labels[1])
    if one.levels is None or own is None:
        return False
    return not np.array_equal(one.levels.levels, own.levels)


def _other_levels(results: Results, members: Sequence[Versus]) -> str:
    """Which effects are over other levels than the rest, and over which; empty for none."""
    parts = [
        f"{' in '.join(filter(None, (one.variant, one.arm)))} {one.levels.text}"
        for one in members
        if one.levels is not None and over_other_levels(results, one)
    ]
    if not parts:
        return ""
    return (
        "Hollow: an effect that is not over all levels that the baseline was trained on, so that "
        f"its size cannot be read against the others’ ({'; '.join(parts)})."
    )


def _frame(axes: Axes, results: Results, limits: Window) -> None:
    """An axis of ratios that is labelled as effects, with the zone of equivalence."""
    half = math.exp(results.settings.smallest_effect)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.axvspan(1 / half, half, color="#ececec", lw=0, zorder=0)
    axes.axvline(1, color=REFERENCE, lw=1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(ticks(limits)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: TICKS.get(x, "")))


def ticks(limits: Window) -> list[float]:
    """Returns the ratios to name on an axis of effects: 0 %, and others a ninth of it apart."""
    low, high = limits
    least = (math.log(high) - math.log(low)) / 9
    kept = [1.0]
    for tick in sorted(TICKS, key=lambda ratio: abs(ratio - 1)):
        if low <= tick <= high and min(abs(math.log(tick / other)) for other in kept) > least:
            kept.append(tick)
    return sorted(kept)


def _row(axes: Axes, results: Results, one: Versus, height: float, limits: Window) -> None:
    """A variant's seeds, mean and interval, and its verdict in words at the right.

    What lies beyond the limits is an arrow at the edge: a small one for a seed.
    """
    c, colour = one.comparison, ink(one.variant, results.variants(one.case))["color"]
    text = one.short
    if c is not None and not one.lost:
        text = f"{effect_text(c.ratio, c.low, c.high)}  {text}"
        low, high = limits
        axes.plot(np.clip([c.low, c.high], *limits), [height] * 2, color=colour, lw=2,
                  solid_capstyle="butt")  # fmt: skip
        a, b = (ranges.values(results, side, one.metric, one.levels) for side in one.labels)
        for marker, at in beyond(np.asarray((a / b).dropna(), dtype=np.float64), limits).items():
            size = 5 if marker == "." else 3.5
            axes.plot(at, [height + 0.24] * len(at), marker, ms=size, mew=0, color=colour,
                      alpha=0.6, clip_on=False)  # fmt: skip
        if low < c.ratio < high:
            fill = "white" if over_other_levels(results, one) else colour
            axes.plot([c.ratio], [height], "s", ms=5, color=colour, mfc=fill)
        # A bound that is nan, of one seed, is neither the least nor the largest.
        arrows = ((low, "<", min(c.ratio, c.low) <= low), (high, ">", max(c.ratio, c.high) >= high))
        for edge, marker, needed in arrows:
            if needed:
                axes.plot([edge], [height], marker, color=colour, clip_on=False)
    axes.annotate(
        text, (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
        color=colour, annotation_clip=False,
    )  # fmt: skip


def beyond(ratios: Array, limits: Window) -> dict[str, Array]:
    """Returns where to draw the ratios of seeds, by marker: a dot, or an arrow at an edge."""
    low, high = limits
    found = {
        ".": ratios[(ratios >= low) & (ratios <= high)],
        "<": np.full(int((ratios < low).sum()), low),
        ">": np.full(int((ratios > high).sum()), high),
    }
    # An unclipped line without a point has no extent that a layout could use.
    return {marker: at for marker, at in found.items() if len(at)}


def ratios(results: Results, compared: Comparisons, case: str) -> Picture | None:
    """Draws the ratio to the baseline over sigma, each with its band; None where there is none."""
    lines: dict[str, dict[str, Band]] = {}
    for arm in results.arms(case):
        own = {one.variant: _line(results, one) for one in running(compared, case, arm)}
        lines[arm] = {variant: line for variant, line in own.items() if len(line)}
    if not any(lines.values()):
        return None
    figure, grid = panels(len(lines), width=5.4, height=3.1)
    order = results.variants(case)
    measure = "excess risk" if results.oracle(case) else "loss"
    draw_row(grid[0], lines, order, f"{measure} over the baseline’s", limits=_tallest(lines))
    half = math.exp(results.settings.smallest_effect)
    for axes in grid[0]:
        axes.axhspan(1 / half, half, color="#ececec", lw=0, zorder=0)
        axes.axhline(1, color=REFERENCE, lw=1)
        for band in ranges.bands(results)[1:]:
            edge = band.low * results.sigma_data(case)
            axes.axvline(edge, color=REFERENCE, lw=0.6, linestyle=":")
    note = f"Bands: {results.level:.0%} t interval of each level by itself."
    return picture(figure, "ratio", case, note)


def _line(results: Results, one: Versus) -> Band:
    """The ratio to the baseline by level, and which levels both were trained on."""
    found = per_level(results, one.case, one.arm, one.variant, one.against)
    line = pd.DataFrame([(at, *ratio) for at, ratio in found.items()], columns=["x", *COLUMNS])
    sigma = line["x"].to_numpy(dtype=float)
    both = [ranges.inside(results, label, sigma) for label in one.labels]
    return line.assign(trained=np.all(both, axis=0))


COLUMNS = ("value", "low", "high")


def _tallest(lines: dict[str, dict[str, Band]]) -> Window:
    """The range of the ratios at trained levels, each line cut to within FAR of the baseline."""
    values = [line.loc[line["trained"], "value"] for own in lines.values() for line in own.values()]
    every = pd.concat([*values, pd.Series([1 / 1.1, 1.1])]).clip(1 / FAR, FAR)
    return float(every.min()) / 1.1, float(every.max()) * 1.1
