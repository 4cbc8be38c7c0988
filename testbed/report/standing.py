"""Where the variants of a case and arm stand against its baseline, and what that hangs on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from testbed.report.comparisons import Comparisons, Versus, baseline_of
from testbed.report.equal_objectives import distinct
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut, effect
from testbed.report.words import listed

SMALL = "small"
"""Of an undecided effect: shown to differ from zero, and its estimate is too small to matter."""


@dataclass(frozen=True)
class Standing:
    """Where the variants of one case and arm stand against its baseline."""

    case: str
    arm: str
    baseline: str
    ranked: list[str]
    """The variants in the running, the baseline among them, by their effect, the best first."""
    versus: list[Versus]
    """The comparisons with the baseline over all common levels."""
    unseparated: list[str]
    """The variants in the running that the best is not shown to be better than."""
    close: list[str]
    """Those of them from which it is shown to differ, by less than matters."""

    @property
    def subject(self) -> Versus | None:
        """The comparison to state first: that of the best, or of the next if it is the baseline."""
        first = next((name for name in self.ranked if name != self.baseline), "")
        return next((one for one in self.versus if one.variant == first), None)

    @property
    def winner(self) -> str | None:
        """The variant shown to be better than every other in the running, or None."""
        return self.ranked[0] if len(self.ranked) > 1 and not self.unseparated else None


def standing(results: Results, comparisons: Comparisons, case: str, arm: str) -> Standing:
    """Returns where the variants of a case and arm stand on the primary metric."""
    reference = baseline_of(results, case, arm)
    versus = comparisons.with_baseline(case, arm)
    ranked = ranking(results, versus, reference)
    against = [(name, comparisons.of(case, arm, ranked[0], name)) for name in ranked[1:]]
    unseparated = [n for n, one in against if one is None or not is_better(one, ranked[0])]
    close = [name for name, one in against if one and said_of(one) == SMALL]
    return Standing(case, arm, reference, ranked, versus, unseparated, close)


def ranking(results: Results, versus: list[Versus], reference: str) -> list[str]:
    """Returns the variants in the running by their effect, the baseline's being 0, best first.

    A variant that diverged or learnt nothing is not in the running, nor one without a verdict; of
    equal objectives only the first is. Where the baseline is not in the running, nothing is ranked.
    """
    if not versus or any(reference in one.lost for one in versus):
        return []
    effects = {
        one.variant: one.comparison.ratio for one in versus if one.comparison and not one.reason
    }
    order = sorted({reference: 1.0, **effects}.items(), key=lambda pair: pair[1])
    return distinct(results, versus[0].case, versus[0].arm, [name for name, _ in order])


def is_better(one: Versus, best: str) -> bool:
    return one.verdict == ("better" if one.variant == best else "worse")


def said_of(one: Versus) -> str:
    """The verdict, or SMALL."""
    return SMALL if one.small else one.verdict


def hanging(left: LeaveOneOut, one: Versus) -> list[str]:
    """`hangs on seed 2`, of a comparison whose sign or side of the smallest effect does."""
    c = one.comparison
    if c is None or said_of(one) not in ("better", "equivalent", "worse", SMALL):
        return []
    signed = one.verdict != "equivalent" or not c.low <= 1 <= c.high
    of_levels = None if one.band else partial(effect, one, signed)
    found = left.hangs_on(effect(one, signed), of_levels)
    return [f"hangs on {listed(found)}"] if found else []
