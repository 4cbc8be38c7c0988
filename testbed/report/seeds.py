"""Seeds: how often results were looked at, what is undecided, what a number of seeds can show."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError
from testbed.metrics.looks import Look
from testbed.metrics.paired_tests import ALPHA, MIN_SEEDS, POWER
from testbed.report.comparisons import Comparisons, Versus, baseline_of
from testbed.report.equal_objectives import equal_to
from testbed.report.reading import read
from testbed.report.results import Results
from testbed.report.words import number
from testbed.study import looks

if TYPE_CHECKING:
    from testbed.study.plan import Plan

INTERVALS = {"fixed": "t intervals", "sequential": "confidence sequences"}
UNDECIDED = ("too few seeds", "undecided")
"""The verdicts that more seeds may change."""


def sentence(look: Look) -> str:
    """Returns what the report says of its looks; nothing where the design was kept to one."""
    k = look.number
    if look.design == "sequential":
        return (
            f"The design is sequential, and this is look {k}: every test is the anytime-valid t "
            "test, every interval its confidence sequence, and they hold however often results are "
            "looked at and seeds are added."
        )
    if not look.added:
        return ""
    return (
        "Seeds were added after results had been looked at, though the number of seeds was to be "
        f"fixed: this is look {k}, and its tests are at α/({k}·{k + 1}) = "
        f"{ALPHA * look.share:.2g}, its intervals as much wider. Over all looks together this "
        f"errs in at most {ALPHA:.0%} of studies if every look is judged so; who acted on the "
        f"first report, judged at α = {ALPHA:g}, errs in at most {1.5 * ALPHA:.2g}."
    )


def undecided(compared: Comparisons) -> list[Versus]:
    """Returns the comparisons with a baseline, over all levels, that more seeds may decide.

    Not among them are those that cannot be made, as of equal objectives, and those that a
    divergence has left without a test.
    """
    return [
        one
        for one in compared.judged
        if one.kind == "baseline" and not one.band and one.verdict in UNDECIDED
    ]


@dataclass(frozen=True)
class SeedSpread:
    """How far a variant's log ratio to its baseline varies between seeds."""

    case: str
    arm: str
    variant: str
    sd: float
    """Standard deviation of the log ratios, n - 1 in the denominator."""
    seeds: int
    """Number of pairs that it is of, at least two."""

    @property
    def name(self) -> str:
        """Variant and arm."""
        return ", ".join(filter(None, (self.variant, self.arm)))


@dataclass(frozen=True)
class Detectable:
    """What the planned seeds of a case can show."""

    case: str
    seeds: int
    """The fewest planned seeds of a variant of the case."""
    comparisons: int
    """Number of comparisons in the family of verdicts: with a baseline, over all levels and in each
    band of them, and between arms; at most, since a band may hold no level."""
    effect: float
    """Mean over sd of the log ratios that is shown with power `POWER` at alpha over
    `comparisons`, the hardest step of Holm's method; inf where no effect is."""
    spreads: tuple[SeedSpread, ...]
    """Those of the variants of the case that are stored, the smallest first."""

    def ratio(self, spread: SeedSpread) -> float:
        """Returns the smallest ratio above 1 that is shown, were the sd as it is stored."""
        return math.exp(min(self.effect * spread.sd, 700.0))

    def sentence(self) -> str:
        """Returns what the seeds show, and what it would need to say it in per cent."""
        case = f"{self.case}: " if self.case else ""
        n = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        if self.seeds < MIN_SEEDS:
            return f"{case}{n} can show no difference: fewer than {MIN_SEEDS} are not tested."
        if math.isinf(self.effect):
            return f"{case}{n} can show no difference, however large, in {self._tests()}."
        if not self.spreads:
            return (
                f"{case}{n} show a difference of {self.effect:.2g} standard deviations of the log "
                f"ratio between seeds with power {POWER:g} in {self._tests()}. To say it in per "
                f"cent needs that deviation: run with {MIN_SEEDS} seeds or more, then plan again."
            )
        ends = dict.fromkeys((self.spreads[0], self.spreads[-1]))
        sizes = [f"{number(100 * (self.ratio(one) - 1))} % ({one.name})" for one in ends]
        pairs = min(one.seeds for one in self.spreads)
        return (
            f"{case}{n} show a difference of {' to '.join(sizes)} with power {POWER:g} in "
            f"{self._tests()}; the spread is that of the {pairs} seeds that have run."
        )

    def _tests(self) -> str:
        m = self.comparisons
        return "one comparison" if m == 1 else f"the hardest of {m} comparisons"


def detectable(plan: Plan) -> list[Detectable]:
    """Returns what the planned seeds of each case can show, from stored spreads if there are any.

    Raises:
        InputError: the record of looks is damaged.
    """
    seeds = plan.seeds()
    arms = Counter((case, arm) for case, arm, _ in seeds)
    ranges = 2 + len(plan.study.report.bands)  # all levels, and one band more than edges
    later = [key for key in arms if key[1] != next(arm for case, arm in arms if case == key[0])]
    comparisons = sum(count - 1 for count in arms.values()) * ranges
    comparisons += sum(arms[key] for key in later)
    stored = _stored(plan)
    record = replace(looks.read(plan.files), design=plan.study.report.looks)
    look, _ = record.at(seeds)
    found = []
    for case in dict.fromkeys(case for case, arm in arms if comparisons):
        n = min(len(numbers) for label, numbers in seeds.items() if label[0] == case)
        effect = look.test.effect(n, ALPHA / comparisons) if n >= MIN_SEEDS else math.inf
        mine = sorted((one for one in stored if one.case == case), key=lambda one: one.sd)
        found.append(Detectable(case, n, comparisons, effect, tuple(mine)))
    return found


def _stored(plan: Plan) -> list[SeedSpread]:
    """The spreads that lie in the study's folder; none where a file of it is damaged."""
    if not plan.files.has("study.json"):
        return []
    try:
        return spreads(read(plan.folder))
    except InputError:  # the plan says of each damaged file what becomes of it
        return []


def spreads(results: Results) -> list[SeedSpread]:
    """Returns the spread of each variant whose log ratios to the baseline are stored and vary."""
    found = []
    for case in results.cases:
        metric = results.primary(case)
        for arm in results.arms(case):
            reference = baseline_of(results, case, arm)
            b = results.values(case, arm, reference, metric)
            for variant in results.variants(case, arm):
                if reference in (variant, *equal_to(results, case, arm, variant)):
                    continue
                a = results.values(case, arm, variant, metric)
                common = a.index.intersection(b.index)
                both = np.stack([a.loc[common].to_numpy(), b.loc[common].to_numpy()])
                if len(common) < 2 or not (np.isfinite(both) & (both > 0)).all():
                    continue
                sd = float((np.log(both[0]) - np.log(both[1])).std(ddof=1))
                if sd > 0:
                    found.append(SeedSpread(case, arm, variant, sd, len(common)))
    return found
