"""Labels of any form as classes 0 to K - 1, with a sentence on what was done to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed.errors import InputError

SHOWN = 6
"""Labels that a sentence lists."""
FEW = 20
"""Samples below which labels that are nearly all different may still be classes."""
HINT = 'Write labels = "none" to leave them out.'


def classes(parts: Sequence[NDArray[Any]], title: str) -> tuple[list[Tensor], list[str]]:
    """The labels of each split as classes (N,) int64, and sentences on what was recognised.

    Text is sorted, one-hot rows are read by the place of their 1, a second dimension of length 1 is
    dropped, and whole numbers that are not 0 to K - 1 are taken in their order.

    Args:
        parts: the labels of each split, (N,), (N, 1) or (N, K).
        title: what they are in a message, for example "photos.npz: y".

    Raises:
        InputError: labels from which it is not clear which class a sample has.
    """
    if len({y.shape[1:] for y in parts}) > 1:
        shapes = " and ".join(str(y.shape) for y in parts)
        raise InputError(f"{title}: labels of shapes {shapes}; expected one form in both splits.")
    values = np.concatenate([np.asarray(y) for y in parts])
    found, notes = _single(values, title)
    found, more = _whole(found, title)
    levels, index = np.unique(found, return_inverse=True)
    if len(values) >= FEW and len(levels) > len(values) / 2:
        raise InputError(
            f"{title}: {len(levels)} different labels of {len(values)} samples are no classes. "
            f"{HINT}"
        )
    notes += more
    if not more and not np.array_equal(levels, np.arange(len(levels))):
        was, now = _listed(levels), _listed(range(len(levels)))
        notes.append(f"{title}: the labels {was} are taken as the classes {now}.")
    ends = np.cumsum([len(y) for y in parts])[:-1]
    split = np.split(index.astype(np.int64), ends)
    return [torch.from_numpy(one) for one in split], notes


def _single(y: NDArray[Any], title: str) -> tuple[NDArray[Any], list[str]]:
    """One label a sample, (N,), from (N, 1) or one-hot rows."""
    if y.ndim == 1:
        return y, []
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0], [f"{title}: labels of shape {y.shape} are read as ({len(y)},)."]
    if y.ndim != 2 or y.dtype.kind not in "iufb":
        raise InputError(
            f"{title}: labels of shape {y.shape}, {y.dtype}; expected one class a sample, (N,), or "
            f"one-hot rows. {HINT}"
        )
    hot = y == 1
    wrong = np.flatnonzero((hot.sum(1) != 1) | ((y != 0) & ~hot).any(1))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{title}: labels of shape {y.shape} are no one-hot rows: row {row} is "
            f"{_listed(y[row])}; expected a single 1 among zeros, or one class a sample. {HINT}"
        )
    return hot.argmax(1), [f"{title}: one-hot rows of {y.shape[1]} are read as classes."]


def _whole(y: NDArray[Any], title: str) -> tuple[NDArray[Any], list[str]]:
    """Labels that are whole numbers from 0, or text, whose order is that of its classes."""
    if y.dtype.kind == "U":
        names = np.unique(y)
        if "" in names:
            row = int(np.flatnonzero(y == "")[0])
            raise InputError(f"{title}: the label of row {row} is empty. {HINT}")
        listed = ", ".join(f"{name} = {i}" for i, name in enumerate(names[:SHOWN]))
        rest = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        said = "each name is a class, numbered in alphabetical order"
        return y, [f"{title}: {said}: {listed}{rest}."]
    if y.dtype.kind not in "iufb":
        raise InputError(f"{title}: labels are {y.dtype}, expected integers or text. {HINT}")
    wrong = np.flatnonzero(y != np.floor(y) if y.dtype.kind == "f" else np.zeros(len(y), bool))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{title}: labels are {y.dtype}, expected integers: that of row {row} is {y[row]}. "
            f"{HINT}"
        )
    if y.size and y.min() < 0:
        row = int(np.argmin(y))
        raise InputError(
            f"{title}: labels must count from 0, got {y[row]} in row {row}: is it a class, or does "
            f"it stand for no label? Write the classes as 0, 1, .... {HINT}"
        )
    return y, []


def _listed(values: Any) -> str:
    """`0 to 2` of numbers in a row, `0, 5, 999` of a few, `0, 5, ..., 999` of many."""
    numbers = [int(v) if float(v).is_integer() else float(v) for v in values]
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and numbers == list(range(int(first), int(first) + len(numbers))):
        return f"{first} to {last}"
    if len(numbers) > SHOWN:
        return f"{', '.join(map(str, numbers[: SHOWN - 2]))}, ..., {last}"
    return ", ".join(map(str, numbers))
