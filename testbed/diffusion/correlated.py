"""Correlated noise: its draws, its covariance, and the exact denoiser under it.

    x = x0 + sigma n,   n = eps + strength z,   Cov n = Sigma

z is unit noise with one number for each channel (offset noise) or each coordinate (input
perturbation). The target is made of n or of eps alone. Tweedie's formula becomes
D = x + sigma^2 Sigma grad log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.oracles import Oracle
from testbed.tensors import per_sample, widen


@dataclass(frozen=True)
class Noise(Component):
    """The noise n = eps + strength z in x = x0 + sigma n.

    Args:
        of: what has a number of its own in z, "channel" or "coordinate"; "" for white noise, which
            has no z. Samples (C, H, W) have C channels, those of (H, W) and of (d,) have one.
        in_target: whether the target is made of n; else it is made of eps alone.

    Its option is `strength`, at least 0.
    """

    axis = "noise"
    of: str = ""
    in_target: bool = True

    @property
    def defaults(self) -> dict[str, Any]:
        return {"strength": 0.1} if self.of else {}

    def bound(self, options: Mapping[str, Any]) -> Self:
        noise = super().bound(options)
        if not 0 <= noise.strength < math.inf:
            raise InputError(f"{self.label}: strength = {noise.strength:g} must be at least 0.")
        return noise

    @property
    def strength(self) -> float:
        """The factor on z; 0 for white noise."""
        return float({**self.defaults, **self.options}.get("strength", 0.0))

    def z_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of z for a sample of this shape."""
        if self.of == "coordinate":
            return shape
        return (*shape[:-2], 1, 1) if len(shape) > 1 else (1,)

    def pair(
        self, eps: Tensor, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(n, the target's noise), both (*any, *shape) like eps, with z from `generator`."""
        if not self.of:
            return eps, eps
        lead = eps.shape[: eps.ndim - len(shape)]
        z = torch.randn(*lead, *self.z_shape(shape), generator=generator, dtype=eps.dtype)
        n = eps + self.strength * z
        return n, n if self.in_target else eps

    def eigenvalue(self, shape: tuple[int, ...]) -> float:
        """Sigma's eigenvalue along z, 1 + strength^2 (coordinates per number of z); else 1."""
        return 1 + self.strength**2 * math.prod(shape) / math.prod(self.z_shape(shape))

    @property
    def regression(self) -> float:
        """rho in E[target's noise | n] = rho n: 1 with n in the target, else 1/(1 + strength^2).

        The latter is Cov(eps, n) Sigma^-1.
        """
        return 1.0 if self.in_target else 1 / (1 + self.strength**2)

    @property
    def variance(self) -> float:
        """The variance of each coordinate of the target's noise: 1 + strength^2, or 1 for eps."""
        return 1 + self.strength**2 if self.in_target else 1.0


WHITE = Noise("white")

NOISES = {
    noise.name: noise
    for noise in (
        WHITE,
        Noise("offset", of="channel", reference="Guttenberg 2023, Diffusion with offset noise"),
        Noise(
            "perturbed",
            of="coordinate",
            in_target=False,
            reference="Ning et al. 2023, arXiv:2301.11706",
        ),
    )
}


@hookimpl
def testbed_noises() -> Iterable[Noise]:
    yield from NOISES.values()


class CorrelatedOracle(Oracle):
    """The exact answers of `oracle` for x = x0 + sigma n, n ~ N(0, Sigma).

    With A = Sigma^(-1/2), y = A x = A x0 + sigma eps is white: D(x) = A^-1 D_y(y), the score is
    A score_y(y), the covariance A^-1 Cov_y A^-1, and log p(x) = log p_y(y) + log det A.

    Raises:
        NotImplementedError: an oracle without `mapped`.
    """

    def __init__(self, oracle: Oracle, noise: Noise) -> None:
        super().__init__(oracle.shape)
        shape = tuple(oracle.shape)
        self.groups, self.eigenvalue = math.prod(noise.z_shape(shape)), noise.eigenvalue(shape)
        eye = torch.eye(self.dim, dtype=torch.float64, device=oracle.device)
        self.inverse = self._power(eye, 0.5)
        self.white = oracle.mapped(self._power(eye, -0.5))
        self.log_det = -self.groups * math.log(self.eigenvalue) / 2

    def _power(self, y: Tensor, p: float) -> Tensor:
        """Sigma^p y = y + (eigenvalue^p - 1) mean y for rows y (B, d).

        The mean is over the coordinates that share a number of z.
        """
        blocks = y.reshape(len(y), self.groups, -1)
        product: Tensor = blocks + (self.eigenvalue**p - 1) * blocks.mean(2, keepdim=True)
        return product.reshape(y.shape)

    def _rows(self, x: Tensor, p: float) -> Tensor:
        return self._power(x.reshape(len(x), self.dim).double(), p).reshape(x.shape)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D = Sigma^(1/2) D_y(Sigma^(-1/2) x), shaped like x."""
        return self._rows(self.white.denoise(self._rows(x, -0.5), sigma), 0.5).to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Sigma^(-1/2) score_y(Sigma^(-1/2) x), shaped like x."""
        return self._rows(self.white.score(self._rows(x, -0.5), sigma), -0.5).to(x.dtype)

    def covariance(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Sigma^(1/2) Cov_y Sigma^(1/2), (B, d, d)."""
        inner = self.white.covariance(self._rows(x, -0.5), sigma)
        return (self.inverse @ inner @ self.inverse).to(x.dtype)

    def covariance_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The trace of `covariance`, (B,), taken of the matrix."""
        return self.covariance(x, sigma).diagonal(dim1=1, dim2=2).sum(1)

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p(x) = log p_y(Sigma^(-1/2) x) - log det(Sigma)/2, (B,)."""
        inner = self.white.log_density(self._rows(x, -0.5), sigma)
        return (inner + self.log_det).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x0 itself, (n, *shape) float64."""
        return self._rows(self.white.sample(n, generator), 0.5)


def training_optimum(
    noise: Noise,
    oracle: Oracle,
    parameterization: Parameterization,
    x: Tensor,
    sigma: Sigma,
    sigma_data: float,
) -> Tensor:
    """The D of the network that minimises the loss with this noise, (B, ...) like x.

    With n = (x - x0)/sigma the target F* = a x0 + b (its noise) has the mean a D_n + b rho
    (x - D_n)/sigma, D_n = E[x0|x] under n and rho = `noise.regression`; so

        D = c_skip x + c_out E[F*|x] = D_n + c_skip (1 - rho)(x - D_n).

    With n in the target it is D_n, the same for every parameterization; with eps alone only
    c_skip = 0 gives D_n.

    Args:
        oracle: the oracle of the data for white noise.
        x: (B, ...) noisy data.
        sigma: scalar or (B,).
        sigma_data: sqrt(E|x0|^2 / d).

    Raises:
        InputError: noise that is not in the target, and a parameterization that is not affine.
    """
    D_n = CorrelatedOracle(oracle, noise).denoise(x, sigma)
    if noise.regression == 1:
        return D_n
    if not parameterization.affine:
        raise InputError(f"{parameterization.label} has no c_skip, on which {noise.label} depends.")
    skip = parameterization.coefficients(widen(sigma).double(), sigma_data=sigma_data).skip
    return (D_n + (1 - noise.regression) * per_sample(skip, x) * (x - D_n)).to(x.dtype)
