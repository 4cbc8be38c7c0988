"""The comparison of two settings that ran with the same seeds, and its verdict.

A metric is positive and lower is better (a loss, an excess risk, a distance). Two settings a and b
are compared through their paired log ratios r_i = log a_i - log b_i; every statement is about
exp(E r), the geometric mean of the ratios a_i / b_i.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from testbed.metrics.intervals import Array, check_level, check_positive, exponential, seeds_of
from testbed.metrics.paired_tests import (
    ALPHA,
    EXACT_SEEDS,
    MIN_SEEDS,
    SIGN_DRAWS,
    STUDENT,
    PairedTest,
    equivalence,
    sign_flip,
)

SMALLEST_EFFECT = 0.05
"""Smallest effect of interest: the logarithm of a ratio; smaller ones count as none."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of a with b over n seeds, lower being better.

    A trial that diverged is a result. Where any did, no mean log ratio exists and the one over the
    surviving pairs would answer another question: ratio, bounds, p values and `detectable` are nan,
    and the counts are the finding.
    """

    ratio: float
    """Geometric mean of the paired ratios a_i / b_i."""
    low: float
    """Lower bound of the paired interval of `ratio`, the test's own."""
    high: float
    """Upper bound of that interval."""
    p: float
    """Two-sided paired test of E r = 0; nan below three seeds."""
    p_signflip: float
    """Two-sided sign-flip permutation test of the same; nan below three seeds, and beside a test
    that is valid at every look, which a permutation test is not."""
    p_signflip_min: float
    """Smallest `p_signflip` attainable with this many seeds; nan where there is no such test."""
    seeds: int
    """Number of pairs, diverged ones included."""
    detectable: float
    """Smallest ratio > 1 that the test detects with power 0.8, were the sd of r as observed."""
    diverged_a: int = 0
    """Number of seeds at which a is not finite."""
    diverged_b: int = 0
    """Number of seeds at which b is not finite."""
    p_equivalent: float = math.nan
    """p of equivalence within the smallest effect (`equivalence`); nan below three seeds."""
    smallest_effect: float = SMALLEST_EFFECT
    """Smallest |log ratio| of interest."""
    p_holm: float = math.nan
    """`p` corrected for the family, filled by `correct`; nan until then."""
    p_equivalent_holm: float = math.nan
    """`p_equivalent` corrected for the family in the same way."""

    @property
    def diverged(self) -> bool:
        """Whether any trial on either side diverged."""
        return self.diverged_a + self.diverged_b > 0

    @property
    def verdict(self) -> str:
        """Whether a is equivalent to b, "better" or "worse", or why none of these may be said.

        In this order: a trial diverged; there are fewer than three seeds; "equivalent", where the
        effect is shown to be below the smallest of interest, whether or not it differs from zero;
        "better" or "worse", where it is shown to differ from zero, which the interval leaves out,
        and the estimate is at least the smallest of interest; else "undecided". All p are those
        that Holm's method corrected: a comparison that belongs to no family yet shows nothing.
        """
        if self.diverged:
            return f"diverged: a in {self.diverged_a}, b in {self.diverged_b} of {self.seeds} seeds"
        if self.seeds < MIN_SEEDS:
            return "too few seeds"
        if self.p_equivalent_holm < ALPHA:
            return "equivalent"
        if self.p_holm < ALPHA and self.matters and not self.low <= 1 <= self.high:
            return "better" if self.ratio < 1 else "worse"
        return "undecided"

    @property
    def matters(self) -> bool:
        """Whether the estimated effect is at least the smallest one of interest."""
        return abs(math.log(self.ratio)) >= self.smallest_effect if self.ratio > 0 else True


