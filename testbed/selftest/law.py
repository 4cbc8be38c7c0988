"""What a law of the self-test is: a closed form, and how far from it rounding or chance may go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.random import stream
from testbed.registry import Registry

CHANCE = 6.5
"""Standard errors that a normal number exceeds once in 1e10: a law that draws never cries wolf."""


class Broken(Exception):
    """A closed form is missed, with the numbers."""


@dataclass(frozen=True)
class Setup:
    """What a run of the self-test varies: the seed of its inputs, and their dtype."""

    seed: int
    dtype: torch.dtype
    registry: Registry

    def normal(self, name: str, *shape: int) -> Tensor:
        """Normal numbers of the seed, in the dtype."""
        drawn = torch.randn(shape, generator=self.generator(name), dtype=torch.float64)
        return drawn.to(self.dtype)

    def generator(self, name: str) -> torch.Generator:
        """A generator of the seed."""
        return stream(self.seed, f"selftest/{name}")


@dataclass(frozen=True)
class Law:
    """A closed form: its name, one sentence with the equation, and the function that checks it.

    `run(setup)` returns what it found in words, and raises Broken.
    """

    name: str
    sentence: str
    run: Callable[[Setup], str]


LAWS: list[Law] = []


def law(sentence: str) -> Callable[[Callable[[Setup], str]], Callable[[Setup], str]]:
    """Enters a function under the law that it checks; its name is the law's."""

    def enter(run: Callable[[Setup], str]) -> Callable[[Setup], str]:
        LAWS.append(Law(run.__name__.rstrip("_"), sentence, run))
        return run

    return enter


def gamma(k: int, dtype: torch.dtype = torch.float64) -> float:
    """k u/(1 - k u), u the unit roundoff: the relative error of k roundings (Higham 2002, 3.1).

    It is written here again, since the library's own is among what is tested.
    """
    u = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}[dtype]
    return k * u / (1 - k * u)


class Nearest:
    """The largest error over its bound; `near` raises Broken at the first that exceeds it."""

    def __init__(self) -> None:
        self.ratio = 0.0

    def near(self, what: str, found: Tensor | float, wanted: Tensor | float, bound: object) -> None:
        """|found - wanted| <= bound, element by element; NaN and another shape are too far."""
        a, b = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (found, wanted))
        limit = torch.as_tensor(bound, dtype=torch.float64)
        if a.shape != b.shape:
            raise Broken(f"{what} has shape {tuple(a.shape)}, expected {tuple(b.shape)}")
        error = (a - b).abs()
        ratio = torch.where(error == 0, 0.0, error / limit).nan_to_num(nan=math.inf)
        at = int(ratio.argmax())
        worst = float(ratio.flatten()[at])
        if not worst <= 1:
            raise Broken(
                f"{what} is {float(a.flatten()[at]):.8g}, expected {float(b.flatten()[at]):.8g} "
                f"within {float(limit.expand_as(error).flatten()[at]):.2g}"
            )
        self.ratio = max(self.ratio, worst)

    def __str__(self) -> str:
        return f"error at most {self.ratio:.2g} of its bound"
