"""Mistakes in intervals and tests, each rejected by its law."""

import math
from dataclasses import replace

import numpy as np
from laws.statistics import (
    Array,
    Mean,
    bonferroni,
    holm_mutant,
    law_closure,
    law_coverage,
    law_familywise,
    law_level,
    law_monotone,
    law_nan,
    law_pairing,
    law_power,
    law_published,
    law_scipy,
    law_swap,
    law_tost_level,
    law_tost_scipy,
    our_effect,
    result,
)
from mutants.registry import laws_of, rejected_by
from scipy import stats

from testbed.metrics.comparison import Comparison, compare, tost
from testbed.metrics.intervals import Interval
from testbed.metrics.multiple_comparisons import holm


def interval_with(quantile: float, ddof: int) -> Mean:
    def mean(y: Array) -> Interval:
        h = quantile * y.std(ddof=ddof) / math.sqrt(len(y))
        return Interval(y.mean(), y.mean() - h, y.mean() + h)

    return mean


T3 = float(stats.t.ppf(0.975, 2))


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
    right = compare(a, b)
    return replace(right, p=right.p / 2)


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
    return replace(compare(a, b), p=float(2 * stats.norm.sf(z)))


def normal_effect(n: int) -> float:
    return float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / math.sqrt(n)


def central_effect(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)


def one_sided_effect(n: int) -> float:
    return float(stats.t.ppf(0.95, n - 1) + stats.t.ppf(0.8, n - 1)) / math.sqrt(n)


def half_effect(n: int) -> float:
    """Significant when just observed: power one half."""
    return float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)


def down(m: int) -> Array:
    return np.arange(m, 0, -1.0)


no_running_max = holm_mutant(down, lambda q: q)
hochberg = holm_mutant(down, lambda q: np.minimum.accumulate(q[::-1])[::-1])
benjamini = holm_mutant(
    lambda m: m / np.arange(1.0, m + 1), lambda q: np.minimum.accumulate(q[::-1])[::-1]
)
raw = holm_mutant(np.ones, np.maximum.accumulate)
nan_counted = holm_mutant(down, np.maximum.accumulate)


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


STATISTICS = laws_of("laws: statistics", "intervals and tests of the report, by outside truth")
rejected_by(
    STATISTICS,
    law_coverage,
    interval_with(T3, 1),
    normal_quantile=interval_with(1.96, 1),
    population_sd=interval_with(T3, 0),
    one_sided_quantile=interval_with(float(stats.t.ppf(0.95, 2)), 1),
    n_degrees_of_freedom=interval_with(float(stats.t.ppf(0.975, 3)), 1),
    sd_for_standard_error=interval_with(T3 * math.sqrt(3), 1),
)
rejected_by(STATISTICS, law_pairing, compare, unpaired=unpaired, no_log=no_log)
rejected_by(
    STATISTICS, law_scipy, compare, unpaired=unpaired, halved=halved, normal_test=normal_test
)
rejected_by(
    STATISTICS, law_swap, compare, one_sided=one_sided, no_log=no_log, mean_of_ratios=mean_of_ratios
)
rejected_by(STATISTICS, law_level, compare, halved=halved, normal_test=normal_test)
for law in (law_scipy, law_pairing, law_swap):
    rejected_by(STATISTICS, law, t_compare)
rejected_by(
    STATISTICS,
    law_power,
    our_effect,
    normal_effect=normal_effect,
    central_effect=central_effect,
    one_sided_effect=one_sided_effect,
    half_effect=half_effect,
)
rejected_by(STATISTICS, law_published, holm, Bonferroni=bonferroni, Hochberg=hochberg)
rejected_by(
    STATISTICS,
    law_familywise,
    holm,
    Bonferroni_is_too_strict=bonferroni,
    false_discovery_rate=benjamini,
    uncorrected=raw,
)
rejected_by(STATISTICS, law_monotone, holm, no_step_down_maximum=no_running_max)
rejected_by(STATISTICS, law_closure, holm, no_step_down_maximum=no_running_max)
rejected_by(STATISTICS, law_nan, holm, nan_counted=nan_counted)
rejected_by(
    STATISTICS, law_tost_scipy, tost, the_smaller_p=tost_min, not_significant=tost_not_significant
)
rejected_by(
    STATISTICS,
    law_tost_level,
    tost,
    the_smaller_p=tost_min,
    two_sided=tost_two_sided,
    linear_margin=tost_linear_margin,
)
