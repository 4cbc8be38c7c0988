"""Laws of `testbed.convert`: the kinds of prediction."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma, rounded
from helpers.published import DIFFUSERS
from helpers.strategies import Case, case, cases, column, draws, fixed, float64, levels, sigma_datas
from hypothesis import given
from hypothesis import strategies as st
from laws.conversions import (
    FROM_D,
    TRUTH,
    K,
    kind,
    law_conversion_gives_the_kind,
    law_each_sample_has_its_sigma,
    law_pair_keeps_digits,
    law_round_trip,
    law_triangle,
    terms,
    truth,
)
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import VP, ddpm_sigmas, linear_betas
from testbed.errors import UnknownName

TO_D: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x0": lambda q, x, sigma: q,
    "eps": lambda q, x, sigma: x - sigma * q,
    "score": lambda q, x, sigma: x + sigma**2 * q,
    "v": lambda q, x, sigma: (x - sigma * (1 + sigma**2) ** 0.5 * q) / (1 + sigma**2),
    "flow": lambda q, x, sigma: (x - sigma * q) / (1 + sigma),
}
NAMED = tuple(FROM_D)
any_kind = st.sampled_from(list(TRUTH))


@pytest.mark.slow
@pytest.mark.parametrize("source", TRUTH)
@given(target=any_kind, c=cases())
def test_conversion_gives_the_kind(source: str, target: str, c: Case) -> None:
    law_conversion_gives_the_kind(testbed.convert, source, target, c)


@pytest.mark.slow
@pytest.mark.parametrize("source", TRUTH)
def test_conversion_gives_the_kind_for_every_pair(source: str) -> None:
    for target in TRUTH:
        law_conversion_gives_the_kind(testbed.convert, source, target, fixed())


@pytest.mark.slow
@pytest.mark.parametrize("one", NAMED)
@given(two=any_kind, three=any_kind, c=cases())
def test_triangle(one: str, two: str, three: str, c: Case) -> None:
    law_triangle(testbed.convert, one, two, three, c)


@pytest.mark.slow
@pytest.mark.parametrize("there", NAMED)
@given(back=any_kind, c=cases())
def test_round_trip(there: str, back: str, c: Case) -> None:
    law_round_trip(testbed.convert, there, back, c)


@pytest.mark.slow
def test_pair_keeps_digits() -> None:
    law_pair_keeps_digits(testbed.convert)


@pytest.mark.parametrize("source", TRUTH)
def test_each_sample_has_its_sigma(source: str) -> None:
    for target in TRUTH:
        law_each_sample_has_its_sigma(testbed.convert, source, target, fixed())


@pytest.mark.parametrize("target", NAMED)
@given(sigma=levels(), seed=st.integers(0, 99))
def test_from_and_to_D(target: str, sigma: float, seed: int) -> None:
    """The columns "from D" and "to D", for any D and x, whether or not a pair made them."""
    D, x, q = (draws((2, 3), 3 * seed + i) for i in range(3))
    s = exact(sigma)
    scale = exact(np.abs(x.numpy()) + np.abs(D.numpy()))
    a, b = (abs(TRUTH[target](exact(i), exact(1 - i), s, None)) for i in (1, 0))
    forward = testbed.convert(D, "x0", target, x=x, sigma=sigma)
    terms = a * np.abs(exact(D)) + b * scale / s
    assert_within(forward, FROM_D[target](exact(D), exact(x), s), terms, 25)
    back = testbed.convert(q, target, "x0", x=x, sigma=sigma)
    zero = 0 * exact(q)
    terms = np.abs(TO_D[target](exact(q), zero, s)) + np.abs(TO_D[target](zero, exact(x), s))
    assert_within(back, TO_D[target](exact(q), exact(x), s), terms, 25)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 3), (3, 2, 4, 4)])
@pytest.mark.parametrize("dtype", K)
def test_dtype_and_shape_are_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = draws(shape, 0, dtype)
    for sigma in (0.5, torch.tensor(0.5), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)):
        for source in TRUTH:
            for target in TRUTH:
                found = testbed.convert(
                    x, kind(source), kind(target), x=x, sigma=sigma, sigma_data=0.5
                )
                assert (found.dtype, found.shape) == (dtype, x.shape)


@given(source=any_kind, target=any_kind, c=cases())
def test_scalar_sigma_is_the_same_sigma_for_every_sample(source: str, target: str, c: Case) -> None:
    scalar = c.sigma.flatten()[0]
    given: dict[str, Any] = {"x": c.x0, "sigma_data": c.sigma_data}
    one = testbed.convert(c.eps, kind(source), kind(target), sigma=scalar, **given)
    batch = scalar.expand(len(c.x0))
    assert torch.equal(
        one, testbed.convert(c.eps, kind(source), kind(target), sigma=batch, **given)
    )


@pytest.mark.slow
@given(source=any_kind, sigma=levels(), sigma_data=sigma_datas)
def test_python_float_sigma_keeps_float64(source: str, sigma: float, sigma_data: float) -> None:
    c = case((2, 3), float64(sigma), sigma_data)
    q = rounded(truth(source, c))
    found = testbed.convert(q, kind(source), "v", x=c.x, sigma=sigma, sigma_data=sigma_data)
    assert_within(found, truth("v", c), terms(source, "v", c), K[torch.float64])


@pytest.mark.parametrize(
    ("value", "x", "sigma"),
    [
        ((3, 2), (3, 1), ()),
        ((3, 2), (2,), ()),
        ((3,), (3, 3), ()),
        ((3, 2), (3, 2), (2,)),
        ((3, 2), (3, 2), (1,)),
        ((3, 2), (3, 2), (3, 1)),
        ((3, 2), (3, 2), (3, 2)),
    ],
)
def test_wrong_shapes_are_refused(
    value: tuple[int, ...], x: tuple[int, ...], sigma: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        testbed.convert(torch.ones(value), "v", "eps", x=torch.ones(x), sigma=torch.ones(sigma))


@pytest.mark.parametrize(("word", "meant"), [("epss", "eps"), ("scores", "score"), ("flw", "flow")])
def test_unknown_kind_is_answered_with_the_nearest(word: str, meant: str) -> None:
    x = torch.ones(2, 2)
    for source, target in ((word, "x0"), ("x0", word)):
        with pytest.raises(UnknownName, match=f"{word}.*Did you mean '{meant}'"):
            testbed.convert(x, source, target, x=x, sigma=1.0)


def test_sigma_data_that_a_kind_needs_is_asked_for() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(TypeError, match="sigma_data"):
        testbed.convert(x, kind("F of edm"), "x0", x=x, sigma=1.0)


# --- outside truth ----------------------------------------------------------------------------


def test_numbers_of_the_notes() -> None:
    """x0 = [1, 2], eps = [0.5, -0.3], abar = 0.8: x_t = [1.118, 1.655], printed to 3 decimals."""
    x0, eps = float64([[1.0, 2.0]]), float64([[0.5, -0.3]])
    sigma = 0.5  # sqrt(0.2/0.8)
    x_t, _ = VP.from_ve(x0 + sigma * eps, sigma)
    assert torch.allclose(x_t, float64([[1.118, 1.655]]), rtol=0, atol=5e-4)
    found = testbed.convert(eps, "eps", "x0", x=x0 + sigma * eps, sigma=sigma)
    assert_within(found, exact(x0), exact(x0.abs() + 2 * sigma * eps.abs()), 25)


# diffusers' abar is a product of t + 1 rounded factors, ours the exponential of a sum of t + 1
# rounded logarithms: 3 (t + 1) + 8 roundings together, a relative error of abar that reaches
# sigma^2 = (1 - abar)/abar divided by 1 - abar.
def abar_roundings(t: int) -> int:
    return 3 * (t + 1) + 8


def diffusers_border() -> tuple[Tensor, Tensor, Any]:
    """(x, sigma) through the VP border, and the relative error of sigma, per sample."""
    t = DIFFUSERS["t"]
    sigma = ddpm_sigmas(linear_betas())[t]
    x, again = VP.to_ve(float64(DIFFUSERS["x_t"]), VP.time(sigma))
    abar = np.array(DIFFUSERS["alphas_cumprod"])
    wobble = np.array([gamma(abar_roundings(i)) for i in t]) / (2 * (1 - abar))
    # Through t and back: exp(-int beta/2) multiplies the roundings of int beta, at most 20, by
    # int beta/2 = log(1 + sigma^2)/2, and leaves as many of its own.
    trip = np.array([gamma(20 + 20 * float(s)) for s in torch.log1p(sigma**2)])
    assert_within(again, exact(sigma), exact(sigma), 1, plus=exact(trip) * exact(sigma))
    return x, sigma, wobble + trip


@pytest.mark.parametrize(
    ("prediction_type", "source"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")]
)
def test_diffusers_prediction_types(prediction_type: str, source: str) -> None:
    """A relative error w of sigma moves each term of D by at most 4 w of its size: a term is a
    product of powers of sigma and alpha up to the second."""
    x, sigma, wobble = diffusers_border()
    q = float64(DIFFUSERS["model_output"])
    found = testbed.convert(q, source, "x0", x=x, sigma=sigma)
    s = column(exact(sigma), x)
    zero = 0 * exact(q)
    terms = np.abs(TO_D[source](exact(q), zero, s)) + np.abs(TO_D[source](zero, exact(x), s))
    expected = exact(np.array(DIFFUSERS["pred_original_sample"][prediction_type]))
    assert_within(found, expected, terms, 25, plus=4 * column(exact(wobble), x) * terms)


def test_diffusers_forward_process() -> None:
    """Its noisy x_t and its velocity, from x0 and noise."""
    x0, noise, x_t, velocity = (
        float64(DIFFUSERS["forward"][k]) for k in ("x0", "noise", "x_t", "velocity")
    )
    _, sigma, wobble = diffusers_border()
    s = sigma.reshape(-1, 1)
    x = x0 + s * noise
    found, _ = VP.from_ve(x, sigma)
    alpha = 1 / torch.sqrt(1 + s**2)
    plus = 4 * column(exact(wobble), x) * exact(alpha * (x0.abs() + s * noise.abs()))
    assert_within(found, exact(x_t), plus, 25, plus=plus)
    plus = 4 * column(exact(wobble), x) * exact(alpha * (s * x0.abs() + noise.abs()))
    for value, source in ((x0, "x0"), (noise, "eps")):
        size = (x.abs() + x0.abs()) / s if source == "x0" else s * (x.abs() + s * noise.abs())
        found = testbed.convert(value, source, "v", x=x, sigma=sigma)
        assert_within(found, exact(velocity), exact(alpha * size), 25, plus=plus)
