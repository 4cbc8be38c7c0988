"""Where the curves of two settings over the steps of training cross, with an interval.

A metric is positive and lower is better. Two settings a and b that ran with the same S seeds and
were measured at the same K steps t_1 < ... < t_K are compared through

    r_sk = log a_sk - log b_sk,    m(x) = E r_s(x),    x = log t;

the curves cross where m changes sign.

At a measured step the sign of m is decided by a t test. Between measured steps r_s(x) is the cubic
through the four nearest of them (Lagrange's), which is a sum of the r_sk, so that m(x) = 0 has a t
test too. The steps at which it is not rejected hold the crossing with the test's probability
(Fieller 1954), if the cubic's own error e(x) is allowed for:

    |mean of r_s(x)| <= t_{S-1} sd of r_s(x) / sqrt(S) + e(x),    e(x) = |p_3(x) - p_2(x)| / 2,

with p_2 and p_3 the parabola and the cubic of the mean over seeds. Where the terms of Newton's
interpolation fall at least threefold from each to the next, the error is no larger:
|p_3 - p_2| (1/3 + 1/9 + ...) = |p_3 - p_2| / 2. What no interpolation is needed for is told beside
it: the measured steps around a crossing at which the sign is decided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.metrics.intervals import Array
from testbed.metrics.paired_tests import MIN_SEEDS, STUDENT, PairedTest

GRID = 128
"""Places in each interval of measured steps at which m(x) = 0 is tested."""
CUBIC = 4
"""Fewest measured steps whose interpolation gives an interval."""

Verdict = Literal[
    "cross", "do not cross", "undecided", "too few seeds", "too few steps", "diverged"
]


@dataclass(frozen=True)
class Crossing:
    """A change of sign of E log(a/b) that is shown; all numbers are steps of training."""

    step: float
    """Where the mean over seeds is zero, interpolated."""
    low: float
    """Lower bound of the interval of the crossing; with fewer than four measured steps, `after`."""
    high: float
    """Upper bound, or `before`."""
    after: float
    """The last measured step at which the earlier sign is shown."""
    before: float
    """The first measured step at which the later sign is shown."""
    a_leads: bool
    """Whether a is ahead, that is lower, after the crossing."""


@dataclass(frozen=True)
class Crossings:
    """What is shown of where two curves cross; see `crossings`."""

    verdict: Verdict
    """
    "cross"           both signs are shown at measured steps
    "do not cross"    one sign is shown at every step between the first and the last measured one
    "undecided"       neither
    "too few seeds"   fewer than three
    "too few steps"   fewer than two measured steps in common
    "diverged"        a trial diverged: there is no mean log ratio
    """
    seeds: int
    """Number of pairs."""
    steps: tuple[float, ...]
    """The measured steps that both have at every seed, ascending."""
    crossings: tuple[Crossing, ...] = ()
    """Those that are shown, ascending; none unless the verdict is "cross"."""
    a_leads: bool | None = None
    """Which one is ahead throughout, where they do not cross."""
    open: tuple[float, float] | None = None
    """Where the verdict is "undecided", the first and the last step at which no sign is shown: if
    the curves cross once within the measured steps, then there, with the interval's probability."""
    diverged_a: int = 0
    """Number of seeds at which a is not finite somewhere."""
    diverged_b: int = 0
    """Number of seeds at which b is not finite somewhere."""


def crossings(
    steps: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    test: PairedTest = STUDENT,
) -> Crossings:
    """Says where the curves of a and b cross, paired by seed.

    With alpha = 1 - level, a sign is shown at a measured step by a one-sided test at alpha/K. Where
    the curves do not cross, one sign is wrong wherever it is shown, so that the probability that
    both are, which is the claim of a crossing, is at most alpha (Bonferroni). A crossing lies
    between two such steps, and its interval has the steps between them at which m(x) = 0 is not
    rejected at alpha. That the curves do not cross is said where it is rejected at every step
    between the first and the last; if they do cross there, that has the probability alpha at most.

    Args:
        steps: (K,), positive and ascending numbers of steps.
        a: (S, K), metric of the one setting, positive; inf where a trial diverged, nan where it was
            not measured. A step at which any seed of a or b was not measured is left out.
        b: (S, K), metric of the other at the same seeds and steps.
        level: coverage of an interval, in (0, 1).
        test: whose `critical` is taken; `STUDENT` by default.

    Raises:
        ValueError: shapes that do not fit, steps that do not ascend, a value <= 0, or a level
            outside (0, 1).
    """
    t, a, b = _checked(steps, a, b, level)
    kept = ~np.isnan(a + b).any(axis=0) | np.isinf(a).any(axis=0) | np.isinf(b).any(axis=0)
    t, a, b = t[kept], a[:, kept], b[:, kept]
    n = len(a)
    found = Crossings("undecided", n, tuple(map(float, t)))
    if np.isinf(a).any() or np.isinf(b).any():
        counts = (int(np.isinf(y).any(axis=1).sum()) for y in (a, b))
        return replace(found, verdict="diverged", diverged_a=next(counts), diverged_b=next(counts))
    if n < MIN_SEEDS:
        return replace(found, verdict="too few seeds")
    if len(t) < 2:
        return replace(found, verdict="too few steps")
    return _decide(found, np.log(a) - np.log(b), 1 - level, test)


