"""The statistics of a comparison. The unit of replication is the seed.

A metric is positive and lower is better (a loss, an excess risk, a distance). Two settings a and b
that ran with the same seeds are compared through their paired log ratios r_i = log a_i - log b_i;
every statement is about exp(E r), the geometric mean of the ratios a_i / b_i.

Nothing here reads random numbers from outside: equal inputs give equal outputs.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

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

SMALLEST_EFFECT = 0.05
"""Smallest effect of interest: the logarithm of a ratio; smaller ones count as none."""

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the bounds of its confidence interval, all in the value's own units."""

    value: float
    low: float
    high: float


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


def mean_interval(values: ArrayLike, level: float = 0.95, log: bool = False) -> Interval:
    """Returns the mean over n seeds and its t interval (Student 1908).

        m +- t_{n-1, (1+level)/2} s / sqrt(n)

    Args:
        values: (n,), one value per seed.
        level: coverage of the interval, in (0, 1).
        log: the geometric mean instead: the interval of the mean logarithm, transformed back.

    Returns:
        The mean and its bounds, in the units of `values`. With n = 1 the bounds are nan. Where a
        value is not finite (a diverged trial) all three are nan: the caller keeps the count.

    Raises:
        ValueError: values that are not a sequence of at least one number, a level outside (0, 1),
            or values <= 0 with `log`.
    """
    y = _seeds(values, "values")
    _check_level(level)
    if log:
        _check_positive(y, "values")
    if not np.isfinite(y).all():
        return Interval(math.nan, math.nan, math.nan)
    if log:
        return Interval(*map(_exp, _t_interval(np.log(y), level)))
    return _t_interval(y, level)


def equivalence(r: Array, delta: float, test: PairedTest) -> float:
    """Returns p of |E r| >= delta, by two one-sided tests (Schuirmann 1987).

    A small one shows that the sides of the n >= 3 finite log ratios r are equivalent.
    """
    return max(test.p_above(delta + r), test.p_above(delta - r))


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
    _check_level(level)
    test = test or STUDENT
    n = len(a)
    p_signflip_min = 2.0 ** (1 - n) if n <= EXACT_SEEDS else 1 / (1 + SIGN_DRAWS)
    diverged_a, diverged_b = (int(np.sum(~np.isfinite(y))) for y in (a, b))
    ratio = low = high = p = p_equivalent = p_signflip = ratio_min = math.nan
    if diverged_a + diverged_b == 0:
        r = np.log(a) - np.log(b)
        ratio, low, high = map(_exp, test.interval(r, level))
        if n >= MIN_SEEDS:
            p, p_equivalent = test.p(r), equivalence(r, smallest_effect, test)
            p_signflip = _sign_flip(r) if test.sign_flip else math.nan
            sd = float(r.std(ddof=1))
            ratio_min = _exp(test.effect(n, ALPHA) * sd) if sd else 1.0
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


def holm(pvalues: Sequence[float]) -> list[float]:
    """Returns step-down adjusted p values (Holm 1979), in the order of `pvalues`.

    With p_(1) <= ... <= p_(m):  adjusted_(i) = min(1, max_{j <= i} (m - j + 1) p_(j)).

    A nan (no test was made) stays nan and is not one of the m.

    Raises:
        ValueError: a p value outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p values must lie in [0, 1], got {p.tolist()}")
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p, kind="stable")[: int(np.sum(~np.isnan(p)))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return [float(q) for q in adjusted]


def correct(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Returns the comparisons with both p corrected over the whole of them as one family.

    Those of a difference and those of equivalence are corrected each by Holm's method: of either
    kind of claim, the probability that any in the family is wrong is at most `ALPHA`.

    A comparison that lost its test to a divergence stays in the family, as one with p = 1: the
    family was declared before the runs, and a family that shrinks with their outcome controls
    nothing. One with too few seeds was never going to be tested and does not count. Both keep
    their corrected p at nan.
    """
    family = list(comparisons)
    p = holm([1.0 if c.diverged else c.p for c in family])
    p_equivalent = holm([1.0 if c.diverged else c.p_equivalent for c in family])
    return [
        c if math.isnan(c.p) else replace(c, p_holm=q, p_equivalent_holm=e)
        for c, q, e in zip(family, p, p_equivalent, strict=True)
    ]


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


def _t_interval(y: Array, level: float) -> Interval:
    """Mean of finite y and its t interval; nan bounds for n = 1."""
    n, m = len(y), float(y.mean())
    if n == 1:
        return Interval(m, math.nan, math.nan)
    h = _t_quantile((1 + level) / 2, n - 1) * float(y.std(ddof=1)) / math.sqrt(n)
    return Interval(m, m - h, m + h)


@functools.cache
def _t_quantile(p: float, df: int) -> float:
    # Half a millisecond each, and a report has thousands of intervals.
    return float(stats.t.ppf(p, df))


def _t(y: Array) -> float:
    """Student's t = m sqrt(n) / s of finite y, n >= 2; its limit for s = 0, and 0 for m = s = 0."""
    m, s = float(y.mean()), float(y.std(ddof=1))
    if s == 0:
        return math.copysign(math.inf, m) if m else 0.0
    return m * math.sqrt(len(y)) / s


def _p_above(r: Array) -> float:
    """P(T > t) for Student's T with n - 1 degrees of freedom."""
    return float(stats.t.sf(_t(r), len(r) - 1))


def _p(r: Array) -> float:
    """P(|T| > |t|) for the same T."""
    return 2 * float(stats.t.sf(abs(_t(r)), len(r) - 1))


def _sign_flip(r: Array) -> float:
    """Two-sided sign-flip p of finite r (see `compare`)."""
    n = len(r)
    # Tied patterns reach one sum in another order: they differ by the rounding of n - 1 additions.
    least = abs(r.sum()) - n * np.finfo(np.float64).eps * np.abs(r).sum()
    if n <= EXACT_SEEDS:
        sums = r[:1]  # |sum| is even in s, so s_1 = 1 will do
        for r_i in r[1:]:
            sums = np.concatenate([sums + r_i, sums - r_i])
        return float(np.mean(np.abs(sums) >= least))
    rng, sums = np.random.default_rng(0), np.zeros(SIGN_DRAWS)
    for r_i in r:
        sums += r_i * rng.choice([-1.0, 1.0], SIGN_DRAWS)
    return float(1 + np.sum(np.abs(sums) >= least)) / (1 + SIGN_DRAWS)


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


def _critical(n: int, alpha: float) -> float:
    """|t| beyond which the two-sided t test of n seeds rejects."""
    return float(stats.t.isf(alpha / 2, n - 1))


def _exp(y: float) -> float:
    """exp(y), inf where that is too large for a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(y))


def _seeds(values: ArrayLike, name: str) -> Array:
    """values as a float64 vector with one entry per seed."""
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name} must be a sequence of one number per seed, got shape {y.shape}")
    return y


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """a and b as float64 vectors of equal length whose entries are positive or nan."""
    a, b = _seeds(a, "a"), _seeds(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a and b must be paired by seed, got {len(a)} and {len(b)} values")
    _check_positive(a, "a")
    _check_positive(b, "b")
    return a, b


def _check_positive(y: Array, name: str) -> None:
    if np.any(y <= 0):
        raise ValueError(f"{name} must be positive to have a logarithm, got {y.tolist()}")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")


STUDENT = PairedTest(_p, _p_above, _t_interval, _effect, _critical)
"""The paired t test (Student 1908), made once of a number of seeds that was fixed before."""
