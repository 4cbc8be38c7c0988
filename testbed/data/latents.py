"""Latents: images through the first stage of a latent diffusion model, and back.

    z = scale (E(x) - shift),    x = Dec(z/scale + shift)

(Rombach et al. 2022, arXiv:2112.10752, sec. 3.1 and app. G; the shift by channel as in Stable
Diffusion 3, Esser et al. 2024, arXiv:2403.03206.) E(x) is the mean of the encoder's posterior, so
that an image has one latent.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.errors import InputError

ROWS = 64
"""How many images are encoded at once."""

Encode = Callable[[Tensor], Tensor]
"""Images (n, C, H, W), with sides that are multiples of the stride, to means of latents."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The first stage: E and Dec with a scale and a shift; of images of any size.

    Args:
        encoder, decoder: E and Dec; images have sides that are multiples of the stride.
        stride: pixels a latent, along a side.
        size: (H, W) of the images that are decoded, which the padding is cut from.
        scale: that of latents, positive.
        shift: (c,) of each channel.
        dtype: what E and Dec compute in.
        autoencoder: the AutoencoderKL of diffusers that they are parts of, where they are.
    """

    encoder: Encode
    decoder: Encode
    stride: int
    size: tuple[int, int]
    scale: float = 1.0
    shift: Tensor | None = None
    dtype: torch.dtype = torch.float32
    autoencoder: Any = None

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of the AutoencoderKL's weights, as hexadecimal digits; empty without one.

        Two that encode alike may decode otherwise: a decoder is often trained further alone.
        """
        if self.autoencoder is None:
            return ""
        found = hashlib.sha256()
        for tensor in self.autoencoder.state_dict().values():
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The latents (n, c, h, w) of images (n, C, H, W), float32; h = H/stride, rounded up."""
        parts = [self._rows(self.encoder, padded(x, self.stride)) for x in blocks(images)]
        return self.scale * (torch.cat(parts) - self._shift(parts[0]))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The images (n, C, H, W) of latents, float32, cut to their size.

        Latents of another size than the data's give images of h stride, w stride.
        """
        means = latents.float() / self.scale + self._shift(latents)
        images = torch.cat([self._rows(self.decoder, z) for z in blocks(means)])
        stored = tuple(-(-side // self.stride) for side in self.size)
        if tuple(latents.shape[2:]) != stored:
            return images
        return images[..., : self.size[0], : self.size[1]]

    def _rows(self, function: Encode, x: Tensor) -> Tensor:
        return function(x.to(self.dtype)).float()

    def _shift(self, latents: Tensor) -> Tensor:
        if self.shift is None:
            return latents.new_zeros(1)
        return self.shift.to(latents.device).view(1, -1, 1, 1)


def padded(images: Tensor, stride: int) -> Tensor:
    """Images (n, C, H, W) with their last row and column repeated up to multiples of the stride."""
    height, width = images.shape[2:]
    below, right = -height % stride, -width % stride
    return nn.functional.pad(images, (0, right, 0, below), mode="replicate")


def blocks(split: Tensor) -> Iterator[Tensor]:
    """Samples in blocks of ROWS."""
    for start in range(0, len(split), ROWS):
        yield split[start : start + ROWS]


def measured_scale(latents: Tensor, shift: Tensor | None) -> float:
    """1 over the root mean square of latents less their shift: that of unit mean square.

    Raises:
        InputError: the latents are all alike, so that nothing would be left to model.
    """
    centred = latents if shift is None else latents - shift.view(1, -1, 1, 1)
    size = float(centred.double().square().mean().sqrt())
    if not size > 1e-12:
        raise InputError("encoder: the latents of all images are the same.")
    return 1 / size


def of(data: Data, first_stage: Latents, train: Tensor, test: Tensor, *notes: str) -> Data:
    """Data whose samples are the latents of images; oracle and quantum are those of no latents.

    Args:
        data: the images.
        first_stage: what the latents were encoded with.
        train, test: their latents.
        notes: sentences on the first stage.
    """
    return replace(
        data,
        train=train,
        test=test,
        oracle=None,
        basis=None,
        conditional=None,
        quantum=None,
        dequantised=False,
        notes=(*data.notes, *notes),
        first_stage=first_stage,
        pixels=data,
    )
