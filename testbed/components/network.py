"""Networks: modules by name, with the conditions and noise inputs that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from testbed.components.base import Component
from testbed.components.signature import Signature
from testbed.errors import InputError


@dataclass(frozen=True)
class Network(Component):
    """A network by name: `build(shape[, labels, conditions, outputs, options])` gives a module.

    The module is called as `network(x, c_noise, condition)`: x (B, *shape), c_noise (B,),
    condition a mapping of names to classes (B,) int64 or None; it returns (B, *shape). A class of
    -1, or a name left out, switches a condition off. `shape` is that of one sample, `conditions`
    maps the name of every condition to its number of classes, and `labels` is that of "label" (0
    without it). A network that asks for neither takes no condition, and one that asks for `labels`
    alone takes the label alone. A build that asks for `outputs` gives a module that returns
    `outputs` times the channels, (B, outputs C, ...): 2 for a learned variance, else 1. `noise`
    maps each kind of c_noise that it takes to the range it was made for.
    """

    axis: ClassVar[str] = "network"
    build: Callable[..., torch.nn.Module]
    noise: Mapping[str, tuple[float, float]]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Signature]:
        quantities = ("shape", "labels", "conditions", "outputs")
        return [Signature(self.label, self.build, quantities, role="build")]

    @property
    def multiplies(self) -> bool:
        """Whether it can give several times the channels."""
        return "outputs" in self.formulas()[0].wanted

    def takes(self, condition: str) -> bool:
        """Whether the network can be built for a condition of this name."""
        wanted = self.formulas()[0].wanted
        return "conditions" in wanted or ("labels" in wanted and condition == "label")

    def __call__(
        self,
        shape: tuple[int, ...],
        labels: int,
        seed: int,
        further: Mapping[str, int] | None = None,
        outputs: int = 1,
    ) -> torch.nn.Module:
        """A network with weights drawn from `seed`; the global generators are left as they were.

        `labels` is the number of classes of the condition "label", 0 for none; `further` maps the
        names of other conditions to theirs.

        Raises:
            InputError: `build` raises, or does not return a module; more than one output of a
                network whose build does not ask for `outputs`.
        """
        formula = self.formulas()[0]
        if outputs != 1 and not self.multiplies:
            raise InputError(
                f"{self.label}: {outputs} outputs were asked for, and its build does not take "
                "`outputs`."
            )
        conditions = {**({"label": labels} if labels else {}), **(further or {})}
        given = {"shape": shape, "labels": labels, "conditions": conditions, "outputs": outputs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = formula(options=self.options, **given)
        if not isinstance(found, torch.nn.Module):
            raise formula.wrong("a torch.nn.Module", found)
        return found
