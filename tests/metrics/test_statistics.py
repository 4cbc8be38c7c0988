"""Laws of the statistics, each with outside truth, and the mutants that each must reject.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws.statistics import (
    CLOSE,
    EPS,
    Array,
    closed_testing,
    law_coverage,
    our_effect,
    paired,
    result,
)
from scipy import stats

from testbed.metrics import statistics
from testbed.metrics.statistics import Comparison, compare, correct, holm, tost
from testbed.study.settings import ReportSettings

# --- mean_interval ----------------------------------------------------------------------------


def test_interval_covers() -> None:
    law_coverage(statistics.mean_interval)


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


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 20, 64, 1000])
def test_detectable_is_solved_for_every_n(n: int) -> None:
    effect = our_effect(n)
    c = stats.t.ppf(0.975, n - 1)
    # brentq stops at 2e-12; the other tail that is left out is of the order of 1e-6.
    assert stats.nct.cdf(c, n - 1, effect * math.sqrt(n)) == pytest.approx(0.2, abs=1e-8)
    assert stats.norm.cdf(-c - effect * math.sqrt(n)) < 2e-6


# --- compare: edges and verdicts --------------------------------------------------------------


def only(a: Sequence[float] | Array, b: Sequence[float] | Array) -> Comparison:
    """Corrected as a family of one."""
    return correct([compare(a, b)])[0]


def test_twins_are_identical() -> None:
    c = only([0.1, 0.2, 0.7], [0.1, 0.2, 0.7])
    assert (c.ratio, c.low, c.high, c.p, c.p_signflip, c.p_holm) == (1, 1, 1, 1, 1, 1)
    assert c.detectable == 1
    assert c.verdict == "equivalent"


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
    assert c.verdict == "undecided"


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
    ("low", "high", "p_holm", "p_equivalent_holm", "verdict"),
    [
        (0.7, 0.9, 0.01, 1.0, "better"),
        (1.1, 1.3, 0.01, 1.0, "worse"),
        (0.7, 0.9, 0.05, 1.0, "undecided"),
        (1.1, 1.3, 0.2, 1.0, "undecided"),
        (0.7, 1.1, 0.01, 1.0, "undecided"),
        (0.7, 1.0, 0.01, 1.0, "undecided"),
        (1.0, 1.2, 0.01, 1.0, "undecided"),
        (0.7, 0.9, math.nan, math.nan, "undecided"),
        (1.01, 1.03, 0.001, 0.2, "undecided"),
        (1.01, 1.03, 0.001, 0.01, "equivalent"),
        (0.98, 1.03, 1.0, 0.01, "equivalent"),
        (0.98, 1.03, 1.0, 0.05, "undecided"),
    ],
)
def test_verdict(
    low: float, high: float, p_holm: float, p_equivalent_holm: float, verdict: str
) -> None:
    c = replace(result(math.sqrt(low * high), low, high, 0.01, 5), p_holm=p_holm)
    assert replace(c, p_equivalent_holm=p_equivalent_holm).verdict == verdict


def test_the_smallest_effect_is_a_bound_on_the_log_scale() -> None:
    """exp(0.05) is 5.1 %; r is 4.9 % and 5.2 % with a sd that shows both to differ from 0."""
    for effect, verdict in ((0.049, "undecided"), (0.051, "worse"), (-0.051, "better")):
        r = effect + 0.01 * np.array([-1.0, 0.0, 1.0, -1.0, 0.0, 1.0])
        assert only(np.exp(r), np.ones(6)).verdict == verdict
    r = 0.05 + 0.01 * np.array([-1.0, 0.0, 1.0])
    assert correct([compare(np.exp(r), np.ones(3), smallest_effect=0.2)])[0].verdict == "equivalent"


def test_a_significant_difference_may_be_an_equivalence() -> None:
    c = only(1.01 * np.exp([0.001, 0.0, -0.001]), np.ones(3))
    assert c.p_holm < 0.01
    assert c.verdict == "equivalent"


def test_both_kinds_of_claim_are_corrected_and_a_divergence_stays_in_both() -> None:
    near = compare(1.01 * np.exp([0.01, 0.0, -0.01]), np.ones(3))
    lost = compare([math.inf, 1.0, 1.0], np.ones(3))
    few = compare([1.0, 2.0], [1.0, 1.0])
    corrected = correct([near, lost, few])
    assert corrected[0].p_equivalent_holm == pytest.approx(2 * near.p_equivalent)
    assert corrected[0].p_holm == pytest.approx(min(1, 2 * near.p))
    assert all(math.isnan(c.p_equivalent_holm) for c in corrected[1:])


def test_the_study_has_the_smallest_effect_of_the_statistics() -> None:
    assert ReportSettings().smallest_effect == statistics.SMALLEST_EFFECT


def test_winner_and_loser() -> None:
    a, b = paired(8, effect=0.4)
    assert only(a, b).verdict == "worse"
    assert only(b, a).verdict == "better"
    assert compare(a, b).verdict == "undecided", "it belongs to no family yet"
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
    changed = {"p_holm": 0.0, "p_equivalent_holm": 0.0}
    assert replace(corrected[2], **changed) == replace(clear, **changed)
    # The divergence was declared too: three comparisons, not two.
    assert [c.p_holm for c in correct(iter([weak, gone, clear]))[::2]] == holm(
        [weak.p, 1.0, clear.p]
    )[::2]
    assert clear.p * 3 == correct([weak, gone, clear])[2].p_holm != corrected[2].p_holm
    assert correct([]) == []


# --- equivalence ------------------------------------------------------------------------------


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
