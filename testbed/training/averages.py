"""Averages of any length from one training, by least squares over snapshots of two.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv:2312.02696), sec. 3 and app. C. The average with the profile (n, gamma) at step n weighs the
weights of time t in [0, n] by

    p(t) = (gamma + 1) t^gamma / n^(gamma + 1).

With the decay of `rates.decay` this holds without error: that average weighs the weights after step
j, which stand for the times from j - 1 to j, by the integral of p over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testbed.training.rates import exponent

WIDTHS = (0.05, 0.10)
"""The widths of the averages that are kept for a reconstruction, as in the paper."""
SNAPSHOTS = 32
"""How many equally spaced steps of a training keep them."""
LARGEST_ERROR = 0.05
"""The largest `error` of an average that is still used."""
OWN = "own"
"""The average that the settings of training name."""

Array = NDArray[np.float64]


class Profile(NamedTuple):
    """A power-function average: the steps done when it was taken, and its relative width."""

    step: int
    width: float


def spaced(steps: int) -> tuple[int, ...]:
    """The steps at which a training of `steps` steps keeps the averages of `WIDTHS`."""
    return tuple(sorted({max(1, round(i * steps / SNAPSHOTS)) for i in range(1, SNAPSHOTS + 1)}))


def stored(steps: int) -> tuple[Profile, ...]:
    """The averages that a training of `steps` steps keeps for a reconstruction."""
    return tuple(Profile(step, width) for width in WIDTHS for step in spaced(steps))


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> Array:
    """int p_i q_j dt of each profile of `a` with each of `b`, (len(a), len(b)), in 1/steps.

    With m <= n the two ends and g the exponent of the profile that ends at n it is

        (gamma_i + 1)(gamma_j + 1)/(gamma_i + gamma_j + 1) (m/n)^g / n.
    """
    steps = [np.array([one.step for one in side], dtype=np.float64) for side in (a, b)]
    powers = [np.array([exponent(one.width) for one in side]) for side in (a, b)]
    t, s = np.meshgrid(*steps, indexing="ij")
    g, h = np.meshgrid(*powers, indexing="ij")
    last = np.maximum(t, s)
    ratio = np.minimum(t, s) / last
    product: Array = (g + 1) * (h + 1) / (g + h + 1) * ratio ** np.where(t < s, h, g) / last
    return product


def coefficients(kept: Sequence[Profile], wanted: Profile) -> Array:
    """The x with sum x = 1 that minimises int (sum_i x_i p_i - p)^2 dt, (len(kept),).

    The paper minimises without the sum and divides by it afterwards. Under the constraint, weights
    that do not change are reconstructed without error, and the minimum is one among such sums.
    """
    gram, right = inner_products(kept, kept), inner_products(kept, [wanted])[:, 0]
    size: Array = np.sqrt(np.diag(gram))
    least, n = float(size.min()), len(kept)
    system, values = np.zeros((n + 1, n + 1)), np.empty(n + 1)
    system[:n, :n] = gram / np.outer(size, size)
    # The scale of the last row and column is free; that of the sizes keeps the system balanced.
    system[:n, n] = system[n, :n] = least / size
    values[:n], values[n] = right / size, least
    solution: Array = np.linalg.lstsq(system, values, rcond=None)[0][:n] / size
    return solution


def error(kept: Sequence[Profile], wanted: Profile) -> float:
    """The distance of the reconstructed profile from the wanted one, over the latter's norm.

    Both norms are those of L2 over the time, so that it is the error of the average, relative to
    its own noise, where the weights are independent from step to step.
    """
    x = coefficients(kept, wanted)
    gram, right = inner_products(kept, kept), inner_products(kept, [wanted])[:, 0]
    norm = float(inner_products([wanted], [wanted])[0, 0])
    square = float(x @ gram @ x - 2 * x @ right) + norm
    return math.sqrt(max(0.0, square) / norm)


def reconstruct(averages: Mapping[Profile, Tensor], wanted: Profile) -> Tensor:
    """The average of the wanted profile from those that were kept, summed in float64.

    Args:
        averages: the weights of each, all of one shape and dtype.
        wanted: the profile.

    Returns:
        a tensor of that shape and dtype.
    """
    x = [float(one) for one in coefficients(list(averages), wanted)]
    first = next(iter(averages.values()))
    total = torch.zeros_like(first, dtype=torch.float64)
    for factor, average in zip(x, averages.values(), strict=True):
        total.add_(average.double(), alpha=factor)
    return total.to(first.dtype)


def place(network: nn.Module, weights: Tensor) -> None:
    """Puts weights (P,), in the order of `network.parameters()`, into a network.

    A network's buffers stay as they are: those of a training's end.
    """
    parameters = list(network.parameters())
    parts = torch.split(weights, [p.numel() for p in parameters])
    with torch.no_grad():
        for p, part in zip(parameters, parts, strict=True):
            p.copy_(part.view(p.shape))
