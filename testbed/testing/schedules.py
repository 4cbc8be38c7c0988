"""The laws of schedules: the noise levels at which a sampler stops, from sigma_max down to 0."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.schedule import Schedule
from testbed.diffusion.noise_tables import TABLES, NoiseTable
from testbed.testing import behaviour
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import options_matter, refuses

LAWS = Group("schedule")
STEPS = (1, 2, 3, 7, 18, 50)
RANGES = ((0.002, 80.0), (0.01, 10.0), (0.5, 20.0))


@dataclass(frozen=True)
class Run:
    """The levels (steps + 1,) of one run, and what they were made for."""

    levels: Tensor
    steps: int
    low: float
    high: float

    @property
    def where(self) -> str:
        """The run in a message."""
        return f"for {self.steps} steps from {self.high:g} to {self.low:g}"


def _table(name: str = "ddpm") -> NoiseTable:
    return TABLES[name].bound({})


def runs(
    s: Schedule,
    steps: tuple[int, ...] = STEPS,
    ranges: tuple[tuple[float, float], ...] = RANGES,
) -> Iterator[Run]:
    """Every number of steps in every range.

    What the schedule refuses, such as more steps than it has levels, is left out.
    """
    for low, high in ranges:
        for n in steps:
            try:
                levels = s(n, low, high, _table())
            except ValueError as problem:
                if not refuses(problem):
                    raise
            else:
                yield Run(levels, n, low, high)


@LAWS.law("For n steps there are n + 1 levels, (n + 1,) float64, whatever n and the range.")
def shape(s: Schedule, context: Context) -> str:
    every = list(runs(s))
    demand(bool(every), "it refuses every run.")
    for run in every:
        demand(
            run.levels.shape == (run.steps + 1,) and run.levels.dtype == torch.float64,
            f"{tuple(run.levels.shape)} {run.levels.dtype} {run.where}.",
        )
    return f"{len(every)} runs"


@LAWS.law("The levels are finite and fall strictly.")
def descends(s: Schedule, context: Context) -> None:
    for run in runs(s):
        demand(bool(torch.isfinite(run.levels).all()), f"not all are finite {run.where}.")
        step = run.levels.diff()
        if not bool((step < 0).all()):
            i = int((step >= 0).nonzero()[0])
            raise CheckFailed(
                f"{float(run.levels[i]):.6g} is followed by {float(run.levels[i + 1]):.6g} at step "
                f"{i + 1} {run.where}."
            )


@LAWS.law("The last level is 0, where the samples are, and no other is.")
def ends_at_zero(s: Schedule, context: Context) -> None:
    for run in runs(s):
        demand(float(run.levels[-1]) == 0, f"the last is {float(run.levels[-1]):.4g} {run.where}.")
        demand(bool((run.levels[:-1] != 0).all()), f"0 comes before the end {run.where}.")


def _rounding(sigma: float) -> float:
    """What a level may be off, as a part of it, if it comes from abar = 1/(1 + sigma^2).

    An error of gamma in abar is one of gamma (1 + sigma^2)^2/(2 sigma^2) in log sigma; the times of
    other forms, such as sigma/(1 + sigma), lose less.
    """
    return gamma(64, torch.float64) * (1 + sigma**2) ** 2 / (2 * sigma**2)


@LAWS.law("Every level but the last lies within [sigma_min, sigma_max], to rounding.")
def within(s: Schedule, context: Context) -> str:
    shown = ""
    for run in runs(s):
        first, last = float(run.levels[0]), float(run.levels[-2])
        demand(
            first <= run.high * (1 + _rounding(run.high))
            and float(run.levels[:-1].min()) >= run.low * (1 - _rounding(run.low)),
            f"they go from {first:.8g} to {last:.8g} {run.where}.",
        )
        if (run.steps, run.low) == (18, RANGES[0][0]) and not shown:
            short = first < run.high * (1 - _rounding(run.high))
            note = ": it begins below sigma_max" if short else ""
            shown = f"{first:.6g} to {last:.4g} {run.where}{note}"
    return shown


@LAWS.law("Four times as many steps are finer: the largest step is smaller.")
def refines(s: Schedule, context: Context) -> str:
    """A sampler's error goes to 0 with the largest step, and not before it does."""
    compared, coarse = 0, math.inf
    for run in runs(s, (8, 32, 128), RANGES[:1]):
        largest = float(run.levels.diff().abs().max())
        if run.steps > 8:
            compared += 1
            demand(
                largest < coarse,
                f"the largest step is {largest:.4g}, and {coarse:.4g} with a fourth as many, "
                f"{run.where}.",
            )
        coarse = largest
    if not compared:
        raise Skipped("it refuses 32 steps")
    return f"{compared} times compared"


@LAWS.law("One that asks for the trial's table takes every level from it, whichever table it is.")
def table(s: Schedule, context: Context) -> str:
    if not s.takes_table:
        raise Skipped("it asks for no table")
    for name in TABLES:
        mine = _table(name)
        levels = s(7, *RANGES[0], mine)
        foreign = ~torch.isin(levels[:-1], mine.sigmas)
        if bool(foreign.any()):
            at = float(levels[:-1][foreign][0])
            raise CheckFailed(f"{at:.6g} is no level of the table {name!r}.")
    return f"levels of {', '.join(TABLES)}"


@LAWS.law("Pure: the table and global state stay as they were, the same call gives the same bits.")
def pure(s: Schedule, context: Context) -> None:
    mine = _table()
    low, high = RANGES[0]
    with behaviour.harmless(mine.sigmas):
        first, second = (s(7, low, high, mine).clone() for _ in range(2))
    demand(behaviour.same(first, second), "the same call gave other levels the second time.")


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(s: Schedule, context: Context) -> str:
    return options_matter(s)


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(s: Schedule, context: Context) -> str:
    return behaviour.equal_elsewhere(s, context)
