"""Whether the samples agree: their distances to held-out data, each variant against the baseline.

A distance may be estimated as zero or below, so that it has no ratio: the comparison is the mean
over seeds of the difference to the baseline, paired by seed, with the study's own test and its t
interval. All variants with a baseline of other trials, in every case and arm and on each distance,
are a family of their own, corrected by Holm's method. There is no smallest effect of interest, and
so no equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from testbed.metrics.intervals import Interval
from testbed.metrics.multiple_comparisons import holm
from testbed.metrics.paired_tests import ALPHA, MIN_SEEDS
from testbed.report.comparisons import Versus, baseline_of
from testbed.report.equal_objectives import equal_to
from testbed.report.results import Label, Results
from testbed.report.robustness import LeaveOneOut, OfMeans
from testbed.report.words import difference, floor, listed, number, title

DISTANCES = ("energy", "mmd", "sliced_wasserstein", "c2st")
"""The metrics that are least where the samples are distributed as the data are."""
FOLLOWS = {"better": "better", "worse": "worse"}


@dataclass(frozen=True)
class SampleComparison:
    """The difference of a distance between a variant and the baseline of its case and arm.

    Args:
        metric: one of DISTANCES.
        seeds: how many pairs there are, those of trials that diverged included.
        difference: the mean over seeds in the metric's unit, with its interval; nan where a trial
            of either side diverged.
        p: two-sided paired test of no difference; nan without one.
        p_holm: `p` corrected for the family.
    """

    case: str
    arm: str
    variant: str
    against: str
    metric: str
    seeds: int
    difference: Interval
    p: float
    p_holm: float = math.nan

    @property
    def label(self) -> Label:
        """Case, arm and variant."""
        return self.case, self.arm, self.variant

    @property
    def verdict(self) -> str:
        """ "better", "worse", "undecided", "too few seeds" or "diverged"."""
        if math.isnan(self.difference.value):
            return "diverged"
        if math.isnan(self.p_holm):
            return "too few seeds"
        value, low, high = self.difference
        if self.p_holm >= ALPHA or low <= 0 <= high:
            return "undecided"
        return "better" if value < 0 else "worse"

    def row(self) -> dict[str, Any]:
        """Returns a row of samples.csv."""
        row = asdict(self) | {"verdict": self.verdict}
        value, low, high = row.pop("difference")
        return row | {"difference": value, "low": low, "high": high}


def make(results: Results) -> list[SampleComparison]:
    """Makes all comparisons of distances, corrected as one family."""
    made = list(_uncorrected(results))
    # One that lost its test to a divergence stays in the family, as one with p = 1.
    lost = [math.isnan(one.difference.value) for one in made]
    corrected = holm([1.0 if out else one.p for one, out in zip(made, lost, strict=True)])
    return [
        one if out else replace(one, p_holm=p)
        for one, out, p in zip(made, lost, corrected, strict=True)
    ]


def table(made: Sequence[SampleComparison]) -> pd.DataFrame:
    """Returns samples.csv: differences in the metric's unit, p values, verdicts."""
    empty = SampleComparison("", "", "", "", "", 0, Interval(math.nan, math.nan, math.nan), 1.0)
    return pd.DataFrame([one.row() for one in made], columns=list(empty.row()))


def sentences(
    left: LeaveOneOut, made: Sequence[SampleComparison], versus: Sequence[Versus]
) -> Iterator[str]:
    """What the samples of a case and arm say beside the verdicts on the primary metric.

    Args:
        left: the results, and those without each variant and seed.
        made: all comparisons of distances.
        versus: the comparisons of the case and arm on the primary metric.
    """
    judged = {one.labels[0]: one for one in versus if one.comparison is not None and not one.reason}
    here = [own for own in made if own.label in judged]
    by_metric = {name: [own for own in here if own.metric == name] for name in DISTANCES}
    first: list[str] = []
    for metric, members in by_metric.items():
        verdicts = [own.verdict for own in members]
        if members and verdicts == first:
            yield f"{title(metric)} gives the same verdicts."
        elif members:
            claims: dict[str, list[str]] = {}
            for own in members:
                claims.setdefault(_beside(own, judged[own.label]), []).append(_claim(left, own))
            said = "; ".join(part.format(listed(names)) for part, names in claims.items())
            yield f"{_about(left.results, members[0])}: {said}."
        first = first or verdicts