def _decide(found: Crossings, r: Array, alpha: float, test: PairedTest) -> Crossings:
    """What n >= 3 seeds of finite log ratios (S, K), K >= 2, show."""
    n, K = r.shape
    x = np.log(found.steps)
    at = places(x)
    m, se = _mean(r)
    mean, width = _mean(r @ interpolation(x, at).T)
    error = np.abs((interpolation(x, at) - interpolation(x, at, CUBIC - 1)) @ m) / 2
    with np.errstate(invalid="ignore"):  # a test that so few seeds cannot reject: inf times 0
        rejected = np.abs(m) > test.critical(n, 2 * alpha / K) * se
        beyond = np.abs(mean) - test.critical(n, alpha) * width - error
    changes = np.sign(mean[1:]) != np.sign(mean[:-1])
    beside = np.append(changes, False) | np.insert(changes, 0, False)
    beyond[beside] = np.minimum(beyond[beside], 0)
    shown = np.where(rejected, np.sign(m), 0).astype(int)
    if claims := tuple(_crossings(found.steps, shown, at, mean, beyond)):
        return replace(found, verdict="cross", crossings=claims)
    if (beyond > 0).all():
        return replace(found, verdict="do not cross", a_leads=bool(mean[0] < 0))
    low, high = (round(float(np.exp(one)), 6) for one in _hull(at, beyond))
    return replace(found, open=(low, high))


def _crossings(
    steps: tuple[float, ...], shown: NDArray[np.int_], at: Array, mean: Array, beyond: Array
) -> Iterator[Crossing]:
    """Yields a crossing for each two neighbouring signs that are shown and differ."""
    for i, j in itertools.pairwise(np.flatnonzero(shown)):
        if shown[i] == shown[j]:
            continue
        inside = slice(i * GRID, j * GRID + 1)
        x, y = at[inside], shown[j] * mean[inside]
        g = int(np.argmax(y > 0))
        low, high = _hull(x, beyond[inside]) if len(steps) >= CUBIC else (x[0], x[-1])
        step = np.clip(np.interp(0.0, y[g - 1 : g + 1], x[g - 1 : g + 1]), low, high)
        place, first, last = (round(float(np.exp(one)), 6) for one in (step, low, high))
        yield Crossing(place, first, last, steps[i], steps[j], a_leads=bool(shown[j] < 0))


def _hull(x: Array, beyond: Array) -> tuple[float, float]:
    """The first and the last x with beyond <= 0, of which there is one, between places."""
    held = np.flatnonzero(~(beyond > 0))
    ends = []
    for place, next_one in ((held[0], held[0] - 1), (held[-1], held[-1] + 1)):
        pair = [place, next_one]
        end = 0 <= next_one < len(x)
        ends.append(float(np.interp(0.0, beyond[pair], x[pair]) if end else x[place]))
    return ends[0], ends[1]


def places(x: Array) -> Array:
    """Returns the places that are tested, ((K - 1) GRID + 1,): all of x, (K,), and more between."""
    return np.interp(np.arange((len(x) - 1) * GRID + 1) / GRID, np.arange(len(x)), x)


def interpolation(x: Array, at: Array, points: int = CUBIC) -> Array:
    """Returns the weights (G, K) with which values at x, (K,), give a polynomial's at `at`, (G,).

    The polynomial is that through the `points` places nearest around each, or through all K of
    them where these are fewer (Lagrange's formula).
    """
    K, n = len(x), min(points, len(x))
    interval = np.clip(np.searchsorted(x, at, side="right") - 1, 0, K - 2)
    nearest = np.clip(interval - (n - 2) // 2, 0, K - n)[:, None] + np.arange(n)
    nodes = x[nearest]
    W = np.zeros((len(at), K))
    for j in range(n):
        others = np.delete(nodes, j, axis=1)
        terms = (at[:, None] - others) / (nodes[:, j : j + 1] - others)
        np.put_along_axis(W, nearest[:, j : j + 1], terms.prod(axis=1)[:, None], axis=1)
    return W


def _mean(r: Array) -> tuple[Array, Array]:
    """The mean over seeds, the rows, and its standard error."""
    return r.mean(axis=0), r.std(axis=0, ddof=1) / np.sqrt(len(r))


def _checked(
    steps: ArrayLike, a: ArrayLike, b: ArrayLike, level: float
) -> tuple[Array, Array, Array]:
    t, a, b = (np.asarray(y, dtype=np.float64) for y in (steps, a, b))
    if t.ndim != 1 or a.ndim != 2 or a.shape != b.shape or a.shape[1:] != t.shape:
        shapes = f"{t.shape}, {a.shape} and {b.shape}"
        raise ValueError(f"steps, a and b must be (K,), (S, K) and (S, K), got {shapes}")
    if not (np.diff(t, prepend=0.0) > 0).all() or not np.isfinite(t).all():
        raise ValueError(f"steps must be positive and ascend, got {t.tolist()}")
    if (a <= 0).any() or (b <= 0).any():
        raise ValueError("a and b must be positive to have logarithms")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return t, a, b
