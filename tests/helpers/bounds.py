"""Rounding-error bounds, and arithmetic with 50 digits to compare with.

A bound is gamma_k = k u/(1 - k u) times the sum of the absolute values of the added terms, with k
the number of roundings on the longest path from an input to the result (Higham 2002, sec. 3.1).
"""

from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

mpmath.mp.dps = 50

log = np.frompyfunc(mpmath.log, 1, 1)
exp = np.frompyfunc(mpmath.exp, 1, 1)
_number = np.frompyfunc(mpmath.mpf, 1, 1)


def u(dtype: torch.dtype = torch.float64) -> float:
    """The unit roundoff: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(k: float, dtype: torch.dtype = torch.float64) -> float:
    """k u/(1 - k u): the largest relative error of k roundings."""
    return k * u(dtype) / (1 - k * u(dtype))


def exact(value: Any) -> Any:
    """The same numbers with 50 digits: an object array (a scalar for a scalar)."""
    if isinstance(value, Tensor):
        value = value.detach().double().cpu().numpy()
    return _number(value)


def rounded(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Exact numbers to the nearest of `dtype`."""
    return torch.as_tensor(np.asarray(value, dtype=np.float64)).to(dtype)


def assert_within(
    actual: Any, truth: Any, terms: Any, k: Any, dtype: torch.dtype = torch.float64, plus: Any = 0
) -> None:
    """|actual - truth| <= gamma_k terms + plus, for every element.

    A shape that differs, no element at all and NaN fail. `plus` is a bound of another origin, such
    as the error of the truth.
    """
    found, wanted = exact(actual), exact(truth)
    assert np.shape(found) == np.shape(wanted), f"shape {np.shape(found)}, not {np.shape(wanted)}"
    assert np.size(found) > 0, "nothing was compared"
    k_u = exact(k) * exact(u(dtype))
    error = np.abs(found - wanted)
    bound = k_u / (1 - k_u) * np.abs(exact(terms)) + exact(plus)
    held = np.broadcast_to(np.asarray(error <= bound, dtype=bool), np.shape(found))
    ratio = np.asarray(error / np.where(bound == 0, mpmath.mpf("1e-300"), bound), dtype=float)
    assert held.all(), f"error is {np.nanmax(ratio):.3g} times its bound; {found} for {wanted}"
