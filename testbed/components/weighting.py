"""Weightings: lambda(sigma), multiplying |D - x0|^2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma, check_range
from testbed.components.density import Density
from testbed.components.signature import Signature, shaped_like_sigma
from testbed.components.state import State, build_state, check_state
from testbed.errors import InputError
from testbed.tensors import widen


@dataclass(frozen=True)
class Weighting(Component):
    """lambda(sigma), multiplying |D - x0|^2: always in denoiser (x0) space.

    Args:
        function: may ask for `sigma`, `sigma_data`, `p`, the density's pdf over log sigma, and
            `state`.
        state: `state([options])` builds the module that a learned weighting trains together with
            the network.
        penalty: `penalty([sigma, state, options])`, added to the loss per sample, (B,): what keeps
            a learned lambda from vanishing.
        sigma_range: the open interval of noise levels where the function is defined.
    """

    axis: ClassVar[str] = "weighting"
    function: Callable[..., Tensor]
    reference: str = ""
    state: State | None = None
    penalty: Callable[..., Tensor] | None = None
    sigma_range: tuple[float, float] = (0.0, math.inf)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.label, self.sigma_range)
        asks = any("state" in formula.wanted for formula in self.formulas())
        check_state(self.label, self.state, asks)
        if self.penalty is not None and self.state is None:
            raise InputError(f"{self.label}: a penalty without a state changes no gradient.")

    def _formula(self, role: str) -> Signature | None:
        function, quantities = {
            "function": (self.function, ("sigma", "sigma_data", "p", "state")),
            "state": (self.state, ()),
            "penalty": (self.penalty, ("sigma", "state")),
        }[role]
        return function and Signature(self.label, function, quantities, role=role)

    def formulas(self) -> list[Signature]:
        found = (self._formula(role) for role in ("function", "state", "penalty"))
        return [formula for formula in found if formula]

    def build(self) -> torch.nn.Module | None:
        """A new state, or None for a weighting that learns nothing."""
        return build_state(self._formula("state"), self.options)

    def __call__(
        self,
        sigma: Sigma,
        *,
        sigma_data: float | None = None,
        density: Density | None = None,
        state: torch.nn.Module | None = None,
    ) -> Tensor:
        """lambda at sigma, shaped like sigma, float32 or wider.

        Raises:
            TypeError: the function names sigma_data, p or state and none was given.
            InputError: it raises, or does not return a tensor shaped like sigma, or a number.
        """
        sigma = widen(sigma)
        p = density.pdf_over_log_sigma(sigma) if density is not None else None
        formula = self.formulas()[0]
        found = formula(options=self.options, sigma=sigma, sigma_data=sigma_data, p=p, state=state)
        return shaped_like_sigma(formula, found, sigma)

    def added(self, sigma: Tensor, state: torch.nn.Module | None) -> Tensor | float:
        """The penalty at sigma (B,), shaped like sigma; 0.0 without one."""
        formula = self._formula("penalty")
        if formula is None:
            return 0.0
        found = formula(options=self.options, sigma=sigma, state=state)
        if not isinstance(found, Tensor | int | float):
            raise formula.wrong(f"a tensor shaped like sigma, {tuple(sigma.shape)}", found)
        return found
