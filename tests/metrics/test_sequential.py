"""The anytime-valid t test at its edges; tests/laws/sequential.py has its laws."""

import math
import re

import numpy as np
import pytest
from helpers.paths import DOCS
from laws.sequential import with_t

from testbed.metrics import sequential
from testbed.metrics.comparison import compare, tost
from testbed.metrics.looks import Look
from testbed.metrics.multiple_comparisons import correct
from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.metrics.sequential import PRECISION, SEQUENTIAL, critical_t, log_e_value


@pytest.mark.parametrize("n", [4, 5, 8, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_critical_t_is_where_the_e_value_is_one_over_alpha(n: int, alpha: float) -> None:
    t = critical_t(n, alpha)
    # the condition of G with respect to t is below 2 n, on n roundings in S and V
    assert math.exp(log_e_value(with_t(t, n))) == pytest.approx(1 / alpha, rel=2 * n * n * 2.0**-50)


def test_with_too_few_seeds_no_t_is_large_enough() -> None:
    largest = ((3 + PRECISION) / PRECISION) ** 1.0
    assert math.exp(log_e_value(with_t(1e9, 3))) == pytest.approx(largest, rel=1e-9)
    assert critical_t(3, ALPHA) == math.inf
    assert critical_t(3, 1.01 / largest) < math.inf
    assert sequential.effect(3, ALPHA) == math.inf
    found = compare([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], test=SEQUENTIAL)
    assert (found.low, found.high, found.detectable) == (0, math.inf, math.inf)


def test_edges() -> None:
    same = compare([1.0] * 8, [1.0] * 8, test=SEQUENTIAL)
    assert (same.p, same.low, same.high, same.verdict) == (1, 1, 1, "undecided")
    no_spread = compare([2.0] * 8, [1.0] * 8, test=SEQUENTIAL)
    assert (no_spread.low, no_spread.high) == pytest.approx((2, 2), rel=4 * 2.0**-52)
    assert correct([no_spread])[0].verdict == "worse"
    one = compare([2.0], [1.0], test=SEQUENTIAL)
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    gone = compare([2.0, math.inf, 1.0], [1.0] * 3, test=SEQUENTIAL)
    assert gone.verdict.startswith("diverged")
    assert math.isnan(compare([2.0] * 8, [1.0] * 8, test=SEQUENTIAL).p_signflip_min)


@pytest.mark.parametrize("n", [5, 10])
def test_the_effect_is_found_with_the_power_stated(n: int) -> None:
    count = 20_000
    r = np.random.default_rng(n).normal(sequential.effect(n, ALPHA), 1, (count, n))
    t = np.abs(r.mean(1)) * math.sqrt(n) / r.std(axis=1, ddof=1)
    # five standard errors of a share
    bound = 5 * math.sqrt(POWER * (1 - POWER) / count)
    assert np.mean(t >= critical_t(n, ALPHA)) == pytest.approx(POWER, abs=bound)


@pytest.mark.slow
def test_equivalence_on_the_margin_is_claimed_at_few_looks() -> None:
    """Ten looks at a mean on the margin: at most 5 % of studies call it equivalent at any."""
    count, margin = 400, 1.5
    r = np.random.default_rng(5).normal(math.log(margin), 0.1, (count, 12))
    wrong = sum(
        any(tost(np.exp(row[:n]), np.ones(n), margin, SEQUENTIAL) < ALPHA for n in range(3, 13))
        for row in r
    )
    assert wrong <= 41  # which 5 % of 400 exceed with probability 6e-6


def test_a_look_that_spends_the_whole_alpha_is_the_t_test() -> None:
    a, b = np.exp(np.random.default_rng(0).normal(0.3, 1, (2, 7)))
    assert compare(a, b, test=Look().test) == compare(a, b)
    assert compare(a, b, test=Look("fixed", 3, added=True).test).p > compare(a, b).p


def test_the_figures_of_the_page() -> None:
    page = (DOCS / "explanation" / "seeds.md").read_text()
    largest = math.exp(log_e_value(with_t(1e9, 3)))
    assert f"by {largest:.0f} at three seeds" in page
    assert re.search(rf"below\s+{1 / largest:.3f} there", page)
    shares = [f"{ALPHA * Look('fixed', k, added=True).share:.2g}" for k in (1, 2, 3)]
    assert ", ".join(shares) in page
