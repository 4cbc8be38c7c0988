"""An anytime-valid t test: its error rate holds over all looks at growing data, however many.

Of log ratios r_1, r_2, ..., independent and Gaussian with mean mu and an unknown standard deviation
s, the hypothesis mu = 0 is tested by the likelihood ratio of what does not depend on the unit of r
(the maximal invariant), mixed over the standardised effect delta = mu/s ~ N(0, 1/c^2). That is the
Bayes factor with the right Haar prior ds/s on the standard deviation. With

    S_n = r_1 + ... + r_n,        V_n = r_1^2 + ... + r_n^2,

    G_n = sqrt(c^2/(n + c^2)) ((n + c^2) V_n / ((n + c^2) V_n - S_n^2))^(n/2),

it is a martingale with E G_n = 1 under mu = 0, whatever s (Wang and Ramdas 2024, "Anytime-valid
t-tests and confidence sequences for Gaussian means with unknown variance"; Lai 1976 has the flat
mixture, which is none; Perez-Ortiz, Lardy, de Heide and Gruenwald 2024, "E-statistics, group
invariance and anytime-valid testing", that it is the best of its kind). By Ville's inequality

    P(G_n >= 1/alpha for any n) <= alpha.

So p_n = min(1, 1/G_n) may be looked at after each seed, and one may stop at any look for any
reason, also one that other data gave: the bound is on all looks at once. For the same reason
Holm's method over several p_n, at all looks at once, errs in any of its families with probability
alpha at most: it must first reject some true hypothesis at alpha over their number.

p_n is that of the present seeds, not the smallest p so far, which would be valid too: so it does
not depend on the order of the seeds, and it agrees with the interval.
"""

import math

import numpy as np

from testbed.metrics.intervals import Array, Interval
from testbed.metrics.paired_tests import PairedTest, noncentrality

PRECISION = 0.25
"""c^2: the standardised effect has the standard deviation 1/c = 2 in the mixture. Of the values
from 0.05 to 2 those around this one decide effects of one to three sd with the fewest seeds."""


def log_e_value(r: Array, c2: float = PRECISION) -> float:
    """Returns log G_n of log ratios r, (n,), finite; 0 where all of them are 0.

        log G_n = log(c^2/(n + c^2))/2 - (n/2) log(1 - S_n^2/((n + c^2) V_n))

    It does not depend on the unit of r, and not on its sign.
    """
    n = len(r)
    size = float(np.abs(r).max())
    if size == 0:
        return 0.0
    y = r / size  # so that no square overflows or vanishes
    S, V = float(y.sum()), float((y**2).sum())
    return 0.5 * math.log(c2 / (n + c2)) - n / 2 * math.log1p(-(S**2) / ((n + c2) * V))


def critical_t(n: int, alpha: float, c2: float = PRECISION) -> float:
    """Returns the |t| = |m| sqrt(n)/s from which on G_n >= 1/alpha; s^2 = sum (r - m)^2/(n - 1).

    With u = t^2/(n - 1), rho = c^2/(n + c^2) and K = (alpha^2 rho)^(-1/n):

        G_n = sqrt(rho) ((1 + u)/(1 + rho u))^(n/2)   and so   u = (K - 1)/(1 - K rho).

    Returns:
        t, above 0; inf where G_n, which is below rho^((1 - n)/2), does not reach 1/alpha with so
        few seeds.
    """
    rho = c2 / (n + c2)
    K = (alpha**2 * rho) ** (-1 / n)
    if K * rho >= 1:
        return math.inf
    return math.sqrt((n - 1) * (K - 1) / (1 - K * rho))


def interval(r: Array, level: float) -> Interval:
    """Returns the mean of r, (n,), and its confidence sequence.

    It has all mu with G_n(r - mu) < 1/(1 - level):

        m +- critical_t(n, 1 - level) s / sqrt(n)

    The probability is `level` that it holds the true mean at every n at once. The bounds are
    infinite for as few seeds as cannot reach that level, and nan for n = 1.
    """
    n, m = len(r), float(r.mean())
    if n == 1:
        return Interval(m, math.nan, math.nan)
    t, s = critical_t(n, 1 - level), float(r.std(ddof=1))
    h = t * s / math.sqrt(n) if s or math.isfinite(t) else math.inf
    return Interval(m, m - h, m + h)


def p(r: Array) -> float:
    """Returns min(1, 1/G_n), the anytime-valid p of mu = 0."""
    return min(1.0, math.exp(-log_e_value(r)))


def p_above(r: Array) -> float:
    """Returns the anytime-valid p of mu <= 0: that of mu = 0 where the mean is above it, else 1.

    Where mu < 0 and the mean of r is above 0, r - mu, whose expectation is 0, has the larger t: so
    G_n of r is at most that of r - mu, and the bound for mu = 0 holds.
    """
    return p(r) if r.mean() > 0 else 1.0


def effect(n: int, alpha: float) -> float:
    """Returns E r / sd r for which G_n >= 1/alpha at the n-th seed with power `POWER`.

    Looks before it can only add to that power. It is inf where n seeds are too few for alpha.
    """
    return noncentrality(n, critical_t(n, alpha))


SEQUENTIAL = PairedTest(p, p_above, interval, effect, critical_t, sign_flip=False)
"""The anytime-valid t test, for any number of looks."""
