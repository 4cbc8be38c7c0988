"""The oracle of a Gaussian; fitted to data, the Wiener denoiser."""

import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from testbed.oracles.base import Estimate, Oracle, eigenbasis, finite, gamma, normal
from testbed.tensors import blocks


class Gaussian(Oracle):
    """x0 ~ N(m, S), in the eigenbasis S = Q diag(L) Q^T, so x ~ N(m, Q diag(L + sigma^2) Q^T).

    Args:
        mean: m, (*shape), usually (d,).
        covariance: S, (d, d) positive semidefinite; it may be singular.

    Raises:
        ValueError: other shapes, an asymmetric or an indefinite S, or numbers that are not finite.

    Source: Wiener 1949.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(mean.shape)
        self.m = finite("mean", mean, 0).reshape(-1)
        self.L, self.Q = eigenbasis("covariance", covariance, (self.dim, self.dim))

    @classmethod
    def fit(cls, data: Tensor) -> Self:
        """The Gaussian with the mean and the covariance (divided by N) of data (N, *shape)."""
        n = len(finite("data", data[:1] if data.ndim else data, 1)) and len(data)

        def rows() -> Iterator[Tensor]:
            return (finite("data", y, 1).reshape(len(y), -1) for y in blocks(data))

        m = sum((y.sum(0) for y in rows()), torch.tensor(0.0)) / n
        S = sum(((y - m).mT @ (y - m) for y in rows()), torch.tensor(0.0)) / n
        return cls(m.reshape(data.shape[1:]), S)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D = m + Q diag(L/(L + sigma^2)) Q^T (x - m), shaped like x."""
        z, s = self._coordinates(x, sigma)
        D = self.m + (self.L / (self.L + s**2) * z) @ self.Q.mT
        return D.reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """grad log p = -Q diag(1/(L + sigma^2)) Q^T (x - m), shaped like x."""
        z, s = self._coordinates(x, sigma)
        return -(z / (self.L + s**2) @ self.Q.mT).reshape(x.shape).to(x.dtype)

    def covariance(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Cov[x0|x] = Q diag(L sigma^2/(L + sigma^2)) Q^T, (B, d, d): the same at every x."""
        _, s = self._prepare(x, sigma)
        found = (self.Q * self._shrunk(s)[:, None, :]) @ self.Q.mT
        return found.to(x.dtype).expand(len(x), -1, -1).contiguous()

    def covariance_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """tr Cov[x0|x] = sum_j L_j sigma^2/(L_j + sigma^2), (B,)."""
        _, s = self._prepare(x, sigma)
        found = self._shrunk(s).sum(1)
        return found.to(x.dtype).expand(len(x)).contiguous()

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p = -sum_j [z_j^2/(L_j + sigma^2) + log(2 pi (L_j + sigma^2))]/2, z = Q^T (x - m)."""
        z, s = self._coordinates(x, sigma)
        C = self.L + s**2
        return -(z**2 / C + torch.log(2 * math.pi * C)).sum(1).to(x.dtype) / 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """x0 = m + Q diag(sqrt L) z, z ~ N(0, I): (n, *shape) float64."""
        z = normal(torch.Size((n, self.dim)), generator, self.device)
        return (self.m + (self.L.sqrt() * z) @ self.Q.mT).reshape(n, *self.shape)

    def mapped(self, A: Tensor) -> "Gaussian":
        """N(A m, A S A^T)."""
        S = A @ (self.Q * self.L) @ self.Q.mT @ A.mT
        return Gaussian((A @ self.m).reshape(self.shape), (S + S.mT) / 2)

    def mmse(
        self,
        sigma: float | Tensor,
        *,
        draws: int = 4096,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """sum_j L_j sigma^2/(L_j + sigma^2)/d, without draws: the error is rounding alone.

        The rounding is that of the sum, gamma, and of the eigenvalues, d u max(L) at most.
        """
        levels = self._levels(sigma)
        s = levels[..., None]
        value = self._shrunk(s).mean(-1)
        slope = ((s**2 / (self.L + s**2)) ** 2).mean(-1)
        return Estimate(value, gamma(self.dim + 8) * (value + self.L.max() * slope))

    def _coordinates(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        flat, s = self._prepare(x, sigma)
        return (flat - self.m) @ self.Q, s

    def _shrunk(self, s: Tensor) -> Tensor:
        return self.L * (s**2 / (self.L + s**2))
