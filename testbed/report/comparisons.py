"""Every statement of the report as a test over seeds, in families that are declared beforehand.

    baseline   each variant against the baseline of its case and arm, on the primary metric: over
               all levels that both were trained on, and in each band of them
    arm        each variant in a later arm against itself in the first
    pair       every other pair of variants of one case and arm, unless it has more than MOST_PAIRED

The first two kinds are one family over the whole study, from which every verdict is taken. The
pairs are another: they only say which variants the best is not separated from. Both are corrected
by Holm's method. Variants with equal objectives are never compared, nor is a trial with itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from testbed.metrics.comparison import Comparison, compare
from testbed.metrics.intervals import Interval, mean_interval
from testbed.metrics.multiple_comparisons import correct
from testbed.metrics.paired_tests import ALPHA
from testbed.report import ranges
from testbed.report.equal_objectives import equal_to
from testbed.report.learning import nothing_learnt
from testbed.report.ranges import CommonLevels, NoiseBand
from testbed.report.results import LABEL, Label, Results
from testbed.report.words import LESS, listed
from testbed.study import baseline

NAN = float("nan")
KINDS = ("baseline", "arm", "pair")
MOST_PAIRED = 50
"""The most variants of a case and arm, besides the baseline, whose pairs are compared."""


@dataclass(frozen=True)
class Versus:
    """The comparison of `variant` in `arm` with `against` in `against_arm`, paired by seed.

    Args:
        kind: "baseline", "arm" or "pair".
        band: the band of noise levels that it is made over; empty for all levels in common.
        levels: the levels that both were measured at; None for a metric that is not made of them.
        comparison: over the common levels; None where there is none, for the `reason`.
        whole: over all levels, without a verdict, where those in common are fewer.
        reason: why there is no verdict.
        lost: which of the two diverged or learnt nothing; there is no verdict then.
    """

    kind: str
    case: str
    metric: str
    arm: str
    variant: str
    against_arm: str
    against: str
    band: str = ""
    levels: CommonLevels | None = None
    comparison: Comparison | None = None
    whole: Comparison | None = None
    reason: str = ""
    lost: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "equivalent", "better", "worse", "undecided", or why none of these may be said."""
        if self.reason or self.comparison is None:
            return self.reason
        return self.comparison.verdict

    @property
    def small(self) -> bool:
        """Whether an undecided effect is shown to differ from zero: its estimate is too small."""
        c = self.comparison
        if c is None or self.verdict != "undecided":
            return False
        return c.p_holm < ALPHA and not c.low <= 1 <= c.high

    @property
    def said(self) -> str:
        """The verdict as the report says it: LESS of some that are undecided."""
        return LESS if self.small else self.verdict

    @property
    def short(self) -> str:
        """The verdict in a word or two, where there is no room for the reason."""
        if not self.lost:
            return self.said.partition(":")[0]
        who = "" if self.lost == (self.variant,) else f"{' and '.join(self.lost)} "
        diverged = self.comparison is not None and self.comparison.diverged
        return f"{who}{'diverged' if diverged else 'learnt nothing'}"

    @property
    def labels(self) -> tuple[Label, Label]:
        """Both sides."""
        return (self.case, self.arm, self.variant), (self.case, self.against_arm, self.against)

    def row(self) -> dict[str, Any]:
        """Returns a row of comparisons.csv."""
        row = {name: getattr(self, name) for name in ROW}
        numbers = asdict(self.comparison) if self.comparison else dict.fromkeys(NUMBERS)
        counts: dict[str, float] = dict.fromkeys(("levels", "levels_in_common"), NAN)
        if (at := self.levels) is not None:
            counts = {"levels": len(at.every), "levels_in_common": int(at.trained.sum())}
        whole = self.whole or self.comparison
        bounds = {f"whole_{name}": getattr(whole, name, NAN) for name in ("ratio", "low", "high")}
        return {**row, **numbers, **counts, **bounds, "verdict": self.verdict}


