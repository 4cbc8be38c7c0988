"""LPIPS (Zhang et al. 2018): a distance of two images in the layers of a network.

With f_l(x) the activations of layer l, each pixel's channels divided by their length,

    f_hat = f / (|f| + 1e-10),
    d(x, y) = sum_l mean_hw sum_c w_lc (f_hat_lhwc(x) - f_hat_lhwc(y))^2

with w_lc >= 0 learned from people's judgements. d is a squared Euclidean distance,
|phi(x) - phi(y)|^2, with phi the sqrt(w_lc / (h w)) f_hat of all layers, one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from testbed.errors import InputError
from testbed.metrics.features import weights

Backbone = Literal["vgg", "alex"]
NEEDED = (
    "It is a safetensors file with the keys features.N.weight and features.N.bias of torchvision's "
    "VGG16 or AlexNet and linK.model.1.weight of github.com/richzhang/PerceptualSimilarity "
    "(lpips/weights/v0.1); testbed downloads nothing."
)
EPS = 1e-10
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the channels of images in [-1, 1], as the published weights were trained with."""


@dataclass(frozen=True)
class Layout:
    """A backbone: its layers, those whose activations are compared, and the least side of an image.

    A layer is ("convolution", out, kernel, stride, padding), ("pool", kernel, stride) or ("relu",).
    """

    layers: tuple[tuple[str | int, ...], ...]
    taps: tuple[int, ...]
    least: int


def _vgg() -> Iterator[tuple[str | int, ...]]:
    """VGG16: five stages of 3 x 3 convolutions (Simonyan and Zisserman 2015, D)."""
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            yield "pool", 2, 2
        for _ in range(count):
            yield "convolution", width, 3, 1, 1
            yield ("relu",)


LAYOUTS: dict[str, Layout] = {
    "vgg": Layout(tuple(_vgg()), (3, 8, 15, 22, 29), 16),
    "alex": Layout(
        (
            ("convolution", 64, 11, 4, 2), ("relu",), ("pool", 3, 2),
            ("convolution", 192, 5, 1, 2), ("relu",), ("pool", 3, 2),
            ("convolution", 384, 3, 1, 1), ("relu",),
            ("convolution", 256, 3, 1, 1), ("relu",),
            ("convolution", 256, 3, 1, 1), ("relu",),
        ),
        (1, 4, 7, 9, 11),
        31,
    ),
}  # fmt: skip


class Lpips(nn.Module):
    """phi (B, P) of images (B, 3, H, W) in [0, 1]."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.taps, channels, widths = layout.taps, 3, []
        layers: list[nn.Module] = []
        for kind, *sizes in layout.layers:
            numbers = [int(size) for size in sizes]
            if kind == "convolution":
                out, kernel, stride, padding = numbers
                layers.append(nn.Conv2d(channels, out, kernel, stride, padding))
                channels = out
            else:
                layers.append(nn.MaxPool2d(numbers[0], numbers[1]) if numbers else nn.ReLU())
            widths.append(channels)
        self.features = nn.Sequential(*layers)
        for k, tap in enumerate(self.taps):
            model = nn.Sequential(nn.Identity(), nn.Conv2d(widths[tap], 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": model}))

    def activations(self, x: Tensor) -> list[Tensor]:
        """f_l (B, C, h, w) of each layer that is compared, of images in [0, 1]."""
        shift, scale = (x.new_tensor(one).view(1, 3, 1, 1) for one in (SHIFT, SCALE))
        h, found = (2 * x - 1 - shift) / scale, []
        for n, layer in enumerate(self.features):
            h = layer(h)
            if n in self.taps:
                found.append(h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for k, f in enumerate(self.activations(x)):
            w = self.get_submodule(f"lin{k}.model.1").get_parameter("weight")
            f_hat = f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + EPS)
            parts.append((f_hat * (w / f[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(parts, 1)


def distance(phi: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """d(x, y) (B,) of images (B, 3, H, W) in [0, 1], pair by pair."""
    return (phi(x) - phi(y)).square().sum(1)


def features(path: str, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """phi (B, P) of images (B, 3, H, W) in [0, 1].

    Args:
        path: the weights, a safetensors file; the layers behind the convolutions may be in it.
        backbone: whose they are.

    Raises:
        InputError: the file cannot be read, does not fit, or weighs a layer by less than 0.
    """
    built = partial(Lpips, LAYOUTS[backbone])
    network = weights.read(built, Path(path), NEEDED, ignored=(r"classifier\.",))
    if any(bool((w < 0).any()) for name, w in network.named_parameters() if "lin" in name):
        raise InputError(f"{path}: weighs a layer by less than 0, which is no distance. {NEEDED}")
    return network
