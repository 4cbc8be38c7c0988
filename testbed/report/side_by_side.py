"""Finished studies side by side: which of their trials can be compared, and what comes of it.

Trials are comparable where all that is not their objective is equal: data, network, training,
evaluation, noise and conditions. Variants of one such setup are compared with a reference of it, on
the primary metric, over the seeds that both have; all comparisons are one family, corrected by
Holm's method.

A discrete variant is measured at the levels of its table that are nearest to the grid. It is
compared with a continuous one of another study at those, where that was measured there too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from testbed import settings
from testbed.errors import InputError
from testbed.metrics.comparison import Comparison, compare
from testbed.metrics.multiple_comparisons import correct
from testbed.report import ranges
from testbed.report.comparisons import baseline_of
from testbed.report.level_curves import ROUNDING
from testbed.report.ranges import CommonLevels
from testbed.report.results import Label, Results
from testbed.report.study_result import StudyResult
from testbed.study.plan import differences
from testbed.trial.config import TrialConfig
from testbed.trial.specs import canonical

APART = (
    "seed",
    "table",
    "table_levels",
    "asked_levels",
    "variance",
    "sources",
    "device",
    "schema_",
)
"""What may differ besides the objective: the draw; the levels and the variance of a discrete model,
which are the model; and what the notes tell."""
COLUMNS = [
    *("setup", "study", "case", "arm", "variant", "metric"),
    *("seeds", "value", "ratio", "low", "high", "p_holm", "verdict"),
]


@dataclass(frozen=True, eq=False)
class Row:
    """A variant of a study: its labels, its setup, and what was measured of it.

    `asked` is the setup with the levels of the grid in the place of a table's.
    """

    study: str
    case: str
    arm: str
    variant: str
    metric: str
    setup: dict[str, Any]
    asked: dict[str, Any]
    content: Results
    reference: bool

    @property
    def title(self) -> str:
        """`runs/a · digits · published`."""
        return " · ".join(filter(None, (self.study, self.case, self.arm)))

    @property
    def label(self) -> Label:
        """Case, arm and variant."""
        return self.case, self.arm, self.variant

    def values(self, levels: CommonLevels | None = None) -> pd.Series[float]:
        """The primary metric by seed, its own or over the levels that are common with another."""
        return ranges.values(self.content, self.label, self.metric, levels)

    def common(self, other: Row) -> CommonLevels | None:
        """The levels of the one's table at which the other was measured too; None where not all."""
        found = [one.content.by_level(one.label) for one in (self, other)]
        here, there = found
        if here is None or there is None:
            return None
        measured = np.intersect1d(here.level, there.level)
        for levels in (here.counted, there.counted):
            if np.isin(levels, measured).all():
                every = np.ones(len(levels), dtype=bool)
                counted = here.counted, there.counted
                return CommonLevels(levels, every, levels, levels, counted)
        return None

    def comparable(self, other: Row) -> bool:
        """Whether the two can be compared, at their own levels or at common ones."""
        return self.setup == other.setup or self.common(other) is not None


@dataclass(frozen=True, repr=False)
class SideBySide:
    """Studies side by side.

    Args:
        table: a row for each variant, with its setup's number, the geometric mean of its primary
            metric, and its ratio to the reference of the setup, which is its first row. A setup of
            one study has no ratios: the study's own report compares its variants.
        setups: what each setup is, by its number.
        apart: why the setups cannot be compared with each other, a sentence for each difference.
        notes: what differs between studies and does not forbid a comparison, a sentence each.
    """

    table: pd.DataFrame
    setups: dict[int, str]
    apart: list[str]
    notes: list[str]

    def __repr__(self) -> str:
        return f"<SideBySide: {len(self.table)} variants in {len(self.setups)} setups>"

    def _repr_html_(self) -> str:
        return str(self.table.to_html(index=False, border=0))


