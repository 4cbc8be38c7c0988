"""Paired tests of the mean log ratio of two settings, over the seeds that both ran with.

Nothing here reads random numbers from outside: equal inputs give equal outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from testbed.metrics.intervals import Array, Interval, t_interval

ALPHA = 0.05
"""Significance level of every two-sided test; a verdict needs a corrected p below it."""

POWER = 0.8
"""Power at which `Comparison.detectable` is stated."""

MIN_SEEDS = 3
"""Fewest seeds that are tested at all."""

EXACT_SEEDS = 20
"""Most seeds for which all 2^n sign patterns are enumerated."""

SIGN_DRAWS = 99_999
"""Sign patterns drawn beyond `EXACT_SEEDS`."""


@dataclass(frozen=True)
class PairedTest:
    """A test of the mean of r_i = log a_i - log b_i, (n,), n >= 3, and what belongs to it.

    Each function is given finite log ratios of any scale and returns numbers without a unit.
    """

    p: Callable[[Array], float]
    """Two-sided p of E r = 0."""
    p_above: Callable[[Array], float]
    """One-sided p of E r <= 0: small where r lies above zero."""
    interval: Callable[[Array, float], Interval]
    """The mean of r and its interval of a level, from a level in (0, 1); also for n < 3."""
    effect: Callable[[int, float], float]
    """E r / sd r that n seeds show with power `POWER` at a significance level alpha."""
    critical: Callable[[int, float], float]
    """|t| = |mean of r| sqrt(n)/sd r beyond which n seeds reject E r = 0 at a level alpha."""
    sign_flip: bool = True
    """Whether the sign-flip test, made once of a number of seeds fixed before, stands beside it."""


def spending(test: PairedTest, share: float) -> PairedTest:
    """Returns the test at a share of its alpha: it is p over the share that meets the whole alpha.

    Args:
        test: any.
        share: in (0, 1]; an interval of level 1 - alpha becomes one of level 1 - share alpha.
    """
    if share == 1:
        return test

    def over(p: Callable[[Array], float]) -> Callable[[Array], float]:
        return lambda r: min(1.0, p(r) / share)

    def interval(r: Array, level: float) -> Interval:
        return test.interval(r, 1 - share * (1 - level))

    return replace(
        test,
        p=over(test.p),
        p_above=over(test.p_above),
        interval=interval,
        effect=lambda n, alpha: test.effect(n, share * alpha),
        critical=lambda n, alpha: test.critical(n, share * alpha),
        sign_flip=False,
    )


def equivalence(r: Array, delta: float, test: PairedTest) -> float:
    """Returns p of |E r| >= delta, by two one-sided tests (Schuirmann 1987).

    A small one shows that the sides of the n >= 3 finite log ratios r are equivalent.
    """
    return max(test.p_above(delta + r), test.p_above(delta - r))


def _t(y: Array) -> float:
    """Student's t = m sqrt(n) / s of finite y, n >= 2; its limit for s = 0, and 0 for m = s = 0."""
    m, s = float(y.mean()), float(y.std(ddof=1))
    if s == 0:
        return math.copysign(math.inf, m) if m else 0.0
    return m * math.sqrt(len(y)) / s


def _p_above(r: Array) -> float:
    """P(T > t) for Student's T with n - 1 degrees of freedom."""
    return float(special.stdtr(len(r) - 1, -_t(r)))


def _p(r: Array) -> float:
    """P(|T| > |t|) for the same T."""
    return 2 * float(special.stdtr(len(r) - 1, -abs(_t(r))))


def sign_flip(r: Array) -> float:
    """Returns the two-sided sign-flip p of finite r (n,), as `comparison.compare` has it."""
    n = len(r)
    # Tied patterns reach one sum in another order: they differ by the rounding of n - 1 additions.
    least = abs(r.sum()) - n * np.finfo(np.float64).eps * np.abs(r).sum()
    if n <= EXACT_SEEDS:
        sums = r[:1]  # |sum| is even in s, so s_1 = 1 will do
        for r_i in r[1:]:
            sums = np.concatenate([sums + r_i, sums - r_i])
        return float(np.mean(np.abs(sums) >= least))
    sums, part = np.zeros(SIGN_DRAWS), np.empty(SIGN_DRAWS)
    for drawn, i in zip(_signs(n), range(0, n, 8), strict=True):
        signed = np.zeros(1)
        for r_i in r[i : i + 8]:
            signed = np.concatenate([signed - r_i, signed + r_i])
        sums += np.take(signed, drawn, out=part, mode="clip")  # none is clipped, and all is faster
    return float(1 + np.sum(np.abs(sums) >= least)) / (1 + SIGN_DRAWS)


@lru_cache(maxsize=1)
def _signs(n: int) -> list[NDArray[np.uint8]]:
    """Drawn signs of n log ratios: a byte has those of eight. A study has mostly one n."""
    rng, patterns = np.random.default_rng(0), [2 ** min(8, n - i) for i in range(0, n, 8)]
    drawn = (rng.integers(many, size=SIGN_DRAWS, dtype=np.uint16) for many in patterns)
    return [one.astype(np.uint8) for one in drawn]


@cache
def noncentrality(n: int, c: float) -> float:
    """E r / sd r at which the t statistic of n Gaussian log ratios exceeds c with power `POWER`.

    Solves  P(T > c) = POWER  for the noncentral T ~ nct(n - 1, nc), and returns nc / sqrt(n); inf
    for c = inf. The other tail, P(T < -c), is of the order of 1e-6 there and left out.
    """
    if math.isinf(c):
        return math.inf

    def excess_power(nc: float) -> float:
        return float(stats.nct.sf(c, n - 1, nc)) - POWER

    # At nc = 2 c + 2 the power is above 0.89 for every df >= 2: T = (Z + nc) / W > c wherever
    # W = chi / sqrt(df) < 3/2 and Z > -c/2 - 2.
    return float(optimize.brentq(excess_power, 0.0, 2 * c + 2)) / math.sqrt(n)


def _effect(n: int, alpha: float) -> float:
    """E r / sd r that the two-sided paired t test of level alpha finds with power `POWER`."""
    return noncentrality(n, _critical(n, alpha))


@cache
def _critical(n: int, alpha: float) -> float:
    """|t| beyond which the two-sided t test of n seeds rejects."""
    return float(stats.t.isf(alpha / 2, n - 1))


STUDENT = PairedTest(_p, _p_above, t_interval, _effect, _critical)
"""The paired t test (Student 1908), made once of a number of seeds that was fixed before."""
