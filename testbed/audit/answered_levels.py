"""The noise levels that a denoiser answers for, where they are not those that it is asked about.

A level may be snapped to a table, rounded with the time argument, clamped to an end, or always the
same. A level is found by a search: of all sigma', the one whose exact output is what came out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from testbed.audit.external import ExternalDenoiser, word_of
from testbed.audit.fits import RESIDUAL, WIDE, Answers, denoised, nearest
from testbed.audit.reference import noisy
from testbed.diffusion.noise_levels import VE, NoiseSchedule
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.oracles import Oracle
from testbed.tensors import per_sample

NARROW = (torch.bfloat16, torch.float16, torch.float32)
MIDDLE = 0.7
"""The level around which steps are looked for."""
STEPS = tuple(2.0**-k for k in range(2, 13))
"""How far beside it, as parts of it: steps of an eighth down to half a unit of float16."""
SAME = 1e-6
"""How far two levels that were found may differ, as a part of them, and be one."""
SAMPLES = 8


def ask(subject: ExternalDenoiser, oracle: Oracle, levels: Tensor) -> Answers:
    """Returns what the subject returns at these levels (L,), `SAMPLES` draws each."""
    x0, eps, sigma = noisy(oracle, levels, SAMPLES)
    x = x0 + per_sample(sigma, x0) * eps
    raw = subject.adapter.raw(subject.make(oracle))
    with torch.no_grad():
        output = raw(x.clone(), sigma.clone())
    return Answers(x, sigma, output.double())


def mismatches(
    found: Answers, subject: ExternalDenoiser, oracle: Oracle, form: NoiseSchedule, levels: Tensor
) -> Tensor:
    """Returns how far the answers at one level are from the right ones for each of `levels` (K,).

    The right output there is q = a(sigma') D + b(sigma') (x' - D)/sigma' with D = E[x0|x'] and x'
    the state that was given, divided by alpha' of `form`. The distances (K,) are relative.
    """
    adapter, sigma = subject.adapter, found.sigma[0]
    pair = PREDICTION_TYPES[adapter.unsigned_prediction_type]
    right, wrong = (form.alpha(form.time(s)) for s in (sigma, levels))
    x, D = denoised(found.x, right / wrong, levels, oracle)
    level = per_sample(levels, x)
    q = adapter.sign * (pair.a(level) * D + pair.b(level) * (x - D) / level)
    if adapter.unsigned_prediction_type == "score":
        q = q / adapter.noise_schedule.alpha(adapter.noise_schedule.time(level))
    off: Tensor = (found.output - q).flatten(1).norm(dim=1) / found.output.norm().clamp(min=1e-300)
    return off


def answered_level(
    found: Answers, subject: ExternalDenoiser, oracle: Oracle, form: NoiseSchedule
) -> float | None:
    """Returns sigma' of the answers at one level, if they are the right ones for sigma'; else None.

    It is looked for from 1e-5 to 1e5.
    """

    def residual(log_levels: Tensor) -> Tensor:
        return mismatches(found, subject, oracle, form, log_levels.exp())

    best = nearest(residual, WIDE, found.x.numel())
    left = float(residual(torch.tensor([best], dtype=torch.float64)))
    return math.exp(best) if left < RESIDUAL else None


def answered_levels(
    subject: ExternalDenoiser, oracle: Oracle, levels: Tensor
) -> list[float] | None:
    """Returns sigma' at each of these levels (L,); None where some answer is right at none."""
    found = ask(subject, oracle, levels)
    for form in dict.fromkeys((VE, subject.adapter.noise_schedule)):
        at: list[float] = []
        for level in levels:
            one = answered_level(found.at(level), subject, oracle, form)
            if one is None:
                break
            at.append(one)
        else:
            return at
    return None


def snapped(subject: ExternalDenoiser, oracle: Oracle) -> str:
    """Returns in words that levels beside each other are answered as one; "" where they are not."""
    low, high = subject.adapter.reaches
    if subject.adapter.table is not None or not low < MIDDLE < high / 2:
        return ""
    levels = MIDDLE * (1 + torch.tensor([0.0, *STEPS[::-1]], dtype=torch.float64))
    answers = answered_levels(subject, oracle, levels)
    if answers is None:
        return ""
    alike = [level for level, one in zip(levels.tolist(), answers, strict=True)
             if same((answers[0], one))]  # fmt: skip
    if len(alike) < 2:
        return ""
    where = f"it answers for {answers[0]:.5g} from {alike[0]:.5g} to {alike[-1]:.5g} at least"
    dtype = _representable(subject, answers)
    if dtype is not None:
        return f"its time argument is rounded to {word_of(dtype)}: {where}"
    return f"the noise level is snapped to a table: {where}"


def clamped(subject: ExternalDenoiser, oracle: Oracle, right: Sequence[float]) -> str:
    """Returns in words that levels beyond an end are answered as that end; "" where they are not.

    The end is found at the first wrong level, and must be that of the others too: of one answer
    far out there may be two roots.

    Args:
        right: The noise levels at which the subject's values are right, or snapped.
    """
    words = []
    for side in ("below", "above") if right else ():
        end = min(right) if side == "below" else max(right)
        wrong = subject.levels[subject.levels < end] if side == "below" else subject.levels[
            subject.levels > end
        ].flip(0)  # fmt: skip
        if not len(wrong):
            continue
        levels = wrong.flip(0)
        if len(levels) == 1 and subject.adapter.table is None:
            levels = torch.stack([levels[0], (levels[0] * end).sqrt()])
        found = ask(subject, oracle, levels)
        for form in dict.fromkeys((VE, subject.adapter.noise_schedule)):
            level = answered_level(found.at(levels[0]), subject, oracle, form)
            at = torch.tensor([level or 1.0], dtype=torch.float64)
            off = [float(mismatches(found.at(one), subject, oracle, form, at)) for one in levels]
            if level is not None and len(levels) > 1 and max(off) < 10 * RESIDUAL:
                words.append(f"noise levels {side} {level:.4g} are clamped to it")
                break
    return " and ".join(words)


def same(levels: Sequence[float], accuracy: float = SAME) -> bool:
    """Whether levels are one, to a relative accuracy."""
    return max(levels) - min(levels) <= accuracy * max(levels)


def _representable(subject: ExternalDenoiser, levels: Sequence[float]) -> torch.dtype | None:
    """Returns the narrowest dtype that has the time argument of every level, if any."""
    sigma = torch.tensor(levels, dtype=torch.float64)
    time = subject.adapter.inside(sigma[:, None], sigma)[1].double()
    for dtype in NARROW:
        if bool(((time.to(dtype).double() - time).abs() <= SAME / 100 * time.abs()).all()):
            return dtype
    return None
