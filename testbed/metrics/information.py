"""Integrals over the noise levels, in nats: KL bound, entropy, mutual information.

gamma = 1/sigma^2 and dgamma = -2/sigma^2 dlog sigma. Curves are per dimension, results of d
dimensions. All are taken by the trapezoid rule over log sigma.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testbed.errors import InputError

Array = NDArray[np.float64]


class Integral(NamedTuple):
    """A number of nats.

    Args:
        value: The integral by the trapezoid rule.
        error: Its standard error if all levels err together, as they do with shared draws; nan
            where the curve has none.
        step: The error of the rule itself: a third of what every second level would change.
    """

    value: float
    error: float
    step: float


def kl_bound(
    sigma: ArrayLike, excess: ArrayLike, d: int, excess_se: ArrayLike | None = None
) -> Integral:
    """Returns d int excess/sigma^2 dlog sigma, the part of KL(data || model) of these levels.

    For the stochastic sampler KL(p_0 || model) <= KL(p_n || prior) + int E|D - D*|^2/sigma^3 dsigma
    (Song et al. 2021, arXiv:2101.09258, theorem 1), 0 and n the first and the last level. Where D
    is the exact denoiser of another distribution, and the prior is that one at n, it is an equality
    (Verdu 2010, "Mismatched estimation and relative entropy").

    Args:
        sigma: Ascending noise levels, (L,).
        excess: E|D - D*|^2/d, the loss minus the oracle's, (L,).
        d: The number of dimensions.
        excess_se: The standard errors of `excess`, (L,).

    Raises:
        InputError: There are fewer than two levels, or they do not ascend.
    """
    sigma, excess = _curve(sigma, excess)
    return _integral(sigma, d * excess / sigma**2, _scaled(d / sigma**2, excess_se))


def entropy(
    sigma: ArrayLike, mmse: ArrayLike, d: int, v: float, mmse_se: ArrayLike | None = None
) -> Integral:
    """Returns the differential entropy of x = x0 + sigma_0 eps from the mmse curve, in nats.

        h(X) = d/2 log(2 pi e v) - 1/2 int_0^inf [d v/(1 + gamma v) - mmse(gamma)] dgamma

    (Guo, Shamai and Verdu 2005, arXiv:cs/0412108), cut at gamma = 1/sigma_0^2, sigma_0 the first
    level, where v becomes v + sigma_0^2, and at the last level, where x is taken for a Gaussian of
    variance v + sigma_n^2: the rest is of the order d v^2/sigma_n^4. Towards sigma_0 = 0 it is the
    entropy of x0, which is -infinity on a manifold or a finite set.

    With the loss of a model for mmse, h + kl_bound: no less than the entropy.

    Args:
        sigma: Ascending noise levels, (L,).
        mmse: The irreducible loss per dimension, E|x0 - D*|^2/d, exact or estimated, (L,).
        d: The number of dimensions.
        v: The variance per dimension, E|x0 - m|^2/d about the mean m.
        mmse_se: The standard errors of `mmse`, (L,).

    Raises:
        InputError: As for `kl_bound`; or the variance is not positive.
    """
    if not 0 < v < math.inf:
        raise InputError(f"v = {v!r} must be positive and finite.")
    sigma, mmse = _curve(sigma, mmse)
    rate = d * (v / (v + sigma**2) - mmse / sigma**2)
    lost = _integral(sigma, rate, _scaled(d / sigma**2, mmse_se))
    normal = d / 2 * math.log(2 * math.pi * math.e * (v + float(sigma[0]) ** 2))
    return Integral(normal - lost.value, lost.error, lost.step)


def mutual_information(
    sigma: ArrayLike, mmse: ArrayLike, d: int, v: float, mmse_se: ArrayLike | None = None
) -> Integral:
    """Returns I(x0; x0 + sigma_0 eps) = h(x0 + sigma_0 eps) - d/2 log(2 pi e sigma_0^2), in nats.

    It is 1/2 int_0^{1/sigma_0^2} mmse dgamma (Guo, Shamai and Verdu 2005, theorem 1). Arguments and
    errors as for `entropy`.
    """
    h = entropy(sigma, mmse, d, v, mmse_se)
    first = float(np.asarray(sigma, dtype=np.float64)[0])
    noise = d / 2 * math.log(2 * math.pi * math.e * first**2)
    return Integral(h.value - noise, h.error, h.step)


def _curve(sigma: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    s, y = (np.asarray(one, dtype=np.float64) for one in (sigma, values))
    if s.ndim != 1 or s.shape != y.shape or len(s) < 2 or not (np.diff(s) > 0).all() or s[0] <= 0:
        raise InputError(
            f"a curve of shape {y.shape} over levels of shape {s.shape}: expected two or more "
            "values at levels that ascend from above 0."
        )
    return s, y


def _scaled(factor: Array, errors: ArrayLike | None) -> Array:
    return factor * (math.nan if errors is None else np.asarray(errors, dtype=np.float64))


def _integral(sigma: Array, rate: Array, error: Array) -> Integral:
    t = np.log(sigma)
    value = float(np.trapezoid(rate, t))
    half = np.union1d(np.arange(0, len(t), 2), [len(t) - 1])
    coarse = float(np.trapezoid(rate[half], t[half]))
    return Integral(value, float(np.trapezoid(error, t)), abs(value - coarse) / 3)
