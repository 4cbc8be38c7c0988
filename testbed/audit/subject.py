"""The subject of an audit: a claim to be the exact denoiser of a known distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from testbed.audit import algebra
from testbed.audit.reference import LEVELS, distributions, rounding
from testbed.audit.rows import LawCheck, gamma
from testbed.audit.sensitivity import Sensitivity, denoise_pair
from testbed.components.guidance import Denoise
from testbed.diffusion.parameterization import Parameterization
from testbed.oracles import Oracle
from testbed.tensors import per_sample


class Subject(ABC):
    """A claim to be the exact denoiser."""

    name: str
    levels: Tensor
    """The noise levels that it is audited at, (L,) float64."""

    @abstractmethod
    def data(self) -> Mapping[str, Oracle]:
        """Returns the distributions, by name, whose exact denoiser the subject can be."""

    @abstractmethod
    def denoiser(self, oracle: Oracle) -> Denoise:
        """Returns (x, sigma) -> x0, x (B, ...), sigma (B,), that claims to equal oracle.denoise."""

    @abstractmethod
    def sensitivity(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Sensitivity:
        """Returns the slopes of the subject's last step at x (B, ...), sigma (B,)."""

    @abstractmethod
    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[LawCheck]:
        """Checks the laws that need no distribution."""

    def input_rounding(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Returns how far the rounding of the inputs may move D, besides that of the last step."""
        return torch.zeros_like(per_sample(sigma, x))

    def uncertainty(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Returns how far rounding may move the subject's D, to first order: float64, like x.

        That is gamma_12 (|dD/dx| |x| + |dD/dx0| |D| + |dD/deps| |eps|) for its own operations in
        `dtype`, and the error that the oracle's D comes with, through both parts of the pair.
        """
        x, sigma = x.detach().double(), sigma.detach().double()
        D, s = oracle.denoise(x, sigma).detach(), per_sample(sigma, x)
        off, eps, by = (
            rounding(oracle, x, D, sigma),
            (x - D) / s,
            self.sensitivity(oracle, x, sigma),
        )
        inherited = by.x0 * off.A + by.eps * (off.A + gamma(4, torch.float64) * x.abs()) / s
        own = by.x * x.abs() + by.x0 * D.abs() + by.eps * eps.abs()
        return inherited + gamma(12, dtype) * own + self.input_rounding(oracle, x, sigma, dtype)


class ParameterizedDenoiser(Subject):
    """A parameterization as a subject: D = denoise(target(E[x0|x], E[eps|x]), x).

    The target of the posterior means is the posterior mean of an affine target. One that is not
    affine is audited at the pair of means all the same: its two functions must agree there too.

    Args:
        p: The parameterization.
        sigma_data: The value that is handed to p.
        oracle: The distribution of the audit; by default there are the audit's own three.
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

    def sensitivity(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Sensitivity:
        D = oracle.denoise(x, sigma).detach()
        return denoise_pair(self.p, self.sigma_data, D, (x - D) / per_sample(sigma, x), x, sigma)[1]

    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[LawCheck]:
        return algebra.check(self.p, self.sigma_data, self.levels, dtypes)
