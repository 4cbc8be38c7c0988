"""Laws of the statistics, each with outside truth, and the mutants that each must reject.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from testbed.metrics import statistics
from testbed.metrics.statistics import Comparison, Interval, compare, correct, holm, tost

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


# --- mean_interval ----------------------------------------------------------------------------


def law_coverage(mean: Mean) -> None:
    """The interval of level 0.95 holds the true mean in 95 % of experiments; n = 3."""
    trials = 4000
    draws = np.random.default_rng(1).normal(3.0, 2.0, (trials, 3))
    held = [low <= 3.0 <= high for _, low, high in map(mean, draws)]
    low, high = binomial_bounds(0.95, trials)
    assert low <= np.mean(held) <= high


def interval_with(quantile: float, ddof: int) -> Mean:
    def mean(y: Array) -> Interval:
        h = quantile * y.std(ddof=ddof) / math.sqrt(len(y))
        return Interval(y.mean(), y.mean() - h, y.mean() + h)

    return mean


T3 = float(stats.t.ppf(0.975, 2))


def test_interval_covers() -> None:
    law_coverage(statistics.mean_interval)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(interval_with(1.96, 1), id="normal quantile"),
        pytest.param(interval_with(T3, 0), id="population sd"),
        pytest.param(interval_with(float(stats.t.ppf(0.95, 2)), 1), id="one-sided quantile"),
        pytest.param(interval_with(float(stats.t.ppf(0.975, 3)), 1), id="n degrees of freedom"),
        pytest.param(interval_with(T3 * math.sqrt(3), 1), id="sd for standard error"),
    ],
)
def test_interval_mutants_do_not_cover(mutant: Mean) -> None:
    law_coverage(interval_with(T3, 1))
    with pytest.raises(AssertionError):
        law_coverage(mutant)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_interval_is_scipys(level: float) -> None:
    y = np.random.default_rng(2).lognormal(0.3, 0.5, 7)
    expected = stats.ttest_1samp(y, 0).confidence_interval(level)
    assert statistics.mean_interval(y, level) == pytest.approx((y.mean(), *expected), rel=CLOSE)
    expected = stats.ttest_1samp(np.log(y), 0).confidence_interval(level)
    assert statistics.mean_interval(y, level, log=True) == pytest.approx(
        (stats.gmean(y), *np.exp(expected)), rel=CLOSE
    )


def test_interval_at_the_edges() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, low, high = statistics.mean_interval([2.5])
    assert value == 2.5
    assert math.isnan(low)
    assert math.isnan(high)
    for log in (False, True):
        for gone in (math.nan, math.inf):
            diverged = statistics.mean_interval([1.0, gone, 2.0], log=log)
            assert all(math.isnan(v) for v in diverged)
    assert statistics.mean_interval([-1.0, -1.0]) == (-1.0, -1.0, -1.0)
    for bad in ([], 3.0, [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="one number per seed"):
            statistics.mean_interval(bad)
    for level in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="level"):
            statistics.mean_interval([1.0, 2.0], level)
    with pytest.raises(ValueError, match="positive"):
        statistics.mean_interval([1.0, 0.0], log=True)


# --- compare: the paired t test ---------------------------------------------------------------


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


def result(ratio: float, low: float, high: float, p: float, n: int) -> Comparison:
    return Comparison(ratio, low, high, p, math.nan, math.nan, n, math.nan)


def t_compare(a: Array, b: Array) -> Comparison:
    """The truth, from scipy alone, as a base for mutants."""
    test = stats.ttest_rel(np.log(a), np.log(b))
    low, high = np.exp(test.confidence_interval(0.95))
    return result(float(stats.gmean(a / b)), low, high, float(test.pvalue), len(a))


def unpaired(a: Array, b: Array) -> Comparison:
    test = stats.ttest_ind(np.log(a), np.log(b))
    low, high = np.exp(test.confidence_interval(0.95))
    return result(float(stats.gmean(a / b)), low, high, float(test.pvalue), len(a))


def one_sided(a: Array, b: Array) -> Comparison:
    p = stats.ttest_rel(np.log(a), np.log(b), alternative="greater").pvalue
    return replace(t_compare(a, b), p=float(p))


def halved(a: Array, b: Array) -> Comparison:
    return replace(t_compare(a, b), p=t_compare(a, b).p / 2)


def no_log(a: Array, b: Array) -> Comparison:
    test = stats.ttest_rel(a, b)
    low, high = 1 + np.array(test.confidence_interval(0.95)) / b.mean()
    return result(a.mean() / b.mean(), low, high, float(test.pvalue), len(a))


def mean_of_ratios(a: Array, b: Array) -> Comparison:
    test = stats.ttest_1samp(a / b, 1)
    return result(np.mean(a / b), *test.confidence_interval(0.95), float(test.pvalue), len(a))


def normal_test(a: Array, b: Array) -> Comparison:
    r = np.log(a / b)
    z = abs(r.mean()) / (r.std(ddof=1) / math.sqrt(len(r)))
    return replace(t_compare(a, b), p=float(2 * stats.norm.sf(z)))


LAWS = {law.__name__: law for law in (law_scipy, law_pairing, law_swap, law_level)}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_compare_obeys(law: Callable[[Compare], None]) -> None:
    law(compare)
    if law is not law_level:
        law(t_compare)


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (law_pairing, unpaired),
        (law_scipy, unpaired),
        (law_swap, one_sided),
        (law_level, halved),
        (law_scipy, halved),
        (law_pairing, no_log),
        (law_swap, no_log),
        (law_swap, mean_of_ratios),
        (law_level, normal_test),
        (law_scipy, normal_test),
    ],
)
def test_compare_mutants(law: Callable[[Compare], None], mutant: Compare) -> None:
    with pytest.raises(AssertionError):
        law(mutant)


metric = st.floats(1e-3, 1e3)
pairs = st.lists(st.tuples(metric, metric), min_size=3, max_size=8).map(np.array)


@given(pairs, st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_swap_and_scale(ab: Array, scale: float) -> None:
    a, b = ab.T
    c, swapped, scaled = compare(a, b), compare(b, a), compare(scale * a, scale * b)
    for one, other in ((c.ratio, swapped.ratio), (c.low, swapped.high), (c.high, swapped.low)):
        assert math.isclose(one * other, 1, rel_tol=4 * EPS) or 0 in (one, other)
    assert (c.p, c.p_signflip, c.detectable) == (swapped.p, swapped.p_signflip, swapped.detectable)
    # |log a| <= 14 with the scale; r then errs by less than 6 roundings of 14, 48 EPS. The mean
    # errs no more, the half width t s / sqrt(n) by t / sqrt(n - 1) <= 3.1 times that (n >= 3).
    for one, other in ((c.ratio, scaled.ratio), (c.low, scaled.low), (c.high, scaled.high)):
        if 0 < one < math.inf:
            assert abs(math.log(one) - math.log(other)) <= 200 * EPS + 4 * EPS * abs(math.log(one))


@given(pairs, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_order_of_seeds_is_nothing(ab: Array, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(ab))))
    one, other = compare(*ab.T), compare(*ab[order].T)
    assert one.p_signflip == other.p_signflip
    assert math.isclose(one.ratio, other.ratio, rel_tol=200 * EPS)


# --- compare: the sign-flip test --------------------------------------------------------------


def flips(r: Sequence[int]) -> float:
    """By definition, over all 2^n patterns in exact integers."""
    observed = abs(sum(r))
    signs = itertools.product((-1, 1), repeat=len(r))
    sums = [abs(sum(s * v for s, v in zip(pattern, r, strict=True))) for pattern in signs]
    return sum(total >= observed for total in sums) / len(sums)


def float_flips(r: Array, tie: float) -> float:
    sums = np.array([np.dot(s, r) for s in itertools.product((-1.0, 1.0), repeat=len(r))])
    return float(np.mean(np.abs(sums) >= abs(r.sum()) * (1 + tie)))


@given(st.lists(st.integers(-6, 6), min_size=3, max_size=8))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_signflip_counts_patterns_and_ties(k: list[int]) -> None:
    # log 2^k = k log 2 rounded: integers would tie exactly, these tie but for rounding.
    assert compare(2.0 ** np.array(k), np.ones(len(k))).p_signflip == flips(k)


def test_signflip_mutant_without_ties() -> None:
    k = [1, 2, 3, 3, 2, -1]
    assert float_flips(np.log(2.0) * np.array(k), -1e-12) == flips(k)
    assert float_flips(np.log(2.0) * np.array(k), 1e-12) != flips(k)


def test_signflip_is_scipys() -> None:
    a, b = paired(9, effect=0.05, seed=4)
    test = stats.permutation_test(
        (np.log(a / b),), np.mean, permutation_type="samples", n_resamples=math.inf
    )
    assert compare(a, b).p_signflip == pytest.approx(test.pvalue, rel=EPS)


@pytest.mark.parametrize(("n", "least"), [(3, 0.25), (6, 0.03125), (10, 2 / 1024), (20, 2.0**-19)])
def test_signflip_smallest_p(n: int, least: float) -> None:
    c = compare(np.full(n, 3.0), np.ones(n))
    assert c.p_signflip == c.p_signflip_min == least


def test_signflip_by_draws_agrees_with_enumeration() -> None:
    n = 22
    r = np.random.default_rng(5).normal(0.3, 1, n)
    sums = np.zeros(1)
    for v in r:
        sums = np.concatenate([sums + v, sums - v])
    exact = np.mean(np.abs(sums) >= abs(r.sum()) * (1 - 1e-12))
    c = compare(np.exp(r), np.ones(n))
    error = math.sqrt(exact * (1 - exact) / statistics.SIGN_DRAWS)
    assert 0.01 < exact < 0.9
    assert abs(c.p_signflip - exact) < 5 * error + 1 / statistics.SIGN_DRAWS
    assert compare(np.exp(r), np.ones(n)).p_signflip == c.p_signflip
    assert compare(np.full(n, 3.0), np.ones(n)).p_signflip == c.p_signflip_min


# --- compare: the detectable ratio ------------------------------------------------------------


def law_power(effect: Callable[[int], float]) -> None:
    """At this many sd of mean log ratio, four of five simulated studies have p < 0.05."""
    trials = 20_000
    low, high = binomial_bounds(0.8, trials)
    for n in (3, 5, 10):
        r = np.random.default_rng(n).normal(effect(n), 1.0, (trials, n))
        assert low <= np.mean(stats.ttest_1samp(r, 0, axis=1).pvalue < 0.05) <= high


def our_effect(n: int) -> float:
    """log detectable over the sd of the log ratios, through the public function."""
    a, b = paired(n, seed=6)
    return math.log(compare(a, b).detectable) / float(np.log(a / b).std(ddof=1))


def normal_effect(n: int) -> float:
    return float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / math.sqrt(n)


def central_effect(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)


def one_sided_effect(n: int) -> float:
    return float(stats.t.ppf(0.95, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)


def half_effect(n: int) -> float:
    """Significant when just observed: power one half."""
    return float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)


def test_detectable_has_power_080() -> None:
    law_power(our_effect)


@pytest.mark.parametrize("mutant", [normal_effect, central_effect, one_sided_effect, half_effect])
def test_detectable_mutants(mutant: Callable[[int], float]) -> None:
    with pytest.raises(AssertionError):
        law_power(mutant)


@pytest.mark.parametrize("n", [3, 4, 20, 64, 1000])
def test_detectable_is_solved_for_every_n(n: int) -> None:
    effect = our_effect(n)
    c = stats.t.ppf(0.975, n - 1)
    # brentq stops at 2e-12; the other tail that is left out is of the order of 1e-6.
    assert stats.nct.cdf(c, n - 1, effect * math.sqrt(n)) == pytest.approx(0.2, abs=1e-8)
    assert stats.norm.cdf(-c - effect * math.sqrt(n)) < 2e-6


# --- compare: edges and verdicts --------------------------------------------------------------


def only(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Corrected as a family of one."""
    return correct([compare(a, b)])[0]


