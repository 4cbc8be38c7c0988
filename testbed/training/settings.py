"""How a trial is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from testbed.errors import InputError, unknown
from testbed.settings import Setting, Typed

PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adam", "adamw", "sgd")
CLIPPED = ("relative", "raw")
MEMORY_FORMATS = ("contiguous", "channels_last")
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")
OF_THE_LENGTH = ("cosine", "linear")
"""The schedules whose learning rate at a step depends on how long the training is."""
MOST = 10**9
"""Of steps, and of what is counted like them."""
WIDEST = 1 / math.sqrt(12)
"""The width of the average over all steps alike, of those that never fall."""


@dataclass(frozen=True)
class Training(Typed):
    """How a trial is trained; the same for every trial of a comparison unless a study sweeps it.

    Each field says what it is in its `Setting`.

    Raises:
        InputError: a value out of range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    steps: Annotated[int, Setting("Number of optimiser steps.", batch=True, report="training")] = (
        2000
    )
    batch: Annotated[
        int, Setting("Number of samples in a step.", batch=True, report="training")
    ] = 128
    learning_rate: Annotated[
        float,
        Setting(
            "The optimiser's learning rate: that of every step, or the one at which warm-up ends "
            "and decay begins.",
            report="learning rate",
        ),
    ] = 1e-3
    optimizer: Annotated[
        str,
        Setting(
            'What takes the steps: "adam", "adamw" (with weight_decay) or "sgd" (with momentum).',
            report="training",
            since=3,
        ),
    ] = "adam"
    weight_decay: Annotated[
        float,
        Setting(
            "Decoupled decay of adamw: each step multiplies the weights by 1 - rate weight_decay.",
            report="training",
            since=3,
        ),
    ] = 0.0
    momentum: Annotated[
        float,
        Setting(
            "Momentum of sgd: each step follows momentum times the last step, plus the gradient.",
            report="training",
            since=3,
        ),
    ] = 0.0
    eps: Annotated[
        float,
        Setting(
            "Added to the root of Adam's second moment, in units of the loss over its value at "
            "F = 0.",
            since=3,
        ),
    ] = 1e-8
    betas: Annotated[
        tuple[float, float], Setting("Adam's decays of its first and second moments.")
    ] = (0.9, 0.99)
    ema: Annotated[
        float,
        Setting(
            "Decay of the averaged weights; at step t it is min(ema, (1 + t)/(10 + t)).",
            report="training",
            replaced_by="ema_width",
        ),
    ] = 0.999
    clip: Annotated[
        float,
        Setting(
            "Largest norm of the network's gradient, of the loss that clip_loss names; 0 does not "
            "clip.",
            report="gradient clipping",
        ),
    ] = 0.0
    clip_loss: Annotated[
        str,
        Setting(
            'What clip is the largest gradient norm of: "relative", the loss divided by its value '
            'at F = 0, or "raw", the loss itself, which published codes clip.',
            report="gradient clipping",
            since=3,
        ),
    ] = "relative"
    points: Annotated[int, Setting("Number of points that a training curve has.", batch=True)] = 200
    precision: Annotated[
        str,
        Setting(
            '"float32", or "bfloat16": the network alone runs under torch.autocast; weights, the '
            "network's inputs, the loss and the optimiser stay in float32.",
            batch=True,
            report="training",
        ),
    ] = "float32"
    accumulation: Annotated[
        int,
        Setting(
            "Number of equal parts that the batch of a step is split into; their gradients are "
            "averaged, and activations are kept of one part at a time.",
            batch=True,
            since=3,
        ),
    ] = 1
    checkpointing: Annotated[
        bool,
        Setting(
            "Whether the network computes its activations again in the backward pass instead of "
            "keeping them.",
            batch=True,
            since=3,
        ),
    ] = False
    memory_format: Annotated[
        str,
        Setting(
            "How the network's input, and with it its activations, lie in memory: "
            '"contiguous", or "channels_last" for images.',
            batch=True,
            since=3,
        ),
    ] = "contiguous"
    compile: Annotated[
        bool,
        Setting(
            "Whether torch.compile fuses the network, or all of the step of a batch of trials.",
            batch=True,
            since=3,
        ),
    ] = False
    warmup: Annotated[
        int,
        Setting(
            "Number of steps over which the learning rate rises in proportion to 1, 2, ...",
            report="learning rate",
        ),
    ] = 0
    schedule: Annotated[
        str,
        Setting(
            'Decay of the learning rate: "constant" for none, "cosine" or "linear" to 0 at the '
            'end, or "inverse_sqrt", with 1/sqrt((t + 1)/hold) from t + 1 = hold on.',
            report="learning rate",
        ),
    ] = "constant"
    hold: Annotated[
        int,
        Setting(
            "Number of steps before the decay begins; inverse_sqrt needs one or more.",
            report="learning rate",
        ),
    ] = 0
    ema_width: Annotated[
        float,
        Setting(
            "In place of ema the power-function profile of EDM2, by the standard deviation of its "
            "weights over the steps, in units of all steps so far; 0 uses ema.",
            report="training",
        ),
    ] = 0.0

    flips: Annotated[
        float,
        Setting(
            "Probability with which a training image is mirrored, left to right, at each draw: its "
            "last axis is reversed. 0 for none. What is measured is not mirrored.",
            batch=True,
            report="training",
            since=3,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(unknown("precision", self.precision, PRECISIONS))
        if self.optimizer not in OPTIMIZERS:
            raise InputError(unknown("optimizer", self.optimizer, OPTIMIZERS))
        if self.clip_loss not in CLIPPED:
            raise InputError(unknown("clip_loss", self.clip_loss, CLIPPED))
        if self.schedule not in SCHEDULES:
            raise InputError(unknown("schedule", self.schedule, SCHEDULES))
        if self.memory_format not in MEMORY_FORMATS:
            raise InputError(unknown("memory_format", self.memory_format, MEMORY_FORMATS))
        counted, fraction = f"from 1 to {MOST:.0e}", "at least 0 and below 1"
        limits = {
            "steps": (1 <= self.steps <= MOST, counted),
            "batch": (1 <= self.batch <= MOST, counted),
            "points": (1 <= self.points <= MOST, counted),
            "accumulation": (
                1 <= self.accumulation <= self.batch and self.batch % self.accumulation == 0,
                f"a divisor of batch = {self.batch}",
            ),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0 and finite"),
            "betas": (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                f"two numbers {fraction}",
            ),
            "eps": (0 <= self.eps < math.inf, "at least 0 and finite"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            "momentum": (0 <= self.momentum < 1, fraction),
            "ema": (0 <= self.ema < 1, fraction),
            "clip": (self.clip >= 0, "at least 0; 0 for none"),
            "warmup": (0 <= self.warmup <= MOST, f"from 0 to {MOST:.0e}"),
            "hold": (0 <= self.hold < self.steps, "at least 0 and below steps"),
            "flips": (0 <= self.flips <= 1, "a probability, from 0 to 1; 0 for none"),
            "ema_width": (0 <= self.ema_width <= WIDEST, f"from 0 to {WIDEST:.3g}; 0 for ema"),
        }
        for name, (fine, expected) in limits.items():
            if not fine:
                value = getattr(self, name)
                raise InputError(f"{name} = {value!r} is out of range: expected {expected}.")
        for name, owner in (("weight_decay", "adamw"), ("momentum", "sgd")):
            if getattr(self, name) and self.optimizer != owner:
                raise InputError(
                    f"{name} = {getattr(self, name)!r} is an option of {owner}, and optimizer = "
                    f'"{self.optimizer}" has none: write optimizer = "{owner}".'
                )
        if self.schedule == "inverse_sqrt" and not self.hold:
            raise InputError('schedule = "inverse_sqrt" decays from step `hold` on: give hold.')
        if self.schedule == "constant" and self.hold:
            raise InputError(
                f'hold = {self.hold} delays a decay, and schedule = "constant" has none: name one '
                f"of {', '.join(SCHEDULES[1:])}."
            )
