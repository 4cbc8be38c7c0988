"""Guidance: a way to bend a sampler's denoiser towards a condition, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from testbed.components.base import Component, Takes
from testbed.components.dataset import Data

Condition = Mapping[str, Tensor]
"""Name -> classes (B,) int64, -1 where it is switched off."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> D, x (B, ...), sigma a scalar or (B,)."""

Conditional = Callable[[Tensor, Tensor, Condition | None], Tensor]
"""(x, sigma, condition) -> D."""

LogClasses = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> log p(y|x), (B, classes)."""


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


@dataclass(frozen=True)
class Guidance(Component):
    """A guidance method by name: `method([options])` builds it."""

    axis = "guidance"
    functions: ClassVar = {"method": Takes()}
    method: Callable[..., GuidanceMethod]

    def build(self) -> GuidanceMethod:
        """The method, with this component's options."""
        method: GuidanceMethod = self.signature("method")(options=self.options)
        return method
