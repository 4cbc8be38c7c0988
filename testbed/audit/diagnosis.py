"""The diagnosis of a wrong subject: the nearest plausible mistake that explains its output.

A denoiser's output, whatever went wrong with signs and scales, is A x + B D'(x) with D' the exact
denoiser at the state and the noise level that it takes its arguments for. So each hypothesis is a
misreading of the state (x -> g x) and of the noise level (sigma -> h(sigma)); for each, A and B are
fitted level by level, and a hypothesis whose fit leaves no residual is the diagnosis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from testbed.audit import answered_levels, curvature, exact, external, fits
from testbed.audit.external import Calls, ExactNetwork, ExternalDenoiser, Wrapped, word_of
from testbed.audit.fits import RESIDUAL, Answers, Fit, Misreading
from testbed.audit.hypotheses import C_NOISES, NOISE_LEVELS, PAIRS, STATES, Function, alpha, misread
from testbed.audit.reference import noisy
from testbed.audit.rows import LawCheck, gamma
from testbed.diffusion.noise_levels import VE
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

LEVELS = torch.tensor([0.1, 0.3, 0.7, 1.6, 4.0], dtype=torch.float64)
"""Where x and D are neither equal nor unrelated, and no two functions below agree."""
SAMPLES = 16
ACCURACY = 1e-5
"""Relative accuracy of weights that were fitted to float64, beside those of a named mistake."""
RANDOM = "it gives another answer each time: it draws random numbers, or keeps a state"


def findings(subject: ExternalDenoiser, oracle: Oracle, checks: Sequence[LawCheck]) -> list[str]:
    """Returns what is probably wrong with a denoiser, a sentence for each cause.

    Args:
        subject: It broke a law.
        oracle: What it claims to be exact for.
        checks: All laws that were checked.
    """
    try:
        explained = explain(subject, oracle) or _beyond(subject, oracle, checks)
    except InputError:
        raise
    except Exception as problem:  # the code of others may raise anything
        subject.trouble.setdefault("the states of the diagnosis", external.brief(problem))
        explained = ""
    causes = raised(subject)
    causes += [explained] if explained else []
    symptoms = by_rows(checks, values=not explained, but=explained)
    return causes + ([symptoms] if symptoms else [])


def raised(subject: ExternalDenoiser) -> list[str]:
    """Returns what a subject raises, and when."""
    causes = [f"it raises {why} for {when}." for when, why in subject.trouble.items()]
    by_message: dict[str, list[float]] = {}
    for level, why in subject.refused.items():
        by_message.setdefault(why, []).append(level)
    for why, levels in by_message.items():
        where = ", ".join(f"{level:.3g}" for level in levels)
        causes.append(f"it raises {why} at sigma = {where}.")
    return causes


def _beyond(subject: ExternalDenoiser, oracle: Oracle, checks: Sequence[LawCheck]) -> str:
    """Returns that levels beyond an end are clamped, where the values are wrong there alone."""
    values = [row for row in checks if row.law == exact.TARGET and row.dtype == "float64"]
    wrong = {row.sigma for row in values if not row.passed}
    right = [row.sigma for row in values if row.sigma not in wrong]
    words = answered_levels.clamped(subject, oracle, right) if wrong else ""
    return f"{words}." if words else ""


def explain(subject: ExternalDenoiser, oracle: Oracle) -> str:
    """Returns the mistake that explains a wrong denoiser's output, in words; "" where none does."""
    low, high = float(subject.levels.min()), float(subject.levels.max())
    levels = LEVELS[(low < LEVELS) & (high > LEVELS)]
    if not len(levels):
        return ""
    x0, eps, sigma = noisy(oracle, levels, SAMPLES)
    if subject.adapter.table is not None:
        near = (sigma[:, None] - subject.adapter.table).abs().argmin(1)
        sigma = subject.adapter.table[near].double()
    x = x0 + per_sample(sigma, x0) * eps
    raw = subject.adapter.raw(subject.make(oracle))
    with torch.no_grad():
        first = raw(x.clone(), sigma.clone())
        again = raw(x.clone(), sigma.clone())
        ones = ((x[i : i + 1].clone(), sigma[i : i + 1].clone()) for i in range(len(x)))
        alone = torch.cat([raw(*one) for one in ones]).double()
    found = Answers(x, sigma, first.double(), max(RESIDUAL, torch.finfo(first.dtype).eps))
    if not bool(torch.isfinite(found.output).all()):
        bad = sigma[~torch.isfinite(found.output).flatten(1).all(1)]
        return f"its output is not finite, first at sigma = {float(bad.min()):.3g}."
    if not torch.equal(first, again):
        return f"{RANDOM}."
    mixed = (found.output - alone).abs().max() > found.residual * found.output.abs().max()
    words, of_batch = _mistakes(subject, oracle, found)
    if mixed and not of_batch:
        words, _ = _mistakes(subject, oracle, found._replace(output=alone))
        return "it mixes the samples of a batch: one by one they give another answer" + (
            f", and there {words}." if words else "."
        )
    words = words or _clipped(subject, oracle, x, sigma)
    return f"{words}." if words else ""


