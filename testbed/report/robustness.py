"""What a sentence of the lead hangs on: it is made again without each variant, seed and band.

The bands are those of the study, fixed before its results. A sentence that is on one band already
is not made again without others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

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


class LeaveOneOut:
    """The results of a case without each variant and each seed, by what was left out.

    The baselines of its arms are never left out, nor is the only seed.
    """

    def __init__(self, results: Results, case: str) -> None:
        kept = {baseline_of(results, case, arm) for arm in results.arms(case)}
        seeds = sorted(set(results.trials.loc[results.trials["case"] == case, "seed"]))
        variants = [name for name in results.variants(case) if name not in kept]
        self.results = results
        self.rest = {name: results.without(case, variant=name) for name in variants}
        if len(seeds) > 1:
            self.rest |= {f"seed {s}": results.without(case, seed=int(s)) for s in seeds}

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
        others = {name: statement(rest) for name, rest in self.rest.items()}
        if of_levels is not None:
            for band in ranges.bands(self.results):
                others[band.name] = of_levels(band.rest)(self.results)
        return [name for name, one in others.items() if one is not None and one != full]


def effect(
    one: Versus, signed: bool, band: NoiseBand | None = None
) -> Callable[[Results], Effect | None]:
    """Returns the statement of a comparison: the sign of its effect, if `signed`, and its side.

    It is on the comparison's own band where `band` names no other.
    """

    def statement(results: Results) -> Effect | None:
        mean = _log_ratio(results, one, band)
        if math.isnan(mean):
            return None
        sign = (1 if mean > 0 else -1) if signed else 0
        return Effect(sign, abs(mean) >= results.settings.smallest_effect)

    return statement


def lowest(
    versus: Iterable[Versus], baseline: str, ranked: Sequence[str], band: NoiseBand | None = None
) -> Callable[[Results], str | None]:
    """Returns the statement which of the ranked variants is the lowest; None without the first."""
    members = [one for one in versus if one.variant in ranked]

    def statement(results: Results) -> str | None:
        means = {one.variant: _log_ratio(results, one, band) for one in members} | {baseline: 0.0}
        left = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        return min(left, key=lambda name: left[name]) if ranked[0] in left else None

    return statement


def _log_ratio(results: Results, one: Versus, band: NoiseBand | None) -> float:
    """The mean log ratio of a comparison over the seeds of both sides; nan where there is none."""
    band = band or next((own for own in ranges.bands(results) if own.name == one.band), None)
    sides = [ranges.values(results, label, one.metric, one.levels, band) for label in one.labels]
    seeds = sides[0].index.intersection(sides[1].index)
    if not len(seeds):
        return math.nan
    a, b = (side.loc[seeds].to_numpy() for side in sides)
    # In nats a band of levels that were all left out has none.
    return float(np.log(a / b).mean()) if (np.minimum(a, b) > 0).all() else math.nan
