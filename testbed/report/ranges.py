"""The noise levels that a comparison is made over: those trained by both sides, and their bands."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from testbed.metrics import curves
from testbed.metrics.curves import Array, Mask
from testbed.report.level_curves import alike
from testbed.report.results import Label, Results
from testbed.study.settings import ReportSettings

NAMES = ("very low", "low", "high", "very high")
"""The bands between the default edges: SNR above 100, above 1, above 1/100, and below."""
LEAST_SHARE = 0.5
"""The share of the levels that both sides must be trained on for a verdict."""
FEWEST_DRAWS = 10
"""The fewest draws around a level that training must be expected to make, of all its steps.

With n expected, a training makes none with probability exp(-n), and their number varies by 1/sqrt n
from seed to seed: at 10 by a third, with one training in 20,000 without any. Below that it is
chance whether a level was trained on; above, what was learnt there is for the comparison to find.
"""
ROUNDING = 1e-6
"""How far, relatively, a level may lie outside of a range: the ends of a range are quantiles."""


@dataclass(frozen=True)
class NoiseBand:
    """The noise levels with low <= sigma/sigma_data < high, or all but those where `outside`."""

    name: str
    low: float
    high: float
    outside: bool = False

    @property
    def title(self) -> str:
        """`low noise, 0.1 ≤ σ/σ_data < 1`."""
        low = f"{self.low:g} ≤ " if self.low else ""
        high = f" < {self.high:g}" if math.isfinite(self.high) else ""
        return f"{self.name}, {low}σ/σ_data{high}"

    @property
    def place(self) -> str:
        """`below 0.1 σ_data`, `between 0.1 and 1 σ_data`, or `above 10 σ_data`."""
        if not self.low:
            return f"below {self.high:g} σ_data"
        if math.isinf(self.high):
            return f"above {self.low:g} σ_data"
        return f"between {self.low:g} and {self.high:g} σ_data"

    @property
    def rest(self) -> NoiseBand:
        """All levels but those of the band."""
        return replace(self, outside=not self.outside)


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
    """The levels that a comparison of two settings asks for, and those that it is made at.

    The two are the same where neither side is discrete. A discrete one is measured at the nearest
    levels of its table, and so is its opponent.

    Args:
        every: the levels that are asked for, (L,), ascending.
        trained: whether each lies in the range of training of both sides, (L,).
        measured: the levels at which both were measured, (M,), ascending.
        levels: those of the measured ones that both were trained on, (N,).
        counted: for each side, the levels that its trials' own metrics are made of.
    """

    every: Array
    trained: Mask
    measured: Array
    levels: Array
    counted: tuple[Array, ...]

    @property
    def stored(self) -> bool:
        """Whether the trials' own metrics, of both sides, are those of `levels`."""
        return all(np.array_equal(one, self.levels) for one in self.counted)

    @property
    def whole(self) -> bool:
        """Whether both were trained on every level that is asked for."""
        return bool(self.trained.all())

    @property
    def enough(self) -> bool:
        """Whether there are enough of them for a verdict."""
        share = int(self.trained.sum()) >= LEAST_SHARE * len(self.every)
        return share and min(len(self.levels), int(self.trained.sum())) >= 2

    @property
    def untrained_too(self) -> CommonLevels:
        """All levels at which both were measured, trained or not."""
        return replace(self, trained=np.ones(len(self.every), dtype=bool), levels=self.measured)

    @property
    def text(self) -> str:
        """`12 of 16 levels, σ = 0.01 to 39`."""
        count = f"{int(self.trained.sum())} of {len(self.every)} levels"
        if not len(self.levels):
            return count
        if not np.array_equal(self.every[self.trained], self.levels):
            count = f"{count} (the {len(self.levels)} nearest of a table)"
        return f"{count}, σ = {self.levels[0]:.2g} to {self.levels[-1]:.2g}"


def common(results: Results, *labels: Label) -> CommonLevels | None:
    """Returns the levels that these settings have in common; None where one was not measured.

    Levels of a table that both were measured at for the sake of a third setting do not count where
    both were measured at all levels that are asked for: they would count those twice.
    """
    found = [one for label in labels if (one := results.by_level(label)) is not None]
    if len(found) < len(labels):
        return None
    measured = functools.reduce(np.intersect1d, [one.level for one in found])
    every = found[0].asked
    for one in found[1:]:
        every = every[alike(every, one.asked)]
    if alike(every, measured).all():
        measured = every = measured[alike(measured, every)]
    inner, outer = (
        np.all([inside(results, one, levels) for one in labels], axis=0)
        for levels in (measured, every)
    )
    counted = tuple(one.counted for one in found)
    return CommonLevels(every, outer, measured, measured[inner], counted)


def inside(results: Results, label: Label, sigma: Array) -> Mask:
    """Returns whether a setting was trained on each level, (L,).

    Training must be able to draw the level, and FEWEST_DRAWS draws around it must be expected where
    their number is known.
    """
    mask: Mask = drawable(results, label, sigma) & (results.draws(label, sigma) >= FEWEST_DRAWS)
    return mask


def drawable(results: Results, label: Label, sigma: Array) -> Mask:
    """Returns whether each level, (L,), lies within the range of a setting's training."""
    low, high = results.trained(label)
    mask: Mask = (sigma >= low * (1 - ROUNDING)) & (sigma <= high * (1 + ROUNDING))
    return mask


def rarely_drawn(results: Results, label: Label, sigma: Array) -> Array:
    """Returns those of the levels (L,) that training can draw, and rarely does."""
    return sigma[drawable(results, label, sigma) & ~inside(results, label, sigma)]


def members(results: Results, case: str, band: NoiseBand, sigma: Array) -> Mask:
    """Returns which levels belong to a band, (L,)."""
    ratio = sigma / results.sigma_data(case)
    mask: Mask = ((ratio >= band.low) & (ratio < band.high)) != band.outside
    return mask


def values(
    results: Results,
    label: Label,
    metric: str,
    levels: CommonLevels | None,
    band: NoiseBand | None = None,
) -> pd.Series[float]:
    """Returns a metric over the common levels, or over a band of them, by seed.

    A metric that is not made of levels, or that the trials of both sides have of exactly these, is
    the trial's own number. A trial that diverged has inf.
    """
    stored = results.values(*label, metric)
    if levels is None or (levels.stored and band is None):
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
    results: Results,
    label: Label,
    metric: str,
    levels: CommonLevels,
    band: NoiseBand | None = None,
) -> bool:
    """Returns whether the linear denoiser has less of a metric than a setting has, maybe in a band.

    The means over the setting's seeds are compared, also without each one of them.
    """
    found = results.by_level(label)
    if found is None or not len(levels.levels):
        return False
    columns = found.at(levels.levels)
    if metric != curves.RELATIVE and not {"optimum", "wiener"} <= set(columns):
        return False
    mask = None if band is None else members(results, label[0], band, levels.levels)
    sides = (columns, curves.linear(metric, columns))
    mine, its = (curves.total(metric, curves.parts(metric, one, 1), mask) for one in sides)
    more = mine - its
    others = (more.sum() - more) / (len(more) - 1) if len(more) > 1 else more
    return bool(more.mean() > 0 and (others > 0).all())


def of_levels(results: Results, label: Label, metric: str) -> bool:
    """Returns whether a metric is made of the levels that a setting was measured at."""
    found = results.by_level(label)
    return found is not None and curves.of_levels(metric, found.columns)
