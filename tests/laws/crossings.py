"""What every way of finding crossings must obey: closed forms, scipy and numpy's polynomials."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from testbed.metrics.crossings import Crossings

Array = NDArray[np.float64]
Find = Callable[[Array, Array, Array], Crossings]
STEPS = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
OFFSETS = np.array([0.10, -0.07, 0.02, -0.12, 0.05])
"""What a seed adds to its log ratio at every step."""
NORMAL = stats.norm.ppf(np.arange(1, 6) / 6)
"""Five numbers of mean zero."""


def planted(r: Array) -> tuple[Array, Array]:
    """a and b, (S, K), of log ratios r, under a strong factor of the seed and the step."""
    common = np.random.default_rng(7).normal(0, 2, r.shape)
    return np.exp(r + common), np.exp(common)


def half_width(offsets: Array, level: float = 0.95) -> float:
    """Of the t interval of the mean offset, by scipy."""
    low, high = stats.t.interval(level, len(offsets) - 1, 0, stats.sem(offsets))
    return float(high - low) / 2


def law_line(find: Find) -> None:
    """A line in log step with an offset for each seed crosses where algebra says.

    r = beta (x - x0) + d_s, so that the mean is zero at x0 - mean(d)/beta, and the interval is
    h/beta to either side, h being the half width of the t interval of the mean of d. A line has no
    cubic part: nothing is added for interpolation. Places are tested 128 to a measured interval,
    and the bounds are those of a line between two: exact here but for rounding to 1e-6 steps.
    """
    for beta, x0 in ((0.9, math.log(270.0)), (-0.9, math.log(700.0)), (3.0, math.log(555.0))):
        r = beta * (np.log(STEPS) - x0) + OFFSETS[:, None]
        found = find(STEPS, *planted(r))
        assert (found.verdict, found.seeds) == ("cross", 5)
        (one,) = found.crossings
        middle, h = x0 - OFFSETS.mean() / beta, half_width(OFFSETS) / abs(beta)
        expected = np.exp([middle, middle - h, middle + h])
        np.testing.assert_allclose([one.step, one.low, one.high], expected, rtol=1e-7)
        assert one.a_leads == (beta < 0)


def law_cubic(find: Find) -> None:
    """A cubic through four steps crosses where numpy's polynomial does, within |p3 - p2|/2."""
    t = STEPS[:4]
    x = np.log(t)
    mean = np.array([-1.0, -0.75, 0.6, 2.0])
    offsets = OFFSETS - OFFSETS.mean()
    found = find(t, *planted(mean + offsets[:, None]))
    (one,) = found.crossings
    p3, p2 = np.polyfit(x, mean, 3), np.polyfit(x[1:4], mean[1:4], 2)
    h = half_width(offsets)

    def beyond(y: float, sign: int) -> float:
        gap = abs(np.polyval(p3, y) - np.polyval(p2, y)) / 2
        return float(sign * np.polyval(p3, y) - h - gap)

    ends = [optimize.brentq(beyond, x[1], x[2], args=(sign,)) for sign in (-1, 1)]
    zero = optimize.brentq(lambda y: np.polyval(p3, y), x[1], x[2])
    # Between places, 1/128 of an interval apart, a smooth function is a line to 1e-5 of its size.
    np.testing.assert_allclose([one.step, one.low, one.high], np.exp([zero, *ends]), rtol=1e-5)


def law_few_points(find: Find) -> None:
    """With three steps the interval is that of the measured steps around the crossing."""
    (one,) = find(STEPS[:3], *planted(np.array([-1.0, -0.8, 1.0]) + OFFSETS[:, None])).crossings
    assert (one.low, one.high) == (one.after, one.before) == (200.0, 400.0)


def law_around(find: Find) -> None:
    """The measured steps around a crossing are the nearest at which a sign is shown."""
    rows = {
        (400.0, 800.0): [-3.0, -2.0, -1.0, 1.0, 2.0],
        (100.0, 200.0): [3.0, -1.0, -2.0, -3.0, -4.0],
        (800.0, 1600.0): [-3.0, -2.0, -1.5, -1.0, 2.0],
    }
    for around, row in rows.items():
        (one,) = find(STEPS, *planted(np.array(row) + OFFSETS[:, None])).crossings
        assert (one.after, one.before) == around
        assert around[0] <= one.low <= one.step <= one.high <= around[1]
    # At 400 steps no sign is shown.
    row, noise = np.array([-3.0, -1.5, 0.0, 1.5, 3.0]), OFFSETS - OFFSETS.mean()
    (one,) = find(STEPS, *planted(row + noise[:, None])).crossings
    assert (one.after, one.before) == (200.0, 800.0)


