"""Laws of the statistics, each with outside truth."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from testbed.metrics.comparison import Comparison, compare
from testbed.metrics.intervals import Interval

Array = NDArray[np.float64]
Compare = Callable[[Array, Array], Comparison]
Holm = Callable[[Sequence[float]], list[float]]
Mean = Callable[[Array], Interval]
EPS = float(np.finfo(np.float64).eps)
# Moderate data: the mean of r is at worst 1/100 of its terms, so t carries some 100 n roundings and
# p, whose condition with respect to t is below n, 100 n^2: 1e4 EPS = 2e-12 for n = 10.
CLOSE = 1e-11


def binomial_bounds(rate: float, n: int) -> tuple[float, float]:
    """Rates that n trials of this rate leave with probability 1e-6 only."""
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], n, rate) / n
    return float(low), float(high)


def paired(n: int, effect: float = 0.2, seed: int = 0) -> tuple[Array, Array]:
    """Two metrics with a strong common factor per seed and a ratio of about exp(effect)."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 1, n)
    return np.exp(common + effect + rng.normal(0, 0.1, n)), np.exp(common)


def law_coverage(mean: Mean) -> None:
    """The interval of level 0.95 holds the true mean in 95 % of experiments; n = 3."""
    trials = 4000
    draws = np.random.default_rng(1).normal(3.0, 2.0, (trials, 3))
    held = [low <= 3.0 <= high for _, low, high in map(mean, draws)]
    low, high = binomial_bounds(0.95, trials)
    assert low <= np.mean(held) <= high


def law_scipy(f: Compare) -> None:
    """scipy's one-sample t test of the log ratios."""
    for n in (3, 5, 10):
        a, b = paired(n)
        test = stats.ttest_1samp(np.log(a / b), 0)
        interval = np.exp(test.confidence_interval(0.95))
        c = f(a, b)
        assert c.p == pytest.approx(test.pvalue, rel=CLOSE)
        assert (c.low, c.high) == pytest.approx(tuple(interval), rel=CLOSE)
        assert c.ratio == pytest.approx(stats.gmean(a / b), rel=CLOSE)


def law_pairing(f: Compare) -> None:
    """A factor common to both sides of a seed is no evidence."""
    a, b = paired(6)
    factor = 2.0 ** np.array([-3, 5, 0, 7, -6, 2])
    one, other = f(a, b), f(factor * a, factor * b)
    assert (one.ratio, one.low, one.high) == pytest.approx(
        (other.ratio, other.low, other.high), rel=CLOSE
    )
    assert one.p == pytest.approx(other.p, rel=CLOSE)


def law_swap(f: Compare) -> None:
    """Exchanging a and b inverts ratio and interval and keeps p: only exp rounds differently."""
    a, b = paired(6)
    one, other = f(a, b), f(b, a)
    inverse = (1 / other.ratio, 1 / other.high, 1 / other.low)
    assert (one.ratio, one.low, one.high) == pytest.approx(inverse, rel=8 * EPS)
    assert one.p == other.p


def law_level(f: Compare) -> None:
    """Where nothing differs, 5 % of the tests have p < 0.05: n = 4, noise log-normal."""
    trials = 2000
    noise = np.exp(np.random.default_rng(3).normal(0, 0.7, (2, trials, 4)))
    low, high = binomial_bounds(0.05, trials)
    assert low <= np.mean([f(a, b).p < 0.05 for a, b in zip(*noise, strict=True)]) <= high


def law_power(effect: Callable[[int], float]) -> None:
    """At this many sd of mean log ratio, four of five simulated studies have p < 0.05."""
    trials = 20_000
    low, high = binomial_bounds(0.8, trials)
    for n in (3, 5, 10):
        r = np.random.default_rng(n).normal(effect(n), 1.0, (trials, n))
        assert low <= np.mean(stats.ttest_1samp(r, 0, axis=1).pvalue < 0.05) <= high


