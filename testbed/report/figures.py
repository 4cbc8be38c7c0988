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
    Line,
    Picture,
    band,
    by_arm,
    draw,
    draw_row,
    ink,
    lines_by_arm,
    panels,
    picture,
    scale,
)
from testbed.report.ranges import inside
from testbed.report.results import Label, Results, Rows
from testbed.report.words import BELOW_ONE

POINTS = 100
ALIKE = 0.05
"""The relative difference that two lines of a figure do not show."""
LEAST = 1e-300
"""What stands for 0 where a logarithm is taken."""


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
        "that the variant was not trained on."
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
    of_label = Rows(table)
    once = table.groupby("sigma")[["optimum", "wiener"]].first().reset_index()
    grey = {
        "irreducible": (once["optimum"] / once["sigma"] ** 2, ":"),
        "Wiener": ((once["wiener"] - once["optimum"]) / once["sigma"] ** 2, "-."),
    }

    def line(arm: str, variant: str) -> Band:
        return _over_seeds(results, of_label, (case, arm, variant), "nats")

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


def _over_seeds(results: Results, rows: Rows, label: Label, column: str) -> Band:
    """A column of the rows by level over seeds, and which levels the variant was trained on."""
    line = band(rows[label], "sigma", column, results.level)
    return line.assign(trained=inside(results, label, line["x"].to_numpy(dtype=float)))


def wiener(results: Results, case: str) -> Picture | None:
    """Draws the loss over that of the fitted linear denoiser, by level."""
    table = results.levels[results.levels["case"] == case]
    of_label = Rows(table.assign(relative=table["loss"] / table["wiener"]))

    def line(arm: str, variant: str) -> Band:
        return _over_seeds(results, of_label, (case, arm, variant), "relative")

    def references(axes: Axes) -> list[End]:
        axes.axhline(1, color=REFERENCE, lw=1, linestyle="-.")
        return []

    ylabel = "loss / Wiener loss"
    note = f"{BELOW_ONE[results.sound(case)]} {of_seeds(results, case)}"
    return by_arm(results, case, "wiener", line, ylabel, note, references, keep="low")


def sizes(results: Results, case: str) -> Picture | None:
    """Draws the root mean square of the target (exact) and of the output (trained models)."""
    of_label = Rows(results.coefficients)

    def target(arm: str, variant: str) -> Band:
        exact = of_label[case, arm, variant]
        if "target_rms" not in exact:
            return pd.DataFrame()
        return pd.DataFrame({"x": exact["sigma"], "value": exact["target_rms"]})

    def output(arm: str, variant: str) -> Band:
        levels = results.levels_of((case, arm, variant))
        if "output_rms" not in levels:
            return pd.DataFrame()
        return band(levels, "sigma", "output_rms", results.level)

    targets, outputs = (lines_by_arm(results, case, line) for line in (target, output))
    targets = once_if_alike(targets)
    lines = {
        f"{name}, {arm}".removesuffix(", "): own
        for name, panels_of in (("target", targets), ("output", outputs))
        for arm, own in panels_of.items()
    }
    if not any(lines.values()):
        return None
    rows = 2 if len(targets) > 1 else 1
    width, height = ((3.6, 3.3), (4.6, 2.5))[rows - 1]
    figure, grid = panels(len(lines) // rows, rows, width, height)
    for below in grid[1:]:
        below[0].sharex(grid[0][0])
        below[0].sharey(grid[0][0])
    draw_row([*grid.flat], lines, results.variants(case), "root mean square")
    return picture(figure, "sizes", case, of_seeds(results, case))


def once_if_alike(lines: dict[str, dict[str, Band]]) -> dict[str, dict[str, Band]]:
    """Returns exact lines by arm and variant under one arm "" where they are the same in every arm.

    Each variant's line is then that of the first arm that has it.
    """
    once: dict[str, Band] = {}
    for own in lines.values():
        for variant, line in own.items():
            if not alike(once.setdefault(variant, line), line):
                return lines
    return {"": once}


def alike(a: Band, b: Band) -> bool:
    """Says whether two exact lines agree within ALIKE at the levels in the range of both.

    The lines may be given at different levels, between which log |value| is linear in log x. Lines
    whose ranges have no level in common are not known to agree.
    """
    x, u = (np.log(line["x"].to_numpy(dtype=float)) for line in (a, b))
    y, v = (line["value"].to_numpy(dtype=float) for line in (a, b))
    common = (x >= u.min()) & (x <= u.max())
    if not common.any():
        return False
    sizes = np.log(np.maximum(np.abs(y), LEAST)), np.log(np.maximum(np.abs(v), LEAST))
    return all(
        np.allclose(np.interp(x[common], u, other), own[common], rtol=0, atol=ALIKE)
        for own, other in (sizes, (np.sign(y), np.sign(v)))
    )


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
    of_label = Rows(results.coefficients)

    def line(arm: str, variant: str) -> Band:
        table = of_label[case, arm, variant]
        y = table[column].astype(float)
        y = y / y.max() if peak else y
        return pd.DataFrame({"x": table["sigma"], "value": y})[y > 0]

    return by_arm(results, case, kind, line, ylabel)


def training(results: Results, case: str) -> Picture | None:
    """Draws training curves and the coefficient of variation of the gradient norm."""
    columns = {"loss": "loss / loss at F = 0", "gradient_norm_cv": "variation of the gradient norm"}
    of_label = Rows(results.curves)

    def curves(column: str) -> dict[str, dict[str, Band]]:
        def line(arm: str, variant: str) -> Band:
            return _curve(of_label[case, arm, variant], column, results.level)

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
    """Draws c_skip, |c_out|, c_in and c_noise over sigma, for each arm where its arms differ."""
    names = ("c_skip", "c_out", "c_in", "c_noise")
    if not set(names) <= set(results.coefficients):
        return None
    columns = [once_if_alike(lines_by_arm(results, case, _coefficient(results, case, name)))
               for name in names]  # fmt: skip
    order = results.variants(case)
    scales = {"c_skip": "linear", "c_out": "log", "c_in": "log"}
    rows = max(map(len, columns))
    figure, grid = panels(len(names), rows, width=2.7, height=2.5, shared=False)
    variants: dict[str, None] = {}
    for below, name, lines in zip(grid.T, names, columns, strict=True):
        for axes, (arm, own) in zip(below, lines.items(), strict=False):
            wide = any(line["value"].abs().max() > 10 for line in own.values())
            scale([axes], "log", scales.get(name, "symlog" if wide else "linear"))
            shown = "|c_out|" if name == "c_out" else name
            axes.set(title=f"{shown}, {arm}".removesuffix(", "), xlabel=SIGMA)
            draw(axes, own, order)
            variants |= dict.fromkeys(own)
        for axes in below[len(lines) :]:
            axes.set_visible(False)
    if not variants:
        return None
    handles = [Line2D([], [], label=name, **ink(name, order)) for name in order if name in variants]
    ncols = min(8, max(1, round(figure.get_figwidth() / 1.1)))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=ncols, frameon=False, handlelength=3.2
    )
    return picture(figure, "coefficients", case)


def _coefficient(results: Results, case: str, column: str) -> Line:
    """The line of a coefficient, of c_out its size."""
    of_label = Rows(results.coefficients)

    def line(arm: str, variant: str) -> Band:
        table = of_label[case, arm, variant]
        y = table[column].astype(float)
        return pd.DataFrame({"x": table["sigma"], "value": y.abs() if column == "c_out" else y})

    return line
