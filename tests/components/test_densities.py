"""Laws of the densities: training distributions of log sigma, cut and renormalised."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.published import DIFFUSERS
from helpers.strategies import float64, levels
from hypothesis import given
from hypothesis import strategies as st
from laws.densities import (
    TRUTH,
    K,
    Law,
    edges,
    law_inverse_is_that_of_the_pdf,
    law_no_mass_outside_the_cut,
    law_pdf_integrates_to_one,
    law_pdf_is_the_closed_form,
    law_quantile_is_the_closed_form,
    law_quantiles_stay_in_the_cut,
    law_table_has_equal_masses,
    law_table_pdf_is_mass_over_spacing,
    normal,
    table,
)
from scipy import stats
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import COSINE, FLOW, ddpm_sigmas, linear_betas
from testbed.errors import InputError
from testbed.registry import default_registry

VARIANTS = [
    ("lognormal", {"mean": 0.0, "std": 2.0}, normal(0.0, 2.0)),
    ("logit_normal", {"mean": -0.5, "std": 0.7}, normal(-0.5, 0.7, by_time=True)),
    (
        "loguniform",
        {"low": 0.01, "high": 50.0},
        Law(stats.uniform(math.log(0.01), math.log(5000.0)), lambda y: 0 * y),
    ),
]
CUTS = [(0.002, 80.0), (0.05, 10.0), (0.3, 0.4)]


def density(name: str, **options: Any) -> testbed.Density:
    return default_registry().density(name, **options)


def uniform_flow() -> testbed.Density:
    """Uniform t with t = sigma/(1 + sigma): p(sigma) = 1/(1 + sigma)^2."""
    return testbed.Density(
        "uniform_flow",
        icdf=lambda u: u / (1 - u),
        pdf=lambda sigma: sigma / (1 + sigma) ** 2,
    ).bound({})


ALL = [(name, {}, law) for name, law in TRUTH.items()] + VARIANTS


@pytest.mark.parametrize(("name", "options", "law"), ALL)
@pytest.mark.parametrize("cut", CUTS)
def test_pdf_is_the_closed_form(
    name: str, options: dict[str, float], law: Law, cut: tuple[float, float]
) -> None:
    low, high = cut
    law_pdf_is_the_closed_form(density(name, sigma_min=low, sigma_max=high, **options), law)


@pytest.mark.parametrize(("name", "options", "law"), ALL)
@pytest.mark.parametrize("cut", CUTS)
def test_quantile_is_the_closed_form(
    name: str, options: dict[str, float], law: Law, cut: tuple[float, float]
) -> None:
    low, high = cut
    law_quantile_is_the_closed_form(density(name, sigma_min=low, sigma_max=high, **options), law)


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("cut", CUTS)
def test_pdf_integrates_to_one(name: str, cut: tuple[float, float]) -> None:
    d = density(name, sigma_min=cut[0], sigma_max=cut[1])
    law_pdf_integrates_to_one(d, TRUTH[name].condition)


@pytest.mark.parametrize("name", TRUTH)
def test_inverse_is_that_of_the_pdf(name: str) -> None:
    law_inverse_is_that_of_the_pdf(density(name), TRUTH[name].condition)


@pytest.mark.parametrize("name", [*TRUTH, "ddpm"])
@pytest.mark.parametrize("cut", CUTS)
def test_no_mass_outside_the_cut(name: str, cut: tuple[float, float]) -> None:
    law_no_mass_outside_the_cut(density(name, sigma_min=cut[0], sigma_max=cut[1]))


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("cut", CUTS)
def test_quantiles_stay_in_the_cut(name: str, cut: tuple[float, float]) -> None:
    law_quantiles_stay_in_the_cut(density(name, sigma_min=cut[0], sigma_max=cut[1]))


# --- identities -------------------------------------------------------------------------------


@given(u=st.floats(0, 1, exclude_max=True))
def test_cosine_is_a_tangent_of_uniform_time(u: float) -> None:
    """The same levels as the cosine schedule at uniform t, between the edges of the cut; sigma's
    relative error is K u (1 + sigma), because tan near pi/2 has condition sigma."""
    d = density("cosine")
    t = d.cut[0] + u * (d.cut[1] - d.cut[0])
    wanted = float(COSINE.sigma(t).clamp(0.002, 80.0))
    found = float(d.sigma(float64(u)))
    assert abs(found - wanted) <= gamma(K) * wanted * (1 + wanted + 1 / wanted)


@pytest.mark.slow
@given(u=st.floats(0, 1), mean=st.floats(-2, 2), std=st.floats(0.5, 2))
def test_logit_normal_in_time_is_log_normal_in_sigma(u: float, mean: float, std: float) -> None:
    """logit t = log sigma. t/(1 - t) loses 1 + sigma roundings; near the edges the inverse CDF
    multiplies the rounding of u by 1/p <= 1/min p."""
    one, other = (density(name, mean=mean, std=std) for name in ("logit_normal", "lognormal"))
    a, b = (float(d.sigma(float64(u))) for d in (one, other))
    p = float(other.pdf_over_log_sigma(b))
    assert abs(a - b) <= gamma(K) * b * (1 + b + abs(mean) + 8 * std + 1 / p)


@pytest.mark.slow
def test_uniform_flow_time() -> None:
    """p(sigma) = 1/(1 + sigma)^2 is uniform t; over log sigma that is the logistic density."""
    d, law = uniform_flow(), Law(stats.logistic(), lambda y: 1 + 0 * y)
    law_pdf_is_the_closed_form(d, law)
    law_quantile_is_the_closed_form(d, law)
    law_pdf_integrates_to_one(d, law.condition)
    law_inverse_is_that_of_the_pdf(d, law.condition)
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    t = d.cut[0] + u * (d.cut[1] - d.cut[0])
    wanted = FLOW.sigma(t)
    assert_within(d.sigma(u), wanted, wanted, 4)


def test_a_uniform_density_has_its_ends() -> None:
    """1/log(high/low) on the closed interval: a run may be cut where the density ends."""
    d = density("loguniform", low=0.01, high=1.0, sigma_min=0.01, sigma_max=1.0)
    wanted = np.full(2, 1 / math.log(100))
    assert_within(d.pdf_over_log_sigma(float64([0.01, 1.0])), wanted, wanted, K)


@given(sigma=levels(0.002, 80))
def test_cosine_pdf_is_a_hyperbolic_secant(sigma: float) -> None:
    """p(log sigma) = sech(log sigma)/pi, over the mass of the cut."""
    d = density("cosine")
    y = math.log(sigma)
    wanted = 1 / math.cosh(y) / math.pi / (d.cut[1] - d.cut[0])
    found = float(d.pdf_over_log_sigma(float64(sigma)))
    assert abs(found - wanted) <= gamma(K) * wanted * (1 + abs(y))


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [(0.002, 80.0), (0.002, 200.0), (0.05, 10.0)])
def test_table_has_equal_masses(cut: tuple[float, float]) -> None:
    law_table_has_equal_masses(density("ddpm", sigma_min=cut[0], sigma_max=cut[1]))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(0.002, 80.0), (0.002, 200.0), (0.05, 10.0)])
def test_table_pdf_is_mass_over_spacing(cut: tuple[float, float]) -> None:
    law_table_pdf_is_mass_over_spacing(density("ddpm", sigma_min=cut[0], sigma_max=cut[1]))


@pytest.mark.parametrize("cut", [(0.002, 80.0), (0.002, 200.0), (0.05, 10.0)])
def test_table_pdf_integrates_to_one(cut: tuple[float, float]) -> None:
    """A step function, integrated step by step: exactly one but for the steps that the cut halves,
    at most half a level's mass at each edge."""
    d = density("ddpm", sigma_min=cut[0], sigma_max=cut[1])
    y = np.log(table())
    middle = (y[1:] + y[:-1]) / 2
    borders = np.concatenate([[2 * y[0] - middle[0]], middle, [2 * y[-1] - middle[-1]]])
    low, high = (math.log(edge) for edge in cut)
    borders = np.clip(borders, low, high)
    n = int(((y > low) & (y < high)).sum())
    width = np.diff(borders)
    p = d.pdf_over_log_sigma(torch.from_numpy(np.exp((borders[1:] + borders[:-1]) / 2))).numpy()
    assert abs(float(np.sum(p * width)) - 1) <= 1 / n
    if cut[1] > 160:
        assert abs(float(np.sum(p * width)) - 1) <= gamma(1000 * (1 + 1 / width.min()))


