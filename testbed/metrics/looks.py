"""How often the data of a study were looked at, and the test that this leaves valid.

fixed        the number of seeds was fixed before the first result: one look, one t test
fixed, seeds added later
             the k-th look tests at alpha/(k (k + 1)); the sum over all k is alpha, so that all
             looks together err with probability alpha at most (Bonferroni)
sequential   seeds may be added at any time: the anytime-valid t test, at alpha at every look
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if (
    TYPE_CHECKING
):  # the statistics take a second to import, which the command line need not wait for
    from testbed.metrics.paired_tests import PairedTest

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
        from testbed.metrics.paired_tests import STUDENT, spending
        from testbed.metrics.sequential import SEQUENTIAL

        return SEQUENTIAL if self.design == "sequential" else spending(STUDENT, self.share)
