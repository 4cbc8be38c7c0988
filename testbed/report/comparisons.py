"""Every statement of the report as a test over seeds, in families that are declared beforehand.

    baseline   each variant against the baseline of its case and arm, on the primary metric
    pair       every other pair of variants of one case and arm; with the former, it decides whether
               there is a winner
    arm        each variant in a later arm against itself in the first
    spread     worst over best variant within a seed, in a later arm against the first

Each kind is one family over the whole study, corrected by Holm's method. Twins are never compared,
nor is a trial with itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from testbed.metrics.statistics import Comparison, Interval, compare, correct, mean_interval
from testbed.report.equal_objectives import are_twins, distinct
from testbed.report.results import LABEL, Results, chosen
from testbed.study import baseline

NAN = float("nan")
SPREAD = "worst/best"


@dataclass(frozen=True)
class Versus:
    """`variant` in `arm` over `against` in `against_arm`, paired by seed, or why not."""

    kind: str
    case: str
    metric: str
    arm: str
    variant: str
    against_arm: str
    against: str
    comparison: Comparison | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """ "better", "worse", or why neither may be said."""
        if self.comparison is None:
            return self.reason
        c = self.comparison
        if not c.diverged:
            return c.verdict
        names = {self.variant: c.diverged_a, self.against: c.diverged_b}
        if self.variant == self.against:
            names = {self.arm: c.diverged_a, self.against_arm: c.diverged_b}
        lost = ", ".join(f"{name} in {count}" for name, count in names.items() if count)
        return f"diverged: {lost} of {c.seeds} seeds"

    def row(self) -> dict[str, Any]:
        """A row of comparisons.csv."""
        mine = {k: v for k, v in asdict(self).items() if k not in ("comparison", "reason")}
        empty = dict.fromkeys(Comparison.__dataclass_fields__)
        found = asdict(self.comparison) if self.comparison else empty
        return {**mine, **found, "verdict": self.verdict}


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a study, corrected."""

    baseline: list[Versus]
    pairs: list[Versus]
    arms: list[Versus]
    spreads: list[Versus]

    def table(self) -> pd.DataFrame:
        """comparisons.csv: ratios without unit, p values, verdicts."""
        everything = [*self.baseline, *self.pairs, *self.arms, *self.spreads]
        columns = [*Versus.__dataclass_fields__, *Comparison.__dataclass_fields__, "verdict"]
        columns = [c for c in columns if c not in ("comparison", "reason")]
        return pd.DataFrame([one.row() for one in everything], columns=columns)

    def of(self, case: str, arm: str, one: str, other: str) -> Versus | None:
        """The comparison of two variants within an arm, in whichever direction it was made."""
        for versus in (*self.baseline, *self.pairs):
            here = (versus.case, versus.arm) == (case, arm)
            if here and {versus.variant, versus.against} == {one, other}:
                return versus
        return None

    def to_baseline(self, case: str, arm: str, variant: str) -> Versus | None:
        """The comparison of a variant with its baseline; None for the baseline itself."""
        for one in self.baseline:
            if (one.case, one.arm, one.variant) == (case, arm, variant):
                return one
        return None


def make(results: Results) -> Comparisons:
    """All comparisons on the primary metrics."""
    to_baseline: list[Versus] = []
    pairs: list[Versus] = []
    arms: list[Versus] = []
    spreads: list[Versus] = []
    for case in results.cases:
        names = results.arms(case)
        for arm in names:
            reference = baseline_of(results, case, arm)
            others = [name for name in results.variants(case, arm) if name != reference]
            for one in others:
                to_baseline.append(_versus(results, "baseline", case, arm, one, arm, reference))
            for one, other in itertools.combinations(others, 2):
                pairs.append(_versus(results, "pair", case, arm, one, arm, other))
        for arm in names[1:]:
            for variant in results.variants(case, arm):
                if variant in results.variants(case, names[0]):
                    arms.append(_versus(results, "arm", case, arm, variant, names[0], variant))
            spreads.append(_spread(results, case, arm, names[0]))
    return Comparisons(*map(family, (to_baseline, pairs, arms, spreads)))


