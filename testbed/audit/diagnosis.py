"""The diagnosis of a wrong subject: the nearest plausible mistake that explains its output.

A denoiser's output, whatever went wrong with signs and scales, is A x + B D'(x) with D' the exact
denoiser at the state and the noise level that it takes its arguments for. So each hypothesis is a
misreading of the state (x -> g x) and of the noise level (sigma -> h(sigma)); for each, A and B are
fitted level by level, and a hypothesis whose fit leaves no residual is the diagnosis.
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
from testbed.audit.hypotheses import NOISE_LEVELS, PAIRS, STATES, Function, alpha, misread
from testbed.audit.reference import noisy
from testbed.audit.rows import LawCheck, gamma
from testbed.diffusion.noise_levels import VE, NoiseSchedule
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.oracles import Oracle
from testbed.tensors import per_sample

LEVELS = torch.tensor([0.1, 0.3, 0.7, 1.6, 4.0], dtype=torch.float64)
"""Where x and D are neither equal nor unrelated, and no two functions below agree."""
SAMPLES = 16
RESIDUAL = 1e-6
"""Relative residual below which a fit explains an output: far above the rounding of a fit of two
numbers to 48, far below what a wrong hypothesis leaves on the audit's mixture (above 1e-3)."""


class Misreading(NamedTuple):
    """A hypothesis: the subject answers for (g x, sigma'), g and sigma' (B,), by some mistakes."""

    mistakes: tuple[str, ...]
    g: Tensor
    sigma: Tensor


class Fit(NamedTuple):
    """Output = A x + B D'(g x, sigma') at each level, (L,) each, and the mistakes that imply it."""

    mistakes: tuple[str, ...]
    A: Tensor
    B: Tensor
    g: Tensor
    sigma: Tensor


def explain(subject: ExternalDenoiser, oracle: Oracle) -> str:
    """Returns the mistake that explains a wrong denoiser's output, in words; "" where none does."""
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
        output = raw(x.clone(), sigma.clone()).double()
        again = raw(x.clone(), sigma.clone()).double()
        ones = ((x[i : i + 1].clone(), sigma[i : i + 1].clone()) for i in range(len(x)))
        alone = torch.cat([raw(*one) for one in ones]).double()
    if not bool(torch.isfinite(output).all()):
        bad = sigma[~torch.isfinite(output).flatten(1).all(1)]
        return f"its output is not finite, first at sigma = {float(bad.min()):.3g}."
    if not torch.equal(output, again):
        return "it gives another answer each time: it draws random numbers, or keeps a state."
    misreadings = list(_misreadings(subject, sigma))
    best = _fit(misreadings, x, sigma, output, oracle, levels)
    if best is None and subject.preconditioning is None:
        best = _fit_noise_levels(x, sigma, output, oracle, levels, subject.adapter.noise_schedule)
    mixed = (output - alone).abs().max() > RESIDUAL * output.abs().max()
    if mixed and (best is None or not any("batch" in text for text in best.mistakes)):
        single = _fit(misreadings, x, sigma, alone, oracle, levels)
        words = single and _words(single, subject, levels)
        return "it mixes the samples of a batch: one by one they give another answer" + (
            f", and there {words}." if words else "."
        )
    words = (_words(best, subject, levels) if best else "") or _clipped(subject, oracle, x, sigma)
    return f"{words}." if words else ""


def _clipped(subject: ExternalDenoiser, oracle: Oracle, x: Tensor, sigma: Tensor) -> str:
    """Returns the two bounds within which D is the exact one and which it never leaves, if any."""
    with torch.no_grad():
        D = subject.denoiser(oracle)(x.clone(), sigma.clone()).double()
    low, high, exact = float(D.min()), float(D.max()), oracle.denoise(x, sigma)
    size = float(exact.abs().max())
    beyond = (exact < low - RESIDUAL * size) | (exact > high + RESIDUAL * size)
    near = (D - exact.clamp(low, high)).abs() <= RESIDUAL * size
    if bool(beyond.any()) and bool(near.all()):
        return f"it clips D to [{low:.4g}, {high:.4g}]"
    return ""


