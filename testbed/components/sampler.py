"""Samplers: one step from a noise level to the next, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor

from testbed.components.base import Component
from testbed.components.signature import Signature
from testbed.errors import InputError, unknown


@dataclass(frozen=True)
class Sampler(Component):
    """A sampler by name: `step(denoise, x, sigma, sigma_next, generator, history[, options])`.

    One step from `sigma` to `sigma_next` < sigma, floats; `denoise(x, sigma) -> x0` is never called
    at 0; `history` is a list that belongs to the run, for multistep methods. A step may ask for
    `steps`, the number of steps of the whole run. `noise` names the option that all fresh noise is
    multiplied by: the sampler is deterministic where it is 0, and `deterministic` says so.
    """

    axis: ClassVar[str] = "sampler"
    step: Callable[..., Tensor]
    deterministic: bool = True
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    noise: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise and self.noise not in self.defaults:
            raise InputError(f"{self.label}: noise: {unknown('option', self.noise, self.defaults)}")
        self._settle(self.defaults)

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        twin._settle(twin.options)
        return twin

    def _settle(self, options: Mapping[str, Any]) -> None:
        if self.noise:
            object.__setattr__(self, "deterministic", not options[self.noise])

    def formulas(self) -> list[Signature]:
        return [Signature(self.label, self.step, ("steps",), leading=6)]
