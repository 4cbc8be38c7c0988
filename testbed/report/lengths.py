"""How the verdicts hang on the length of training and on the length of the averages.

Curves. Each variant is held against the baseline of its case and arm at every step that both were
measured at, at every seed: at the points of one training, or at the ends of trainings of their own
(budgets). The effects are descriptive; where the curves cross is that of
`testbed.metrics.crossings`, which claims a crossing with probability alpha at most for each pair.

Averages. The same pairs are compared at each width that both were measured with, and each variant
at its own best length. That of a seed s is chosen by the geometric mean of the metric over all
other seeds, so that no value took part in its own choice (leave-one-out cross-validation, Stone
1974): the best of several noisy values would be too good. These comparisons are one family of their
own over the study, corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from testbed.metrics.crossings import Crossings, crossings
from testbed.report import comparisons
from testbed.report.comparisons import NAN, Comparisons, Versus, baseline_of
from testbed.report.results import LABEL, Label, Results
from testbed.training.settings import OF_THE_LENGTH

OWN = "own"
"""The average that training names, among the lengths of averages."""
BEST = "best"
"""Each variant at its own best length."""
Kind = Literal["points", "budgets"]
KINDS: tuple[Kind, ...] = ("points", "budgets")


@dataclass(frozen=True)
class Curves:
    """The curve of a variant beside that of its baseline."""

    kind: Kind
    case: str
    arm: str
    variant: str
    against: str
    effects: dict[int, Versus]
    """The comparison at each step, ascending; not corrected."""
    found: Crossings | None = None
    """Where they cross; None for the `reason`."""
    reason: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of crossings.csv: one for each crossing, or one for there being none."""
        row = {name: getattr(self, name) for name in (*LABEL, "against")} | {"curve": self.kind}
        found = self.found
        if found is None:
            yield {**row, "verdict": self.reason}
            return
        leads = {True: self.variant, False: self.against, None: ""}
        row |= {"verdict": found.verdict, "seeds": found.seeds, "measured": len(found.steps)}
        row |= {"first": min(found.steps, default=NAN), "last": max(found.steps, default=NAN)}
        row |= dict(zip(("low", "high"), found.open or (NAN, NAN), strict=True))
        for one in found.crossings:
            yield {**row, **asdict(one), "ahead": leads[one.a_leads]}
        if not found.crossings:
            yield {**row, "ahead": leads[found.a_leads]}


CROSSING = [*LABEL, "against", "curve", "verdict", "step", "low", "high", "after", "before",
            "ahead", "seeds", "measured", "first", "last"]  # fmt: skip
STAGE = [*LABEL, "seed", "id", "kind", "at", "metric", "value", "error"]


@dataclass(frozen=True)
class Averages:
    """A variant beside its baseline with averages of other lengths."""

    main: Versus
    """The comparison that the report judges: with the average that training names."""
    at: dict[str, Versus]
    """By the width of both sides' average, or BEST; corrected as one family over the study."""
    best: dict[str, str]
    """The length, a width or OWN, at which each side's geometric mean over all seeds is lowest."""


@dataclass(frozen=True)
class Lengths:
    """All that is said of lengths; empty where a study has points, budgets and widths of none."""

    curves: list[Curves] = field(default_factory=list)
    averages: list[Averages] = field(default_factory=list)

    def tables(self, results: Results) -> dict[str, pd.DataFrame]:
        """Returns stages.csv, crossings.csv and averages.csv, those that have rows.

        stages      each metric of each trial at every stage: `at` is a number of steps or a width
        crossings   a row for each crossing, `ahead` being the one that is ahead after it; with the
                    verdict "undecided", low and high are the steps at which no sign is shown
        averages    comparisons.csv with averages of the length `average`
        """
        rows = [row for one in self.curves for row in one.rows()]
        compared = [
            {"average": name, **versus.row()}
            for one in self.averages
            for name, versus in one.at.items()
        ]
        found = {
            "stages": stage_table(results),
            "crossings": pd.DataFrame(rows, columns=CROSSING),
            "averages": pd.DataFrame(compared),
        }
        return {name: table for name, table in found.items() if len(table)}


