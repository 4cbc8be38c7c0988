"""Guidance: a way to bend a sampler's denoiser towards a condition, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from testbed.components.base import Component, Takes
from testbed.components.dataset import Data
from testbed.errors import InputError, unknown

Condition = Mapping[str, Tensor]
"""Name -> classes (B,) int64, -1 where it is switched off."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> D, x (B, ...), sigma a scalar or (B,)."""

Conditional = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""(x, sigma, condition) -> D."""

LogClasses = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> log p(y|x), (B, classes)."""


@runtime_checkable
class GuidanceMethod(Protocol):
    """A way to bend a denoiser towards a condition, with its options."""

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        """The conditions whose classes a sample needs, of a model trained with `conditions`."""
        ...

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        """The reasons why it cannot guide such a model, a line for each."""
        ...

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        """The denoiser (x, sigma) -> D that samples of these classes follow."""
        ...


CLAIMS = ("conditional_at_one", "unconditional_at_zero")


@dataclass(frozen=True)
class Guidance(Component):
    """A way to guide by name: `method([options])` builds it.

    Args:
        method: returns a `GuidanceMethod`; a dataclass of that kind may stand here itself.
        claims: what holds of its option `scale`: "conditional_at_one", "unconditional_at_zero".

    Raises:
        InputError: an unknown claim.
    """

    axis = "guidance"
    functions: ClassVar = {"method": Takes(role="method")}
    method: Callable[..., GuidanceMethod]
    claims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for claim in self.claims:
            if claim not in CLAIMS:
                raise InputError(f"{self.label}: {unknown('claim', claim, CLAIMS)}")

    def build(self) -> GuidanceMethod:
        """The method, with this component's options.

        Raises:
            ComponentError: `method` raises, or returns what lacks classes, misfits or denoiser.
        """
        signature = self.signature("method")
        method = signature(options=self.options)
        if not isinstance(method, GuidanceMethod):
            raise signature.wrong("an object with classes, misfits and denoiser", method)
        return method
