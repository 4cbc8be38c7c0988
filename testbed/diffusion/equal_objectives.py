"""Parameterizations whose targets differ by a constant factor, most often by the sign.

F*_1 = a_1 x0 + b_1 eps and F*_2 = a_2 x0 + b_2 eps with (a_2, b_2) = c (a_1, b_1) at every sigma
give the same objective in another unit of F: v and EDM at sigma_data = 1, eps and -eps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.diffusion.parameterization import Parameterization

RESOLUTION = 2.0**-23
"""Two roundings to float32, one on either side. Training holds every function of sigma in float32,
so that it cannot tell apart two functions that agree to this in float64. The float64 roundings of
an equation are 2^29 times smaller each: one that loses eight digits, as a cosine near pi/2 may,
stays below."""

SIGMA_RANGE = (1e-4, 1e4)
"""The noise levels between which targets are compared."""


def factor(first: Tensor, second: Tensor) -> float | None:
    """c with second = c first at every noise level, or None where there is none.

    c is the factor of least squares; its residual must be below RESOLUTION of the size of `second`
    at each level. A c within RESOLUTION of a whole number is returned as that number.

    Args:
        first, second: (n, L) float64, n functions of sigma at L levels.
    """
    c = float((first * second).sum() / first.square().sum())
    residual = (second - c * first).norm(dim=0)
    if c == 0 or not bool((residual <= RESOLUTION * second.norm(dim=0)).all()):
        return None
    whole = float(round(c))
    return whole if abs(c - whole) <= RESOLUTION * abs(whole) else c


def equal_objectives_of(
    p: Parameterization, others: Iterable[Parameterization], sigma_data: float
) -> dict[str, float]:
    """The parameterizations with the objective of p: name -> c with F*_other = c F*_p.

    The targets are compared at 33 levels between 1e-4 and 1e4, as far as both are defined. p itself
    and parameterizations that are not affine are left out.

    Args:
        p: the parameterization that the others are compared with.
        others: for example every parameterization of a registry.
        sigma_data: sqrt(E|x0|^2 / d) of the data, positive; v and EDM are equal at 1 alone.
    """
    factors = {}
    for other in others:
        ranges = (SIGMA_RANGE, p.sigma_range, other.sigma_range)
        low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
        if other == p or not (p.affine and other.affine and low < high):
            continue
        ends = math.log10(low), math.log10(high)
        sigma = torch.logspace(*ends, 35, dtype=torch.float64)[1:-1]  # a range is open
        c = factor(*(torch.stack(q.pair_weights(sigma, sigma_data=sigma_data)) for q in (p, other)))
        if c is not None:
            factors[other.name] = c
    return factors
