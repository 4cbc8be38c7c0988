"""What a sentence of the lead hangs on: it is made again without each variant, seed and band.

The bands are those of the study, fixed before its results. A sentence that is on one band already
is not made again without others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from testbed.metrics.curves import Array
from testbed.report import ranges
from testbed.report.comparisons import Versus, baseline_of
from testbed.report.ranges import NoiseBand
from testbed.report.results import Results

Statement = TypeVar("Statement")


class Effect(NamedTuple):
    """What a sentence on an effect says of it, whatever its size.

    Args:
        sign: -1 for lower, 1 for higher, 0 where the sentence says neither.
        matters: whether it is at least the smallest effect of interest.
    """

    sign: int
    matters: bool


@dataclass(frozen=True)
class OfMeans(Generic[Statement]):
    """A statement on means over seeds, which is made anew without reading the results again.

    Args:
        values: of results, the values of each variant that the statement is on, by seed.
        judge: what it states of their means, nan for a variant that is left out.
    """

    values: Callable[[Results], Mapping[str, pd.Series[float]]]
    judge: Callable[[Mapping[str, float]], Statement | None]

    def __call__(self, results: Results) -> Statement | None:
        """What it states of results."""
        values = self.values(results)
        means = {name: _mean(np.asarray(own, dtype=np.float64)) for name, own in values.items()}
        return self.judge(means)

    def without(self, results: Results, omitted: Iterable[str | int]) -> list[Statement | None]:
        """What it states of the results without each variant, a word, or seed, a number."""
        values = {
            name: (np.asarray(own, dtype=np.float64), own.index)
            for name, own in self.values(results).items()
        }
        means = {name: _mean(own) for name, (own, _) in values.items()}
        places = {name: {seed: i for i, seed in enumerate(s)} for name, (_, s) in values.items()}
        found = []
        for one in omitted:
            less = dict(means)
            if isinstance(one, str):
                less |= {one: math.nan} if one in means else {}
            else:
                for name, (own, _) in values.items():
                    if (place := places[name].get(one)) is not None:
                        less[name] = _mean(np.delete(own, place))
            found.append(self.judge(less))
        return found


class LeaveOneOut:
    """The results of a case, and its variants and seeds, which are left out one at a time.

    The baselines of its arms are never left out, nor is the only seed.
    """

    def __init__(self, results: Results, case: str) -> None:
        kept = {baseline_of(results, case, arm) for arm in results.arms(case)}
        seeds = sorted(set(results.trials.loc[results.trials["case"] == case, "seed"]))
        self.results = results
        self.case = case
        self.omitted: list[str | int] = [v for v in results.variants(case) if v not in kept]
        self.omitted += map(int, seeds if len(seeds) > 1 else ())

    def hangs_on(
        self,
        statement: Callable[[Results], Statement | None],
        of_levels: Callable[[NoiseBand], Callable[[Results], Statement | None]] | None = None,
    ) -> list[str]:
        """Returns the variants, seeds and bands without any one of which a sentence would differ.

        Args:
            statement: what the sentence states of results; None where its subject is left out.
            of_levels: the statement over the levels of a band, or of the rest of one, for a
                sentence on all levels.
        """
        full = statement(self.results)
        if isinstance(statement, OfMeans):
            found = statement.without(self.results, self.omitted)
        else:
            found = [statement(self.without(one)) for one in self.omitted]
        names = [one if isinstance(one, str) else f"seed {one}" for one in self.omitted]
        others = dict(zip(names, found, strict=True))
        if of_levels is not None:
            for band in ranges.bands(self.results):
                others[band.name] = of_levels(band.rest)(self.results)
        return [name for name, one in others.items() if one is not None and one != full]

    def without(self, one: str | int) -> Results:
        """Returns the results without a variant, a word, or a seed, a number."""
        omitted = {"variant": one} if isinstance(one, str) else {"seed": one}
        return self.results.without(self.case, **omitted)


def effect(one: Versus, signed: bool, band: NoiseBand | None = None) -> OfMeans[Effect]:
    """Returns the statement of a comparison: the sign of its effect, if `signed`, and its side.

    It is on the comparison's own band where `band` names no other.
    """
    assert one.comparison is not None
    smallest = one.comparison.smallest_effect

    def values(results: Results) -> dict[str, pd.Series[float]]:
        return {one.variant: _log_ratios(results, one, band)}

    def judge(means: Mapping[str, float]) -> Effect | None:
        mean = means[one.variant]
        if math.isnan(mean):
            return None
        sign = (1 if mean > 0 else -1) if signed else 0
        return Effect(sign, abs(mean) >= smallest)

    return OfMeans(values, judge)


def lowest(
    versus: Iterable[Versus], baseline: str, ranked: Sequence[str], band: NoiseBand | None = None
) -> OfMeans[str]:
    """Returns the statement which of the ranked variants is the lowest; None without the first."""
    members = [one for one in versus if one.variant in ranked]

    def values(results: Results) -> dict[str, pd.Series[float]]:
        return {one.variant: _log_ratios(results, one, band) for one in members}

    def judge(means: Mapping[str, float]) -> str | None:
        left = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        left[baseline] = 0.0
        return min(left, key=lambda name: left[name]) if ranked[0] in left else None

    return OfMeans(values, judge)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _log_ratios(results: Results, one: Versus, band: NoiseBand | None) -> pd.Series[float]:
    """The log ratios of a comparison by the seeds of both sides, nan where one has no logarithm."""
    band = band or next((own for own in ranges.bands(results) if own.name == one.band), None)
    sides = [ranges.values(results, label, one.metric, one.levels, band) for label in one.labels]
    pairs = pd.concat(sides, axis=1, join="inner").sort_index()
    a, b = pairs.to_numpy(dtype=np.float64).T
    # In nats a band of levels that were all left out has none.
    positive = np.minimum(a, b) > 0
    logs = np.log(np.divide(a, b, out=np.full(len(a), math.nan), where=positive))
    return pd.Series(logs, index=pairs.index)
