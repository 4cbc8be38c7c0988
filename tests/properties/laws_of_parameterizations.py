"""Parameterizations: D = c_skip x + c_out F, target F* = a x0 + b eps, weight lambda of |D - x0|^2.

`output` is drawn from everything registered: a new plugin has to obey these laws too.
"""

from typing import Any

import numpy as np
import torch
from helpers.strategies import column
from hypothesis import strategies as st
from properties.states import (
    State,
    assert_within,
    bound,
    kind,
    kinds,
    law,
    long,
    outputs,
    parameterization,
    roundings,
    states,
    u,
)

from testbed.diffusion.predictions import PREDICTION_TYPES, from_pair, slope
from testbed.registry import default_registry

# A coefficient from its formula: at most 12 roundings, see `states.combination`.
COEFFICIENT = 12 * u(torch.float64)


def coefficients(c: State, name: str) -> tuple[Any, Any]:
    """(c_skip, c_out) as the library computes them in float64, shaped to multiply x."""
    found = parameterization(name).coefficients(c.sigma.double(), sigma_data=c.sigma_data)
    return column(long(found.skip), c.x0), column(long(found.out), c.x0)


# --- what F is -------------------------------------------------------------------------------


@law(c=states(), name=st.sampled_from(["x0", "eps", "score", "v"]))
def output_named_after_a_kind_is_that_kind(c: State, name: str) -> None:
    """F* of x0, eps, score and v is the kind of that name: one combination."""
    a, b = c.pair(name)
    found = parameterization(name).target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    terms = np.abs(a * c.X0) + np.abs(b * c.EPS)
    assert_within(found, a * c.X0 + b * c.EPS, terms, combinations=1)


@law(c=states())
def edm_output_is_sigma_x0_minus_sigma_data_squared_eps_over_sigma_data_r(c: State) -> None:
    """F* = (sigma x0 - sd^2 eps)/(sd r), r = sqrt(sigma^2 + sd^2) (Karras et al. 2022, B.6)."""
    n = c.SD * np.sqrt(c.S**2 + c.SD**2)
    found = parameterization("edm").target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    wanted = (c.S * c.X0 - c.SD**2 * c.EPS) / n
    terms = (c.S * np.abs(c.X0) + c.SD**2 * np.abs(c.EPS)) / n
    assert_within(found, wanted, terms, combinations=1)


@law(c=states())
def edm_output_at_unit_sigma_data_is_minus_v(c: State) -> None:
    """F* = (sigma x0 - eps)/sqrt(1 + sigma^2) = -v at sigma_data = 1: two ways, the same terms."""
    F = parameterization("edm").target(c.x0, c.eps, c.sigma, sigma_data=1.0)
    v = from_pair(c.x0, c.eps, "v", sigma=c.sigma)
    terms = (np.abs(c.EPS) + c.S * np.abs(c.X0)) / np.sqrt(1 + c.S**2)
    assert_within(F, -long(v), terms, combinations=2, results=2)


# --- scaling and target ----------------------------------------------------------------------


@law(c=states(), output=outputs)
def D_is_c_skip_x_plus_c_out_F(c: State, output: str) -> None:
    """D = c_skip x + c_out F for any F: two terms, one combination."""
    skip, out = coefficients(c, output)
    F, x = c.EPS, long(c.x)
    found = parameterization(output).denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    assert_within(found, skip * x + out * F, np.abs(skip * x) + np.abs(out * F), combinations=1)


@law(c=states(), output=outputs)
def F_is_D_minus_c_skip_x_over_c_out(c: State, output: str) -> None:
    """F = (D - c_skip x)/c_out for any D: two terms, one combination."""
    skip, out = coefficients(c, output)
    D, x = c.X0, long(c.x)
    found = parameterization(output).output(c.x0, c.x, c.sigma, sigma_data=c.sigma_data)
    terms = (np.abs(D) + np.abs(skip * x)) / np.abs(out)
    assert_within(found, (D - skip * x) / out, terms, combinations=1)


@law(c=states(), output=outputs)
def F_to_D_to_F_returns_F(c: State, output: str) -> None:
    """((c_skip x + c_out F) - c_skip x)/c_out = F: the first error over |c_out|, the second."""
    p = parameterization(output)
    skip, out = (np.abs(q) for q in coefficients(c, output))
    x, F = np.abs(long(c.x)), np.abs(c.EPS)
    D = p.denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    found = p.output(D, c.x, c.sigma, sigma_data=c.sigma_data)
    terms = (skip * x + out * F + np.abs(long(D)) + skip * x) / out
    assert_within(found, c.EPS, terms, combinations=1)


