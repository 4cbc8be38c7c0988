"""Whether a variant learnt anything: beyond F = 0, where training starts, and beyond a linear map.

The rule. In each band of noise levels the loss is divided by that of F = 0, and by that of the
linear denoiser fitted to the training split, as a geometric mean over the band's levels. A variant
learnt nothing beyond one of them where, in every band, the interval of that ratio over seeds lies
above exp(-smallest effect). Bands in which the exact denoiser is no better either, where it is
known, are left out; where that leaves none, there is nothing to be learnt and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.metrics.curves import Array, Columns, Mask
from testbed.metrics.intervals import mean_interval
from testbed.report import ranges
from testbed.report.level_curves import alike
from testbed.report.ranges import CommonLevels
from testbed.report.results import Label, Results

Ratio = Callable[[Columns], Array]


def to_linear(table: Columns) -> Array:
    """Returns log(loss / loss of the fitted linear denoiser), (S, L)."""
    return np.asarray(np.log(table["loss"] / table["wiener"]))


def to_start(table: Columns) -> Array:
    """Returns log(loss / loss at F = 0), (S, L): both are c_out^2 times a square on F's side."""
    return np.asarray(2 * np.log(table["error_rms"] / table["target_rms"]))


def nothing_learnt(results: Results, label: Label, levels: CommonLevels | None) -> str:
    """Returns `edm learnt nothing beyond the linear denoiser (F = 0)`, or nothing.

    It is decided over the levels that `levels` has in common, by the rule of this module.
    """
    found = results.by_level(label)
    if levels is None or found is None:
        return ""
    table = found.at(levels.levels)
    bands = [
        mask
        for band in ranges.bands(results)
        if (mask := ranges.members(results, label[0], band, levels.levels)).any()
    ]
    linear = _nowhere_better(results, table, bands, to_linear)
    start = "error_rms" in table and _nowhere_better(results, table, bands, to_start)
    beyond = {
        (True, True): "the linear denoiser (F = 0)",
        (True, False): "the linear denoiser",
        (False, True): "F = 0",
    }.get((linear, start), "")
    return beyond and f"{label[2]} learnt nothing beyond {beyond}"


def linear_levels(results: Results, label: Label) -> tuple[Array, Mask] | None:
    """Returns the levels that a variant is asked for, (L,), and where D = x beats the linear one.

    The linear denoiser is the fitted one. The loss of D = x is sigma^2 times the mean of n d
    squared unit Gaussian numbers, n held-out draws in d dimensions: only what is above sigma^2 by
    more than 3 standard errors counts, sigma^2 (1 + 3 sqrt(2/(n d))).

    Returns:
        None where nothing was measured, or at levels of a table only.
    """
    found, config = results.by_level(label), results.config(label)
    if found is None or config is None or not alike(found.asked, found.level).all():
        return None
    numbers = config.evaluation.draws * results.dimensions(label[0])
    table = found.at(found.counted)
    worse = table["wiener"] > table["sigma"] ** 2 * (1 + 3 * np.sqrt(2 / numbers))
    return found.counted, np.asarray(worse.all(0), dtype=bool)


def _nowhere_better(results: Results, table: Columns, bands: list[Mask], ratio: Ratio) -> bool:
    """Whether there is something to learn, and no band where it is shown to be learnt."""
    least, logs = -results.settings.smallest_effect, ratio(table)
    learnable = bands
    if "optimum" in table:
        best = (logs + np.log(table["optimum"] / table["loss"]))[0]
        learnable = [band for band in bands if best[band].mean() < least]
    intervals = (mean_interval(logs[:, band].mean(1), results.level) for band in learnable)
    return bool(learnable) and all(interval.low > least for interval in intervals)
