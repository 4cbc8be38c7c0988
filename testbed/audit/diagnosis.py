"""What a wrong subject does instead: the nearest plausible mistake that explains its output.

A denoiser's output, whatever went wrong with signs and scales, is A x + B D'(x) with D' the exact
answer to the question that it believes it was asked. So each hypothesis is a misreading of the
state (x -> g x) and of the noise level (sigma -> h(sigma)); for each, A and B are fitted level by
level, and a hypothesis that leaves nothing over is the diagnosis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.audit import curvature, exact, external
from testbed.audit.external import ExternalDenoiser
from testbed.audit.hypotheses import NOISES, PAIRS, STATES, Function, alpha, misread
from testbed.audit.reference import noisy
from testbed.audit.rows import Row, gamma
from testbed.diffusion.noise_levels import VE, NoiseSchedule
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.oracles import Oracle
from testbed.tensors import per_sample

LEVELS = torch.tensor([0.1, 0.3, 0.7, 1.6, 4.0], dtype=torch.float64)
"""Where x and D are neither equal nor unrelated, and no two functions below agree."""
SAMPLES = 16
LEFT = 1e-6
"""Relative residual below which a fit explains an output: far above the rounding of a fit of two
numbers to 48, far below what a wrong hypothesis leaves on the audit's mixture (above 1e-3)."""


class Question(NamedTuple):
    """What a subject may believe it was asked: D at (g x, sigma'), and the mistakes that makes."""

    told: tuple[str, ...]
    g: Tensor
    sigma: Tensor


class Fit(NamedTuple):
    """Output = A x + B D'(g x, sigma') at each level, (L,) each."""

    told: tuple[str, ...]
    A: Tensor
    B: Tensor
    g: Tensor
    sigma: Tensor


def explain(subject: ExternalDenoiser, oracle: Oracle) -> str:
    """The mistake that explains a wrong denoiser's own output, in words; "" where none does."""
    low, high = subject.adapter.reaches
    levels = LEVELS[(low < LEVELS) & (high > LEVELS)]
    x0, eps, sigma = noisy(oracle, levels, SAMPLES)
    if subject.adapter.table is not None:
        near = (sigma[:, None] - subject.adapter.table).abs().argmin(1)
        sigma = subject.adapter.table[near].double()
        levels = torch.unique(sigma)
    x = x0 + per_sample(sigma, x0) * eps
    raw = subject.adapter.raw(subject.make(oracle))
    with torch.no_grad():
        got, again = raw(x.clone(), sigma.clone()).double(), raw(x.clone(), sigma.clone()).double()
        ones = ((x[i : i + 1].clone(), sigma[i : i + 1].clone()) for i in range(len(x)))
        alone = torch.cat([raw(*one) for one in ones]).double()
    if not bool(torch.isfinite(got).all()):
        bad = sigma[~torch.isfinite(got).flatten(1).all(1)]
        return f"its output is not finite, first at sigma = {float(bad.min()):.3g}."
    if not torch.equal(got, again):
        return "it gives another answer each time: it draws random numbers, or keeps a state."
    questions = list(_questions(subject, sigma))
    best = _fit(questions, x, sigma, got, oracle, levels)
    if best is None and subject.through is None:
        best = _elsewhere(x, sigma, got, oracle, levels, subject.adapter.noise_schedule)
    mixed = (got - alone).abs().max() > LEFT * got.abs().max()
    if mixed and (best is None or not any("batch" in text for text in best.told)):
        single = _fit(questions, x, sigma, alone, oracle, levels)
        words = single and _words(single, subject, levels)
        return "it mixes the samples of a batch: one by one they give another answer" + (
            f", and there {words}." if words else "."
        )
    words = (_words(best, subject, levels) if best else "") or _clipped(subject, oracle, x, sigma)
    return f"{words}." if words else ""