def side_by_side(results: Sequence[StudyResult]) -> SideBySide:
    """Puts finished studies side by side; the first is the one that others are compared with.

    Raises:
        InputError: Fewer than two studies.
    """
    if len(results) < 2:
        raise InputError(f"expected two or more studies to compare, got {len(results)}.")
    rows = [row for result in results for row in _rows(result)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(canonical([row.metric, row.setup]), []).append(row)
    numbered = dict(enumerate(_joined([*groups.values()], results[0]), start=1))
    compared: list[tuple[int, Row, Comparison | None]] = []
    for number, members in numbered.items():
        compared += [(number, *pair) for pair in _against_reference(members, results[0])]
    corrected = iter(correct(c for _, _, c in compared if c is not None))
    table = [
        _cells(number, row, None if c is None else next(corrected)) for number, row, c in compared
    ]
    return SideBySide(
        pd.DataFrame(table, columns=COLUMNS),
        {number: _setup_title(members) for number, members in numbered.items()},
        list(_apart(numbered)),
        [*_at_levels(compared), *_notes(results)],
    )


def _rows(result: StudyResult) -> Iterator[Row]:
    """The variants of a study whose records can be read."""
    content = result.content
    for case in content.cases:
        metric = content.primary(case)
        for arm in content.arms(case):
            reference = baseline_of(content, case, arm)
            for variant in content.variants(case, arm):
                ids = content.of(case, arm, variant)["id"]
                config = next((content.configs[i] for i in ids if i in content.configs), None)
                if config is None:
                    continue
                yield Row(
                    str(result.folder),
                    case,
                    arm,
                    variant,
                    metric,
                    _setup(config, _levels(config)),
                    _setup(config, _grid(config)),
                    content,
                    variant == reference,
                )


def _joined(groups: list[list[Row]], first: StudyResult) -> list[list[Row]]:
    """The setups, those of one study alone joined with one whose reference they can be paired with.

    They differ in nothing but the levels: those of a table, and those of the grid.
    """
    joined: list[list[Row]] = []
    for members in sorted(groups, key=lambda rows: len({row.study for row in rows}), reverse=True):
        for other in joined:
            both = [*other, *members]
            reference = _ranked(both, first)[0]
            single = len({row.study for row in members}) == 1
            across = len({row.study for row in both}) > 1
            same = (members[0].metric, members[0].asked) == (other[0].metric, other[0].asked)
            if single and across and same and all(row.comparable(reference) for row in both):
                other += members
                break
        else:
            joined.append([*members])
    order = [row for members in groups for row in members]
    return sorted(joined, key=lambda rows: min(map(order.index, rows)))


def _setup(config: TrialConfig, levels: dict[str, Any]) -> dict[str, Any]:
    """All that two trials must have in common to be compared, as JSON has it."""
    record = config.record()
    record["evaluation"] |= levels
    names = [name for name in settings.names(TrialConfig, objective=False) if name not in APART]
    return {name: record[name] for name in names}


def _levels(config: TrialConfig) -> dict[str, Any]:
    """The levels that a trial's own metrics are made of, as its evaluation has them.

    A continuous trial that was measured at the levels of another one's table too has the metrics of
    its grid alone.
    """
    if config.table is not None and not isinstance(config.evaluation.levels, int):
        return {"levels": list(config.evaluation.levels)}
    return _grid(config)


def _grid(config: TrialConfig) -> dict[str, Any]:
    """The levels that a trial is asked for: a number of them between two ends, or a list."""
    listed, ends = config.asked_levels or config.evaluation.levels, config.measured
    if not isinstance(listed, int):
        even = np.geomspace(*ends, len(listed))
        if not np.allclose(listed, even, rtol=ROUNDING, atol=0):
            return {"levels": list(listed)}
        listed = len(listed)
    return {"levels": listed, "sigma_min": ends[0], "sigma_max": ends[1]}


def _against_reference(
    members: Sequence[Row], first: StudyResult
) -> Iterator[tuple[Row, Comparison | None]]:
    """Each variant with its comparison; None for the reference, and in a setup of one study."""
    if len({row.study for row in members}) == 1:
        yield from ((row, None) for row in members)
        return
    reference = _ranked(members, first)[0]
    yield reference, None
    for row in members:
        if row is not reference:
            levels = None if row.setup == reference.setup else row.common(reference)
            sides = row.values(levels), reference.values(levels)
            yield row, _paired(*sides, first.content.level)


def _ranked(members: Sequence[Row], first: StudyResult) -> list[Row]:
    """The rows of a setup, its reference first: the baseline of the first study, if it is here."""
    return sorted(members, key=lambda one: (one.study != str(first.folder), not one.reference))


def _at_levels(compared: Sequence[tuple[int, Row, Comparison | None]]) -> Iterator[str]:
    """A sentence for each variant that is compared at other levels than the reference's own."""
    reference: dict[int, Row] = {}
    for number, row, c in compared:
        first = reference.setdefault(number, row)
        levels = None if c is None or row.setup == first.setup else row.common(first)
        if levels is not None:
            low, high = levels.levels[0], levels.levels[-1]
            yield (
                f"{row.variant} ({row.title}) and {first.variant} ({first.title}) are compared at "
                f"the {len(levels.levels)} levels of a table that both were measured at, "
                f"σ = {low:.2g} to {high:.2g}."
            )


def _paired(a: pd.Series[float], b: pd.Series[float], level: float) -> Comparison | None:
    seeds = a.index.intersection(b.index).sort_values()
    first, second = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy()
    if len(seeds) == 0 or (first <= 0).any() or (second <= 0).any():
        return None
    return compare(first, second, level)


def _cells(number: int, row: Row, c: Comparison | None) -> list[Any]:
    values = row.values().to_numpy()
    mean = math.nan
    if len(values) and (values > 0).all() and math.isfinite(values.max()):
        mean = float(math.exp(sum(map(math.log, values)) / len(values)))
    label = [number, row.study, row.case, row.arm, row.variant, row.metric, len(values), mean]
    if c is None:
        return [*label, math.nan, math.nan, math.nan, math.nan, ""]
    return [*label, c.ratio, c.low, c.high, c.p_holm, c.verdict]


def _setup_title(members: Sequence[Row]) -> str:
    """The places of a setup: `runs/a · digits and runs/b · digits`."""
    return " and ".join(dict.fromkeys(one.title for one in members))


def _apart(numbered: dict[int, list[Row]]) -> Iterator[str]:
    """For each setup that is not of every study: how it differs from the nearest other one.

    Two that are the nearest of each other are told once, from the first to the second.
    """
    told: set[tuple[int, int]] = set()
    studies = {row.study for members in numbered.values() for row in members}
    for number, members in numbered.items():
        here = {row.study for row in members}
        if here == studies:
            continue
        others = [
            (other, _differences(members[0], rows[0]))
            for other, rows in numbered.items()
            if {row.study for row in rows} - here
        ]
        if others:
            other, _ = min(others, key=lambda pair: len(pair[1]))
            pair = min(number, other), max(number, other)
            if pair not in told:
                told.add(pair)
                found = _differences(*(numbered[one][0] for one in pair))
                yield f"From setup {pair[0]} to setup {pair[1]} changes: {'; '.join(found)}."


def _differences(one: Row, other: Row) -> list[str]:
    found = differences(one.setup, other.setup)
    if one.metric != other.metric:
        found.append(f"report.primary: {one.metric!r} -> {other.metric!r}")
    return found


def _notes(results: Sequence[StudyResult]) -> Iterator[str]:
    """What differs from the first study and does not forbid a comparison."""
    first, *others = results
    for other in others:
        mine, theirs = (one.content.study.get("versions") or {} for one in (first, other))
        for name in sorted({*mine, *theirs}):
            a, b = mine.get(name, "none"), theirs.get(name, "none")
            if a != b:
                yield f"{name} was {a} in {first.folder}, and {b} in {other.folder}."
        for name, word in (("device", "device"), ("sources", "digest of testbed's sources")):
            a, b = (_values(one, name) for one in (first, other))
            if a != b:
                yield f"The {word} was {a} in {first.folder}, and {b} in {other.folder}."
        yield from _same_trials(first, other)


def _values(result: StudyResult, name: str) -> str:
    """The values of a setting in a study's trials."""
    found = {str(getattr(config, name)) for config in result.content.configs.values()}
    return ", ".join(sorted(found)) or "unknown"


def _same_trials(first: StudyResult, other: StudyResult) -> Iterator[str]:
    """Whether trials that both studies have gave the same numbers."""
    tables = (one.trials.drop_duplicates(["id", "metric"]) for one in (first, other))
    a, b = (table.set_index(["id", "metric"])["value"] for table in tables)
    both = a.index.intersection(b.index)
    if not len(both):
        return
    x, y = a.loc[both], b.loc[both]
    unequal = (x != y) & ~(x.isna() & y.isna())
    trials = len({id_ for id_, _ in both})
    where = f"{first.folder} and {other.folder} share {trials} equal trials"
    if unequal.any():
        id_, metric = x.index[unequal.to_numpy()][0]
        values = f"{metric} of trial {id_} is {x[(id_, metric)]} and {y[(id_, metric)]}"
        yield f"{where}, whose numbers differ: {int(unequal.sum())} of {len(both)}, first {values}."
    else:
        yield f"{where}, whose {len(both)} numbers are the same."
