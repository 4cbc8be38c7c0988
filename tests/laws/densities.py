"""Laws of the densities: training distributions of log sigma, cut and renormalised."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import float64
from scipy import integrate, stats
from torch import Tensor

import testbed


@dataclass(frozen=True)
class Law:
    """The distribution of y = log sigma, from scipy.

    `condition(y)`: the relative error of the pdf per relative rounding of its inputs, at sigma.
    """

    y: Any
    condition: Callable[[Any], Any]
    options: tuple[tuple[str, float], ...] = ()


def normal(mean: float, std: float, by_time: bool = False) -> Law:
    """d log p/dy = -z/std; y and the mean are rounded: |z| (|y| + |mean|)/std. A formula that goes
    through t = sigma/(1 + sigma) knows 1 - t, and so log sigma, to u (1 + sigma)."""

    def condition(y: Any) -> Any:
        through_t = np.exp(y) + 1 if by_time else 0
        return np.abs((y - mean) / std) * (np.abs(y) + abs(mean) + through_t) / std

    return Law(stats.norm(mean, std), condition, (("mean", mean), ("std", std)))


TRUTH = {
    "lognormal": normal(-1.2, 1.2),
    "loguniform": Law(stats.uniform(math.log(1e-4), math.log(1e8)), lambda y: 0 * y),
    "cosine": Law(stats.hypsecant(), lambda y: 1 + 0 * y),
    "logit_normal": normal(0.0, 1.0, by_time=True),
}
# Roundings of a pdf or of an inverse CDF: elementary functions of at most 4 ulp (the inverse normal
# CDF, Cephes) and a handful of operations; the two edges of the cut are as good as that inverse.
K = 16


def edges(d: testbed.Density) -> tuple[float, float]:
    return d.options["sigma_min"], d.options["sigma_max"]


def grid(d: testbed.Density, n: int = 41) -> Tensor:
    """Levels inside the cut, away from its edges."""
    low, high = edges(d)
    y = torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64)
    return torch.exp(y)[1:-1]


def mass(d: testbed.Density, law: Law) -> tuple[float, float]:
    """(P(sigma < sigma_min), mass of the cut), from scipy."""
    low, high = (float(law.y.cdf(math.log(edge))) for edge in edges(d))
    return low, high - low


def law_pdf_is_the_closed_form(d: testbed.Density, law: Law) -> None:
    """p(log sigma) = pdf(y)/mass. Relative error: gamma_K (1 + condition) of the pdf, and the cut's
    edges, absolute gamma_K each, over its mass."""
    sigma = grid(d)
    y = np.log(sigma.numpy())
    _, total = mass(d, law)
    wanted = law.y.pdf(y) / total
    terms = wanted * (1 + law.condition(y) + 2 / total)
    assert_within(d.pdf_over_log_sigma(sigma), wanted, terms, 2 * K)


def law_pdf_integrates_to_one(d: testbed.Density, condition: Callable[[Any], Any]) -> None:
    """Over log sigma within the cut, by adaptive quadrature to its own error estimate."""
    low, high = (math.log(edge) for edge in edges(d))
    integral, error = integrate.quad(
        lambda y: float(d.pdf_over_log_sigma(math.exp(y))), low, high, epsabs=1e-12, epsrel=1e-12
    )
    worst = float(np.max(condition(np.array([low, high]))))
    spread = d.cut[1] - d.cut[0]
    assert error < 1e-9
    assert abs(integral - 1) <= error + gamma(2 * K * (1 + worst + 2 / spread))


def law_inverse_is_that_of_the_pdf(d: testbed.Density, condition: Callable[[Any], Any]) -> None:
    """The pdf's integral from sigma_min to sigma(u) is u: sampling and pdf are one distribution.

    Bound: the quadrature's estimate, the rounding of the pdf as in the law above, and that of
    sigma(u), gamma_K |y| and the rounding of u/p(y), multiplied by the pdf.
    """
    low, high = (math.log(edge) for edge in edges(d))
    worst = float(np.max(condition(np.array([low, high]))))
    spread = d.cut[1] - d.cut[0]
    for u in (0.001, 0.1, 0.35, 0.5, 0.77, 0.9, 0.999):
        sigma = float(d.sigma(float64(u)))
        integral, error = integrate.quad(
            lambda y: float(d.pdf_over_log_sigma(math.exp(y))),
            low,
            math.log(sigma),
            epsabs=1e-12,
            epsrel=1e-12,
        )
        slip = float(d.pdf_over_log_sigma(sigma)) * (abs(math.log(sigma)) + 1 + abs(low))
        assert error < 1e-9
        assert abs(integral - u) <= error + gamma(2 * K * (1 + worst + slip + 2 / spread))


def law_quantile_is_the_closed_form(d: testbed.Density, law: Law) -> None:
    """CDF(sigma(u)) = low + u mass, with scipy's CDF; its own error and that of sigma(u) count K
    roundings of numbers up to 1, and of y times the pdf."""
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    low, total = mass(d, law)
    y = np.log(d.sigma(u).numpy())
    terms = 2 + law.y.pdf(y) * (np.abs(y) + abs(law.y.mean()) + 1)
    assert_within(law.y.cdf(y), low + u.numpy() * total, terms, 2 * K)


def law_quantiles_stay_in_the_cut(d: testbed.Density) -> None:
    """sigma(0) = sigma_min, sigma(1) = sigma_max, increasing between, never infinite or NaN."""
    low, high = edges(d)
    u = torch.cat([float64([0.0, 2**-60, 2**-24]), torch.linspace(0.01, 1, 100).double()])
    sigma = d.sigma(u)
    assert sigma.dtype == torch.float64
    assert bool(((sigma >= low) & (sigma <= high)).all())
    assert bool((torch.diff(sigma) >= 0).all())
    # The edges were found by bisection of the inverse: one ulp of u, or K roundings of sigma.
    p = d.pdf_over_log_sigma(float64([low, high]))
    slip = gamma(K * (1 + 1 / float(p.min())))
    assert abs(float(sigma[0]) / low - 1) <= slip
    assert abs(float(sigma[-1]) / high - 1) <= slip


def law_no_mass_outside_the_cut(d: testbed.Density) -> None:
    low, high = edges(d)
    outside = float64([low * (1 - 1e-9), low / 2, high * (1 + 1e-9), high * 2])
    assert bool((d.pdf_over_log_sigma(outside) == 0).all())
    assert float(d.pdf_over_log_sigma(grid(d)).max()) > 0


def table() -> np.ndarray:
    """The 1000 levels, ascending, from an abar multiplied with 50 digits."""
    betas = exact(np.linspace(1e-4, 0.02, 1000))
    abar = np.multiply.accumulate(1 - betas)
    return np.sqrt(((1 - abar) / abar).astype(np.float64))


def law_table_has_equal_masses(d: testbed.Density) -> None:
    """Each level inside the cut has probability 1/(number of levels inside)."""
    low, high = edges(d)
    inside = table()
    inside = inside[(inside > low) & (inside < high)]
    u = (torch.arange(len(inside), dtype=torch.float64) + 0.5) / len(inside)
    # log1p and a sum of up to 1000 terms of one sign, and expm1 behind: 1000 + K roundings.
    assert_within(d.sigma(u), inside, inside, 1000 + K)


def law_table_pdf_is_mass_over_spacing(d: testbed.Density) -> None:
    """At a level y_i away from the table's ends: (1/n inside) 2/(y_{i+1} - y_{i-1})."""
    y = np.log(table())
    low, high = (math.log(edge) for edge in edges(d))
    n = int(((y > low) & (y < high)).sum())
    i = np.flatnonzero((y > low) & (y < high) & (np.arange(1000) > 0) & (np.arange(1000) < 999))
    width = (y[i + 1] - y[i - 1]) / 2
    found = d.pdf_over_log_sigma(torch.from_numpy(np.exp(y[i])))
    wanted = 1 / (n * width)
    # Both spacings are differences of logarithms whose absolute error is (1000 + K) u.
    terms = wanted * (1 + (1 + np.abs(y[i])) / width)
    assert_within(found, wanted, terms, 1000 + K)
