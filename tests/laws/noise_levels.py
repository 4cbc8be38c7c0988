"""Laws of the noise levels: borders to other conventions, score, tables and discretisations."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import torch
from helpers.bounds import assert_within, exact, exp
from helpers.strategies import Case, draws, float64
from torch import Tensor

from testbed.diffusion.noise_levels import (
    COSINE,
    FLOW,
    VE,
    VP,
    NoiseSchedule,
    linear_betas,
)

SCHEDULES = {"ve": VE, "vp": VP, "cosine": COSINE, "flow": FLOW}
sin, cos = np.frompyfunc(mpmath.sin, 1, 1), np.frompyfunc(mpmath.cos, 1, 1)


# (alpha, s) of exact t, from Song et al. 2021 (beta from 0.1 to 20).
def vp_pair(t: Any) -> tuple[Any, Any]:
    half = (exact(0.1) * t + exact(19.9) * t**2 / 2) / 2
    return exp(-half), (1 - exp(-2 * half)) ** 0.5


PAIRS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "ve": lambda t: (1 + 0 * t, t),
    "vp": vp_pair,
    "cosine": lambda t: (cos(mpmath.pi / 2 * t), sin(mpmath.pi / 2 * t)),
    "flow": lambda t: (1 - t, t),
}
# The same of exact sigma: what the border's table says, without t.
ALPHAS: dict[str, Callable[[Any], Any]] = {
    "ve": lambda s: 1 + 0 * s,
    "vp": lambda s: 1 / (1 + s**2) ** 0.5,
    "cosine": lambda s: 1 / (1 + s**2) ** 0.5,
    "flow": lambda s: 1 / (1 + s),
}


def at_time(name: str, sigma: Any) -> Any:
    """How often alpha(t) and s(t) take the relative rounding of t, |d log alpha/d log t| and
    |d log s/d log t| added: VP int beta (1 + its slope), cosine and flow the angle's or 1 - t's."""
    if name == "ve":
        return 1 + 0 * sigma
    if name == "vp":
        return 2 * np.log1p(np.asarray(sigma, dtype=float) ** 2) + 2
    return 2 * (1 + np.asarray(sigma, dtype=float))


# Roundings of alpha and s at t, and of t itself from sigma.
K = 16


def law_border_is_the_definition(schedule: NoiseSchedule, name: str, t: float) -> None:
    """alpha(t), s(t) and sigma(t) = s/alpha; t has no error, but 1 - t, the cosine near its zero
    and the exponential of int beta multiply the rounding of what they are taken of."""
    alpha, s = PAIRS[name](exact(t))
    k = K * (1 + at_time(name, float(s / alpha)))
    time = float64([t])
    assert_within(schedule.alpha(time), np.array([alpha]), alpha, k)
    assert_within(schedule.s(time), np.array([s]), s, k)
    assert_within(schedule.sigma(time), np.array([s / alpha]), s / alpha, 2 * k)


def law_border_goes_there_and_back(schedule: NoiseSchedule, name: str, c: Case) -> None:
    """x_t = alpha(sigma) x with alpha of the border's table, and to_ve gives (x, sigma) again.

    The rounding of t, K of them in sigma's dtype, reaches alpha and sigma at_time-fold.
    """
    wide = c.sigma.dtype
    x_t, t = schedule.from_ve(c.x, c.sigma)
    assert (x_t.dtype, t.dtype, t.shape) == (c.dtype, wide, c.sigma.shape)
    X = exact(c.x)
    k = K * (1 + at_time(name, c.S))
    drift = exact(np.asarray(k, dtype=float) * 2 * torch.finfo(wide).eps)
    wanted = ALPHAS[name](c.S) * X
    assert_within(x_t, wanted, wanted, 4, c.dtype, plus=drift * np.abs(wanted))
    x, sigma = schedule.to_ve(x_t, t)
    assert (x.dtype, sigma.shape) == (c.dtype, c.sigma.shape)
    assert_within(x, X, X, 8, c.dtype, plus=2 * drift * np.abs(X))
    flat = exact(c.sigma)
    back = exact(np.asarray(K * (1 + at_time(name, flat)), dtype=float) * 2 * torch.finfo(wide).eps)
    assert_within(sigma, flat, flat, 1, wide, plus=2 * back * flat)


def law_rate_is_the_derivative(schedule: NoiseSchedule, name: str, t: float) -> None:
    """sigma_rate(t) = d sigma/dt by autograd of s(t)/alpha(t). Both of its terms, s'/alpha and
    -s alpha'/alpha^2, are positive; the chain takes at_time's roundings three times."""
    time = float64(t).requires_grad_()
    sigma = schedule.sigma(time)
    (wanted,) = torch.autograd.grad(sigma, time)
    k = 3 * K * (1 + at_time(name, float(sigma.detach())))
    assert_within(schedule.sigma_rate(float64(t)), exact(wanted), exact(wanted), k)


def law_score_obeys_the_chain_rule(schedule: NoiseSchedule, name: str, t: float, seed: int) -> None:
    """alpha grad log p(x_t) = grad log p(x), for x0 ~ N(m, w): left by autograd of the Gaussian log
    density N(alpha m, alpha^2 w + s^2) at x_t; right -(x - m)/(w + sigma^2) with 50 digits."""
    alpha, s = PAIRS[name](exact(t))
    m, w = exact(0.7), exact(0.3)
    x_t = draws((4, 3), seed).requires_grad_()
    a, v = float(alpha), float(alpha**2 * w + s**2)
    log_density = (-((x_t - a * 0.7) ** 2) / (2 * v)).sum()
    (outside,) = torch.autograd.grad(log_density, x_t)
    x = exact(x_t) / alpha
    variance = w + (s / alpha) ** 2
    wanted = -(x - m) / variance
    terms = (np.abs(x) + m) / variance
    k = K * (1 + at_time(name, float(s / alpha)))
    assert_within(schedule.score_to_ve(outside, t), wanted, terms, k)


def law_first_step_keeps_its_digits(sigmas: Callable[[Tensor], Tensor]) -> None:
    """sigma_0 = sqrt(beta_0/(1 - beta_0)) to 8 roundings: 1 - abar is never formed."""
    betas = linear_betas()
    first = exact(betas[:1])
    wanted = (first / (1 - first)) ** 0.5
    assert_within(sigmas(betas)[:1], wanted, wanted, 8)


def law_table_is_the_product(sigmas: Callable[[Tensor], Tensor]) -> None:
    """sigma_i^2 = 1/abar_i - 1 with abar multiplied with 50 digits: i + 1 additions, all of one
    sign, of logarithms; expm1's condition is at most 1 + log(1/abar)."""
    betas = linear_betas()
    abar = np.multiply.accumulate(1 - exact(betas))
    wanted = (1 / abar - 1) ** 0.5
    k = (np.arange(1000) + 1 + 8) * (1 + np.log1p(wanted.astype(float) ** 2)) / 2
    assert_within(sigmas(betas), wanted, wanted, k)


def law_karras(sigmas: Callable[[int], Tensor], n: int) -> None:
    """The formula, with 50 digits. The seventh power takes its base's roundings seven times, and
    the base, top + ramp (bottom - top), those of its terms: 6 times 2 top + bottom over it."""
    top, bottom = (exact(edge) ** (exact(1) / 7) for edge in (80.0, 0.002))
    ramp = exact(np.arange(n)) / (n - 1)
    base = top + ramp * (bottom - top)
    found = sigmas(n)
    assert found.shape == (n + 1,)
    assert float(found[-1]) == 0
    assert_within(found[:-1], base**7, base**7, 7 * 6 * (2 * top + bottom) / base + 8)
