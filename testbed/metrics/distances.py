"""Distances between samples and reference data: kernels, nearest rows, and a plane.

Samples are (N, *shape), flattened to rows of D numbers and taken to float64. Work is done in blocks
of `BLOCK` rows, so memory beyond the inputs is bounded. A sample that is not finite (a diverged
sampler) makes the result nan; reference data that are not finite are an error.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024
"""Rows per block."""

OCTAVES = (-2, -1, 0, 1, 2)
"""Bandwidths of `gaussians` are the median distance times two to these powers."""

MEDIAN_ROWS = 1024
"""The most reference rows whose pairwise distances enter the median."""


def gaussians(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the kernel of MMD as a function of the distance (Gretton et al. 2012, eq. 3).

        k(x, y) = mean over b = -2 ... 2 of exp(-|x - y|^2 / (2 h_b^2)),
        h_b = 2^b median_{i < j} |y_i - y_j|.

    The term of h_(b-1) is the fourth power of that of h_b: one exponential serves all. It rounds by
    at most 4^4 times what the exponential does, 1e-13 of the largest term.

    The bandwidths come from the reference alone, so every variant is measured with the same kernel;
    above `MEDIAN_ROWS` rows the median is over evenly spaced rows.

    Args:
        reference: y, (M, D) float64.

    Raises:
        ValueError: Half of the pairs of reference rows coincide: there is no bandwidth then.
    """
    step = math.ceil(len(reference) / MEDIAN_ROWS)
    # A selection, where torch's quantile sorts all pairs.
    median = float(np.median(torch.pdist(reference[::step]).numpy()))
    if median == 0:
        raise ValueError("no bandwidth: half of the pairs of reference rows coincide")

    def kernel(distance: Tensor) -> Tensor:
        term = distance.div(2.0 ** OCTAVES[-1] * median).square_().mul_(-0.5).exp_()
        k = term.clone()
        for _ in OCTAVES[1:]:
            term.square_().square_()
            k += term
        return k.div_(len(OCTAVES))

    return kernel


def to_nearest(samples: Tensor, data: Tensor) -> Tensor:
    """Returns min_j |x_i - y_j|, (N,) float64, in the units of the data; copies are at exactly 0.

    Args:
        samples: x, (N, *shape).
        data: y, (M, *shape): the training split (memorisation) or the held-out one.

    Raises:
        ValueError: There are no rows, the shapes differ, or the data are not finite.
    """
    x, y = rows(samples, data, least=1)
    distances = []
    for x_i in blocks(x):
        best = torch.full_like(x_i[:, 0], math.inf)
        for y_j in blocks(y):
            j = torch.cdist(x_i, y_j).argmin(dim=1)
            # cdist goes through |x|^2 + |y|^2 - 2 x.y: good enough to choose a neighbour, not to
            # measure a small distance.
            best = torch.minimum(best, torch.linalg.vector_norm(x_i - y_j[j], dim=1))
        distances.append(best)
    return torch.cat(distances)


def outside(samples: Tensor, basis: Tensor, mean: Tensor) -> Tensor:
    """Returns the energies per dimension outside a plane, |(I - B B^T)(x_i - m)|^2 / D, (N,).

    They are in squared units of the data and float64: 0 on the plane, and (D - k)/D on average for
    unit noise around it.

    Args:
        samples: x, (N, *shape) with D numbers each.
        basis: B, (D, k): its k orthonormal columns span the plane's directions (k = 2).
        mean: m, any point of the plane, D numbers; zeros for a plane through the origin.

    Raises:
        ValueError: There are no rows, the basis or the mean does not fit D, or the columns are not
            orthonormal to the rounding of the basis's dtype.
    """
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


def blocks(x: Tensor) -> list[Tensor]:
    """Splits x into pieces of at most `BLOCK` rows."""
    return list(torch.split(x, BLOCK))


def rows(samples: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Returns both as float64 rows about the mean of the reference, (N, D) and (M, D).

    Distances lose the fewest digits there.

    Raises:
        ValueError: The shapes differ, a side has fewer than `least` rows, or the reference is not
            finite.
    """
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
    return x - y.mean(dim=0), y - y.mean(dim=0)


def flat(samples: Tensor) -> Tensor:
    """Returns (N, *shape) as (N, D) float64, infinity as nan lest it vanish in a kernel."""
    x = samples.detach().to(torch.float64).reshape(len(samples), -1)
    return x.masked_fill(x.isinf(), math.nan)
