"""Losses: an elementwise discrepancy, taken in a prediction space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Takes
from testbed.components.signature import require_shape_of
from testbed.components.state import StatefulComponent


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)^2, elementwise: the loss that training computes on the F side."""
    return (prediction - target) ** 2


@dataclass(frozen=True)
class Loss(StatefulComponent):
    """An elementwise discrepancy between two predictions of one type.

    Args:
        function: `function(prediction, target[, state, options])` returns a tensor shaped like its
            arguments.
        space: the prediction type in which the loss is taken: "x0", "eps", "score", "v", "flow" or
            "F". It is an option of every loss.
        elicits_mean: whether the minimiser of the function is the mean. `testbed.squared` always
            has it; another function may claim it. Without it the Tweedie comparison with the score
            is not valid for a model trained with this loss, and is left out.
        state: `state([options])` builds the module of a loss that has one.
    """

    axis = "loss"
    functions: ClassVar = {
        "function": Takes(("state",), leading=2, role="function"),
        "state": Takes(role="state"),
    }
    function: Callable[..., Tensor]
    space: str = "x0"
    elicits_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quadratic:
            object.__setattr__(self, "elicits_mean", True)

    @property
    def quadratic(self) -> bool:
        """Whether this is l2."""
        return self.function is squared

    @property
    def defaults(self) -> dict[str, Any]:
        return {"space": self.space, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        loss = super().bound(options)
        object.__setattr__(loss, "space", loss.options["space"])
        return loss

    def __call__(
        self, prediction: Tensor, target: Tensor, state: torch.nn.Module | None = None
    ) -> Tensor:
        """m(q_hat, q), elementwise: shaped like `prediction` (B, ...).

        Raises:
            InputError: the function raises, or does not return a tensor shaped like q_hat.
        """
        signature = self.signature("function")
        loss = signature(prediction, target, options=self.options, state=state)
        return require_shape_of(signature, loss, prediction, "prediction")
