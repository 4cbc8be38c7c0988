"""Laws of tests at several looks: the anytime-valid t test, and alpha spent over looks."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from laws.statistics import Array
from scipy import integrate, stats

from testbed.metrics.comparison import tost
from testbed.metrics.looks import Look
from testbed.metrics.paired_tests import ALPHA, PairedTest
from testbed.metrics.sequential import PRECISION

LogE = Callable[[Array], float]
Critical = Callable[[int, float, int], float]
"""|t| from which on a look claims something: seeds, alpha, number of comparisons."""
QUADRATURE = 1e-8
"""quad is asked for 1e-10, and its integrand, scipy's noncentral t, is good to 1e-9 here."""


def with_t(t: float, n: int, sd: float = 1.0) -> Array:
    """n numbers whose t statistic is t."""
    y = np.cos(np.arange(n) * 2.0)
    y = (y - y.mean()) / y.std(ddof=1)
    return sd * (y + t / math.sqrt(n))


def over_the_line(f: Callable[[float], float], scale: float) -> float:
    """The integral of f over all t, with t = scale u/sqrt(1 - u^2)."""

    def inner(u: float) -> float:
        root = math.sqrt(1 - u * u)
        return f(scale * u / root) * scale / root**3

    found = integrate.quad(inner, -1, 1, epsabs=0, epsrel=1e-10, limit=200, full_output=1)
    return float(found[0])  # full_output: of an integral that diverges it says so by its value


def law_mixture(f: LogE) -> None:
    """The e-value is the ratio of densities of t, mixed over the effect, by quadrature."""
    for n, t in ((3, 0.5), (3, -4.0), (5, 3.0), (8, -2.5), (20, 4.0)):

        def mixed(delta: float, n: int = n, t: float = t) -> float:
            weight = stats.norm.pdf(delta, 0, 1 / math.sqrt(PRECISION))
            return float(stats.nct.pdf(t, n - 1, delta * math.sqrt(n)) * weight)

        centre = t / math.sqrt(n)
        value, _ = integrate.quad(mixed, -12, 12, points=[0, centre], epsrel=1e-10, limit=200)
        expected = value / stats.t.pdf(t, n - 1)
        assert math.exp(f(with_t(t, n, 7.0))) == pytest.approx(expected, rel=QUADRATURE)


def law_expectation(f: LogE) -> None:
    """Where the mean is zero the expectation of the e-value is one, at each number of seeds."""
    for n in (3, 4, 7, 15):

        def weighted(t: float, n: int = n) -> float:
            # no e-value of so few seeds is as large as exp(300)
            return math.exp(min(f(with_t(t, n)), 300.0)) * float(stats.t.pdf(t, n - 1))

        assert over_the_line(weighted, math.sqrt(n - 1)) == pytest.approx(1, rel=QUADRATURE)


def law_unit(f: LogE) -> None:
    """The unit of the log ratios and the order of the seeds do not matter, nor does the sign."""
    r = np.random.default_rng(4).normal(0.7, 1, 9)
    for other in (r[::-1], -r, 2.0**40 * r, 2.0**-600 * r):
        # nine roundings in S and V, whose share in log(1 - S^2/((n + c^2) V)) is below n/2 each
        assert f(other) == pytest.approx(f(r), abs=9 * 9 * 2.0**-50)


def studies(m: int, most: int = 30, count: int = 4000) -> tuple[Array, Array]:
    """|t| after 3 to `most` seeds, (count, looks, m), where all means are zero; the seeds.

    The m log ratios share a baseline: their correlation is 1/2.
    """
    rng = np.random.default_rng(12)
    r = rng.standard_normal((count, most, m)) - rng.standard_normal((count, most, 1))
    n = np.arange(3, most + 1)
    S, V = (np.cumsum(y, 1)[:, 2:] for y in (r, r**2))
    k = n[:, None]
    return np.abs(S) / np.sqrt((k * V - S**2) / (k - 1)), n


def law_every_look(critical: Critical) -> None:
    """Looks after each of 3 to 30 seeds claim something false in at most 5 % of studies."""
    for m in (1, 8):
        t, seeds = studies(m)
        limits = np.array([critical(int(n), ALPHA, m) for n in seeds])
        wrong = int((t >= limits[:, None]).any((1, 2)).sum())
        # what is at most 5 % exceeds this count with probability 1e-6 only
        assert wrong <= stats.binom.isf(1e-6, len(t), ALPHA)


def law_shares(share: Callable[[int], float]) -> None:
    """The shares of alpha that all looks spend sum to one at most."""
    assert math.fsum(map(share, range(1, 2000))) <= 1


def samples(n: int) -> Iterator[Array]:
    rng = np.random.default_rng(n)
    for mean in (0.0, 0.8, -1.2, 2.5):
        for _ in range(25):
            yield rng.normal(mean, 1, n)


def law_agrees(test: PairedTest) -> None:
    """p is below alpha exactly where the interval of level 1 - alpha leaves zero out."""
    for n in (3, 5, 9):
        for r in samples(n):
            _, low, high = test.interval(r, 1 - ALPHA)
            assert (test.p(r) < ALPHA) == (not low <= 0 <= high)


def law_spends(test: Callable[[int], PairedTest]) -> None:
    """The test of look k is at alpha/(k(k+1)): the p of scipy's t test times k(k+1)."""
    for k in (1, 2, 5):
        for r in samples(6):
            expected = min(1.0, k * (k + 1) * float(stats.ttest_1samp(r, 0).pvalue))
            # p of Student's T carries its condition, below n, times some roundings
            assert test(k).p(r) == pytest.approx(expected, rel=1e-11)
        law_agrees(test(k))


def law_outside(test: PairedTest) -> None:
    """What lies beyond a margin is not equivalent, however surely; what lies within may be."""
    noise = np.exp(0.01 * np.cos(np.arange(12.0)))
    for ratio, equal in ((1.0, True), (2.0, False), (0.5, False)):
        found = tost(ratio * noise, np.ones(12), 1.2, test) < ALPHA
        assert found is equal


def look(k: int) -> PairedTest:
    """The test of the k-th look at a fixed study to which seeds were added."""
    return Look("fixed", k, added=True).test
