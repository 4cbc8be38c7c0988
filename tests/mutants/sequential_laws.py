"""Mistakes in tests at several looks, each rejected by its law."""

import math
from dataclasses import replace

from laws.sequential import (
    Array,
    law_agrees,
    law_every_look,
    law_expectation,
    law_mixture,
    law_outside,
    law_shares,
    law_spends,
    law_unit,
    look,
)
from mutants.registry import laws_of, rejected_by
from scipy import stats

from testbed.metrics.looks import Look
from testbed.metrics.paired_tests import STUDENT, PairedTest, spending
from testbed.metrics.sequential import PRECISION, SEQUENTIAL, critical_t, log_e_value


def plug_in(r: Array) -> float:
    """The mixture of a known variance with the estimated one in its place."""
    n, S, v = len(r), r.sum(), r.var(ddof=1)
    return float(0.5 * math.log(PRECISION / (n + PRECISION)) + S**2 / (2 * v * (n + PRECISION)))


def flat(r: Array) -> float:
    """Lai's flat mixture over the effect: no martingale with expectation one."""
    n, S, V = len(r), r.sum(), (r**2).sum()
    return float(0.5 * math.log(2 * math.pi / n) - n / 2 * math.log1p(-(S**2) / (n * V)))


def likelihood_ratio(r: Array) -> float:
    """The largest likelihood over that of mean zero."""
    n, S, V = len(r), r.sum(), (r**2).sum()
    return float(-n / 2 * math.log1p(-(S**2) / (n * V)))


def half_n(r: Array) -> float:
    """The exponent (n - 1)/2: the flat prior on the deviation in place of right Haar."""
    n = len(r)
    first = 0.5 * math.log(PRECISION / (n + PRECISION))
    return first + (log_e_value(r) - first) * (n - 1) / n


def wrong_precision(r: Array) -> float:
    return log_e_value(r, 1 / PRECISION)


def in_its_unit(r: Array) -> float:
    """A mixture over the mean itself, not over the mean in deviations."""
    return log_e_value(r, PRECISION * float(r.var(ddof=1)))


def ours(n: int, alpha: float, m: int) -> float:
    return critical_t(n, alpha / m)


def no_holm(n: int, alpha: float, m: int) -> float:
    return critical_t(n, alpha)


def student(n: int, alpha: float, m: int) -> float:
    return float(stats.t.isf(alpha / m / 2, n - 1))


def spent(n: int, alpha: float, m: int) -> float:
    """The k-th look, after k + 2 seeds, at alpha/(k(k+1))."""
    return student(n, alpha * Look("fixed", n - 2, added=True).share, m)


def spent_by_one(n: int, alpha: float, m: int) -> float:
    return student(n, alpha / (n - 2), m)


def our_share(k: int) -> float:
    return Look("fixed", k, added=True).share


def narrow(k: int) -> PairedTest:
    return replace(look(k), interval=STUDENT.interval)


def forgotten(k: int) -> PairedTest:
    return Look("fixed", k, added=False).test


def multiplied_by_k(k: int) -> PairedTest:
    return spending(STUDENT, 1 / k)


SEVERAL = laws_of("laws: several looks", "the anytime-valid t test, and alpha spent over looks")
rejected_by(
    SEVERAL,
    law_mixture,
    log_e_value,
    the_variance_plugged_in=plug_in,
    flat_mixture_of_Lai=flat,
    likelihood_ratio=likelihood_ratio,
    exponent_of_n_minus_1=half_n,
    another_precision=wrong_precision,
)
rejected_by(
    SEVERAL,
    law_expectation,
    log_e_value,
    an_estimated_variance_plugged_in=plug_in,
    a_flat_mixture=flat,
    largest_likelihood=likelihood_ratio,
    a_flat_prior_on_the_deviation=half_n,
)
rejected_by(SEVERAL, law_unit, log_e_value, a_mixture_over_the_mean_in_its_unit=in_its_unit)
rejected_by(
    SEVERAL,
    law_every_look,
    ours,
    no_Holm=no_holm,
    the_t_test_at_every_look=student,
    alpha_over_k_at_look_k=spent_by_one,
)
rejected_by(SEVERAL, law_every_look, spent)
rejected_by(
    SEVERAL,
    law_shares,
    our_share,
    the_whole_alpha_at_every_look=lambda k: 1.0,
    alpha_over_k=lambda k: 1 / k,
)
rejected_by(
    SEVERAL, law_agrees, SEQUENTIAL, a_t_interval=replace(SEQUENTIAL, interval=STUDENT.interval)
)
rejected_by(
    SEVERAL,
    law_spends,
    look,
    interval_not_widened=narrow,
    looks_not_counted=forgotten,
    p_times_k=multiplied_by_k,
)
rejected_by(SEVERAL, law_outside, SEQUENTIAL, no_side=replace(SEQUENTIAL, p_above=SEQUENTIAL.p))
rejected_by(SEVERAL, law_outside, STUDENT)
