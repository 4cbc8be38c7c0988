"""Components that are right at the default of an option, and wrong beside it."""

from __future__ import annotations

import math
from typing import Any

import torch
from mutants.wrong import wrong
from mutants.wrong_conditions import Right
from mutants.wrong_worlds import NOISE, Small, distance
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.data.synthetic import gaussian

PHI = math.pi / 4


def angle(sigma: Tensor, sigma_data: float, phi: float = PHI) -> testbed.Coefficients:
    """u = cos(phi) x0 - sin(phi) eps with cos and sin exchanged in the denominator."""
    d = math.cos(phi) + sigma * math.sin(phi)
    c_in = (sigma**2 + sigma_data**2).rsqrt()
    return testbed.Coefficients(math.sin(phi) / d, sigma / d, c_in, sigma.log() / 4)


def angle_target(x0: Tensor, eps: Tensor, sigma: Tensor, phi: float = PHI) -> Tensor:
    return math.cos(phi) * x0 - math.sin(phi) * eps


wrong(
    "right at the default of its angle",
    testbed.Parameterization(
        "wrong",
        angle,
        target=angle_target,
        noise_kind="log_sigma",
        reference="wrong on purpose",
    ),
    "stated_target",
    "optimal_denoiser",
    "tweedie",
)
wrong(
    "negative below the default of an option",
    testbed.Weighting("wrong", lambda sigma, k=2.0: 1 / sigma**2 + (k - 2) * (k < 2)),
    "positive",
)
wrong(
    "an error is free above the default of an option",
    testbed.Loss("wrong", lambda a, b, k=1.0: (a - b) ** 2 * (k <= 1)),
    "sees_errors",
)
wrong(
    "a pdf that takes its option for a variance",
    testbed.Density(
        "wrong",
        lambda u, std=1.0: torch.exp(std * torch.special.ndtri(u)),
        lambda sigma, std=1.0: (
            torch.exp(-(torch.log(sigma) ** 2) / (2 * std)) / math.sqrt(2 * math.pi * std)
        ),
    ),
    "normalised",
    "draws",
)


def ddim_half(
    denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, h: Any, eta: float = 0.5
) -> Tensor:
    """eta var for eta^2 var: right at eta = 0 and 1."""
    D = denoise(x, sigma)
    if sigma_next == 0:
        return D
    a, b = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    var = (1 - b) / (1 - a) * (1 - a / b)
    y = b**0.5 * D + max(1 - b - eta * var, 0) ** 0.5 * (x - D) / sigma
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return (y + eta * var**0.5 * z) / b**0.5


wrong(
    "DDIM with eta for eta^2, right at eta = 0 and 1",
    testbed.Sampler("wrong", ddim_half, deterministic=False, noise="eta"),
    "marginal",
)


def offset(dim: int = 2, scale: float = 1.0) -> Data:
    """The oracle does not know of the scale."""
    data = gaussian(dim=dim, n=3000, test=1000)
    return Data(scale * data.train, scale * data.test, oracle=data.oracle)


wrong("an oracle that is right at one scale", testbed.Dataset("wrong", offset), "oracle", "moments")


class Muted(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, 0 * c_noise, condition)


def muted(shape: tuple[int, ...], labels: int, deaf: bool = False) -> nn.Module:
    return (Muted if deaf else Small)(shape, labels)


wrong("deaf under an option", testbed.Network("wrong", muted, NOISE), "sees_noise")
wrong(
    "a metric that falls above the default of an option",
    testbed.Metric("wrong", lambda x, data, g, k=1.0: (2 - k) * distance(x, data.test)
                   - (k > 1.4) * distance(x, data.test)),
    "sees_shift",
)  # fmt: skip


def method(scale: float = 1.0) -> Right:
    return Right(scale=scale if scale <= 1 else float("inf"))


wrong(
    "not finite above the default of an option",
    testbed.Guidance("wrong", method),
    "finite",
    "per_sample",
    "sees_condition",
)
