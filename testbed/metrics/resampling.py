"""Standard errors of statistics of two samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from testbed.components.metric import MetricValue

GROUPS = 10
"""Groups of the jackknife: its error has itself an error of about 1/sqrt(4 GROUPS) = 16 %."""


def mean(values: Tensor) -> MetricValue:
    """Returns the mean of (N,) with its standard error s / sqrt(N), which is nan for N = 1."""
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return MetricValue(float(values.mean()), error)


def jackknife(
    statistic: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, g: Generator
) -> float:
    """Returns the standard error of T(x, y) by the grouped jackknife (Shao and Wu 1989).

    One group of rows is left out at a time:

        error^2 = (G - 1)/G sum_j (T(x_(-j), y) - mean_j)^2  +  the same over groups of y

    Args:
        statistic: T, which is called 2 G times on all but a G-th of the rows of one of the two.
        x, y: Independent rows, (N, ...) and (M, ...).
        g: The source of the G = `GROUPS` groups, or as many as there are rows.
    """
    variance = 0.0
    sides: list[tuple[Tensor, Callable[[Tensor], float]]] = [
        (x, lambda z: statistic(z, y)),
        (y, lambda z: statistic(x, z)),
    ]
    for z, at in sides:
        G = min(GROUPS, len(z))
        group = torch.randperm(len(z), generator=g) % G
        T = torch.tensor([at(z[group != j]) for j in range(G)], dtype=torch.float64)
        variance += (G - 1) * float(T.var(unbiased=False))
    return math.sqrt(variance)
