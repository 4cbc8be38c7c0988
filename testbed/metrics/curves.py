"""The numbers of a curve over noise levels: a metric of all its levels, of a range, of a band.

A metric of levels is a sum over them of one part each. For an integral in nats the parts are those
of the trapezoid rule over log sigma; for the loss over the linear denoiser's, whose metric is a
geometric mean, they are logarithms. A table by level is a mapping from the names of its columns to
arrays (..., L), the levels ascending along the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Columns = Mapping[str, Array]
NATS = "_nats"
RELATIVE = "loss_vs_wiener"


def of_levels(metric: str, levels: Columns) -> bool:
    """Whether a metric is made of the columns of a table by level."""
    if metric == RELATIVE:
        return {"loss", "wiener"} <= set(levels)
    return metric.endswith(NATS) and metric.removesuffix(NATS) in levels


def parts(metric: str, levels: Columns, dimensions: int) -> Array:
    """Returns each level's part of a metric over exactly the levels of the table, (..., L).

    In nats: d excess/sigma^2 times the level's weight in the trapezoid rule over log sigma, half
    the distance between its neighbours. Of `loss_vs_wiener`: log(loss/Wiener loss)/L.

    Args:
        metric: One for which `of_levels` is true.
        levels: The table, restricted to the levels that count.
        dimensions: d; no ratio of two settings depends on it.
    """
    if metric == RELATIVE:
        logs: Array = np.log(levels["loss"] / levels["wiener"])
        return np.divide(logs, logs.shape[-1])
    sigma = levels["sigma"]
    halves = np.diff(np.log(sigma), axis=-1) / 2
    weights = np.zeros_like(sigma)
    weights[..., :-1] += halves
    weights[..., 1:] += halves
    nats: Array = dimensions * weights * levels[metric.removesuffix(NATS)] / sigma**2
    return nats


def total(metric: str, parts: Array, band: Mask | None = None) -> Array:
    """Returns the metric of the parts (..., L), or of those in a band (L,) of the levels; (...).

    In nats the bands add up to the whole. A geometric mean is that over the levels of the band, and
    nan for a band without any.
    """
    mask = np.ones(parts.shape[-1], dtype=bool) if band is None else band
    summed: Array = parts[..., mask].sum(-1)
    if metric != RELATIVE:
        return summed
    return np.exp(summed / mask.mean()) if mask.any() else np.full_like(summed, np.nan)


def share(metric: str, parts: Array, band: Mask) -> float:
    """Returns the share of a band in the metric: of its nats, or of the levels that it averages.

    Of several curves, (S, L), it is the mean share of those that have any nats: one level alone has
    none, since it spans no interval. It is nan where no curve has.
    """
    if metric == RELATIVE:
        return float(band.mean()) if len(band) else math.nan
    parts = np.atleast_2d(parts)
    whole = parts.sum(-1)
    some = np.isfinite(whole) & (whole != 0)
    if not some.any():
        return math.nan
    return float((parts[some][:, band].sum(-1) / whole[some]).mean())


def linear(metric: str, levels: Columns) -> dict[str, Array]:
    """Returns the columns that the metric of the best linear denoiser is made of."""
    if metric == RELATIVE:
        return {**levels, "loss": levels["wiener"]}
    column = metric.removesuffix(NATS)
    return {**levels, column: levels["wiener"] - levels["optimum"]}
