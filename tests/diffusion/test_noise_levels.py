"""Laws of the noise levels: borders to other conventions, score, tables and discretisations."""

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.published import DIFFUSERS, SGM
from helpers.strategies import WIDE, Case, cases, column, draws, float64, levels, seeds
from hypothesis import given
from hypothesis import strategies as st
from laws.noise_levels import (
    ALPHAS,
    SCHEDULES,
    K,
    at_time,
    law_border_goes_there_and_back,
    law_border_is_the_definition,
    law_first_step_keeps_its_digits,
    law_karras,
    law_rate_is_the_derivative,
    law_score_obeys_the_chain_rule,
    law_table_is_the_product,
)

from testbed import tensors
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_levels import (
    ddpm_sigmas,
    karras_sigmas,
    linear_betas,
    scaled_linear_betas,
    table_sigmas,
)
from testbed.tensors import per_sample

times = st.floats(1e-3, 0.99)


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=times)
def test_border_is_the_definition(name: str, t: float) -> None:
    law_border_is_the_definition(SCHEDULES[name], name, t)


@pytest.mark.slow
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
