"""Where the variants of a case and arm stand against its baseline, and what that hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from testbed.report.comparisons import Comparisons, Versus, baseline_of
from testbed.report.equal_objectives import distinct
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut, effect
from testbed.report.words import LESS

HIGHER = "higher"
"""Said of the best where another has a lower metric over the levels of the two."""


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
    against: Mapping[str, Versus | None]
    """The comparison of the best with every other in the running, in either direction."""

    @property
    def beside(self) -> dict[str, str]:
        """Of every other in the running what the best is to it, over the levels of the two.

        "better", LESS (better by less than matters), "equivalent", HIGHER where none of these is
        shown and its metric is the higher one, or nothing.
        """
        return {name: _beside(one, self.ranked[0]) for name, one in self.against.items()}

    @property
    def subject(self) -> Versus | None:
        """The comparison to state first: that of the best, or of the next if it is the baseline."""
        first = next((name for name in self.ranked if name != self.baseline), "")
        return next((one for one in self.versus if one.variant == first), None)

    @property
    def winner(self) -> str | None:
        """The variant shown to be better than every other in the running, or None."""
        return self.ranked[0] if {*self.beside.values()} == {"better"} else None


def standing(results: Results, comparisons: Comparisons, case: str, arm: str) -> Standing:
    """Returns where the variants of a case and arm stand on the primary metric."""
    reference = baseline_of(results, case, arm)
    versus = comparisons.with_baseline(case, arm)
    ranked = ranking(results, versus, reference)
    against = {name: comparisons.of(case, arm, ranked[0], name) for name in ranked[1:]}
    return Standing(case, arm, reference, ranked, versus, against)


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


def _beside(one: Versus | None, best: str) -> str:
    """See `Standing.beside`; a pair's own levels may show it the other way round."""
    if one is None or one.comparison is None:
        return ""
    if one.verdict == "equivalent":
        return one.verdict
    if (one.comparison.ratio < 1) != (one.variant == best):
        return HIGHER
    if one.verdict in ("better", "worse"):
        return "better"
    return LESS if one.small else ""


def hanging(left: LeaveOneOut, one: Versus) -> list[str]:
    """Returns what the sign of a comparison, or its side of the smallest effect, hangs on."""
    c = one.comparison
    if c is None or one.said not in ("better", "equivalent", "worse", LESS):
        return []
    signed = one.verdict != "equivalent" or not c.low <= 1 <= c.high
    of_levels = None if one.band else partial(effect, one, signed)
    return left.hangs_on(effect(one, signed), of_levels)