def _clipped(subject: ExternalDenoiser, oracle: Oracle, x: Tensor, sigma: Tensor) -> str:
    """Whether D is the exact one between two bounds that it never leaves."""
    with torch.no_grad():
        got = subject.denoiser(oracle)(x.clone(), sigma.clone()).double()
    low, high, exact = float(got.min()), float(got.max()), oracle.denoise(x, sigma)
    size = float(exact.abs().max())
    beyond = (exact < low - LEFT * size) | (exact > high + LEFT * size)
    near = (got - exact.clamp(low, high)).abs() <= LEFT * size
    if bool(beyond.any()) and bool(near.all()):
        return f"it clips D to [{low:.4g}, {high:.4g}]"
    return ""


def _questions(subject: ExternalDenoiser, sigma: Tensor) -> Iterator[Question]:
    """Every hypothesis, fewest mistakes first."""
    if subject.through is None:
        states = STATES
    else:
        p, sd = subject.through

        def c_in(s: Tensor) -> Tensor:
            return p.coefficients(s, sigma_data=sd).in_

        states = {
            "": torch.ones_like,
            "c_in is missing": lambda s: 1 / c_in(s),
            "c_in is squared": c_in,
            "c_in is 1/sqrt(1 + sigma^2)": lambda s: alpha(s) / c_in(s),
            "c_in is 1/(1 + sigma)": lambda s: 1 / ((1 + s) * c_in(s)),
            "c_in is inverted": lambda s: 1 / c_in(s) ** 2,
            "c_in is 1/(sigma + sigma_data)": lambda s: 1 / ((s + sd) * c_in(s)),
        }
    schedule, noises = subject.adapter.noise_schedule, {**NOISES, **misread(subject.adapter.table)}
    pairs = itertools.product(states.items(), noises.items())
    for (state, g), (noise, h) in sorted(pairs, key=lambda one: bool(one[0][0]) + bool(one[1][0])):
        level = h(sigma)
        if not bool(((level > 1e-5) & (level < 1e5)).all()):
            continue
        told = tuple(text for text in (noise, state) if text)
        if subject.through is not None:
            # The network reads sigma off c_noise, and x off its input by that sigma's c_in.
            yield Question(told, g(sigma) * c_in(sigma) / c_in(level), level)
            continue
        yield Question(told, g(sigma), level)
        if noise and schedule is not VE:
            # What misreads the time takes another alpha too, when it forms x = x_t/alpha.
            asked, read = (schedule.alpha(schedule.time(one)) for one in (sigma, level))
            yield Question(told, g(sigma) * asked / read, level)


def _fit(
    questions: list[Question],
    x: Tensor,
    sigma: Tensor,
    got: Tensor,
    oracle: Oracle,
    levels: Tensor,
) -> Fit | None:
    """The first question whose answer leaves nothing over; None where none does."""
    for told, g, level in questions:
        D = oracle.denoise(per_sample(g, x) * x, level)
        found = []
        for one in levels:
            chosen = sigma == one
            A, B, left = _solved(x[chosen], D[chosen], got[chosen])
            if not left < LEFT:
                break
            found.append((A, B, g[chosen][0], level[chosen][0]))
        else:
            return Fit(told, *(torch.stack(column) for column in zip(*found, strict=True)))
    return None


