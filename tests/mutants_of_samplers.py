"""Mistakes in the steps of samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import test_sampling as sampling
import torch
from mutation import (
    FAMILIES,
    REGISTRY,
    STEPS,
    Family,
    broken,
    kit,
    tests,
    wrong,
)
from torch import Tensor

import testbed
from testbed.audit import (
    trajectories,
    truth,
)
from testbed.audit.subject import Affine


@dataclass(frozen=True)
class Sampled:
    """A sampler that ought to be of this order, and the method of this name."""

    sampler: testbed.Sampler
    order: int
    name: str


def of_sampler(subject: Sampled) -> set[str]:
    v = Affine(REGISTRY.parameterization("v"), 0.5)
    found = trajectories.check(v, truth.mixture(), [subject.sampler], STEPS)
    known = {
        "converges_with_order": lambda: sampling.law_converges_with_order(
            subject.sampler, subject.order
        ),
    }
    if subject.name in ("euler", "heun"):
        known["denoiser_is_never_called_at_zero"] = lambda: (
            sampling.law_denoiser_is_never_called_at_zero(subject.sampler)
        )
        known["step_is_the_formula"] = lambda: sampling.law_step_is_the_formula(
            subject.sampler, subject.name, 0.5, 1.0
        )
    return broken(found) | kit(subject.sampler) | tests(**known)


def step(function: Callable[..., Tensor]) -> testbed.Sampler:
    """A sampler from `function(D, x, sigma, following)`."""

    def full(denoise: Any, x: Any, sigma: Any, following: Any, generator: Any, history: Any) -> Any:
        return function(denoise, x, sigma, following)

    return testbed.Sampler("wrong", full)


def slope(D: Any, x: Tensor, s: float) -> Tensor:
    return (x - D(x, s)) / s


def euler_step(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return x + (t - s) * slope(D, x, s)


def midpoint(level: Callable[[float, float], float]) -> testbed.Sampler:
    """Half an Euler step, then a whole one by the slope there, at `level(sigma, following)`."""

    def function(D: Any, x: Tensor, s: float, t: float) -> Tensor:
        if t == 0:
            return euler_step(D, x, s, t)
        half = euler_step(D, x, s, (s + t) / 2)
        return x + (t - s) * slope(D, half, level(s, t))

    return step(function)


def heun(second: Callable[..., Tensor], weight: float = 0.5) -> testbed.Sampler:
    """Heun's step with another second slope, or another weight of it."""

    def function(D: Any, x: Tensor, s: float, t: float) -> Tensor:
        end = euler_step(D, x, s, t)
        if t == 0:
            return end
        slopes = (1 - weight) * slope(D, x, s) + weight * second(D, x, end, s, t)
        return x + (t - s) * slopes

    return step(function)


def at_the_end(D: Any, x: Tensor, end: Tensor, s: float, t: float) -> Tensor:
    return slope(D, end, t)


def heun_to_zero(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    end = euler_step(D, x, s, t)
    return x + (t - s) * (slope(D, x, s) + (end - D(end, t)) / max(t, 1e-9)) / 2


def noisy_euler(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return euler_step(D, x, s, t) + 0 * torch.randn(x.shape, dtype=x.dtype)


def euler_in_place(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return x.add_((t - s) * slope(D, x, s))


FAMILIES["sampler"] = Family(
    "one step of a solver of dx/dsigma = (x - D)/sigma",
    of_sampler,
    {
        "euler": Sampled(REGISTRY.sampler("euler"), 1, "euler"),
        "heun": Sampled(REGISTRY.sampler("heun"), 2, "heun"),
        # Of third order on a Gaussian, where x'''/24 and (df/dx) x''/8 cancel.
        "midpoint": Sampled(midpoint(lambda s, t: (s + t) / 2), 3, "midpoint"),
    },
)


def euler(mistake: str, function: Callable[..., Tensor], meant: str, *also: str) -> None:
    wrong("sampler", mistake, Sampled(step(function), 1, "euler"), meant, *also)


def second_order(mistake: str, sampler: testbed.Sampler, name: str, meant: str, *also: str) -> None:
    order = FAMILIES["sampler"].right[name].order
    wrong("sampler", mistake, Sampled(sampler, order, name), meant, *also)


euler(
    "Euler: sigma' - sigma of the other sign",
    lambda D, x, s, t: x - (t - s) * slope(D, x, s),
    "sampler.order",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler(
    "Euler: half the score",
    lambda D, x, s, t: x + (t - s) * slope(D, x, s) / 2,
    "sampler.order",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler(
    "Euler: divided by the next sigma",
    lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (t or s),
    "sampler.data_point",
    "tests.step_is_the_formula",
)
euler(
    "Euler: steps in sigma^2",
    lambda D, x, s, t: x + (t**2 - s**2) * slope(D, x, s) / s,
    "sampler.order",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler("Euler: x overwritten", euler_in_place, "sampler.pure", "tests.converges_with_order")
euler("Euler: a draw from the global random state", noisy_euler, "sampler.pure")
second_order(
    "Heun: the second slope for the average",
    heun(at_the_end, 1.0),
    "heun",
    "tests.converges_with_order",
    "tests.step_is_the_formula",
)
second_order(
    "Heun: a wrong average, 1/3 and 2/3",
    heun(at_the_end, 2 / 3),
    "heun",
    "tests.converges_with_order",
    "tests.step_is_the_formula",
)
second_order(
    "Heun: the second slope at x",
    heun(lambda D, x, end, s, t: slope(D, x, t)),
    "heun",
    "tests.converges_with_order",
    "sampler.data_point tests.step_is_the_formula",
)
second_order(
    "Heun: the second slope at the first sigma",
    heun(lambda D, x, end, s, t: slope(D, end, s)),
    "heun",
    "tests.converges_with_order",
    "sampler.data_point tests.step_is_the_formula",
)
second_order(
    "Heun: calls the denoiser at zero",
    step(heun_to_zero),
    "heun",
    "sampler.levels",
    "sampler.data_point tests.denoiser_is_never_called_at_zero",
)
second_order(
    "midpoint: the second slope at the first sigma",
    midpoint(lambda s, t: s),
    "midpoint",
    "tests.converges_with_order",
    "sampler.data_point",
)
second_order(
    "midpoint: the second slope at the last sigma",
    midpoint(lambda s, t: t),
    "midpoint",
    "tests.converges_with_order",
    "sampler.data_point",
)
