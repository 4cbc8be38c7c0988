"""The report's figures of one case: what to draw and what to look for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from testbed.report.drawing import (
    REFERENCE,
    SIGMA,
    Band,
    End,
    Picture,
    band,
    by_arm,
    draw,
    ends_of,
    ink,
    limit,
    name_ends,
    panels,
    picture,
    scale,
)
from testbed.report.results import Results, chosen

POINTS = 100


def of_case(results: Results, case: str) -> Iterator[Picture]:
    """The figures that the case has the numbers for."""
    for figure in (excess, wiener, sizes, start, training, weights, coefficients):
        picture = figure(results, case)
        if picture is not None:
            yield picture


def of_seeds(results: Results, case: str) -> str:
    """How bands are to be read in this case."""
    trials = results.trials[results.trials["case"] == case]
    lost = int((trials["status"] == "diverged").sum())
    note = f" Trials that diverged ({lost}) were not measured and are not in it." if lost else ""
    return f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval.{note}"


def excess(results: Results, case: str) -> Picture | None:
    """Excess risk per level in eps form, with the irreducible loss and the linear excess."""
    table = results.levels[results.levels["case"] == case]
    if "excess" not in table or not table["excess"].notna().any():
        return None
    table = table.assign(nats=table["excess"] / table["sigma"] ** 2)
    once = table.groupby("sigma")[["optimum", "wiener"]].first().reset_index()
    grey = {
        "irreducible": (once["optimum"] / once["sigma"] ** 2, ":"),
        "Wiener": ((once["wiener"] - once["optimum"]) / once["sigma"] ** 2, "-."),
    }

    def line(arm: str, variant: str) -> Band:
        return band(chosen(table, case, arm, variant), "sigma", "nats", results.level)

    def references(axes: Axes) -> list[End]:
        ends = []
        for name, (y, dash) in grey.items():
            drawn = y.where(y > 0)
            axes.plot(once["sigma"], drawn, color=REFERENCE, lw=1, linestyle=dash)
            if drawn.notna().any():
                at = drawn.last_valid_index()
                ends.append((name, float(once["sigma"][at]), float(drawn[at]), REFERENCE))
        return ends

    ylabel = "excess risk / σ²  (per dimension)"
    return by_arm(
        results, case, "excess", line, ylabel, of_seeds(results, case), references, keep="low"
    )


def wiener(results: Results, case: str) -> Picture | None:
    """Loss over the loss of the best linear denoiser, per level."""
    table = results.levels[results.levels["case"] == case]
    table = table.assign(relative=table["loss"] / table["wiener"])

    def line(arm: str, variant: str) -> Band:
        return band(chosen(table, case, arm, variant), "sigma", "relative", results.level)

    def references(axes: Axes) -> list[End]:
        axes.axhline(1, color=REFERENCE, lw=1, linestyle="-.")
        return []

    ylabel, note = "loss / Wiener loss", of_seeds(results, case)
    return by_arm(results, case, "wiener", line, ylabel, note, references, keep="low")


def sizes(results: Results, case: str) -> Picture | None:
    """Root mean square of the target (from the coefficients) and of the output (measured)."""
    arms, order = results.arms(case), results.variants(case)
    known, measured = results.coefficients, results.levels
    lines: dict[str, dict[str, Band]] = {"target": {}, **{f"output, {arm}": {} for arm in arms}}
    for arm in arms:
        for variant in results.variants(case, arm):
            if "target_rms" in known:
                found = chosen(known, case, arm, variant)
                table = pd.DataFrame({"x": found["sigma"], "value": found["target_rms"]})
                if len(table):
                    lines["target"].setdefault(variant, table)
            if "output_rms" in measured:
                here = chosen(measured, case, arm, variant)
                table = band(here, "sigma", "output_rms", results.level)
                if len(table):
                    lines[f"output, {arm}"][variant] = table
    if not any(lines.values()):
        return None
    figure, grid = panels(len(lines), width=3.6)
    for axes, (title, drawn) in zip(grid[0], lines.items(), strict=True):
        scale(axes, "log", "log")
        axes.set(title=title.removesuffix(", "), xlabel=SIGMA)
        draw(axes, drawn, order)
    grid[0][0].set_ylabel("root mean square")
    limit(grid[0][0], [line for drawn in lines.values() for line in drawn.values()], "log")
    for axes, drawn in zip(grid[0], lines.values(), strict=True):
        name_ends(axes, ends_of(drawn, order))
    return picture(figure, "sizes", case, of_seeds(results, case))


def start(results: Results, case: str) -> Picture | None:
    """Expected loss per level before training."""
    return _exact(results, case, "start", "loss_start", "expected loss at F = 0, mean 1")


def weights(results: Results, case: str) -> Picture | None:
    """Effective weights in eps form, normalised to a peak of 1."""
    return _exact(results, case, "weights", "weight_eps", "λ p(log σ) σ², peak 1", peak=True)


def _exact(
    results: Results, case: str, kind: str, column: str, ylabel: str, peak: bool = False
) -> Picture | None:
    """A column of coefficients.csv over sigma, without intervals: it is no measurement."""
    if column not in results.coefficients:
        return None

    def line(arm: str, variant: str) -> Band:
        found = chosen(results.coefficients, case, arm, variant)
        y = found[column].astype(float)
        y = y / y.max() if peak else y
        return pd.DataFrame({"x": found["sigma"], "value": y})[y > 0]

    return by_arm(results, case, kind, line, ylabel)


def training(results: Results, case: str) -> Picture | None:
    """Training curves and the coefficient of variation of the gradient norm."""
    table = results.curves[results.curves["case"] == case]
    arms, order = results.arms(case), results.variants(case)
    kinds = {"loss": "loss / loss at F = 0", "gradient_norm_cv": "variation of the gradient norm"}
    figure, grid = panels(len(arms), rows=2, height=2.7)
    drawn = False
    for row, (column, ylabel) in zip(grid, kinds.items(), strict=True):
        found = {
            arm: {
                v: line
                for v in results.variants(case, arm)
                if len(line := _curve(chosen(table, case, arm, v), column, results.level))
            }
            for arm in arms
        }
        drawn = drawn or any(found.values())
        for axes, arm in zip(row, arms, strict=True):
            scale(axes, "linear", "log")
            axes.set(title=arm, xlabel="training step")
            draw(axes, found[arm], order)
        row[0].set_ylabel(ylabel)
        if any(found.values()):
            limit(row[0], [b for lines in found.values() for b in lines.values()], "log")
        for axes, arm in zip(row, arms, strict=True):
            name_ends(axes, ends_of(found[arm], order))
    if not drawn:
        return None
    means = f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval"
    return picture(figure, "training", case, f"{means}; both end where a trial diverged.")


def _curve(table: pd.DataFrame, column: str, level: float) -> Band:
    steps = np.unique(table["step"].to_numpy())
    if len(steps) > POINTS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))]
    return band(table[table["step"].isin(steps)], "step", column, level)


def coefficients(results: Results, case: str) -> Picture | None:
    """c_skip, |c_out|, c_in and c_noise over sigma, the inputs once per arm."""
    table = results.coefficients
    if not {"c_skip", "c_out", "c_in", "c_noise"} <= set(table):
        return None
    arms, order = results.arms(case), results.variants(case)
    wanted = [("c_skip", ""), ("c_out", "")]
    wanted += [(name, arm) for name in ("c_in", "c_noise") for arm in arms]
    scales = {"c_skip": "linear", "c_out": "log", "c_in": "log"}
    figure, grid = panels(-(-len(wanted) // 2), rows=2, width=3.2, height=2.5, shared=False)
    seen: list[str] = []
    for axes, (column, arm) in zip(grid.T.flat, wanted, strict=False):
        rows = table[(table["case"] == case) & (table["arm"] == (arm or arms[0]))]
        wide = rows[column].abs().max() > 10
        scale(axes, "log", scales.get(column, "symlog" if wide else "linear"))
        name = "|c_out|" if column == "c_out" else column
        axes.set(title=f"{name}, {arm}" if arm else name, xlabel=SIGMA)
        for variant in order:
            found = rows[rows["variant"] == variant]
            if len(found):
                y = found[column].abs() if column == "c_out" else found[column]
                axes.plot(found["sigma"], y, **ink(variant, order))
                seen.append(variant)
    for axes in grid.T.flat[len(wanted) :]:
        axes.set_visible(False)
    if not seen:
        return None
    names = list(dict.fromkeys(seen))
    handles = [Line2D([], [], **ink(name, order)) for name in names]
    figure.legend(
        handles, names, loc="outside upper left", ncols=8, frameon=False, handlelength=3.2
    )
    return picture(figure, "coefficients", case)
