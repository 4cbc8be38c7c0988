"""The diffusion transformer: patches of an image as tokens, modulated by the noise level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from testbed.components.condition import KINDS, ConditionTable
from testbed.components.network import Network
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.networks.conditions import (
    AddedConditions,
    Condition,
    Images,
    NullableClassEmbedding,
    Tokens,
    VectorEmbedding,
    check,
    of_kind,
)
from testbed.networks.embeddings import NOISE, NoiseEmbedding, Sinusoids, zero_linear

EPS = 1e-6
"""Added to the variance in every layer norm, none of which has weights of its own."""
How = Literal["cross", "sequence"]


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the column in the first half of `width`, of the row in the second.

    Each half is [sin(w p), cos(w p)] with w_k = 10000^(-k/(width/4)); (rows columns, width).
    """
    quarter = width // 4
    w = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = (
        part.flatten()[:, None] * w
        for part in torch.meshgrid(
            torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij"
        )
    )
    waves = [column.sin(), column.cos(), row.sin(), row.cos()]
    return torch.cat(waves, 1).to(torch.get_default_dtype())


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and no offset at the start."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift, h (B, N, W), shift and scale (B, W)."""
    normal = nn.functional.layer_norm(h, h.shape[-1:], eps=EPS)
    return normal * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """softmax(q k^T/sqrt(W/heads)) v, with q of h and k, v of `others`, then a linear layer.

    h (B, N, W), others (B, M, W), mask (B, M) bool or None -> (B, N, W).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.out = linear(width, width)

    def forward(self, h: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self._heads(self.query(h))
        k, v = (self._heads(part) for part in self.key_value(others).chunk(2, dim=-1))
        where = None if mask is None else mask[:, None, None, :]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=where)
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result

    def _heads(self, h: Tensor) -> Tensor:
        B, N, W = h.shape
        return h.reshape(B, N, self.heads, W // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each h + gate f(norm(h) (1 + scale) + shift).

    The six modulations are a linear function of silu(c), in the order shift, scale, gate of the
    attention and of the perceptron; they start at zero (adaLN-zero). With `cross` there are tokens
    to attend to, between the two and without a gate (Chen et al. 2023).
    """

    def __init__(self, width: int, heads: int, hidden: int, cross: bool) -> None:
        super().__init__()
        self.modulation = zero_linear(width, 6 * width)
        self.attention = Attention(width, heads)
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)
        self.cross = Attention(width, heads) if cross else None

    def forward(
        self, h: Tensor, c: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """h (B, N, W) and c (B, W); tokens (B, M, W), or with a mask (B, N) that of h alone."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(silu(c)).chunk(6, 1)
        u = modulate(h, shift_a, scale_a)
        h = h + gate_a[:, None] * self.attention(u, u, mask if tokens is None else None)
        if self.cross is not None and tokens is not None:
            h = h + self.cross(h, tokens, mask)
        u = modulate(h, shift_m, scale_m)
        u = self.outer(nn.functional.gelu(self.inner(u), approximate="tanh"))
        h = h + gate_m[:, None] * u
        return h


class DiT(nn.Module):
    """x (B, C, H, W) and c_noise (B,) to F (B, C, H, W) (Peebles and Xie 2023); F starts at zero.

    x is cut into patches, each a token with the embedding of its place. The sum c of the embeddings
    of the noise level, of classes and of vectors modulates every block. A class of -1 has a learned
    row of its own. Tokens of a condition are attended to ("cross") or appended to the sequence
    ("sequence"), after one learned token for none. The patches of images are added to those of x,
    through a matrix that starts at zero, as if they were further channels.

    Raises:
        InputError: at building, sizes that do not fit; at a call, a condition or a second noise
            level that it was built without.
    """

    places: Tensor

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
        heads: int,
        patch: int,
        mlp_ratio: float,
        bottleneck: int,
        skip: bool,
        tokens: How,
    ) -> None:
        super().__init__()
        C, H, W = shape
        self.patch, self.checkpointing, self.channels = patch, checkpointing, C
        self.grid = H // patch, W // patch
        self.register_buffer("places", positions(*self.grid, width), persistent=False)
        area, texts = patch * patch, of_kind(tables, "tokens")
        self.first = (
            nn.Sequential(linear(area * C, bottleneck, bias=False), linear(bottleneck, width))
            if bottleneck
            else linear(area * C, width)
        )
        self.noise = NoiseEmbedding(Sinusoids(128, noise_kind), width, second)
        for layer in (self.noise.inner, self.noise.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        hidden, self.appended = round(mlp_ratio * width), tokens == "sequence"
        cross = bool(texts) and not self.appended
        self.blocks = nn.ModuleList(Block(width, heads, hidden, False) for _ in range(depth))
        self.modulation = zero_linear(width, 2 * width)
        self.last = zero_linear(width, area * sum(outputs.values()))
        # What follows starts after all else, so that no condition changes another weight.
        self.skip = zero_linear(width, C) if skip else None
        self.conditions = AddedConditions(
            {name: NullableClassEmbedding(n, width) for name, n in conditions.items()}
            | {name: VectorEmbedding(t, width) for name, t in of_kind(tables, "vector").items()}
        )
        pictures = of_kind(tables, "image")
        self.images = Images(pictures, shape) if pictures else None
        self.first_images = (
            zero_linear(area * self.images.channels, width, bias=False) if self.images else None
        )
        self.tokens = Tokens(texts, width) if texts else None
        if cross:
            for block in self.blocks:
                block.cross = Attention(width, heads)
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
        """F, and the tokens of x after each of the blocks, "block0", ..., (B, N, width)."""
        check(condition, self.names)
        added = self.conditions(condition, x)
        c = self.noise(c_noise, second) if added is None else self.noise(c_noise, second) + added
        h = self.first(self._patches(x)) + self.places
        if self.images is not None and self.first_images is not None:
            h = h + self.first_images(self._patches(self.images(condition, x)))
        tokens, mask, n = None, None, h.shape[1]
        if self.tokens is not None:
            tokens, mask = self.tokens(condition, x)
            if self.appended:
                h = torch.cat([h, tokens], 1)
                tokens, mask = None, nn.functional.pad(mask, (n, 0), value=True)
        features = {}
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(
                    block, h, c, tokens, mask, use_reentrant=False, preserve_rng_state=False
                )
            else:
                h = block(h, c, tokens, mask)
            features[f"block{i}"] = h
        F = self._image(self.last(modulate(h[:, :n], *self.modulation(silu(c)).chunk(2, 1))))
        if self.skip is not None:
            skipped = self.skip(silu(c))[:, :, None, None] * x
            F = torch.cat([F[:, : self.channels] + skipped, F[:, self.channels :]], 1)
        return F, features

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C patch patch), row by row."""
        p = self.patch
        B, C, H, W = x.shape
        parts = x.reshape(B, C, H // p, p, W // p, p)  # (B, C, rows, p, columns, p)
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, h: Tensor) -> Tensor:
        """(B, N, patch patch K) -> (B, K, H, W)."""
        p = self.patch
        B, _, size = h.shape
        parts = h.reshape(B, *self.grid, p, p, size // p**2)
        return parts.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def fits(
    shape: tuple[int, ...], width: int, depth: int, heads: int, patch: int, mlp_ratio: float
) -> None:
    """InputError, with a sentence that says what fits, unless there is a DiT of these sizes."""
    if min(width, depth, heads, patch) < 1 or not mlp_ratio > 0:
        raise InputError(
            f"network 'dit': width = {width}, depth = {depth}, heads = {heads}, patch = {patch} "
            f"and mlp_ratio = {mlp_ratio:g} must be positive."
        )
    if width % 4 or width % heads:
        raise InputError(
            f"network 'dit': width = {width} must be divisible by 4, for the sines and cosines of "
            f"rows and columns, and by heads = {heads}."
        )
    fits_images(shape, patch)


def fits_images(shape: tuple[int, ...], patch: int) -> None:
    """InputError unless a sample of this shape is an image that patches of this size cover."""
    if patch < 1 or len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise InputError(
            f"network 'dit': samples of shape {shape} with patch = {patch}: it takes images "
            "(channels, height, width) whose height and width are multiples of the patch."
        )


def dit(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable],
    outputs: Mapping[str, int],
    noise_kind: str,
    second: bool,
    checkpointing: bool,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int = 2,
    mlp_ratio: float = 4.0,
    bottleneck: int = 0,
    skip: bool = False,
    tokens: How = "cross",
) -> DiT:
    """A transformer on patches; DiT-S/2 is width = 384, depth = 12, heads = 6, patch = 2.

    Args:
        shape: (C, H, W).
        conditions, tables, outputs, noise_kind, second, checkpointing: as of any network.
        width: the number of features of a token.
        depth: the number of blocks.
        heads: the number of heads of the attention.
        patch: the height and width of a patch in pixels.
        mlp_ratio: the width of the perceptrons' hidden layers, in units of `width`.
        bottleneck: the width of a layer, without an activation, that a patch passes on its way to
            a token (Li and He 2025, sec. 4.2); 0 for none.
        skip: whether F has g x added, g a learned function of the noise level and the conditions
            for each channel that starts at zero: what c_skip is to D (Karras et al. 2022, eq. 7).
        tokens: whether the tokens of conditions are attended to after each self-attention (Chen et
            al. 2023, PixArt-alpha) or appended to the sequence (Peebles and Xie 2023, sec. 3.2).

    Raises:
        InputError: sizes that do not fit.
    """
    fits(shape, width, depth, heads, patch, mlp_ratio)
    if bottleneck < 0:
        raise InputError(f"network 'dit': bottleneck = {bottleneck}: expected 0 for none, or more.")
    declared = shape, conditions, tables, outputs, noise_kind, second, checkpointing
    return DiT(*declared, width, depth, heads, patch, mlp_ratio, bottleneck, skip, tokens)


def blocks(depth: int = 4) -> tuple[str, ...]:
    """The names of the features of `dit`."""
    return tuple(f"block{i}" for i in range(depth))


def rank(shape: tuple[int, ...], width: int = 64, patch: int = 2, skip: bool = False) -> int:
    """The features of all tokens, which F is an affine function of; with a skip, nothing limits it.

    A patch of F has no more dimensions than it has numbers.
    """
    fits_images(shape, patch)
    patches = shape[1] * shape[2] // patch**2
    return math.prod(shape) if skip else patches * min(width, shape[0] * patch**2)


@hookimpl
def testbed_networks() -> Iterable[Network]:
    """The diffusion transformer."""
    yield Network(
        "dit",
        dit,
        noise=NOISE,
        shapes=((1, 8, 8), (3, 4, 6)),
        condition_kinds=KINDS,
        features=blocks,
        rank=rank,
        reference="Peebles and Xie 2023, arXiv:2212.09748, sec. 3",
    )
