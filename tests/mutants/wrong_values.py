"""Components that behave well and have a bundled name with another formula than its paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mutants.wrong import wrong
from mutants.wrong_worlds import euler
from torch import Tensor

import testbed
from testbed.data.level_files import FILE_TABLES
from testbed.diffusion.correlated import coordinate
from testbed.diffusion.noise_levels import (
    ddpm_sigmas,
    flow_sigmas,
    karras_sigmas,
    scaled_linear_betas,
)
from testbed.sampling.guidance_methods import ClassifierFreeGuidance
from testbed.sampling.schedules import Time, uniform


def snr(sigma: Tensor) -> Tensor:
    return 1 / sigma**2


for mistake, function in {
    "min_snr of alpha^4/s^2": lambda sigma, gamma=5.0: (snr(sigma) / (1 + sigma**2)).clamp(
        max=gamma
    ),
    "min_snr of SNR + 1": lambda sigma, gamma=5.0: (snr(sigma) + 1).clamp(max=gamma),
    "max for min in min_snr": lambda sigma, gamma=5.0: snr(sigma).clamp(min=gamma),
}.items():
    wrong(mistake, testbed.Weighting("min_snr", function), "values")
wrong(
    "a bundled weighting without its option",
    testbed.Weighting("soft_min_snr", lambda sigma: 1 / (sigma**2 + 0.2)),
    "values",
)


def unscaled(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
    """x0 whose c_noise is log sigma."""
    one = torch.ones_like(sigma)
    c_in = (sigma**2 + sigma_data**2).rsqrt()
    return testbed.Coefficients(0 * one, one, c_in, torch.log(sigma))


wrong(
    "c_noise of x0 without its 1/4",
    testbed.Parameterization(
        "x0",
        unscaled,
        target=lambda x0, eps, sigma: x0,
        noise_kind="log_sigma",
        reference="wrong on purpose",
    ),
    "values",
)


def tailless(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Huber's loss without the half, as Huber's published loss is not."""
    return 2 * torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)


wrong("Huber's loss twice", testbed.Loss("huber", tailless), "values")


def lognormal(u: Tensor, mean: float = -1.2, std: float = 1.0) -> Tensor:
    return torch.exp(mean + std * torch.special.ndtri(u))


def lognormal_pdf(sigma: Tensor, mean: float = -1.2, std: float = 1.0) -> Tensor:
    z = (torch.log(sigma) - mean) / std
    return torch.exp(-(z**2) / 2) / (std * (2 * torch.pi) ** 0.5) + 0 * z


def squared(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """`std` taken for a variance."""
    return lognormal(u, mean, std**0.5)


def squared_pdf(sigma: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    return lognormal_pdf(sigma, mean, std**0.5)


wrong(
    "a log-normal density whose std is a variance",
    testbed.Density("lognormal", squared, squared_pdf),
    "values",
)


def inverted(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Equal steps of sigma^rho."""
    return karras_sigmas(steps, sigma_min, sigma_max, 1 + 1 / rho)


wrong("1 + 1/rho for rho in Karras' schedule", testbed.Schedule("karras", inverted), "values")


def less_shifted(
    steps: int, sigma_min: float, sigma_max: float, time: Time = "ve", shift: float = 1.0
) -> Tensor:
    """Equal steps of time, moved by the square root of the shift."""
    return uniform(steps, sigma_min, sigma_max, time, shift**0.5)


wrong("half of the shift of times", testbed.Schedule("uniform", less_shifted), "values")


def scaled(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return ddpm_sigmas(scaled_linear_betas(n, start, end))


wrong("DDPM's table of scaled-linear betas", testbed.NoiseTable("ddpm", scaled), "values")
wrong(
    "flow with the shift inverted",
    testbed.NoiseTable("flow", lambda n=1000, shift=1.0: flow_sigmas(n, 1 / shift)),
    "values",
)
wrong(
    "flow that begins at 1/(n + 1)",
    testbed.NoiseTable("flow", lambda n=1000, shift=1.0: flow_sigmas(n + 1, shift)[1:]),
    "values",
)
wrong(
    "geometric by equal steps of sigma",
    testbed.NoiseTable(
        "geometric",
        lambda n=10, low=0.01, high=1.0: torch.linspace(low, high, n, dtype=torch.float64),
    ),
    "values",
)


def written(levels: Callable[[Tensor], Tensor]) -> testbed.NoiseTable:
    """`betas` with other levels, of a few betas in a list."""

    def of_list(values: tuple[float, ...] = ()) -> Tensor:
        return levels(torch.tensor(values, dtype=torch.float64))

    return replace(FILE_TABLES["betas"], levels=of_list).bound({"values": [0.1, 0.2, 0.4]})


wrong("sigma^2 for sigma of betas", written(lambda betas: ddpm_sigmas(betas) ** 2), "values")
wrong(
    "betas without their product",
    written(lambda betas: torch.sqrt(betas / (1 - betas))),
    "values",
)
wrong("Heun by Euler's step", testbed.Sampler("heun", euler), "values")
wrong("offset noise of every coordinate", testbed.Noise("offset", coordinate), "values")


def shifted(scale: float = 1.0, negative: int = -1) -> ClassifierFreeGuidance:
    """The scale is counted from D_y: w + 1."""
    return ClassifierFreeGuidance(scale + 1, negative)


method: Callable[..., Any] = shifted
wrong("guidance whose scale is counted from D_y", testbed.Guidance("classifier_free", method),
      "values")  # fmt: skip
