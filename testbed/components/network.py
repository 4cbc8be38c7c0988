"""Networks: modules by name, with the conditions and noise inputs that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from testbed.components.base import Component, Takes, check_shapes
from testbed.components.condition import KINDS, ConditionTable, Kind
from testbed.errors import InputError, unknown


@dataclass(frozen=True)
class Network(Component):
    """A network by name: `build(shape[, labels, conditions, tables, outputs, noise_kind, ...])`.

    Its module is called as `network(x, c_noise, condition)`: x (B, *shape), c_noise (B,),
    condition a mapping of names to classes (B,) int64 or None; it returns (B, *shape). A class of
    -1, or a name left out, switches a condition off. `shape` is that of one sample, `conditions`
    maps the name of every condition to its number of classes, and `labels` is that of "label" (0
    without it). A network whose build takes neither has no condition, and one whose build takes
    `labels` alone has the label alone. A build that takes `tables` has conditions of the kinds that
    `condition_kinds` names, too: `tables` maps their names to the values that the classes stand
    for, and `conditions` has none of them. A build that takes `outputs` gives a module that returns
    `outputs` times the channels, (B, outputs C, ...): 2 for a learned variance, else 1.
    `noise_kind` is the kind of c_noise that it will be given: "sigma", "log_sigma", "time" or
    "index"; it must change no initial weight. `noise` maps each kind of c_noise that the network
    takes to the range that it is made for. `shapes` are
    shapes of samples that it takes, at which the conformance kit checks it: a network of images
    states others than the default, a network of one shape that alone.

    Raises:
        InputError: no shapes, or one that holds anything but positive whole numbers; an unknown
            kind of condition, or kinds of a build that does not take `tables`.
    """

    axis = "network"
    functions: ClassVar = {
        "build": Takes(
            ("shape", "labels", "conditions", "tables", "outputs", "noise_kind"), role="build"
        )
    }
    build: Callable[..., torch.nn.Module]
    noise: Mapping[str, tuple[float, float]]
    shapes: tuple[tuple[int, ...], ...] = ((2,), (1, 8, 8))
    condition_kinds: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shapes(self.label, self.shapes)
        for kind in self.condition_kinds:
            if kind not in KINDS:
                raise InputError(f"{self.label}: {unknown('kind of condition', kind, KINDS)}")
        if bool(self.condition_kinds) != ("tables" in self.signature("build").inputs):
            raise InputError(
                f"{self.label}: condition_kinds = {self.condition_kinds}: a build that takes "
                "`tables` names the kinds of them, and no other does."
            )

    @property
    def takes_outputs(self) -> bool:
        """Whether the network can return several times the channels."""
        return "outputs" in self.signature("build").inputs

    def takes(self, condition: str, kind: Kind | None = None) -> bool:
        """Whether the network can be built for a condition of this name.

        `kind` is that of its values, None for a class.
        """
        if kind is not None:
            return kind in self.condition_kinds
        inputs = self.signature("build").inputs
        return "conditions" in inputs or ("labels" in inputs and condition == "label")

    def __call__(
        self,
        shape: tuple[int, ...],
        labels: int,
        seed: int,
        further: Mapping[str, int] | None = None,
        outputs: int = 1,
        noise_kind: str = "",
        tables: Mapping[str, ConditionTable] | None = None,
    ) -> torch.nn.Module:
        """A network with weights drawn from `seed`; the global generators are left as they were.

        `labels` is the number of classes of the condition "label", 0 for none; `further` maps the
        names of other conditions to theirs, `tables` those of the conditions that stand for values
        to these; `noise_kind` is the first of `noise` where none is
        given.

        Raises:
            InputError: `build` raises, or does not return a module; more than one output of a
                network whose build does not take `outputs`.
        """
        if outputs != 1 and not self.takes_outputs:
            raise InputError(
                f"{self.label}: {outputs} outputs were asked for, and its build does not take "
                "`outputs`."
            )
        conditions = {**({"label": labels} if labels else {}), **(further or {})}
        signature = self.signature("build")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = signature(
                options=self.options,
                shape=shape,
                labels=labels,
                conditions=conditions,
                tables=tables or {},
                outputs=outputs,
                noise_kind=noise_kind or next(iter(self.noise), ""),
            )
        if not isinstance(network, torch.nn.Module):
            raise signature.wrong("a torch.nn.Module", network)
        return network
