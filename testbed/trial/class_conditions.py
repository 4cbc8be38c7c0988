"""The conditions of a trial: whether they fit its data and network, and those of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from testbed.components.condition import ConditionTable
from testbed.components.dataset import Data
from testbed.components.guidance import GuidanceMethod
from testbed.components.network import Network
from testbed.errors import InputError, unknown
from testbed.training.conditions import OFF


def problems(
    conditions: Mapping[str, float], way: GuidanceMethod, network: Network, data: Data
) -> Iterator[str]:
    """Why a model cannot have these conditions, or not be guided so; nothing where it can."""
    for name in conditions:
        if name not in data.classes:
            yield f"conditions.{name}: {unknown('condition', name, data.classes)}"
        elif name in data.tables and not network.takes(name, data.tables[name].kind):
            kinds = ", ".join(network.condition_kinds) or "classes alone"
            yield (
                f"conditions.{name} has values of kind {data.tables[name].kind!r}: "
                f"{network.label} takes {kinds}."
            )
        elif name not in data.tables and not network.takes(name):
            yield (
                f"conditions.{name}: {network.label} takes no such condition: its build asks for "
                "neither conditions nor labels."
                if name == "label"
                else f"conditions.{name}: {network.label} takes no such condition: its build does "
                "not ask for conditions."
            )
    yield from way.misfits(conditions, data)


def drops_all(conditions: Mapping[str, float]) -> bool:
    """Whether a model with conditions is trained with all of them switched off, too."""
    return bool(conditions) and all(rate > 0 for rate in conditions.values())


def built(
    conditions: Mapping[str, float], data: Data
) -> tuple[int, dict[str, int], dict[str, ConditionTable]]:
    """What a network is built for: numbers of labels and of other classes, and tables of values."""
    classes = data.classes if conditions else {}
    tables = {name: data.tables[name] for name in conditions if name in data.tables}
    further = {name: classes[name] for name in conditions if name not in ("label", *tables)}
    return (classes["label"] if "label" in conditions else 0), further, tables


def chosen(
    wanted: Mapping[str, int],
    conditions: Mapping[str, float],
    way: GuidanceMethod,
    data: Data,
    n: int,
) -> dict[str, Tensor]:
    """The condition of n samples with the classes asked for; what is not named is switched off.

    Raises:
        InputError: a condition or a class that there is not, or one left out that cannot be.
    """
    names = way.classes(conditions)
    found = {}
    for name, value in wanted.items():
        if name not in names:
            raise InputError(f"--condition {name}={value}: {unknown('condition', name, names)}")
        if not OFF <= value < data.classes[name]:
            raise InputError(
                f"--condition {name}={value}: expected 0 to {data.classes[name] - 1}, or {OFF} to "
                "switch it off."
            )
    for name in names:
        value = wanted.get(name, OFF)
        if value == OFF and conditions.get(name) == 0:
            raise InputError(
                f"--condition: {name} was never switched off in training: give it a class, such as "
                f"--condition {name}=0."
            )
        found[name] = torch.full((n,), value)
    return found