def test_table_is_diffusers() -> None:
    """abar = 1/(1 + sigma^2) at the levels; 3 (t + 1) + 8 roundings (see test_conversions)."""
    d = density("ddpm", sigma_max=200.0)
    t = np.array(DIFFUSERS["t"])
    sigma = exact(d.sigma(torch.from_numpy((t + 0.5) / 1000)))
    wanted = np.array(DIFFUSERS["alphas_cumprod"])
    assert_within(1 / (1 + sigma**2), wanted, wanted, 3 * (t + 1) + 8)


def test_no_mass_beyond_the_table() -> None:
    """The table goes from 0.0100 to 157.4 and its end cells half a step further."""
    d = density("ddpm", sigma_min=0.002, sigma_max=300.0)
    outside = float64([0.002, 0.005, 0.008, 165.0, 200.0, 300.0])
    assert torch.equal(d.pdf_over_log_sigma(outside), torch.zeros_like(outside))


def test_the_ends_of_the_table_are_the_quantiles_at_zero_and_one() -> None:
    """low + u (high - low) may be rounded to 1."""
    found = density("ddpm").icdf(float64([0.0, 1.0]))
    assert torch.equal(found, ddpm_sigmas(linear_betas())[[0, -1]])


def test_levels_on_the_edges_of_a_cut_belong_to_it() -> None:
    """cut = (P(sigma < sigma_min), P(sigma <= sigma_max)): the levels 10 to 20 of 1000. Bisection
    ends within one rounding of 1."""
    low, high = (float(level) for level in ddpm_sigmas(linear_betas())[[10, 20]])
    cut = density("ddpm", sigma_min=low, sigma_max=high).cut
    assert_within(np.array(cut), np.array([0.01, 0.021]), np.ones(2), 2)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TRUTH, "ddpm"])
