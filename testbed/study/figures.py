"""The report's figures of one case: what to draw and what to look for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from testbed.study.drawing import (
    DECADES,
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
    slug,
    text_of,
)
from testbed.study.results import Results, chosen

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
    note = f" Trials that diverged ({lost}) have no line." if lost else ""
    return f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval.{note}"


def excess(results: Results, case: str) -> Picture | None:
    """Excess risk per level in eps form, with the irreducible loss and the linear denoiser's excess."""
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

    caption = (
        "Excess risk over σ², E|D − D*|²/(d σ²): what each model missed, lower is better. The area "
        "under a curve over log σ times d is its excess in nats, so look for where a curve is high. "
        "Grey: the irreducible loss of the exact denoiser (dotted) and the excess of the best linear "
        "one (Wiener, dash-dotted); a model above the latter has learnt less than the covariance. "
    )
    return by_arm(
        results, case, "excess", line, "excess risk / σ²  (per dimension)",
        caption + of_seeds(results, case), references,
    )  # fmt: skip


def wiener(results: Results, case: str) -> Picture | None:
    """Loss over the loss of the best linear denoiser, per level."""
    table = results.levels[results.levels["case"] == case]
    table = table.assign(relative=table["loss"] / table["wiener"])

    def line(arm: str, variant: str) -> Band:
        return band(chosen(table, case, arm, variant), "sigma", "relative", results.level)

    def references(axes: Axes) -> list[End]:
        axes.axhline(1, color=REFERENCE, lw=1, linestyle="-.")
        return []

    caption = (
        "Denoising loss over that of the best linear denoiser (the Gaussian fitted to the training "
        "split). Below 1 (grey line) a model uses more than the covariance; above 1 it has not learnt "
        "even that. Look at which end of σ each parameterization fails. "
    )
    return by_arm(
        results, case, "wiener", line, "loss / Wiener loss",
        caption + of_seeds(results, case), references,
    )  # fmt: skip


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
    for axes, (title, found) in zip(grid[0], lines.items(), strict=True):
        axes.set(xscale="log", yscale="log", title=title.removesuffix(", "), xlabel=SIGMA)
        draw(axes, found, order)
    grid[0][0].set_ylabel("root mean square")
    limit(grid[0][0], [b for found in lines.values() for b in found.values()], "log")
    for axes, found in zip(grid[0], lines.values(), strict=True):
        name_ends(axes, ends_of(found, order))
    name = f"sizes_{slug(case)}"
    caption = (
        "Size of what the network is asked for (left, exact) and of what it gives (right, trained "
        "models on held-out data). A target that spans decades asks one network for outputs of very "
        "different size; an output that leaves its target’s curve has not followed it. "
    )
    return Picture(name, text_of(figure, name), caption + of_seeds(results, case))


def start(results: Results, case: str) -> Picture | None:
    """Expected loss per level before training."""
    return _exact(
        results, case, "start", "loss_start", "expected loss at F = 0, mean 1",
        "The loss before training: its expectation at F = 0 for each noise level, over its mean under "
        "the training density. Flat: every level starts with equal say. A peak: the first steps are "
        "spent there. Variants with a loss that is not quadratic have no line.",
    )  # fmt: skip


def weights(results: Results, case: str) -> Picture | None:
    """Effective weights in eps form, normalised to a peak of 1."""
    return _exact(
        results, case, "weights", "weight_eps", "λ p(log σ) σ², peak 1",
        "Effective weight of the error in ε, λ(σ) p(log σ) σ², scaled to a peak of 1: what a run really "
        "optimises. With one weighting and one density the curves coincide.",
        peak=True,
    )  # fmt: skip


def _exact(
    results: Results,
    case: str,
    name: str,
    column: str,
    ylabel: str,
    caption: str,
    peak: bool = False,
) -> Picture | None:
    """A column of coefficients.csv over sigma, without intervals: it is no measurement."""
    if column not in results.coefficients:
        return None

    def line(arm: str, variant: str) -> Band:
        found = chosen(results.coefficients, case, arm, variant)
        y = found[column].astype(float)
        y = y / y.max() if peak else y
        return pd.DataFrame({"x": found["sigma"], "value": y})[y > 0]

    return by_arm(results, case, name, line, ylabel, caption)


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
            axes.set(yscale="log", title=arm, xlabel="training step")
            draw(axes, found[arm], order)
        row[0].set_ylabel(ylabel)
        if any(found.values()):
            limit(row[0], [b for lines in found.values() for b in lines.values()], "log")
        for axes, arm in zip(row, arms, strict=True):
            name_ends(axes, ends_of(found[arm], order))
    if not drawn:
        return None
    name = f"training_{slug(case)}"
    caption = (
        "Above: training loss over its expected value at F = 0. The losses are different objectives: "
        "compare shapes, not heights. Below: standard deviation over mean of the gradient norm "
        "between two points of the curve; high means that few draws decide the steps. "
    )
    return Picture(name, text_of(figure, name), caption + of_seeds(results, case))


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
    scales = {"c_skip": "linear", "c_out": "log", "c_in": "log", "c_noise": "symlog"}
    figure, grid = panels(-(-len(wanted) // 2), rows=2, width=3.2, height=2.5, shared=False)
    seen: list[str] = []
    for axes, (column, arm) in zip(grid.T.flat, wanted, strict=False):
        title = f"{'|c_out|' if column == 'c_out' else column}{f', {arm}' if arm else ''}"
        axes.set(xscale="log", yscale=scales[column], title=title, xlabel=SIGMA)
        for variant in order:
            rows = table[(table["case"] == case) & (table["variant"] == variant)]
            rows = rows[rows["arm"] == (arm or (rows["arm"].iloc[0] if len(rows) else ""))]
            y = rows[column].abs() if column == "c_out" else rows[column]
            if len(rows):
                axes.plot(rows["sigma"], y, **ink(variant, order), label=variant)
                seen.append(variant)
    for axes in grid.T.flat[len(wanted) :]:
        axes.set_visible(False)
    if not seen:
        return None
    handles = [grid.flat[0].plot([], [], **ink(v, order))[0] for v in dict.fromkeys(seen)]
    figure.legend(
        handles,
        list(dict.fromkeys(seen)),
        loc="outside upper left",
        ncols=8,
        frameon=False,
        handlelength=3.2,
    )
    name = f"coefficients_{slug(case)}"
    caption = (
        "The coefficients of D = c_skip x + c_out F(c_in x, c_noise). |c_out| is what multiplies the "
        "network’s own error in D: look for where it exceeds 1. c_skip and c_out are the same in every "
        "arm."
    )
    return Picture(name, text_of(figure, name), caption)


__all__ = ["DECADES", "Picture", "of_case"]
