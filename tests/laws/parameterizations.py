"""Laws of the parameterizations: D = c_skip x + c_out F(c_in x, c_noise)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma, log
from helpers.strategies import (
    Case,
    column,
)
from laws.conversions import TRUTH
from torch import Tensor

import testbed


# The table, for exact numbers: (c_skip, c_out, c_in, c_noise).
def eps_row(sigma: Any, sd: Any) -> tuple[Any, Any, Any, Any]:
    return 1 + 0 * sigma, -sigma, 1 / (sigma**2 + 1) ** 0.5, sigma


def v_row(sigma: Any, sd: Any) -> tuple[Any, Any, Any, Any]:
    r = (sigma**2 + 1) ** 0.5
    return 1 / r**2, -sigma / r, 1 / r, sigma


def edm_row(sigma: Any, sd: Any) -> tuple[Any, Any, Any, Any]:
    r = (sigma**2 + sd**2) ** 0.5
    return sd**2 / r**2, sigma * sd / r, 1 / r, log(sigma) / 4


def x0_row(sigma: Any, sd: Any) -> tuple[Any, Any, Any, Any]:
    return 0 * sigma, 1 + 0 * sigma, 1 / (sigma**2 + sd**2) ** 0.5, log(sigma) / 4


def score_row(sigma: Any, sd: Any) -> tuple[Any, Any, Any, Any]:
    return 1 + 0 * sigma, sigma**2, 1 + 0 * sigma, sigma


TABLE: dict[str, Callable[[Any, Any], tuple[Any, Any, Any, Any]]] = {
    "eps": eps_row,
    "v": v_row,
    "edm": edm_row,
    "x0": x0_row,
    "score": score_row,
}
# Roundings of a coefficient. Longest path: EDM's sigma sd/sqrt(sigma^2 + sd^2): 1, then the root 3
# (squares 1, sum 1 and root 1, halved by the root), then 1; c_skip 1 + 6 + 1.
K_COEFFICIENT = 8
# D = c_skip x + c_out F, or F = (1/c_out) D - (c_skip/c_out) x: input 1, coefficients, product and
# sum; in float32 the coefficient is one rounding of a float64 number, in narrower types only the
# input and the result count.
K_AFFINE = {torch.float64: 20, torch.float32: 4, torch.bfloat16: 3, torch.float16: 3}


def flow_scaling(sigma: Tensor) -> testbed.Coefficients:
    a, t = 1 / (1 + sigma), sigma / (1 + sigma)
    return testbed.Coefficients(skip=a, out=-t, in_=a, noise=t)


# The plugin: a scaling and no statement of the target.
FLOW = testbed.Parameterization(name="flow", scaling=flow_scaling)


def skip_and_out(p: testbed.Parameterization, c: Case) -> tuple[Any, Any]:
    """The float64 c_skip and c_out of the scaling, shaped to multiply x."""
    found = p.coefficients(c.sigma.double(), sigma_data=c.sigma_data)
    return column(exact(found.skip), c.x0), column(exact(found.out), c.x0)


def law_coefficients_are_the_table(
    p: testbed.Parameterization, name: str, sigma: Tensor, sigma_data: float
) -> None:
    """Each coefficient is the table's, within its own roundings."""
    row = TABLE[name](exact(sigma), exact(sigma_data))
    for found, wanted in zip(p.coefficients(sigma, sigma_data=sigma_data), row, strict=True):
        assert found.dtype == torch.promote_types(sigma.dtype, torch.float32)
        assert_within(found, wanted, wanted, K_COEFFICIENT, found.dtype)


def law_target_is_the_table(p: testbed.Parameterization, name: str, c: Case) -> None:
    """F* of (x0, eps), without cancellation: terms |a x0| + |b eps|."""
    found = p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    wanted = TRUTH[f"F of {name}"]
    one, zero = exact(1), exact(0)
    terms = np.abs(wanted(one, zero, c.S, c.SD) * c.X0) + np.abs(
        wanted(zero, one, c.S, c.SD) * c.EPS
    )
    assert_within(found, wanted(c.X0, c.EPS, c.S, c.SD), terms, K_AFFINE[c.dtype], c.dtype)


def law_target_agrees_with_scaling(p: testbed.Parameterization, c: Case) -> None:
    """F* = (x0 - c_skip x)/c_out: the two statements of one parameterization.

    The coefficients carry K_COEFFICIENT float64 roundings each, and what they multiply cancels: a
    derived target takes them three times (c_skip twice, c_out once).
    """
    skip, out = skip_and_out(p, c)
    found = p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    terms = (np.abs(c.X0) + np.abs(skip) * c.X_SIZE) / np.abs(out)
    rounding = exact(gamma(3 * K_COEFFICIENT)) * terms
    wanted = (c.X0 - skip * c.X) / out
    size = np.abs((1 - skip) / out * c.X0) + np.abs(skip * c.S / out * c.EPS)
    assert_within(found, wanted, size, K_AFFINE[c.dtype], c.dtype, plus=rounding)