def test_cut_is_an_option_of_every_density(name: str) -> None:
    d = density(name)
    assert edges(d) == (0.002, 80.0)
    assert edges(density(name, sigma_min=0.01, sigma_max=1)) == (0.01, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lognormal", {"sigma_min": 1.0, "sigma_max": 0.5}, "sigma_min < sigma_max"),
        ("lognormal", {"sigma_min": 0.0}, "0 < sigma_min"),
        ("lognormal", {"sigma_mim": 0.1}, "Did you mean 'sigma_min'"),
        ("loguniform", {"low": 0.01, "high": 0.1, "sigma_min": 1.0}, "no mass"),
        ("ddpm", {"sigma_min": 1e-4, "sigma_max": 1e-3}, "no mass"),
    ],
)
def test_a_cut_without_mass_is_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        density(name, **options)


@pytest.mark.parametrize(("one", "other"), [(1.0, 2.0), (2.0, 1.0)])
def test_both_functions_state_one_default(one: float, other: float) -> None:
    def icdf(u: Tensor, scale: float = one) -> Tensor:
        return scale * u

    def pdf(sigma: Tensor, scale: float = other) -> Tensor:
        return sigma / scale

    with pytest.raises(InputError, match="option 'scale' has two defaults"):
        testbed.Density("linear", icdf, pdf)


@pytest.mark.parametrize("name", [*TRUTH, "ddpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(name: str, dtype: torch.dtype) -> None:
    d = density(name)
    for shape in ((), (3,), (2, 3)):
        p = d.pdf_over_log_sigma(torch.full(shape, 0.5, dtype=dtype))
        assert (p.shape, p.dtype) == (shape, dtype)
        sigma = d.sigma(torch.full(shape, 0.5, dtype=dtype))
        assert (sigma.shape, sigma.dtype) == (shape, torch.float64)
    assert d.pdf_over_log_sigma(0.5).dtype == torch.float64