def _solved(x: Tensor, D: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """A, B of the nearest y = A x + B D, and what is left over, relative to y."""
    basis = torch.stack([x.flatten(), D.flatten()], dim=1)
    y = y.flatten()
    scale = basis.norm(dim=0).clamp(min=1e-300)
    solution = torch.linalg.lstsq(basis / scale, y[:, None]).solution[:, 0] / scale
    left = float((y - basis @ solution).norm() / y.norm().clamp(min=1e-300))
    return solution[0], solution[1], left


def _elsewhere(
    x: Tensor, sigma: Tensor, got: Tensor, oracle: Oracle, levels: Tensor, schedule: NoiseSchedule
) -> Fit | None:
    """The fit with a noise level of its own at each level: a rounded one, another schedule's.

    It is looked for up to four times too low or too high, with x formed by the right alpha or by
    that of the level taken.
    """
    for paired in (False, True) if schedule is not VE else (False,):
        found = []
        for one in levels:
            at = sigma == one
            taken = _nearest(x[at], one, got[at], oracle, schedule if paired else VE)
            if taken is None:
                break
            found.append(taken)
        else:
            A, B, scales, asked = (torch.stack(column) for column in zip(*found, strict=True))
            pairs = zip(asked.tolist(), levels.tolist(), strict=True)
            words = ", ".join(f"{level:.4g} for {s:.4g}" for level, s in pairs)
            return Fit((f"it answers for other noise levels, {words}",), A, B, scales, asked)
    return None


def _nearest(
    x: Tensor, one: Tensor, got: Tensor, oracle: Oracle, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """(A, B, g, sigma') at one level, with g = alpha(sigma)/alpha(sigma')."""
    from scipy import optimize

    def tried(power: float) -> tuple[Tensor, Tensor, float]:
        level = one * math.exp(power)
        return _solved(x, oracle.denoise(g(level) * x, level.expand(len(x))), got)

    def g(level: Tensor) -> Tensor:
        right, other = (schedule.alpha(schedule.time(s)) for s in (one, level))
        return right / other

    grid = torch.linspace(-math.log(4), math.log(4), 81).tolist()
    best = min(grid, key=lambda power: tried(power)[2])
    near = optimize.minimize_scalar(
        lambda power: tried(power)[2],
        bounds=(best - grid[1] + grid[0], best + grid[1] - grid[0]),
        method="bounded",
        options={"xatol": 1e-12},
    )
    A, B, left = tried(near.x)
    level = one * math.exp(near.x)
    return (A, B, g(level), level) if left < LEFT else None


def _words(fit: Fit, subject: ExternalDenoiser, levels: Tensor) -> str:
    """A fit in words; "" where it is what was declared."""
    told = list(fit.told)
    if subject.through is not None:
        return " and ".join([*told, *_wrapped(fit, *subject.through, levels)])
    adapter = subject.adapter
    kind = PREDICTION_TYPES[adapter.kind]
    # g x = D' + sigma' eps': the weights of the pair that it believes to have.
    a, b = fit.A / fit.g + fit.B, fit.A / fit.g * fit.sigma
    sign, time = adapter.sign, adapter.noise_schedule.time
    scale = adapter.noise_schedule.alpha if adapter.kind == "score" else torch.ones_like
    factor = sign / scale(time(levels))
    beliefs = [
        sign / scale(time(s)) * torch.stack((kind.a(s), kind.b(s))) for s in (fit.sigma, levels)
    ]
    if any(_same((a, b), (one[0], one[1]), levels) for one in beliefs):
        return " and ".join(told)
    outer = fit.A + fit.B, fit.A * levels
    if told and _same(outer, (factor * kind.a(levels), factor * kind.b(levels)), levels):
        return " and ".join(told)
    name = _named(a, b, fit.sigma) or _named(*outer, levels)
    if name == "the score" and adapter.kind == "score":
        told.append("its score is of x = x_t/alpha, not of the state x_t: 1/alpha is missing")
        return " and ".join(told)
    if name is not None:
        return " and ".join([*told, f"it returns {name}, read as {adapter.prediction_type}"])
    ratio = outer[0] / (factor * kind.a(levels)) if adapter.kind == "x0" else None
    if adapter.kind in ("eps", "score"):
        ratio = outer[1] / (factor * kind.b(levels))
    wanted = [] if ratio is None else [ratio * factor * part(levels) for part in (kind.a, kind.b)]
    if ratio is not None and _same(outer, (wanted[0], wanted[1]), levels):
        return " and ".join([*told, f"it returns {_times(ratio, levels)} the right {adapter.kind}"])
    w = fit.B
    convex = adapter.kind == "x0" and _same((fit.A + w, w), (torch.ones_like(w), w), levels)
    if convex:
        return " and ".join([*told, f"it goes {_times(w, levels)} the way from x to D"])
    pairs = zip(levels.tolist(), fit.A.tolist(), fit.B.tolist(), strict=True)
    numbers = "; ".join(f"at sigma = {s:.3g} {A:.4g} x + {B:.4g} D" for s, A, B in pairs)
    return " and ".join([*told, f"it returns A x + B D with the wrong A and B: {numbers}"])


def _times(ratio: Tensor, sigma: Tensor) -> str:
    """`1.5 times`, `1/sigma times`, or the factors at each level."""
    if torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-5):
        return f"{float(ratio[0]):.4g} times"
    power = _power(ratio, sigma, 1e-5).removeprefix("a factor ")
    if power:
        return f"{power} times"
    pairs = zip(sigma.tolist(), ratio.tolist(), strict=True)
    return ", ".join(f"{c:.4g} (sigma = {s:.3g})" for s, c in pairs) + " times"


def _wrapped(fit: Fit, p: Parameterization, sigma_data: float, levels: Tensor) -> list[str]:
    """What c_skip and c_out a wrapper uses: D = c_skip x + c_out F with p's F at (g x, sigma')."""
    asked = p.coefficients(fit.sigma, sigma_data=sigma_data)
    needed = p.coefficients(levels, sigma_data=sigma_data)
    # F = (D' - skip' g x)/out', so A = c_skip - c_out skip' g/out' and B = c_out/out'.
    out = fit.B * asked.out
    skip = fit.A + fit.B * asked.skip * fit.g
    for other in (1.0, sigma_data**2, 1 / sigma_data, 2 * sigma_data, sigma_data / 2):
        c = p.coefficients(levels, sigma_data=other)
        is_right = _same((c.skip, c.out), (needed.skip, needed.out), levels)
        if not is_right and _same((skip, out), (c.skip, c.out), levels):
            return [f"c_skip and c_out are those of sigma_data = {other:g}, not {sigma_data:g}"]
    return _differences(levels, {"c_skip": (skip, needed.skip), "c_out": (out, needed.out)}, 1e-5)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], levels: Tensor) -> bool:
    size = (other[0].abs() + other[1].abs()).clamp(min=1e-12)
    return all(bool(((p - q).abs() <= 1e-5 * size).all()) for p, q in zip(one, other, strict=True))


