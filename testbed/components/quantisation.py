"""Quantised values: the spacing of their grid, and uniform noise of that width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_LEVELS = 2**16 + 1
"""Levels of a grid at most: those of 16 bits."""
MOST_VALUES = 2**20
"""Of more values than these, every second, third, ... is looked at for the spacing."""
BY_CHANCE = 1e-3
"""What levels with a common factor may have come about with by chance."""
UNLIKELY = 1e-9
"""The probability at which uniform noise is taken to be none."""
BLOCK = 2**22
"""Values that are looked at in one piece."""


def spacing(values: Tensor, error: float) -> float | None:
    """The largest q of which all distances between values are multiples, or None.

    There is none where the values are all equal, where they are more than MOST_LEVELS, or where
    such a q could not be told from their errors. Euclid's algorithm on the distances to the least
    value, with a bound of what the errors may have made of each remainder.

    Args:
        values: any shape; the errors are bounded, so that float64 is exact enough for them.
        error: at most how far each value may be off its level.
    """
    flat = values.flatten()
    flat = flat[:: -(-len(flat) // MOST_VALUES)].double()
    distance = torch.unique(flat - flat.min())
    distance = distance[torch.diff(distance, prepend=distance[:1]) > 2 * error]
    if not 0 < len(distance) < MOST_LEVELS:
        return None
    q, of_q = float(torch.diff(distance, prepend=distance.new_zeros(1)).min()), 2 * error
    reach = 1
    while True:
        # Within `reach` steps of the least value; the further levels sharpen q before those beyond.
        near = distance[distance <= (reach + 0.5) * q]
        steps = torch.round(near / q)
        allowed = 2 * error + float(steps[-1]) * of_q if len(near) else 0.0
        if q <= 4 * allowed:
            return None
        rest = (near - steps * q).abs()
        off = rest[rest > allowed]
        if len(off):
            q, of_q, reach = float(off.min()), allowed, 1
            continue
        if len(near):
            q, of_q = float(near[-1] / steps[-1]), 2 * error / float(steps[-1])
        if len(near) == len(distance):
            return q
        reach = max(2 * reach, math.ceil(float(distance[len(near)]) / q))


def mismatch(values: Tensor, quantum: float, error: float) -> str:
    """Why the values are not those of a grid of spacing `quantum`; empty where they are.

    They are on a coarser grid if their levels have a common factor m and are too many for chance:
    of n levels, all but the first are multiples with probability m^-(n - 1).

    Args:
        values: any shape.
        quantum: in the units of the values.
        error: at most how far each value may be off its level.
    """
    found = spacing(values, error)
    apart = "lie on no grid" if found is None else f"are {found:.10g} apart"
    off = _off(values, quantum)
    if off > 2 * error / quantum:
        return f"the values {apart}: they lie up to {off:.2g} of it off that grid"
    factor = round(found / quantum) if found else 1
    if found is not None and factor > 1:
        low = values.min()
        levels = len(torch.unique(torch.round((values.flatten()[:MOST_VALUES] - low) / found)))
        if factor ** -(levels - 1.0) < BY_CHANCE:
            return f"the values {apart}, {factor} times as far"
    return ""


def _off(values: Tensor, quantum: float) -> float:
    """The largest distance from the grid through the least value, in steps of the grid."""
    flat, low, worst = values.flatten(), values.min().double(), 0.0
    for block in torch.split(flat, BLOCK):
        steps = (block.double() - low) / quantum
        worst = max(worst, float((steps - steps.round()).abs().max()))
    return worst


def undequantised(values: Tensor, quantum: float, error: float) -> str:
    """Why the values hold no uniform noise of the width of their quantum; empty where they may.

    With such noise their places within a cell of the grid are uniform, wherever the grid begins:
    their distribution function is further than sqrt(log(2/p)/(2n)) from that of uniform numbers
    with probability p at most (Massart 1990).
    """
    if _off(values, quantum) <= 2 * error / quantum:
        return "the values lie on the grid of their quantum, without noise"
    flat = values.flatten()
    flat = flat[:: -(-len(flat) // MOST_VALUES)].double()
    place = torch.sort((flat / quantum) % 1).values
    n = len(place)
    uniform = torch.arange(n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((uniform[1:] - place), (place - uniform[:-1])).max())
    allowed = math.sqrt(math.log(2 / UNLIKELY) / (2 * n)) + 2 * error / quantum
    if distance > allowed:
        return (
            f"the values' places within a cell of width {quantum:g} are not uniform: their "
            f"distribution function is {distance:.2g} off, at most {allowed:.2g} by chance"
        )
    return ""


def dequantise(x: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    """x + quantum (u - 1/2), u uniform on [0, 1), in the dtype of x (Theis et al. 2016, sec. 3.1).

    Values of spacing `quantum` become a density whose cells keep their mass and their mean.
    """
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    return x + quantum * (u - 0.5)
