"""Conditions in training: the classes of each draw, each dropped at its own rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from testbed.random import stream

OFF = -1
"""The class of a condition that is switched off."""


def draws(seed: int, name: str, block: int, shape: tuple[int, ...]) -> Tensor:
    """The uniforms of a block that decide where condition `name` is dropped, float64, on CPU.

    They are the same for every trial of `seed`, whatever its rates and its other conditions.
    """
    generator = stream(seed, f"condition/{name}/{block}")
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def kept(classes: Tensor, u: Tensor, rate: float) -> Tensor:
    """The classes, OFF where u < rate (Ho and Salimans 2022, algorithm 1); shaped like u."""
    return torch.where(u < rate, OFF, classes)


def of_block(
    classes: Mapping[str, Tensor], rates: Mapping[str, float], seed: int, block: int, index: Tensor
) -> dict[str, Tensor]:
    """Each condition of a block's draws.

    Args:
        classes: name -> (N,) int64, of the training split.
        rates: name -> how often it is dropped, in [0, 1].
        seed, block: of the draws.
        index: (steps, B) int64, the rows of the training split that the block draws.

    Returns:
        name -> (steps, B) int64, OFF where it is dropped.
    """
    return {
        name: kept(classes[name][index], draws(seed, name, block, tuple(index.shape)), rate)
        for name, rate in rates.items()
    }
