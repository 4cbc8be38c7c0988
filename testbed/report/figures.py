"""The report's figures of one case."""

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
    draw_row,
    ink,
    lines_by_arm,
    panels,
    picture,
    scale,
)
from testbed.report.ranges import inside
from testbed.report.results import Label, Results, chosen
from testbed.report.words import BELOW_ONE

POINTS = 100


def of_case(results: Results, case: str) -> Iterator[Picture]:
    """Yields the figures that the case has the numbers for."""
    figures = (excess, wiener, sizes, start, training, weights, coefficients)
    yield from filter(None, (figure(results, case) for figure in figures))


def of_seeds(results: Results, case: str) -> str:
    """Returns what the lines and bands of this case are, and how many trials they leave out."""
    trials = results.trials[results.trials["case"] == case]
    diverged = int((trials["status"] == "diverged").sum())
    note = (
        f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval; thin: levels "
        "that the variant’s training never draws."
    )
    if not diverged:
        return note
    return f"{note} Trials that diverged ({diverged}) were not measured and are not in it."


def excess(results: Results, case: str) -> Picture | None:
    """Draws excess risk by level in eps form, with the irreducible loss and the linear excess."""
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
        return _over_seeds(results, table, (case, arm, variant), "nats")

    def references(axes: Axes) -> list[End]:
        ends = []
        for name, (y, dash) in grey.items():
            y = y.where(y > 0)
            axes.plot(once["sigma"], y, color=REFERENCE, lw=1, linestyle=dash)
            if (last := y.last_valid_index()) is not None:
                ends.append((name, float(once["sigma"][last]), float(y[last]), REFERENCE))
        return ends

    ylabel = "excess risk / σ²  (per dimension)"
    return by_arm(
        results, case, "excess", line, ylabel, of_seeds(results, case), references, keep="low"
    )


def _over_seeds(results: Results, table: pd.DataFrame, label: Label, column: str) -> Band:
    """A column of the table by level over seeds, and which levels the variant was trained on."""
    line = band(chosen(table, *label), "sigma", column, results.level)
    return line.assign(trained=inside(results, label, line["x"].to_numpy(dtype=float)))


def wiener(results: Results, case: str) -> Picture | None:
    """Draws the loss over that of the best linear denoiser, by level."""
    table = results.levels[results.levels["case"] == case]
    table = table.assign(relative=table["loss"] / table["wiener"])

    def line(arm: str, variant: str) -> Band:
        return _over_seeds(results, table, (case, arm, variant), "relative")

    def references(axes: Axes) -> list[End]:
        axes.axhline(1, color=REFERENCE, lw=1, linestyle="-.")
        return []

    ylabel = "loss / Wiener loss"
    note = f"{BELOW_ONE[results.sound(case)]} {of_seeds(results, case)}"
    return by_arm(results, case, "wiener", line, ylabel, note, references, keep="low")


def sizes(results: Results, case: str) -> Picture | None:
    """Draws the root mean square of the target (exact) and of the output (trained models)."""

    def target(arm: str, variant: str) -> Band:
        exact = chosen(results.coefficients, case, arm, variant)
        if "target_rms" not in exact:
            return pd.DataFrame()
        return pd.DataFrame({"x": exact["sigma"], "value": exact["target_rms"]})

    def output(arm: str, variant: str) -> Band:
        levels = chosen(results.levels, case, arm, variant)
        if "output_rms" not in levels:
            return pd.DataFrame()
        return band(levels, "sigma", "output_rms", results.level)

    targets, outputs = (lines_by_arm(results, case, line) for line in (target, output))
    once: dict[str, Band] = {}
    for own in targets.values():
        once |= {variant: line for variant, line in own.items() if variant not in once}
    lines = {"target": once}
    lines |= {f"output, {arm}".removesuffix(", "): own for arm, own in outputs.items()}
    if not any(lines.values()):
        return None
    figure, grid = panels(len(lines), width=3.6)
    draw_row(grid[0], lines, results.variants(case), "root mean square")
    return picture(figure, "sizes", case, of_seeds(results, case))


