"""The noise levels that a comparison is made over: those trained by both sides, and their bands."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.metrics import curves
from testbed.metrics.curves import Array, Mask
from testbed.report.results import Label, Results
from testbed.study.settings import ReportSettings

NAMES = ("very low", "low", "high", "very high")
"""The bands between the default edges: SNR above 100, above 1, above 1/100, and below."""
LEAST_SHARE = 0.5
"""The share of the levels that both sides must be trained on for a verdict."""
ROUNDING = 1e-6
"""How far, relatively, a level may lie outside of a range: the ends of a range are quantiles."""


@dataclass(frozen=True)
class NoiseBand:
    """The noise levels with low <= sigma/sigma_data < high."""

    name: str
    low: float
    high: float

    @property
    def title(self) -> str:
        """`low noise, 0.1 ≤ σ/σ_data < 1`."""
        low = f"{self.low:g} ≤ " if self.low else ""
        high = f" < {self.high:g}" if math.isfinite(self.high) else ""
        return f"{self.name}, {low}σ/σ_data{high}"


def bands(results: Results) -> list[NoiseBand]:
    """Returns the bands of a study, in ascending order."""
    edges = results.settings.bands
    names = [f"{name} noise" for name in NAMES]
    if edges != ReportSettings().bands:
        names = [f"band {number}" for number in range(1, len(edges) + 2)]
    pairs = itertools.pairwise([0.0, *edges, math.inf])
    return [NoiseBand(name, *pair) for name, pair in zip(names, pairs, strict=True)]


@dataclass(frozen=True)
class CommonLevels:
    """The levels of the grid at which two settings were measured, and which both were trained on.

    Args:
        every: the levels, (L,), ascending.
        trained: whether both sides were trained on each, (L,).
    """

    every: Array
    trained: Mask

    @property
    def whole(self) -> bool:
        """Whether both were trained on every level."""
        return bool(self.trained.all())

    @property
    def enough(self) -> bool:
        """Whether there are enough of them for a verdict."""
        return int(self.trained.sum()) >= max(2, LEAST_SHARE * len(self.every))

    @property
    def levels(self) -> Array:
        """Those that both were trained on."""
        return self.every[self.trained]

    @property
    def text(self) -> str:
        """`12 of 16 levels, σ = 0.01 to 39`."""
        count = f"{len(self.levels)} of {len(self.every)} levels"
        if not len(self.levels):
            return count
        return f"{count}, σ = {self.levels[0]:.2g} to {self.levels[-1]:.2g}"


def common(results: Results, *labels: Label) -> CommonLevels | None:
    """Returns the levels that these settings have in common; None where none was measured."""
    found = [results.by_level(label) for label in labels]
    grids = [one.level for one in found if one is not None]
    if len(grids) < len(found):
        return None
    every = functools.reduce(np.intersect1d, grids)
    return CommonLevels(every, np.all([inside(results, one, every) for one in labels], axis=0))


def inside(results: Results, label: Label, sigma: Array) -> Mask:
    """Returns whether a setting was trained on each level, (L,)."""
    low, high = results.trained(label)
    mask: Mask = (sigma >= low * (1 - ROUNDING)) & (sigma <= high * (1 + ROUNDING))
    return mask


def members(results: Results, case: str, band: NoiseBand, sigma: Array) -> Mask:
    """Returns which levels belong to a band, (L,)."""
    ratio = sigma / results.sigma_data(case)
    mask: Mask = (ratio >= band.low) & (ratio < band.high)
    return mask


def values(
    results: Results,
    label: Label,
    metric: str,
    levels: CommonLevels | None,
    band: NoiseBand | None = None,
) -> pd.Series[float]:
    """Returns a metric over the common levels, or over a band of them, by seed.

    A metric that is not made of levels, or whose levels are all common, is the trial's own number.
    A trial that diverged has inf.
    """
    stored = results.values(*label, metric)
    if levels is None or (levels.whole and band is None):
        return stored
    found, mask = parts(results, label, metric, levels), None
    if found is None:
        return stored[stored.map(math.isinf)]
    if band is not None:
        mask = members(results, label[0], band, levels.levels)
    restricted = pd.Series(curves.total(metric, found.parts, mask), index=found.seeds)
    return restricted.reindex(stored.index).where(np.isfinite(stored), stored).dropna()


@dataclass(frozen=True)
class Parts:
    """The parts of a metric at the common levels, (S, L), and the seeds (S,)."""

    parts: Array
    seeds: tuple[int, ...]


def parts(results: Results, label: Label, metric: str, levels: CommonLevels) -> Parts | None:
    """Returns the parts of a metric that is made of levels; None where none was measured."""
    found = results.by_level(label)
    if found is None:
        return None
    dimensions = results.dimensions(label[0])
    return Parts(curves.parts(metric, found.at(levels.levels), dimensions), found.seeds)


def share(
    results: Results, label: Label, metric: str, levels: CommonLevels, band: NoiseBand
) -> float:
    """Returns the share of a band in a setting's metric, mean over its seeds; nan for none."""
    found = parts(results, label, metric, levels)
    mask = members(results, label[0], band, levels.levels)
    return math.nan if found is None else curves.share(metric, found.parts, mask)


def linear_is_better(
    results: Results, label: Label, metric: str, levels: CommonLevels, band: NoiseBand
) -> bool:
    """Returns whether the best linear denoiser has less of a metric in a band than a setting has.

    The setting's is the mean over its seeds.
    """
    found = results.by_level(label)
    if found is None or not len(levels.levels):
        return False
    columns = found.at(levels.levels)
    if metric != curves.RELATIVE and not {"optimum", "wiener"} <= set(columns):
        return False
    mask = members(results, label[0], band, levels.levels)
    sides = (columns, curves.linear(metric, columns))
    mine, its = (curves.total(metric, curves.parts(metric, one, 1), mask) for one in sides)
    return bool(mine.mean() > its.mean())


def of_levels(results: Results, label: Label, metric: str) -> bool:
    """Returns whether a metric is made of the levels that a setting was measured at."""
    found = results.by_level(label)
    return found is not None and curves.of_levels(metric, found.columns)
