"""Laws of the integrals over the noise levels: KL, entropy and mutual information."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import float64
from scipy import integrate, stats

from testbed import oracles
from testbed.metrics import information

U = 2.0**-53
TAU_E = 2 * math.pi * math.e


def grid(low: float, high: float, n: int) -> np.ndarray:
    return np.geomspace(low, high, n)


def within(found: information.Integral, truth: float, rest: float = 0.0) -> None:
    """As far off as the rule says of itself, with a tenth for its next order, and rounding."""
    allowed = 1.1 * found.step + rest + 1e4 * U * (1 + abs(truth))
    assert abs(found.value - truth) <= allowed, (found, truth, allowed)


P = (np.array([0.4, -0.2, 0.0]), np.array([1.0, 0.3, 0.05]))
Q = (np.array([0.1, 0.1, 0.2]), np.array([0.6, 0.5, 0.02]))
"""Mean and variances of independent normals: the data's, and those of the model."""


def kl(sigma: float) -> float:
    """KL(p_sigma || q_sigma) = sum_j [log(b/a) + (a + delta^2)/b - 1]/2, variances a and b."""
    a, b = P[1] + sigma**2, Q[1] + sigma**2
    return float((np.log(b / a) + (a + (P[0] - Q[0]) ** 2) / b - 1).sum() / 2)


def mismatch(sigma: np.ndarray) -> np.ndarray:
    """E_p |D_q - D_p|^2/d. With s = sigma^2 and A = a/(a + s) of variance a,

    D = m + A (x - m): the difference has the variance (A_q - A_p)^2 (a_p + s) and the mean
    (1 - A_q)(m_q - m_p), in each dimension.
    """
    s = np.asarray(sigma)[:, None] ** 2
    A_p, A_q = P[1] / (P[1] + s), Q[1] / (Q[1] + s)
    return ((A_q - A_p) ** 2 * (P[1] + s) + ((1 - A_q) * (Q[0] - P[0])) ** 2).mean(1)


def law_mismatched_gaussians(module: ModuleType) -> None:
    """The bound of a model that is exact for another Gaussian is an equality.

    The path from p_0 to p_n has one KL, however it is taken apart: at its start, where it is
    KL(p_0 || q_0), as both are noised alike; or from its end, KL(p_n || q_n) and the integral.
    """
    for low, high in ((1e-3, 1e3), (0.1, 3.0)):
        sigma = grid(low, high, 4001)
        found = module.kl_bound(sigma, mismatch(sigma), 3)
        within(found, kl(low) - kl(high))
        assert found.step < 1e-5 * found.value


def law_the_step_is_the_rule_s_error(module: ModuleType) -> None:
    """`step` is the trapezoid rule's error, not only of its size: to 2 % with 400 levels.

    Between levels where the integrand ends steeply; elsewhere the rule is better than its order.
    """
    sigma = grid(0.3, 3.0, 401)
    found = module.kl_bound(sigma, mismatch(sigma), 3)
    assert abs(found.value - (kl(0.3) - kl(3.0))) == pytest.approx(found.step, rel=0.02)


def law_errors_of_levels_add(module: ModuleType) -> None:
    """Errors of shared draws are one error: that of the integral is the integral of the errors."""
    sigma = grid(0.1, 10.0, 33)
    found = module.kl_bound(sigma, mismatch(sigma), 3, 0.25 * mismatch(sigma))
    assert found.error == pytest.approx(0.25 * found.value, rel=1e3 * U)
    for one in (module.entropy, module.mutual_information):
        assert one(sigma, sigma**2, 3, 1.0, 0.5 * sigma**2).error == pytest.approx(
            3 / 2 * math.log(100), rel=1e3 * U
        )
    assert math.isnan(module.kl_bound(sigma, mismatch(sigma), 3).error)


def law_entropy_of_a_gaussian(module: ModuleType) -> None:
    """h = 1/2 sum_j log(2 pi e (L_j + sigma_0^2)), I = 1/2 sum_j log(1 + L_j/sigma_0^2).

    At the last level x is taken for an isotropic Gaussian of the mean variance: by concavity too
    large by no more than sum_j (L_j - v)^2/(4 sigma_n^4), with 1/2 of headroom.
    """
    L = torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64)
    oracle, v = oracles.Gaussian(torch.ones(3).double(), torch.diag(L)), float(L.mean())
    for low in (1e-3, 0.3):
        sigma = grid(low, 300.0, 4001)
        mmse = oracle.mmse(torch.from_numpy(sigma))
        rest = 0.375 * float((L - v).square().sum()) / 300.0**4
        common = sigma, mmse.value, 3, v, mmse.error
        h = module.entropy(*common)
        within(h, float((TAU_E * (L + low**2)).log().sum()) / 2, rest + h.error)
        information_ = module.mutual_information(*common)
        within(information_, float((1 + L / low**2).log().sum()) / 2, rest + h.error)


def mixed(sigma: float) -> tuple[Any, float]:
    """The density of a mixture of two normals, noised, and its entropy by scipy's quadrature."""
    pi, m, s = (0.3, 0.7), (-1.0, 1.2), (0.2, 0.5)

    def p(x: Any) -> Any:
        return sum(
            w * stats.norm.pdf(x, a, math.hypot(b, sigma)) for w, a, b in zip(pi, m, s, strict=True)
        )

    def integrand(x: float) -> float:
        density = p(x)
        return -density * math.log(density) if density > 0 else 0.0

    h, _ = integrate.quad(integrand, -9, 9, points=[-1.0, 1.2], epsabs=1e-11, limit=400)
    return p, h


def one_dimensional() -> tuple[oracles.Mixture, float]:
    pi, m, s = float64([0.3, 0.7]), float64([-1.0, 1.2]), float64([0.2, 0.5])
    mean = float((pi * m).sum())
    v = float((pi * (s**2 + (m - mean) ** 2)).sum())
    return oracles.Mixture(m[:, None], s, pi), v


def irreducible(oracle: oracles.Oracle, sigma: np.ndarray) -> np.ndarray:
    """E tr Cov[x0|x], in one dimension by a sum over equal cells of width w.

    The sum of a smooth function that falls to 0 at both ends errs like exp(-(2 pi s/w)^2/2), s the
    least deviation that p_sigma is made of.
    """
    found = []
    for s in sigma:
        half = 9 + 9 * s
        x = torch.linspace(-half, half, 6001, dtype=torch.float64)[:, None]
        p = oracle.log_density(x, float(s)).exp()
        found.append(float((p * oracle.covariance_trace(x, float(s))).sum() * 2 * half / 6000))
    return np.array(found)


def law_entropy_of_a_mixture(module: ModuleType) -> None:
    """Against the quadrature of -p log p, of the mixture noised at the first level."""
    oracle, v = one_dimensional()
    for low in (0.02, 0.5):
        sigma = grid(low, 40.0, 161)
        found = module.entropy(sigma, irreducible(oracle, sigma), 1, v)
        # The last level's x is a Gaussian but for its third cumulant: k3^2/12/40^6 < 1e-10.
        within(found, mixed(low)[1], 1e-8)


def law_a_sign_is_one_bit(module: ModuleType) -> None:
    """x0 = +-1: with little noise x tells it, I = log 2; what is missing is below exp(-1/2 s^2)."""
    oracle = oracles.Mixture(float64([[-1.0], [1.0]]), torch.zeros(2).double())
    sigma = grid(0.1, 60.0, 241)
    found = module.mutual_information(sigma, irreducible(oracle, sigma), 1, 1.0)
    within(found, math.log(2), 1e-8)