def _named(a: Tensor, b: Tensor, levels: Tensor) -> str | None:
    for sign, word in ((1, ""), (-1, "minus ")):
        for name, (known_a, known_b) in PAIRS.items():
            if _same((a, b), (sign * known_a(levels), sign * known_b(levels)), levels):
                return word + name
    return None


def by_rows(found: Sequence[Row]) -> str:
    """What the rows themselves say: side effects, a cut gradient, narrow arithmetic, a range."""
    failed = {row.law for row in found if not row.passed}
    told = []
    if curvature.ATTACHED in failed:
        told.append("its gradient with respect to x is cut (detach, no_grad or numpy)")
    if external.PURE in failed:
        told.append("it changes its arguments in place")
    if external.STEADY in failed:
        told.append("it draws random numbers, sets their seed, or keeps a state between calls")
    if external.SHAPE in failed:
        told.append("its output has another shape or dtype than x")
    if external.FINITE in failed:
        told.append("its output is not finite at every noise level")
    values = [row for row in found if row.law == exact.TARGET and not row.reason]
    if values and all(row.passed for row in values) and curvature.COVARIANCE in failed:
        told.append("its values are right and its gradient is not: a part of it is detached")
    if external.PURE not in failed:
        told += _where(values)
    return " and ".join(told) + "." if told else ""


