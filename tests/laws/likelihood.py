"""Laws of the likelihood: the density that a probability-flow ODE carries, and its bits."""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact
from helpers.strategies import draws, float64
from scipy import special, stats
from torch import Tensor

from testbed import oracles
from testbed.random import stream
from testbed.sampling.likelihood import Likelihood, levels

Measure = Callable[..., Likelihood]
Bits = Callable[[Tensor, int, float], Tensor]
MEAN = float64([0.7, -0.4, 0.1])
S = float64([[1.0, 0.3, 0.0], [0.3, 0.5, -0.1], [0.0, -0.1, 0.2]])
GAUSSIAN = oracles.Gaussian(MEAN, S)
MEANS = float64([[-1.0, 0.2], [0.8, -0.5]])
PARTS = float64([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.4]]])
WEIGHTS = float64([0.3, 0.7])
MIXTURE = oracles.Mixture(MEANS, weights=WEIGHTS, covariances=PARTS)
LOW, HIGH = 0.05, 20.0


def normal_by_scipy(x: Tensor, sigma: float) -> Tensor:
    """log N(x; m, S + sigma^2 I)."""
    C = S.numpy() + sigma**2 * np.eye(3)
    return float64(stats.multivariate_normal(MEAN.numpy(), C).logpdf(x.numpy()))


def mixture_by_scipy(x: Tensor, sigma: float) -> Tensor:
    """log sum_k pi_k N(x; m_k, S_k + sigma^2 I)."""
    parts = [
        stats.multivariate_normal(m, C + sigma**2 * np.eye(2)).logpdf(x.numpy())
        for m, C in zip(MEANS.numpy(), PARTS.numpy(), strict=True)
    ]
    return float64(special.logsumexp(np.log(WEIGHTS.numpy()) + np.stack(parts, 1), axis=1))


CASES: dict[str, tuple[Any, Callable[[Tensor, float], Tensor]]] = {
    "gaussian": (GAUSSIAN, normal_by_scipy),
    "mixture": (MIXTURE, mixture_by_scipy),
}


def noisy(oracle: oracles.Oracle, n: int, sigma: float = LOW) -> Tensor:
    return oracle.sample(n, stream(1, "x0")) + sigma * draws((n, oracle.dim), 5)


def law_a_point_is_exact(measure: Measure) -> None:
    """Data of one point y: D = y, x is from N(y, sigma^2 I), and two levels give log p exactly.

    log p(x) = -(|x - y|^2/sigma^2 + d log(2 pi sigma^2))/2, to the rounding of a few sums.
    """
    y, x = draws((1, 3), 3), draws((5, 3), 4)
    point = oracles.Empirical(y)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return y + 0 * x

    found = measure(denoise, x, [0.5, 3.0], point.log_density)
    X, Y, s = exact(x), exact(y), exact(0.5)
    square = ((X - Y) ** 2).sum(1) / s**2
    log = exact(float(np.log(2 * np.pi * 0.25)))
    size = ((np.abs(X) + np.abs(Y)) ** 2).sum(1) / s**2 + 3 * abs(log) + 6 * np.log(6.0)
    assert_within(found.log_p, -(square + 3 * log) / 2, size, 40)
    assert found.error.tolist() == [0.0] * 5


def law_a_plane_adds_only_what_is_outside(measure: Measure) -> None:
    """D the nearest point of a plane of r dimensions: d - tr dD/dx = d - r at every level.

    Then x stays in the plane's coordinates, and log p(x_0) = prior(x_n) + (d - r) log(s_n/s_0).
    """
    q = torch.linalg.qr(draws((5, 2), 6)).Q
    x = draws((4, 5), 7)
    inside = x @ q @ q.T

    def prior(x: Tensor, sigma: float) -> Tensor:
        return -x.square().sum(1)

    found = measure(lambda x, sigma: x @ q @ q.T, x, [0.01, 0.3, 4.0], prior).log_p
    end = inside + 400 * (x - inside)
    wanted = -end.square().sum(1) + 3 * math.log(400)
    # end carries some u 400 (|x| + |inside|), prior twice that times |end|, in each dimension.
    size = (2 * 400 * (x.abs() + inside.abs()) * (1 + end.abs())).sum(1) + 3 * math.log(400)
    assert_within(found, wanted, size, 40)


def law_converges_with_order_two(measure: Measure, case: str) -> None:
    """To scipy's log density: doubling the steps divides the error by 4, in the limit."""
    oracle, truth = CASES[case]
    x = noisy(oracle, 6)
    errors = []
    for n in (64, 128, 256, 512):
        found = measure(oracle.denoise, x, levels(n, LOW, HIGH), oracle.log_density).log_p
        errors.append(float((found - truth(x, LOW)).abs().max()))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert round(measured[-1]) == 2, measured
    distance = [abs(m - 2) for m in measured]
    assert distance[0] > distance[1] > distance[2], measured


def law_default_prior_is_that_of_samples(measure: Measure) -> None:
    """N(0, sigma_data^2 I): there the default prior is the exact density at every level."""
    own = oracles.Gaussian(torch.zeros(3).double(), 0.49 * torch.eye(3).double())
    x = noisy(own, 4)
    sigmas = levels(16, LOW, 2.0)
    given = measure(own.denoise, x, sigmas, own.log_density).log_p
    default = measure(own.denoise, x, sigmas, sigma_data=0.7).log_p
    assert_within(default, exact(given), exact(given.abs() + x.square().sum(1)) + 10, 60)


