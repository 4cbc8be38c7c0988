"""Networks: modules by name, with the conditions, noise inputs and outputs that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from testbed.components.base import Component, Takes, check_shapes
from testbed.components.condition import KINDS, ConditionTable, Kind
from testbed.errors import InputError, unknown
from testbed.random import seeded

F = "F"
"""The name of the output that a parameterization gives a meaning to; it comes first."""


@dataclass(frozen=True)
class Network(Component):
    """A network by name: `build(shape[, labels, conditions, tables, outputs, noise_kind, ...])`.

    Its module is called as `network(x, c_noise, condition)`: x (B, *shape), c_noise (B,),
    condition a mapping of names to classes (B,) int64 or None; it returns (B, *shape). A class of
    -1, or a name left out, switches a condition off. `shape` is that of one sample.

    What else a build may ask for, each by the name of an argument:

    - `conditions` maps the name of every condition to its number of classes, and `labels` is that
      of "label" (0 without it). A network whose build takes neither has no condition, and one whose
      build takes `labels` alone has the label alone.
    - `tables` maps the names of further conditions to the values that their classes stand for, of
      the kinds that `condition_kinds` names; `conditions` has none of them.
    - `outputs` maps the names of the outputs to their numbers of channels, {"F": C} or, for a
      learned variance, {"F": C, "nu": C}. The module returns all channels, in the order of the
      names: (B, sum, ...). "F" comes first.
    - `noise_kind` is the kind of c_noise that it will be given: "sigma", "log_sigma", "time" or
      "index"; it must change no initial weight.
    - `second` is whether the module takes a second noise level of the same kind, as flow maps do
      (Boffi et al. 2024, Geng et al. 2025): it is called with `second=` (B,), and None switches it
      off with the same bits.
    - `checkpointing` is whether activations are computed again in the backward pass instead of
      being kept (Chen et al. 2016): gradients are the same bits.

    Args:
        noise: each kind of c_noise that the network takes, with the range that it is made for.
        shapes: shapes of samples that it takes, at which the conformance kit checks it: a network
            of images states others than the default, a network of one shape that alone.
        condition_kinds: the kinds of values of conditions that a build with `tables` takes.
        features: the names of the intermediate features, a function of the network's options; the
            module has `with_features(x, c_noise, condition, second)`, which returns what a call
            does and a dict of the features, name -> (B, ...). None where there are none.
        rank: the most dimensions of the affine space that F lies in whatever x is, at one noise
            level and condition, where a narrow layer limits it: a function of `shape` and of the
            network's options. None where nothing does.
        blind: whether F does not depend on c_noise at all; `noise` is then empty, and any kind is
            accepted.

    Raises:
        InputError: no shapes, or one that holds anything but positive whole numbers; an unknown
            kind of condition, or kinds of a build that does not take `tables`; a blind network
            with kinds of c_noise.
    """

    axis = "network"
    functions: ClassVar = {
        "build": Takes(
            (
                "shape",
                "labels",
                "conditions",
                "tables",
                "outputs",
                "noise_kind",
                "second",
                "checkpointing",
            ),
            role="build",
        ),
        "features": Takes(role="features"),
        "rank": Takes(("shape",), role="rank"),
    }
    build: Callable[..., torch.nn.Module]
    noise: Mapping[str, tuple[float, float]]
    shapes: tuple[tuple[int, ...], ...] = ((2,), (1, 8, 8))
    condition_kinds: tuple[Kind, ...] = ()
    features: Callable[..., Sequence[str]] | None = None
    rank: Callable[..., int] | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shapes(self.label, self.shapes)
        for kind in self.condition_kinds:
            if kind not in KINDS:
                raise InputError(f"{self.label}: {unknown('kind of condition', kind, KINDS)}")
        if bool(self.condition_kinds) != self._asks_for("tables"):
            raise InputError(
                f"{self.label}: condition_kinds = {self.condition_kinds}: a build that takes "
                "`tables` names the kinds of them, and no other does."
            )
        if self.blind and self.noise:
            raise InputError(
                f"{self.label}: noise = {dict(self.noise)}: a blind network does not see c_noise: "
                "leave its kinds out, noise = {}."
            )

    def _asks_for(self, quantity: str) -> bool:
        return quantity in self.signature("build").inputs

    @property
    def takes_outputs(self) -> bool:
        """Whether the network can return more than F."""
        return self._asks_for("outputs")

    @property
    def takes_second(self) -> bool:
        """Whether the network can take a second noise level."""
        return self._asks_for("second")

    @property
    def takes_checkpointing(self) -> bool:
        """Whether the network can compute activations again instead of keeping them."""
        return self._asks_for("checkpointing")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the intermediate features, in their order; () without any."""
        if self.features is None:
            return ()
        return tuple(self.signature("features")(options=self.options))

    def rank_of(self, shape: tuple[int, ...]) -> int:
        """The dimension of the affine space that F lies in, at most that of a sample of `shape`."""
        d = math.prod(shape)
        if self.rank is None:
            return d
        return min(d, int(self.signature("rank")(options=self.options, shape=shape)))

    def takes(self, condition: str, kind: Kind | None = None) -> bool:
        """Whether the network can be built for a condition of this name.

        `kind` is that of its values, None for a class.
        """
        if kind is not None:
            return kind in self.condition_kinds
        return self._asks_for("conditions") or (self._asks_for("labels") and condition == "label")

    def __call__(
        self,
        shape: tuple[int, ...],
        labels: int,
        seed: int,
        further: Mapping[str, int] | None = None,
        outputs: Mapping[str, int] | None = None,
        noise_kind: str = "",
        tables: Mapping[str, ConditionTable] | None = None,
        second: bool = False,
        checkpointing: bool = False,
    ) -> torch.nn.Module:
        """A network with weights drawn from `seed`; the global generators are left as they were.

        `labels` is the number of classes of the condition "label", 0 for none; `further` maps the
        names of other conditions to theirs, `tables` those of the conditions that stand for values
        to these; `outputs` maps names to channels, F alone where it is left out; `noise_kind` is
        the first of `noise` where none is given.

        Raises:
            InputError: `build` raises, or does not return a module; something is asked for that
                the build does not take; outputs that do not begin with F, as many channels as x.
        """
        outputs = {F: shape[0]} if outputs is None else dict(outputs)
        if next(iter(outputs), None) != F or outputs[F] != shape[0] or min(outputs.values()) < 1:
            raise InputError(
                f"{self.label}: outputs = {outputs}: expected F first, of {shape[0]} channels, and "
                "at least one channel of each."
            )
        asked = {
            "outputs": len(outputs) > 1,
            "second": second,
            "checkpointing": checkpointing,
        }
        for name, wanted in asked.items():
            if wanted and not self._asks_for(name):
                raise InputError(f"{self.label}: its build does not take `{name}`.")
        conditions = {**({"label": labels} if labels else {}), **(further or {})}
        signature = self.signature("build")
        with seeded(seed):
            network = signature(
                options=self.options,
                shape=shape,
                labels=labels,
                conditions=conditions,
                tables=tables or {},
                outputs=outputs,
                noise_kind=noise_kind or next(iter(self.noise), ""),
                second=second,
                checkpointing=checkpointing,
            )
        if not isinstance(network, torch.nn.Module):
            raise signature.wrong("a torch.nn.Module", network)
        return network
