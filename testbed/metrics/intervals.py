"""Means over seeds and their confidence intervals. The unit of replication is the seed."""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the bounds of its confidence interval, all in the value's own units."""

    value: float
    low: float
    high: float


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
    y = seeds_of(values, "values")
    check_level(level)
    if log:
        check_positive(y, "values")
    if not np.isfinite(y).all():
        return Interval(math.nan, math.nan, math.nan)
    if log:
        return Interval(*map(exponential, t_interval(np.log(y), level)))
    return t_interval(y, level)


def t_interval(y: Array, level: float) -> Interval:
    """Returns the mean of finite y (n,) and its t interval of a level; nan bounds for n = 1."""
    n, m = len(y), float(y.mean())
    if n == 1:
        return Interval(m, math.nan, math.nan)
    h = _t_quantile((1 + level) / 2, n - 1) * float(y.std(ddof=1)) / math.sqrt(n)
    return Interval(m, m - h, m + h)


@functools.cache
def _t_quantile(p: float, df: int) -> float:
    # Half a millisecond each, and a report has thousands of intervals.
    return float(stats.t.ppf(p, df))


def exponential(y: float) -> float:
    """Returns exp(y), inf where that is too large for a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(y))


def seeds_of(values: ArrayLike, name: str) -> Array:
    """Returns values as a float64 vector with one entry per seed, (n,), n >= 1.

    Raises:
        ValueError: they are not a sequence of at least one number; the message has their `name`.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name} must be a sequence of one number per seed, got shape {y.shape}")
    return y


def check_positive(y: Array, name: str) -> None:
    """ValueError, with the `name` of y (n,), where an entry is not positive; nan may be one."""
    if np.any(y <= 0):
        raise ValueError(f"{name} must be positive to have a logarithm, got {y.tolist()}")


def check_level(level: float) -> None:
    """ValueError unless the level of an interval lies in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