@law(c=states(), output=outputs)
def c_skip_plus_c_out_a_is_1_and_c_skip_sigma_plus_c_out_b_is_0(c: State, output: str) -> None:
    """D(F*) = x0 for all x0 and eps: c_skip + c_out a = 1, c_skip sigma + c_out b = 0.

    Two coefficients to a product. A target derived from the scaling has a = (1 - c_skip)/c_out,
    whose 1 - c_skip cancels: hence the size 1 + |c_skip| of the first.
    """
    skip, out = coefficients(c, output)
    weights = parameterization(output).pair_weights(c.sigma, sigma_data=c.sigma_data)
    a, b = (column(long(weight), c.x0) for weight in weights)
    one, zero = np.ones_like(skip), np.zeros_like(skip)
    assert_within(skip + out * a, one, 1 + 2 * np.abs(skip), drift=2 * COEFFICIENT)
    assert_within(skip * c.S + out * b, zero, 2 * np.abs(skip * c.S), drift=2 * COEFFICIENT)


@law(c=states(), output=outputs)
def optimal_output_denoises_to_x0(c: State, output: str) -> None:
    """D(F*(x0, eps), x) = x0: the terms c_skip x, c_out a x0 and c_out b eps, where |c_out a| is at
    most 1 + |c_skip| and |c_out b| = |c_skip| sigma; x and F* are rounded on the way."""
    p = parameterization(output)
    skip, _ = coefficients(c, output)
    F = p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    found = p.denoise(F, c.x, c.sigma, sigma_data=c.sigma_data)
    terms = np.abs(c.X0) + 2 * np.abs(skip) * c.X_SIZE
    assert_within(found, c.X0, terms, combinations=2, inputs=1, results=2)


# --- EDM's variances and scale ---------------------------------------------------------------


@law(c=states())
def edm_target_has_unit_variance(c: State) -> None:
    """Var F* = a^2 sd^2 + b^2 = 1 for E x0^2 = sd^2: two squares of coefficients."""
    weights = parameterization("edm").pair_weights(c.sigma, sigma_data=c.sigma_data)
    a, b = map(long, weights)
    assert_within(a**2 * c.SD**2 + b**2, np.ones_like(a), 1, drift=2 * COEFFICIENT)


@law(c=states())
def edm_input_has_unit_variance(c: State) -> None:
    """Var(c_in x) = c_in^2 (sd^2 + sigma^2) = 1: the square of one coefficient."""
    found = parameterization("edm").coefficients(c.sigma.double(), sigma_data=c.sigma_data)
    c_in, s = long(found.in_), long(c.sigma)
    one = np.ones_like(c_in)
    assert_within(c_in**2 * (c.SD**2 + s**2), one, 1, drift=2 * COEFFICIENT)


@law(c=states(torch.float16), power=st.integers(-4, 4))
def edm_is_homogeneous(c: State, power: int) -> None:
    """x0, sigma and sigma_data times k: F* and c_in x are the same, D is k D.

    Bit for bit for a power of two, which rounds nothing (in float16 the smallest D would).
    """
    p, k = parameterization("edm"), 2.0**power
    here, there = (
        {"sigma": factor * c.sigma, "sigma_data": factor * c.sigma_data} for factor in (1.0, k)
    )
    assert torch.equal(p.target(k * c.x0, c.eps, **there), p.target(c.x0, c.eps, **here))
    assert torch.equal(p.denoise(c.eps, k * c.x, **there), k * p.denoise(c.eps, c.x, **here))
    assert torch.equal(k * p.coefficients(**there).in_, p.coefficients(**here).in_)


# --- limits ----------------------------------------------------------------------------------


@law(c=states())
def edm_output_tends_to_minus_eps_as_sigma_vanishes(c: State) -> None:
    """|F* + eps| <= r |x0|/sd + r^2/2 |eps|: F* = (r x0/sd - eps)/sqrt(1 + r^2), r = sigma/sd."""
    r = c.S / c.SD
    limit = r * np.abs(c.X0) / c.SD + r**2 / 2 * np.abs(c.EPS)
    found = parameterization("edm").target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    assert_within(found, -c.EPS, np.abs(c.EPS) + limit, combinations=1, plus=limit)


@law(c=states())
def edm_output_tends_to_x0_over_sigma_data_as_sigma_grows(c: State) -> None:
    """|F* - x0/sd| <= |eps|/r + |x0|/(2 sd r^2), as 1 - r/sqrt(1 + r^2) <= 1/(2 r^2)."""
    r = c.S / c.SD
    limit = np.abs(c.EPS) / r + np.abs(c.X0) / (2 * c.SD * r**2)
    found = parameterization("edm").target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    wanted = c.X0 / c.SD
    assert_within(found, wanted, np.abs(wanted) + limit, combinations=1, plus=limit)


