"""Laws of the parameterizations: D = c_skip x + c_out F(c_in x, c_noise)."""

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact
from helpers.published import SGM
from helpers.strategies import (
    DTYPES,
    WIDE,
    Case,
    cases,
    fixed,
    float64,
    levels,
    sigma_datas,
)
from hypothesis import given
from hypothesis import strategies as st
from laws.parameterizations import (
    BENT,
    FLOW,
    K_AFFINE,
    K_COEFFICIENT,
    TABLE,
    law_coefficients_are_the_table,
    law_denoise_is_affine,
    law_optimal_output_gives_x0,
    law_output_inverts_denoise,
    law_smallest_c_out,
    law_target_agrees_with_scaling,
    law_target_is_the_table,
    law_unit_variance,
)
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import VP
from testbed.diffusion.predictions import PREDICTION_TYPES, convert, from_pair, to_pair
from testbed.errors import InputError
from testbed.registry import default_registry

NEEDS_SIGMA_DATA = {"edm", "x0"}


def registered(name: str, **options: Any) -> testbed.Parameterization:
    return default_registry().parameterization(name, **options)


@pytest.mark.parametrize("name", TABLE)
@given(dtype=st.sampled_from(WIDE), sigma=levels(), sigma_data=sigma_datas)
def test_coefficients_are_the_table(
    name: str, dtype: torch.dtype, sigma: float, sigma_data: float
) -> None:
    """sigma_data is a Python float, which float32 arithmetic rounds once more."""
    exact_in_both = float(torch.tensor(sigma_data, dtype=torch.float32))
    levels_ = torch.tensor([sigma, 1.0, 0.3], dtype=dtype)
    law_coefficients_are_the_table(registered(name), name, levels_, exact_in_both)


@pytest.mark.parametrize("name", TABLE)
@given(c=cases(dtypes=DTYPES))
def test_target_is_the_table(name: str, c: Case) -> None:
    law_target_is_the_table(registered(name), name, c)


@pytest.mark.parametrize("name", [*TABLE, "flow"])
@given(c=cases(dtypes=DTYPES))
def test_target_agrees_with_scaling(name: str, c: Case) -> None:
    law_target_agrees_with_scaling(FLOW if name == "flow" else registered(name), c)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLE, "flow"])
@given(c=cases(dtypes=DTYPES))
def test_optimal_output_gives_x0(name: str, c: Case) -> None:
    law_optimal_output_gives_x0(FLOW if name == "flow" else registered(name), c)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLE, "flow"])
@given(c=cases(dtypes=WIDE))
def test_output_inverts_denoise(name: str, c: Case) -> None:
    law_output_inverts_denoise(FLOW if name == "flow" else registered(name), c)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@given(c=cases(dtypes=DTYPES))
def test_denoise_is_affine(name: str, c: Case) -> None:
    law_denoise_is_affine(registered(name), name, c)


def test_flow_of_the_brief_predicts_eps_minus_x0() -> None:
    """The derived target of the plugin; 1 - c_skip adds the terms 1 and c_skip."""
    c = fixed()
    found = FLOW.target(c.x0, c.eps, c.sigma)
    terms = np.abs(c.X0) + np.abs(c.EPS)
    out = c.S / (1 + c.S)
    assert_within(found, c.EPS - c.X0, terms / out, K_AFFINE[c.dtype])


def test_output_inverts_denoise_of_a_non_affine_one() -> None:
    """F = asinh of v from D and eps = (x - D)/sigma; asinh multiplies no error.

    With P = (|x| + sigma r |v|)/r^2 >= |D|, D's terms: eps has (|x| + 2 P)/sigma, and
    v = (eps - sigma D)/r has both of its own and what D's error adds. K_AFFINE roundings each way.
    """
    c = fixed()
    D = BENT.denoise(c.eps, c.x, c.sigma)
    found = BENT.output(D, c.x, c.sigma)
    x, r = np.abs(exact(c.x)), (1 + c.S**2) ** 0.5
    P = (x + c.S * r * np.abs(exact(torch.sinh(c.eps)))) / r**2
    terms = (2 * (x + 2 * P) / c.S + 2 * c.S * P) / r + np.abs(c.EPS)
    assert_within(found, c.EPS, terms, K_AFFINE[c.dtype])


@given(sigma=levels(), sigma_data=sigma_datas)
def test_edm_has_unit_variance(sigma: float, sigma_data: float) -> None:
    law_unit_variance(registered("edm"), float64([sigma, 1.0]), sigma_data)


@given(sigma=levels())
def test_v_has_unit_variance_at_unit_data(sigma: float) -> None:
    law_unit_variance(registered("v"), float64([sigma, 1.0]), 1.0)


@given(sigma=levels(), sigma_data=sigma_datas, other=st.floats(-1, 2))
def test_edm_has_the_smallest_c_out(sigma: float, sigma_data: float, other: float) -> None:
    law_smallest_c_out(registered("edm"), float64([sigma]), sigma_data, other)


