"""Means over seeds and their intervals, against scipy."""

import math
import warnings

import numpy as np
import pytest
from laws.statistics import (
    CLOSE,
    law_coverage,
)
from scipy import stats

from testbed.metrics.intervals import mean_interval


def test_interval_covers() -> None:
    law_coverage(mean_interval)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_interval_is_scipys(level: float) -> None:
    y = np.random.default_rng(2).lognormal(0.3, 0.5, 7)
    expected = stats.ttest_1samp(y, 0).confidence_interval(level)
    assert mean_interval(y, level) == pytest.approx((y.mean(), *expected), rel=CLOSE)
    expected = stats.ttest_1samp(np.log(y), 0).confidence_interval(level)
    assert mean_interval(y, level, log=True) == pytest.approx(
        (stats.gmean(y), *np.exp(expected)), rel=CLOSE
    )


def test_interval_at_the_edges() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, low, high = mean_interval([2.5])
    assert value == 2.5
    assert math.isnan(low)
    assert math.isnan(high)
    for log in (False, True):
        for gone in (math.nan, math.inf):
            diverged = mean_interval([1.0, gone, 2.0], log=log)
            assert all(math.isnan(v) for v in diverged)
    assert mean_interval([-1.0, -1.0]) == (-1.0, -1.0, -1.0)
    for bad in ([], 3.0, [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="one number per seed"):
            mean_interval(bad)
    for level in (0.0, 1.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="level"):
            mean_interval([1.0, 2.0], level)
    with pytest.raises(ValueError, match="positive"):
        mean_interval([1.0, 0.0], log=True)
