"""Comparisons along directions: sliced Wasserstein, and variances along principal components."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

DIRECTIONS_AT_ONCE = 32
"""Directions in a block, whose differences take a memory of (N + M) DIRECTIONS_AT_ONCE numbers."""
Along = Callable[[Tensor, Tensor], list[Tensor]]


def directions(D: int, n: int, generator: Generator) -> Tensor:
    """Draws n directions (D, n) float64, uniform on the unit sphere."""
    u = torch.randn(D, n, dtype=torch.float64, generator=generator)
    norm: Tensor = torch.linalg.vector_norm(u, dim=0)
    return u / norm


@lru_cache(maxsize=16)
def coupling(N: int, M: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the exact optimal coupling of N and M sorted numbers of equal mass: i, j, weights w.

    The breakpoints of both cumulative distributions are integers in units of 1/(N M).
    """
    t = torch.unique(torch.cat([torch.arange(N) * M, torch.arange(M) * N]))
    w = torch.diff(t, append=torch.tensor([N * M]))
    return t // M, t // N, w.double() / (N * M)


def sorted_along(x: Tensor, u: Tensor) -> list[Tensor]:
    """Returns the rows x (N, D) along the directions u, sorted: (N, DIRECTIONS_AT_ONCE) each."""
    return [(x @ u_l).sort(0).values for u_l in torch.split(u, DIRECTIONS_AT_ONCE, dim=1)]


def squared_wasserstein(x: Tensor, y: Tensor, u: Tensor, along: Along = sorted_along) -> Tensor:
    """Returns W_2^2 of x (N, D) and y (M, D) along each of the directions u (D, L): (L,).

        W_2^2 = int_0^1 (F_x^-1(t) - F_y^-1(t))^2 dt

    It takes a time of (N + M) L (D + log(N + M)) and a memory of (N + M) L.

    Args:
        along: `sorted_along`, or what remembers its answers.
    """
    i, j, w = coupling(len(x), len(y))
    sides = zip(along(x, u), along(y, u), strict=True)
    return torch.cat([w @ (a[i] - b[j]).square() for a, b in sides])


def sliced_wasserstein(x: Tensor, y: Tensor, u: Tensor, along: Along = sorted_along) -> float:
    """Returns SW_2 = sqrt(mean_l W_2^2 along u_l), in the data's units (Bonneel et al. 2015)."""
    return math.sqrt(float(squared_wasserstein(x, y, u, along).mean()))


def principal(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Returns the leading principal components of x (N, D) that hold `share` of its variance.

    Returns:
        The components U (D, J) by falling variance, and the variances (J,).

    Raises:
        ValueError: The share is outside (0, 1], or the rows have no variance.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    values, U = torch.linalg.eigh(torch.cov(x.T, correction=1).reshape(x.shape[1], -1))
    values, U = values.flip(0).clamp(min=0), U.flip(1)
    total = values.sum()
    if total == 0:
        raise ValueError("no principal components: all rows are equal")
    J = int((values.cumsum(0) < share * total).sum()) + 1
    return U[:, :J], values[:J]


def variance_ratios(x: Tensor, y: Tensor, U: Tensor) -> Tensor:
    """Returns the spread of samples over that of data along each component, about the data's mean.

        r_j = mean_i (u_j . (x_i - m))^2 / mean_i (u_j . (y_i - m))^2,   m = mean_i y_i,

    M - 1 for M in the mean over y, times (M + 1)/M for the error of m in the one over x: where x
    and y agree, both have one mean. Below 1: blurred or missing; above 1: noisy or displaced.

    Args:
        x, y: (N, D) and (M, D), M >= 2.
        U: Orthonormal components of other data than y, (D, J).

    Returns:
        The ratios, (J,).
    """
    m, M = y.mean(0), len(y)
    below = ((y - m) @ U).square().sum(0) / (M - 1) * (M + 1) / M
    return ((x - m) @ U).square().mean(0) / below


def off_ratio(x: Tensor, y: Tensor, U: Tensor) -> float:
    """Returns sqrt(mean_j log(r_j)^2), about the relative error of a component's variance."""
    return float(variance_ratios(x, y, U).log().square().mean().sqrt())
