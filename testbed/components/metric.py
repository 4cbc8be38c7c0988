"""Metrics: a number about samples, by name, with its sampling error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from testbed.components.base import Component, Takes, check_shapes

if TYPE_CHECKING:
    from testbed.components.dataset import Data


class MetricValue(NamedTuple):
    """A number computed from samples, with its sampling error.

    Args:
        value: the number.
        error: its standard error; nan where none is known.
        p: the p value of the hypothesis that the samples are from the distribution of the data;
            nan where the metric is no test.
    """

    value: float
    error: float = math.nan
    p: float = math.nan


class Embedding(NamedTuple):
    """A feature space of samples.

    Args:
        features: maps samples (N, *shape) to features (N, F) float64; of a sample that is not
            finite, to nan.
        about: whose features they are, a sentence.
    """

    features: Callable[[Tensor], Tensor]
    about: str


@dataclass(frozen=True)
class Metric(Component):
    """A number about samples by name: `measure(samples, data, generator[, options])`.

    Args:
        measure: takes samples (N, *shape), the Data that they should resemble and a generator, and
            returns a float or a `MetricValue`, nan where it has no meaning. The number grows as
            samples get worse. Where it takes `condition` as well, the samples are drawn by the
            model's own conditions without guidance, and `condition` has the classes that they were
            drawn with, name -> (N,) int64.
        against: the split, "test" or "train", with which samples are compared; real samples of the
            other one give the metric's floor.
        most: the largest value, where the metric has one; the worst samples need not differ there.
        shapes: shapes of samples that it takes, at which the conformance kit checks it.
        embed: `embed(data[, options])` returns the Embedding in which it measures; the report then
            shows the nearest neighbours of samples there.
        misfits: `misfits(data[, options])` yields why such data cannot be measured, a sentence
            each, and nothing where they can: a study is refused before any training.

    Raises:
        InputError: no shapes, or one that holds anything but positive whole numbers.
    """

    axis = "metric"
    functions: ClassVar = {
        "measure": Takes(("condition",), leading=3, role="measure"),
        "embed": Takes(leading=1, role="embed"),
        "misfits": Takes(leading=1, role="misfits"),
    }
    measure: Callable[..., float | MetricValue]
    against: str = "test"
    most: float = math.inf
    shapes: tuple[tuple[int, ...], ...] = ((4,),)
    embed: Callable[..., Embedding] | None = None
    misfits: Callable[..., Iterable[str]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shapes(self.label, self.shapes)

    @property
    def conditional(self) -> bool:
        """Whether it is of samples together with the classes that they were drawn with."""
        return "condition" in self.signature("measure").inputs

    def __call__(
        self,
        samples: Tensor,
        data: Data,
        generator: torch.Generator,
        condition: Mapping[str, Tensor] | None = None,
    ) -> float:
        """The metric of `samples` against a split of `data`; see `estimate`."""
        return self.estimate(samples, data, generator, condition).value

    def estimate(
        self,
        samples: Tensor,
        data: Data,
        generator: torch.Generator,
        condition: Mapping[str, Tensor] | None = None,
    ) -> MetricValue:
        """The metric of `samples` with its error and its p, nan where `measure` states none.

        Raises:
            TypeError: a conditional metric without a condition.
            InputError: `measure` raises, or does not return a number or a MetricValue.
        """
        signature = self.signature("measure")
        given = {"condition": condition} if self.conditional else {}
        value = signature(samples, data, generator, options=self.options, **given)
        try:
            if isinstance(value, MetricValue):
                return MetricValue(*map(float, value))
            return MetricValue(float(value))
        except (TypeError, ValueError, RuntimeError):
            raise signature.wrong("a number or a MetricValue", value) from None

    def embedding(self, data: Data) -> Embedding | None:
        """The feature space that it measures in; None where it has none.

        Raises:
            InputError: `embed` raises, or does not return an Embedding.
        """
        if self.embed is None:
            return None
        signature = self.signature("embed")
        found = signature(data, options=self.options)
        if not isinstance(found, Embedding):
            raise signature.wrong("an Embedding", found)
        return found

    def problems(self, data: Data) -> list[str]:
        """Why it cannot measure samples of such data, a sentence each; nothing where it can.

        Raises:
            InputError: `misfits` raises, or yields anything but text.
        """
        if self.misfits is None:
            return []
        signature = self.signature("misfits")
        found = signature(data, options=self.options)
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise signature.wrong("sentences", found)
        return [f"{self.label}: {one}" for one in found]
