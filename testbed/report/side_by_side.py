"""Finished studies side by side: which of their trials can be compared, and what comes of it.

Trials are comparable where all that is not their objective is equal: data, network, training,
evaluation, noise and conditions. Variants of one such setup are compared with a reference of it, on
the primary metric, over the seeds that both have; all comparisons are one family, corrected by
Holm's method.
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
from testbed.report.comparisons import baseline_of
from testbed.report.level_curves import ROUNDING
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


@dataclass(frozen=True)
class Row:
    """A variant of a study: its labels, its setup, and its primary metric by seed."""

    study: str
    case: str
    arm: str
    variant: str
    metric: str
    setup: dict[str, Any]
    values: pd.Series[float]
    reference: bool

    @property
    def title(self) -> str:
        """`runs/a · digits · published`."""
        return " · ".join(filter(None, (self.study, self.case, self.arm)))


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
    numbered = dict(enumerate(groups.values(), start=1))
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
        list(_notes(results)),
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
                    _setup(config),
                    content.values(case, arm, variant, metric),
                    variant == reference,
                )


def _setup(config: TrialConfig) -> dict[str, Any]:
    """All that two trials must have in common to be compared, as JSON has it."""
    record = config.record()
    record["evaluation"] |= _levels(config)
    names = [name for name in settings.names(TrialConfig, objective=False) if name not in APART]
    return {name: record[name] for name in names}


def _levels(config: TrialConfig) -> dict[str, Any]:
    """The levels that a trial's own metrics are made of, as its evaluation has them.

    A continuous trial that was measured at the levels of another one's table too has the metrics of
    its grid alone.
    """
    listed = config.evaluation.levels
    if config.asked_levels and config.table is None:
        listed = config.asked_levels
    ends = config.measured
    if not isinstance(listed, int):
        even = np.geomspace(*ends, len(listed))
        if config.table is not None or not np.allclose(listed, even, rtol=ROUNDING, atol=0):
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
    ranked = sorted(members, key=lambda one: (one.study != str(first.folder), not one.reference))
    reference = ranked[0]
    yield reference, None
    for row in members:
        if row is not reference:
            yield row, _paired(row.values, reference.values, first.content.level)


def _paired(a: pd.Series[float], b: pd.Series[float], level: float) -> Comparison | None:
    seeds = a.index.intersection(b.index).sort_values()
    first, second = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy()
    if len(seeds) == 0 or (first <= 0).any() or (second <= 0).any():
        return None
    return compare(first, second, level)


def _cells(number: int, row: Row, c: Comparison | None) -> list[Any]:
    values = row.values.to_numpy()
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
    """For each setup that is not of every study: how it differs from the nearest other one."""
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
            other, found = min(others, key=lambda pair: len(pair[1]))
            yield f"Setup {number} is not setup {other}: {'; '.join(found)}."


def _differences(one: Row, other: Row) -> list[str]:
    found = differences(other.setup, one.setup)
    if one.metric != other.metric:
        found.append(f"report.primary: {other.metric!r} -> {one.metric!r}")
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
