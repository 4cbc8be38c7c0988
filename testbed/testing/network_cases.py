"""What networks are tried on: samples, noise levels and conditions, and modules that are awake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from testbed.components.condition import ConditionTable, Kind
from testbed.components.network import Network
from testbed.testing.cases import awaken, draws

CLASSES = 3
UNSEEN = {"sigma": (0.0, 200.0), "time": (0.0, 1.0)}
"""What a blind network is given, which must not see it."""


def kinds(n: Network) -> Mapping[str, tuple[float, float]]:
    """The kinds of c_noise that a network is tried with, and their ranges."""
    return UNSEEN if n.blind else n.noise


def noise_levels(n: Network, kind: str, count: int) -> Tensor:
    """`count` values of c_noise over the declared range, its ends included; float32."""
    low, high = kinds(n)[kind]
    values = torch.linspace(low, high, count)
    return values.round() if kind == "index" else values


def batch(
    n: Network, shape: tuple[int, ...], count: int = 5, kind: str = ""
) -> tuple[Tensor, Tensor]:
    """x (count, *shape) and c_noise (count,) of a kind, by default of the first declared one."""
    kind = kind or next(iter(kinds(n)))
    return draws((count, *shape), 61, torch.float32), noise_levels(n, kind, count)


def labels_of(n: Network) -> int:
    """CLASSES for a network that takes labels, else 0."""
    return CLASSES if n.takes("label") else 0


def condition_of(labels: int, count: int) -> dict[str, Tensor] | None:
    """Classes where the network was built with them."""
    return {"label": torch.arange(count) % labels} if labels else None


def conditions_of(labels: int, count: int) -> Iterator[Mapping[str, Tensor] | None]:
    """None, and classes where the network has them."""
    yield None
    if labels:
        yield condition_of(labels, count)


def table_of(kind: Kind, shape: tuple[int, ...]) -> ConditionTable:
    """A table of four values for samples of a shape; the last has the values of the first.

    Of tokens the last has other ones where there is padding.
    """
    size = {"vector": (3,), "tokens": (4, 5), "image": (2, *shape[1:])}[kind]
    rows = draws((4, *size), 63, torch.float32)
    if kind != "tokens":
        rows[3] = rows[0]
        return ConditionTable(kind, rows)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 3] = mask[3, 3] = mask[1, 2:] = False
    rows[3, :3] = rows[0, :3]
    return ConditionTable(kind, rows, mask)


def tables_of(n: Network, shape: tuple[int, ...]) -> dict[str, ConditionTable]:
    """A table of each kind that the network takes for samples of a shape, by the kind's name."""
    return {
        kind: table_of(kind, shape)
        for kind in n.condition_kinds
        if kind != "image" or len(shape) == 3
    }


def awake(n: Network, shape: tuple[int, ...], labels: int = 0, kind: str = "") -> nn.Module:
    """The network for a kind of c_noise, with no parameter at zero."""
    module = n(shape, labels, 0, noise_kind=kind)
    awaken(module)
    return module.eval()
