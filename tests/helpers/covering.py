"""A covering design: few rows of many options, in which every two values meet."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows with a value of each axis, such that any two values of two axes are together in one.

    A mistake that depends on one value, or on two together, is in a row; the full product has as
    many rows as the lengths of the axes multiply to. The same axes always give the same rows.
    """
    pairs = combinations(range(len(axes)), 2)
    left = dict.fromkeys(
        ((i, a), (j, b)) for i, j in pairs for a in range(len(axes[i])) for b in range(len(axes[j]))
    )
    rows = []
    while left:
        row = dict(next(iter(left)))
        for axis in (axis for axis in range(len(axes)) if axis not in row):
            row[axis] = max(range(len(axes[axis])), key=lambda value: _new(left, row, axis, value))
        for one in combinations(sorted(row.items()), 2):
            left.pop(one, None)
        rows.append(tuple(values[row[axis]] for axis, values in enumerate(axes)))
    return rows


def _new(left: dict[Any, None], row: dict[int, int], axis: int, value: int) -> int:
    """How many pairs that no row has yet a value adds to a row."""
    mine = (axis, value)
    return sum(tuple(sorted((other, mine))) in left for other in row.items())
