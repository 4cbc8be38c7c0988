"""Inception v3 (Szegedy et al. 2016) as FID has it, with the key layout of torchvision's.

The network of Heusel et al. (2017) is TensorFlow's of 2015-12-05, whose weights pytorch-fid has
converted: 1008 classes, averages that do not count the padding, and a maximum in place of the
average in the last block. What is kept of an image are the 2048 averages before the classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, max_pool2d

from testbed.metrics.features import weights

NEEDED = (
    "It is the Inception network of 2015-12-05 as safetensors, converted from pytorch-fid's "
    "pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid); testbed downloads "
    "nothing."
)
SIDE, CLASSES = 299, 1008

Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel, int]
"""Name, output channels, kernel and stride; with stride 1 the padding keeps the size."""
Branch = tuple[tuple[Layer, ...], ...]
"""Stages one after the other; the layers of a stage are parallel, their channels joined."""


def chain(*layers: Layer) -> Branch:
    """A branch of one layer a stage."""
    return tuple((layer,) for layer in layers)


def average(x: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, of those that there are."""
    return avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """The largest of 3 x 3 pixels."""
    return max_pool2d(x, 3, 1, 1)


def halved(x: Tensor) -> Tensor:
    """The largest of 3 x 3 pixels at every other one."""
    return max_pool2d(x, 3, 2)


class Convolution(nn.Module):
    """relu(norm(W x))."""

    def __init__(
        self, channels: int, out: int, kernel: Kernel, stride: int, padding: Kernel
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches of x, their channels joined; the last one pools."""

    def __init__(
        self,
        channels: int,
        *branches: Branch,
        pool: Callable[[Tensor], Tensor] = halved,
        pooled: int = 0,
    ) -> None:
        super().__init__()
        self.pool, self.channels = pool, pooled or channels
        self.branches = [[[layer[0] for layer in stage] for stage in one] for one in branches]
        for branch in branches:
            width = channels
            for stage in branch:
                for name, out, kernel, stride in stage:
                    self.add_module(name, Convolution(width, out, kernel, stride,
                                                      padded(kernel, stride)))  # fmt: skip
                width = sum(out for _, out, _, _ in stage)
            self.channels += width
        self.branch_pool = Convolution(channels, pooled, 1, 1, 0) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            h = x
            for stage in branch:
                h = torch.cat([getattr(self, name)(h) for name in stage], 1)
            found.append(h)
        h = self.pool(x)
        found.append(h if self.branch_pool is None else self.branch_pool(h))
        return torch.cat(found, 1)


def padded(kernel: Kernel, stride: int) -> Kernel:
    """The padding that keeps the size; none for a layer that halves it."""
    if stride > 1:
        return 0
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def block_a(channels: int, pooled: int) -> Mixed:
    """35 x 35 pixels."""
    return Mixed(
        channels,
        chain(("branch1x1", 64, 1, 1)),
        chain(("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)),
        chain(("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1),
              ("branch3x3dbl_3", 96, 3, 1)),
        pool=average,
        pooled=pooled,
    )  # fmt: skip


def block_b(channels: int) -> Mixed:
    """From 35 x 35 to 17 x 17 pixels."""
    return Mixed(
        channels,
        chain(("branch3x3", 384, 3, 2)),
        chain(("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1),
              ("branch3x3dbl_3", 96, 3, 2)),
    )  # fmt: skip


def block_c(channels: int, narrow: int) -> Mixed:
    """17 x 17 pixels."""
    return Mixed(
        channels,
        chain(("branch1x1", 192, 1, 1)),
        chain(("branch7x7_1", narrow, 1, 1), ("branch7x7_2", narrow, (1, 7), 1),
              ("branch7x7_3", 192, (7, 1), 1)),
        chain(("branch7x7dbl_1", narrow, 1, 1), ("branch7x7dbl_2", narrow, (7, 1), 1),
              ("branch7x7dbl_3", narrow, (1, 7), 1), ("branch7x7dbl_4", narrow, (7, 1), 1),
              ("branch7x7dbl_5", 192, (1, 7), 1)),
        pool=average,
        pooled=192,
    )  # fmt: skip


def block_d(channels: int) -> Mixed:
    """From 17 x 17 to 8 x 8 pixels."""
    return Mixed(
        channels,
        chain(("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)),
        chain(("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, (1, 7), 1),
              ("branch7x7x3_3", 192, (7, 1), 1), ("branch7x7x3_4", 192, 3, 2)),
    )  # fmt: skip


def block_e(channels: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """8 x 8 pixels."""
    return Mixed(
        channels,
        chain(("branch1x1", 320, 1, 1)),
        ((("branch3x3_1", 384, 1, 1),),
         (("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1))),
        ((("branch3x3dbl_1", 448, 1, 1),), (("branch3x3dbl_2", 384, 3, 1),),
         (("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1))),
        pool=pool,
        pooled=192,
    )  # fmt: skip


class Inception(nn.Module):
    """The 2048 features (B, 2048) of images (B, 3, 299, 299) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1, 0)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, 0)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, average)
        self.Mixed_7c = block_e(2048, largest)
        # Not used: its shape tells this network's weights from those of another training.
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halved(h)))
        h = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halved(h))))
        h = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(h)))))
        h = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(h)))
        return adaptive_avg_pool2d(h, 1).flatten(1)


def features(path: str) -> Callable[[Tensor], Tensor]:
    """The features (B, 2048) of images (B, 3, H, W) in [0, 1], resized by bilinear interpolation.

    Args:
        path: the weights, a safetensors file.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    network = weights.read(Inception, Path(path), NEEDED)

    def of(unit: Tensor) -> Tensor:
        found: Tensor = network(2 * interpolate(unit, (SIDE, SIDE), mode="bilinear") - 1)
        return found

    return of
