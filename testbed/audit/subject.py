"""What is audited: something that ought to be the exact denoiser of a known distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from testbed.audit import algebra
from testbed.audit.reach import Reach, pushed
from testbed.audit.reference import LEVELS, distributions, rounding
from testbed.audit.rows import Row, gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.oracles import Oracle
from testbed.tensors import per_sample

Denoise = Callable[[Tensor, Tensor], Tensor]


class Subject(ABC):
    """A claim to be the exact denoiser. `levels` are the noise levels where it is tried."""

    name: str
    levels: Tensor

    @abstractmethod
    def data(self) -> Mapping[str, Oracle]:
        """The distributions, by name, whose exact denoiser it can be made to be."""

    @abstractmethod
    def denoiser(self, oracle: Oracle) -> Denoise:
        """(x, sigma) -> x0, x (B, ...), sigma (B,), where it is meant to equal oracle.denoise."""

    @abstractmethod
    def reach(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Reach:
        """The slopes of its last step at x (B, ...), sigma (B,)."""

    @abstractmethod
    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[Row]:
        """The laws that need no distribution."""

    def inexactness(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """How far the rounding of its inputs may move D, besides that of its last step."""
        return torch.zeros_like(per_sample(sigma, x))

    def uncertainty(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """How far rounding may move its D, first order: float64, shaped like x.

        gamma_12 (|dD/dx| |x| + |dD/dx0| |D| + |dD/deps| |eps|) for its own operations in `dtype`,
        and the error that the oracle's D comes with, through both parts of the pair.
        """
        x, sigma = x.detach().double(), sigma.detach().double()
        D, s = oracle.denoise(x, sigma).detach(), per_sample(sigma, x)
        off, eps, by = rounding(oracle, x, D, sigma), (x - D) / s, self.reach(oracle, x, sigma)
        given = by.x0 * off.A + by.eps * (off.A + gamma(4, torch.float64) * x.abs()) / s
        own = by.x * x.abs() + by.x0 * D.abs() + by.eps * eps.abs()
        return given + gamma(12, dtype) * own + self.inexactness(oracle, x, sigma, dtype)


class Affine(Subject):
    """A parameterization: D = denoise(target(E[x0|x], E[eps|x]), x), the mean of its target.

    A non-affine one has the same, since both functions are then tried at a pair (x0, eps).
    """

    def __init__(self, p: Parameterization, sigma_data: float, oracle: Oracle | None = None):
        self.p = p
        self.name = p.name
        self.sigma_data = sigma_data
        self.oracle = oracle
        low, high = p.sigma_range
        self.levels = LEVELS[(low < LEVELS) & (high > LEVELS)]

    def data(self) -> Mapping[str, Oracle]:
        return distributions() if self.oracle is None else {"data": self.oracle}

    def denoiser(self, oracle: Oracle) -> Denoise:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            D = oracle.denoise(x, sigma)
            # Not (x - D)/sigma: the two means come from different formulas.
            eps = -per_sample(sigma, x).to(x.dtype) * oracle.score(x, sigma)
            F = self.p.target(D, eps, sigma, sigma_data=self.sigma_data)
            return self.p.denoise(F, x, sigma, sigma_data=self.sigma_data)

        return denoise

    def reach(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Reach:
        D = oracle.denoise(x, sigma).detach()
        return pushed(self.p, self.sigma_data, D, (x - D) / per_sample(sigma, x), x, sigma)[1]

    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[Row]:
        return algebra.check(self.p, self.sigma_data, self.levels, dtypes)