ROW = ("kind", "case", "metric", "arm", "variant", "against_arm", "against", "band")
NUMBERS = tuple(Comparison.__dataclass_fields__)


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a study, corrected within their families."""

    judged: list[Versus]
    """Those with the baseline, over all levels and in each band, and those between arms."""
    pairs: list[Versus]

    def table(self) -> pd.DataFrame:
        """Returns comparisons.csv: ratios without unit, p values, verdicts."""
        rows = [one.row() for one in (*self.judged, *self.pairs)]
        return pd.DataFrame(rows, columns=list(Versus("", "", "", "", "", "", "").row()))

    @property
    def tests(self) -> dict[str, int]:
        """How many comparisons with a test there are of each kind, and how many in bands."""
        made = [one for one in (*self.judged, *self.pairs) if one.comparison is not None]
        found = {kind: sum(one.kind == kind and not one.band for one in made) for kind in KINDS}
        return {**found, "band": sum(bool(one.band) for one in made)}

    def between_arms(self, case: str) -> list[Versus]:
        """Returns the comparisons of a variant with itself in the first arm."""
        return [one for one in self.judged if one.kind == "arm" and one.case == case]

    @cached_property
    def _to_baseline(self) -> dict[tuple[str, str, str, str], Versus]:
        made = [one for one in reversed(self.judged) if one.kind == "baseline"]
        return {(one.case, one.arm, one.variant, one.band): one for one in made}

    def to_baseline(self, case: str, arm: str, variant: str, band: str = "") -> Versus | None:
        """Returns the comparison of a variant with its baseline; None for the baseline itself."""
        return self._to_baseline.get((case, arm, variant, band))

    def with_baseline(self, case: str, arm: str, band: str = "") -> list[Versus]:
        """Returns the comparisons of a case and arm with its baseline."""
        key = ("baseline", case, arm, band)
        return [v for v in self.judged if (v.kind, v.case, v.arm, v.band) == key]

    def of(self, case: str, arm: str, one: str, other: str) -> Versus | None:
        """Returns the comparison of two variants within an arm, in the direction it was made in."""
        pairs = [v for v in self.pairs if (v.case, v.arm) == (case, arm)]
        made = (*self.with_baseline(case, arm), *pairs)
        return next((v for v in made if {v.variant, v.against} == {one, other}), None)


def make(results: Results) -> Comparisons:
    """Makes all comparisons on the primary metrics."""
    made = [one for case in results.cases for one in _of_case(results, case)]
    judged = [one for one in made if one.kind != "pair"]
    return Comparisons(family(judged), family([one for one in made if one.kind == "pair"]))


def _of_case(results: Results, case: str) -> Iterator[Versus]:
    first, *later = results.arms(case)
    for arm in (first, *later):
        reference = baseline_of(results, case, arm)
        others = [name for name in results.variants(case, arm) if name != reference]
        for one in others:
            labels = (case, arm, one), (case, arm, reference)
            yield (whole := versus(results, "baseline", *labels))
            if whole.comparison is not None and whole.levels is not None:
                yield from _in_bands(results, whole)
        paired_up = others if len(others) <= MOST_PAIRED else ()
        for one, other in itertools.combinations(paired_up, 2):
            yield versus(results, "pair", (case, arm, one), (case, arm, other))
    for arm in later:
        for variant in in_both(results, case, arm, first):
            yield versus(results, "arm", (case, arm, variant), (case, first, variant))


def _in_bands(results: Results, one: Versus) -> Iterator[Versus]:
    """The same comparison in each band that has levels in common."""
    assert one.levels is not None
    for band in ranges.bands(results):
        if ranges.members(results, one.case, band, one.levels.levels).any():
            found = _comparison(results, *one.labels, one.metric, one.levels, band)
            yield replace(one, band=band.name, comparison=found, whole=None)


def in_both(results: Results, case: str, arm: str, first: str) -> list[str]:
    """Returns the variants of an arm that the first arm has too."""
    names = results.variants(case, first)
    return [name for name in results.variants(case, arm) if name in names]


def family(members: Sequence[Versus]) -> list[Versus]:
    """Returns the same members, with p values corrected over those that were compared."""
    corrected = iter(correct(one.comparison for one in members if one.comparison is not None))
    return [
        one if one.comparison is None else replace(one, comparison=next(corrected))
        for one in members
    ]


def versus(results: Results, kind: str, a: Label, b: Label) -> Versus:
    """Compares two settings over the levels that both were trained on, uncorrected."""
    (case, arm, variant), (_, other_arm, other) = a, b
    metric = results.primary(case)
    one = Versus(kind, case, metric, arm, variant, other_arm, other)
    if arm == other_arm and other in equal_to(results, case, arm, variant):
        return replace(one, reason="equal objectives: not compared")
    if _same(results, a, b):
        return replace(one, reason="the same trials")
    everywhere, levels = ranges.common(results, a, b), levels_of(results, a, b, metric)
    compare_over = partial(_comparison, results, a, b, metric)
    if levels is not None and not len(levels.measured):
        return replace(one, levels=levels, reason="they were measured at no level in common")
    if levels is not None and not len(levels.levels):
        reason = f"both were trained on {levels.text}"
        whole = compare_over(levels.untrained_too)
        return replace(one, levels=levels, whole=whole, reason=reason)
    found = compare_over(levels)
    if found is None:
        both = set(results.values(*a, metric).index) & set(results.values(*b, metric).index)
        why = "a value is not positive" if both else "no seed of both has ended"
        return replace(one, reason=f"no comparison: {why}")
    one = replace(one, comparison=found, levels=levels)
    if levels is not None and not levels.whole:
        one = replace(one, whole=compare_over(levels.untrained_too))
    names = (arm, other_arm) if variant == other else (variant, other)
    if found.diverged:
        counts = dict(zip(names, (found.diverged_a, found.diverged_b), strict=True))
        lost = tuple(name for name, count in counts.items() if count)
        first, *others = lost
        parts = [f"{first} diverged in {counts[first]}"]
        parts += [f"{name} in {counts[name]}" for name in others]
        return replace(one, reason=f"{listed(parts)} of {found.seeds} seeds", lost=lost)
    sides = zip(names, (a, b), strict=True)
    stuck = {name: nothing_learnt(results, side, everywhere) for name, side in sides}
    if any(stuck.values()):
        lost = tuple(name for name, text in stuck.items() if text)
        said = "; ".join(dict.fromkeys(filter(None, stuck.values())))
        return replace(one, reason=said, lost=lost)
    if levels is not None and not levels.enough:
        return replace(one, reason=f"both were trained on {levels.text} only")
    return one


def _same(results: Results, a: Label, b: Label) -> bool:
    """Whether two settings are the same trials, or the same trainings measured with one result.

    A trial that has discrete opponents in one arm is measured at their levels there, and is another
    one in the other arm.
    """
    if set(results.of(*a)["id"]) == set(results.of(*b)["id"]):
        return True
    metric = results.primary(a[0])
    x, y = results.values(*a, metric), results.values(*b, metric)
    return x.equals(y) and _trainings(results, a) == _trainings(results, b) != set()


def _trainings(results: Results, label: Label) -> set[str]:
    """The trainings of a setting's trials; empty where a record cannot be read."""
    configs = [results.configs.get(id_) for id_ in results.of(*label)["id"]]
    if None in configs:
        return set()
    return {one.training_text for one in configs if one is not None}


