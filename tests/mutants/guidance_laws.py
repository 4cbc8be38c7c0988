"""Mistakes in guidance and in conditional distributions, each rejected by its law."""

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from laws.guidance import (
    CFG,
    COMPONENTS,
    MEANS,
    PI,
    SPREADS,
    Free,
    conditional,
    law_bayes_and_tweedie,
    law_classes_are_bayes,
    law_denoises_given,
    law_guides_within,
    law_interpolates,
    law_reference,
    law_total_expectation,
    mixture,
)
from mutants.registry import laws_of, rejected_by
from torch import Tensor

from testbed.oracles import Conditional, Mixture
from testbed.sampling.guidance import ClassifierFree, ClassifierGuided, class_gradient
from testbed.tensors import per_sample


def combined(weights: Callable[[list[float]], list[float]]) -> Free:
    """Guidance with other weights of (D_n, D_1, ...)."""

    def free(denoiser: Any, terms: Any, negative: Any = None) -> Any:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            D = [denoiser(x, sigma, c) for c in (negative, *(c for c, _ in terms))]
            w = weights([w for _, w in terms])
            return sum(a * b for a, b in zip(w, D, strict=True))  # type: ignore[return-value]

        return guided

    return free


WRONG_FREE = {
    "scale counted from the condition": combined(lambda w: [-sum(w), *(v + 1 for v in w)]),
    "not renormalised": combined(lambda w: [1.0, *w]),
    "sign of the difference": combined(lambda w: [1 + sum(w), *(-v for v in w)]),
    "one weight for the base": combined(lambda w: [1 - w[0], *w]),
    "the two exchanged": combined(lambda w: [sum(w), *(1 - v for v in w)]),
    "negative condition ignored": lambda f, terms, negative=None: ClassifierFree(f, terms),
    "negative condition taken off": lambda f, terms, negative=None: ClassifierFree(
        f, [*terms, *([(negative, -1.0)] if negative else [])]
    ),
}


def within(change: Callable[[Any, float, float], Any], outside: float = 1.0) -> Free:
    """Guidance with another interval, or another scale outside of it."""

    def free(
        denoiser: Any, terms: Any, negative: Any = None, interval: Any = (0.0, math.inf)
    ) -> Any:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            inside = change(sigma, *interval)[:, None]
            others = [(condition, outside) for condition, _ in terms]
            both = (ClassifierFree(denoiser, t, negative)(x, sigma) for t in (terms, others))
            return torch.where(inside, *both)

        return guided

    return free


WRONG_INTERVAL = {
    "no interval": within(lambda sigma, low, high: sigma > 0),
    "the levels outside": within(lambda sigma, low, high: (sigma <= low) | (sigma > high)),
    "its lowest level guided": within(lambda sigma, low, high: (sigma >= low) & (sigma <= high)),
    "its highest level not": within(lambda sigma, low, high: (sigma > low) & (sigma < high)),
    "the condition left out outside": within(
        lambda sigma, low, high: (sigma > low) & (sigma <= high), 0.0
    ),
    "the first sample's level for all": within(
        lambda sigma, low, high: ((sigma > low) & (sigma <= high))[:1].expand(len(sigma))
    ),
}


class Weightless(Mixture):
    """Given a condition, its components are as likely as each other."""

    def given(self, p: Tensor) -> Mixture:
        part = super().given(p)
        part.pi = torch.ones_like(part.pi) / len(part.pi)
        return part


class PriorLeftOut(Mixture):
    def log_classes(self, x: Tensor, sigma: Any) -> Tensor:
        return torch.log_softmax(super().log_classes(x, sigma) - self.pi.log(), 1)


class CleanClasses(Mixture):
    """The classifier of clean data."""

    def log_classes(self, x: Tensor, sigma: Any) -> Tensor:
        return super().log_classes(x, 0.05)


def spoilt(kind: type[Mixture]) -> Conditional:
    made = kind(MEANS, weights=PI, covariances=torch.diag_embed(SPREADS**2))
    return Conditional(made, COMPONENTS)


