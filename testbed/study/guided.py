"""Conditions and guidance of a study: by name, whether they fit, and the denoiser they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from testbed.components import Component, Network, built_in
from testbed.data.base import Data
from testbed.errors import InputError, unknown
from testbed.formula import Formula
from testbed.sampling.guidance import (
    ClassifierFree,
    ClassifierGuided,
    Condition,
    Conditional,
    Denoise,
    Given,
    LogClasses,
)
from testbed.training import classifier
from testbed.training.conditions import OFF

KEY = "evaluation.guidance"


class Way(Protocol):
    """A way to guide, with its options."""

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        """The conditions whose classes a sample needs, of a model trained with `conditions`."""
        ...

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        """Why it cannot guide such a model, a line each."""
        ...

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        """The denoiser (x, sigma) -> D that samples of these classes follow."""
        ...


@dataclass(frozen=True)
class Unguided:
    """D_y under the model's own conditions."""

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return list(conditions)

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        return iter(())

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        return Given(denoiser, condition or None)


@dataclass(frozen=True)
class ByDropout:
    """D_n + w (D_y - D_n) with w = scale; D_n has the label `negative`, or nothing with -1."""

    scale: float = 1.0
    negative: int = OFF

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return list(conditions)

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        if not conditions:
            yield (
                f"{KEY}: classifier_free needs a model that is trained with conditions: "
                + _hint(data)
            )
            return
        yield from _infinite(self.scale)
        labels = data.classes.get("label", 0)
        if self.negative >= 0 and "label" not in conditions:
            yield f"{KEY}.negative = {self.negative} is a label, and conditions has no label."
        elif not OFF <= self.negative < max(labels, 1):
            yield (
                f"{KEY}.negative = {self.negative}: expected a label from 0 to {labels - 1}, or "
                f"{OFF} for none."
            )
        named = {"label"} if self.negative >= 0 else set()
        yield from _undropped({k: v for k, v in conditions.items() if k not in named})

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        negative = None
        if self.negative >= 0:
            negative = {"label": torch.full_like(condition["label"], self.negative)}
        return ClassifierFree(denoiser, [(condition, self.scale)], negative)


@dataclass(frozen=True)
class ByClassifier:
    """D + lambda sigma^2 grad_x log p(y|x), D with all conditions off, lambda = scale.

    y is the class of condition `of`; the other options are those of `training.classifier.Settings`.
    """

    scale: float = 1.0
    of: str = "label"
    steps: int = 2000
    batch: int = 256
    width: int = 64
    depth: int = 2
    learning_rate: float = 1e-3

    def settings(self) -> classifier.Settings:
        """Those of the classifier."""
        given = asdict(self)
        return classifier.Settings(**{k: v for k, v in given.items() if k not in ("scale", "of")})

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return [self.of]

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        if self.of not in data.classes:
            yield f"{KEY}: classifier needs data with classes: {_missing(self.of, data)}"
        try:
            self.settings()
        except InputError as problem:
            yield f"{KEY}: {problem}"
        yield from _infinite(self.scale)
        yield from _undropped(conditions)

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        assert log_classes is not None
        return ClassifierGuided(
            lambda x, sigma: denoiser(x, sigma, None), log_classes, condition[self.of], self.scale
        )


def _missing(name: str, data: Data) -> str:
    return unknown("condition", name, data.classes)


def _hint(data: Data) -> str:
    if not data.classes:
        return "these data have none."
    return f"write conditions = {{ {next(iter(data.classes))} = 0.1 }}."


def _infinite(scale: float) -> Iterator[str]:
    if not math.isfinite(scale):
        yield f"{KEY}.scale = {scale}: expected a finite number."


def _undropped(conditions: Mapping[str, float]) -> Iterator[str]:
    """Guidance asks for the model without its conditions, which dropout alone trains."""
    for name, rate in conditions.items():
        if rate == 0:
            yield (
                f"{KEY}: asks the model with condition {name!r} switched off, which conditions."
                f"{name} = 0 never trains: give it a rate above 0."
            )


@dataclass(frozen=True)
class Guidance(Component):
    """A way to guide by name: `way` builds it from its options."""

    axis: ClassVar[str] = "guidance"
    way: Callable[..., Way]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Formula]:
        return [Formula(self.label, self.way, ())]

    def built(self) -> Way:
        """The way, with its options."""
        (formula,) = self.formulas()
        found: Way = formula(options=self.options)
        return found


GUIDANCES = {
    one.name: one
    for one in (
        Guidance("none", Unguided),
        Guidance("classifier_free", ByDropout, "Ho and Salimans 2022, arXiv:2207.12598"),
        Guidance("classifier", ByClassifier, "Dhariwal and Nichol 2021, arXiv:2105.05233"),
    )
}
NONE = {"name": "none", "options": {}}


def guidance(name: str, **options: Any) -> Guidance:
    """The guidance of that name with its options bound.

    Raises:
        UnknownName: with the nearest name.
        InputError: an unknown option, or one of the wrong type.
    """
    return built_in(GUIDANCES, "guidance", name, options)


def problems(
    conditions: Mapping[str, float], way: Way, network: Network, data: Data
) -> Iterator[str]:
    """Why a model cannot have these conditions, or not be guided so; nothing where it can."""
    for name in conditions:
        if name not in data.classes:
            yield f"conditions.{name}: {_missing(name, data)}"
        elif not network.takes(name):
            yield (
                f"conditions.{name}: {network.label} takes no such condition: its build asks for "
                "neither conditions nor labels."
                if name == "label"
                else f"conditions.{name}: {network.label} takes no such condition: its build does "
                "not ask for conditions."
            )
    yield from way.misfits(conditions, data)


def drops_all(conditions: Mapping[str, float]) -> bool:
    """Whether a model with conditions is trained with all of them switched off, too."""
    return bool(conditions) and all(rate > 0 for rate in conditions.values())


def built(conditions: Mapping[str, float], data: Data) -> tuple[int, dict[str, int]]:
    """What a network is built for: the number of labels, and of the classes of the others."""
    classes = data.classes if conditions else {}
    further = {name: classes[name] for name in conditions if name != "label"}
    return (classes["label"] if "label" in conditions else 0), further


def chosen(
    wanted: Mapping[str, int], conditions: Mapping[str, float], way: Way, data: Data, n: int
) -> dict[str, Tensor]:
    """The condition of n samples with the classes asked for; what is not named is switched off.

    Raises:
        InputError: a condition or a class that there is not, or one left out that cannot be.
    """
    names = way.classes(conditions)
    found = {}
    for name, value in wanted.items():
        if name not in names:
            raise InputError(f"--condition {name}={value}: {unknown('condition', name, names)}")
        if not OFF <= value < data.classes[name]:
            raise InputError(
                f"--condition {name}={value}: expected 0 to {data.classes[name] - 1}, or {OFF} to "
                "switch it off."
            )
    for name in names:
        value = wanted.get(name, OFF)
        if value == OFF and conditions.get(name) == 0:
            raise InputError(
                f"--condition: {name} was never switched off in training: give it a class, such as "
                f"--condition {name}=0."
            )
        found[name] = torch.full((n,), value)
    return found
