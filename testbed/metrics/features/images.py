"""Samples as the images that published networks were made for, and features in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.tensors import is_image

BATCH = 64
"""Images that a network sees at once."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations of the channels of ImageNet, for values in [0, 1]."""


def in_batches(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns the features (N, F) float64 of samples (N, *shape); nan of what is not finite.

    Args:
        network: maps (B, *shape) to (B, F).
    """

    def features(samples: Tensor) -> Tensor:
        finite = samples.flatten(1).isfinite().all(1)
        clean = samples.masked_fill(~finite.view(-1, *[1] * (samples.ndim - 1)), 0.0)
        with torch.no_grad():
            found = torch.cat([network(x).double().flatten(1) for x in torch.split(clean, BATCH)])
        return found.masked_fill(~finite[:, None], math.nan)

    return features


def pictures(x: Tensor, low: float, high: float) -> Tensor:
    """Returns samples (B, H, W), (B, 1, H, W) or (B, 3, H, W) as (B, 3, H, W) float32 in [0, 1].

    `low` is black and `high` white; values beyond are cut, and grey images have equal channels.
    """
    x = x[:, None] if x.ndim == 3 else x
    unit = ((x.float() - low) / (high - low)).clamp(0, 1)
    return unit.expand(-1, 3, -1, -1)


def standardised(unit: Tensor) -> Tensor:
    """Returns (u - mean) / deviation of ImageNet's channels, for u in [0, 1]."""
    mean, deviation = (unit.new_tensor(one).view(1, 3, 1, 1) for one in IMAGENET)
    return (unit - mean) / deviation


def unfit(data: Data, low: float, high: float, least: int = 1) -> Iterator[str]:
    """Yields why data are no images for such a network; nothing where they are.

    Args:
        low, high: The values of black and white.
        least: The smallest side of an image.
    """
    if not is_image(data.shape):
        yield (
            "it measures images of one or three channels, (H, W) or (C, H, W), and a sample has "
            f"the shape {data.shape}: feature_frechet and feature_kernel take any shape."
        )
        return
    if min(data.shape[-2:]) < least:
        yield (
            f"images of {data.shape[-2]} x {data.shape[-1]} pixels are too small for its network, "
            f"which needs {least}."
        )
    if not low < high:
        yield f"low = {low:g} must be below high = {high:g}."
        return
    found = float(data.test.min()), float(data.test.max())
    # Uniform noise of a quantum leaves the range of quantised values by half of one.
    slack = (data.quantum or 0.0) + 1e-3 * (high - low)
    if found[0] < low - slack or found[1] > high + slack:
        yield (
            f"the values of the data, {found[0]:.4g} to {found[1]:.4g}, leave {low:g} to {high:g}: "
            "write low and high, the values of black and white."
        )
