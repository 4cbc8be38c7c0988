"""Oracles made to break the laws of oracles.

A mutant differs from the honest oracle in one thing. The law must pass on the honest one with the
same numbers, and raise AssertionError on the mutant.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from laws.oracles import (
    Case,
    empirical,
    full,
    gaussian,
    isotropic,
    law_exact,
    law_immse,
    law_jacobian,
    law_leave_one_out,
    law_mmse,
    law_mmse_of_dimensions,
    law_n_eff,
    law_quadrature,
    law_sample,
    law_stein,
    law_trace,
    law_tweedie,
    queries,
    random,
)
from mutants import registry
from mutants.registry import given, laws_of

from testbed.oracles import Empirical, Estimate, Gaussian, Mixture

Build = Callable[..., Case]
Law = Callable[[Case], None]


@functools.cache
def at(law: Callable[..., None], sigma: float, *rest: Any, far: float = 1.0) -> Law:
    """The law at three queries."""

    @functools.wraps(law)
    def stated(case: Case) -> None:
        law(case, queries(case, 2, sigma, far), sigma, *rest)

    return stated


def building(make: Callable[..., Case], *sizes: int) -> Build:
    return lambda kind: make(5, *sizes, kind=kind)


def tied(kind: type[Empirical]) -> Case:
    """Two clouds of points 3e-4 apart, 2e3 from each other."""
    y = torch.cat([1e3 + 3e-4 * random(1, 6, 2), 3e-4 * random(2, 6, 2) - 1e3])
    full_case = empirical(1, 2, 12)
    return Case(kind(y, 5), full_case.pi, y.numpy(), full_case.S, full_case.growth)


def law_tied(case: Case) -> None:
    law_exact(case, torch.from_numpy(case.m[[0, 7]]) + 1e-4 * random(3, 2, 2), 1e-4)


def law_levels(case: Case) -> None:
    """Three samples, three noise levels."""
    levels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    law_exact(case, queries(case, 2, 1.0), levels)


ONE, THREE = building(gaussian, 1), building(gaussian, 3)
PLANE = building(full, 2, 2)
ISO, FULL = building(isotropic, 3, 3), building(full, 3, 3)
POINTS = building(empirical, 2, 9)
ORACLES = laws_of("laws: oracles", "a distribution's exact answers, by outside truth")


@functools.cache
def of(law: Law, build: Build) -> Callable[[type[Any]], None]:
    """The law of a kind of oracle."""

    @functools.wraps(law)
    def stated(kind: type[Any]) -> None:
        law(build(kind))

    return stated


def rejected_by(honest: type[Any], build: Build, *laws: Law) -> Callable[[type[Any]], type[Any]]:
    def register(mutant: type[Any]) -> type[Any]:
        words = re.sub(r"(?<!^)(?=[A-Z])", " ", mutant.__name__).lower()
        for i, law in enumerate(laws):
            same = sum(one.__name__ == law.__name__ for one in laws[:i])
            entered = {words + f", {same + 1}" * bool(same): mutant}
            registry.rejected_by(ORACLES, of(law, build), honest, **entered)
        return mutant

    return register


@rejected_by(Gaussian, THREE, given(law_stein, 1.0), at(law_exact, 1.0, ("score",)))
class FlippedScore(Gaussian):
    def score(self, x, sigma):
        return -super().score(x, sigma)


@rejected_by(Gaussian, THREE, given(law_stein, 1.0))
class ScoreAtAnotherLevel(Gaussian):
    def score(self, x, sigma):
        return super().score(x, 1.1 * sigma)


@rejected_by(Gaussian, THREE, at(law_tweedie, 2.0), at(law_exact, 2.0, ("denoise",)))
class SigmaForItsSquare(Gaussian):
    def denoise(self, x, sigma):
        return super().denoise(x, math.sqrt(sigma))


@rejected_by(Gaussian, THREE, at(law_tweedie, 1.0))
class UncentredDenoiser(Gaussian):
    def denoise(self, x, sigma):
        return super().denoise(x + self.m, sigma) - self.m


@rejected_by(
    Gaussian,
    THREE,
    law_sample,
    at(law_exact, 1.0, ("log_density",)),
    at(law_exact, 1.0, ("score",)),
)
class StdForVariance(Gaussian):
    def __init__(self, mean, covariance):
        super().__init__(mean, covariance)
        self.L = self.L.sqrt()


@rejected_by(Gaussian, THREE, law_sample)
class SampleByVariance(Gaussian):
    def sample(self, n, generator):
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return self.m + (self.L * z) @ self.Q.mT


@rejected_by(Gaussian, ONE, at(law_exact, 2.0, ("log_density",)), at(law_quadrature, 2.0))
class NoLogDeterminant(Gaussian):
    def log_density(self, x, sigma):
        return super().log_density(x, sigma) + torch.log(self.L + sigma**2).sum() / 2


@rejected_by(Gaussian, THREE, at(law_jacobian, 1.0), at(law_exact, 1.0, ("covariance",)))
class PriorCovariance(Gaussian):
    def covariance(self, x, sigma):
        return (self.Q * self.L @ self.Q.mT).expand(len(x), -1, -1)


@rejected_by(Gaussian, THREE, given(law_mmse_of_dimensions, 1.0))
class MmseInTotal(Gaussian):
    def mmse(self, sigma, *, draws=4096, generator=None):
        value, error = super().mmse(sigma)
        return Estimate(self.dim * value, self.dim * error)


@rejected_by(Gaussian, ONE, given(law_mmse, 1.0))
class MmseOfSigma(Gaussian):
    def mmse(self, sigma, *, draws=4096, generator=None):
        return super().mmse(math.sqrt(2) * sigma)


@rejected_by(Gaussian, THREE, at(law_tweedie, 1.0), at(law_exact, 1.0, ("denoise",)))
class NotANumber(Gaussian):
    def denoise(self, x, sigma):
        return super().denoise(x, sigma) * math.nan


@rejected_by(Gaussian, THREE, law_levels)
class FirstLevelForAll(Gaussian):
    def denoise(self, x, sigma):
        return super().denoise(x, torch.as_tensor(sigma).reshape(-1)[0])


@rejected_by(Mixture, FULL, at(law_jacobian, 2.0), at(law_trace, 2.0))
class NoSpreadOfMeans(Mixture):
    def covariance(self, x, sigma):
        def covariance(x, s):
            r, _, V = self._spread(x, s)
            return torch.einsum("bk,kij,bkj,klj->bil", r[..., 0], self.Q, V, self.Q)

        return self._by_row(covariance, x, sigma)


@rejected_by(
    Mixture,
    building(isotropic, 1, 3),
    law_immse,
    given(law_mmse, 1.0),
    given(law_mmse_of_dimensions, 1.0),
)
class NoSpreadInTrace(Mixture):
    def covariance_trace(self, x, sigma):
        def trace(x, s):
            r, _, V = self._spread(x, s)
            return (r * V).sum((1, 2))

        return self._by_row(trace, x, sigma)


@rejected_by(Mixture, PLANE, law_sample, at(law_exact, 2.0), at(law_quadrature, 2.0))
class WeightsIgnored(Mixture):
    def __init__(self, means, stds=None, weights=None, *, covariances=None):
        super().__init__(means, stds, None, covariances=covariances)


@rejected_by(Mixture, ISO, at(law_tweedie, 2.0))
class WeightsIgnoredByDenoise(Mixture):
    def denoise(self, x, sigma):
        return Mixture(self.m, self.L[:, 0].sqrt()).denoise(x, sigma)


class _Responsibilities(Mixture):
    """Mixture with r_k from logits of its own, in denoise, score and covariance alike."""

    def logit(self, z, C):
        raise NotImplementedError

    def _posterior(self, x, s):
        z, C = self._coordinates(x, s)
        return torch.softmax(self.logit(z, C), 1)[..., None], z, C


@rejected_by(Mixture, ISO, at(law_tweedie, 2.0), at(law_exact, 2.0, ("score",)))
class NoDeterminantInResponsibilities(_Responsibilities):
    def logit(self, z, C):
        return self.pi.log() - (z**2 / C).sum(-1) / 2


@rejected_by(Mixture, ISO, at(law_tweedie, 2.0))
class WinnerTakesAll(_Responsibilities):
    def logit(self, z, C):
        return 1e6 * (self.pi.log() - (z**2 / C + C.log()).sum(-1) / 2)


@rejected_by(Mixture, ISO, at(law_exact, 1e-4, ("score",)))
class ScoreByDivision(Mixture):
    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / sigma**2


@rejected_by(Mixture, FULL, at(law_exact, 1.0, ("denoise",)))
class SinglePrecision(Mixture):
    def denoise(self, x, sigma):
        return super().denoise(x.float(), sigma).double()


@rejected_by(Mixture, ISO, at(law_exact, 0.1, ("log_density",), far=50.0))
class DensityWithoutLogSpace(Mixture):
    def log_density(self, x, sigma):
        def log_density(x, s):
            z, C = self._coordinates(x, s)
            logs = -(z**2 / C + (2 * math.pi * C).log()).sum(-1) / 2
            return (self.pi * torch.exp(logs)).sum(1).log()

        return self._by_row(log_density, x, sigma)


@rejected_by(Mixture, FULL, at(law_exact, 1.0), law_sample)
class TransposedBasis(Mixture):
    def __init__(self, means, stds=None, weights=None, *, covariances=None):
        super().__init__(means, stds, weights, covariances=covariances)
        self.Q = self.Q.mT


@rejected_by(Mixture, building(isotropic, 1, 3), law_immse)
class DensityAtAnotherLevel(Mixture):
    def log_density(self, x, sigma):
        return super().log_density(x, 1.01 * sigma)


@rejected_by(Empirical, POINTS, at(law_leave_one_out, 1.0))
class LeaveOutIgnored(Empirical):
    def denoise(self, x, sigma, leave_out=None):
        return super().denoise(x, sigma)


@rejected_by(Empirical, POINTS, at(law_leave_one_out, 1.0))
class LeaveOutStillCounted(Empirical):
    def log_density(self, x, sigma, leave_out=None):
        found = super().log_density(x, sigma, leave_out)
        N = len(self.y)
        return found if leave_out is None else found + math.log((N - 1) / N)


@rejected_by(Empirical, POINTS, at(law_exact, 1.0))
class LastBlockForgotten(Empirical):
    def _starts(self):
        return range(0, len(self.y) - self.block, self.block)


@rejected_by(Empirical, POINTS, at(law_tweedie, 1.0))
class BlocksAveraged(Empirical):
    """Each block's own softmax, then the mean over blocks: no running maximum and normaliser."""

    def denoise(self, x, sigma, leave_out=None):
        blocks = torch.split(self.y, self.block)
        return torch.stack([Empirical(y).denoise(x, sigma) for y in blocks]).mean(0)


