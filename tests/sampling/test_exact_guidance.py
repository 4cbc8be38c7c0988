"""The exact answers that guided samples have, apart: p(x|c) at w = 1, the guided ODE at any w.

A mixture on a line, and a caption that its components share. There an ODE keeps the order of its
points, so that the one that starts at the quantile u of its distribution ends at a quantile u.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, optimize, stats
from torch import Tensor

from testbed.metrics.guidance import ode_ends
from testbed.oracles import Conditional, Mixture
from testbed.sampling.guidance import ClassifierFree

M, S, PI = np.array([-2.0, 0.0, 1.5]), np.array([0.5, 0.3, 0.4]), np.array([0.5, 0.3, 0.2])
P = np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
CAPTION = 1
OF_CAPTION = PI * P[:, CAPTION] / (PI @ P[:, CAPTION])
HIGH, LOW = 40.0, 0.01
U = (np.arange(64) + 0.5) / 64
Array = NDArray[np.float64]


def exact() -> Conditional:
    m, s, pi = (torch.from_numpy(one) for one in (M[:, None], S, PI))
    return Conditional(Mixture(m, s, pi), {"caption": torch.from_numpy(P)})


def guided(w: float) -> Callable[[Tensor, Tensor], Tensor]:
    """D_u + w (D_c - D_u)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        caption = torch.full((len(x),), CAPTION)
        return ClassifierFree(exact().denoise, [({"caption": caption}, w)])(x, sigma)

    return denoise


def cdf(x: Array, sigma: float, weights: Array) -> Array:
    found: Array = stats.norm.cdf(x[:, None], M, np.hypot(S, sigma)) @ weights
    return found


def quantiles(u: Array, sigma: float, weights: Array) -> Array:
    def above(x: float, p: float) -> float:
        return float(cdf(np.array([x]), sigma, weights)[0] - p)

    end = 50 + 10 * sigma
    return np.array([optimize.brentq(above, -end, end, (p,), xtol=1e-13) for p in u])


@functools.cache
def by_scipy(w: float) -> tuple[Array, Array]:
    """The guided ODE at LOW and, after a step of Euler, at 0, by DOP853 with a tolerance of 1e-10.

    With D_c from scipy's densities: dx/dlog sigma = x - D_w.
    """

    def denoiser(x: Array, sigma: float, weights: Array) -> Array:
        variance = S**2 + sigma**2
        r = weights * stats.norm.pdf(x[:, None], M, np.sqrt(variance))
        mu = (S**2 * x[:, None] + sigma**2 * M) / variance
        found: Array = (r * mu).sum(1) / r.sum(1)
        return found

    def D(x: Array, sigma: float) -> Array:
        D_u, D_c = (denoiser(x, sigma, weights) for weights in (PI, OF_CAPTION))
        return D_u + w * (D_c - D_u)

    found = integrate.solve_ivp(
        lambda t, x: x - D(x, np.exp(t)),
        (np.log(HIGH), np.log(LOW)),
        quantiles(U, HIGH, OF_CAPTION),
        method="DOP853",
        rtol=1e-10,
        atol=1e-12,
    )
    at_low = found.y[:, -1]
    return at_low, D(at_low, LOW)


def start() -> Tensor:
    return torch.from_numpy(quantiles(U, HIGH, OF_CAPTION))[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 5.0])
def test_the_ends_of_the_guided_ode_are_those_of_scipy_within_the_stated_error(w: float) -> None:
    _, wanted = by_scipy(w)
    errors = []
    for steps in (64, 256):
        found = ode_ends(guided(w), start(), HIGH, LOW, steps)
        off = float(np.sqrt(np.mean((found.x[:, 0].numpy() - wanted) ** 2)))
        # Richardson's error of a method of order 2 is right to a factor, once steps are fine.
        assert off <= 3 * found.error + 1e-8
        errors.append(found.error)
    assert errors[1] < errors[0] / 8
    assert errors[1] < 1e-3


@pytest.mark.slow
def test_at_scale_1_samples_are_those_of_the_conditional_distribution() -> None:
    """F(x_end) = u for the CDF of p(x|c) at the last level, by scipy's ODE and by ours."""
    at_low, end = by_scipy(1.0)
    assert np.abs(cdf(at_low, LOW, OF_CAPTION) - U).max() < 1e-8
    found = ode_ends(guided(1.0), start(), HIGH, LOW, 256)
    # The step of Euler from LOW shrinks the spread by LOW^2/(2 S^2): seen in the third digit.
    assert np.abs(cdf(end, 0.0, OF_CAPTION) - U).max() < LOW
    assert np.abs(cdf(found.x[:, 0].numpy(), 0.0, OF_CAPTION) - U).max() < LOW


@pytest.mark.slow
def test_at_scale_0_it_is_the_marginal_that_is_sampled() -> None:
    """From the marginal's own quantiles: the null caption is the prior-weighted mixture."""
    x = torch.from_numpy(quantiles(U, HIGH, PI))[:, None]
    found = ode_ends(guided(0.0), x, HIGH, LOW, 256)
    assert np.abs(cdf(found.x[:, 0].numpy(), 0.0, PI) - U).max() < LOW


def tilted_quantiles(u: Array, w: float) -> Array:
    """Those of p(x) p(c|x)^w, normalised on a fine grid."""
    grid = np.linspace(-6, 5, 200_001)
    p_k = PI * stats.norm.pdf(grid[:, None], M, S)
    p_c = (p_k @ P[:, CAPTION]) / p_k.sum(1)
    mass = np.cumsum(p_k.sum(1) * p_c**w)
    return np.interp(u, mass / mass[-1], grid)


def wasserstein(w: float) -> float:
    """W1 between the ends of the guided ODE and the tilted density: mean gap of quantiles."""
    _, ends = by_scipy(w)
    return float(np.abs(np.sort(ends) - tilted_quantiles(U, w)).mean())


@pytest.mark.slow
def test_guidance_does_not_sample_the_tilted_density() -> None:
    """p(x) p(c|x)^w is p(x|c) at w = 1, where the two agree; beyond they are far apart."""
    assert wasserstein(1.0) < 1e-3
    assert wasserstein(2.0) > 0.1
    assert wasserstein(5.0) > 0.4