def _mistakes(subject: ExternalDenoiser, oracle: Oracle, found: Answers) -> tuple[str, bool]:
    """Returns the mistakes in words, and whether one of them is about the batch."""
    if subject.wrapped is not None:
        return " and ".join(_wrapper_mistakes(subject, subject.wrapped, oracle, found)), False
    best = fits.fit(_misreadings(subject, found.sigma), found, oracle)
    if best is None:
        return _other_levels(subject, oracle, found), False
    return _words(best, subject, found), any("batch" in text for text in best.mistakes)


def _other_levels(subject: ExternalDenoiser, oracle: Oracle, found: Answers) -> str:
    """Returns in words for which noise levels it answers, each by a search; "" where none fit."""
    at = fits.fit_levels(found, oracle, subject.adapter.noise_schedule)
    if at is None:
        return answered_levels.snapped(subject, oracle)
    wrong = [float(one.level) for one in at]
    if len(wrong) > 1 and answered_levels.same(wrong):
        said = f"it answers for sigma = {wrong[0]:.4g}, whichever it is asked about"
    else:
        words = answered_levels.snapped(subject, oracle)
        if words:
            return words
        pairs = zip(wrong, found.levels.tolist(), strict=True)
        said = "it answers for other noise levels, " + ", ".join(
            f"{level:.4g} for {s:.4g}" for level, s in pairs
        )
    columns = (torch.stack(column) for column in zip(*at, strict=True))
    return _words(Fit((said,), *columns), subject, found)


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
    schedule = subject.adapter.noise_schedule
    noises = {**NOISE_LEVELS, **misread(subject.adapter.table)}
    pairs = itertools.product(STATES.items(), noises.items())
    for (state, g), (noise, h) in sorted(pairs, key=lambda one: bool(one[0][0]) + bool(one[1][0])):
        level = h(sigma)
        if not bool(((level > 1e-5) & (level < 1e5)).all()):
            continue
        mistakes = tuple(text for text in (noise, state) if text)
        yield Misreading(mistakes, g(sigma), level)
        if noise and schedule is not VE:
            # What misreads the time takes another alpha too, when it forms x = x_t/alpha.
            right, wrong = (schedule.alpha(schedule.time(one)) for one in (sigma, level))
            yield Misreading(mistakes, g(sigma) * right / wrong, level)


def _words(fit: Fit, subject: ExternalDenoiser, found: Answers) -> str:
    """Returns a fit in words; "" where the fit is the declared output."""
    accuracy = max(ACCURACY, 4 * (found.residual if found.residual > RESIDUAL else 0))
    return " and ".join([*fit.mistakes, *_output_mistakes(fit, subject, found.levels, accuracy)])


def _output_mistakes(
    fit: Fit, subject: ExternalDenoiser, levels: Tensor, accuracy: float
) -> list[str]:
    """Returns what is wrong with the output of a fit, besides the misreadings of its arguments."""
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
    if any(_same((a, b), (one[0], one[1]), levels, accuracy) for one in beliefs):
        return []
    outer = fit.A + fit.B, fit.A * levels
    right = factor * pair.a(levels), factor * pair.b(levels)
    if fit.mistakes and _same(outer, right, levels, accuracy):
        return []
    name = _named(a, b, fit.sigma, accuracy) or _named(*outer, levels, accuracy)
    if name == "the score" and unsigned == "score":
        return ["its score is of x = x_t/alpha, not of the state x_t: 1/alpha is missing"]
    if name is not None:
        return [f"it returns {name}, read as {adapter.prediction_type}"]
    if unsigned in ("x0", "eps", "score"):
        # One of the weights a and b of these is 0, and the other has the factor.
        i = 0 if unsigned == "x0" else 1
        ratio = outer[i] / right[i]
        if _same(outer, (ratio * right[0], ratio * right[1]), levels, accuracy):
            return [f"it returns {_times(ratio, levels)} the right {unsigned}"]
    w = fit.B
    if unsigned == "x0" and _same((fit.A + w, w), (torch.ones_like(w), w), levels, accuracy):
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


