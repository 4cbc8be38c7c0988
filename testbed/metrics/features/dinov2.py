"""DINOv2 (Oquab et al. 2023) from a folder of transformers' layout, for FD-DINOv2.

The features are those of the class token behind the last normalisation, as Stein et al. (2023,
arXiv:2306.04675) take them, of images resized by bicubic interpolation and standardised.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from testbed.errors import InputError, one_line
from testbed.metrics.features.images import standardised

NEEDED = (
    "It is a folder with the config.json and model.safetensors of a Dinov2Model (transformers), as "
    "facebook/dinov2-large of huggingface.co; testbed downloads nothing."
)


def features(folder: str, side: int) -> Callable[[Tensor], Tensor]:
    """The features (B, F) of images (B, 3, H, W) in [0, 1].

    Args:
        folder: the model's folder.
        side: pixels that images are resized to, a multiple of the model's patches.

    Raises:
        InputError: transformers is not installed, or the folder holds no such model.
    """
    try:
        from transformers import Dinov2Model
    except ImportError:
        raise InputError(
            "metric 'fd_dinov2' needs transformers, which is not installed: pip install "
            "transformers."
        ) from None
    for name in ("config.json", "model.safetensors"):
        if not Path(folder, name).is_file():
            raise InputError(f"metric 'fd_dinov2': {folder} has no {name}. {NEEDED}")
    try:
        with torch.random.fork_rng(devices=[]):
            network, info = Dinov2Model.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as problem:  # whatever a folder of another model leads to
        raise InputError(
            f"metric 'fd_dinov2': {folder} cannot be loaded: {one_line(problem)}. {NEEDED}"
        ) from None
    if lacks := sorted(info["missing_keys"]):
        raise InputError(
            f"metric 'fd_dinov2': {folder} has no weights for {lacks[0]} and {len(lacks) - 1} "
            f"more: it is another model. {NEEDED}"
        )
    patch = network.config.patch_size
    if side % patch:
        raise InputError(
            f"metric 'fd_dinov2': side = {side} must be a multiple of the model's patches, "
            f"{patch} pixels."
        )
    network.requires_grad_(False).eval()

    def of(unit: Tensor) -> Tensor:
        resized = interpolate(unit, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        found: Tensor = network(standardised(resized)).pooler_output
        return found

    return of