def test_twins_are_identical() -> None:
    c = only([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])
    assert (c.ratio, c.low, c.high, c.p, c.p_signflip, c.p_holm) == (1, 1, 1, 1, 1, 1)
    assert c.detectable == 1
    assert c.verdict == "identical"


def test_a_constant_ratio_has_no_width() -> None:
    c = only([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert c.ratio == pytest.approx(0.5, rel=4 * EPS)
    assert c.low == pytest.approx(c.high, rel=16 * EPS)
    assert c.p < 1e-12
    assert c.p_signflip == 0.25
    assert c.detectable == pytest.approx(1, rel=16 * EPS)
    assert c.verdict == "better"
    # Four equal numbers have their mean and the sd 0 exactly.
    for a, b, verdict in ((1.0, 2.0, "better"), (2.0, 1.0, "worse")):
        exactly = only([a] * 4, [b] * 4)
        assert exactly.low == exactly.high != 1
        assert exactly.verdict == verdict


def test_a_mean_ratio_of_one_is_no_identity() -> None:
    """log 2 and log 1/2 cancel exactly: p = 1 with an interval that has a width."""
    c = only([2.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    assert (c.ratio, c.p) == (1, 1)
    assert c.low < 1 < c.high
    assert c.verdict == "no difference shown"


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds(n: int) -> None:
    c = only([1.0, 2.0][:n], [1.5, 2.5][:n])
    assert all(math.isnan(v) for v in (c.p, c.p_signflip, c.p_holm, c.detectable))
    assert c.seeds == n
    assert c.ratio < 1
    assert math.isnan(c.low) == (n == 1)
    assert c.verdict == only([1.0, 2.0][:n], [1.0, 2.0][:n]).verdict == "too few seeds"


def test_a_divergence_stays_in_the_count() -> None:
    c = only([1.0, math.inf, 3.0, math.nan], [1.0, 2.0, 3.0, math.inf])
    assert (c.seeds, c.diverged_a, c.diverged_b) == (4, 2, 1)
    undefined = (c.ratio, c.low, c.high, c.p, c.p_signflip, c.detectable, c.p_holm)
    assert all(math.isnan(v) for v in undefined)
    assert c.verdict == "diverged: a in 2, b in 1 of 4 seeds"
    assert only([math.nan], [1.0]).verdict == "diverged: a in 1, b in 0 of 1 seeds"
    assert only([1.0], [math.nan]).verdict == "diverged: a in 0, b in 1 of 1 seeds"
    assert only([math.inf, 1.0], [1.0, 0.5]).diverged
    assert only([math.inf], [math.inf]).diverged


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "verdict"),
    [
        (0.7, 0.9, 0.01, "better"),
        (1.1, 1.3, 0.01, "worse"),
        (0.7, 0.9, 0.05, "no difference shown"),
        (1.1, 1.3, 0.2, "no difference shown"),
        (0.7, 1.1, 0.01, "no difference shown"),
        (0.7, 1.0, 0.01, "no difference shown"),
        (1.0, 1.2, 0.01, "no difference shown"),
        (0.7, 1.1, math.nan, "no difference shown"),
        (0.7, 0.9, math.nan, "uncorrected"),
    ],
)
def test_verdict(low: float, high: float, p_holm: float, verdict: str) -> None:
    c = replace(result(math.sqrt(low * high), low, high, 0.01, 5), p_holm=p_holm)
    assert c.verdict == verdict


def test_winner_and_loser() -> None:
    a, b = paired(8, effect=0.4)
    assert only(a, b).verdict == "worse"
    assert only(b, a).verdict == "better"
    assert compare(a, b).verdict == "uncorrected"
    wide = compare(a, b, level=1 - 1e-9)
    assert wide.low < 1 < wide.high
    assert wide.p == compare(a, b).p


def test_huge_ratios_do_not_raise() -> None:
    c = compare([1e300, 1e307, 1e308], [1e-300, 1e-308, 1e-307])
    assert c.ratio == math.inf
    assert 0 < c.p < 0.05


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ([1.0, 2.0], [1.0], "paired by seed, got 2 and 1"),
        ([], [], "one number per seed"),
        ([[1.0]], [[1.0]], "one number per seed"),
        ([1.0, 0.0], [1.0, 1.0], "a must be positive"),
        ([1.0, 1.0], [1.0, -math.inf], "b must be positive"),
    ],
)
def test_bad_input(a: list[float], b: list[float], match: str) -> None:
    for function in (compare, lambda a, b: tost(a, b, 1.1)):
        with pytest.raises(ValueError, match=match):
            function(a, b)
    with pytest.raises(ValueError, match="level"):
        compare([1.0], [1.0], level=95)