def _misreadings(subject: ExternalDenoiser, sigma: Tensor) -> Iterator[Misreading]:
    """Yields every hypothesis, those of the fewest mistakes first."""
    if subject.preconditioning is None:
        states = STATES
    else:
        p, sd = subject.preconditioning

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
    schedule, noises = (
        subject.adapter.noise_schedule,
        {**NOISE_LEVELS, **misread(subject.adapter.table)},
    )
    pairs = itertools.product(states.items(), noises.items())
    for (state, g), (noise, h) in sorted(pairs, key=lambda one: bool(one[0][0]) + bool(one[1][0])):
        level = h(sigma)
        if not bool(((level > 1e-5) & (level < 1e5)).all()):
            continue
        mistakes = tuple(text for text in (noise, state) if text)
        if subject.preconditioning is not None:
            # The network reads sigma off c_noise, and x off its input by that sigma's c_in.
            yield Misreading(mistakes, g(sigma) * c_in(sigma) / c_in(level), level)
            continue
        yield Misreading(mistakes, g(sigma), level)
        if noise and schedule is not VE:
            # What misreads the time takes another alpha too, when it forms x = x_t/alpha.
            right, wrong = (schedule.alpha(schedule.time(one)) for one in (sigma, level))
            yield Misreading(mistakes, g(sigma) * right / wrong, level)


def _fit(
    misreadings: list[Misreading],
    x: Tensor,
    sigma: Tensor,
    output: Tensor,
    oracle: Oracle,
    levels: Tensor,
) -> Fit | None:
    """Returns the first hypothesis whose fit leaves no residual; None where none does."""
    for mistakes, g, level in misreadings:
        D = oracle.denoise(per_sample(g, x) * x, level)
        fits = []
        for one in levels:
            here = sigma == one
            A, B, residual = _least_squares(x[here], D[here], output[here])
            if not residual < RESIDUAL:
                break
            fits.append((A, B, g[here][0], level[here][0]))
        else:
            return Fit(mistakes, *(torch.stack(column) for column in zip(*fits, strict=True)))
    return None