def law_exact_divergence_is_the_oracle_s(trace: Callable[..., Tensor]) -> None:
    """tr dD/dx = tr Cov[x0|x]/sigma^2, for every sample of its own."""
    x = noisy(MIXTURE, 5, 0.4)
    found = trace(MIXTURE.denoise, x, 0.4, None)
    wanted = MIXTURE.covariance_trace(x, 0.4) / 0.16
    size = MIXTURE.covariance(x, 0.4).abs().sum((1, 2)) / 0.16
    # A logit is a sum of some 10 terms; its rounding is relative to its largest, below 1e3 here.
    assert_within(found[0], exact(wanted), exact(size) * 1e3, 20)


def law_hutchinson_has_no_bias(trace: Callable[..., Tensor]) -> None:
    """The mean over all 2^d probes is the trace."""
    signs = float64(list(itertools.product([-1, 1], repeat=3)))
    x = noisy(GAUSSIAN, 4)
    V = signs[:, None, :].expand(8, 4, 3)
    found = trace(GAUSSIAN.denoise, x, 0.4, V).mean(0)
    wanted = GAUSSIAN.covariance_trace(x, 0.4) / 0.16
    assert_within(found, exact(wanted), exact(GAUSSIAN.covariance(x, 0.4).abs().sum((1, 2))), 500)


def law_a_diagonal_is_exact_with_one_probe(measure: Measure) -> None:
    """v_j^2 = 1: for D without interactions a single probe has the trace, not only on average."""
    own = oracles.Gaussian(MEAN, torch.diag(float64([1.0, 0.3, 0.01])))
    x, sigmas = noisy(own, 5), levels(12, LOW, 3.0)
    common = own.denoise, x, sigmas, own.log_density
    found = measure(*common, divergence="hutchinson", generator=stream(0, "v"))
    wanted = measure(*common).log_p
    assert_within(found.log_p, exact(wanted), exact(wanted.abs()) + 40, 60)
    assert bool(found.error.isnan().all())


def law_its_error_is_that_of_the_probes(measure: Measure) -> None:
    """z = (estimate - exact)/error of 400 samples with 24 probes each has Student's deviation.

    Its square has the mean nu/(nu - 2), nu = 23, up to 5 deviations of the mean; Rademacher sums
    have lighter tails than a normal, so that of a normal bounds it.
    """
    x, sigmas = noisy(GAUSSIAN, 400), levels(6, LOW, 3.0)
    common = GAUSSIAN.denoise, x, sigmas, GAUSSIAN.log_density
    found = measure(*common, divergence="hutchinson", probes=24, generator=stream(3, "v"))
    z = (found.log_p - measure(*common).log_p) / found.error
    nu = 23
    variance = nu / (nu - 2)
    spread = variance * math.sqrt((2 * (nu - 1) / (nu - 4) + 2) / 400)
    assert abs(float(z.square().mean()) - variance) < 5 * spread
    assert abs(float(z.mean())) < 5 * math.sqrt(variance / 400)


def law_equal_cells_take_log2_of_their_number(bits: Bits) -> None:
    """The uniform density over 16 cells of width q is (16 q)^-d: 4 bits a dimension."""
    for q, d in ((1 / 8, 64), (1.0, 3), (2.0, 1)):
        log_p = float64([-d * math.log(16 * q)])
        assert_within(bits(log_p, d, q), exact(float64([4.0])), 8 + abs(math.log2(q)) * 4, 8)


def law_bits_do_not_depend_on_the_unit(bits: Bits) -> None:
    """Values times a: the spacing is a q and the density loses d log a."""
    log_p = draws((5,), 1) * 30
    for a in (1e-3, 0.7, 255.0):
        moved = bits(log_p - 4 * math.log(a), 4, a / 8)
        size = exact(log_p.abs()) + 4 * abs(math.log(a)) * 2 + 4 * math.log(8)
        assert_within(moved, exact(bits(log_p, 4, 1 / 8)), size, 12)


def law_bits_bound_the_mass_of_a_cell(bits: Bits) -> None:
    """Mean bits over a cell are no less than -log2 of its mass, and close to it for small cells.

    For a normal density f and a cell of width q, the gap is q^2 Var/(2 log 2) of the slope, that
    is x^2 q^2/24/log 2 to leading order; the mass is scipy's.
    """
    q, middle = 1 / 16, 1.5
    points, weights = np.polynomial.legendre.leggauss(20)
    log_p = float64(stats.norm.logpdf(middle + q / 2 * points))[:, None].sum(1)
    mean = float((bits(log_p, 1, q) * float64(weights / 2)).sum())
    mass = stats.norm.cdf(middle + q / 2) - stats.norm.cdf(middle - q / 2)
    gap = mean + math.log2(mass)
    assert gap == pytest.approx(middle**2 * q**2 / 24 / math.log(2), rel=q)


BITS = [law_equal_cells_take_log2_of_their_number, law_bits_do_not_depend_on_the_unit,
        law_bits_bound_the_mass_of_a_cell]  # fmt: skip
