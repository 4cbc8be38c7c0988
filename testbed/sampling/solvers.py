"""Deterministic solvers of the probability-flow ODE dx/dsigma = (x - D)/sigma."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from testbed.components import Sampler
from testbed.hookspecs import hookimpl

Denoise = Callable[[Tensor, float], Tensor]


def euler(
    denoise: Denoise,
    x: Tensor,
    sigma: float,
    following: float,
    generator: torch.Generator | None,
    history: list[Any],
) -> Tensor:
    """x' = D + (sigma'/sigma) (x - D): Euler's step x + (sigma' - sigma) (x - D)/sigma.

    Written as a mean of x and D it keeps D's digits at sigma' = 0.
    """
    D = denoise(x, sigma)
    return D + (following / sigma) * (x - D)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigma: float,
    following: float,
    generator: torch.Generator | None,
    history: list[Any],
) -> Tensor:
    """Heun's second-order step; Euler's where sigma' = 0 (Karras et al. 2022, algorithm 1)."""
    d = (x - denoise(x, sigma)) / sigma
    predicted = x + (following - sigma) * d
    if following == 0:
        return predicted
    d_next = (predicted - denoise(predicted, following)) / following
    return x + (following - sigma) * (d + d_next) / 2


@hookimpl
def testbed_samplers() -> Iterable[Sampler]:
    """Euler and Heun."""
    yield Sampler("euler", euler, reference="Karras et al. 2022, arXiv:2206.00364")
    yield Sampler("heun", heun, reference="Karras et al. 2022, algorithm 1")