def _least_squares(x: Tensor, D: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Returns A and B of the nearest y = A x + B D, and the norm of the residual over that of y."""
    basis = torch.stack([x.flatten(), D.flatten()], dim=1)
    y = y.flatten()
    scale = basis.norm(dim=0).clamp(min=1e-300)
    solution = torch.linalg.lstsq(basis / scale, y[:, None]).solution[:, 0] / scale
    residual = float((y - basis @ solution).norm() / y.norm().clamp(min=1e-300))
    return solution[0], solution[1], residual


def _fit_noise_levels(
    x: Tensor,
    sigma: Tensor,
    output: Tensor,
    oracle: Oracle,
    levels: Tensor,
    schedule: NoiseSchedule,
) -> Fit | None:
    """Returns the fit with another noise level at each: a rounded one, another schedule's.

    It is looked for up to four times too low or too high, with x formed by the right alpha or by
    that of the wrong level.
    """
    for form in dict.fromkeys((VE, schedule)):
        fits = []
        for one in levels:
            here = sigma == one
            fit = _fit_noise_level(x[here], one, output[here], oracle, form)
            if fit is None:
                break
            fits.append(fit)
        else:
            A, B, scales, wrong = (torch.stack(column) for column in zip(*fits, strict=True))
            pairs = zip(wrong.tolist(), levels.tolist(), strict=True)
            words = ", ".join(f"{level:.4g} for {s:.4g}" for level, s in pairs)
            return Fit((f"it answers for other noise levels, {words}",), A, B, scales, wrong)
    return None


def _fit_noise_level(
    x: Tensor, sigma: Tensor, output: Tensor, oracle: Oracle, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Returns (A, B, g, sigma') at one level, g = alpha(sigma)/alpha(sigma'), if a fit exists."""
    from scipy import optimize

    def fit(log_ratio: float) -> tuple[Tensor, Tensor, float]:
        level = sigma * math.exp(log_ratio)
        return _least_squares(x, oracle.denoise(g(level) * x, level.expand(len(x))), output)

    def g(level: Tensor) -> Tensor:
        right, wrong = (schedule.alpha(schedule.time(s)) for s in (sigma, level))
        return right / wrong

    grid = torch.linspace(-math.log(4), math.log(4), 81).tolist()
    best = min(grid, key=lambda log_ratio: fit(log_ratio)[2])
    near = optimize.minimize_scalar(
        lambda log_ratio: fit(log_ratio)[2],
        bounds=(best - grid[1] + grid[0], best + grid[1] - grid[0]),
        method="bounded",
        options={"xatol": 1e-12},
    )
    A, B, residual = fit(near.x)
    level = sigma * math.exp(near.x)
    return (A, B, g(level), level) if residual < RESIDUAL else None


def _words(fit: Fit, subject: ExternalDenoiser, levels: Tensor) -> str:
    """Returns a fit in words; "" where the fit is the declared output."""
    return " and ".join([*fit.mistakes, *_output_mistakes(fit, subject, levels)])


def _output_mistakes(fit: Fit, subject: ExternalDenoiser, levels: Tensor) -> list[str]:
    """Returns what is wrong with the output of a fit, besides the misreadings of its arguments."""
    if subject.preconditioning is not None:
        return _wrapped(fit, *subject.preconditioning, levels)
    adapter = subject.adapter
    unsigned = adapter.unsigned_prediction_type
    pair = PREDICTION_TYPES[unsigned]
    # g x = D' + sigma' eps': the weights of the pair that it believes to have.
    a, b = fit.A / fit.g + fit.B, fit.A / fit.g * fit.sigma
    sign, time = adapter.sign, adapter.noise_schedule.time
    scale = adapter.noise_schedule.alpha if unsigned == "score" else torch.ones_like
    factor = sign / scale(time(levels))
    beliefs = [
        sign / scale(time(s)) * torch.stack((pair.a(s), pair.b(s))) for s in (fit.sigma, levels)
    ]
    if any(_same((a, b), (one[0], one[1]), levels) for one in beliefs):
        return []
    outer = fit.A + fit.B, fit.A * levels
    right = factor * pair.a(levels), factor * pair.b(levels)
    if fit.mistakes and _same(outer, right, levels):
        return []
    name = _named(a, b, fit.sigma) or _named(*outer, levels)
    if name == "the score" and unsigned == "score":
        return ["its score is of x = x_t/alpha, not of the state x_t: 1/alpha is missing"]
    if name is not None:
        return [f"it returns {name}, read as {adapter.prediction_type}"]
    if unsigned in ("x0", "eps", "score"):
        # One of the weights a and b of these is 0, and the other has the factor.
        i = 0 if unsigned == "x0" else 1
        ratio = outer[i] / right[i]
        if _same(outer, (ratio * right[0], ratio * right[1]), levels):
            return [f"it returns {_times(ratio, levels)} the right {unsigned}"]
    w = fit.B
    if unsigned == "x0" and _same((fit.A + w, w), (torch.ones_like(w), w), levels):
        return [f"it goes {_times(w, levels)} the way from x to D"]
    pairs = zip(levels.tolist(), fit.A.tolist(), fit.B.tolist(), strict=True)
    numbers = "; ".join(f"at sigma = {s:.3g} {A:.4g} x + {B:.4g} D" for s, A, B in pairs)
    return [f"it returns A x + B D with the wrong A and B: {numbers}"]


def _times(ratio: Tensor, sigma: Tensor) -> str:
    """Returns `1.5 times`, `1/sigma times`, or the factors at each level."""
    if torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-5):
        return f"{float(ratio[0]):.4g} times"
    power = _power(ratio, sigma, 1e-5).removeprefix("a factor ")
    if power:
        return f"{power} times"
    pairs = zip(sigma.tolist(), ratio.tolist(), strict=True)
    return ", ".join(f"{c:.4g} (sigma = {s:.3g})" for s, c in pairs) + " times"


def _wrapped(fit: Fit, p: Parameterization, sigma_data: float, levels: Tensor) -> list[str]:
    """Returns the mistakes of a wrapper: D = c_skip x + c_out F with p's F at (g x, sigma')."""
    inner = p.coefficients(fit.sigma, sigma_data=sigma_data)
    right = p.coefficients(levels, sigma_data=sigma_data)
    # F = (D' - skip' g x)/out', so A = c_skip - c_out skip' g/out' and B = c_out/out'.
    out = fit.B * inner.out
    skip = fit.A + fit.B * inner.skip * fit.g
    for other in (1.0, sigma_data**2, 1 / sigma_data, 2 * sigma_data, sigma_data / 2):
        c = p.coefficients(levels, sigma_data=other)
        is_right = _same((c.skip, c.out), (right.skip, right.out), levels)
        if not is_right and _same((skip, out), (c.skip, c.out), levels):
            return [f"c_skip and c_out are those of sigma_data = {other:g}, not {sigma_data:g}"]
    return _differences(levels, {"c_skip": (skip, right.skip), "c_out": (out, right.out)}, 1e-5)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], levels: Tensor) -> bool:
    size = (other[0].abs() + other[1].abs()).clamp(min=1e-12)
    return all(bool(((p - q).abs() <= 1e-5 * size).all()) for p, q in zip(one, other, strict=True))


