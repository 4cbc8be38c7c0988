"""The conditions of a trial: whether they fit its data and network, and those of its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from testbed.components.condition import ConditionTable
from testbed.components.dataset import Data
from testbed.components.guidance import GuidanceMethod
from testbed.components.metric import Metric
from testbed.components.network import Network
from testbed.errors import InputError, unknown
from testbed.sampling.guidance_methods import ClassifierFreeGuidance
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


def unmeasured(metric: Metric, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
    """Why a metric of samples with a condition cannot be of these conditions."""
    if not conditions:
        names = ", ".join(data.classes)
        yield (
            f"{metric.label} is of samples drawn with a condition, and the trial has none: write "
            f"conditions = {{ NAME = 0.1 }} with one of the data's: {names}."
        )
    if data.conditional is not None:
        for name in conditions:
            if name not in data.conditional.components:
                known = ", ".join(data.conditional.components)
                yield (
                    f"{metric.label}: the exact distributions given {name!r} are not known, those "
                    f"given {known} are."
                )


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


def negatives(
    wanted: Mapping[str, int], conditions: Mapping[str, float], way: GuidanceMethod, data: Data
) -> dict[str, int]:
    """The classes of D_n that `--negative` names.

    Raises:
        InputError: guidance without D_n, a condition or a class that there is not, or a condition
            left out that cannot be switched off.
    """
    if not isinstance(way, ClassifierFreeGuidance):
        raise InputError("--negative: the trial's guidance is not classifier_free, which has one.")
    for name, value in wanted.items():
        _check("--negative", name, value, list(conditions), data)
    for name, rate in conditions.items():
        if rate == 0 and wanted.get(name, OFF) == OFF:
            raise InputError(
                f"--negative: {name} was never switched off in training: give it a class, such as "
                f"--negative {name}=0."
            )
    return {name: value for name, value in wanted.items() if value != OFF}


def _check(option: str, name: str, value: int, names: Sequence[str], data: Data) -> None:
    """InputError unless a condition has this class, or it is OFF."""
    if name not in names:
        raise InputError(f"{option} {name}={value}: {unknown('condition', name, names)}")
    if not OFF <= value < data.classes[name]:
        raise InputError(
            f"{option} {name}={value}: expected 0 to {data.classes[name] - 1}, or {OFF} to "
            "switch it off."
        )


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
        _check("--condition", name, value, names, data)
    for name in names:
        value = wanted.get(name, OFF)
        if value == OFF and conditions.get(name) == 0:
            raise InputError(
                f"--condition: {name} was never switched off in training: give it a class, such as "
                f"--condition {name}=0."
            )
        found[name] = torch.full((n,), value)
    return found
