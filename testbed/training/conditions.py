"""Conditions in training: the classes of each draw, dropped at the rate of the condition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from testbed.random import stream

OFF = -1
"""The class of a condition that is switched off."""


def uniforms(seed: int, name: str, block: int, shape: tuple[int, ...]) -> Tensor:
    """The uniforms of a block that decide where condition `name` is dropped, float64, on CPU.

    Every trial of `seed` has the same ones, whatever its rates and its other conditions.
    """
    generator = stream(seed, f"condition/{name}/{block}")
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def drop(classes: Tensor, u: Tensor, rate: float) -> Tensor:
    """The classes, OFF where u < rate (Ho and Salimans 2022, algorithm 1); int64, shaped like u."""
    return torch.where(u < rate, OFF, classes)


def block_classes(
    classes: Mapping[str, Tensor], rates: Mapping[str, float], seed: int, block: int, index: Tensor
) -> dict[str, Tensor]:
    """The classes of each condition for a block's draws.

    Args:
        classes: name -> (N,) int64, the classes of the training split.
        rates: name -> the rate in [0, 1] at which the condition is dropped.
        seed, block: the trial's seed and the number of the block.
        index: (steps, B) int64, the rows of the training split that the block draws.

    Returns:
        name -> (steps, B) int64, OFF where it is dropped.
    """
    return {
        name: drop(classes[name][index], uniforms(seed, name, block, tuple(index.shape)), rate)
        for name, rate in rates.items()
    }
