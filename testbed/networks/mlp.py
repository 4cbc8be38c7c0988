"""A residual multilayer perceptron for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from testbed.components.condition import KINDS, ConditionTable
from testbed.components.network import Network
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.networks.conditions import (
    AddedConditions,
    ClassEmbedding,
    Condition,
    MeanTokenEmbedding,
    VectorEmbedding,
    check,
    of_kind,
)
from testbed.networks.embeddings import (
    INDEX_UNIT,
    NO_SECOND,
    RANGES,
    FourierFeatures,
    zero_linear,
)

DEEPEST, WIDEST = 1000, 65536


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

    def features(self, x: Tensor, c_noise: Tensor, added: Tensor | None = None) -> Tensor:
        """The features (B, width); `added` (B, width) is added to the embedding of c_noise."""
        *_, h = self.activations(x, c_noise, added)
        features: Tensor = self.norm(h)
        return features

    def activations(
        self,
        x: Tensor,
        c_noise: Tensor,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """h (B, width) before the blocks and after each of them.

        `added` (B, width) is added to the embedding of c_noise, `first` to what x becomes.
        """
        embedding = nn.functional.silu(self.noise(self.embed_noise(c_noise)))
        if added is not None:
            embedding = embedding + added
        h = self.first(x.flatten(1))
        if first is not None:
            h = h + first
        yield h
        for block in self.blocks:
            h = block(h, embedding)
            yield h


class ResidualMLP(Features):
    """x (B, *shape) and c_noise (B,) to F (B, *shape); the last layer starts at zero.

    With `outputs`, name -> number of channels, it returns all of them, (B, sum, ...); all weights
    but the last layer's start as with F alone.

    Each of the `conditions`, name -> number of classes, has an embedding of `condition[name]` (B,)
    int64, which is added to that of c_noise. A class of -1, or a name left out, adds nothing: with
    all conditions switched off F is that of the unconditional network. Of the `tables`, vectors and
    the mean of tokens are added in the same way, through a matrix; images are further inputs of the
    first layer. Embeddings and matrices start at zero, so that every class starts as the
    unconditional network does, with the same other weights; they get their first gradients together
    with the blocks, since only the last layer lies in between. So does the matrix of a second noise
    level, whose waves are added to the embedding.

    Raises:
        InputError: at a call, a condition that the network was built without, or a second noise
            level of one that was built for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, int],
        width: int,
        depth: int,
        features: int,
        frequencies: tuple[float, float],
        outputs: Mapping[str, int] | None = None,
        tables: Mapping[str, ConditionTable] | None = None,
        second: bool = False,
    ) -> None:
        super().__init__(shape, width, depth, features, frequencies)
        tables = tables or {}
        self.shape = (sum(outputs.values()) if outputs else shape[0], *shape[1:])
        self.last = nn.Linear(width, math.prod(self.shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.conditions = AddedConditions(
            {name: ClassEmbedding(classes, width) for name, classes in conditions.items()}
            | {name: VectorEmbedding(t, width) for name, t in of_kind(tables, "vector").items()}
            | {name: MeanTokenEmbedding(t, width) for name, t in of_kind(tables, "tokens").items()}
        )
        self.images = AddedConditions(
            {name: VectorEmbedding(t, width) for name, t in of_kind(tables, "image").items()}
        )
        self.second = zero_linear(2 * features, width, bias=False) if second else None

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        *_, h = self._activations(x, c_noise, condition, second)
        return self._output(h)

    def with_features(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """F, and h after each of the blocks, "block0", ..., (B, width)."""
        _, *after = self._activations(x, c_noise, condition, second)
        return self._output(after[-1]), {f"block{i}": h for i, h in enumerate(after)}

    def _activations(
        self, x: Tensor, c_noise: Tensor, condition: Condition | None, second: Tensor | None
    ) -> Iterator[Tensor]:
        check(condition, (*self.conditions, *self.images))
        added = self.conditions(condition, x)
        if second is not None:
            if self.second is None:
                raise InputError(NO_SECOND)
            waves = self.second(self.embed_noise(second))
            added = waves if added is None else added + waves
        return self.activations(x, c_noise, added, self.images(condition, x))

    def _output(self, h: Tensor) -> Tensor:
        F: Tensor = self.last(self.norm(h)).view(len(h), *self.shape)
        return F


def checked(width: int, depth: int, features: int, frequencies: tuple[float, ...]) -> None:
    """InputError unless all are positive, with up to 1000 blocks of 65536 units."""
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


def mlp(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable] | None = None,
    outputs: Mapping[str, int] | None = None,
    noise_kind: str = "sigma",
    second: bool = False,
    width: int = 128,
    depth: int = 3,
    features: int = 16,
    frequencies: tuple[float, ...] = (1 / 64, 64.0),
) -> ResidualMLP:
    """A residual MLP with `depth` blocks of `width` units; it embeds c_noise/64 where that is an
    index. The weights are the same whatever the kind of c_noise.

    Raises:
        InputError: an option that is not positive, or larger than 1000 blocks or 65536 units.
    """
    checked(width, depth, features, frequencies)
    unit = INDEX_UNIT if noise_kind == "index" else 1.0
    low, high = (frequency / unit for frequency in frequencies)
    sizes = width, depth, features, (low, high)
    return ResidualMLP(shape, conditions, *sizes, outputs, tables, second)


def mlp_index(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable] | None = None,
    outputs: Mapping[str, int] | None = None,
    second: bool = False,
    width: int = 128,
    depth: int = 3,
    features: int = 16,
    frequencies: tuple[float, ...] = (1e-4, 1.0),
) -> ResidualMLP:
    """`mlp` with the frequencies that tell whole numbers apart (Ho et al. 2020, app. B).

    Raises:
        InputError: as `mlp`.
    """
    sizes = width, depth, features, frequencies
    return mlp(shape, conditions, tables, outputs, "sigma", second, *sizes)


class BlindMLP(ResidualMLP):
    """`ResidualMLP` that is told c_noise = 0 whatever the noise level."""

    def activations(
        self,
        x: Tensor,
        c_noise: Tensor,
        added: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Iterator[Tensor]:
        return super().activations(x, torch.zeros_like(c_noise), added, first)


def mlp_blind(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable] | None = None,
    outputs: Mapping[str, int] | None = None,
    width: int = 128,
    depth: int = 3,
) -> ResidualMLP:
    """`mlp` without the noise level (Sun et al. 2025): weights and their start are the same.

    Raises:
        InputError: as `mlp`.
    """
    sizes = width, depth, 16, (1 / 64, 64.0)
    checked(*sizes)
    return BlindMLP(shape, conditions, *sizes, outputs, tables)


def blocks(depth: int = 3) -> tuple[str, ...]:
    """The names of the features of `mlp`."""
    return tuple(f"block{i}" for i in range(depth))


def rank(shape: tuple[int, ...], width: int = 128) -> int:
    """The units of the layer before the last, which F is an affine function of."""
    return width


@hookimpl
def testbed_networks() -> Iterable[Network]:
    """The residual MLP, for noise levels as values and as indices, and without them."""
    yield Network(
        "mlp",
        mlp,
        noise=RANGES,
        condition_kinds=KINDS,
        features=blocks,
        rank=rank,
    )
    yield Network(
        "mlp_index",
        mlp_index,
        noise={"index": (0.0, 20_000.0)},
        condition_kinds=KINDS,
        features=blocks,
        rank=rank,
    )
    yield Network(
        "mlp_blind",
        mlp_blind,
        noise={},
        condition_kinds=KINDS,
        features=blocks,
        rank=rank,
        blind=True,
        reference="Sun et al. 2025, arXiv:2502.13129",
    )
