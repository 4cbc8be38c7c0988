"""Random flips of training images, left to right, from a stream of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.random import stream


def drawn(seed: int, block: int, index: Tensor, probability: float) -> Tensor:
    """Which draws of a block's steps are flipped, boolean, like their rows `index`; on the CPU.

    Every trial of `seed` has the same uniforms, whatever the probability, and no other draw of a
    trial depends on them.
    """
    if not probability:
        return torch.zeros(index.shape, dtype=torch.bool)
    return torch.rand(index.shape, generator=stream(seed, f"flip/{block}")) < probability


def flipped(x0: Tensor, flip: Tensor) -> Tensor:
    """x0 with its last axis reversed where `flip`, on the CPU, whose axes are the first of x0."""
    if not flip.any():
        return x0
    where = flip.to(x0.device).reshape(*flip.shape, *[1] * (x0.ndim - flip.ndim))
    return torch.where(where, x0.flip(-1), x0)