# --- Holm -------------------------------------------------------------------------------------


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


HOLM_LAWS = {
    law.__name__: law for law in (law_published, law_closure, law_monotone, law_nan, law_familywise)
}


@pytest.mark.parametrize("law", HOLM_LAWS.values(), ids=HOLM_LAWS)
def test_holm_obeys(law: Callable[[Holm], None]) -> None:
    law(holm)


def holm_mutant(factors: Callable[[int], Array], running: Callable[[Array], Array]) -> Holm:
    def mutant(pvalues: Sequence[float]) -> list[float]:
        p = np.array(pvalues)
        order = np.argsort(p)
        adjusted = np.empty(len(p))
        adjusted[order] = np.minimum(1, running(factors(len(p)) * p[order]))
        return adjusted.tolist()

    return mutant


def down(m: int) -> Array:
    return np.arange(m, 0, -1.0)


bonferroni = holm_mutant(lambda m: np.full(m, float(m)), np.maximum.accumulate)
no_running_max = holm_mutant(down, lambda q: q)
hochberg = holm_mutant(down, lambda q: np.minimum.accumulate(q[::-1])[::-1])
benjamini = holm_mutant(
    lambda m: m / np.arange(1.0, m + 1), lambda q: np.minimum.accumulate(q[::-1])[::-1]
)
raw = holm_mutant(np.ones, np.maximum.accumulate)
nan_counted = holm_mutant(down, np.maximum.accumulate)


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        pytest.param(law_published, bonferroni, id="Bonferroni"),
        pytest.param(law_familywise, bonferroni, id="Bonferroni is too strict"),
        pytest.param(law_monotone, no_running_max, id="no step-down maximum"),
        pytest.param(law_closure, no_running_max, id="no step-down maximum, closure"),
        pytest.param(law_published, hochberg, id="Hochberg"),
        pytest.param(law_familywise, benjamini, id="false discovery rate"),
        pytest.param(law_familywise, raw, id="uncorrected"),
        pytest.param(law_nan, nan_counted, id="nan counted"),
    ],
)
def test_holm_mutants(law: Callable[[Holm], None], mutant: Holm) -> None:
    with pytest.raises(AssertionError):
        law(mutant)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_holm_properties(p: list[float], data: st.DataObject) -> None:
    adjusted = holm(p)
    order = data.draw(st.permutations(range(len(p))))
    assert adjusted == closed_testing(p)
    assert all(raw <= q <= 1 for raw, q in zip(p, adjusted, strict=True))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


