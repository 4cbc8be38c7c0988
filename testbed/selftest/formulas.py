"""The formulas that the self-test holds the library against, as the papers have them, in float64.

Nothing here is imported from the library: two sides of a law never share a helper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SIGMA = torch.tensor([0.002, 0.05, 0.5, 1.5, 20.0, 80.0], dtype=torch.float64)
"""The noise levels of most laws, (6,)."""
SD = 0.5
"""sigma_data of most laws."""


class Scaling(NamedTuple):
    """c_skip, c_out, c_in and c_noise, each shaped like sigma."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor


def _edm(s: Tensor, sd: float) -> Scaling:
    r = torch.hypot(s, torch.full_like(s, sd))
    return Scaling((sd / r) ** 2, s * sd / r, 1 / r, s.log() / 4)


def _trigflow(s: Tensor, sd: float) -> Scaling:
    t = torch.atan2(s, torch.full_like(s, sd))
    return Scaling(t.cos() ** 2, -sd * t.sin(), t.cos() / sd, 2 * t / math.pi)


def _v(s: Tensor, sd: float) -> Scaling:
    phi = s.atan()
    return Scaling(phi.cos() ** 2, -phi.sin(), phi.cos(), s)


def _flow(s: Tensor, sd: float) -> Scaling:
    t = s / (1 + s)
    return Scaling(1 / (1 + s), -t, 1 / (1 + s), t)


def _eps(s: Tensor, sd: float) -> Scaling:
    return Scaling(torch.ones_like(s), -s, s.atan().cos(), s)


def _score(s: Tensor, sd: float) -> Scaling:
    return Scaling(torch.ones_like(s), s * s, torch.ones_like(s), s)


def _x0(s: Tensor, sd: float) -> Scaling:
    edm = _edm(s, sd)
    return Scaling(torch.zeros_like(s), torch.ones_like(s), edm.in_, edm.noise)


SCALINGS: dict[str, Callable[[Tensor, float], Scaling]] = {
    "eps": _eps,
    "v": _v,
    "edm": _edm,
    "x0": _x0,
    "score": _score,
    "flow": _flow,
    "trigflow": _trigflow,
}
"""c_skip, c_out, c_in and c_noise of sigma and sigma_data, by the name of the parameterization."""
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "edm": lambda s: 1 / SD**2 + 1 / s**2,
    "eps": lambda s: s**-2,
    "min_snr": lambda s: torch.minimum(s**-2, torch.full_like(s, 5.0)),
}
"""lambda(sigma) of |D - x0|^2 at sigma_data = SD, by the name of the weighting."""
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "x0": torch.ones_like,
    "eps": lambda s: s,
    "score": lambda s: s**2,
    "v": lambda s: s.atan().sin(),
    "flow": lambda s: s / (1 + s),
}
"""|dD/dq| of sigma, by the prediction type q."""


def normal_quantile(u: Tensor) -> Tensor:
    """The quantile of N(0, 1), by the error function's inverse."""
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def normal_cdf(z: float) -> float:
    """P(N(0, 1) < z)."""
    return math.erfc(-z / math.sqrt(2)) / 2


def lognormal(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """The quantile of log sigma ~ N(mean, std^2), cut to [0.002, 80], at u."""
    low, high = (normal_cdf((math.log(edge) - mean) / std) for edge in (0.002, 80.0))
    return torch.exp(mean + std * normal_quantile(low + u * (high - low)))


def lognormal_pdf(s: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Its density over log sigma."""
    low, high = (normal_cdf((math.log(edge) - mean) / std) for edge in (0.002, 80.0))
    z = (s.log() - mean) / std
    return torch.exp(-z * z / 2) / (std * math.sqrt(2 * math.pi) * (high - low))


def karras(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """n levels from high to low at equal steps of sigma^(1/rho), and 0."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + i / (n - 1) * (b - a)) ** rho for i in range(n)] + [0.0]
