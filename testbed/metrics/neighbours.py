"""Fidelity and diversity from balls around the k-th nearest neighbour, and the local manifold.

With R_y(j) the distance of y_j to its k-th nearest neighbour among the other y,

    precision = mean_i 1[some j: |x_i - y_j| <= R_y(j)]     (Kynkaanniemi et al. 2019)
    recall    = mean_j 1[some i: |y_j - x_i| <= R_x(i)]
    density   = sum_ij 1[|x_i - y_j| <= R_y(j)] / (k N)      (Naeem et al. 2020)
    coverage  = mean_j 1[some i: |y_j - x_i| <= R_y(j)]     (Naeem et al. 2020)

Distances are formed `BLOCK` rows at a time: memory of BLOCK (N + M), time of (N + M)^2 D.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from testbed.metrics.distances import blocks

Radii = Callable[[Tensor, int], Tensor]
"""`radii`, or what remembers its answers."""


def radii(y: Tensor, k: int) -> Tensor:
    """Returns R_y, (M,): the distance of each row to its k-th nearest other row.

    Raises:
        ValueError: k is below 1, or there are fewer than k + 1 rows.
    """
    if not 1 <= k < len(y):
        raise ValueError(f"the {k}-th nearest neighbour needs 1 <= k < {len(y)} rows")
    R, start = [], 0
    for y_i in blocks(y):
        d, here = torch.cdist(y_i, y), torch.arange(len(y_i))
        d[here, start + here] = math.inf
        R.append(d.topk(k, dim=1, largest=False).values[:, -1])
        start += len(y_i)
    return torch.cat(R)


def _inside(x: Tensor, y: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Counts the balls (y_j, R_j) that hold each x_i, (N,), and the x_i in each ball, (M,)."""
    balls, members = [], torch.zeros(len(y), dtype=torch.int64)
    for x_i in blocks(x):
        inside = torch.cdist(x_i, y) <= R
        balls.append(inside.sum(1))
        members += inside.sum(0)
    return torch.cat(balls), members


def precision(x: Tensor, y: Tensor, k: int, radii: Radii = radii) -> float:
    """Returns the share of samples x (N, D) that lie on the manifold of the data y (M, D)."""
    return float((_inside(x, y, radii(y, k))[0] > 0).double().mean())


def recall(x: Tensor, y: Tensor, k: int, radii: Radii = radii) -> float:
    """Returns the share of data that lie on the manifold of the samples."""
    return precision(y, x, k, radii)


def density(x: Tensor, y: Tensor, k: int, radii: Radii = radii) -> float:
    """Returns the mean number of the data's balls that hold a sample, over k."""
    return float(_inside(x, y, radii(y, k))[0].double().mean()) / k


def coverage(x: Tensor, y: Tensor, k: int, radii: Radii = radii) -> float:
    """Returns the share of the data's balls that hold a sample."""
    return float((_inside(x, y, radii(y, k))[1] > 0).double().mean())


def expected_coverage(N: int, M: int, k: int) -> float:
    """Returns E coverage of N samples and M data of any one distribution (Naeem et al. 2020).

        1 - (M - 1) ... (M - k) / ((N + M - 1) ... (N + M - k))

    The k nearest of the N + M - 1 others of y_j are then all data with that probability.
    """
    return 1 - math.prod((M - i) / (N + M - i) for i in range(1, k + 1))


def off_hull(x: Tensor, y: Tensor, k: int, resolution: float) -> Tensor:
    """Returns the energy per dimension outside the local manifold, |(I - V V^T)(x_i - c)|^2 / D.

    c is the mean of the k nearest rows of y and V spans their differences: the distance to the
    K-local hyperplane of Vincent and Bengio (2001). 0 for samples on a manifold that is flat
    between neighbours and of dimension below k.

    Args:
        x, y: (N, D) and (M, D).
        k: The number of neighbours, 2 <= k <= D: the hull has k - 1 dimensions.
        resolution: Differences below it are rounding of y, and no direction.

    Returns:
        The energies, (N,).

    Raises:
        ValueError: k is below 2, above D or above M.
    """
    D = x.shape[1]
    if not 2 <= k <= min(D, len(y)):
        raise ValueError(f"k = {k} neighbours must be 2 to {min(D, len(y))} here")
    energies = []
    # k rows for each of x_i take the place of one block's distances.
    for x_i in torch.split(x, 256):
        near = torch.cdist(x_i, y).topk(k, dim=1, largest=False).indices
        y_i = y[near]
        c = y_i.mean(1)
        _, s, Vt = torch.linalg.svd(y_i - c[:, None], full_matrices=False)
        Vt = Vt * (s > resolution)[:, :, None]
        r = (x_i - c)[:, :, None]
        r = r - Vt.mT @ (Vt @ r)
        energies.append(r.square().mean((1, 2)))
    return torch.cat(energies)