def family(members: Sequence[Versus]) -> list[Versus]:
    """The same, with p values corrected over those that were compared."""
    compared = [one for one in members if one.comparison is not None]
    corrected = iter(correct(one.comparison for one in compared if one.comparison is not None))
    return [one if one.comparison is None else replace(one, comparison=next(corrected))
            for one in members]  # fmt: skip


def baseline_of(results: Results, case: str, arm: str) -> str:
    """The one variant of a case and arm that its others are measured against."""
    return baseline.chosen(_asked(results), results.variants(case, arm))


def baseline_note(results: Results, case: str, arm: str) -> str:
    """How the baseline was chosen, where its name leaves that open."""
    return baseline.note(_asked(results), results.variants(case, arm))


def _asked(results: Results) -> str:
    return str(results.study.get("report", {}).get("baseline", ""))


def _versus(
    results: Results, kind: str, case: str, arm: str, one: str, other_arm: str, other: str
) -> Versus:
    metric = results.primary(case)
    labels = (kind, case, metric, arm, one, other_arm, other)
    if arm == other_arm and are_twins(results, case, arm, one, other):
        return Versus(*labels, None, "twin: not compared")
    first, second = results.of(case, arm, one), results.of(case, other_arm, other)
    if set(first["id"]) == set(second["id"]):
        return Versus(*labels, None, "the same trials")
    a = results.values(case, arm, one, metric)
    b = results.values(case, other_arm, other, metric)
    return Versus(*labels, *_paired(a, b, results.level))


def _paired(
    a: pd.Series[float], b: pd.Series[float], level: float
) -> tuple[Comparison | None, str]:
    """a against b over the seeds that both have, or why not."""
    seeds = a.index.intersection(b.index).sort_values()
    if len(seeds) == 0:
        return None, "no finished pair"
    first, second = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy()
    if (first <= 0).any() or (second <= 0).any():
        return None, "not positive: no ratio"
    return compare(first, second, level), ""


def _spread(results: Results, case: str, arm: str, first: str) -> Versus:
    """How far the variants lie apart within a seed, in an arm against the first arm."""
    both = [name for name in results.variants(case, arm) if name in results.variants(case, first)]
    a, b = (spread(results, case, name, both) for name in (arm, first))
    metric = results.primary(case)
    labels = ("spread", case, metric, arm, SPREAD, first, SPREAD)
    if max(len(distinct(results, case, name, both)) for name in (arm, first)) < 2:
        return Versus(*labels, None, "fewer than two variants, twins aside")
    return Versus(*labels, *_paired(a, b, results.level))


def spread(results: Results, case: str, arm: str, variants: Iterable[str]) -> pd.Series[float]:
    """Worst over best primary metric of the variants, by seed; inf where one diverged."""
    metric = results.primary(case)
    columns = {name: results.values(case, arm, name, metric) for name in variants}
    table = pd.DataFrame(columns).dropna()
    return table[(table > 0).all(axis=1)].max(axis=1) / table.min(axis=1)


def result_table(results: Results) -> pd.DataFrame:
    """results.csv: every metric of every label with its interval over seeds, in the metric's unit.

    Geometric means where every value of the metric in the case is positive, else arithmetic ones.
    n counts the trials that ended, `diverged` those that did so (value and bounds are then nan),
    `missing` those that failed or have not ended. `sampling_error` is the standard error of one
    trial's value, the root mean square over trials. The interval has it in it where it is that of
    the trial's own samples, not where it is that of held-out points that all trials share
    (excess_nats, nll and what goes with them).
    """
    rows = []
    for case in results.cases:
        for metric in results.metric_names(case):
            log = geometric(results, case, metric)
            for arm in results.arms(case):
                for variant in results.variants(case, arm):
                    values = results.values(case, arm, variant, metric)
                    diverged = int((~np.isfinite(values)).sum())
                    found = interval(values.to_numpy(), results.level, log)
                    rows.append(
                        {
                            **dict(zip(LABEL, (case, arm, variant), strict=True)),
                            "metric": metric,
                            "mean": "geometric" if log else "arithmetic",
                            "n": len(values),
                            "diverged": diverged,
                            "missing": len(results.of(case, arm, variant)) - len(values),
                            **found._asdict(),
                            "sampling_error": sampling_error(results, case, arm, variant, metric),
                        }
                    )
    columns = [*LABEL, "metric", "mean", "n", "diverged", "missing", *Interval._fields]
    columns.append("sampling_error")
    return pd.DataFrame(rows, columns=columns)


