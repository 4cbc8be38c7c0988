"""Noise levels as tensors, their products with the samples of a batch, and rows in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**22
"""Numbers of a block of rows: 32 MiB in float64."""


def widen(sigma: float | Tensor) -> Tensor:
    """Sigma as a tensor of its shape, float32 or wider; a Python number becomes float64."""
    if not isinstance(sigma, Tensor):
        return torch.as_tensor(sigma, dtype=torch.float64)
    wide = sigma.dtype in (torch.float32, torch.float64)
    return sigma if wide else sigma.to(torch.promote_types(sigma.dtype, torch.float32))


def per_sample(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Sigma, scalar or (B,), shaped (B, 1, ...) to multiply x (B, ...); on x's device.

    Raises:
        ValueError: sigma is neither a scalar nor has x's batch size.
    """
    sigma = widen(sigma).to(x.device)
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; expected a scalar or {tuple(x.shape[:1])}, "
            f"one per sample of x {tuple(x.shape)}."
        )
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """factor x per sample, (B, ...), computed in the wider of both dtypes and rounded once to x's.

    A product of torch would first round a scalar factor to x's dtype.

    Args:
        x: (B, ...).
        factor: scalar or (B,).
    """
    wide = torch.promote_types(x.dtype, factor.dtype)
    return (x.to(wide) * per_sample(factor, x).to(wide)).to(x.dtype)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of a shape are images: (H, W), or (C, H, W) of one or three channels."""
    if len(shape) == 3 and shape[0] not in (1, 3):
        return False
    return len(shape) in (2, 3) and min(shape[-2:]) > 1


def blocks(x: Tensor) -> Iterator[Tensor]:
    """The rows of x (N, ...) in order, BLOCK numbers or one row at a time."""
    rows = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]
