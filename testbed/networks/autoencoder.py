"""AutoencoderKL of diffusers: built anew, or read from a folder.

Rombach et al. 2022, arXiv:2112.10752: an encoder to a Gaussian posterior of c channels, and a
decoder, with a stride of 2 for each width but the first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from testbed.errors import InputError, one_line
from testbed.random import seeded

GROUPS = 32
WEIGHTS = "diffusion_pytorch_model.safetensors"
MISSING = (
    "encoder: AutoencoderKL comes with diffusers, which is not installed: pip install "
    "'diffusion-testbed[images]'."
)


class Autoencoder(nn.Module):
    """`encode` (n, C, H, W) -> (mean, log variance) of latents; `decode` latents -> images."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.stride = 2 ** (len(module.config.block_out_channels) - 1)
        self.channels = int(module.config.in_channels)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log variance, each (n, c, h, w)."""
        posterior = self.module.encode(images).latent_dist
        return posterior.mean, posterior.logvar

    def mean(self, images: Tensor) -> Tensor:
        """The posterior's mean, (n, c, h, w)."""
        return self.encode(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, C, H, W)."""
        images: Tensor = self.module.decode(latents).sample
        return images


def build(
    image_channels: int, channels: tuple[int, ...], latent_channels: int, layers: int, seed: int
) -> Autoencoder:
    """An autoencoder with weights drawn from `seed`; the global generators stay as they were.

    Args:
        image_channels: C.
        channels: the width of each resolution, from the images' own; each but the first halves it.
        latent_channels: c.
        layers: residual blocks at each resolution.
        seed: of the weights.

    Raises:
        InputError: diffusers is not installed, or widths that it cannot build.
    """
    kind = _autoencoder_kl()
    groups = math.gcd(GROUPS, *channels)
    with seeded(seed):
        module = kind(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=layers,
            latent_channels=latent_channels,
            norm_num_groups=groups,
        )
    return Autoencoder(module)


def read(folder: Path) -> tuple[Autoencoder, float, float]:
    """An autoencoder from a folder of diffusers, with its scaling_factor and shift_factor.

    Nothing is downloaded or unpickled.

    Raises:
        InputError: diffusers is not installed, the folder has no configuration or no weights as
            safetensors, or its factors are no numbers.
    """
    kind = _autoencoder_kl()
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"encoder.path = {str(folder)!r}: there is no {name}: expected the folder of an "
                "AutoencoderKL as diffusers saves it, with its weights as safetensors "
                "(save_pretrained)."
            )
    try:
        module = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except Exception as problem:  # whatever a damaged file leads to
        raise InputError(f"encoder.path = {str(folder)!r}: {one_line(problem)}") from None
    scale = _factor(folder, module.config, "scaling_factor", 1.0)
    if scale <= 0:
        raise InputError(f"{folder / 'config.json'}: scaling_factor = {scale:g} must be above 0.")
    return Autoencoder(module), scale, _factor(folder, module.config, "shift_factor", 0.0)


def _factor(folder: Path, written: Any, key: str, default: float) -> float:
    """A finite number that config.json states, or the default where it states none.

    Raises:
        InputError: it states something else.
    """
    value = written.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{folder / 'config.json'}: {key} = {value!r}: expected a number.")
    return float(value)


def _autoencoder_kl() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise InputError(MISSING) from None
    return AutoencoderKL
