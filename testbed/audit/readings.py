"""How a trained network's output is to be read: the stated way against all others, by data.

A network's output is evidence of what it was trained for: read rightly it denoises the data, and
read in any other way it does not. The measure is the error of D at each noise level, over that of
the isotropic linear denoiser m + v/(v + sigma^2) (x - m), which needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from scipy import special
from torch import Tensor

from testbed.audit.adapters import SCHEDULES, TIME_ARGUMENTS, Adapter
from testbed.audit.external import ExternalDenoiser
from testbed.audit.rows import LawCheck, skipped, verdict
from testbed.diffusion.noise_levels import VE
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.random import stream

STATED = "no other reading of its output fits the data better"
BEYOND_LINEAR = "better than a linear denoiser of the data at some noise level"
SPAN, LEVELS = 1.5, 9
"""Decades on both sides of the data's deviation, and the number of noise levels in them."""
CONFIDENCE = 0.95
"""Of all intervals together that decide whether a reading is better than the linear denoiser."""
LINEAR = 10.0
"""Excess of the linear denoiser, over its own loss and 1/n, below which nothing is left to learn.

Its mean and variance are those of n samples, which costs it about 1/n."""


@dataclass(frozen=True)
class Errors:
    """|D - reference|^2 per dimension, (L, n), reference x0 or, where it is known, E[x0|x]."""

    adapter: Adapter
    values: Tensor

    def score(self, scale: Tensor) -> float:
        """Returns the mean over levels of log min(1, error/scale): lower fits better."""
        share = (self.values.mean(1) / scale).nan_to_num(nan=math.inf).clamp(1e-12, 1)
        return float(share.log().mean())

    def below(self, other: Tensor, tests: int) -> Tensor:
        """Returns at which levels (L,) the error is below the other (L, n), by a paired t-test."""
        difference = (self.values - other).nan_to_num(nan=math.inf, posinf=1e300, neginf=-1e300)
        n = difference.shape[1]
        quantile = float(-special.stdtrit(n - 1, (1 - CONFIDENCE) / tests))
        upper = difference.mean(1) + quantile * difference.std(1) / math.sqrt(n)
        return upper < 0


def check(
    subject: ExternalDenoiser, x0: Tensor, oracle: Oracle | None
) -> tuple[list[LawCheck], list[str]]:
    """Checks that a trained network denoises the data, and best as it is stated to be read.

    Args:
        subject: The network, with the adapter that states how it is read.
        x0: Data that it is trained for, (n, ...), n >= 2.
        oracle: Their distribution, where it is known.

    Returns:
        The two laws, and in words what fits better, or that nothing was learnt.
    """
    mean, v = x0.double().mean(0), float((x0.double() - x0.double().mean(0)).square().mean())
    sigmas = _levels(subject, math.sqrt(v))
    if not len(sigmas):
        reason = "no noise level of its range is near the data's deviation"
        return [skipped(law, subject.name, reason) for law in (STATED, BEYOND_LINEAR)], []
    generator = stream(0, "audit/readings")
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    states = [x0.double() + s * eps for s in sigmas]
    reference = [
        x0.double() if oracle is None else oracle.denoise(x, s)
        for x, s in zip(states, sigmas, strict=True)
    ]
    linear = torch.stack(
        [
            _error(mean + v / (v + s**2) * (x - mean), D)
            for x, s, D in zip(states, sigmas, reference, strict=True)
        ]
    )
    every = [
        Errors(adapter, values)
        for adapter, values in _readings(subject, states, sigmas, reference, x0.dtype)
    ]
    stated, scale, own = every[0], linear.mean(1), v * sigmas**2 / (v + sigmas**2)
    tests = len(sigmas) * len(every)
    learnt = [one for one in every if bool(one.below(linear, tests).any())]
    if oracle is not None and bool((scale < LINEAR / len(x0) * own).all()):
        reason = "the best denoiser of these data is linear: it tells no readings apart"
        return [skipped(law, subject.name, reason) for law in (STATED, BEYOND_LINEAR)], []
    if not learnt:
        return [
            verdict(BEYOND_LINEAR, subject.name, False),
            skipped(STATED, subject.name, "it is no better than a linear denoiser"),
        ], [
            f"at none of {len(sigmas)} noise levels from {float(sigmas[0]):.2g} to "
            f"{float(sigmas[-1]):.2g} is it better than a linear denoiser, read in any way: are "
            "its weights loaded? (load_state_dict(..., strict=False) passes over names that do "
            "not fit.)"
        ]
    laws = [verdict(BEYOND_LINEAR, subject.name, True)]
    best = min(learnt, key=lambda one: one.score(scale))
    better = best.below(stated.values, len(sigmas))
    fits = best.score(scale) >= stated.score(scale) or not bool(better.any())
    laws.append(verdict(STATED, subject.name, fits))
    return laws, [] if fits else [_words(best, stated, sigmas, scale, better, oracle is not None)]


