"""Weightings: lambda(sigma), multiplying |D - x0|^2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from testbed.components.base import Sigma, Takes, check_range
from testbed.components.density import Density
from testbed.components.signature import shaped_like_sigma
from testbed.components.state import StatefulComponent
from testbed.errors import InputError
from testbed.tensors import widen


@dataclass(frozen=True)
class Weighting(StatefulComponent):
    """lambda(sigma), multiplying |D - x0|^2: always in denoiser (x0) space.

    Args:
        function: takes any of `sigma`, `sigma_data`, `p`, the density's pdf over log sigma, and
            `state`; it returns lambda shaped like sigma, or a number.
        state: `state([options])` builds the module of a learned weighting.
        penalty: `penalty([sigma, state, options])`, added to the loss per sample, (B,): what keeps
            a learned lambda from vanishing.
        sigma_range: the open interval of noise levels where the function is defined.

    Raises:
        InputError: a penalty without a state, or a range that is empty.
    """

    axis = "weighting"
    functions: ClassVar = {
        "function": Takes(("sigma", "sigma_data", "p", "state"), role="function"),
        "state": Takes(role="state"),
        "penalty": Takes(("sigma", "state"), role="penalty"),
    }
    function: Callable[..., Tensor]
    penalty: Callable[..., Tensor] | None = None
    sigma_range: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.label, self.sigma_range)
        if self.penalty is not None and self.state is None:
            raise InputError(f"{self.label}: a penalty without a state changes no gradient.")

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
            TypeError: the function takes sigma_data, p or state, and none is at hand.
            InputError: it raises, or does not return a tensor shaped like sigma, or a number.
        """
        sigma = widen(sigma)
        p = density.pdf_over_log_sigma(sigma) if density is not None else None
        signature = self.signature("function")
        weight = signature(
            options=self.options, sigma=sigma, sigma_data=sigma_data, p=p, state=state
        )
        return shaped_like_sigma(signature, weight, sigma)

    def penalty_at(self, sigma: Tensor, state: torch.nn.Module | None) -> Tensor | float:
        """The penalty at sigma (B,), shaped like sigma; 0.0 for a weighting without one.

        Raises:
            InputError: it raises, or does not return a tensor or a number.
        """
        if self.penalty is None:
            return 0.0
        signature = self.signature("penalty")
        penalty = signature(options=self.options, sigma=sigma, state=state)
        if not isinstance(penalty, Tensor | int | float):
            raise signature.wrong(f"a tensor shaped like sigma, {tuple(sigma.shape)}", penalty)
        return penalty
