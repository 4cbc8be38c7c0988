"""Laws of the weightings lambda(sigma) of |D - x0|^2."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, exp, log
from helpers.strategies import fixed, float64
from laws.conversions import FROM_D

import testbed
from testbed.registry import default_registry
from testbed.training.objective import Objective

smaller = np.frompyfunc(min, 2, 1)
larger = np.frompyfunc(max, 2, 1)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + exp(-z))


# lambda of exact sigma, sigma_data and p(log sigma), with SNR = 1/sigma^2.
WEIGHTS: dict[str, Callable[..., Any]] = {
    "unit": lambda s, sd, p: 1 + 0 * s,
    "x0": lambda s, sd, p: 1 + 0 * s,
    "eps": lambda s, sd, p: 1 / s**2,
    "score": lambda s, sd, p: 1 / s**4,
    "v": lambda s, sd, p: (1 + s**2) / s**2,
    "edm": lambda s, sd, p: (s**2 + sd**2) / (s * sd) ** 2,
    "flow": lambda s, sd, p: (1 + s) ** 2 / s**2,
    "trigflow": lambda s, sd, p: (s**2 + sd**2) / s**2,
    "min_snr": lambda s, sd, p, gamma=5: smaller(1 / s**2, gamma),
    "soft_min_snr": lambda s, sd, p, gamma=5: 1 / (s**2 + 1 / exact(gamma)),
    "truncated_snr": lambda s, sd, p: larger(1 / s**2, 1),
    "p2": lambda s, sd, p, k=1, g=1: (1 / s**2) / (k + 1 / s**2) ** exact(g),
    "sigmoid": lambda s, sd, p, b=0: (1 / s**2) * sigmoid(b - log(1 / s**2)) / p,
}
# Squared errors of other kinds as lambda (the first table), and |dq/dD|^2 of each kind.
SPACES: dict[str, Callable[[Any], Any]] = {
    "x0": lambda s: 1 + 0 * s,
    "eps": lambda s: 1 / s**2,
    "score": lambda s: 1 / s**4,
    "v": lambda s: (1 + s**2) / s**2,
    "flow": lambda s: (1 + s) ** 2 / s**2,
}
# Roundings of a weight. Sums of positive numbers, powers up to the fourth: EDM's quotient takes
# 3 + 5 + 1, 1/sigma^4 through a power function 4. P2's (1 + k sigma^2)^g takes 4 g and
# sigma^(2g - 2) a rounding of 2g - 2, harmless as its log sigma < 10. The sigmoid's argument
# b + 2 log sigma, at most 25 in size, carries its roundings into its exponential.
K = 16
K_SIGMOID = 16 + 2 * 25


def weighting(name: str, **options: Any) -> testbed.Weighting:
    return default_registry().weighting(name, **options)


def density(name: str = "lognormal") -> testbed.Density:
    return default_registry().density(name)


def objective(
    space: str, weight: testbed.Weighting | None, parameterization: str = "eps", **options: Any
) -> Objective:
    registry = default_registry()
    return Objective(
        registry.parameterization(parameterization),
        weight,
        registry.loss("l2", space=space),
        density(**options),
        sigma_data=0.5,
    )


def law_weight_is_the_formula(
    w: testbed.Weighting, name: str, sigma: torch.Tensor, sigma_data: float, **options: float
) -> None:
    """lambda(sigma) is the printed formula, within its roundings."""
    p = exact(density().pdf_over_log_sigma(sigma))
    wanted = WEIGHTS[name](exact(sigma), exact(sigma_data), p, **options)
    found = w(sigma, sigma_data=sigma_data, density=density())
    assert found.dtype == sigma.dtype
    k = K_SIGMOID if name == "sigmoid" else K
    assert_within(found, wanted, wanted, k, sigma.dtype)


def law_weight_is_the_squared_error_of_a_space(
    w: testbed.Weighting, space: str, sigma: float
) -> None:
    """lambda |D - x0|^2 = |q(D) - q(x0)|^2."""
    s, x, x0, D = exact(sigma), exact(0.7), exact(-0.4), exact(1.1)
    q_hat, q = FROM_D[space](D, x, s), FROM_D[space](x0, x, s)
    wanted = (q_hat - q) ** 2 / (D - x0) ** 2
    found = w(float64(sigma), sigma_data=0.5)
    assert_within(found, wanted, wanted, K)


def law_unweighted_loss_is_the_weight_of_its_space(o: Objective, space: str) -> None:
    """Without a weighting the effective weight is p(log sigma)/B_q^2."""
    sigma = fixed().sigma
    inside = sigma[(sigma > 0.002) & (sigma < 80)]
    p = exact(o.density.pdf_over_log_sigma(inside))
    wanted = SPACES[space](exact(inside)) * p
    assert_within(o.effective_weight(inside), wanted, wanted, 2 * K)


def law_k_is_lambda_b_squared(o: Objective, space: str) -> None:
    """k = lambda B_q^2: the factor on the raw squared error in a space."""
    sigma = fixed().sigma
    weight = exact(o.weighting(sigma, sigma_data=o.sigma_data, density=o.density))
    wanted = weight / SPACES[space](exact(sigma))
    assert_within(o.k(sigma), wanted, wanted, K)


def law_sigmoid_is_an_effective_weight(
    w: testbed.Weighting, d: testbed.Density, sigma: float, b: float
) -> None:
    """lambda(sigma) p(log sigma) = SNR sigmoid(b - log SNR): the density drops out."""
    s = float64([sigma])
    p = d.pdf_over_log_sigma(s)
    snr = 1 / exact(s) ** 2
    wanted = snr * sigmoid(exact(b) - log(snr))
    found = exact(w(s, density=d)) * exact(p)
    if float(p):
        assert_within(found, wanted, wanted, K_SIGMOID)
    else:
        assert float(found[0]) == 0
