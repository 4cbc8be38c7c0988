"""Oracles: distributions whose posterior mean E[x0|x] is known in closed form."""

from testbed.oracles.base import Estimate, Oracle
from testbed.oracles.conditional import Conditional
from testbed.oracles.empirical import Empirical
from testbed.oracles.gaussian import Gaussian
from testbed.oracles.mixture import Mixture

__all__ = ["Conditional", "Empirical", "Estimate", "Gaussian", "Mixture", "Oracle"]
