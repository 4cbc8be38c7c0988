"""How a trial is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from testbed.errors import InputError, unknown

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Training:
    """How a trial is trained; the same for every trial of a comparison unless a study sweeps it.

    Args:
        steps: optimiser steps.
        batch: samples a step.
        learning_rate: Adam's, constant.
        betas: Adam's.
        ema: decay of the averaged weights; at step t it is min(ema, (1 + t)/(10 + t)).
        clip: largest gradient norm, or 0 for none.
        points: how many points a training curve has.
        precision: "float32", or "bfloat16": the network alone by torch.autocast; weights, what it
            is given, loss and optimiser stay in float32.

    Raises:
        InputError: a value out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": False}

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    clip: float = 0.0
    points: int = 200
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(unknown("precision", self.precision, PRECISIONS))
        limits = {
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "betas": len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "ema": 0 <= self.ema < 1,
            "clip": self.clip >= 0,
            "points": self.points >= 1,
        }
        for name, fine in limits.items():
            if not fine:
                raise InputError(f"{name} = {getattr(self, name)!r} is out of range.")
