"""Wrong noises and guidances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mutants.wrong import wrong
from torch import Tensor

import testbed
from testbed.components.dataset import Data
from testbed.components.guidance import Condition, Conditional, Denoise, LogClasses
from testbed.diffusion.correlated import channel, coordinate
from testbed.sampling.guidance import ClassifierFree

Shape = tuple[int, ...]
Pair = tuple[Tensor, Tensor]


def noise(z_shape: Callable[..., Any]) -> testbed.Noise:
    return testbed.Noise("wrong", z_shape)


class OneForAll(testbed.Noise):
    """One z for the whole batch."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        z = torch.randn(self.shape_of_z(shape), generator=generator, dtype=eps.dtype)
        n = eps + self.strength * z
        return n, n


class Wide(testbed.Noise):
    """z in float64, whatever eps is."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        n, target = super().pair(eps.double(), shape, generator)
        return n, target


class Global(testbed.Noise):
    """z from torch's global generator."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        lead = eps.shape[: eps.ndim - len(shape)]
        n = eps + self.strength * torch.randn(*lead, *self.shape_of_z(shape), dtype=eps.dtype)
        return n, n


class Variance(testbed.Noise):
    """z of variance `strength`, as if that were a variance."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        n, _ = super().pair(eps, shape, generator)
        found = eps + (n - eps) / self.strength**0.5 if self.strength else eps
        return found, found


class Uniform(testbed.Noise):
    """z between 0 and 1."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        lead = eps.shape[: eps.ndim - len(shape)]
        z = torch.rand(*lead, *self.shape_of_z(shape), generator=generator, dtype=eps.dtype)
        n = eps + self.strength * z
        return n, n


