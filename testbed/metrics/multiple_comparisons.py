"""Corrections for how many comparisons there are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from testbed.metrics.comparison import Comparison


def holm(pvalues: Sequence[float]) -> list[float]:
    """Returns step-down adjusted p values (Holm 1979), in the order of `pvalues`.

    With p_(1) <= ... <= p_(m):  adjusted_(i) = min(1, max_{j <= i} (m - j + 1) p_(j)).

    A nan (no test was made) stays nan and is not one of the m.

    Raises:
        ValueError: a p value outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"p values must lie in [0, 1], got {p.tolist()}")
    adjusted = np.full(p.shape, math.nan)
    order = np.argsort(p, kind="stable")[: int(np.sum(~np.isnan(p)))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return [float(q) for q in adjusted]


def correct(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Returns the comparisons with both p corrected over the whole of them as one family.

    Those of a difference and those of equivalence are corrected each by Holm's method: of either
    kind of claim, the probability that any in the family is wrong is at most `ALPHA`.

    A comparison that lost its test to a divergence stays in the family, as one with p = 1: the
    family was declared before the runs, and a family that shrinks with their outcome controls
    nothing. One with too few seeds was never going to be tested and does not count. Both keep
    their corrected p at nan.
    """
    family = list(comparisons)
    p = holm([1.0 if c.diverged else c.p for c in family])
    p_equivalent = holm([1.0 if c.diverged else c.p_equivalent for c in family])
    return [
        c if math.isnan(c.p) else replace(c, p_holm=q, p_equivalent_holm=e)
        for c, q, e in zip(family, p, p_equivalent, strict=True)
    ]
