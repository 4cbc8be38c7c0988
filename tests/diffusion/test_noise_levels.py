"""Laws of the noise levels: borders to other conventions, score, tables and discretisations."""

import json
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, exp, gamma
from helpers.paths import REFERENCE
from helpers.strategies import WIDE, Case, cases, column, draws, float64, levels, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from testbed import tensors
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_levels import (
    COSINE,
    FLOW,
    VE,
    VP,
    NoiseSchedule,
    ddpm_sigmas,
    karras_sigmas,
    linear_betas,
    scaled_linear_betas,
    table_sigmas,
)
from testbed.tensors import per_sample

SGM = json.loads((REFERENCE / "sgm_reference.json").read_text())
DIFFUSERS = json.loads((REFERENCE / "diffusers_reference.json").read_text())

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

times = st.floats(1e-3, 0.99)


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


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=times)
def test_border_is_the_definition(name: str, t: float) -> None:
    law_border_is_the_definition(SCHEDULES[name], name, t)


@pytest.mark.parametrize("name", SCHEDULES)
@given(c=cases(dtypes=WIDE))
def test_border_goes_there_and_back(name: str, c: Case) -> None:
    law_border_goes_there_and_back(SCHEDULES[name], name, c)


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=times)
def test_rate_is_the_derivative(name: str, t: float) -> None:
    law_rate_is_the_derivative(SCHEDULES[name], name, t)


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=times, seed=seeds)
def test_score_obeys_the_chain_rule(name: str, t: float, seed: int) -> None:
    law_score_obeys_the_chain_rule(SCHEDULES[name], name, t, seed)


@pytest.mark.parametrize("name", ["vp", "cosine"])
@given(t=times)
def test_variance_is_preserved(name: str, t: float) -> None:
    """alpha^2 + s^2 = 1; their roundings as at the border, twice for the squares."""
    schedule, time = SCHEDULES[name], float64([t])
    alpha, s = exact(schedule.alpha(time)), exact(schedule.s(time))
    k = 2 * K * (1 + at_time(name, float(schedule.sigma(t))))
    one = alpha**2 + s**2
    assert_within(one, 1 + 0 * one, one, k)


@given(beta_min=st.floats(0.05, 1), beta_max=st.floats(2, 40), sigma=levels(1e-4, 10))
def test_vp_with_other_betas(beta_min: float, beta_max: float, sigma: float) -> None:
    """1 + sigma^2 = exp(int beta) at t = time(sigma)."""
    schedule = noise_levels.vp(beta_min, beta_max)
    t = exact(schedule.time(float64([sigma])))
    integral = exact(beta_min) * t + (exact(beta_max) - exact(beta_min)) * t**2 / 2
    wanted = np.frompyfunc(mpmath.log1p, 1, 1)(exact(sigma) ** 2)
    assert_within(integral, wanted + 0 * t, wanted, 2 * K)


