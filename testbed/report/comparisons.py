"""Every statement of the report as a test over seeds, in families that are declared beforehand.

    baseline   each variant against the baseline of its case and arm, on the primary metric
    pair       every other pair of variants of one case and arm; with the former, it decides whether
               there is a winner
    arm        each variant in a later arm against itself in the first
    spread     worst over best variant within a seed, in a later arm against the first

Each of the four is one family over the whole study, corrected by Holm's method. Variants with equal
objectives are never compared, nor is a trial with itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from testbed.metrics.statistics import (
    Comparison,
    Interval,
    PairedTest,
    compare,
    correct,
    mean_interval,
)
from testbed.report.equal_objectives import distinct, equal_to
from testbed.report.results import LABEL, Results, chosen
from testbed.study import baseline

NAN = float("nan")
SPREAD = "worst/best"


@dataclass(frozen=True)
class Versus:
    """The comparison of `variant` in `arm` with `against` in `against_arm`, paired by seed.

    `comparison` is None where there is none, and `reason` then says why. `kind` is the family.
    """

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
        same = self.variant == self.against
        sides = (self.arm, self.against_arm) if same else (self.variant, self.against)
        counts = zip(sides, (c.diverged_a, c.diverged_b), strict=True)
        diverged = ", ".join(f"{name} in {count}" for name, count in counts if count)
        return f"diverged: {diverged} of {c.seeds} seeds"

    def row(self) -> dict[str, Any]:
        """Returns a row of comparisons.csv."""
        row = asdict(self)
        del row["reason"]
        numbers = row.pop("comparison") or dict.fromkeys(Comparison.__dataclass_fields__)
        return {**row, **numbers, "verdict": self.verdict}


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a study, corrected within their families."""

    baseline: list[Versus]
    pairs: list[Versus]
    arms: list[Versus]
    spreads: list[Versus]

    def table(self) -> pd.DataFrame:
        """Returns comparisons.csv: ratios without unit, p values, verdicts."""
        everything = [*self.baseline, *self.pairs, *self.arms, *self.spreads]
        columns = [*Versus.__dataclass_fields__, *Comparison.__dataclass_fields__, "verdict"]
        columns = [c for c in columns if c not in ("comparison", "reason")]
        return pd.DataFrame([one.row() for one in everything], columns=columns)

    def of(self, case: str, arm: str, one: str, other: str) -> Versus | None:
        """Returns the comparison of two variants within an arm, in the direction it was made in."""
        return next(
            (
                versus
                for versus in (*self.baseline, *self.pairs)
                if (versus.case, versus.arm) == (case, arm)
                and {versus.variant, versus.against} == {one, other}
            ),
            None,
        )

    def to_baseline(self, case: str, arm: str, variant: str) -> Versus | None:
        """Returns the comparison of a variant with its baseline; None for the baseline itself."""
        label = (case, arm, variant)
        return next((v for v in self.baseline if (v.case, v.arm, v.variant) == label), None)


def make(results: Results) -> Comparisons:
    """Makes all comparisons on the primary metrics."""
    families: dict[str, list[Versus]] = {"baseline": [], "pair": [], "arm": [], "spread": []}

    def add(kind: str, case: str, arm: str, one: str, other_arm: str, other: str) -> None:
        families[kind].append(_versus(results, kind, case, arm, one, other_arm, other))

    for case in results.cases:
        first, *later = results.arms(case)
        for arm in (first, *later):
            reference = baseline_of(results, case, arm)
            others = [name for name in results.variants(case, arm) if name != reference]
            for one in others:
                add("baseline", case, arm, one, arm, reference)
            for one, other in itertools.combinations(others, 2):
                add("pair", case, arm, one, arm, other)
        for arm in later:
            both = in_both(results, case, arm, first)
            for variant in both:
                add("arm", case, arm, variant, first, variant)
            families["spread"].append(_spread(results, case, arm, first, both))
    return Comparisons(*map(family, families.values()))


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


def baseline_of(results: Results, case: str, arm: str) -> str:
    """Returns the variant of a case and arm that its others are compared with."""
    return baseline.chosen(_baseline_word(results), results.variants(case, arm))


def baseline_note(results: Results, case: str, arm: str) -> str:
    """Returns how the baseline was chosen, where its name leaves that open, or nothing."""
    return baseline.note(_baseline_word(results), results.variants(case, arm))


def _baseline_word(results: Results) -> str:
    """The baseline as the study names it."""
    return str(results.study.get("report", {}).get("baseline", ""))


