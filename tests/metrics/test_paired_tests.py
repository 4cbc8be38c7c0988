"""The sign-flip test and the smallest effect that a t test detects, by definition and scipy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.statistics import (
    EPS,
    Array,
    our_effect,
    paired,
)
from scipy import stats

from testbed.metrics.comparison import compare
from testbed.metrics.paired_tests import SIGN_DRAWS

# --- the sign-flip test -----------------------------------------------------------------------


def flips(r: Sequence[int]) -> float:
    """By definition, over all 2^n patterns in exact integers."""
    observed = abs(sum(r))
    signs = itertools.product((-1, 1), repeat=len(r))
    sums = [abs(sum(s * v for s, v in zip(pattern, r, strict=True))) for pattern in signs]
    return sum(total >= observed for total in sums) / len(sums)


def float_flips(r: Array, tie: float) -> float:
    sums = np.array([np.dot(s, r) for s in itertools.product((-1.0, 1.0), repeat=len(r))])
    return float(np.mean(np.abs(sums) >= abs(r.sum()) * (1 + tie)))


@pytest.mark.slow
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


@pytest.mark.slow
def test_signflip_by_draws_agrees_with_enumeration() -> None:
    n = 22
    r = np.random.default_rng(5).normal(0.3, 1, n)
    sums = np.zeros(1)
    for v in r:
        sums = np.concatenate([sums + v, sums - v])
    exact = np.mean(np.abs(sums) >= abs(r.sum()) * (1 - 1e-12))
    c = compare(np.exp(r), np.ones(n))
    error = math.sqrt(exact * (1 - exact) / SIGN_DRAWS)
    assert 0.01 < exact < 0.9
    assert abs(c.p_signflip - exact) < 5 * error + 1 / SIGN_DRAWS
    assert compare(np.exp(r), np.ones(n)).p_signflip == c.p_signflip
    assert compare(np.full(n, 3.0), np.ones(n)).p_signflip == c.p_signflip_min


# --- the detectable ratio ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 20, 64, 1000])
def test_detectable_is_solved_for_every_n(n: int) -> None:
    effect = our_effect(n)
    c = stats.t.ppf(0.975, n - 1)
    # brentq stops at 2e-12; the other tail that is left out is of the order of 1e-6.
    assert stats.nct.cdf(c, n - 1, effect * math.sqrt(n)) == pytest.approx(0.2, abs=1e-8)
    assert stats.norm.cdf(-c - effect * math.sqrt(n)) < 2e-6