def _where(values: Sequence[Row]) -> list[str]:
    """Whether the right values are right in some dtype or between some noise levels only."""
    wide = [row for row in values if row.dtype == "float64"]
    wrong = [row for row in wide if not row.passed]
    if not wrong:
        return []
    # gamma_12 in float64 is 2.7e-15: a bound is about that, times the sizes that are added.
    worst = max(row.error / (row.bound / gamma(12, torch.float64)) for row in wrong)
    # A wrong formula may also be off by a few roundings of bfloat16, which are parts in a hundred.
    narrow = [
        name
        for name, roundings in (("float32", 8), ("float16", 8), ("bfloat16", 2))
        if worst < roundings * gamma(1, getattr(torch, name))
    ]
    told = []
    bad = {row.sigma for row in wrong}
    good = sorted({row.sigma for row in wide} - bad)
    outside = bool(good) and all(level < good[0] or level > good[-1] for level in bad)
    if outside:
        sides = [f"below sigma = {good[0]:.3g}"] * (min(bad) < good[0])
        sides += [f"above sigma = {good[-1]:.3g}"] * (max(bad) > good[-1])
        why = ": digits are lost there" if "float32" in narrow else ""
        told.append(f"it is wrong {' and '.join(sides)} and right elsewhere{why}")
    elif narrow:
        told.append(
            f"it is right to a relative {worst:.1g} and not to float64: "
            f"something inside is rounded to {narrow[0]}"
        )
    return told


def compare(p: Parameterization, sigma_data: float) -> str:
    """Which coefficient of a parameterization disagrees with its stated target; "" for none.

    D = c_skip x + c_out (a x0 + b eps) is x0 only for c_out = 1/(a - b/sigma) and
    c_skip = 1 - c_out a.
    """
    low, high = p.sigma_range
    sigma = LEVELS[(low < LEVELS) & (high > LEVELS)]
    if not p.affine or p.stated_target is None or len(sigma) == 0:
        return ""
    a, b = p.pair_weights(sigma, sigma_data=sigma_data)
    c = p.coefficients(sigma, sigma_data=sigma_data)
    out = 1 / (a - b / sigma)
    skip = 1 - out * a
    told = _differences(sigma, {"c_skip": (c.skip, skip), "c_out": (c.out, out)}, 1e-9)
    if not told:
        return ""
    return " and ".join(told) + ", if the stated target is what the network should output."


def _differences(
    sigma: Tensor, coefficients: Mapping[str, tuple[Tensor, Tensor]], accuracy: float
) -> list[str]:
    """How each (given, needed) differs by more than `accuracy` relative; nothing where equal."""
    told = []
    for name, (given, needed) in coefficients.items():
        size = max(float(needed.abs().max()), accuracy)
        if torch.allclose(given, needed, rtol=accuracy, atol=accuracy * size):
            continue
        ratio = given / needed
        if torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=accuracy):
            c = float(ratio[0])
            wrong_sign = abs(c + 1) < accuracy
            how = "has the wrong sign" if wrong_sign else f"is {c:.4g} times what it must be"
        else:
            power = _power(ratio, sigma, accuracy)
            at = ", ".join(
                f"{float(g):.4g} for {float(n):.4g} at sigma = {float(s):.3g}"
                for s, g, n in list(zip(sigma, given, needed, strict=True))[::2]
            )
            how = f"is off by {power} ({at})" if power else f"is wrong ({at})"
        told.append(f"{name} {how}")
    return told


def _power(ratio: Tensor, sigma: Tensor, accuracy: float) -> str:
    """The known function of sigma that a ratio is, or nothing."""
    known: dict[str, Function] = {
        "a factor sigma": lambda s: s,
        "a factor 1/sigma": lambda s: 1 / s,
        "a factor sigma^2": lambda s: s**2,
        "a factor alpha = 1/sqrt(1 + sigma^2)": alpha,
        "a factor 1/alpha = sqrt(1 + sigma^2)": lambda s: 1 / alpha(s),
        "a factor alpha^2": lambda s: alpha(s) ** 2,
        "a factor 1/alpha^2": lambda s: 1 / alpha(s) ** 2,
        "a factor 1 + sigma": lambda s: 1 + s,
        "a factor 1/(1 + sigma)": lambda s: 1 / (1 + s),
    }
    for name, function in known.items():
        for sign, word in ((1, ""), (-1, "the sign and ")):
            if torch.allclose(ratio, sign * function(sigma), rtol=accuracy):
                return word + name
    return ""