def compare(
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    smallest_effect: float = SMALLEST_EFFECT,
    test: PairedTest | None = None,
) -> Comparison:
    """Compares a with b, paired by seed, through r_i = log a_i - log b_i.

    Test and interval are those of a `PairedTest`, and so is p of equivalence. Beside them stands
    the sign-flip test (Fisher 1935), whose only assumption is that r is symmetric about zero under
    the null hypothesis:

        p = #{s in {-1, 1}^n : |sum s_i r_i| >= |sum r_i|} / 2^n,

    at least 2 / 2^n. Up to 20 seeds all patterns are enumerated; beyond, 99999 patterns are drawn
    with a fixed seed and p = (1 + count) / (1 + draws) (Phipson and Smyth 2010).

    Equal pairs throughout (equal objectives) give ratio 1 and p 1. Equal log ratios that are not
    zero are the limit sd -> 0: an interval without width and p -> 0; the sign-flip p, which cannot
    follow, is then the one to read.

    Args:
        a: (n,), metric of the one setting, positive; inf or nan where the trial diverged.
        b: (n,), metric of the other at the same seeds in the same order.
        level: coverage of the interval, in (0, 1).
        smallest_effect: |log ratio| below which an effect counts as none, positive.
        test: the test and its interval; `STUDENT` by default (see `testbed.metrics.looks`).

    Returns:
        The comparison, its corrected p still nan (see `correct`).

    Raises:
        ValueError: a or b is not a sequence of at least one number, they differ in length, a value
            is <= 0, or the level is outside (0, 1).
    """
    a, b = _pairs(a, b)
    check_level(level)
    test = test or STUDENT
    n = len(a)
    p_signflip_min = 2.0 ** (1 - n) if n <= EXACT_SEEDS else 1 / (1 + SIGN_DRAWS)
    diverged_a, diverged_b = (int(np.sum(~np.isfinite(y))) for y in (a, b))
    ratio = low = high = p = p_equivalent = p_signflip = ratio_min = math.nan
    if diverged_a + diverged_b == 0:
        r = np.log(a) - np.log(b)
        ratio, low, high = map(exponential, test.interval(r, level))
        if n >= MIN_SEEDS:
            p, p_equivalent = test.p(r), equivalence(r, smallest_effect, test)
            p_signflip = sign_flip(r) if test.sign_flip else math.nan
            sd = float(r.std(ddof=1))
            ratio_min = exponential(test.effect(n, ALPHA) * sd) if sd else 1.0
    return Comparison(
        ratio=ratio,
        low=low,
        high=high,
        p=p,
        p_signflip=p_signflip,
        p_signflip_min=p_signflip_min if test.sign_flip else math.nan,
        seeds=n,
        detectable=ratio_min,
        diverged_a=diverged_a,
        diverged_b=diverged_b,
        p_equivalent=p_equivalent,
        smallest_effect=smallest_effect,
    )


def tost(a: ArrayLike, b: ArrayLike, margin: float, test: PairedTest | None = None) -> float:
    """Returns p of equivalence by two one-sided paired tests on log a - log b (Schuirmann 1987).

    Null hypothesis |E r| >= log margin, so a small p shows 1/margin < exp(E r) < margin. With t
    tests it is below alpha exactly where the interval of level 1 - 2 alpha lies inside the margins.

    Args:
        a, b: (n,), positive, paired by seed.
        margin: largest ratio that still counts as equal, > 1 (1.1 is ten per cent either way).
        test: whose `p_above` is taken; `STUDENT` by default.

    Returns:
        The larger of the two p values; nan below three seeds or where a trial diverged.

    Raises:
        ValueError: as `compare`, or a margin that is not a finite number above 1.
    """
    a, b = _pairs(a, b)
    if not 1 < margin < math.inf:
        raise ValueError(f"margin must be a finite ratio above 1, got {margin}")
    n = len(a)
    if n < MIN_SEEDS or not np.isfinite(a).all() or not np.isfinite(b).all():
        return math.nan
    return equivalence(np.log(a) - np.log(b), math.log(margin), test or STUDENT)


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """a and b as float64 vectors of equal length whose entries are positive or nan."""
    a, b = seeds_of(a, "a"), seeds_of(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a and b must be paired by seed, got {len(a)} and {len(b)} values")
    check_positive(a, "a")
    check_positive(b, "b")
    return a, b