@law(c=states(), name=st.sampled_from(["eps", "v", "edm"]))
def D_tends_to_x_as_sigma_vanishes(c: State, name: str) -> None:
    """|D - x| <= r^2 |x| + sigma |F| for any F: 1 - c_skip <= r^2 and |c_out| <= sigma, with
    r = 0 for eps, sigma for v and sigma/sd for EDM."""
    r = {"eps": 0 * c.S, "v": c.S, "edm": c.S / c.SD}[name]
    x, F = long(c.x), c.EPS
    limit = r**2 * np.abs(x) + c.S * np.abs(F)
    found = parameterization(name).denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    assert_within(found, x, np.abs(x) + limit, combinations=1, plus=limit)


@law(c=states())
def edm_D_tends_to_sigma_data_F_as_sigma_grows(c: State) -> None:
    """|D - sd F| <= |x|/r^2 + sd |F|/(2 r^2): c_skip <= 1/r^2 and 1 - c_out/sd <= 1/(2 r^2)."""
    r = c.S / c.SD
    x, F = long(c.x), c.EPS
    limit = (np.abs(x) + c.SD * np.abs(F) / 2) / r**2
    found = parameterization("edm").denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    assert_within(found, c.SD * F, np.abs(c.SD * F) + limit, combinations=1, plus=limit)


# --- weights ---------------------------------------------------------------------------------

# B_q = |dD/dq| of exact sigma and sigma_data.
B = {
    "x0": lambda s, sd: np.ones_like(s),
    "eps": lambda s, sd: s,
    "score": lambda s, sd: s**2,
    "v": lambda s, sd: s / np.sqrt(1 + s**2),
    "flow": lambda s, sd: s / (1 + s),
    "edm": lambda s, sd: s * sd / np.sqrt(s**2 + sd**2),
}


@law(c=states())
def weight_of_each_kind_is_one_over_B_squared(c: State) -> None:
    """lambda_q = 1/B_q^2 = |dq/dD|^2, with B the |c_out| of each kind: x0 1, eps sigma, score
    sigma^2, v sigma/sqrt(1 + sigma^2), flow sigma/(1 + sigma); EDM's own is 1/c_out^2."""
    sigma, s = c.sigma.double(), long(c.sigma)
    for name in PREDICTION_TYPES:
        wanted = 1 / B[name](s, c.SD) ** 2
        found = long(slope(name, sigma)) ** 2
        assert_within(found, wanted, wanted, drift=2 * COEFFICIENT)
    for name in set(B) & set(default_registry().names("weighting")):
        wanted = 1 / B[name](s, c.SD) ** 2
        found = default_registry().weighting(name)(sigma, sigma_data=c.sigma_data)
        assert_within(long(found), wanted, wanted, drift=2 * COEFFICIENT)


@law(c=states(), output=outputs)
def weight_of_an_output_is_one_over_c_out_squared(c: State, output: str) -> None:
    """|D - x0|^2 = c_out^2 |F - F*|^2: the slope dF/dD is 1/c_out, sign and all."""
    p = parameterization(output)
    found = long(slope(p, c.sigma, c.sigma_data))
    out = long(p.coefficients(c.sigma.double(), sigma_data=c.sigma_data).out)
    skip = long(p.coefficients(c.sigma.double(), sigma_data=c.sigma_data).skip)
    terms = (1 + 2 * np.abs(skip)) / np.abs(out)
    assert_within(found, 1 / out, terms, drift=2 * COEFFICIENT)


@law(c=states(torch.float16), space=kinds)
def squared_error_in_a_space_is_its_weight_times_that_of_D(c: State, space: str) -> None:
    """|q(D) - q(x0)|^2 = lambda_q |D - x0|^2 at the same x, D = eps standing for any estimate.

    An error e of the difference d moves its square by at most e (2 |d| + e). (float16 overflows.)
    """
    D, x0, x = c.EPS, c.X0, long(c.x)
    a, b = c.pair(space)
    weight = column(long(slope(kind(space), c.sigma, c.sigma_data)) ** 2, c.x0)
    error = long(c.convert(c.eps, "x0", space)) - long(c.convert(c.x0, "x0", space))
    sizes = c.size("x0", space, D, x) + c.size("x0", space, x0, x)
    e = bound(roundings(c.dtype, combinations=2), sizes)
    d, wanted = np.abs((a - b / c.S) * (D - x0)), weight * (D - x0) ** 2
    assert_within(error**2, wanted, wanted, drift=2 * COEFFICIENT, plus=e * (2 * d + e))
