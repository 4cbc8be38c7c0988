"""Quantities that change with the step: the learning rate and the decay of the averaged weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from testbed.training.settings import SCHEDULES, WIDEST, Training


def constant(t: int, hold: int, steps: int) -> float:
    """The factor 1 at every step."""
    return 1.0


def cosine(t: int, hold: int, steps: int) -> float:
    """(1 + cos(pi s))/2, s = (t - hold)/(steps - hold) (Loshchilov and Hutter 2017, eq. 5)."""
    return (1 + math.cos(math.pi * max(0, t - hold) / (steps - hold))) / 2


def linear(t: int, hold: int, steps: int) -> float:
    """1 - s, s = (t - hold)/(steps - hold)."""
    return 1 - max(0, t - hold) / (steps - hold)


def inverse_sqrt(t: int, hold: int, steps: int) -> float:
    """1/sqrt(max((t + 1)/hold, 1)) (Karras et al. 2024, arXiv:2312.02696, app. B)."""
    return 1 / math.sqrt(max((t + 1) / hold, 1.0))


SHAPES: dict[str, Callable[[int, int, int], float]] = dict(
    zip(SCHEDULES, (constant, cosine, linear, inverse_sqrt), strict=True)
)
"""The factor on the learning rate at step t = 0, 1, ..., after `hold` steps without decay."""


def learning_rate(training: Training, t: int) -> float:
    """The learning rate of step t = 0, 1, ....

    It is `training.learning_rate` times min((t + 1)/warmup, 1) times the factor of the schedule.
    """
    rate = training.learning_rate
    if training.warmup:
        rate *= min((t + 1) / training.warmup, 1.0)
    return rate * SHAPES[training.schedule](t, training.hold, training.steps)


def decay(training: Training, t: int) -> float:
    """beta of the average at step t = 0, 1, ...: average' = beta average + (1 - beta) weights.

    beta is min(ema, (1 + t)/(10 + t)), so that the average soon forgets the initial weights; or,
    with `ema_width`, the power-function profile (1 - 1/(t + 1))^(gamma + 1) (Karras et al. 2024,
    sec. 3.1).
    """
    if training.ema_width:
        return profile_decay(training.ema_width, t)
    return min(training.ema, (1 + t) / (10 + t))


def profile_decay(width: float, t: int) -> float:
    """beta of the power-function average of a width at step t; see `decay`."""
    return math.pow(t / (t + 1), exponent(width) + 1)


@functools.cache
def exponent(width: float) -> float:
    """gamma >= 0 of a profile t^gamma on [0, 1] with standard deviation `width`.

    width^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)) (Karras et al. 2024, app. C): it falls
    with gamma >= 0, from 1/sqrt(12). With y = 1/width^2 the root of a cubic,

        gamma^3 + 7 gamma^2 + (16 - y) gamma + 12 - y = 0,

    by Newton's method from the right of it, where the cubic is convex and rises.

    Raises:
        ValueError: the width is not above 0, or no profile is that wide.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"width = {width}: expected above 0 and at most 1/sqrt(12).")
    y = width**-2
    gamma = math.sqrt(y)
    for _ in range(64):
        value = ((gamma + 7) * gamma + 16 - y) * gamma + 12 - y
        newton = gamma - value / ((3 * gamma + 14) * gamma + 16 - y)
        if not newton < gamma:
            break
        gamma = newton
    return max(gamma, 0.0)