def start(results: Results, case: str) -> Picture | None:
    """Draws the expected loss by level before training."""
    return _exact(results, case, "start", "loss_start", "expected loss at F = 0, mean 1")


def weights(results: Results, case: str) -> Picture | None:
    """Draws the effective weights in eps form, normalised to a peak of 1."""
    return _exact(results, case, "weights", "weight_eps", "λ p(log σ) σ², peak 1", peak=True)


def _exact(
    results: Results, case: str, kind: str, column: str, ylabel: str, peak: bool = False
) -> Picture | None:
    """Draws a column of coefficients.csv over sigma, without intervals: it is no measurement."""
    if column not in results.coefficients:
        return None

    def line(arm: str, variant: str) -> Band:
        table = chosen(results.coefficients, case, arm, variant)
        y = table[column].astype(float)
        y = y / y.max() if peak else y
        return pd.DataFrame({"x": table["sigma"], "value": y})[y > 0]

    return by_arm(results, case, kind, line, ylabel)


def training(results: Results, case: str) -> Picture | None:
    """Draws training curves and the coefficient of variation of the gradient norm."""
    columns = {"loss": "loss / loss at F = 0", "gradient_norm_cv": "variation of the gradient norm"}

    def curves(column: str) -> dict[str, dict[str, Band]]:
        def line(arm: str, variant: str) -> Band:
            return _curve(chosen(results.curves, case, arm, variant), column, results.level)

        return lines_by_arm(results, case, line)

    rows = {ylabel: curves(column) for column, ylabel in columns.items()}
    if not any(any(lines.values()) for lines in rows.values()):
        return None
    figure, grid = panels(len(results.arms(case)), rows=2, height=2.7)
    for row, (ylabel, lines) in zip(grid, rows.items(), strict=True):
        order = results.variants(case)
        draw_row(row, lines, order, ylabel, xscale="linear", xlabel="training step")
    means = f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval"
    return picture(figure, "training", case, f"{means}; both end where a trial diverged.")


def _curve(table: pd.DataFrame, column: str, level: float) -> Band:
    steps = np.unique(table["step"].to_numpy())
    if len(steps) > POINTS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))]
    return band(table[table["step"].isin(steps)], "step", column, level)


def coefficients(results: Results, case: str) -> Picture | None:
    """Draws c_skip, |c_out|, c_in and c_noise over sigma, the latter two for each arm."""
    table = results.coefficients
    if not {"c_skip", "c_out", "c_in", "c_noise"} <= set(table):
        return None
    arms, order = results.arms(case), results.variants(case)
    curves = [("c_skip", ""), ("c_out", "")]
    curves += [(name, arm) for name in ("c_in", "c_noise") for arm in arms]
    scales = {"c_skip": "linear", "c_out": "log", "c_in": "log"}
    figure, grid = panels(-(-len(curves) // 2), rows=2, width=3.2, height=2.5, shared=False)
    variants: dict[str, None] = {}
    for axes, (column, arm) in zip(grid.T.flat, curves, strict=False):
        rows = table[(table["case"] == case) & (table["arm"] == (arm or arms[0]))]
        wide = rows[column].abs().max() > 10
        scale(axes, "log", scales.get(column, "symlog" if wide else "linear"))
        name = "|c_out|" if column == "c_out" else column
        axes.set(title=f"{name}, {arm}" if arm else name, xlabel=SIGMA)
        for variant in order:
            own = rows[rows["variant"] == variant]
            if len(own):
                y = own[column].abs() if column == "c_out" else own[column]
                axes.plot(own["sigma"], y, **ink(variant, order))
                variants[variant] = None
    for axes in grid.T.flat[len(curves) :]:
        axes.set_visible(False)
    if not variants:
        return None
    handles = [Line2D([], [], label=name, **ink(name, order)) for name in variants]
    ncols = min(8, max(1, round(figure.get_figwidth() / 1.1)))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=ncols, frameon=False, handlelength=3.2
    )
    return picture(figure, "coefficients", case)
