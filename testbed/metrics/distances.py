"""Distances between samples and reference data.

No single one has power everywhere, so several are reported, each beside its real-against-real
`floor`.

Samples are (N, *shape), flattened to rows of D numbers and taken to float64; results are python
floats. Work is done in blocks of `BLOCK` rows against `BLOCK` rows, so memory beyond the inputs is
bounded. A sample that is not finite (a diverged sampler) makes the result nan; reference data that
are not finite are an error.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024
"""Rows per block."""

OCTAVES = (-2, -1, 0, 1, 2)
"""Bandwidths of `mmd` are the median distance times two to these powers."""

MEDIAN_ROWS = 1024
"""Most reference rows whose pairwise distances enter the median."""


class Floor(NamedTuple):
    """Mean and standard deviation of a distance between real data and real data."""

    mean: float
    sd: float


def mmd(samples: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased, Gaussian kernels (Gretton et al. 2012, eq. 3).

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
        k(x, y) = mean over b = -2 ... 2 of exp(-|x - y|^2 / (2 h_b^2)),
        h_b = 2^b median_{i < j} |y_i - y_j|.

    The bandwidths come from the reference alone, so every contestant is measured with the same
    kernel; above `MEDIAN_ROWS` rows the median is over evenly spaced rows.

    Args:
        samples: x, (N, *shape), N >= 2.
        reference: y, (M, *shape), M >= 2.

    Returns:
        MMD^2 without unit, at most 2; negative at times where the two agree.

    Raises:
        ValueError: fewer than two rows, shapes that differ, a reference that is not finite, or one
            in which half of the pairs coincide (there is no bandwidth then).
    """
    x, y = rows(samples, reference, least=2)
    return _discrepancy(x, y, gaussians(y))


