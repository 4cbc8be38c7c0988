"""Crossings: their laws, and what is refused."""

import inspect
import math

import numpy as np
import pytest
from laws import crossings as laws
from laws.crossings import OFFSETS, STEPS, Find, planted

from testbed.metrics.crossings import crossings, interpolation, places
from testbed.metrics.paired_tests import STUDENT, spending
from testbed.metrics.sequential import SEQUENTIAL, critical_t

LAWS = {name: law for name, law in inspect.getmembers(laws) if name.startswith("law_")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_law(name: str) -> None:
    law: Find = LAWS[name]
    law(crossings)


def test_interpolation_has_the_degree_of_its_points() -> None:
    """Polynomials up to that degree are their own interpolation, at measured places and between."""
    x = np.log(STEPS)
    at = places(x)
    for points in (2, 3, 4):
        W = interpolation(x, at, points)
        for power in range(points):
            np.testing.assert_allclose(W @ x**power, at**power, rtol=1e-11)
        np.testing.assert_allclose(W[::128], np.eye(5), atol=1e-13)
        assert ((W != 0).sum(axis=1) <= points).all()


def test_a_test_of_several_looks_has_wider_intervals() -> None:
    a, b = planted(2 * (np.log(STEPS) - math.log(300)) + OFFSETS[:, None] / 4)
    tests = (STUDENT, spending(STUDENT, 0.5), SEQUENTIAL)
    ends = [crossings(STEPS, a, b, test=test).crossings[0] for test in tests]
    widths = [math.log(one.high / one.low) for one in ends]
    for width, critical in zip(
        widths,
        (STUDENT.critical(5, 0.05), STUDENT.critical(5, 0.025), critical_t(5, 0.05)),
        strict=True,
    ):
        se = OFFSETS.std(ddof=1) / 4 / math.sqrt(5)
        assert width == pytest.approx(2 * critical * se / 2, rel=1e-6)


def test_too_few_seeds_for_a_sequential_test_are_undecided() -> None:
    """Three seeds reach no p below 0.077 there, however large the effect is."""
    a, b = planted(np.zeros((3, 5)) - np.array([5, 5, 5, -5, -5]) + OFFSETS[:3, None])
    found = crossings(STEPS, a, b, test=SEQUENTIAL)
    assert (found.verdict, found.open) == ("undecided", (100.0, 1600.0))


def test_equal_curves_are_undecided_everywhere() -> None:
    found = crossings(STEPS, np.ones((3, 5)), np.ones((3, 5)))
    assert (found.verdict, found.open) == ("undecided", (100.0, 1600.0))


def test_seeds_without_noise_have_an_interval_without_width() -> None:
    r = np.tile(np.log(STEPS) - math.log(300), (3, 1))
    (one,) = crossings(STEPS, np.exp(r), np.ones_like(r)).crossings
    assert one.step == pytest.approx(300, rel=1e-9)
    assert one.low <= one.step <= one.high
    assert one.high / one.low < 1.02  # places are 2^(1/128) apart


@pytest.mark.parametrize(
    ("steps", "a", "level", "message"),
    [
        ([1, 2, 3], np.ones((3, 2)), 0.95, "must be"),
        ([1, 2], np.ones(2), 0.95, "must be"),
        ([2, 1], np.ones((3, 2)), 0.95, "ascend"),
        ([0, 1], np.ones((3, 2)), 0.95, "positive and ascend"),
        ([1, math.inf], np.ones((3, 2)), 0.95, "ascend"),
        ([1, 2], -np.ones((3, 2)), 0.95, "logarithms"),
        ([1, 2], np.ones((3, 2)), 1.0, "level"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    steps: list[float], a: np.ndarray, level: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        crossings(steps, a, np.ones_like(a), level)
