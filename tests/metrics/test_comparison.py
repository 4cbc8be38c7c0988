"""The comparison of two settings: symmetries, edges, verdicts and equivalence."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws.statistics import (
    EPS,
    Array,
    paired,
    result,
)

from testbed.metrics.comparison import SMALLEST_EFFECT, Comparison, compare, tost
from testbed.metrics.intervals import mean_interval
from testbed.metrics.multiple_comparisons import correct
from testbed.study.settings import ReportSettings

# --- the paired t test ------------------------------------------------------------------------

metric = st.floats(1e-3, 1e3)
pairs = st.lists(st.tuples(metric, metric), min_size=3, max_size=8).map(np.array)


@pytest.mark.slow
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


@pytest.mark.slow
@given(pairs, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_order_of_seeds_is_nothing(ab: Array, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(ab))))
    one, other = compare(*ab.T), compare(*ab[order].T)
    assert one.p_signflip == other.p_signflip
    assert math.isclose(one.ratio, other.ratio, rel_tol=200 * EPS)


# --- edges and verdicts -----------------------------------------------------------------------


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


def test_the_study_has_the_smallest_effect_of_the_comparison() -> None:
    assert ReportSettings().smallest_effect == SMALLEST_EFFECT


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


# --- equivalence ------------------------------------------------------------------------------


@pytest.mark.slow
@given(pairs, st.floats(1.01, 10))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tost_is_the_90_percent_interval_inside_the_margins(ab: Array, margin: float) -> None:
    a, b = ab.T
    _, low, high = mean_interval(np.log(a / b), level=0.9)
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
