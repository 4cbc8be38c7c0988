"""Laws of `testbed.convert`: the kinds of prediction."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma, rounded
from helpers.paths import REFERENCE
from helpers.strategies import Case, case, cases, column, draws, fixed, float64, levels, sigma_datas
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import VP, ddpm_sigmas, linear_betas
from testbed.errors import UnknownName
from testbed.registry import default_registry

Convert = Callable[..., Tensor]

DIFFUSERS = json.loads((REFERENCE / "diffusers_reference.json").read_text())


# What each kind is of the pair (x0, eps), and of D at x. Written for this file.
def v(x0: Any, eps: Any, sigma: Any, sd: Any = None) -> Any:
    return (eps - sigma * x0) / (1 + sigma**2) ** 0.5


def edm_target(x0: Any, eps: Any, sigma: Any, sd: Any) -> Any:
    return (sigma * x0 - sd**2 * eps) / (sd * (sigma**2 + sd**2) ** 0.5)


TRUTH: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "x0": lambda x0, eps, sigma, sd: x0,
    "eps": lambda x0, eps, sigma, sd: eps,
    "score": lambda x0, eps, sigma, sd: -eps / sigma,
    "v": v,
    "flow": lambda x0, eps, sigma, sd: eps - x0,
    "F of eps": lambda x0, eps, sigma, sd: eps,
    "F of v": v,
    "F of edm": edm_target,
    "F of x0": lambda x0, eps, sigma, sd: x0,
    "F of score": lambda x0, eps, sigma, sd: -eps / sigma,
}
FROM_D: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x0": lambda D, x, sigma: D,
    "eps": lambda D, x, sigma: (x - D) / sigma,
    "score": lambda D, x, sigma: (D - x) / sigma**2,
    "v": lambda D, x, sigma: (x - (1 + sigma**2) * D) / (sigma * (1 + sigma**2) ** 0.5),
    "flow": lambda D, x, sigma: (x - D) / sigma - D,
}
TO_D: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x0": lambda q, x, sigma: q,
    "eps": lambda q, x, sigma: x - sigma * q,
    "score": lambda q, x, sigma: x + sigma**2 * q,
    "v": lambda q, x, sigma: (x - sigma * (1 + sigma**2) ** 0.5 * q) / (1 + sigma**2),
    "flow": lambda q, x, sigma: (x - sigma * q) / (1 + sigma),
}
NAMED = tuple(FROM_D)
any_kind = st.sampled_from(list(TRUTH))

# Roundings of one conversion. float32: input 1, first combination 3 (coefficient, product, sum),
# second 3, so 7. float64: a coefficient (a, b)/n carries up to 14 of its own (EDM's b/n), the
# second one 6: 1 + 14 + 2 + 6 + 2. Narrower: input 1, result 1, and the float32 arithmetic between
# them, together less than 1.
K = {torch.float64: 25, torch.float32: 7, torch.bfloat16: 3, torch.float16: 3}


def kind(name: str) -> Any:
    """What `convert` takes for this name."""
    output = name.removeprefix("F of ")
    return name if output == name else default_registry().parameterization(output)


def weights(name: str, c: Case) -> tuple[Any, Any]:
    """(a, b) of q = a x0 + b eps, exact."""
    one, zero = exact(1), exact(0)
    return TRUTH[name](one, zero, c.S, c.SD), TRUTH[name](zero, one, c.S, c.SD)


def size(name: str, c: Case) -> Any:
    """|a x0| + |b eps|."""
    a, b = weights(name, c)
    return np.abs(a * c.X0) + np.abs(b * c.EPS)


def terms(source: str, target: str, c: Case) -> Any:
    """The sum of the absolute values of what is added on the way through the pair (x0, eps)."""
    (a, b), (a_t, b_t), q = weights(source, c), weights(target, c), size(source, c)
    n = np.abs(b - c.S * a)
    x0 = (c.S * q + np.abs(b) * c.X_SIZE) / n
    eps = (q + np.abs(a) * c.X_SIZE) / n
    return np.abs(a_t) * x0 + np.abs(b_t) * eps


def gain(source: str, target: str, c: Case) -> Any:
    """|d target/d source| at fixed x."""
    (a, b), (a_t, b_t) = weights(source, c), weights(target, c)
    return np.abs((a_t * c.S - b_t) / (a * c.S - b))


def truth(name: str, c: Case) -> Any:
    return TRUTH[name](c.X0, c.EPS, c.S, c.SD) + 0 * c.X0


def run(convert: Convert, source: str, target: str, c: Case) -> Tensor:
    """The conversion of the kind `source` that belongs to the case, rounded once."""
    q = rounded(truth(source, c), c.dtype)
    return convert(q, kind(source), kind(target), x=c.x, sigma=c.sigma, sigma_data=c.sigma_data)


def law_conversion_gives_the_kind(convert: Convert, source: str, target: str, c: Case) -> None:
    """From the kind and x made of (x0, eps) to the other kind made of the same (x0, eps)."""
    found = run(convert, source, target, c)
    assert found.dtype == c.dtype
    assert_within(found, truth(target, c), terms(source, target, c), K[c.dtype], c.dtype)


def law_triangle(convert: Convert, one: str, two: str, three: str, c: Case) -> None:
    """Through a third kind is as good as directly, up to what rounding the third one costs.

    The first leg's error gamma T_12 reaches the end multiplied by |d q_3/d q_2|; then come the
    errors of the second leg and of the direct way, T_23 and T_13.
    """
    middle = run(convert, one, two, c)
    given = {"x": c.x, "sigma": c.sigma, "sigma_data": c.sigma_data}
    end = convert(middle, kind(two), kind(three), **given)
    direct = run(convert, one, three, c)
    T = gain(two, three, c) * terms(one, two, c) + terms(two, three, c) + terms(one, three, c)
    assert_within(end, exact(direct), T, K[c.dtype], c.dtype)


def law_round_trip(convert: Convert, there: str, back: str, c: Case) -> None:
    """To another kind and back; bound as for the triangle."""
    q = rounded(truth(there, c), c.dtype)
    given = {"x": c.x, "sigma": c.sigma, "sigma_data": c.sigma_data}
    end = convert(run(convert, there, back, c), kind(back), kind(there), **given)
    T = gain(back, there, c) * terms(there, back, c) + terms(back, there, c)
    assert_within(end, exact(q), T, K[c.dtype], c.dtype)


def law_each_sample_has_its_sigma(convert: Convert, source: str, target: str, c: Case) -> None:
    """A batch with one sigma per sample is bit for bit its samples one by one.

    Every operation is elementwise and one of + - * / sqrt, which IEEE 754 rounds correctly.
    """
    given: dict[str, Any] = {"sigma_data": c.sigma_data}
    ends = kind(source), kind(target)
    whole = convert(c.eps, *ends, x=c.x0, sigma=c.sigma, **given)
    for i in range(len(c.x0)):
        row = slice(i, i + 1)
        for sigma in (c.sigma[row], c.sigma[i]):
            alone = convert(c.eps[row], *ends, x=c.x0[row], sigma=sigma, **given)
            assert torch.equal(whole[row], alone)


def law_pair_keeps_digits(convert: Convert) -> None:
    """v -> eps in float32 at sigma = 1e-4 is right to some u; through x0 alone it is 3e-4 off."""
    c = case((1000,), torch.tensor(1e-4), dtype=torch.float32)
    error = np.abs(exact(run(convert, "v", "eps", c)) - truth("eps", c))
    assert max(error / terms("v", "eps", c)) <= gamma(K[torch.float32], torch.float32)
    assert max(error) < 1e-6


@pytest.mark.parametrize("source", TRUTH)
@given(target=any_kind, c=cases())
def test_conversion_gives_the_kind(source: str, target: str, c: Case) -> None:
    law_conversion_gives_the_kind(testbed.convert, source, target, c)


@pytest.mark.parametrize("source", TRUTH)
def test_conversion_gives_the_kind_for_every_pair(source: str) -> None:
    for target in TRUTH:
        law_conversion_gives_the_kind(testbed.convert, source, target, fixed())


@pytest.mark.parametrize("one", NAMED)
@given(two=any_kind, three=any_kind, c=cases())
def test_triangle(one: str, two: str, three: str, c: Case) -> None:
    law_triangle(testbed.convert, one, two, three, c)


@pytest.mark.parametrize("there", NAMED)
@given(back=any_kind, c=cases())
def test_round_trip(there: str, back: str, c: Case) -> None:
    law_round_trip(testbed.convert, there, back, c)


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
