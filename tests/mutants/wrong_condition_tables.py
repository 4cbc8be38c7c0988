"""Wrong networks with conditions that stand for values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mutants.wrong import wrong
from torch import Tensor, nn

import testbed
from testbed.components.condition import KINDS
from testbed.networks.mlp import ResidualMLP

NOISE = {"log_sigma": (-2.4, 2.4)}
Tables = Mapping[str, testbed.ConditionTable]


class OfValues(ResidualMLP):
    """The residual MLP with conditions that stand for values, to be spoilt."""

    def __init__(self, shape: tuple[int, ...], tables: Tables) -> None:
        super().__init__(shape, {}, 16, 1, 4, (1 / 64, 64.0), tables=tables)


def of_values(kind: type[nn.Module], kinds: tuple[Any, ...] = KINDS) -> testbed.Network:
    def build(shape: tuple[int, ...], tables: Tables) -> nn.Module:
        return kind(shape, tables)

    return testbed.Network("wrong", build, NOISE, condition_kinds=kinds)


class FirstValue(OfValues):
    """The first value where a condition is off."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        given = condition and {name: rows.clamp(min=0) for name, rows in condition.items()}
        return super().forward(x, c_noise, given)


class OffForAll(OfValues):
    """A condition is off for all where it is off for one."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        given = {
            name: torch.where((rows < 0).any(), -1, rows)
            for name, rows in (condition or {}).items()
        }
        return super().forward(x, c_noise, given)


class VectorsAlone(OfValues):
    """Tokens and images are not looked at."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        given = {name: rows for name, rows in (condition or {}).items() if "vector" in name}
        return super().forward(x, c_noise, given)


def spoilt_tables(change: Callable[[testbed.ConditionTable], testbed.ConditionTable]) -> Any:
    """A network of tables that are changed before they are used."""

    class Spoilt(OfValues):
        def __init__(self, shape: tuple[int, ...], tables: Tables) -> None:
            super().__init__(shape, {name: change(table) for name, table in tables.items()})

    return Spoilt


def unmasked(table: testbed.ConditionTable) -> testbed.ConditionTable:
    return testbed.ConditionTable(table.kind, table.rows)


def zero_padding(table: testbed.ConditionTable) -> testbed.ConditionTable:
    """Padding is zero, and takes its share as any token."""
    if table.mask is None:
        return table
    return testbed.ConditionTable(table.kind, table.rows * table.mask[..., None])


def with_places(table: testbed.ConditionTable) -> testbed.ConditionTable:
    """A token's place is added to its state."""
    if table.kind != "tokens":
        return table
    places = torch.arange(table.rows.shape[1], dtype=torch.float32)[:, None]
    return testbed.ConditionTable(table.kind, table.rows + places, table.mask)


def standardised(table: testbed.ConditionTable) -> testbed.ConditionTable:
    """The values have mean 0 and deviation 1 over the rows of the table."""
    rows = (table.rows - table.rows.mean(0)) / (1e-3 + table.rows.std(0))
    return testbed.ConditionTable(table.kind, rows, table.mask)


class Stored(OfValues):
    """The values are stored with the weights."""

    def __init__(self, shape: tuple[int, ...], tables: Tables) -> None:
        super().__init__(shape, tables)
        for name, table in tables.items():
            self.register_buffer(f"of_{name}", table.rows)


class Unused(OfValues):
    """A layer for values that is never used."""

    def __init__(self, shape: tuple[int, ...], tables: Tables) -> None:
        super().__init__(shape, tables)
        self.extra = nn.Linear(3, 3 * len(tables) + 1)


wrong("the first value where a condition is off", of_values(FirstValue), "tables_matter")
wrong("off for all where it is off for one", of_values(OffForAll), "tables_matter", "tables_vmap")
wrong("tokens and images not looked at", of_values(VectorsAlone), "tables_matter", "tables_learn")
wrong(
    "padding attended to",
    of_values(spoilt_tables(unmasked), ("tokens",)),
    "padding",
    "padding_place",
)
wrong("padding of zeros attended to", of_values(spoilt_tables(zero_padding)), "padding_place")
wrong("tokens told apart by their place", of_values(spoilt_tables(with_places)), "padding_place")
wrong("standardised over the table", of_values(spoilt_tables(standardised)), "further_rows")
wrong("values stored with the weights", of_values(Stored), "further_rows")
wrong("a layer beside the values that is never used", of_values(Unused), "learns", "tables_learn")
