"""Networks that do not do what they declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mutants.wrong import wrong
from mutants.wrong_worlds import NOISE, Small, network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import testbed
from testbed.components.condition import ConditionTable
from testbed.networks.conditions import Values
from testbed.networks.mlp import ResidualMLP

SIZES = (16, 2, 4, (1 / 64, 64.0))


class Two(ResidualMLP):
    """The residual MLP with a second noise level, to be spoilt."""

    def __init__(self, shape: tuple[int, ...], second: bool) -> None:
        super().__init__(shape, {}, *SIZES, second=second)


class OneLevel(Two):
    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        return super().forward(x, c, condition)


class ZeroForNone(Two):
    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        if second is None and self.second is not None:
            second = torch.zeros_like(c)
        return super().forward(x, c, condition, second)


def two(kind: type[Two]) -> testbed.Network:
    def build(shape: tuple[int, ...], second: bool) -> nn.Module:
        return kind(shape, second)

    return testbed.Network("wrong", build, NOISE)


wrong("does not look at the second noise level", two(OneLevel), "second")
wrong("a second noise level of 0 for none", two(ZeroForNone), "second")


class Copied(Small):
    def with_features(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        F, found = super().with_features(*inputs)
        return F, {name: h.clone() for name, h in found.items()}


class Detached(Small):
    def with_features(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        F, found = super().with_features(*inputs)
        return F, {name: h.detach() + 0 * F.sum() for name, h in found.items()}


class Rescaled(Small):
    def with_features(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        F, found = super().with_features(*inputs)
        return F * (1 + 2.0**-20), found


def featured(kind: type[Small], *names: str) -> testbed.Network:
    def build(shape: tuple[int, ...], labels: int) -> nn.Module:
        return kind(shape, labels)

    return testbed.Network("wrong", build, NOISE, features=lambda: names)


wrong("features that F does not depend on", featured(Copied, "block0"), "features")
wrong("features that do not depend on x", featured(Detached, "block0"), "features")
wrong("another F with its features", featured(Rescaled, "block0"), "features")
wrong("a feature that is declared and not there", featured(Small, "block0", "late"), "features")


# Of 16 units normalisation leaves 15 dimensions.
wrong("F of more dimensions than are declared", network(Small, rank=lambda: 14), "rank")


class Repeated(ResidualMLP):
    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        F = super().forward(x, c, condition, second)
        return F[:, :1].expand_as(F).clone() if len(F[0]) > len(x[0]) else F


def repeated(shape: tuple[int, ...], outputs: Mapping[str, int]) -> nn.Module:
    return Repeated(shape, {}, *SIZES, outputs)


def first_alone(shape: tuple[int, ...], outputs: Mapping[str, int]) -> nn.Module:
    return ResidualMLP(shape, {}, *SIZES)


wrong("one channel for all outputs", testbed.Network("wrong", repeated, NOISE), "outputs")
wrong("F alone of several outputs", testbed.Network("wrong", first_alone, NOISE), "outputs")


class Tabled(ResidualMLP):
    """The residual MLP with a vector as a condition, to be spoilt."""

    def __init__(self, shape: tuple[int, ...], tables: Mapping[str, ConditionTable]) -> None:
        super().__init__(shape, {}, *SIZES, tables=tables)
        for module in self.modules():
            if isinstance(module, Values):
                self.spoil(module)

    def spoil(self, values: Values) -> None:
        pass


class Kept(Tabled):
    def spoil(self, values: Values) -> None:
        values.register_buffer("rows", values.rows)


class Counted(Tabled):
    def spoil(self, values: Values) -> None:
        values.rows = values.rows + torch.arange(len(values.rows))[:, None]


class LastForOff(Tabled):
    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        on = {name: torch.where(i < 0, 2, i) for name, i in (condition or {}).items()}
        return super().forward(x, c, on, second)


def tabled(kind: type[Tabled], of: Any = "vector") -> testbed.Network:
    def build(shape: tuple[int, ...], tables: Mapping[str, ConditionTable]) -> nn.Module:
        return kind(shape, tables)

    return testbed.Network("wrong", build, NOISE, condition_kinds=(of,))


class Padded(Tabled):
    def spoil(self, values: Values) -> None:
        values.mask = torch.ones_like(values.mask)


wrong("values that are kept with the weights", tabled(Kept), "condition_values")
wrong("the number of a value beside it", tabled(Counted), "condition_values")
wrong("a value where the condition is off", tabled(LastForOff), "condition_values")
wrong("padding that is seen", tabled(Padded, "tokens"), "condition_values")


def declared_blind(shape: tuple[int, ...], labels: int) -> nn.Module:
    return Small(shape, labels)


wrong(
    "sees the noise level, and is declared blind",
    testbed.Network("wrong", declared_blind, {}, blind=True),
    "sees_noise",
)


class Again(Small):
    checkpointing = True

    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        if not self.checkpointing:
            return super().forward(x, c, condition, second)
        F = checkpoint(super().forward, x, c, condition, second, use_reentrant=False)
        return F * (1 + 2.0**-20)


def again(shape: tuple[int, ...], labels: int, checkpointing: bool) -> nn.Module:
    module = Again(shape, labels)
    module.checkpointing = checkpointing
    return module


def kept(shape: tuple[int, ...], labels: int, checkpointing: bool) -> nn.Module:
    return Small(shape, labels)


wrong("all activations kept", testbed.Network("wrong", kept, NOISE), "checkpointing")
wrong("another F computed again", testbed.Network("wrong", again, NOISE), "checkpointing")


class OfKind(Small):
    """Its weights are those of any kind of c_noise, and a number that is no buffer is not."""

    unit = 1.0

    def forward(self, x: Any, c: Any, condition: Any = None, second: Any = None) -> Tensor:
        return super().forward(x, self.unit * c, condition, second)


def of_kind(shape: tuple[int, ...], labels: int, noise_kind: str) -> nn.Module:
    module = OfKind(shape, labels)
    module.unit = 2.0 if noise_kind == "time" else 1.0
    return module


wrong(
    "a number by the kind of c_noise that a batch of trials does not have",
    testbed.Network("wrong", of_kind, {**NOISE, "time": (0.0, 1.0)}),
    "vmap",
)