@pytest.mark.slow
@given(c=cases(dtypes=WIDE))
def test_edm_at_unit_data_is_minus_v(c: Case) -> None:
    """The sign trap: EDM's F at sigma_data = 1 is -v."""
    edm = registered("edm").target(c.x0, c.eps, c.sigma, sigma_data=1.0)
    v = registered("v").target(c.x0, c.eps, c.sigma)
    terms = (np.abs(c.EPS) + c.S * np.abs(c.X0)) / (1 + c.S**2) ** 0.5
    assert_within(edm, -exact(v), terms, 2 * K_AFFINE[c.dtype], c.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm", "v"])
@given(sigma_data=sigma_datas, small=levels(1e-6, 1e-3))
def test_limits(name: str, sigma_data: float, small: float) -> None:
    """With r = sigma/sd, EDM's F* is (r x0/sd - eps)/sqrt(1 + r^2), c_skip 1/(1 + r^2) and c_out
    sigma/sqrt(1 + r^2); v is minus that at sd = 1. So for r -> 0 F* -> -eps, D -> x; for r -> inf
    F* -> x0/sd, c_skip -> 0, c_out -> sd. The rest is below |first order term| + r^2/2 |limit|.
    """
    p, sign = registered(name), -1 if name == "v" else 1
    sigma_data = 1.0 if name == "v" else sigma_data
    c = fixed()
    x0, eps, sd, r = (
        np.abs(c.X0) / exact(sigma_data),
        np.abs(c.EPS),
        exact(sigma_data),
        exact(small),
    )
    k, size = K_AFFINE[torch.float64], x0 + eps

    near, far = small * sigma_data, sigma_data / small
    target = p.target(c.x0, c.eps, near, sigma_data=sigma_data)
    assert_within(target, -sign * c.EPS, size, k, plus=r * x0 + r**2 / 2 * eps)
    target = p.target(c.x0, c.eps, far, sigma_data=sigma_data)
    assert_within(target, sign * c.X0 / sd, size, k, plus=r * eps + r**2 / 2 * x0)

    skip, out, _, _ = p.coefficients(near, sigma_data=sigma_data)
    assert_within(skip, exact(1), 1, K_COEFFICIENT, plus=r**2)
    assert_within(out, sign * exact(near), near, K_COEFFICIENT, plus=r**2 / 2 * near)
    skip, out, _, _ = p.coefficients(far, sigma_data=sigma_data)
    assert_within(skip, exact(0), r**2, K_COEFFICIENT, plus=r**2)
    assert_within(out, sign * sd, sd, K_COEFFICIENT, plus=r**2 / 2 * sd)


@pytest.mark.parametrize("name", ["eps", "v", "edm", "score"])
def test_without_noise_the_denoiser_is_the_identity(name: str) -> None:
    """c_skip(0) = 1 and c_out(0) = 0 exactly, so D = x at sigma = 0 for any F."""
    c = fixed()
    assert torch.equal(registered(name).denoise(c.eps, c.x, 0.0, sigma_data=0.5), c.x)


# --- sigma_data and options -------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_sigma_data_is_asked_for_where_it_is_named_and_ignored_elsewhere(name: str) -> None:
    p, sigma = registered(name), torch.tensor([0.5, 2.0])
    if name in NEEDS_SIGMA_DATA:
        with pytest.raises(TypeError, match=f"'{name}'.*sigma_data"):
            p.coefficients(sigma)
        one, other = (p.coefficients(sigma, sigma_data=sd) for sd in (0.5, 0.7))
        assert not torch.equal(one.in_, other.in_)
    else:
        one, other = p.coefficients(sigma), p.coefficients(sigma, sigma_data=0.7)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "function",
    [
        convert,
        to_pair,
        from_pair,
        *(
            getattr(testbed.Parameterization, name)
            for name in ("coefficients", "pair_weights", "target", "denoise", "output")
        ),
        testbed.Weighting.__call__,
    ],
    ids=lambda function: function.__qualname__,
)
def test_sigma_data_goes_by_keyword(function: Callable[..., Any]) -> None:
    """Two floats in a row, sigma and sigma_data, would be exchanged without a word."""
    kind = inspect.signature(function).parameters["sigma_data"].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "stated",
    [PREDICTION_TYPES["v"], testbed.Recipe(density="cosine"), FLOW, VP, FLOW.signature("scaling")],
    ids=type,
)
def test_what_is_stated_cannot_be_changed(stated: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(copy.copy(stated), dataclasses.fields(stated)[0].name, "another")


def shifted(sigma: Tensor, shift: float = 1.0) -> testbed.Coefficients:
    one = torch.ones_like(sigma)
    return testbed.Coefficients(skip=one, out=-shift * sigma, in_=one, noise=sigma)


def test_an_option_reaches_the_scaling() -> None:
    p = testbed.Parameterization(name="shifted", scaling=shifted)
    sigma = float64(2.0)
    assert p.bound({}).options == {"shift": 1.0}
    assert float(p.bound({}).coefficients(sigma).out) == -2
    assert float(p.bound({"shift": 3}).coefficients(sigma).out) == -6
    x0, eps = torch.ones(1).double(), float64([0.75])
    assert float(p.bound({"shift": 4}).target(x0, eps, sigma)) == 0.75 / 4


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    p = testbed.Parameterization(name="shifted", scaling=shifted)
    with pytest.raises(InputError, match=r"'shifted'.*'shfit'.*Did you mean 'shift'"):
        p.bound({"shfit": 2.0})
    with pytest.raises(InputError, match=r"shift = 'two' must be a number"):
        p.bound({"shift": "two"})


def test_scaling_or_target_and_denoise() -> None:
    def target(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        return x0

    with pytest.raises(InputError, match="needs a scaling"):
        testbed.Parameterization(name="half", target=target)
    with pytest.raises(InputError, match="follows from the scaling"):
        testbed.Parameterization(name="both", scaling=shifted, denoise=target)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"claims": ("unit_traget",)}, "Did you mean 'unit_target'"),
        ({"claims": ("boundary", "another")}, "'another'"),
        ({"singular": (1.0,)}, "may hold 0.0 and math.inf only"),
        ({"singular": (0.0, -math.inf)}, "may hold 0.0 and math.inf only"),
        ({"sigma_data": 0.0}, r"sigma_data = 0.0 must be positive"),
        ({"sigma_data": -0.5}, "must be positive"),
        ({"sigma_data": math.inf}, "must be positive"),
        ({"sigma_data": math.nan}, "must be positive"),
        ({"sigma_range": (1.0, 1.0)}, "needs 0 <= low < high"),
        ({"sigma_range": (2.0, 1.0)}, "needs 0 <= low < high"),
        ({"sigma_range": (-1.0, 1.0)}, "needs 0 <= low < high"),
        ({"sigma_range": (0.0, math.nan)}, "needs 0 <= low < high"),
    ],
)
def test_what_is_stated_of_a_parameterization_is_possible(stated: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"'shifted'.*{says}"):
        testbed.Parameterization(name="shifted", scaling=shifted, **stated)