def gaussians(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """The kernel k of `mmd` as a function of the distance, its bandwidths from y (M, D).

    Raises:
        ValueError: half of the pairs of reference rows coincide.
    """
    step = math.ceil(len(reference) / MEDIAN_ROWS)
    median = float(torch.pdist(reference[::step]).quantile(0.5))
    if median == 0:
        raise ValueError("no bandwidth: half of the pairs of reference rows coincide")

    def kernel(distance: Tensor) -> Tensor:
        k = torch.zeros_like(distance)
        for b in OCTAVES:
            k += torch.exp(-0.5 * (distance / (2.0**b * median)) ** 2)
        return k / len(OCTAVES)

    return kernel


def energy(samples: Tensor, reference: Tensor) -> float:
    """Energy distance as a U-statistic (Szekely and Rizzo 2013).

        2 mean_{i, j} |x_i - y_j| - mean_{i != j} |x_i - x_j| - mean_{i != j} |y_i - y_j|

    which is MMD^2 with the kernel -|x - y| (Sejdinovic et al. 2013).

    Args:
        samples: x, (N, *shape), N >= 2.
        reference: y, (M, *shape), M >= 2.

    Returns:
        The distance (not its root) in the units of the data; negative at times where the two agree.

    Raises:
        ValueError: fewer than two rows, shapes that differ, or a reference that is not finite.
    """
    return _discrepancy(*rows(samples, reference, least=2), kernel=torch.neg)


def nearest(samples: Tensor, data: Tensor) -> float:
    """Mean distance to the nearest neighbour,  mean_i min_j |x_i - y_j|.  Copies are at exactly 0.

    Args:
        samples: x, (N, *shape).
        data: y, (M, *shape): the training split (memorisation) or the held-out one.

    Returns:
        The mean Euclidean distance in the units of the data.

    Raises:
        ValueError: no rows, shapes that differ, or data that are not finite.
    """
    return float(to_nearest(samples, data).mean())


def to_nearest(samples: Tensor, data: Tensor) -> Tensor:
    """min_j |x_i - y_j|, (N,) float64: the distances whose mean is `nearest`."""
    x, y = rows(samples, data, least=1)
    found = []
    for x_i in blocks(x):
        best = torch.full_like(x_i[:, 0], math.inf)
        for y_j in blocks(y):
            j = torch.cdist(x_i, y_j).argmin(dim=1)
            # cdist goes through |x|^2 + |y|^2 - 2 x.y: good enough to choose a neighbour, not to
            # measure a small distance.
            best = torch.minimum(best, torch.linalg.vector_norm(x_i - y_j[j], dim=1))
        found.append(best)
    return torch.cat(found)


def off_plane(samples: Tensor, basis: Tensor, mean: Tensor) -> float:
    """Energy per dimension outside a plane,  mean_i |(I - B B^T)(x_i - m)|^2 / D.

    Args:
        samples: x, (N, *shape) with D numbers each.
        basis: B, (D, k) its k orthonormal columns span the plane's directions (k = 2).
        mean: m, any point of the plane, D numbers; zeros for a plane through the origin.

    Returns:
        The energy in squared units of the data: 0 on the plane, (D - k)/D for unit noise around it.

    Raises:
        ValueError: no rows, a basis or mean that does not fit D, or columns that are not
            orthonormal to the rounding of the basis's dtype.
    """
    return float(outside(samples, basis, mean).mean())


def outside(samples: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
    """|(I - B B^T)(x_i - m)|^2 / D, (N,) float64: the energies whose mean is `off_plane`."""
    if len(samples) < 1:
        raise ValueError("at least one row is needed, got none")
    x, B, m = flat(samples), basis.to(torch.float64), mean.to(torch.float64).flatten()
    if B.ndim != 2 or not x.shape[1] == len(B) == len(m):
        raise ValueError(
            f"rows of {x.shape[1]} numbers need a basis ({x.shape[1]}, k) and as long a mean, "
            f"got {tuple(basis.shape)} and {tuple(mean.shape)}"
        )
    gram = B.T @ B - torch.eye(B.shape[1]).to(B)
    # Householder QR leaves columns orthonormal to D k roundings (Higham 2002, theorem 19.4).
    if not gram.abs().max() <= basis.numel() * torch.finfo(basis.dtype).eps:
        raise ValueError("basis must have orthonormal columns")
    r = x - m
    r = r - r @ B @ B.T
    return r.square().mean(1)


def floor(
    distance: Callable[[Tensor, Tensor], float],
    reference: Tensor,
    generator: torch.Generator,
    n: int,
    repeats: int,
) -> Floor:
    """What a distance is between real data and real data: two disjoint random subsets.

    Args:
        distance: `mmd`, `energy`, `nearest` or another function of (samples, reference).
        reference: (M, *shape), M >= 2 n.
        generator: draws the subsets.
        n: rows in each subset; the number of samples judged, for a floor of the same size.
        repeats: number of splits, at least 2.

    Returns:
        Mean and standard deviation over the splits. These share rows: the sd is the spread of one
        distance, and the error of the mean is larger than sd / sqrt(repeats).

    Raises:
        ValueError: n < 1, fewer than 2 n rows, or fewer than two repeats.
    """
    if n < 1 or 2 * n > len(reference):
        raise ValueError(f"two disjoint subsets of {n} need {2 * n} rows, got {len(reference)}")
    if repeats < 2:
        raise ValueError(f"a standard deviation needs at least 2 repeats, got {repeats}")

    values = []
    for _ in range(repeats):
        order = torch.randperm(len(reference), generator=generator, device=generator.device)
        order = order.to(reference.device)
        values.append(distance(reference[order[:n]], reference[order[n : 2 * n]]))
    d = torch.tensor(values, dtype=torch.float64)
    return Floor(float(d.mean()), float(d.std()))


def _discrepancy(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Mean of k(x_i, x_j) over i != j, plus that of y, minus twice the mean of k(x_i, y_j).

    k is a function of the distance.
    """
    between = 0.0
    for x_i in blocks(x):
        for y_j in blocks(y):
            between += float(kernel(torch.cdist(x_i, y_j)).sum())
    return _within(x, kernel) + _within(y, kernel) - 2 * between / (len(x) * len(y))


def _within(x: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Mean of k(x_i, x_j) over i != j."""
    total, pieces = 0.0, blocks(x)
    for i, x_i in enumerate(pieces):
        total += float(kernel(torch.cdist(x_i, x_i)).fill_diagonal_(0).sum())
        for x_j in pieces[:i]:
            total += 2 * float(kernel(torch.cdist(x_i, x_j)).sum())
    return total / (len(x) * (len(x) - 1))


def blocks(x: Tensor) -> list[Tensor]:
    """x in pieces of at most `BLOCK` rows."""
    return [x[i : i + BLOCK] for i in range(0, len(x), BLOCK)]


def rows(samples: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both as float64 rows about the mean of the reference: distances lose fewest digits there."""
    if samples.shape[1:] != reference.shape[1:]:
        shapes = f"{tuple(samples.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"samples and reference must have one shape per row, got {shapes}")
    if len(samples) < least or len(reference) < least:
        raise ValueError(
            f"each side needs at least {least} rows, got {len(samples)} and {len(reference)}"
        )
    x, y = flat(samples), flat(reference)
    if not y.isfinite().all():
        raise ValueError("the reference has values that are not finite")
    centre = y.mean(dim=0)
    return x - centre, y - centre


def flat(samples: Tensor) -> Tensor:
    """(N, *shape) as (N, D) in float64, infinity as nan lest it vanish in a kernel."""
    x = samples.detach().to(torch.float64).reshape(len(samples), -1)
    return x.masked_fill(x.isinf(), math.nan)
