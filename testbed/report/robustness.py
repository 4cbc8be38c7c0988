"""What a sentence of the lead hangs on: it is made again without each variant and each seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from testbed.report import ranges
from testbed.report.comparisons import Versus, baseline_of
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

    def hangs_on(self, statement: Callable[[Results], Statement | None]) -> list[str]:
        """Returns the variants and seeds without any one of which a sentence would be another.

        Args:
            statement: what the sentence states of results; None where its subject is left out.
        """
        full = statement(self.results)
        others = {name: statement(rest) for name, rest in self.rest.items()}
        return [name for name, one in others.items() if one is not None and one != full]


def effect(one: Versus, signed: bool) -> Callable[[Results], Effect | None]:
    """Returns the statement of a comparison: the sign of its effect, if `signed`, and its side."""

    def statement(results: Results) -> Effect | None:
        mean = _log_ratio(results, one)
        if math.isnan(mean):
            return None
        sign = (1 if mean > 0 else -1) if signed else 0
        return Effect(sign, abs(mean) >= results.settings.smallest_effect)

    return statement


def lowest(
    versus: Iterable[Versus], baseline: str, ranked: Sequence[str]
) -> Callable[[Results], str | None]:
    """Returns the statement which of the ranked variants is the lowest; None without the first."""
    members = [one for one in versus if one.variant in ranked]

    def statement(results: Results) -> str | None:
        means = {one.variant: _log_ratio(results, one) for one in members} | {baseline: 0.0}
        left = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        return min(left, key=lambda name: left[name]) if ranked[0] in left else None

    return statement


def _log_ratio(results: Results, one: Versus) -> float:
    """The mean log ratio of a comparison over the seeds of both sides; nan where there is none."""
    band = next((band for band in ranges.bands(results) if band.name == one.band), None)
    sides = [ranges.values(results, label, one.metric, one.levels, band) for label in one.labels]
    seeds = sides[0].index.intersection(sides[1].index)
    if not len(seeds):
        return math.nan
    a, b = (np.log(side.loc[seeds].to_numpy()) for side in sides)
    return float((a - b).mean())
