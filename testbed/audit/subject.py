"""What is audited: something that ought to be the exact denoiser of a known distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.audit.rows import Row, gamma
from testbed.audit.truth import LEVELS, distributions, rounding
from testbed.noise import per_sample
from testbed.oracles import Oracle
from testbed.parameterization import Parameterization

Denoise = Callable[[Tensor, Tensor], Tensor]


class Reach(NamedTuple):
    """|dD/dx|, |dD/dx0| and |dD/deps| of a denoiser's last step, at fixed others; (B, 1, ...).

    An error of size e in a part moves D by the part's slope times e, to first order.
    """

    x: Tensor
    x0: Tensor
    eps: Tensor


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
        from testbed.audit import algebra

        return algebra.check(self.p, self.sigma_data, self.levels, dtypes)


def pushed(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, x: Tensor, sigma: Tensor
) -> tuple[Tensor, Reach]:
    """denoise(target(x0, eps), x) and its slopes, by autograd: |c_skip|, |c_out a|, |c_out b|."""
    parts = [part.detach().requires_grad_() for part in (x, x0, eps)]
    with torch.enable_grad():
        F = p.target(parts[1], parts[2], sigma, sigma_data=sigma_data)
        through = p.denoise(F, parts[0], sigma, sigma_data=sigma_data)
        if not through.requires_grad:
            zero = torch.zeros_like(through)
            return through, Reach(zero, zero, zero)
        found = torch.autograd.grad(through.sum(), parts, allow_unused=True)
    slopes = (
        torch.zeros_like(part) if slope is None else slope.abs()
        for part, slope in zip(parts, found, strict=True)
    )
    return through.detach(), Reach(*slopes)