def _wrapper_mistakes(
    subject: ExternalDenoiser, wrapped: Wrapped, oracle: Oracle, found: Answers
) -> list[str]:
    """Returns what a wrapper does wrong, from what it gives its network and makes of the answer.

    The network remembers its input, c_noise and F; D = c_skip x + c_out F is solved for the two.
    """
    p, sd = wrapped.p, wrapped.sigma_data
    network = Calls(ExactNetwork(p, sd, oracle))
    with torch.no_grad():
        D = subject.adapter(wrapped.wrap(network))(found.x.clone(), found.sigma.clone()).double()
    if len(network.calls) != 1 or network.calls[0][0].shape != found.x.shape:
        return [f"it calls its network {len(network.calls)} times, or with another shape than x"]
    state, c_noise, F = network.calls[0]
    levels, right = found.levels, p.coefficients(found.levels, sigma_data=sd)
    accuracy = max(1e-5, found.residual)
    columns: list[tuple[Tensor, ...]] = []
    for level in levels:
        here = found.sigma == level
        c_in = (state[here] * found.x[here]).sum() / found.x[here].square().sum()
        off = (state[here] - c_in * found.x[here]).norm() / state[here].norm()
        skip, out, left = fits.least_squares(found.x[here], F[here], D[here])
        if not (float(off) < accuracy and left < accuracy):
            return _c_noise_mistakes(p, sd, found.sigma, c_noise, accuracy)
        columns.append((c_in, skip, out))
    c_in, skip, out = (torch.stack(column) for column in zip(*columns, strict=True))
    mistakes = _differences(levels, {"c_in": (c_in, right.in_)}, accuracy)
    mistakes += _c_noise_mistakes(p, sd, found.sigma, c_noise, accuracy)
    for other in (1.0, sd**2, 1 / sd, 2 * sd, sd / 2):
        c = p.coefficients(levels, sigma_data=other)
        is_right = _same((c.skip, c.out), (right.skip, right.out), levels)
        if not is_right and _same((skip, out), (c.skip, c.out), levels):
            return [*mistakes, f"c_skip and c_out are those of sigma_data = {other:g}, not {sd:g}"]
    both = {"c_skip": (skip, right.skip), "c_out": (out, right.out)}
    return mistakes + _differences(levels, both, accuracy)


def _c_noise_mistakes(
    p: Parameterization, sigma_data: float, sigma: Tensor, c_noise: Tensor, accuracy: float
) -> list[str]:
    """Returns how the c_noise (B,) that a network was given at sigma (B,) is wrong, if it is."""
    right = p.coefficients(sigma, sigma_data=sigma_data).noise

    def alike(one: Tensor, other: Tensor) -> bool:
        return bool(((one - other).abs() <= accuracy * (1 + other.abs())).all())

    if alike(c_noise, right):
        return []
    named = {name: function(sigma) for name, function in C_NOISES.items()}
    was = next((name for name, value in named.items() if alike(c_noise, value)), "")
    must = next((name for name, value in named.items() if alike(right, value)), "")
    first = [int((sigma == level).nonzero()[0]) for level in torch.unique(sigma)]
    at = ", ".join(
        f"{float(c_noise[i]):.4g} for {float(right[i]):.4g} at sigma = {float(sigma[i]):.3g}"
        for i in first[::2]
    )
    for dtype in answered_levels.NARROW[:2]:
        if not was and alike(c_noise, right.to(dtype).double()):
            was = f"rounded to {word_of(dtype)}"
    return [f"c_noise is {was or 'wrong'}" + (f" and must be {must}" if must else "") + f" ({at})"]


def _same(
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    levels: Tensor,
    accuracy: float = ACCURACY,
) -> bool:
    size = (other[0].abs() + other[1].abs()).clamp(min=1e-12)
    near = ((p - q).abs() <= accuracy * size for p, q in zip(one, other, strict=True))
    return all(bool(each.all()) for each in near)


def _named(a: Tensor, b: Tensor, levels: Tensor, accuracy: float) -> str | None:
    for sign, word in ((1, ""), (-1, "minus ")):
        for name, pair in PAIRS.items():
            if _same((a, b), (sign * pair[0](levels), sign * pair[1](levels)), levels, accuracy):
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


def by_rows(checks: Sequence[LawCheck], values: bool = True, but: str = "") -> str:
    """Returns what the broken laws themselves say; "" where they say nothing.

    They show side effects, a cut gradient, narrow arithmetic, and the range of wrong noise levels.

    Args:
        checks: All laws that were checked.
        values: Whether to say where the values are wrong, which nothing else has explained.
        but: What is said already: what it says of an answer each time, or of numbers that are not
            finite, is not said again.
    """
    failed = {row.law for row in checks if not row.passed}
    said = {external.STEADY: RANDOM, external.FINITE: "its output is not finite"}
    mistakes = [
        symptom
        for law, symptom in SYMPTOMS.items()
        if law in failed and not (law in said and but.startswith(said[law]))
    ]
    if external.SQUARE in failed and external.SINGLE not in failed:
        mistakes.append(
            "a batch that is as large as a dimension has another answer: sigma is on the wrong "
            "axis there"
        )
    targets = [row for row in checks if row.law == exact.TARGET and not row.reason]
    if targets and all(row.passed for row in targets) and curvature.COVARIANCE in failed:
        mistakes.append("its values are right and its gradient is not: a part of it is detached")
    if values and external.PURE not in failed:
        mistakes += _where(targets)
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