def law_crossing_swap(find: Find) -> None:
    """With a and b exchanged, the other one is ahead, at the same steps."""
    a, b = planted(np.array([-3.0, -1.0, 2.0, -1.0, -3.0]) + OFFSETS[:, None])
    first, second = find(STEPS, a, b), find(STEPS, b, a)
    assert [one.a_leads for one in first.crossings] == [False, True]
    assert [one.a_leads for one in second.crossings] == [True, False]
    for one, other in zip(first.crossings, second.crossings, strict=True):
        np.testing.assert_allclose(
            [one.step, one.low, one.high], [other.step, other.low, other.high], rtol=1e-9
        )


def law_never(find: Find) -> None:
    """Curves that keep their distance do not cross, and it is said which one is ahead."""
    a, b = planted(np.array([2.0, 1.0, 0.5, 1.0, 2.0]) + OFFSETS[:, None])
    for found, leads in ((find(STEPS, a, b), False), (find(STEPS, b, a), True)):
        assert (found.verdict, found.crossings, found.a_leads) == ("do not cross", (), leads)


def last_step(t: float, others: float) -> tuple[Array, Array]:
    """Log ratios of `others` at all steps but the last, where the t statistic is t; five seeds."""
    noise = NORMAL / stats.sem(NORMAL) / 20
    r = np.full((5, 5), others) + OFFSETS[:, None] / 100
    r[:, -1] = noise + t / 20
    return planted(r)


def law_claim(find: Find) -> None:
    """A sign is shown by a one-sided t test at 0.05/K, and a crossing by two signs."""
    needed = float(stats.t.isf(0.05 / 5, 4))
    assert find(STEPS, *last_step(1.001 * needed, -1.0)).verdict == "cross"
    short = find(STEPS, *last_step(0.999 * needed, -1.0))
    assert short.verdict == "undecided"
    assert short.open is not None
    assert 800 < short.open[0] < 1600
    assert short.open[1] < 1600


def law_no_crossing(find: Find) -> None:
    """That curves do not cross is said where two-sided tests at 0.05 reject at every step."""
    needed = float(stats.t.isf(0.025, 4))
    assert find(STEPS, *last_step(1.001 * needed, 1.0)).verdict == "do not cross"
    found = find(STEPS, *last_step(0.999 * needed, 1.0))
    assert found.verdict == "undecided"
    assert found.open is not None
    assert found.open[1] == 1600.0


def law_few_seeds(find: Find) -> None:
    """Two seeds decide nothing, three do."""
    r = np.array([-3.0, -2.0, -1.0, 1.0, 2.0]) + OFFSETS[:3, None] / 10
    assert find(STEPS, *planted(r[:2])).verdict == "too few seeds"
    assert find(STEPS, *planted(r)).verdict == "cross"


def law_diverged_curve(find: Find) -> None:
    """A trial that diverged stays in the count, and there is no mean log ratio."""
    a, b = planted(np.array([-3.0, -2.0, -1.0, 1.0, 2.0]) + OFFSETS[:, None])
    a[1, 3:] = math.inf
    b[1:3, 4] = math.inf
    found = find(STEPS, a, b)
    assert (found.verdict, found.diverged_a, found.diverged_b) == ("diverged", 1, 2)
    assert (found.seeds, found.crossings) == (5, ())


def law_missing_step(find: Find) -> None:
    """A step at which one seed was not measured counts for none."""
    a, b = planted(np.array([-3.0, -2.0, -1.0, 1.0, 2.0]) + OFFSETS[:, None])
    kept = [0, 2, 3, 4]
    expected = find(STEPS[kept], a[:, kept], b[:, kept])
    b[2, 1] = math.nan
    assert find(STEPS, a, b) == expected
    a[0, 2:] = math.nan
    found = find(STEPS, a, b)
    assert (found.verdict, found.steps) == ("too few steps", (100.0,))


def law_crossing_coverage(find: Find) -> None:
    """Of 600 lines under correlated noise the interval holds the crossing in 95 %.

    The binomial count lies outside of these bounds with a probability of 1e-4.
    """
    rng, studies, seeds = np.random.default_rng(3), 600, 4
    C = 0.75 ** np.abs(np.arange(5)[:, None] - np.arange(5))
    x, held = np.linspace(0, 1, 5), 0
    for _ in range(studies):
        tau = rng.uniform(0.1, 0.9)
        r = rng.multivariate_normal(40 * (x - tau), C, seeds) / 10
        (one, *_) = find(STEPS, *planted(r)).crossings
        held += one.low <= 100 * 16**tau <= one.high
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], studies, 0.95)
    assert low <= held <= high