def test_holm_at_the_edges() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert math.isnan(holm([math.nan])[0])
    for bad in (-0.1, 1.1, math.inf):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            holm([0.5, bad])


def test_correct_fills_the_declared_family() -> None:
    clear = compare(*paired(6, effect=0.2, seed=1))
    weak = compare(*paired(6, effect=0.05, seed=2))
    few = compare([1.0, 2.0], [2.0, 3.0])
    gone = compare([1.0, math.inf, 1.0], [1.0, 1.0, 1.0])
    corrected = correct([weak, few, clear])
    assert [c.p_holm for c in corrected[::2]] == holm([weak.p, clear.p])
    assert math.isnan(corrected[1].p_holm)
    assert replace(corrected[2], p_holm=0.0) == replace(clear, p_holm=0.0)
    # The divergence was declared too: three comparisons, not two.
    assert [c.p_holm for c in correct(iter([weak, gone, clear]))[::2]] == holm(
        [weak.p, 1.0, clear.p]
    )[::2]
    assert clear.p * 3 == correct([weak, gone, clear])[2].p_holm != corrected[2].p_holm
    assert correct([]) == []


# --- equivalence ------------------------------------------------------------------------------

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


def tost_min(a: Array, b: Array, margin: float) -> float:
    t, n = abs(np.log(a / b).mean()), len(a)
    se = np.log(a / b).std(ddof=1) / math.sqrt(n)
    return float(stats.t.sf((math.log(margin) + t) / se, n - 1))