def _named(a: Tensor, b: Tensor, levels: Tensor) -> str | None:
    for sign, word in ((1, ""), (-1, "minus ")):
        for name, pair in PAIRS.items():
            if _same((a, b), (sign * pair[0](levels), sign * pair[1](levels)), levels):
                return word + name
    return None


SYMPTOMS = {
    curvature.ATTACHED: "its gradient with respect to x is cut (detach, no_grad or numpy)",
    external.PURE: "it changes its arguments in place",
    external.STEADY: "it draws random numbers, sets their seed, or keeps a state between calls",
    external.SHAPE: "its output has another shape or dtype than x",
    external.FINITE: "its output is not finite at every noise level",
}
"""What it means that a law is broken, where the law itself says it."""


def by_rows(checks: Sequence[LawCheck]) -> str:
    """Returns what the broken laws themselves say; "" where they say nothing.

    They show side effects, a cut gradient, narrow arithmetic, and the range of wrong noise levels.
    """
    failed = {row.law for row in checks if not row.passed}
    mistakes = [symptom for law, symptom in SYMPTOMS.items() if law in failed]
    values = [row for row in checks if row.law == exact.TARGET and not row.reason]
    if values and all(row.passed for row in values) and curvature.COVARIANCE in failed:
        mistakes.append("its values are right and its gradient is not: a part of it is detached")
    if external.PURE not in failed:
        mistakes += _where(values)
    return " and ".join(mistakes) + "." if mistakes else ""


def _where(values: Sequence[LawCheck]) -> list[str]:
    """Returns in which dtype, or between which noise levels, the values are right all the same."""
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
    bad = {row.sigma for row in wrong}
    good = sorted({row.sigma for row in wide} - bad)
    outside = bool(good) and all(level < good[0] or level > good[-1] for level in bad)
    if outside:
        sides = [f"below sigma = {good[0]:.3g}"] * (min(bad) < good[0])
        sides += [f"above sigma = {good[-1]:.3g}"] * (max(bad) > good[-1])
        why = ": digits are lost there" if "float32" in narrow else ""
        return [f"it is wrong {' and '.join(sides)} and right elsewhere{why}"]
    if narrow:
        return [
            f"it is right to a relative {worst:.1g} and not to float64: "
            f"something inside is rounded to {narrow[0]}"
        ]
    return []


def compare(p: Parameterization, sigma_data: float) -> str:
    """Returns which coefficient of p disagrees with its stated target, in words; "" for none.

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
    mistakes = _differences(sigma, {"c_skip": (c.skip, skip), "c_out": (c.out, out)}, 1e-9)
    if not mistakes:
        return ""
    return " and ".join(mistakes) + ", if the stated target is what the network should output."


def _differences(
    sigma: Tensor, coefficients: Mapping[str, tuple[Tensor, Tensor]], accuracy: float
) -> list[str]:
    """Returns how each (actual, right) pair differs by more than `accuracy`, relative."""
    differences = []
    for name, (actual, right) in coefficients.items():
        size = max(float(right.abs().max()), accuracy)
        if torch.allclose(actual, right, rtol=accuracy, atol=accuracy * size):
            continue
        ratio = actual / right
        if torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=accuracy):
            c = float(ratio[0])
            wrong_sign = abs(c + 1) < accuracy
            how = "has the wrong sign" if wrong_sign else f"is {c:.4g} times what it must be"
        else:
            power = _power(ratio, sigma, accuracy)
            at = ", ".join(
                f"{float(c):.4g} for {float(r):.4g} at sigma = {float(s):.3g}"
                for s, c, r in list(zip(sigma, actual, right, strict=True))[::2]
            )
            how = f"is off by {power} ({at})" if power else f"is wrong ({at})"
        differences.append(f"{name} {how}")
    return differences


def _power(ratio: Tensor, sigma: Tensor, accuracy: float) -> str:
    """Returns the function of sigma that a ratio is, in words; "" where it is none of these."""
    functions: dict[str, Function] = {
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
    for name, function in functions.items():
        for sign, word in ((1, ""), (-1, "the sign and ")):
            if torch.allclose(ratio, sign * function(sigma), rtol=accuracy):
                return word + name
    return ""
