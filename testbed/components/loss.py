"""Losses: an elementwise discrepancy, taken in a prediction space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Component
from testbed.components.signature import Signature, require_shape_of
from testbed.components.state import State, build_state, check_state


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)^2, elementwise: the loss that training computes on the F side."""
    return (prediction - target) ** 2


@dataclass(frozen=True)
class Loss(Component):
    """An elementwise discrepancy, taken in a space.

    `function(prediction, target[, state, options])` returns a tensor shaped like its arguments.
    `space` is an option of every loss: "x0", "eps", "score", "v", "flow" or "F". A function other
    than `testbed.squared` may claim that its minimiser is the mean: `elicits_mean`; without it the
    Tweedie comparison with the score is not valid for a model trained with it, and is left out.
    `state([options])` builds the module of a loss that has one: its parameters are trained with the
    network, its buffers are kept in checkpoints.
    """

    axis: ClassVar[str] = "loss"
    function: Callable[..., Tensor]
    space: str = "x0"
    elicits_mean: bool = False
    reference: str = ""
    state: State | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_state(self.label, self.state, "state" in self.formulas()[0].wanted)
        if self.quadratic:
            object.__setattr__(self, "elicits_mean", True)

    @property
    def quadratic(self) -> bool:
        """Whether this is l2."""
        return self.function is squared

    def formulas(self) -> list[Signature]:
        found = [Signature(self.label, self.function, ("state",), leading=2, role="function")]
        if self.state is not None:
            found.append(Signature(self.label, self.state, (), role="state"))
        return found

    def build(self) -> torch.nn.Module | None:
        """A new state, or None for a loss without one."""
        return build_state(self.formulas()[1] if self.state else None, self.options)

    @property
    def defaults(self) -> dict[str, Any]:
        return {"space": self.space, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        object.__setattr__(twin, "space", twin.options["space"])
        return twin

    def __call__(
        self, prediction: Tensor, target: Tensor, state: torch.nn.Module | None = None
    ) -> Tensor:
        """m(q_hat, q), elementwise.

        Raises:
            InputError: the function raises, or does not return a tensor shaped like q_hat.
        """
        formula = self.formulas()[0]
        found = formula(prediction, target, options=self.options, state=state)
        return require_shape_of(formula, found, prediction, "prediction")
