"""A residual multilayer perceptron for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from testbed.components.condition import KINDS, ConditionTable
from testbed.components.network import Network
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.networks.condition_values import ImageEmbedding, TokenPool, VectorEmbedding

DEEPEST, WIDEST = 1000, 65536
INDEX_UNIT = 64.0
"""An index counts in units of this many levels: the fastest wave of `mlp` then turns by one radian
from level to level, and the slowest tells 12,000 levels apart."""


class FourierFeatures(nn.Module):
    """cos and sin of c_noise at `count` frequencies, geometric from `low` to `high` (rad per unit).

    c_noise (B,) -> (B, 2 count).
    """

    frequencies: Tensor

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__()
        grid = torch.logspace(math.log10(low), math.log10(high), count)
        self.register_buffer("frequencies", grid, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Block(nn.Module):
    """h + W2 silu(W1 silu(norm h) + noise embedding)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.inner(nn.functional.silu(self.norm(h))) + embedding
        result: Tensor = h + self.outer(nn.functional.silu(inner))
        return result


class Features(nn.Module):
    """The layers before the last: x (B, *shape) and c_noise (B,) -> (B, width)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        depth: int,
        features: int,
        frequencies: tuple[float, float],
    ) -> None:
        super().__init__()
        self.embed_noise = FourierFeatures(features, *frequencies)
        self.noise = nn.Linear(2 * features, width)
        self.first = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def features(
        self,
        x: Tensor,
        c_noise: Tensor,
        added: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """The features (B, width).

        `added` (B, width) is added to the embedding of c_noise, `beside` (B, width) to the first
        layer, as inputs beside x are.
        """
        embedding = nn.functional.silu(self.noise(self.embed_noise(c_noise)))
        if added is not None:
            embedding = embedding + added
        h = self.first(x.flatten(1))
        if beside is not None:
            h = h + beside
        for block in self.blocks:
            h = block(h, embedding)
        features: Tensor = self.norm(h)
        return features


class ResidualMLP(Features):
    """x (B, *shape) and c_noise (B,) to F (B, *shape); the last layer starts at zero.

    With several `outputs` F has that many times the channels, (B, outputs C, ...); all weights but
    the last layer's start as with one output.

    Each of the `conditions`, name -> number of classes, has an embedding of `condition[name]` (B,)
    int64, which is added to that of c_noise; of the `tables` a vector and the pooled tokens are
    added there too, and an image enters the first layer. A class of -1, or a name left out, adds
    nothing: with all conditions switched off F is that of the unconditional network. The embeddings
    start at zero, so that every class starts as the unconditional network does, with the same other
    weights; they get their first gradients together with the blocks, since only the last layer lies
    in between.

    Raises:
        InputError: at a call, a condition that the network was built without.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, int],
        width: int,
        depth: int,
        features: int,
        frequencies: tuple[float, float],
        outputs: int = 1,
        tables: Mapping[str, ConditionTable] | None = None,
    ) -> None:
        super().__init__(shape, width, depth, features, frequencies)
        self.shape = (outputs * shape[0], *shape[1:])
        self.last = nn.Linear(width, outputs * math.prod(shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.conditions = nn.ModuleDict(
            {name: nn.Embedding(classes, width) for name, classes in conditions.items()}
        )
        for embedding in self.conditions.parameters():
            nn.init.zeros_(embedding)
        kinds = {"vector": VectorEmbedding, "tokens": TokenPool, "image": ImageEmbedding}
        self.tables = nn.ModuleDict(
            {name: kinds[table.kind](table, width) for name, table in (tables or {}).items()}
        )

    def forward(
        self, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        added: Tensor | None = None
        beside: Tensor | None = None
        for name, classes in (condition or {}).items():
            row = self._embedded(name, classes)
            if name in self.tables and isinstance(self.tables[name], ImageEmbedding):
                beside = row if beside is None else beside + row
            else:
                added = row if added is None else added + row
        features = self.features(x, c_noise, added, beside)
        F: Tensor = self.last(features).view(len(x), *self.shape)
        return F

    def _embedded(self, name: str, classes: Tensor) -> Tensor:
        """The embedding of a condition's classes, (B, width), 0 where it is off."""
        if name in self.tables:
            found: Tensor = self.tables[name](classes)
            return found
        if name not in self.conditions:
            raise InputError(
                f"this network was built without condition {name!r} and got it. Built with: "
                f"{', '.join([*self.conditions, *self.tables]) or 'none'}."
            )
        on = (classes >= 0)[:, None]
        return torch.where(on, self.conditions[name](classes.clamp(min=0)), 0.0)


def mlp(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    width: int = 128,
    depth: int = 3,
    features: int = 16,
    frequencies: tuple[float, ...] = (1 / 64, 64.0),
    outputs: int = 1,
    noise_kind: str = "sigma",
    tables: Mapping[str, ConditionTable] | None = None,
) -> ResidualMLP:
    """A residual MLP with `depth` blocks of `width` units; it embeds c_noise/64 where that is an
    index. The weights are the same whatever the kind of c_noise.

    Raises:
        InputError: an option that is not positive, or larger than 1000 blocks or 65536 units.
    """
    if depth > DEEPEST or max(width, features) > WIDEST:
        raise InputError(
            f"network 'mlp': width = {width}, depth = {depth}, features = {features}: expected "
            f"depth up to {DEEPEST}, width and features up to {WIDEST}."
        )
    if min(width, depth, features) < 1 or len(frequencies) != 2 or min(frequencies) <= 0:
        raise InputError(
            f"network 'mlp': width = {width}, depth = {depth}, features = {features} must be "
            f"positive and frequencies = {frequencies} two positive numbers."
        )
    unit = INDEX_UNIT if noise_kind == "index" else 1.0
    low, high = (frequency / unit for frequency in frequencies)
    return ResidualMLP(shape, conditions, width, depth, features, (low, high), outputs, tables)


def mlp_index(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    width: int = 128,
    depth: int = 3,
    features: int = 16,
    frequencies: tuple[float, ...] = (1e-4, 1.0),
    outputs: int = 1,
    tables: Mapping[str, ConditionTable] | None = None,
) -> ResidualMLP:
    """`mlp` with the frequencies that tell whole numbers apart (Ho et al. 2020, app. B).

    Raises:
        InputError: as `mlp`.
    """
    return mlp(shape, conditions, width, depth, features, frequencies, outputs, tables=tables)


@hookimpl
def testbed_networks() -> Iterable[Network]:
    """The residual MLP, for noise levels as values and as indices."""
    yield Network(
        "mlp",
        mlp,
        # cos and sin are defined everywhere; beyond these ranges the slowest wave repeats itself.
        noise={
            "sigma": (0.0, 200.0),
            "log_sigma": (-100.0, 100.0),
            "time": (0.0, 1.0),
            "index": (0.0, 12_000.0),
        },
        condition_kinds=KINDS,
    )
    index = {"index": (0.0, 20_000.0)}
    yield Network("mlp_index", mlp_index, noise=index, condition_kinds=KINDS)