def _about(results: Results, own: SampleComparison) -> str:
    """`by energy distance of the samples (0.04 for edm, 0.002 ± 0.01 for real data)`."""
    mean = results.values(own.case, own.arm, own.against, own.metric).mean()
    real = floor(results.facts.get(own.case, {}).get("floors", {}).get(own.metric))
    values = f"{number(mean)} for {own.against}, {real} for real data"
    return f"by {title(own.metric)} of the samples ({values})"


def _beside(own: SampleComparison, one: Versus) -> str:
    """The verdict on the samples, with a place for names, beside that on the primary metric."""
    if own.verdict == "too few seeds":
        return "{} untested, on too few seeds"
    if own.verdict not in FOLLOWS:
        return f"{own.verdict} for {{}}"
    if own.verdict == one.verdict:
        return f"{own.verdict} for {{}}, as the verdict is"
    if one.verdict in FOLLOWS:
        return f"{own.verdict} for {{}}, against the verdict"
    return f"{own.verdict} for {{}}, where the verdict is {one.said}"


def _claim(left: LeaveOneOut, own: SampleComparison) -> str:
    """`v (−0.012 [−0.020, −0.004]; hangs on seed 2)`."""
    parts = [difference(*own.difference)]
    if own.verdict in FOLLOWS and (found := left.hangs_on(_sign(own))):
        parts.append(f"hangs on {listed(found)}")
    return f"{own.variant} ({'; '.join(parts)})"


def _sign(own: SampleComparison) -> OfMeans[bool]:
    """The statement which side has the larger distance; None where one is left out."""
    labels = own.label, (own.case, own.arm, own.against)

    def values(results: Results) -> dict[str, pd.Series[float]]:
        return {own.variant: _paired(results, *labels, own.metric)}

    def judge(means: Mapping[str, float]) -> bool | None:
        mean = means[own.variant]
        return None if math.isnan(mean) else mean > 0

    return OfMeans(values, judge)


def _uncorrected(results: Results) -> Iterator[SampleComparison]:
    for case in results.cases:
        metrics = [name for name in DISTANCES if name in results.metric_names(case)]
        for arm in results.arms(case):
            reference = baseline_of(results, case, arm)
            baseline = (case, arm, reference)
            for variant in results.variants(case, arm):
                same = variant == reference or reference in equal_to(results, case, arm, variant)
                for metric in () if same else metrics:
                    found = _paired(results, (case, arm, variant), baseline, metric)
                    if len(found):
                        yield _of(results, (case, arm, variant, reference, metric), found)


def _of(
    results: Results, names: tuple[str, str, str, str, str], found: pd.Series[float]
) -> SampleComparison:
    """The comparison of paired differences, uncorrected."""
    values, test = np.asarray(found, dtype=np.float64), results.look.test
    if found.isna().any():
        return SampleComparison(*names, len(values), Interval(*[math.nan] * 3), math.nan)
    p = test.p(values) if len(values) >= MIN_SEEDS else math.nan
    return SampleComparison(*names, len(values), test.interval(values, results.level), p)


def _paired(results: Results, a: Label, b: Label, metric: str) -> pd.Series[float]:
    """The differences of a metric by the seeds that both have; nan where one diverged."""
    x, y = results.values(*a, metric), results.values(*b, metric)
    seeds = x.index.intersection(y.index)
    differences = x.loc[seeds] - y.loc[seeds]
    finite = differences.abs() < math.inf
    return differences.where(finite, math.nan)


def tests(made: Sequence[SampleComparison]) -> int:
    """Returns how many of the comparisons are tested."""
    return sum(not math.isnan(one.p) for one in made)


def note(made: Sequence[SampleComparison]) -> list[str]:
    """What the differences between samples are, and how they are judged."""
    if not (count := tests(made)):
        return []
    return [
        "Of the samples the finding has the mean difference to the baseline, in the metric’s unit "
        f"and paired by seed; its verdicts are corrected for {count} tests, a family of their own."
    ]
