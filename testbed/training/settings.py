"""How a trial is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from testbed.errors import InputError, unknown

PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")
MOST = 10**9
"""Of steps, and of what is counted like them."""
WIDEST = 1 / math.sqrt(12)
"""The width of the average over all steps alike, of those that never fall."""


@dataclass(frozen=True)
class Training:
    """How a trial is trained; the same for every trial of a comparison unless a study sweeps it.

    Args:
        steps: optimiser steps.
        batch: samples a step.
        learning_rate: Adam's; of every step, or where warm-up ends and decay begins.
        warmup: steps over which it rises in proportion to 1, 2, ...
        schedule: its decay: "constant" for none, "cosine" or "linear" to 0 at the end, or
            "inverse_sqrt", with 1/sqrt((t + 1)/hold) from t + 1 = hold on (see `training.rates`).
        hold: steps before the decay; `inverse_sqrt` needs one or more.
        betas: Adam's.
        ema: decay of the averaged weights; at step t it is min(ema, (1 + t)/(10 + t)).
        ema_width: in place of `ema` the power-function profile of EDM2, by the standard deviation
            of its weights over the steps, in units of all steps so far; 0 for `ema`.
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
    warmup: int = 0
    schedule: str = "constant"
    hold: int = 0
    ema_width: float = 0.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(unknown("precision", self.precision, PRECISIONS))
        if self.schedule not in SCHEDULES:
            raise InputError(unknown("schedule", self.schedule, SCHEDULES))
        counted, fraction = f"from 1 to {MOST:.0e}", "at least 0 and below 1"
        limits = {
            "steps": (1 <= self.steps <= MOST, counted),
            "batch": (1 <= self.batch <= MOST, counted),
            "points": (1 <= self.points <= MOST, counted),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0 and finite"),
            "betas": (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                f"two numbers {fraction}",
            ),
            "ema": (0 <= self.ema < 1, fraction),
            "clip": (self.clip >= 0, "at least 0; 0 for none"),
            "warmup": (0 <= self.warmup <= MOST, f"from 0 to {MOST:.0e}"),
            "hold": (0 <= self.hold < self.steps, "at least 0 and below steps"),
            "ema_width": (0 <= self.ema_width <= WIDEST, f"from 0 to {WIDEST:.3g}; 0 for ema"),
        }
        for name, (fine, expected) in limits.items():
            if not fine:
                value = getattr(self, name)
                raise InputError(f"{name} = {value!r} is out of range: expected {expected}.")
        if self.schedule == "inverse_sqrt" and not self.hold:
            raise InputError('schedule = "inverse_sqrt" decays from step `hold` on: give hold.')
        if self.schedule == "constant" and self.hold:
            raise InputError(
                f'hold = {self.hold} delays a decay, and schedule = "constant" has none: name one '
                f"of {', '.join(SCHEDULES[1:])}."
            )


SHARED = ("steps", "batch", "points", "precision")
"""The settings that trials must have alike to train as one."""
OWN = tuple(field.name for field in fields(Training) if field.name not in SHARED)
"""Those that each trial of a batch has for itself."""
