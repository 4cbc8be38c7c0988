"""Twins: parameterizations whose targets differ by a constant factor, most often the sign.

F*_1 = a_1 x0 + b_1 eps and F*_2 = a_2 x0 + b_2 eps with (a_2, b_2) = c (a_1, b_1) at every sigma
ask the network for the same thing in another unit: v and EDM at sigma_data = 1, eps and -eps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.diffusion.parameterization import Parameterization

RESOLUTION = 2.0**-23
"""Two roundings to float32, one on either side: training holds every function of sigma in float32,
and what agrees to this in float64 no training tells apart. The float64 roundings of a formula are
2^29 times smaller each: one that loses eight digits, as a cosine near pi/2 may, stays below."""

WIDEST = (1e-4, 1e4)


def factor(first: Tensor, second: Tensor) -> float | None:
    """c with second = c first at every noise level, or None where there is none.

    c is the least-squares one; what it leaves must be below RESOLUTION of the size of `second` at
    each level. A c that is a whole number but for that is returned as one.

    Args:
        first, second: (n, L) float64, n functions of sigma at L levels.
    """
    c = float((first * second).sum() / first.square().sum())
    left = (second - c * first).norm(dim=0)
    if c == 0 or not bool((left <= RESOLUTION * second.norm(dim=0)).all()):
        return None
    whole = float(round(c))
    return whole if abs(c - whole) <= RESOLUTION * abs(whole) else c


def equal_objectives_of(
    p: Parameterization, others: Iterable[Parameterization], sigma_data: float
) -> dict[str, float]:
    """The twins of p among others: each one's name with c in F*_other = c F*_p.

    Compared at 33 levels between 1e-4 and 1e4, as far as both are defined. p itself is left out,
    and so is what is not affine.

    Args:
        p: the one asked for.
        others: for example every parameterization of a registry.
        sigma_data: of the data, positive; v and EDM are twins at 1 alone.
    """
    found = {}
    for other in others:
        ranges = (WIDEST, p.sigma_range, other.sigma_range)
        low, high = max(one[0] for one in ranges), min(one[1] for one in ranges)
        if other == p or not (p.affine and other.affine and low < high):
            continue
        ends = math.log10(low), math.log10(high)
        sigma = torch.logspace(*ends, 35, dtype=torch.float64)[1:-1]  # a range is open
        c = factor(*(torch.stack(q.pair_weights(sigma, sigma_data=sigma_data)) for q in (p, other)))
        if c is not None:
            found[other.name] = c
    return found