def _comparison(
    results: Results,
    a: Label,
    b: Label,
    metric: str,
    levels: CommonLevels | None,
    band: NoiseBand | None = None,
) -> Comparison | None:
    """Compares a with b over the seeds that both have; None without one, or without a logarithm."""
    return compared(results, paired(results, a, b, metric, levels, band))


def paired(
    results: Results,
    a: Label,
    b: Label,
    metric: str,
    levels: CommonLevels | None,
    band: NoiseBand | None = None,
) -> pd.DataFrame:
    """Returns a metric of two settings, columns a and b, by the seeds that both have."""
    x, y = (ranges.values(results, label, metric, levels, band) for label in (a, b))
    return pd.DataFrame({"a": x, "b": y}).dropna().sort_index()


def compared(results: Results, pairs: pd.DataFrame) -> Comparison | None:
    """Compares the columns a and b; None without a row, or where a value has no logarithm."""
    first, second = pairs["a"].to_numpy(), pairs["b"].to_numpy()
    if len(pairs) == 0 or (first <= 0).any() or (second <= 0).any():
        return None
    smallest = results.settings.smallest_effect
    return compare(first, second, results.level, smallest, results.look.test)


def levels_of(results: Results, a: Label, b: Label, metric: str) -> CommonLevels | None:
    """Returns the levels that two settings are compared over; None for a metric without levels."""
    if not all(ranges.of_levels(results, label, metric) for label in (a, b)):
        return None
    return ranges.common(results, a, b)


def baseline_of(results: Results, case: str, arm: str) -> str:
    """Returns the variant of a case and arm that its others are compared with."""
    return baseline.chosen(_baseline_word(results), results.variants(case, arm))


def baseline_note(results: Results, case: str, arm: str) -> str:
    """Returns how the baseline was chosen, where its name leaves that open, or nothing."""
    return baseline.note(_baseline_word(results), results.variants(case, arm))


def _baseline_word(results: Results) -> str:
    """The baseline as the study names it."""
    return results.settings.baseline


def result_table(results: Results) -> pd.DataFrame:
    """Returns results.csv: every metric of every label with its interval over seeds, in its unit.

    Geometric means where every value of the metric in the case is positive, else arithmetic ones.
    n counts the trials that ended, `diverged` those that did so (value and bounds are then nan),
    `missing` those that failed or have not ended. `sampling_error` is the standard error of one
    trial's value, the root mean square over trials. The interval has it in it where it is that of
    the trial's own samples, not where it is that of held-out points that all trials share
    (excess_nats, nll and what goes with them).
    """
    rows, errors = [], sampling_errors(results)
    for case in results.cases:
        for metric in results.metric_names(case):
            log = geometric(results, case, metric)
            for arm in results.arms(case):
                for variant in results.variants(case, arm):
                    values = results.values(case, arm, variant, metric)
                    rows.append(
                        {
                            **dict(zip(LABEL, (case, arm, variant), strict=True)),
                            "metric": metric,
                            "mean": "geometric" if log else "arithmetic",
                            "n": len(values),
                            "diverged": int((~np.isfinite(values)).sum()),
                            "missing": len(results.of(case, arm, variant)) - len(values),
                            **interval(values.to_numpy(), results.level, log)._asdict(),
                            "sampling_error": errors.get((case, arm, variant, metric), NAN),
                        }
                    )
    columns = [*LABEL, "metric", "mean", "n", "diverged", "missing", *Interval._fields]
    columns.append("sampling_error")
    return pd.DataFrame(rows, columns=columns)


