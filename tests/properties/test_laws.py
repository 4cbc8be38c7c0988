"""The laws of everything that is drawn, and two tests of what they are compared with."""

import mpmath
import numpy as np
import pytest
from helpers.strategies import float64
from properties import (
    laws_of_coordinates,  # noqa: F401
    laws_of_kinds,  # noqa: F401
    laws_of_parameterizations,  # noqa: F401
    laws_of_tensors,  # noqa: F401
)
from properties.states import LAWS, LONGER, U_LONG

import testbed
from testbed.diffusion.noise_levels import VP
from testbed.diffusion.predictions import from_pair


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_law(name: str) -> None:
    LAWS[name]()


# --- numbers ---------------------------------------------------------------------------------

# By hand, to three decimals: sigma = sqrt(0.2/0.8) = 1/2, alpha = 0.89443, s = 0.44721.
NUMBERS = {
    "x0": [1, 2],
    "eps": [0.5, -0.3],
    "score": [-1, 0.6],
    "v": [0, -1.163],
    "flow": [-0.5, -2.3],
}


def test_worked_example_has_x_t_1118_1655() -> None:
    """x0 = [1, 2], eps = [0.5, -0.3], abar = 0.8: x_t = [1.118, 1.655], and every kind of it."""
    x0, eps, sigma = float64(NUMBERS["x0"]), float64(NUMBERS["eps"]), 0.5
    x = x0 + sigma * eps
    x_t, _ = VP.from_ve(x, sigma)
    found = {"x_t": (x_t, [1.118, 1.655])}
    for source in NUMBERS:
        q = from_pair(x0, eps, source, sigma=sigma)
        for target, wanted in NUMBERS.items():
            converted = testbed.convert(q, source, target, x=x, sigma=sigma)
            found[f"{source} -> {target}"] = (converted, wanted)
    for name, (q, wanted) in found.items():
        assert float((q - float64(wanted)).abs().max()) <= 5e-4, name


@pytest.mark.skipif(not LONGER, reason="numpy.longdouble is float64 here: float64 is left out")
@pytest.mark.parametrize("function", ["sqrt", "exp", "expm1", "log1p", "sin", "cos", "arctan"])
def test_truth_has_more_digits_than_float64(function: str) -> None:
    """numpy's functions of a longdouble are right to two units in its last place."""
    for value in np.logspace(-4, 0.3, 50).astype(np.longdouble):
        found = getattr(np, function)(value)
        high = float(found)
        with mpmath.workdps(50):
            wanted = getattr(mpmath, function.replace("arc", "a"))(mpmath.mpf(float(value)))
            error = mpmath.mpf(high) + float(found - np.longdouble(high)) - wanted
            assert abs(error) <= 2 * 2 * U_LONG * abs(wanted)