def make(results: Results, compared: Comparisons) -> Lengths:
    """Makes the comparisons of all lengths."""
    pairs = [
        ((case, arm, variant), (case, arm, reference))
        for case in results.cases
        for arm in results.arms(case)
        for reference in [baseline_of(results, case, arm)]
        for variant in results.variants(case, arm)
        if variant != reference
    ]
    made = (_curves(results, compared, kind, a, b) for kind in KINDS for a, b in pairs)
    curves = list(filter(None, made))
    averages = list(filter(None, (_averages(results, compared, a, b) for a, b in pairs)))
    keys = [(i, name) for i, one in enumerate(averages) for name in one.at]
    family = comparisons.family([averages[i].at[name] for i, name in keys])
    for (i, name), versus in zip(keys, family, strict=True):
        averages[i].at[name] = versus
    return Lengths(curves, averages)


def decays(results: Results, case: str) -> bool:
    """Returns whether a learning rate depends on the length of its training."""
    ids = results.trials.loc[results.trials["case"] == case, "id"]
    schedules = {results.configs[one].training.schedule for one in ids if one in results.configs}
    return bool(schedules & set(OF_THE_LENGTH))


def stages_of(results: Results, kind: str) -> dict[float, Results]:
    """Returns the results at the stages of a kind, ascending."""
    return {stage.at: found for stage, found in results.stages.items() if stage.kind == kind}


def stage_table(results: Results) -> pd.DataFrame:
    """Returns stages.csv."""
    parts = [
        found.trials[[*LABEL, "seed", "id"]]
        .merge(found.metrics, on=[*LABEL, "seed"])
        .assign(kind=stage.kind, at=stage.at)
        for stage, found in results.stages.items()
    ]
    return pd.concat(parts, ignore_index=True)[STAGE] if parts else pd.DataFrame(columns=STAGE)


def _curves(
    results: Results, compared: Comparisons, kind: Kind, a: Label, b: Label
) -> Curves | None:
    """The curves of two settings; None where they have no stage of this kind in common."""
    case, arm, variant = a
    metric = results.primary(case)
    pairs: dict[int, pd.DataFrame] = {}
    effects: dict[int, Versus] = {}
    for at, found in stages_of(results, kind).items():
        levels = comparisons.levels_of(found, a, b, metric)
        pair = comparisons.paired(found, a, b, metric, levels)
        if len(pair):
            pairs[int(at)] = pair
            effects[int(at)] = comparisons.versus(found, "baseline", a, b)
    if len(pairs) < 2:
        return None
    curves = Curves(kind, case, arm, variant, b[2], effects)
    main = compared.to_baseline(case, arm, variant)
    if main is not None and main.reason:
        return replace(curves, reason=main.reason)
    x, y = (
        pd.DataFrame({at: pair[side] for at, pair in pairs.items()}).to_numpy() for side in "ab"
    )
    if (x <= 0).any() or (y <= 0).any():
        return replace(curves, reason="no comparison: a value is not positive")
    return replace(curves, found=crossings(list(pairs), x, y, results.level, results.look.test))


def _averages(results: Results, compared: Comparisons, a: Label, b: Label) -> Averages | None:
    """Two settings at each width and at their best; None where they have no width in common."""
    main = compared.to_baseline(*a)
    stages = {f"{width:g}": found for width, found in stages_of(results, "widths").items()}
    at = {
        name: comparisons.versus(found, "baseline", a, b)
        for name, found in stages.items()
        if len(found.of(*a)) and len(found.of(*b))
    }
    if main is None or not at:
        return None
    metric = main.metric
    pairs = {
        name: comparisons.paired(found, a, b, metric, comparisons.levels_of(found, a, b, metric))
        for name, found in {OWN: results, **{name: stages[name] for name in at}}.items()
    }
    sides = {side: pd.DataFrame({name: one[side] for name, one in pairs.items()}) for side in "ab"}
    sides = {side: table.dropna() for side, table in sides.items()}
    positive = all(len(table) and (table > 0).all(axis=None) for table in sides.values())
    if main.reason or not positive:
        return Averages(main, at, {})
    best = {
        label[2]: str(np.log(sides[side]).mean().idxmin()) for side, label in (("a", a), ("b", b))
    }
    if len(sides["a"]) > 1:
        chosen = pd.DataFrame({side: at_best(table) for side, table in sides.items()})
        at[BEST] = replace(main, comparison=comparisons.compared(results, chosen), whole=None)
    return Averages(main, at, best)


def at_best(table: pd.DataFrame) -> pd.Series[float]:
    """Returns each seed's value at the length that is best over all other seeds.

    Args:
        table: a positive metric, one row a seed (two or more) and one column a length.
    """
    logs = np.log(table.to_numpy())
    others = logs.sum(axis=0) - logs
    chosen = table.to_numpy()[np.arange(len(logs)), others.argmin(axis=1)]
    return pd.Series(chosen, index=table.index)