class FirstForAll(Conditional):
    """Every sample is given the first one's classes."""

    def denoise(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        first = condition and {name: y[:1].expand(len(y)) for name, y in condition.items()}
        return super().denoise(x, sigma, first)


class OneCondition(Conditional):
    """Of several conditions the first counts."""

    def given(self, condition: Mapping[str, int]) -> Mixture:
        return super().given(dict([*condition.items()][:1]))


EVEN = (COMPONENTS["caption"] > 0).double()
EVEN /= EVEN.sum(1, keepdim=True)
WRONG_CONDITIONAL = {
    "given a condition, weights equal": (spoilt(Weightless), law_denoises_given),
    "classes without their prior": (spoilt(PriorLeftOut), law_classes_are_bayes),
    "prior left out, by total expectation": (spoilt(PriorLeftOut), law_total_expectation),
    "a classifier of clean data": (spoilt(CleanClasses), law_classes_are_bayes),
    "the first sample's classes for all": (
        FirstForAll(mixture(), COMPONENTS),
        law_denoises_given,
    ),
    "the first condition alone": (OneCondition(mixture(), COMPONENTS), law_denoises_given),
    "captions as likely as each other": (
        Conditional(mixture(), {**COMPONENTS, "caption": EVEN}),
        law_denoises_given,
    ),
    "the likeliest caption for all of a component": (
        Conditional(mixture(), {**COMPONENTS, "caption": COMPONENTS["caption"].argmax(1)}),
        law_classes_are_bayes,
    ),
    "classes exchanged": (
        Conditional(mixture(), {**COMPONENTS, "group": 1 - COMPONENTS["group"]}),
        law_classes_are_bayes,
    ),
}


def by(power: float = 2.0, sign: float = 1.0, form: str = "log", of: int = 0) -> Any:
    """Classifier guidance with another power of sigma, sign, or function of p(y|x)."""

    def guide(denoiser: Any, log_classes: Any, y: Tensor, scale: float) -> Any:
        def given(x: Tensor, sigma: Tensor) -> Tensor:
            log_p = log_classes(x, sigma)
            return log_p.exp() if form == "p" else log_p

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            g = class_gradient(given, x, sigma, (y + of) % 4 if of else y)
            return denoiser(x, sigma) + sign * scale * per_sample(sigma, x) ** power * g

        return guided

    return guide


def without_off(denoiser: Any, log_classes: Any, y: Tensor, scale: float) -> Any:
    return ClassifierGuided(denoiser, log_classes, y.clamp(min=0), scale)


WRONG_CLASSIFIER = {
    "sigma for its square": by(power=1.0),
    "the square left out": by(power=0.0),
    "down the gradient": by(sign=-1.0),
    "the probability for its logarithm": by(form="p"),
    "another class": by(of=1),
    "class 0 where there is none": without_off,
}


GUIDANCE = laws_of("laws: guidance", "guidance, and the exact answers of conditional distributions")
rejected_by(GUIDANCE, law_interpolates, ClassifierFree, **WRONG_FREE)
rejected_by(GUIDANCE, law_guides_within, ClassifierFree, **WRONG_INTERVAL)
rejected_by(GUIDANCE, law_bayes_and_tweedie, ClassifierGuided, **WRONG_CLASSIFIER)
for law in (law_classes_are_bayes, law_denoises_given, law_total_expectation):
    mine = {mistake: one for mistake, (one, by) in WRONG_CONDITIONAL.items() if by is law}
    rejected_by(GUIDANCE, law, conditional(), **mine)


@wraps(law_reference)
def of_reference(given: tuple[float, bool]) -> None:
    law_reference(*given)


rejected_by(
    GUIDANCE,
    of_reference,
    (CFG["scale"], False),
    a_smaller_scale=(6.5, False),
    a_larger_scale=(8.5, False),
    the_order_exchanged=(7.5, True),
)
