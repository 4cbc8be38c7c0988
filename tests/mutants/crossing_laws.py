"""Mistakes in crossings, each rejected by its law."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
from laws.crossings import (
    Array,
    Find,
    law_around,
    law_claim,
    law_crossing_coverage,
    law_crossing_swap,
    law_cubic,
    law_diverged_curve,
    law_few_points,
    law_few_seeds,
    law_line,
    law_missing_step,
    law_never,
    law_no_crossing,
)
from mutants.registry import laws_of, rejected_by
from scipy import stats

from testbed.metrics import crossings as module
from testbed.metrics.crossings import Crossing, Crossings, crossings, interpolation
from testbed.metrics.paired_tests import STUDENT


def unpaired(t: Array, a: Array, b: Array) -> Crossings:
    return crossings(t, a, np.roll(b, 1, axis=0))


def in_steps(t: Array, a: Array, b: Array) -> Crossings:
    """Interpolation in the number of steps, not in its logarithm."""
    scale = t[-1]
    found = crossings(np.exp(t / scale), a, b)

    def back(one: Crossing) -> Crossing:
        names = ("step", "low", "high", "after", "before")
        return replace(one, **{name: scale * np.log(getattr(one, name)) for name in names})

    return replace(found, crossings=tuple(map(back, found.crossings)))


def with_critical(critical: Callable[[int, float], float]) -> Find:
    test = replace(STUDENT, critical=critical)
    return lambda t, a, b: crossings(t, a, b, test=test)


def with_interpolation(points: Callable[[int], int]) -> Find:
    """The polynomial through another number of places than it should be."""

    def other(x: Array, at: Array, of: int = module.CUBIC) -> Array:
        return interpolation(x, at, points(of))

    def find(t: Array, a: Array, b: Array) -> Crossings:
        with mock.patch.object(module, "interpolation", other):
            return crossings(t, a, b)

    return find


def changed(**change: Callable[[Crossing], object]) -> Find:
    """Each crossing with other numbers."""

    def find(t: Array, a: Array, b: Array) -> Crossings:
        found = crossings(t, a, b)
        new = [
            replace(one, **{name: of(one) for name, of in change.items()})
            for one in found.crossings
        ]
        return replace(found, crossings=tuple(new))

    return find


def swapped(t: Array, a: Array, b: Array) -> Crossings:
    return crossings(t, b, a)


def inf_is_missing(t: Array, a: Array, b: Array) -> Crossings:
    return crossings(t, *(np.where(np.isinf(y), np.nan, y) for y in (a, b)))


def without_diverged_seeds(t: Array, a: Array, b: Array) -> Crossings:
    kept = ~np.isinf(a + b).any(axis=1)
    return crossings(t, a[kept], b[kept])


def filled(t: Array, a: Array, b: Array) -> Crossings:
    """A missing value is that of the other seeds, and not the step's loss."""
    means = (np.nanmean(y, axis=0) for y in (a, b))
    return crossings(t, *(np.where(np.isnan(y), m, y) for y, m in zip((a, b), means, strict=True)))


def without_the_seed(t: Array, a: Array, b: Array) -> Crossings:
    kept = ~np.isnan(a + b).any(axis=1)
    return crossings(t, a[kept], b[kept])


def two_seeds(t: Array, a: Array, b: Array) -> Crossings:
    with mock.patch.object(module, "MIN_SEEDS", 2):
        return crossings(t, a, b)


def no_bonferroni(n: int, alpha: float) -> float:
    return STUDENT.critical(n, 0.05)


def two_sided(n: int, alpha: float) -> float:
    """Half of what a one-sided test has, at a sign."""
    return STUDENT.critical(n, alpha if alpha == 1 - 0.95 else alpha / 2)


def gaussian(n: int, alpha: float) -> float:
    return float(stats.norm.isf(alpha / 2))


def one_sided(n: int, alpha: float) -> float:
    return STUDENT.critical(n, 2 * alpha)


def previous(step: float) -> float:
    return step / 2


LAWS = laws_of("laws: crossings", "where the curves of two settings cross")
rejected_by(
    LAWS,
    law_line,
    crossings,
    an_unpaired_test=unpaired,
    steps_in_place_of_their_logarithm=in_steps,
    a_quantile_of_the_Gaussian=with_critical(gaussian),
    a_one_sided_interval=with_critical(one_sided),
    the_other_one_ahead=swapped,
)
rejected_by(
    LAWS,
    law_cubic,
    crossings,
    nothing_added_for_interpolation=with_interpolation(lambda points: 4),
    a_line_between_steps=with_interpolation(lambda points: 2),
    a_parabola_and_the_line=with_interpolation(lambda points: points - 1),
)
rejected_by(
    LAWS,
    law_few_points,
    crossings,
    an_interpolated_interval=changed(low=lambda one: one.step - 1, high=lambda one: one.step + 1),
)
rejected_by(
    LAWS,
    law_around,
    crossings,
    a_measured_step_too_early=changed(
        after=lambda one: previous(one.after), before=lambda one: previous(one.before)
    ),
    the_first_step_of_all=changed(after=lambda one: 100.0),
    a_sign_shown_without_a_test=with_critical(lambda n, alpha: 0.0),
)
rejected_by(
    LAWS,
    law_crossing_swap,
    crossings,
    always_the_same_ahead=changed(a_leads=lambda one: True),
)
rejected_by(LAWS, law_never, crossings, the_other_one_ahead=swapped)
rejected_by(
    LAWS,
    law_claim,
    crossings,
    no_correction_for_the_steps=with_critical(no_bonferroni),
    a_two_sided_sign=with_critical(two_sided),
)
rejected_by(LAWS, law_no_crossing, crossings, a_one_sided_test=with_critical(one_sided))
rejected_by(LAWS, law_few_seeds, crossings, two_seeds_suffice=two_seeds)
rejected_by(
    LAWS,
    law_diverged_curve,
    crossings,
    diverged_is_missing=inf_is_missing,
    without_the_seeds_that_diverged=without_diverged_seeds,
)
rejected_by(
    LAWS,
    law_missing_step,
    crossings,
    a_value_in_its_place=filled,
    without_the_seed=without_the_seed,
)
rejected_by(
    LAWS,
    law_crossing_coverage,
    crossings,
    a_quantile_of_the_Gaussian=with_critical(gaussian),
)
