"""What takes images to latents and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class FirstStage(Protocol):
    """What takes images to the latents that a denoiser is of, and back."""

    @property
    def digest(self) -> str:
        """Equal where two of them decode alike; it enters the identity of a trial on latents."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """The latents (n, c, h, w) of images (n, C, H, W), float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """The images (n, C, H, W) of latents (n, c, h, w), float32."""
        ...