def test_borders_by_hand() -> None:
    """sigma = 1: alpha = s = 1/sqrt(2) where variance is preserved, 1/2 for the flow."""
    x = float64([[2.0]])
    for name, alpha, t in (("cosine", 2**-0.5, 0.5), ("flow", 0.5, 0.5), ("ve", 1.0, 1.0)):
        x_t, time = SCHEDULES[name].from_ve(x, 1.0)
        assert abs(float(x_t) - 2 * alpha) <= gamma(8)
        assert abs(float(time) - t) <= gamma(8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_border_has_one_level_per_sample(name: str) -> None:
    """Square arrays: a sigma along the wrong axis would broadcast."""
    x, sigma = draws((3, 3), 0), float64([0.1, 1.0, 10.0])
    whole, t = SCHEDULES[name].from_ve(x, sigma)
    for i in range(3):
        alone, _ = SCHEDULES[name].from_ve(x[i : i + 1], float(sigma[i]))
        k = K * (1 + at_time(name, float(sigma[i])))
        assert_within(whole[i : i + 1], exact(alone), exact(alone), k)
    score = SCHEDULES[name].score_to_ve(x, t)
    wanted = exact(x) * column(ALPHAS[name](exact(sigma)), x)
    assert_within(score, wanted, wanted, column(K * (2 + at_time(name, exact(sigma))), x))


def test_per_sample_wants_a_scalar_or_one_number_each() -> None:
    x = torch.ones(3, 3)
    assert per_sample(0.5, x).shape == ()
    assert per_sample(torch.ones(3), x).shape == (3, 1)
    for shape in ((2,), (1,), (3, 1), (3, 3)):
        with pytest.raises(ValueError, match="one per sample"):
            per_sample(torch.ones(shape), x)


def test_a_wrong_sigma_is_told_the_shape_that_it_should_have() -> None:
    """Longer than the batch too: only a shorter one fails to broadcast by itself."""
    message = r"\(5,\); expected a scalar or \(3,\), one per sample of x \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        per_sample(torch.ones(5), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"\(5,\); expected a scalar or \(3,\)"):
        per_sample(torch.ones(5), torch.ones(3))


def test_sigma_is_never_narrower_than_float32() -> None:
    assert tensors.widen(0.1).dtype == torch.float64
    assert tensors.widen(torch.tensor(0.1, dtype=torch.bfloat16)).dtype == torch.float32
    assert tensors.widen(float64(0.1)).dtype == torch.float64


# --- tables and discretisations ------------------------------------------------------------------


def test_first_step_keeps_its_digits() -> None:
    law_first_step_keeps_its_digits(ddpm_sigmas)


def test_table_is_the_product() -> None:
    law_table_is_the_product(ddpm_sigmas)


def test_table_is_diffusers() -> None:
    """abar = 1/(1 + sigma^2): theirs is a product, ours a sum of logarithms, t + 1 terms each."""
    t = np.array(DIFFUSERS["t"])
    sigma = exact(ddpm_sigmas(linear_betas())[t])
    wanted = np.array(DIFFUSERS["alphas_cumprod"])
    assert_within(1 / (1 + sigma**2), wanted, wanted, 3 * (t + 1) + 8)


@pytest.mark.parametrize("n", [2, 5, 18, 40])
def test_karras(n: int) -> None:
    law_karras(karras_sigmas, n)


def test_karras_options() -> None:
    found = karras_sigmas(3, sigma_min=0.1, sigma_max=10.0, rho=1.0)
    wanted = np.array([10.0, 5.05, 0.1, 0.0])
    assert_within(found, wanted, np.full(4, 20.0), 4)


@pytest.mark.parametrize("n", SGM["discretization"]["edm"])
def test_karras_is_stability(n: str) -> None:
    """Both in float64: the bound of the law, twice."""
    wanted = exact(np.array(SGM["discretization"]["edm"][n]))
    base = np.where(wanted == 0, 1, wanted) ** (exact(1) / 7)
    top, bottom = (exact(edge) ** (exact(1) / 7) for edge in (80.0, 0.002))
    k = 2 * (7 * 6 * (2 * top + bottom) / base + 8)
    assert_within(karras_sigmas(int(n)), wanted, wanted, k)


@pytest.mark.parametrize("n", SGM["discretization"]["legacy_ddpm"])
def test_legacy_table_is_stability(n: str) -> None:
    """To 1e-6: the published code computes it in float32 (tests/reference/README.md)."""
    found = table_sigmas(ddpm_sigmas(scaled_linear_betas()), int(n))
    wanted = np.array(SGM["discretization"]["legacy_ddpm"][n])
    assert_within(found, wanted, wanted, 0, plus=1e-6 * wanted)


def test_a_whole_table_is_itself_descending() -> None:
    table = ddpm_sigmas(linear_betas(50))
    found = table_sigmas(table, 50)
    assert torch.equal(found[:-1], table.flip(0))
    assert float(found[-1]) == 0
    assert bool((torch.diff(table_sigmas(table, 7)) < 0).all())


def test_one_level_of_a_table_is_its_largest() -> None:
    table = ddpm_sigmas(linear_betas(50))
    assert torch.equal(table_sigmas(table, 1), float64([float(table[-1]), 0.0]))


@pytest.mark.parametrize("n", [0, 51, -1])
def test_more_levels_than_the_table_has_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 50"):
        table_sigmas(ddpm_sigmas(linear_betas(50)), n)
