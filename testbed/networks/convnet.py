"""A compact convolutional network for small images and few seconds of one core."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pixel_shuffle, pixel_unshuffle, silu
from torch.utils.checkpoint import checkpoint

from testbed.components.condition import KINDS, ConditionTable
from testbed.components.network import Network
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.networks import mlp
from testbed.networks.conditions import (
    AddedConditions,
    ClassEmbedding,
    Condition,
    Images,
    MeanTokenEmbedding,
    VectorEmbedding,
    check,
    of_kind,
)
from testbed.networks.embeddings import (
    INDEX_UNIT,
    RANGES,
    FourierFeatures,
    NoiseEmbedding,
    zero_linear,
)

EPS = 1e-6


def normal(h: Tensor) -> Tensor:
    """h (B, H, W, C) of mean 0 and variance 1 in each sample: a group norm of one group."""
    return layer_norm(h, h.shape[1:], eps=EPS)


class Block(nn.Module):
    """h + W2 silu(W1 (norm(k * h) (1 + scale) + shift)), with k a kernel for each channel.

    Scale and shift (B, width) are linear in the embedding of the noise level (Perez et al. 2018)
    and start at zero. h is (B, H, W, width): channels lie side by side in memory, where a
    convolution for each channel takes a third of the time on a CPU.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.modulation = zero_linear(width, 2 * width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, None, None].chunk(2, -1)
        u = normal(self.mix(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        result: Tensor = h + self.outer(silu(self.inner(u * (1 + scale) + shift)))
        return result


class Affine(nn.Module):
    """g * x + b + U (a * V x), with a (rank,) and g, b (C, H, W) for each noise level.

    a, g and b are linear in its embedding and start at zero. The best linear denoiser (Wiener) has
    this form, whose a and g depend on the level: data need not be learned by the blocks as far as
    they are Gaussian. x (B, C, H, W), embedding (B, width) -> (B, C, H, W).
    """

    def __init__(self, shape: tuple[int, ...], width: int, rank: int) -> None:
        super().__init__()
        numbers = math.prod(shape)
        self.diagonal = zero_linear(width, 2 * numbers)
        self.gate = zero_linear(width, rank)
        self.inner = nn.Linear(numbers, rank, bias=False)
        self.outer = nn.Linear(rank, numbers, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        g, b = self.diagonal(embedding).view(len(x), 2, *x.shape[1:]).unbind(1)
        correlated = self.outer(self.gate(embedding) * self.inner(x.flatten(1)))
        result: Tensor = g * x + b + correlated.view_as(x)
        return result


class Whole(nn.Module):
    """What a perceptron of one residual block makes of all pixels at once; it starts at zero.

    The shape of a digit at middle noise levels is seen by no kernel alone, and this costs little
    beside the convolutions. x (B, C, H, W), embedding (B, width) -> (B, C, H, W).
    """

    def __init__(self, shape: tuple[int, ...], width: int, hidden: int) -> None:
        super().__init__()
        numbers = math.prod(shape)
        self.first = nn.Linear(numbers, hidden)
        self.noise = nn.Linear(width, hidden)
        self.block = mlp.Block(hidden)
        self.norm = nn.LayerNorm(hidden)
        self.last = zero_linear(hidden, numbers)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block(self.first(x.flatten(1)), self.noise(embedding))
        result: Tensor = self.last(silu(self.norm(h))).view_as(x)
        return result


class ConvNet(nn.Module):
    """x (B, C, H, W) and c_noise (B,) to F (B, C, H, W), a sum that starts at zero.

    Blocks after Liu et al. 2022 (ConvNeXt) work on patches of pixels, whose places have learned
    offsets; what they give is added to an affine function of x for each noise level (`Affine`), as
    c_skip x is in D (Karras et al. 2022, eq. 7), and to a perceptron of all pixels (`Whole`).
    Classes, vectors and the mean of tokens are added to the embedding of that level, images are
    further channels; their weights start at zero.

    Raises:
        InputError: at building, an image of another size than x; at a call, a condition or a second
            noise level that it was built without.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, int],
        tables: Mapping[str, ConditionTable],
        outputs: Mapping[str, int],
        noise_kind: str,
        second: bool,
        checkpointing: bool,
        width: int,
        depth: int,
        patch: int,
        kernel: int,
    ) -> None:
        super().__init__()
        C, H, W = shape
        self.channels, self.patch, self.checkpointing = C, patch, checkpointing
        unit = INDEX_UNIT if noise_kind == "index" else 1.0
        self.noise = NoiseEmbedding(FourierFeatures(16, 1 / 64 / unit, 64 / unit), width, second)
        self.first = nn.Conv2d(C * patch**2, width, 3, padding=1)
        self.places = nn.Parameter(torch.zeros(H // patch, W // patch, width))
        self.blocks = nn.ModuleList(Block(width, kernel) for _ in range(depth))
        self.last = zero_linear(width, patch**2 * sum(outputs.values()))
        self.affine = Affine(shape, width, 2 * width)
        self.whole = Whole(shape, width, 4 * width)
        self.conditions = AddedConditions(
            {name: ClassEmbedding(n, width) for name, n in conditions.items()}
            | {name: VectorEmbedding(t, width) for name, t in of_kind(tables, "vector").items()}
            | {name: MeanTokenEmbedding(t, width) for name, t in of_kind(tables, "tokens").items()}
        )
        pictures = of_kind(tables, "image")
        self.images = Images(pictures, shape) if pictures else None
        self.first_images = (
            zero_linear(self.images.channels * patch**2, width, bias=False) if self.images else None
        )
        self.names = (*conditions, *tables)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        return self.with_features(x, c_noise, condition, second)[0]

    def with_features(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """F, and h after each of the blocks, "block0", ..., (B, H/patch, W/patch, width)."""
        check(condition, self.names)
        added = self.conditions(condition, x)
        embedding = self.noise(c_noise, second)
        embedding = silu(embedding if added is None else embedding + added)
        h = self.first(pixel_unshuffle(x, self.patch)).permute(0, 2, 3, 1).contiguous()
        h = h + self.places
        if self.images is not None and self.first_images is not None:
            pictures = pixel_unshuffle(self.images(condition, x), self.patch)
            h = h + self.first_images(pictures.permute(0, 2, 3, 1))
        features = {}
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, embedding, use_reentrant=False, preserve_rng_state=False)
            else:
                h = block(h, embedding)
            features[f"block{i}"] = h
        F = pixel_shuffle(self.last(silu(normal(h))).permute(0, 3, 1, 2), self.patch)
        first, further = F[:, : self.channels], F[:, self.channels :]
        first = first + self.affine(x, embedding) + self.whole(x, embedding)
        return torch.cat([first, further], 1), features


def convnet(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable],
    outputs: Mapping[str, int],
    noise_kind: str,
    second: bool,
    checkpointing: bool,
    width: int = 32,
    depth: int = 2,
    patch: int = 1,
    kernel: int = 3,
) -> ConvNet:
    """A small convolutional network, for digits of 8 x 8 on one core.

    Args:
        shape: (C, H, W), H and W multiples of `patch`.
        conditions, tables, outputs, noise_kind, second, checkpointing: as of any network.
        width: channels of the hidden layers.
        depth: the number of blocks.
        patch: the height and width of the square of pixels that is one place of the hidden layers.
        kernel: the height and width of the kernels of the blocks, odd.

    Raises:
        InputError: sizes that do not fit.
    """
    if min(width, depth, patch) < 1 or kernel < 1 or kernel % 2 == 0:
        raise InputError(
            f"network 'convnet': width = {width}, depth = {depth}, patch = {patch} must be "
            f"positive, and kernel = {kernel} positive and odd."
        )
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise InputError(
            f"network 'convnet': samples of shape {shape} with patch = {patch}: it takes images "
            "(channels, height, width) whose height and width are multiples of the patch."
        )
    declared = shape, conditions, tables, outputs, noise_kind, second, checkpointing
    return ConvNet(*declared, width, depth, patch, kernel)


def blocks(depth: int = 2) -> tuple[str, ...]:
    """The names of the features of `convnet`."""
    return tuple(f"block{i}" for i in range(depth))


@hookimpl
def testbed_networks() -> Iterable[Network]:
    """The compact convolutional network."""
    yield Network(
        "convnet",
        convnet,
        noise=RANGES,
        shapes=((1, 8, 8), (3, 4, 6)),
        condition_kinds=KINDS,
        features=blocks,
        reference="Liu et al. 2022, arXiv:2201.03545, fig. 4; Perez et al. 2018, arXiv:1709.07871",
    )