def sampling_error(results: Results, case: str, arm: str, variant: str, metric: str) -> float:
    """Of one trial's metric, the root mean square over the trials; nan where none is known."""
    table = results.metrics
    mine = (table[LABEL] == [case, arm, variant]).all(axis=1) & (table["metric"] == metric)
    return float(np.sqrt(table.loc[mine, "error"].pow(2).mean()))


def geometric(results: Results, case: str, metric: str) -> bool:
    """Whether a metric is positive throughout a case, so that it has a geometric mean."""
    table = results.metrics
    values = table.loc[(table["case"] == case) & (table["metric"] == metric), "value"]
    return bool((values > 0).all())


def interval(values: Any, level: float, log: bool) -> Interval:
    """`mean_interval`, with nan for no value at all."""
    return mean_interval(values, level, log) if len(values) else Interval(NAN, NAN, NAN)


def level_table(results: Results) -> pd.DataFrame:
    """levels.csv: per noise level, geometric means over the finished seeds with intervals.

    Losses and excess risks are per dimension in x0 space. `ratio` is the loss, or with an oracle
    the excess risk, over the baseline's, paired by seed; p_holm is corrected over the levels of
    that one comparison. Trials that diverged have no levels: `diverged` counts them.
    """
    rows: list[dict[str, Any]] = []
    for case in results.cases:
        measure = "excess" if results.oracle(case) else "loss"
        for arm in results.arms(case):
            for variant in results.variants(case, arm):
                table = chosen(results.levels, case, arm, variant)
                trials = results.of(case, arm, variant)
                reference = baseline_of(results, case, arm)
                versus = per_level(results, case, arm, variant, reference)
                for sigma in sorted(set(table["sigma"].astype(float))):
                    found = table[table["sigma"] == sigma]
                    row: dict[str, Any] = dict(zip(LABEL, (case, arm, variant), strict=True))
                    row |= {"sigma": sigma, "n": len(found)}
                    row["diverged"] = int((trials["status"] == "diverged").sum())
                    for name in ("loss", "excess", "output_rms", "error_rms", "input_rms"):
                        if name in found and found[name].notna().all():
                            value = _positive_mean(found[name], results.level)
                            row |= {
                                name: value[0],
                                f"{name}_low": value[1],
                                f"{name}_high": value[2],
                            }
                    for name in ("wiener", "optimum", "target_rms"):
                        if name in found:
                            row[name] = float(found[name].iloc[0])
                    if sigma in versus:
                        c = versus[sigma]
                        row |= {"measure": measure, "baseline": reference, "ratio": c.ratio}
                        row |= {"ratio_low": c.low, "ratio_high": c.high, "p": c.p}
                        row |= {"p_holm": c.p_holm, "verdict": c.verdict}
                    rows.append(row)
    return pd.DataFrame(rows)


def per_level(
    results: Results, case: str, arm: str, variant: str, against: str
) -> Mapping[float, Comparison]:
    """Excess risk (or loss) of a variant over another's by level, corrected over the levels."""
    measure = "excess" if results.oracle(case) else "loss"
    if variant == against or are_twins(results, case, arm, variant, against):
        return {}
    for name in (variant, against):
        if (results.of(case, arm, name)["status"] == "diverged").any():
            return {}
    sides = [chosen(results.levels, case, arm, name) for name in (variant, against)]
    if any(measure not in side for side in sides):
        return {}
    a, b = (side.pivot_table(values=measure, index="sigma", columns="seed") for side in sides)
    levels, seeds = a.index.intersection(b.index), a.columns.intersection(b.columns)
    a, b = a.loc[levels, seeds], b.loc[levels, seeds]
    usable = [s for s in levels if len(seeds) and (a.loc[s] > 0).all() and (b.loc[s] > 0).all()]
    compared = correct(compare(a.loc[s], b.loc[s], results.level) for s in usable)
    return dict(zip(map(float, usable), compared, strict=True))


def _positive_mean(values: pd.Series[float], level: float) -> Interval:
    return mean_interval(values.to_numpy(), level, log=bool((values > 0).all()))