class Untold(testbed.Noise):
    """The target is eps, and it says n."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        return super().pair(eps, shape, generator)[0], eps


class Denser(testbed.Noise):
    """z of every coordinate, whatever is said to share one."""

    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        n = eps + self.strength * torch.randn(eps.shape, generator=generator, dtype=eps.dtype)
        return n, n


class UnitVariance(testbed.Noise):
    @property
    def variance(self) -> float:
        return 1.0


class KeptByCoordinate(testbed.Noise):
    """1/(1 + strength^2), which is that of a z of every coordinate."""

    def regression(self, shape: Shape) -> float:
        return 1 / (1 + self.strength**2)


class ByCoordinate(testbed.Noise):
    """The eigenvalue of a z of every coordinate."""

    def eigenvalue(self, shape: Shape) -> float:
        return 1 + self.strength**2


class MovesAll(testbed.Noise):
    """As if z moved every coordinate by itself."""

    def moved(self, y: Tensor, shape: Shape) -> Tensor:
        return y


class InPlace(testbed.Noise):
    def pair(self, eps: Tensor, shape: Shape, generator: torch.Generator) -> Pair:
        n, _ = super().pair(eps, shape, generator)
        eps.copy_(n)
        return n, n


def sized(shape: Shape, size: int = 1) -> Shape:
    """Where its option is not 1, no shape that z can have."""
    return (*shape[:-1], size)


EVERY = tuple(
    [
        "shape_of_z",
        "shape",
        "mean",
        "covariance",
        "target",
        "variance",
        "regression",
        "strength",
        "independent",
        "generator",
        "oracle",
        "pure",
        "options",
    ]
)

MOMENTS = ("covariance", "variance", "regression")

wrong("z of the last axis alone", noise(lambda shape: shape[-1:]), *EVERY)
wrong("z of another size", noise(lambda shape: (2, *shape[1:])), *EVERY)
wrong("one z for the batch", OneForAll("wrong", channel), "mean", "independent", *MOMENTS)
wrong("z in float64", Wide("wrong", channel), "shape")
wrong("torch's global generator", Global("wrong", channel), "generator", "pure", "strength")
wrong("strength is a variance", Variance("wrong", channel), "strength", *MOMENTS)
wrong("z is not centred", Uniform("wrong", coordinate), "mean", "independent", *MOMENTS)
wrong("the target is eps and not n", Untold("wrong", channel), "target", "variance", "regression")
wrong("z of every coordinate", Denser("wrong", channel), "covariance", "regression")
wrong("the variance of eps alone", UnitVariance("wrong", channel), "variance")
wrong(
    "what is kept of a coordinate",
    KeptByCoordinate("wrong", channel, in_target=False),
    "regression",
)
wrong("the eigenvalue of a coordinate", ByCoordinate("wrong", channel), "covariance", "oracle")
wrong("z moves every coordinate", MovesAll("wrong", channel), "oracle")
wrong("eps changed in place", InPlace("wrong", channel), "pure")
wrong("an option that does nothing", noise(lambda shape, size=1: channel(shape)), "options")
wrong(
    "an option that breaks the shape",
    noise(sized),
    *EVERY,
)


@dataclass(frozen=True)
class Right:
    """Classifier-free guidance, to be spoilt."""

    scale: float = 2.0

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return list(conditions)

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[Any]:
        if not conditions:
            yield "it needs conditions."

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        return ClassifierFree(denoiser, [(condition, self.scale)])


def guidance(method: Callable[..., Any], claims: tuple[str, ...] = ()) -> testbed.Guidance:
    return testbed.Guidance("wrong", method, claims=claims)


@dataclass(frozen=True)
class Style(Right):
    """Asks for a condition that the data have not."""

    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return [*conditions, "style"]


@dataclass(frozen=True)
class Twice(Right):
    def classes(self, conditions: Mapping[str, float]) -> list[str]:
        return [*conditions, *conditions]


@dataclass(frozen=True)
class Numbered(Right):
    """Says how many misfits there are."""

    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[Any]:
        yield from range(len(list(super().misfits(conditions, data))))


@dataclass(frozen=True)
class Refusing(Right):
    def misfits(self, conditions: Mapping[str, float], data: Data) -> Iterator[str]:
        yield "it needs another model."


def bent(
    change: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor],
) -> Callable[..., Any]:
    """Guidance by `change(D, D_y, x, sigma, scale)`."""

    @dataclass(frozen=True)
    class Bent(Right):
        def denoiser(
            self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
        ) -> Denoise:
            def guided(x: Tensor, sigma: Tensor) -> Tensor:
                D, D_y = denoiser(x, sigma, None), denoiser(x, sigma, condition)
                return change(D, D_y, x, sigma, self.scale)

            return guided

    return Bent


@dataclass(frozen=True)
class Clamped(Right):
    """Writes into the classes."""

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            D = super(Clamped, self).denoiser(denoiser, log_classes, condition)(x, sigma)
            for y in condition.values():
                y.fill_(-1)
            return D

        return guided


@dataclass(frozen=True)
class Dead(Right):
    rescale: float = 0.7


def rescaled(D: Tensor, D_y: Tensor, x: Tensor, sigma: Tensor, w: float) -> Tensor:
    """To the size that D_y has over the batch."""
    found = D + w * (D_y - D)
    return found * D_y.abs().sum() / found.abs().sum() if len(found) else found


def normed(D: Tensor, D_y: Tensor, x: Tensor, sigma: Tensor, w: float) -> Tensor:
    """A step of length w: 0/0 where the condition says nothing."""
    step = D_y - D
    return D + w * step / step.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


wrong("a condition that the data have not", guidance(Style), "classes", "shape", "finite",
      "per_sample", "sees_condition", "pure", "options")  # fmt: skip
wrong("a condition twice", guidance(Twice), "classes")
wrong("numbers for misfits", guidance(Numbered), "misfits")
wrong("it fits nothing", guidance(Refusing), "fits")
wrong("in float64", guidance(bent(lambda D, D_y, x, s, w: (D + w * (D_y - D)).double())), "shape")
wrong("one x for all", guidance(bent(lambda D, D_y, x, s, w: D[:1] + w * (D_y - D)[:1])),
      "shape", "per_sample")  # fmt: skip
wrong("a length of 0", guidance(bent(normed)), "finite")
wrong("rescaled over the batch", guidance(bent(rescaled)), "per_sample")
wrong("no condition", guidance(bent(lambda D, D_y, x, s, w: w * D)), "sees_condition")
wrong("x changed in place", guidance(bent(lambda D, D_y, x, s, w: x.copy_(w * D_y))), "pure")
wrong("classes changed in place", guidance(Clamped), "pure")
wrong("torch's global generator", guidance(bent(lambda D, D_y, x, s, w:
      D + w * (D_y - D) + 0 * torch.rand(()))), "pure")  # fmt: skip
wrong("an option that does nothing", guidance(Dead), "options")
CLAIMS = ("conditional_at_one", "unconditional_at_zero")
wrong(
    "a scale counted from D_y, as Ho and Salimans have it",
    guidance(bent(lambda D, D_y, x, s, w: D_y + w * (D_y - D)), CLAIMS),
    "claim.conditional_at_one",
    "claim.unconditional_at_zero",
)
wrong(
    "the sign of the difference",
    guidance(bent(lambda D, D_y, x, s, w: D - w * (D_y - D)), CLAIMS),
    "claim.conditional_at_one",
)
wrong(
    "not renormalised",
    guidance(bent(lambda D, D_y, x, s, w: w * D_y + 0.5 * D), CLAIMS),
    "claim.conditional_at_one",
    "claim.unconditional_at_zero",
)
