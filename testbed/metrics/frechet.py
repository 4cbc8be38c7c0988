"""The Fréchet distance between Gaussians fitted to two samples (Dowson and Landau 1982).

With m and S the means and covariances of rows x, y in a feature space,

    d^2 = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2),

the square of W_2 between the two Gaussians. S_x S_y is not symmetric; its root is not formed. With
S = R'R, as a QR decomposition of the centred rows has it, S_x S_y has the eigenvalues of M'M,
M = R_x R_y', so that

    tr (S_x S_y)^(1/2) = tr (M'M)^(1/2) = the sum of the singular values of M.

This squares nothing: an eigenvalue that is 0 stays a rounding EPS |S|, where the root of a computed
product makes sqrt(EPS) |S| of it, for each of the dimensions that fewer rows than features leave
empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from testbed.components.metric import MetricValue
from testbed.metrics.resampling import jackknife

Moments = Callable[[Tensor], tuple[Tensor, Tensor]]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean (F,) and R (min(N, F), F) with R'R = S, the unbiased covariance."""
    m = x.mean(0)
    centred = (x - m) / math.sqrt(len(x) - 1)
    return m, torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def squared_distance(x: Tensor, y: Tensor, moments: Moments = moments) -> float:
    """Returns d^2 of the Gaussians fitted to x and y, with covariances over N - 1 and M - 1.

    It is biased upwards by an amount that falls as 1/N + 1/M and depends on the distribution.

    Args:
        x, y: (N, F) and (M, F) float64, N >= 2 and M >= 2.
        moments: `moments`, or what remembers its answers.

    Raises:
        ValueError: A side has fewer than two rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs at least 2 rows, got {len(x)} and {len(y)}")
    (m_x, R_x), (m_y, R_y) = moments(x), moments(y)
    cross = torch.linalg.svdvals(R_x @ R_y.T).sum()
    d2 = (m_x - m_y).square().sum() + R_x.square().sum() + R_y.square().sum() - 2 * cross
    return float(d2)


def estimate(x: Tensor, y: Tensor, g: Generator) -> MetricValue:
    """Returns d^2 with the error of the grouped jackknife; nan where x is not finite.

    Args:
        x, y: (N, F) and (M, F) float64; below 3 rows there is no error.
        g: The source of the groups.
    """
    if not x.isfinite().all():
        return MetricValue(math.nan)
    once = lru_cache(2)(moments)  # one side stays whole in the jackknife
    value = squared_distance(x, y, once)
    if min(len(x), len(y)) < 3:
        return MetricValue(value)
    return MetricValue(value, jackknife(lambda a, b: squared_distance(a, b, once), x, y, g))