def _versus(
    results: Results, kind: str, case: str, arm: str, one: str, other_arm: str, other: str
) -> Versus:
    metric = results.primary(case)
    labels = (kind, case, metric, arm, one, other_arm, other)
    if arm == other_arm and other in equal_to(results, case, arm, one):
        return Versus(*labels, None, "equal objectives: not compared")
    first, second = results.of(case, arm, one), results.of(case, other_arm, other)
    if set(first["id"]) == set(second["id"]):
        return Versus(*labels, None, "the same trials")
    a = results.values(case, arm, one, metric)
    b = results.values(case, other_arm, other, metric)
    return Versus(*labels, *_paired(a, b, results.level, results.look.test))


def _paired(
    a: pd.Series[float], b: pd.Series[float], level: float, test: PairedTest
) -> tuple[Comparison | None, str]:
    """Compares a with b over the seeds that both have; with the reason where it cannot."""
    seeds = a.index.intersection(b.index).sort_values()
    if len(seeds) == 0:
        return None, "no finished pair"
    first, second = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy()
    if (first <= 0).any() or (second <= 0).any():
        return None, "not positive: no ratio"
    return compare(first, second, level, test), ""


def _spread(results: Results, case: str, arm: str, first: str, both: list[str]) -> Versus:
    """Compares how far the variants lie apart within a seed, in an arm and in the first arm."""
    a, b = (spread(results, case, name, both) for name in (arm, first))
    labels = ("spread", case, results.primary(case), arm, SPREAD, first, SPREAD)
    if max(len(distinct(results, case, name, both)) for name in (arm, first)) < 2:
        return Versus(*labels, None, "fewer than two different objectives")
    return Versus(*labels, *_paired(a, b, results.level, results.look.test))


def spread(results: Results, case: str, arm: str, variants: Iterable[str]) -> pd.Series[float]:
    """Returns worst over best primary metric of the variants, by seed; inf where one diverged."""
    metric = results.primary(case)
    columns = {name: results.values(case, arm, name, metric) for name in variants}
    table = pd.DataFrame(columns).dropna()
    return table[(table > 0).all(axis=1)].max(axis=1) / table.min(axis=1)


def result_table(results: Results) -> pd.DataFrame:
    """Returns results.csv: every metric of every label with its interval over seeds, in its unit.

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
                    rows.append(
                        {
                            **dict(zip(LABEL, (case, arm, variant), strict=True)),
                            "metric": metric,
                            "mean": "geometric" if log else "arithmetic",
                            "n": len(values),
                            "diverged": int((~np.isfinite(values)).sum()),
                            "missing": len(results.of(case, arm, variant)) - len(values),
                            **interval(values.to_numpy(), results.level, log)._asdict(),
                            "sampling_error": sampling_error(results, case, arm, variant, metric),
                        }
                    )
    columns = [*LABEL, "metric", "mean", "n", "diverged", "missing", *Interval._fields]
    columns.append("sampling_error")
    return pd.DataFrame(rows, columns=columns)


def sampling_error(results: Results, case: str, arm: str, variant: str, metric: str) -> float:
    """Returns a metric's error in a trial, root mean square over trials; nan where it has none."""
    table = results.metrics
    mine = (table[LABEL] == [case, arm, variant]).all(axis=1) & (table["metric"] == metric)
    return float(np.sqrt(table.loc[mine, "error"].pow(2).mean()))


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
                    here = table[table["sigma"] == sigma]
                    row: dict[str, Any] = dict(zip(LABEL, (case, arm, variant), strict=True))
                    row |= {"sigma": sigma, "n": len(here)}
                    row["diverged"] = int((trials["status"] == "diverged").sum())
                    for name in ("loss", "excess", "output_rms", "error_rms", "input_rms"):
                        if name in here and here[name].notna().all():
                            y = here[name].to_numpy()
                            bounds = mean_interval(y, results.level, log=bool((y > 0).all()))
                            columns = (name, f"{name}_low", f"{name}_high")
                            row |= dict(zip(columns, bounds, strict=True))
                    for name in ("wiener", "optimum", "target_rms"):
                        if name in here:
                            row[name] = float(here[name].iloc[0])
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
    """Compares excess risk (or loss) of two variants by noise level, corrected over the levels."""
    measure = "excess" if results.oracle(case) else "loss"
    if against in (variant, *equal_to(results, case, arm, variant)):
        return {}
    if any((results.of(case, arm, v)["status"] == "diverged").any() for v in (variant, against)):
        return {}
    sides = [chosen(results.levels, case, arm, name) for name in (variant, against)]
    if any(measure not in side for side in sides):
        return {}
    a, b = (side.pivot_table(values=measure, index="sigma", columns="seed") for side in sides)
    levels, seeds = a.index.intersection(b.index), a.columns.intersection(b.columns)
    a, b = a.loc[levels, seeds], b.loc[levels, seeds]
    usable = [s for s in levels if len(seeds) and (a.loc[s] > 0).all() and (b.loc[s] > 0).all()]
    test = results.look.test
    compared = correct(compare(a.loc[s], b.loc[s], results.level, test) for s in usable)
    return dict(zip(map(float, usable), compared, strict=True))
