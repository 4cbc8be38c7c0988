"""How networks take conditions: each kind of values as a module that is called with their numbers.

A number is (B,) int64, and -1 switches the condition off for a sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from testbed.components.condition import ConditionTable
from testbed.errors import InputError
from testbed.networks.embeddings import zero_linear

Condition = Mapping[str, Tensor]
"""Names of conditions -> numbers (B,) int64."""


def of_kind(tables: Mapping[str, ConditionTable], kind: str) -> dict[str, ConditionTable]:
    """The tables of a kind, in their order."""
    return {name: table for name, table in tables.items() if table.kind == kind}


def numbers(condition: Condition | None, name: str, x: Tensor) -> Tensor:
    """The numbers of a condition, (B,) int64: -1 for all where it is left out; B that of x."""
    given = (condition or {}).get(name)
    return torch.full((x.shape[0],), -1, device=x.device) if given is None else given


def check(condition: Condition | None, names: tuple[str, ...]) -> None:
    """InputError for a condition that a network was built without."""
    for name in condition or {}:
        if name not in names:
            raise InputError(
                f"this network was built without condition {name!r} and got it. Built with: "
                f"{', '.join(names) or 'none'}."
            )


class Values(nn.Module):
    """The values that the numbers of a condition stand for, frozen, and no part of the weights.

    numbers (B,) -> (B, *shape) in the dtype of the table; zeros where it is off.
    """

    rows: Tensor
    mask: Tensor

    def __init__(self, table: ConditionTable) -> None:
        super().__init__()
        self.register_buffer("rows", table.rows, persistent=False)
        if table.kind == "tokens":
            every = torch.ones(table.rows.shape[:2], dtype=torch.bool)
            self.register_buffer(
                "mask", every if table.mask is None else table.mask, persistent=False
            )

    def forward(self, number: Tensor) -> Tensor:
        rows = self.rows[number.clamp(min=0)]
        on = (number >= 0).view(-1, *[1] * (rows.ndim - 1))
        return torch.where(on, rows, 0.0)

    def present(self, number: Tensor) -> Tensor:
        """Where there is a token, (B, T) bool: nowhere where the condition is off."""
        return self.mask[number.clamp(min=0)] & (number >= 0)[:, None]


class ClassEmbedding(nn.Embedding):
    """A learned row for each class, zero at the start; nothing is added where it is off."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, number: Tensor) -> Tensor:
        row = super().forward(number.clamp(min=0))
        return torch.where((number >= 0)[:, None], row, 0.0)


class NullableClassEmbedding(nn.Embedding):
    """A learned row for each class and one more for none (Ho and Salimans 2022), (B, width)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, number: Tensor) -> Tensor:
        return super().forward(torch.where(number >= 0, number, self.num_embeddings - 1))


class VectorEmbedding(nn.Module):
    """W v of the numbers v, all in one row, that the number stands for; W is zero at the start.

    (B,) -> (B, width).
    """

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__()
        self.values = Values(table)
        self.project = zero_linear(math.prod(table.shape), width, bias=False)

    def forward(self, number: Tensor) -> Tensor:
        flat = self.values(number).flatten(1)
        row: Tensor = self.project(flat.to(self.project.weight.dtype))
        return row


class MeanTokenEmbedding(nn.Module):
    """W times the mean of the tokens that are no padding; W is zero at the start.

    (B,) -> (B, width).
    """

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__()
        self.values = Values(table)
        self.project = zero_linear(table.shape[1], width, bias=False)

    def forward(self, number: Tensor) -> Tensor:
        present = self.values.present(number)[:, :, None]
        total = torch.where(present, self.values(number), 0.0).sum(1)
        mean = total / present.sum(1).clamp(min=1)
        row: Tensor = self.project(mean.to(self.project.weight.dtype))
        return row


class AddedConditions(nn.ModuleDict):
    """What conditions add to the embedding of the noise level: a sum over their names, (B, width).

    Each of the modules maps numbers (B,) to (B, width).
    """

    def forward(self, condition: Condition | None, x: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for name, module in self.items():
            if isinstance(module, NullableClassEmbedding) or name in (condition or {}):
                row = module(numbers(condition, name, x))
                total = row if total is None else total + row
        return total


class Tokens(nn.Module):
    """The tokens of all conditions of that kind, projected to one width, after one for none.

    The first is learned and always there, so that attention has something to look at where all is
    off. Conditions that have tokens in every place of every row, one of which stands for off, need
    none. Returns tokens (B, 1 + T, width) and where there are any, (B, 1 + T) bool; T without it.
    """

    def __init__(self, tables: Mapping[str, ConditionTable], width: int) -> None:
        super().__init__()
        complete = all(one.mask is None and one.off is not None for one in tables.values())
        self.none = None if complete else nn.Parameter(0.02 * torch.randn(1, width))
        self.values = nn.ModuleDict({name: Values(table) for name, table in tables.items()})
        self.project = nn.ModuleDict(
            {name: nn.Linear(table.shape[1], width) for name, table in tables.items()}
        )

    def forward(self, condition: Condition | None, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens, present = [], []
        if self.none is not None:
            tokens.append(self.none.expand(x.shape[0], 1, -1))
            present.append(torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device))
        for name, values in self.values.items():
            assert isinstance(values, Values)
            number, project = numbers(condition, name, x), self.project[name]
            assert isinstance(project, nn.Linear)
            tokens.append(project(values(number).to(project.weight.dtype)))
            present.append(values.present(number))
        return torch.cat(tokens, 1), torch.cat(present, 1)


class Images(nn.Module):
    """The images of all conditions of that kind as channels beside those of x; zeros where off.

    Raises:
        InputError: at building, an image of another size than x, whose shape is `shape`.
    """

    def __init__(self, tables: Mapping[str, ConditionTable], shape: tuple[int, ...]) -> None:
        super().__init__()
        for name, table in tables.items():
            if table.shape[1:] != shape[1:]:
                raise InputError(
                    f"condition {name!r} has images of shape {table.shape}, and samples have "
                    f"{shape}: height and width must be equal."
                )
        self.values = nn.ModuleDict({name: Values(table) for name, table in tables.items()})
        self.channels = sum(table.shape[0] for table in tables.values())

    def forward(self, condition: Condition | None, x: Tensor) -> Tensor:
        parts = [values(numbers(condition, name, x)) for name, values in self.values.items()]
        return torch.cat(parts, 1).to(x.dtype)
