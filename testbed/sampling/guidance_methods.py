"""The guidance methods of a study: what each needs of model and data, and the denoiser it makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import torch

from testbed.components.dataset import Data
from testbed.components.guidance import (
    CLAIMS,
    Condition,
    Conditional,
    Denoise,
    Guidance,
    LogClasses,
)
from testbed.errors import InputError, unknown
from testbed.hookspecs import hookimpl
from testbed.sampling.guidance import (
    EVERYWHERE,
    ClassifierFree,
    ClassifierGuided,
    ConditionedDenoiser,
)
from testbed.training import classifier
from testbed.training.conditions import OFF

KEY = "evaluation.guidance"


@dataclass(frozen=True)
class NoGuidance:
    """The method that returns D_y under the model's own conditions."""

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return list(conditions)

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        return iter(())

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        return ConditionedDenoiser(denoiser, condition or None)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """D_n + w (D_y - D_n) with w = scale; D_n has the label or the text `negative`, or none at -1.

    A text is one of a condition of texts of the data. `interval` holds the ends of the noise levels
    that are guided, in units of sigma; at the others w is 1. Without them all are guided.
    """

    scale: float = 1.0
    negative: int | str = OFF
    interval: tuple[float, ...] = ()

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
        if self.interval and not (
            len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]
        ):
            yield (
                f"{KEY}.interval = {list(self.interval)}: expected two noise levels, the lower one "
                "first, such as [0.3, 2.0]."
            )
        labels = data.classes.get("label", 0)
        kept: Mapping[str, int] = {}
        if isinstance(self.negative, str):
            try:
                kept = self.negatives(conditions, data)
            except InputError as problem:
                yield str(problem)
        elif self.negative >= 0 and "label" not in conditions:
            yield f"{KEY}.negative = {self.negative} is a label, and conditions has no label."
        elif not OFF <= self.negative < max(labels, 1):
            yield (
                f"{KEY}.negative = {self.negative}: expected a label from 0 to {labels - 1}, or "
                f"{OFF} for none."
            )
        else:
            kept = self.negatives(conditions, data)
        yield from _undropped({k: v for k, v in conditions.items() if k not in kept})

    def negatives(self, conditions: Mapping[str, float], data: Data) -> dict[str, int]:
        """The classes of D_n by condition; what is not named is off.

        Raises:
            InputError: `negative` is a text, and no condition of the model has it.
        """
        if isinstance(self.negative, int):
            return {"label": self.negative} if self.negative >= 0 else {}
        texts = {name: data.texts[name] for name in conditions if name in data.texts}
        for name, several in texts.items():
            if self.negative in several:
                return {name: several.index(self.negative)}
        if not texts:
            raise InputError(
                f"{KEY}.negative = {self.negative!r} is a text, and conditions has none of texts."
            )
        known = [text for several in texts.values() for text in several]
        raise InputError(f"{KEY}.negative: {unknown('text', self.negative, known)}")

    def against(self, negatives: Mapping[str, int]) -> GuidanceAgainst:
        """The same guidance with a D_n of these classes by condition."""
        return GuidanceAgainst(self.scale, self.negative, self.interval, negatives)

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        if isinstance(self.negative, str):
            raise InputError(f"{KEY}.negative is a text: its class is that of the data.")
        negatives = {"label": self.negative} if self.negative >= 0 else {}
        return self.against(negatives).denoiser(denoiser, log_classes, condition)


@dataclass(frozen=True)
class GuidanceAgainst(ClassifierFreeGuidance):
    """D_n + w (D_y - D_n), the classes of D_n by condition; what is not named is off."""

    of_negative: Mapping[str, int] = field(default_factory=dict)

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        like = next(iter(condition.values()))
        negative = {name: torch.full_like(like, k) for name, k in self.of_negative.items()}
        low, high = self.interval or EVERYWHERE
        return ClassifierFree(denoiser, [(condition, self.scale)], negative or None, (low, high))


@dataclass(frozen=True)
class ClassifierGuidance:
    """D + lambda sigma^2 grad_x log p(y|x), D with all conditions off, lambda = scale.

    y is the class of the condition that `of` names; the options besides `of` and `scale` are those
    of `training.classifier.ClassifierSettings`.
    """

    scale: float = 1.0
    of: str = "label"
    steps: int = 2000
    batch: int = 256
    width: int = 64
    depth: int = 2
    learning_rate: float = 1e-3

    def settings(self) -> classifier.ClassifierSettings:
        """The settings that the classifier is trained with.

        Raises:
            InputError: A setting is out of its range.
        """
        options = asdict(self)
        del options["scale"], options["of"]
        return classifier.ClassifierSettings(**options)

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
    """The conditions that are never dropped in training, which guidance must switch off."""
    for name, rate in conditions.items():
        if rate == 0:
            yield (
                f"{KEY}: it needs the model with condition {name!r} switched off, which conditions."
                f"{name} = 0 never trains: give it a rate above 0."
            )


GUIDANCES = {
    one.name: one
    for one in (
        Guidance("none", NoGuidance),
        Guidance(
            "classifier_free",
            ClassifierFreeGuidance,
            reference="Ho and Salimans 2022, arXiv:2207.12598",
            claims=CLAIMS,
        ),
        Guidance(
            "classifier",
            ClassifierGuidance,
            reference="Dhariwal and Nichol 2021, arXiv:2105.05233",
            claims=CLAIMS,
        ),
    )
}


@hookimpl
def testbed_guidances() -> Iterable[Guidance]:
    yield from GUIDANCES.values()
