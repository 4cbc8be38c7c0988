"""Metrics: a number about samples, by name, with its sampling error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from testbed.components.signature import Signature

if TYPE_CHECKING:
    from testbed.components.dataset import Data
from testbed.components.base import Component


class MetricValue(NamedTuple):
    """A number from samples, with what chance alone would do to it.

    Args:
        value: the number.
        error: its standard error; nan where none is known.
        p: of the hypothesis that the samples are from the distribution of the data; nan where the
            metric is no test.
    """

    value: float
    error: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Metric(Component):
    """A number about samples by name: `measure(samples, data, generator[, options])`.

    Args:
        measure: samples (N, *shape) and the Data they should resemble; a float or an `Estimate`,
            nan where it has no meaning. It grows as samples get worse.
        against: the split, "test" or "train", that samples are compared with: real samples of the
            other one give the metric's floor.
        most: the largest value, where it has one: the worst samples need not differ there.
    """

    axis: ClassVar[str] = "metric"
    measure: Callable[..., float | MetricValue]
    against: str = "test"
    reference: str = ""
    most: float = math.inf
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Signature]:
        return [Signature(self.label, self.measure, (), leading=3, role="measure")]

    def __call__(self, samples: Tensor, data: Data, generator: torch.Generator) -> float:
        """The metric of `samples` against a split of `data`; see `estimate`."""
        return self.estimate(samples, data, generator).value

    def estimate(self, samples: Tensor, data: Data, generator: torch.Generator) -> MetricValue:
        """The metric of `samples` with its error and its p, nan where `measure` states none.

        Raises:
            InputError: `measure` raises, or does not return a number or an Estimate.
        """
        formula = self.formulas()[0]
        found = formula(samples, data, generator, options=self.options)
        try:
            if isinstance(found, MetricValue):
                return MetricValue(*map(float, found))
            return MetricValue(float(found))
        except (TypeError, ValueError, RuntimeError):
            raise formula.wrong("a number or an Estimate", found) from None