def tost_two_sided(a: Array, b: Array, margin: float) -> float:
    return min(1.0, 2 * tost(a, b, margin))


def tost_linear_margin(a: Array, b: Array, margin: float) -> float:
    return tost(a, b, math.exp(margin - 1))


def tost_not_significant(a: Array, b: Array, margin: float) -> float:
    """The fallacy: what is not significantly different is equal."""
    return 1 - float(stats.ttest_rel(np.log(a), np.log(b)).pvalue)


@pytest.mark.parametrize("law", [law_tost_scipy, law_tost_level])
def test_tost_obeys(law: Callable[[Tost], None]) -> None:
    law(tost)


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (law_tost_scipy, tost_min),
        (law_tost_level, tost_min),
        (law_tost_level, tost_two_sided),
        (law_tost_level, tost_linear_margin),
        (law_tost_scipy, tost_not_significant),
    ],
)
def test_tost_mutants(law: Callable[[Tost], None], mutant: Tost) -> None:
    with pytest.raises(AssertionError):
        law(mutant)


@given(pairs, st.floats(1.01, 10))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tost_is_the_90_percent_interval_inside_the_margins(ab: Array, margin: float) -> None:
    a, b = ab.T
    _, low, high = statistics.mean_interval(np.log(a / b), level=0.9)
    gap = min(abs(math.log(margin) - high), abs(math.log(margin) + low))
    assume(gap > 1e-9)
    inside = -math.log(margin) < low and high < math.log(margin)
    assert (tost(a, b, margin) < 0.05) == inside
    assert tost(b, a, margin) == pytest.approx(tost(a, b, margin), rel=1e-6, abs=1e-12)


def test_tost_at_the_edges() -> None:
    assert tost([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.1) < 1e-12
    assert tost([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], 1.1) > 1 - 1e-12
    assert math.isnan(tost([1.0, 2.0], [1.0, 2.0], 1.1))
    assert math.isnan(tost([1.0, 2.0, math.inf], [1.0, 2.0, 3.0], 1.1))
    for margin in (1.0, 0.9, math.inf, math.nan):
        with pytest.raises(ValueError, match="margin"):
            tost([1.0] * 3, [1.0] * 3, margin)
