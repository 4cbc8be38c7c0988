"""Correlated noise: its draws, its covariance, and the exact denoiser under it.

    x = x0 + sigma n,   n = eps + strength z,   Cov n = Sigma

z is unit noise, one number for all coordinates that share it: those of a channel (offset noise), or
each alone (input perturbation). The target holds n or eps alone. Tweedie's formula becomes
D = x + sigma^2 Sigma grad log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma, Takes
from testbed.components.signature import Signature
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.oracles import Oracle
from testbed.tensors import per_sample, widen


@dataclass(frozen=True)
class Noise(Component):
    """The noise n = eps + strength z in x = x0 + sigma n.

    Args:
        z_shape: `z_shape(shape[, options])` -> the shape of one sample's z, that of x0 with a 1
            along every axis whose coordinates share a number; None for white noise, without z.
        in_target: whether the target is made of n; else it is made of eps alone.

    Its option is `strength`, at least 0, besides those of `z_shape`.
    """

    axis = "noise"
    functions: ClassVar = {"z_shape": Takes(("shape",), role="z_shape")}
    z_shape: Callable[..., tuple[int, ...]] | None = None
    in_target: bool = True

    def formulas(self) -> list[Signature]:
        if self.z_shape is None:
            return []
        return [Signature(self.label, self.z_shape, ("shape",), role="z_shape")]

    @property
    def defaults(self) -> dict[str, Any]:
        return {} if self.white else {"strength": 0.1, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        noise = super().bound(options)
        if not 0 <= noise.strength < math.inf:
            raise InputError(f"{self.label}: strength = {noise.strength:g} must be at least 0.")
        return noise

    @property
    def white(self) -> bool:
        """Whether n is eps itself, without z."""
        return self.z_shape is None

    @property
    def strength(self) -> float:
        """The factor on z; 0 for white noise."""
        return float({**self.defaults, **self.options}.get("strength", 0.0))

    @property
    def stream(self) -> str:
        """The name of the random stream of z: noises of one function have equal draws of z."""
        return f"{getattr(self.z_shape, '__name__', self.name)} z"

    def shape_of_z(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of z for a sample of this shape; `shape` itself for white noise, without z.

        Raises:
            ComponentError: `z_shape` returns what is not `shape` with ones in it.
        """
        if self.white:
            return shape
        signature = self.signature("z_shape")
        z = signature(options=self.options, shape=shape)
        if not isinstance(z, tuple) or len(z) != len(shape):
            raise signature.wrong(f"{len(shape)} numbers, {shape} with ones in it", z)
        if any(k not in (1, n) for k, n in zip(z, shape, strict=True)):
            raise signature.wrong(f"{shape} with ones in it", str(z))
        return z

    def pair(
        self, eps: Tensor, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(n, the target's noise), both (*any, *shape) like eps, with z from `generator`."""
        if self.white:
            return eps, eps
        lead = eps.shape[: eps.ndim - len(shape)]
        z = torch.randn(*lead, *self.shape_of_z(shape), generator=generator, dtype=eps.dtype)
        n = eps + self.strength * z
        return n, n if self.in_target else eps

    def moved(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The part of y (B, *shape) that z moves: means over what shares a number, (B, *drawn)."""
        axes = [i + 1 for i, k in enumerate(self.shape_of_z(shape)) if k != shape[i]]
        return y.mean(axes, keepdim=True) if axes else y

    def eigenvalue(self, shape: tuple[int, ...]) -> float:
        """Sigma's eigenvalue along z, 1 + strength^2 (coordinates per number of z); else 1."""
        return 1 + self.strength**2 * math.prod(shape) / math.prod(self.shape_of_z(shape))

    def regression(self, shape: tuple[int, ...]) -> float:
        """Eigenvalue on what z moves of Cov(target's noise, n) Sigma^-1; on the rest it is 1.

        E[target's noise | n] is that matrix times n: 1 where the target is made of n, and
        1/`eigenvalue` where it is made of eps.
        """
        return 1.0 if self.in_target else 1 / self.eigenvalue(shape)

    @property
    def variance(self) -> float:
        """The variance of each coordinate of the target's noise: 1 + strength^2, or 1 for eps."""
        return 1 + self.strength**2 if self.in_target else 1.0


def channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number a channel: C for (C, H, W), one for (H, W) and for (d,)."""
    return (*shape[:-2], 1, 1) if len(shape) > 1 else (1,)


def coordinate(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number a coordinate: z is shaped like x0."""
    return shape


WHITE = Noise("white")

NOISES = {
    noise.name: noise
    for noise in (
        WHITE,
        Noise("offset", channel, reference="Guttenberg 2023, Diffusion with offset noise"),
        Noise(
            "perturbed", coordinate, in_target=False, reference="Ning et al. 2023, arXiv:2301.11706"
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
        self.noise, self.eigenvalue = noise, noise.eigenvalue(shape)
        eye = torch.eye(self.dim, dtype=torch.float64, device=oracle.device)
        self.inverse = self._power(eye, 0.5)
        self.white = oracle.mapped(self._power(eye, -0.5))
        self.log_det = -math.prod(noise.shape_of_z(shape)) * math.log(self.eigenvalue) / 2

    def _power(self, y: Tensor, p: float) -> Tensor:
        """Sigma^p y = y + (eigenvalue^p - 1) (what z moves of y), for rows y (B, d)."""
        shape = tuple(self.shape)
        samples = y.reshape(-1, *shape)
        product: Tensor = samples + (self.eigenvalue**p - 1) * self.noise.moved(samples, shape)
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

    Under n = (x - x0)/sigma the target F* = a x0 + b (its noise) has the mean
    a D_n + b K (x - D_n)/sigma, with D_n = E[x0|x] and K = Cov(its noise, n) Sigma^-1; so

        D = c_skip x + c_out E[F*|x] = D_n + c_skip (I - K)(x - D_n).

    For a target of n, K = I and D is D_n, the same for every parameterization; for one of eps alone
    K = Sigma^-1, and only c_skip = 0 gives D_n.

    Args:
        oracle: the oracle of the data for white noise.
        x: (B, ...) noisy data.
        sigma: scalar or (B,).
        sigma_data: sqrt(E|x0|^2 / d).

    Raises:
        InputError: noise that is not in the target, and a parameterization that is not affine.
    """
    D_n = CorrelatedOracle(oracle, noise).denoise(x, sigma)
    shape = tuple(oracle.shape)
    rho = noise.regression(shape)
    if rho == 1:
        return D_n
    if not parameterization.affine:
        raise InputError(f"{parameterization.label} has no c_skip, on which {noise.label} depends.")
    skip = parameterization.coefficients(widen(sigma).double(), sigma_data=sigma_data).skip
    moved = noise.moved(x - D_n, shape)
    return (D_n + (1 - rho) * per_sample(skip, x) * moved).to(x.dtype)
