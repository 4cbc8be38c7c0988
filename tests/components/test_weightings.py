"""Laws of the weightings lambda(sigma) of |D - x0|^2."""

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, log
from helpers.published import SGM
from helpers.strategies import WIDE, Case, fixed, float64, levels, sigma_datas
from hypothesis import given
from hypothesis import strategies as st
from laws.weightings import (
    K_SIGMOID,
    SPACES,
    WEIGHTS,
    K,
    density,
    law_k_is_lambda_b_squared,
    law_sigmoid_is_an_effective_weight,
    law_unweighted_loss_is_the_weight_of_its_space,
    law_weight_is_the_formula,
    law_weight_is_the_squared_error_of_a_space,
    objective,
    sigmoid,
    smaller,
    weighting,
)

from testbed.errors import InputError
from testbed.registry import default_registry

OPTIONS: list[tuple[str, dict[str, float]]] = [
    ("min_snr", {"gamma": 1.0}),
    ("min_snr", {"gamma": 20.0}),
    ("soft_min_snr", {"gamma": 20.0}),
    ("p2", {"k": 2.0, "g": 0.5}),
    ("p2", {"k": 1.0, "g": 0.0}),
    ("sigmoid", {"b": -3.0}),
    ("sigmoid", {"b": 2.0}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
@given(dtype=st.sampled_from(WIDE), sigma=levels(0.003, 79), sigma_data=sigma_datas)
def test_weight_is_the_formula(
    name: str, dtype: torch.dtype, sigma: float, sigma_data: float
) -> None:
    exact_in_both = float(torch.tensor(sigma_data, dtype=torch.float32))
    levels_ = torch.tensor([sigma, 0.5, 2.0], dtype=dtype)
    law_weight_is_the_formula(weighting(name), name, levels_, exact_in_both)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_weight_with_options_is_the_formula(name: str, options: dict[str, float]) -> None:
    sigma = torch.logspace(-2, 1.8, 20, dtype=torch.float64)
    law_weight_is_the_formula(weighting(name, **options), name, sigma, 0.5, **options)


@pytest.mark.parametrize("space", ["x0", "eps", "score", "v", "flow"])
@given(sigma=levels())
def test_weight_is_the_squared_error_of_a_space(space: str, sigma: float) -> None:
    law_weight_is_the_squared_error_of_a_space(weighting(space), space, sigma)


@given(sigma=levels(), sigma_data=sigma_datas)
def test_edm_weight_is_one_over_c_out_squared(sigma: float, sigma_data: float) -> None:
    """So the squared error of EDM's F is its weight, as for every F."""
    s = float64(sigma)
    p = default_registry().parameterization("edm")
    out = exact(p.coefficients(s, sigma_data=sigma_data).out)
    assert_within(weighting("edm")(s, sigma_data=sigma_data), 1 / out**2, 1 / out**2, 2 * K)


@pytest.mark.parametrize("space", SPACES)
def test_unweighted_loss_is_the_weight_of_its_space(space: str) -> None:
    law_unweighted_loss_is_the_weight_of_its_space(objective(space, None), space)


@pytest.mark.parametrize("parameterization", ["eps", "v", "edm", "x0", "score"])
def test_unweighted_loss_on_F_is_one_over_c_out_squared(parameterization: str) -> None:
    o = objective("F", None, parameterization)
    sigma = torch.logspace(-2, 1.5, 9, dtype=torch.float64)
    out = exact(o.parameterization.coefficients(sigma, sigma_data=0.5).out)
    wanted = exact(o.density.pdf_over_log_sigma(sigma)) / out**2
    assert_within(o.effective_weight(sigma), wanted, wanted, 2 * K)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["unit", "edm", "min_snr", "truncated_snr"])
def test_k_is_lambda_b_squared(space: str, name: str) -> None:
    law_k_is_lambda_b_squared(objective(space, weighting(name)), space)


@pytest.mark.parametrize("name", ["unit", "edm", "min_snr"])
def test_effective_weight_with_a_weighting_does_not_depend_on_the_space(name: str) -> None:
    sigma = torch.logspace(-2, 1.5, 9, dtype=torch.float64)
    w = weighting(name)
    wanted = exact(w(sigma, sigma_data=0.5)) * exact(density().pdf_over_log_sigma(sigma))
    for space in SPACES:
        assert_within(objective(space, w).effective_weight(sigma), wanted, wanted, 2 * K)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_in_eps_and_v_space(gamma: float) -> None:
    """Derived: min(SNR, gamma)/SNR on the squared error of eps, min(SNR, gamma)/(SNR + 1) on v."""
    sigma = fixed().sigma
    snr = 1 / exact(sigma) ** 2
    w = weighting("min_snr", gamma=gamma)
    for space, divisor in (("eps", snr), ("v", snr + 1)):
        wanted = smaller(snr, exact(gamma)) / divisor
        assert_within(objective(space, w).k(sigma), wanted, wanted, K)


@pytest.mark.parametrize(("k", "g"), [(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)])
def test_p2_in_eps_space(k: float, g: float) -> None:
    """1/(k + SNR)^g; k = g = 1 is the default."""
    sigma = fixed().sigma
    wanted = 1 / (exact(k) + 1 / exact(sigma) ** 2) ** exact(g)
    assert_within(objective("eps", weighting("p2", k=k, g=g)).k(sigma), wanted, wanted, K)
    assert weighting("p2").options == {"k": 1.0, "g": 1.0}


@pytest.mark.slow
@given(
    name=st.sampled_from(["lognormal", "loguniform", "cosine", "logit_normal", "ddpm"]),
    sigma=levels(0.001, 100),
    b=st.floats(-4, 4),
)
def test_sigmoid_is_an_effective_weight(name: str, sigma: float, b: float) -> None:
    law_sigmoid_is_an_effective_weight(weighting("sigmoid", b=b), density(name), sigma, b)


def test_sigmoid_in_an_objective_is_an_effective_weight() -> None:
    sigma = torch.logspace(-2, 1.5, 9, dtype=torch.float64)
    snr = 1 / exact(sigma) ** 2
    wanted = snr * sigmoid(-log(snr))
    for name in ("lognormal", "cosine"):
        o = objective("v", weighting("sigmoid"), name=name)
        assert_within(o.effective_weight(sigma), wanted, wanted, K_SIGMOID + K)


def test_what_a_weighting_names_is_asked_for() -> None:
    sigma = torch.ones(2)
    with pytest.raises(TypeError, match="'edm' needs sigma_data"):
        weighting("edm")(sigma)
    with pytest.raises(TypeError, match="'sigmoid' needs p"):
        weighting("sigmoid")(sigma)
    with pytest.raises(InputError, match=r"'min_snr'.*'gama'.*Did you mean 'gamma'"):
        weighting("min_snr", gama=1.0)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_weight_is_shaped_like_sigma(name: str, shape: tuple[int, ...]) -> None:
    found = weighting(name)(torch.full(shape, 0.5), sigma_data=0.5, density=density())
    assert found.shape == shape


# --- outside truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SGM["weighting"])
def test_stability_weighting(entry: str) -> None:
    """Both sides in float64. Its eps weight is sigma^-2, its v weight sigma^-2 + 1."""
    name, _, rest = entry.partition("(sigma_data=")
    sigma = float64(SGM["sigma"])
    wanted = exact(np.array(SGM["weighting"][entry]))
    found = weighting(name)(sigma, sigma_data=float(rest.rstrip(")") or 1.0))
    assert_within(found, wanted, wanted, 2 * K)


def test_numbers_by_hand() -> None:
    """At sigma = 1/2, SNR = 4: values that need no formula."""
    half = float64(0.5)
    wanted = {"eps": 4, "score": 16, "v": 5, "min_snr": 4, "truncated_snr": 4, "p2": 0.8, "unit": 1}
    for name, value in wanted.items():
        assert float(weighting(name)(half)) == value
    assert float(weighting("edm")(half, sigma_data=0.5)) == 8
    assert float(weighting("min_snr")(half / 2)) == 5
    assert float(weighting("truncated_snr")(4 * half)) == 1
    assert mpmath.almosteq(float(weighting("soft_min_snr")(half)), 1 / (0.25 + 0.2), 4 * 2**-53)


def test_case_is_not_trivial() -> None:
    """The fixed levels lie on both sides of every corner of a weighting."""
    c: Case = fixed()
    assert float(c.sigma.min()) < 0.2 < 1 < float(c.sigma.max())
