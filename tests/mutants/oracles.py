"""Mistakes in the exact answers of distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
from mutants import oracle_laws as oracles
from mutants.registry import (
    FAMILIES,
    REGISTRY,
    Family,
    audited,
    wrong,
)
from torch import Tensor

from testbed.audit import reference
from testbed.audit.subject import ParameterizedDenoiser
from testbed.oracles import Empirical, Gaussian, Mixture, Oracle


def of_oracle(oracle: Oracle) -> set[str]:
    v = ParameterizedDenoiser(REGISTRY.parameterization("v"), 0.5)
    return audited(v, oracle, "oracle", "second order", "learning", "derivative")


FAMILIES["oracle"] = Family(
    "E[x0|x], score, covariance, log-density and draws of a distribution, under v",
    of_oracle,
    reference.distributions(),
)


def mixed(kind: type[Mixture]) -> Mixture:
    right = reference.mixture()
    return kind(right.m, right.L[:, 0].sqrt(), right.pi)


def normal(kind: type[Gaussian]) -> Gaussian:
    right = reference.gaussian()
    return kind(right.m, (right.Q * right.L) @ right.Q.mT)


class WithoutLogDeterminant(Mixture):
    """log p without log det C_k, whose gradient the responsibilities need."""

    def log_density(self, x: Tensor, sigma: Any) -> Tensor:
        def log_density(x: Tensor, s: Tensor) -> Tensor:
            z, C = self._coordinates(x, s)
            return torch.logsumexp(self.pi.log() - (z**2 / C).sum(-1) / 2, 1)

        return self._by_row(log_density, x, sigma)


class WithoutSpread(Mixture):
    """Cov[x0|x] = sum_k r_k V_k: the means' spread left out."""

    def covariance(self, x: Tensor, sigma: Any) -> Tensor:
        def covariance(x: Tensor, s: Tensor) -> Tensor:
            r, _, V = self._spread(x, s)
            return torch.diag_embed((r * V).sum(1))

        return self._by_row(covariance, x, sigma)


class VarianceWithoutSpread(Mixture):
    def covariance_trace(self, x: Tensor, sigma: Any) -> Tensor:
        def trace(x: Tensor, s: Tensor) -> Tensor:
            r, _, V = self._spread(x, s)
            return (r * V).sum((1, 2))

        return self._by_row(trace, x, sigma)


class DrawsUnweighted(Mixture):
    """Each mode drawn as often as any other."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return Mixture(self.m, self.L[:, 0].sqrt()).sample(n, generator)


class SquareOfSigma(Mixture):
    def denoise(self, x: Tensor, sigma: Any) -> Tensor:
        return super().denoise(x, sigma**2)


class FirstSigma(Mixture):
    def denoise(self, x: Tensor, sigma: Any) -> Tensor:
        return super().denoise(x, sigma[:1].expand_as(sigma))


class WithoutHalf(Empirical):
    """exp(-|x - y|^2/sigma^2), in the posterior mean alone."""

    def denoise(self, x: Tensor, sigma: Any, leave_out: Tensor | None = None) -> Tensor:
        return super().denoise(x, sigma / math.sqrt(2), leave_out)


class ScoreOfTheOtherSign(Mixture):
    def score(self, x: Tensor, sigma: Any) -> Tensor:
        return -super().score(x, sigma)


class SpreadBySigma(Mixture):
    """sigma^2 of the noise left out of C_k in the score."""

    def score(self, x: Tensor, sigma: Any) -> Tensor:
        return super().score(x, 1e-3 * torch.ones_like(sigma))


class DensityDetached(Mixture):
    """Responsibilities taken as constants of x."""

    def _posterior(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r, z, C = super()._posterior(x, s)
        return r.detach(), z, C


def oracle(mistake: str, subject: Oracle, meant: str, *also: str) -> None:
    wrong("oracle", mistake, subject, meant, *also)


oracle(
    "log-density without log det C_k",
    mixed(WithoutLogDeterminant),
    "oracle.tweedie",
    "oracle.score sampling.derivative",
)
oracle(
    "responsibilities without log det C_k",
    mixed(oracles.NoDeterminantInResponsibilities),
    "oracle.tweedie",
    "oracle.score sampling.derivative",
)
oracle(
    "the nearest mode takes all",
    mixed(oracles.WinnerTakesAll),
    "oracle.tweedie",
    "learning.split oracle.score sampling.derivative",
)
oracle(
    "the modes' weights ignored by the denoiser",
    mixed(oracles.WeightsIgnoredByDenoise),
    "oracle.tweedie",
    "learning.split oracle.score oracle.target sampling.derivative",
    "second_order.covariance",
)
oracle(
    "sigma^2 for sigma",
    mixed(SquareOfSigma),
    "oracle.tweedie",
    "oracle.score oracle.target sampling.derivative second_order.covariance",
)
oracle(
    "the first sample's sigma for all",
    mixed(FirstSigma),
    "oracle.tweedie",
    "learning.split oracle.score oracle.target sampling.derivative",
    "second_order.covariance",
)
oracle(
    "the score of the other sign",
    mixed(ScoreOfTheOtherSign),
    "oracle.tweedie",
    "learning.split oracle.score oracle.target sampling.derivative",
    "second_order.covariance",
)
oracle(
    "the score without the noise's variance",
    mixed(SpreadBySigma),
    "oracle.tweedie",
    "learning.split oracle.score oracle.target sampling.derivative",
    "second_order.covariance second_order.positive",
)
oracle(
    "the mean's sign in the denoiser",
    normal(oracles.UncentredDenoiser),
    "oracle.tweedie",
    "learning.split oracle.score oracle.target sampling.derivative",
)
oracle(
    "float32 inside",
    mixed(oracles.SinglePrecision),
    "oracle.tweedie",
    "oracle.score oracle.target sampling.derivative second_order.covariance",
)
oracle(
    "the finite data's logits without the factor 2",
    WithoutHalf(reference.empirical().y),
    "oracle.tweedie",
    "oracle.score oracle.target sampling.derivative second_order.covariance",
)
oracle(
    "covariance without the spread of the means", mixed(WithoutSpread), "second_order.covariance"
)
oracle(
    "the prior's covariance for the posterior's",
    normal(oracles.PriorCovariance),
    "second_order.covariance",
)
oracle(
    "responsibilities detached from the graph", mixed(DensityDetached), "second_order.covariance"
)
oracle("variance without the spread of the means", mixed(VarianceWithoutSpread), "learning.split")
oracle("draws that ignore the modes' weights", mixed(DrawsUnweighted), "learning.split")
