"""How often the data of a study were looked at, and the test that this leaves valid.

    fixed        the number of seeds was fixed before the first result: one look, one t test
    fixed, seeds added later
                 the k-th look tests at alpha/(k (k + 1)); the sum over all k is alpha, so that all
                 looks together err with probability alpha at most (Bonferroni)
    sequential   seeds may be added at any time: the anytime-valid t test, at alpha at every look
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from testbed.metrics.sequential import SEQUENTIAL
from testbed.metrics.statistics import STUDENT, Array, Interval, PairedTest

Design = Literal["fixed", "sequential"]


@dataclass(frozen=True)
class Look:
    """A look at the results of a study: the report over a set of seeds."""

    design: Design = "fixed"
    number: int = 1
    """k, from 1: how many different sets of seeds were looked at, up to this one."""
    added: bool = False
    """Whether seeds were added, to this look or after it, when results had been looked at."""

    @property
    def share(self) -> float:
        """The part of alpha that this look may spend: 1 or 1/(k (k + 1))."""
        spends = self.design == "fixed" and self.added
        return 1 / (self.number * (self.number + 1)) if spends else 1.0

    @property
    def test(self) -> PairedTest:
        """The test of this look: what it calls p is to be compared with the whole alpha."""
        return SEQUENTIAL if self.design == "sequential" else spending(STUDENT, self.share)


def spending(test: PairedTest, share: float) -> PairedTest:
    """Returns the test at `share` of its alpha: p over the share, intervals of level 1 - share alpha.

    Args:
        test: any.
        share: in (0, 1].
    """
    if share == 1:
        return test

    def over(p: Callable[[Array], float]) -> Callable[[Array], float]:
        return lambda r: min(1.0, p(r) / share)

    def interval(r: Array, level: float) -> Interval:
        return test.interval(r, 1 - share * (1 - level))

    return replace(
        test,
        p=over(test.p),
        p_above=over(test.p_above),
        interval=interval,
        effect=lambda n, alpha: test.effect(n, share * alpha),
        sign_flip=False,
    )