def test_what_is_stated_of_a_parameterization_is_kept() -> None:
    stated: dict[str, Any] = {
        "sigma_range": (0.0, 1.0),
        "singular": (0.0, math.inf),
        "claims": ("unit_target", "unit_input", "homogeneous", "boundary"),
        "sigma_data": 0.001,
    }
    p = testbed.Parameterization(name="shifted", scaling=shifted, **stated)
    assert {name: getattr(p, name) for name in stated} == stated
    listed = testbed.Parameterization(name="shifted", scaling=shifted, singular=[0.0], claims=[])
    assert (listed.singular, listed.claims) == ((0.0,), ())
    assert (listed.sigma_range, listed.sigma_data) == ((0.0, math.inf), None)


def test_coefficients_are_shaped_like_sigma() -> None:
    """And float32 or wider: a Python float counts as float64, bfloat16 becomes float32."""
    half = torch.full((3,), 0.5, dtype=torch.bfloat16)
    expected = {0.5: torch.float64, half: torch.float32, half.double()[0]: torch.float64}
    for name in TABLE:
        for sigma, dtype in expected.items():
            for found in registered(name).coefficients(sigma, sigma_data=0.5):
                assert (found.shape, found.dtype) == (torch.as_tensor(sigma).shape, dtype)


# --- outside truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SGM["scaling"])
def test_stability_scaling(entry: str) -> None:
    """Both sides in float64: twice the roundings of a coefficient."""
    name, _, rest = entry.partition("(sigma_data=")
    sigma_data = float(rest.rstrip(")") or 1.0)
    shared = name == "v_edm_c_noise"
    p = registered("v" if shared else name)
    sigma = float64(SGM["sigma"])
    c_noise_ = "shared" if shared else "native"
    denoiser = testbed.Denoiser(torch.nn.Identity(), p, sigma_data, c_noise=c_noise_)
    skip, out, _, _ = p.coefficients(sigma, sigma_data=sigma_data)
    c_in, c_noise = denoiser.inputs(sigma)
    found = {"c_skip": skip, "c_out": out, "c_in": c_in, "c_noise": c_noise}
    assert found.keys() == SGM["scaling"][entry].keys()
    for key, wanted in SGM["scaling"][entry].items():
        wanted = exact(np.array(wanted))
        assert_within(found[key], wanted, wanted, 2 * K_COEFFICIENT)


def test_every_stability_scaling_is_there() -> None:
    assert set(SGM["scaling"]) == {
        "eps", "v", "v_edm_c_noise", "edm(sigma_data=0.5)", "edm(sigma_data=1.0)"
    }  # fmt: skip
