"""The oracle of a mixture of Gaussians."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from testbed.oracles.base import Oracle, eigenbasis, finite, normal

TOGETHER = 2**16
"""The most numbers of an array (B, K, d): larger ones outgrow the caches of a processor."""


class Mixture(Oracle):
    """x0 ~ sum_k pi_k N(m_k, S_k), S_k = Q_k diag(L_k) Q_k^T; given x = x0 + sigma eps,

        C_k = L_k + sigma^2,  z_k = Q_k^T (x - m_k)
        r_k = softmax_k(log pi_k - z_k^2/(2 C_k) - log(C_k)/2, summed over dimensions)
        mu_k = m_k + Q_k L_k/C_k z_k,  V_k = Q_k sigma^2 L_k/C_k Q_k^T

    are the weight, the mean and the covariance of component k.

    Args:
        means: (K, *shape), usually (K, d).
        stds: (K,), at least 0, for S_k = stds_k^2 I.
        weights: (K,) positive, normalised here; by default they are equal.
        covariances: (K, d, d) positive semidefinite, in place of `stds`; they may be singular.

    Raises:
        ValueError: other shapes, both or neither of stds and covariances, stds below 0, weights not
            above 0, an asymmetric or an indefinite S_k, or numbers that are not finite.

    A call holds a few (B, K, d) arrays of so many rows of x that they stay small.
    Source: Bayes' rule for Gaussians (Bishop 2006, sec. 2.3.3), component by component.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        covariances: Tensor | None = None,
    ) -> None:
        m = finite("means", means, 1)
        super().__init__(m.shape[1:])
        K, d = len(m), self.dim
        self.m = m.reshape(K, d)
        self.Q: Tensor | None = None
        if stds is not None and covariances is None:
            s = _per_component("stds", stds, K)
            if bool((s < 0).any()):
                raise ValueError(f"stds: got {stds.tolist()}, expected none below 0")
            self.L = (s**2)[:, None].repeat(1, d)
        elif covariances is not None and stds is None:
            self.L, self.Q = eigenbasis("covariances", covariances, (K, d, d))
        else:
            count = "neither" if stds is None else "both"
            raise ValueError(f"stds, covariances: got {count}, expected exactly one of them")
        pi = self.m.new_ones(K) if weights is None else _per_component("weights", weights, K)
        if bool((pi <= 0).any()):
            raise ValueError(f"weights: got {pi.tolist()}, expected all above 0")
        self.pi = pi / pi.sum()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D = sum_k r_k mu_k, shaped like x."""
        return self._by_row(self._mean, x, sigma).reshape(x.shape)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """grad log p = -sum_k r_k Q_k (z_k/C_k), shaped like x."""

        def score(x: Tensor, s: Tensor) -> Tensor:
            r, z, C = self._posterior(x, s)
            return -(r * self._rotated(z / C)).sum(1)

        return self._by_row(score, x, sigma).reshape(x.shape)

    def covariance(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Cov[x0|x] = sum_k r_k (V_k + (mu_k - D)(mu_k - D)^T), (B, d, d)."""

        def covariance(x: Tensor, s: Tensor) -> Tensor:
            r, spread, V = self._spread(x, s)
            cov = (r * spread).mT @ spread
            if self.Q is None:
                return cov + torch.diag_embed((r * V).sum(1))
            for k, Q in enumerate(self.Q):
                cov = cov + (Q * (r * V)[:, k, None, :]) @ Q.mT
            return cov

        return self._by_row(covariance, x, sigma)

    def covariance_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """tr Cov[x0|x] = sum_k r_k (tr V_k + |mu_k - D|^2), (B,)."""

        def trace(x: Tensor, s: Tensor) -> Tensor:
            r, spread, V = self._spread(x, s)
            return (r * (V + spread**2)).sum((1, 2))

        return self._by_row(trace, x, sigma)

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p = log sum_k pi_k N(x; m_k, S_k + sigma^2 I), (B,) nats; shares no r_k."""

        def log_density(x: Tensor, s: Tensor) -> Tensor:
            z, variance = self._coordinates(x, s)
            normal_k = -(z**2 / variance + torch.log(2 * math.pi * variance)) / 2
            return torch.logsumexp(self.pi.log() + normal_k.sum(-1), 1)

        return self._by_row(log_density, x, sigma)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """k ~ pi, then x0 = m_k + Q_k diag(sqrt L_k) z, z ~ N(0, I): (n, *shape) float64."""
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The draws of `sample`, and the component k of each, (n,) int64."""
        pi = self.pi.to(generator.device)
        k = torch.multinomial(pi, n, replacement=True, generator=generator).to(self.device)
        z = normal(torch.Size((n, self.dim)), generator, self.device) * self.L[k].sqrt()
        if self.Q is not None:
            for j, Q in enumerate(self.Q):
                z[k == j] = z[k == j] @ Q.mT
        return (self.m[k] + z).reshape(n, *self.shape), k

    def restricted(self, components: Sequence[int]) -> Self:
        """x0 given that it is of one of these components: their mixture, pi renormalised.

        Raises ValueError for no component, one twice, or one that there is not.
        """
        k = list(components)
        if not k or len(set(k)) < len(k) or not set(k) <= set(range(len(self.pi))):
            raise ValueError(
                f"components: got {k}, expected different ones of 0 to {len(self.pi) - 1}, not none"
            )
        part = copy.copy(self)
        part.m, part.L = self.m[k], self.L[k]
        part.Q = None if self.Q is None else self.Q[k]
        part.pi = self.pi[k] / self.pi[k].sum()
        return part

    def given(self, p: Tensor) -> Self:
        """x0 given an event of probability p_k under component k: the weights pi_k p_k, normalised.

        Components under which it cannot be are left out.

        Args:
            p: (K,), from 0 to 1, not all 0.
        """
        k = p.nonzero()[:, 0]
        part = self.restricted(k.tolist())
        weights = (self.pi * p)[k]
        part.pi = weights / weights.sum()
        return part

    def log_classes(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p(k|x) = log r_k, (B, K) nats: the exact classifier of a noisy x."""

        def log_classes(x: Tensor, s: Tensor) -> Tensor:
            return torch.log_softmax(self._logit(*self._coordinates(x, s)), 1)

        return self._by_row(log_classes, x, sigma)

    def mapped(self, A: Tensor) -> "Mixture":
        """sum_k pi_k N(A m_k, A S_k A^T)."""
        root = (
            torch.diag_embed(self.L.sqrt()) if self.Q is None else self.Q * self.L.sqrt()[:, None]
        )
        S = A @ root @ root.mT @ A.mT
        means = (self.m @ A.mT).reshape(len(self.m), *self.shape)
        return Mixture(means, weights=self.pi, covariances=(S + S.mT) / 2)

    def _by_row(
        self, answer: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: float | Tensor
    ) -> Tensor:
        """answer(x, sigma) for as many rows at a time as TOGETHER allows, in the dtype of x."""
        rows = max(1, TOGETHER // (len(self.pi) * self.dim))
        flat, s = self._prepare(x, sigma)
        parts = torch.split(flat, rows)
        levels = torch.split(s, rows) if len(s) == len(flat) else (s,) * len(parts)
        return torch.cat(list(map(answer, parts, levels))).to(x.dtype)

    def _coordinates(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """z_k = Q_k^T (x - m_k), (B, K, d), and C_k = L_k + sigma^2, as many rows as s has."""
        z = x[:, None, :] - self.m
        if self.Q is not None:
            z = torch.einsum("bki,kij->bkj", z, self.Q)
        return z, self.L + s[..., None] ** 2

    def _posterior(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r_k (B, K, 1), z_k and C_k, (B, K, d) each."""
        z, C = self._coordinates(x, s)
        return torch.softmax(self._logit(z, C), 1)[..., None], z, C

    def _mean(self, x: Tensor, s: Tensor) -> Tensor:
        r, z, C = self._posterior(x, s)
        return (r * self._means(z, C)).sum(1)

    def _spread(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r_k (B, K, 1), mu_k - D and the eigenvalues of V_k, (B, K, d) each."""
        r, z, C = self._posterior(x, s)
        mu = self._means(z, C)
        return r, mu - (r * mu).sum(1, keepdim=True), self.L * (s[..., None] ** 2 / C)

    def _means(self, z: Tensor, C: Tensor) -> Tensor:
        """mu_k, (B, K, d)."""
        return self.m + self._rotated(self.L / C * z)

    def _logit(self, z: Tensor, C: Tensor) -> Tensor:
        """log r_k up to a constant, (B, K)."""
        return self.pi.log() - (z**2 / C).sum(-1) / 2 - C.log().sum(-1) / 2

    def _rotated(self, z: Tensor) -> Tensor:
        return z if self.Q is None else torch.einsum("bkj,kij->bki", z, self.Q)


def _per_component(name: str, value: Tensor, K: int) -> Tensor:
    if value.shape != (K,):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected ({K},)")
    return finite(name, value, 1)