def sampling_errors(results: Results) -> dict[tuple[str, str, str, str], float]:
    """Returns each metric's error in a trial, root mean square over a label's; nan for none."""
    squares = results.metrics.assign(error=results.metrics["error"] ** 2)
    means = np.sqrt(squares.groupby([*LABEL, "metric"], sort=False)["error"].mean())
    return {(str(c), str(a), str(v), str(m)): float(e) for (c, a, v, m), e in means.items()}


def geometric(results: Results, case: str, metric: str) -> bool:
    """Whether a metric is positive throughout a case, so that it has a geometric mean."""
    table = results.metrics
    values = table.loc[(table["case"] == case) & (table["metric"] == metric), "value"]
    return bool((values > 0).all())


def interval(values: Any, level: float, log: bool) -> Interval:
    """Returns `mean_interval` of the values, with nan for no value at all."""
    return mean_interval(values, level, log) if len(values) else Interval(NAN, NAN, NAN)


def level_table(results: Results) -> pd.DataFrame:
    """Returns levels.csv: per noise level, geometric means over the finished seeds with intervals.

    Losses and excess risks are per dimension in x0 space. `trained` says whether the variant's
    training can draw the level. `ratio` is the loss, or with an oracle the excess risk, over the
    baseline's, paired by seed; verdicts are taken of bands of levels, not of single ones. Trials
    that diverged have no levels: `diverged` counts them.
    """
    rows: list[dict[str, Any]] = []
    for case in results.cases:
        measure = "excess" if results.oracle(case) else "loss"
        for arm in results.arms(case):
            reference = baseline_of(results, case, arm)
            for variant in results.variants(case, arm):
                label = (case, arm, variant)
                table = results.levels_of(label)
                diverged = int((results.of(*label)["status"] == "diverged").sum())
                ratios = per_level(results, case, arm, variant, reference)
                for level, here in table.groupby("level"):
                    row: dict[str, Any] = dict(zip(LABEL, label, strict=True))
                    row |= {"sigma": float(here["sigma"].iloc[0]), "n": len(here)}
                    trained = ranges.inside(results, label, np.array([float(str(level))]))
                    row |= {"diverged": diverged, "trained": bool(trained[0])}
                    for name in ("loss", "excess", "output_rms", "error_rms", "input_rms"):
                        if name in here and here[name].notna().all():
                            y = here[name].to_numpy()
                            bounds = mean_interval(y, results.level, log=bool((y > 0).all()))
                            columns = (name, f"{name}_low", f"{name}_high")
                            row |= dict(zip(columns, bounds, strict=True))
                    for name in ("wiener", "optimum", "target_rms"):
                        if name in here:
                            row[name] = float(here[name].iloc[0])
                    if float(str(level)) in ratios:
                        ratio = ratios[float(str(level))]
                        row |= {"measure": measure, "baseline": reference, "ratio": ratio.value}
                        row |= {"ratio_low": ratio.low, "ratio_high": ratio.high}
                    rows.append(row)
    return pd.DataFrame(rows)


def per_level(
    results: Results, case: str, arm: str, variant: str, against: str
) -> Mapping[float, Interval]:
    """Returns the ratio of excess risk (or loss) of two variants at each level, with interval."""
    measure = "excess" if results.oracle(case) else "loss"
    if against in (variant, *equal_to(results, case, arm, variant)):
        return {}
    if any((results.of(case, arm, v)["status"] == "diverged").any() for v in (variant, against)):
        return {}
    a, b = (results.by_level((case, arm, name)) for name in (variant, against))
    if a is None or b is None or any(measure not in side.columns for side in (a, b)):
        return {}
    seeds = [seed for seed in a.seeds if seed in b.seeds]
    level = np.intersect1d(a.level, b.level)
    x, y = (side.at(level)[measure][[side.seeds.index(s) for s in seeds]] for side in (a, b))
    usable = (
        ((x > 0) & (y > 0) & np.isfinite(x / y)).all(0) if seeds else np.zeros(len(level), bool)
    )
    return {
        float(level[i]): mean_interval(x[:, i] / y[:, i], results.level, log=True)
        for i in np.flatnonzero(usable)
    }