def law_optimal_output_gives_x0(p: testbed.Parameterization, c: Case) -> None:
    """D(F*) = x0: terms |c_skip x| + |c_out| (|a x0| + |b eps|)."""
    F = p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    found = p.denoise(F, c.x, c.sigma, sigma_data=c.sigma_data)
    assert found.dtype == c.dtype
    skip, _ = skip_and_out(p, c)
    optimum = np.abs((1 - skip) * c.X0) + np.abs(skip * c.S * c.EPS)
    terms = np.abs(skip) * c.X_SIZE + optimum
    # (1 - c_skip) is rounded where the target is derived from the scaling: a term 1 of its own.
    derived = exact(gamma(3 * K_COEFFICIENT)) * (1 + np.abs(skip)) * c.X_SIZE
    plus = derived if p.stated_target is None else 0
    assert_within(found, c.X0, terms, 2 * K_AFFINE[c.dtype], c.dtype, plus=plus)


def law_output_inverts_denoise(p: testbed.Parameterization, c: Case) -> None:
    """output(denoise(F)) = F: terms (|D| + |c_skip x|)/|c_out|, |D| <= |c_skip x| + |c_out F|."""
    skip, out = (np.abs(q) for q in skip_and_out(p, c))
    D = p.denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    found = p.output(D, c.x, c.sigma, sigma_data=c.sigma_data)
    assert found.dtype == c.dtype
    terms = 2 * skip / out * np.abs(exact(c.x)) + np.abs(c.EPS)
    assert_within(found, c.EPS, terms, 2 * K_AFFINE[c.dtype], c.dtype)


def law_denoise_is_affine(p: testbed.Parameterization, name: str, c: Case) -> None:
    """D = c_skip x + c_out F with the table's coefficients, for any F."""
    skip, out, _, _ = TABLE[name](c.S, c.SD)
    X = exact(c.x)
    found = p.denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data)
    terms = np.abs(skip * X) + np.abs(out * c.EPS)
    assert_within(found, skip * X + out * c.EPS, terms, K_AFFINE[c.dtype], c.dtype)


def law_unit_variance(p: testbed.Parameterization, sigma: Tensor, sigma_data: float) -> None:
    """Var F* = a^2 sd^2 + b^2 = 1 and Var(c_in x) = c_in^2 (sd^2 + sigma^2) = 1.

    Sums of squares: no cancellation; twice the roundings of a coefficient.
    """
    a, b = p.pair_weights(sigma, sigma_data=sigma_data)
    c_in = p.coefficients(sigma, sigma_data=sigma_data).in_
    sd, s = exact(sigma_data), exact(sigma)
    one = 1 + 0 * s
    assert_within(exact(a) ** 2 * sd**2 + exact(b) ** 2, one, one, 2 * K_COEFFICIENT)
    assert_within(exact(c_in) ** 2 * (sd**2 + s**2), one, one, 2 * K_COEFFICIENT)


def law_smallest_c_out(
    p: testbed.Parameterization, sigma: Tensor, sigma_data: float, other: float
) -> None:
    """Among the c_skip for which Var F* = 1, that is c_out^2 = (1 - c_skip)^2 sd^2 + c_skip^2
    sigma^2, EDM's makes c_out smallest (Karras et al. 2022, eq. 131 to 138)."""
    skip, out, _, _ = (exact(q) for q in p.coefficients(sigma, sigma_data=sigma_data))
    sd, s = exact(sigma_data), exact(sigma)

    def squared_out(skip: Any) -> Any:
        return (1 - skip) ** 2 * sd**2 + skip**2 * s**2

    assert_within(out**2, squared_out(skip), out**2, 4 * K_COEFFICIENT)
    # At the minimum the roundings of c_skip enter squared; those of c_out twice.
    assert (out**2 <= squared_out(exact(other)) * (1 + exact(gamma(4 * K_COEFFICIENT)))).all()
    slope = (skip - 1) * sd**2 + skip * s**2
    assert_within(slope, 0 * s, sd**2 + skip * (s**2 + sd**2), 2 * K_COEFFICIENT)


def bent_target(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return torch.asinh((eps - sigma * x0) / torch.sqrt(1 + sigma**2))


def bent_denoise(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    r = torch.sqrt(1 + sigma**2)
    return (x - sigma * r * torch.sinh(F)) / r**2


# Not affine, and its target needs both x0 and eps: v = sinh(F).
BENT = testbed.Parameterization("bent", target=bent_target, denoise=bent_denoise)
