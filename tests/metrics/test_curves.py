"""Numbers of a curve over noise levels: their values where there is nothing to divide by."""

import math

import numpy as np
import pytest

from testbed.metrics import curves
from testbed.metrics.curves import RELATIVE, Array
from testbed.report import words

NATS = "excess_nats"


def table(sigma: list[float], excess: list[list[float]]) -> dict[str, Array]:
    rows = np.array(excess)
    return {"sigma": np.tile(sigma, (len(rows), 1)), "excess": rows}


def test_shares_of_bands_are_those_of_the_trapezoid_rule() -> None:
    """excess/sigma^2 = 1, 2, 3 at equal steps of log sigma: weights 1/2, 1, 1/2."""
    sigma = np.array([0.1, 1.0, 10.0])
    parts = curves.parts(NATS, table([*sigma], [[*([1.0, 2.0, 3.0] * sigma**2)]]), 2)
    assert curves.total(NATS, parts) == pytest.approx([2 * math.log(10) * 4.0], rel=1e-14)
    low = np.array([True, False, False])
    assert curves.share(NATS, parts, low) == pytest.approx(0.5 / 4, rel=1e-14)
    assert curves.share(NATS, parts[0], ~low) == pytest.approx(3.5 / 4, rel=1e-14)


def test_one_level_has_no_nats_and_no_share_of_them() -> None:
    parts = curves.parts(NATS, table([0.5], [[3.0], [4.0]]), 2)
    assert curves.total(NATS, parts).tolist() == [0.0, 0.0]
    assert math.isnan(curves.share(NATS, parts, np.array([True])))


@pytest.mark.parametrize("metric", [NATS, RELATIVE])
def test_no_level_at_all_has_no_share(metric: str) -> None:
    assert math.isnan(curves.share(metric, np.zeros((2, 0)), np.zeros(0, dtype=bool)))
    assert math.isnan(curves.share(NATS, np.zeros((0, 3)), np.ones(3, dtype=bool)))


def test_a_curve_without_any_nats_is_left_out_of_the_mean_share() -> None:
    """A network that stays at F = 0 where that is the exact denoiser has no excess."""
    parts = np.array([[1.0, 3.0], [0.0, 0.0], [3.0, 1.0]])
    assert curves.share(NATS, parts, np.array([True, False])) == 0.5
    assert math.isnan(curves.share(NATS, parts[1:2], np.array([True, False])))


def test_a_geometric_mean_over_no_level_is_nan_and_a_sum_over_none_0() -> None:
    parts, none = np.ones((2, 3)), np.zeros(3, dtype=bool)
    assert np.isnan(curves.total(RELATIVE, parts, none)).all()
    assert curves.total(NATS, parts, none).tolist() == [0.0, 0.0]
    assert curves.total(RELATIVE, parts / 3) == pytest.approx([math.e, math.e], rel=1e-15)


def test_a_share_that_is_not_defined_is_a_dash() -> None:
    assert words.portion(math.nan) == "–"
    assert (words.portion(0.0), words.portion(0.001), words.portion(0.5)) == (
        "0 %",
        "< 1 %",
        "50 %",
    )