@rejected_by(Empirical, tied, law_tied)
class ExpandedDistances(Empirical):
    def _squared_distance(self, x, y):
        X, Y = x - self.c, y - self.c
        d2 = X.square().sum(1, keepdim=True) + Y.square().sum(1) - 2 * X @ Y.mT
        return d2, (torch.zeros(0).long(), torch.zeros(0).long())


@rejected_by(Empirical, POINTS, at(law_exact, 1.0))
class SinglePrecisionLogits(Empirical):
    def _squared_distance(self, x, y):
        d2, near = super()._squared_distance(x, y)
        return d2.float().double(), near


@rejected_by(Empirical, POINTS, at(law_tweedie, 2.0), at(law_jacobian, 2.0))
class EmpiricalSigmaForItsSquare(Empirical):
    def denoise(self, x, sigma, leave_out=None):
        return super().denoise(x, math.sqrt(sigma), leave_out)


@rejected_by(Empirical, POINTS, at(law_n_eff, 1.0))
class FirstPowersInNEff(Empirical):
    def n_eff(self, x, sigma, leave_out=None):
        return torch.ones_like(x[:, 0])


@rejected_by(Empirical, POINTS, at(law_trace, 1.0))
class SpreadAboutTheCentre(Empirical):
    def covariance_trace(self, x, sigma, leave_out=None):
        D = self.denoise(x, sigma, leave_out)
        return super().covariance_trace(x, sigma, leave_out) + (D - self.c).square().sum(1)


@rejected_by(Empirical, POINTS, law_sample)
class SampleOfTheFirstBlock(Empirical):
    def sample(self, n, generator):
        return self.y[torch.randint(self.block, (n,), generator=generator)]