def _levels(subject: ExternalDenoiser, deviation: float) -> Tensor:
    """Returns the levels around the data's deviation that the subject can be asked about."""
    sigmas = deviation * torch.logspace(-SPAN, SPAN, LEVELS, dtype=torch.float64)
    low, high = subject.adapter.reaches
    if any(level < float(subject.levels[0]) for level in subject.refused):
        low = float(subject.levels[0])
    if any(level > float(subject.levels[-1]) for level in subject.refused):
        high = float(subject.levels[-1])
    table = subject.adapter.table
    if table is not None:
        sigmas = table[torch.unique((table - sigmas[:, None]).abs().argmin(1))].double()
        return sigmas[(sigmas >= low) & (sigmas <= high)]
    return sigmas[(sigmas > low) & (sigmas < high)]


def _readings(
    subject: ExternalDenoiser,
    states: list[Tensor],
    sigmas: Tensor,
    reference: list[Tensor],
    dtype: torch.dtype,
) -> Iterator[tuple[Adapter, Tensor]]:
    """Yields every reading with its errors (L, n), the stated one first.

    A reading that raises is none.
    """
    stated = subject.adapter
    types = [sign + name for name in PREDICTION_TYPES for sign in ("", "-")]
    types = [stated.prediction_type, *(one for one in types if one != stated.prediction_type)]
    function = subject.make(subject.reference)
    for adapter in _asked(stated):
        low, high = adapter.reaches
        if not (low <= float(sigmas[0]) and float(sigmas[-1]) <= high):
            continue
        wide = torch.promote_types(dtype, torch.float32)
        levels = [s.expand(len(x)) for s, x in zip(sigmas, states, strict=True)]
        try:
            with torch.no_grad():
                outputs = [
                    adapter.raw(function)(x.to(dtype), s.to(wide)).double()
                    for x, s in zip(states, levels, strict=True)
                ]
        except InputError:
            raise
        except Exception:
            if adapter is stated:
                raise
            continue
        for prediction_type in types:
            one = replace(adapter, prediction_type=prediction_type)
            errors = [
                _error(one.read(q, x, s), D)
                for q, x, s, D in zip(outputs, states, levels, reference, strict=True)
            ]
            yield one, torch.stack(errors)


def _asked(stated: Adapter) -> Iterator[Adapter]:
    """Yields every state and time that a network may take, the stated ones first.

    Other schedules have another state, and the stated one may have another time: an index that
    counts from the noisiest level, or a level in other words.
    """
    yield stated
    # The cosine schedule has VP's states: only its time is another.
    own_time = stated.time_argument in ("time", "1-time")
    for name in SCHEDULES:
        if name != stated.noise_schedule.name and (own_time or name != "cosine"):
            yield replace(stated, schedule=name)
    if stated.table is not None:
        yield replace(stated, table=stated.table.flip(0))
        return
    alike = ("sigma", "time") if stated.noise_schedule is VE else ()
    for time in TIME_ARGUMENTS:
        own = time == stated.time_argument or {time, stated.time_argument} == set(alike)
        if not own and time != "index":
            yield replace(stated, time_argument=time)


def _error(D: Tensor, reference: Tensor) -> Tensor:
    """Returns |D - reference|^2 per dimension, (n,)."""
    return (D - reference).square().flatten(1).mean(1)


def _words(
    best: Errors, stated: Errors, sigmas: Tensor, scale: Tensor, better: Tensor, exact: bool
) -> str:
    """Returns which reading fits best, and by how much."""
    reading, said = best.adapter, [f"--prediction-type {best.adapter.prediction_type}"]
    if reading.schedule != stated.adapter.schedule:
        said.append(f"--schedule {reading.noise_schedule.name}")
    if reading.time_argument != stated.adapter.time_argument:
        said.append(f"--time-argument {reading.time_argument}")
    if reading.table is not stated.adapter.table:
        said.append("the index counted from the noisiest level")
    mine, theirs = best.values.mean(1), stated.values.mean(1)
    # Where both are worse than linear, a ratio says nothing of which is right.
    gain = (theirs.clamp(max=1e300) / mine.clamp(min=1e-300)).log() * (mine < scale)
    at = int(gain.nan_to_num(nan=0.0).argmax())
    what = "|D - E[x0|x]|^2" if exact else "|D - x0|^2"
    return (
        f"read with {' '.join(said)} it fits the data better: {what} per dimension is smaller at "
        f"{int(better.sum())} of {len(sigmas)} noise levels, and at sigma = "
        f"{float(sigmas[at]):.3g} it is {float(mine[at]):.3g} and not {float(theirs[at]):.3g}."
    )
