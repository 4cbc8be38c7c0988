"""Samplers: one step from a noise level to the next, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from testbed.components.base import Component, Takes
from testbed.errors import InputError, unknown


@dataclass(frozen=True)
class Sampler(Component):
    """A sampler by name: `step(denoise, x, sigma, sigma_next, generator, history[, options])`.

    One step from `sigma` to `sigma_next` < sigma, floats; `denoise(x, sigma) -> x0` is never called
    at 0; `history` is a list that belongs to the run, for multistep methods. A step may take
    `steps`, the number of steps of the whole run. `noise` names the option by which all fresh noise
    is multiplied: the sampler is deterministic where it is 0, and `deterministic` says so.
    `inflation` names the option by which fresh noise is made larger than what the step takes away
    (S_noise of Karras et al. 2022, algorithm 2): the marginals are right where it is 1.

    Raises:
        InputError: `noise` or `inflation` names no option of the step.
    """

    axis = "sampler"
    functions: ClassVar = {"step": Takes(("steps",), leading=6)}
    step: Callable[..., Tensor]
    deterministic: bool = True
    noise: str = ""
    inflation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, name in (("noise", self.noise), ("inflation", self.inflation)):
            if name and name not in self.defaults:
                raise InputError(f"{self.label}: {role}: {unknown('option', name, self.defaults)}")
        self._set_deterministic(self.defaults)

    def bound(self, options: Mapping[str, Any]) -> Self:
        sampler = super().bound(options)
        sampler._set_deterministic(sampler.options)
        return sampler

    def _set_deterministic(self, options: Mapping[str, Any]) -> None:
        if self.noise:
            object.__setattr__(self, "deterministic", not options[self.noise])