def closed_testing(p: Sequence[float]) -> list[float]:
    """Holm as the closure of Bonferroni tests (Marcus, Peritz and Gabriel 1976).

    The adjusted p of a hypothesis is the largest Bonferroni p, |S| min_S p, over all families S
    that hold it: no sorting and no running maximum.
    """
    m = len(p)
    families = [s for k in range(1, m + 1) for s in itertools.combinations(range(m), k)]
    bonferroni = {s: min(1.0, len(s) * min(p[i] for i in s)) for s in families}
    return [max(q for s, q in bonferroni.items() if i in s) for i in range(m)]


EXAMPLE = [0.01, 0.04, 0.03, 0.005]
"""The worked example of Wikipedia's Holm-Bonferroni page; p.adjust of R gives the answer."""


def law_published(f: Holm) -> None:
    assert f(EXAMPLE) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=2 * EPS)


def law_closure(f: Holm) -> None:
    """One product and exact minima and maxima on both sides: equal."""
    rng = np.random.default_rng(7)
    for m in (1, 2, 3, 5, 7):
        p = (rng.random(m) ** 3).tolist()
        assert f(p) == closed_testing(p)


def law_monotone(f: Holm) -> None:
    """A smaller p never has the larger adjusted one."""
    for p in ([0.01, 0.011, 0.012], EXAMPLE):
        adjusted = f(p)
        for i, j in itertools.product(range(len(p)), repeat=2):
            assert p[i] > p[j] or adjusted[i] <= adjusted[j]


def law_nan(f: Holm) -> None:
    adjusted = f([math.nan, *EXAMPLE, math.nan])
    assert math.isnan(adjusted[0])
    assert math.isnan(adjusted[-1])
    assert adjusted[1:-1] == f(EXAMPLE)


def law_familywise(f: Holm) -> None:
    """One null of three is false and always rejected; then a true one is, falsely, as often as

    Holm's next step allows:  1 - (1 - alpha/2)^2 = alpha - alpha^2/4.
    """
    trials = 20_000
    p = np.random.default_rng(8).random((trials, 2))
    wrong = [min(f([1e-9, *row])[1:]) < 0.05 for row in p.tolist()]
    low, high = binomial_bounds(0.05 - 0.05**2 / 4, trials)
    assert low <= np.mean(wrong) <= high


def holm_mutant(factors: Callable[[int], Array], running: Callable[[Array], Array]) -> Holm:
    def mutant(pvalues: Sequence[float]) -> list[float]:
        p = np.array(pvalues)
        order = np.argsort(p)
        adjusted = np.empty(len(p))
        adjusted[order] = np.minimum(1, running(factors(len(p)) * p[order]))
        return adjusted.tolist()

    return mutant


bonferroni = holm_mutant(lambda m: np.full(m, float(m)), np.maximum.accumulate)
Tost = Callable[[Array, Array, float], float]


def law_tost_scipy(f: Tost) -> None:
    for effect, margin in ((0.0, 1.2), (0.05, 1.2), (-0.05, 1.2), (0.3, 1.1), (-0.3, 1.1)):
        a, b = paired(6, effect=effect, seed=9)
        r = np.log(a / b)
        above = stats.ttest_1samp(r, -math.log(margin), alternative="greater").pvalue
        below = stats.ttest_1samp(r, math.log(margin), alternative="less").pvalue
        assert f(a, b, margin) == pytest.approx(max(above, below), rel=CLOSE)


def law_tost_level(f: Tost) -> None:
    """On the margin, equivalence is claimed in 5 % of experiments (its other side is far away)."""
    trials, margin = 2000, 2.0
    r = np.random.default_rng(10).normal(math.log(margin), 0.05, (trials, 5))
    low, high = binomial_bounds(0.05, trials)
    rate = np.mean([f(np.exp(row), np.ones(5), margin) < 0.05 for row in r])
    assert low <= rate <= high


def result(ratio: float, low: float, high: float, p: float, n: int) -> Comparison:
    return Comparison(ratio, low, high, p, math.nan, math.nan, n, math.nan)


def our_effect(n: int) -> float:
    """log detectable over the sd of the log ratios, through the public function."""
    a, b = paired(n, seed=6)
    return math.log(compare(a, b).detectable) / float(np.log(a / b).std(ddof=1))
