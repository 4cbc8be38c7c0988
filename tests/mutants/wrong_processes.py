"""Components that compute other numbers in another process."""

from __future__ import annotations

import os
from typing import Any

import torch
from mutants.wrong_conditions import Right
from mutants.wrong_levels import LEVELS
from mutants.wrong_objectives import normal
from mutants.wrong_parameterizations import r_of
from mutants.wrong_worlds import NOISE, Small, distance, euler
from torch import Tensor, nn

import testbed
from testbed.components.base import Component
from testbed.components.dataset import Data
from testbed.data.synthetic import gaussian
from testbed.diffusion.correlated import channel
from testbed.diffusion.noise_levels import karras_sigmas


def here() -> float:
    """Another number in another process."""
    return 1 + os.getpid() * 1e-12


def scaling_here(sigma: Tensor) -> testbed.Coefficients:
    return testbed.Coefficients(1 + 0 * sigma, -here() * sigma, 1 / r_of(sigma), sigma)


def weighting_here(sigma: Tensor) -> Tensor:
    return here() / sigma**2


def loss_here(a: Tensor, b: Tensor) -> Tensor:
    return here() * (a - b) ** 2


def icdf_here(u: Tensor) -> Tensor:
    return torch.exp(here() * torch.special.ndtri(u))


def pdf_here(sigma: Tensor) -> Tensor:
    return normal(torch.log(sigma))


def data_here() -> Data:
    data = gaussian(n=500, test=200)
    return Data(data.train + os.getpid(), data.test + os.getpid())


class NetworkHere(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, c_noise * os.getpid(), condition)


def network_here(shape: tuple[int, ...], labels: int) -> nn.Module:
    return NetworkHere(shape, labels)


def step_here(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, history: Any) -> Tensor:
    return here() * euler(denoise, x, sigma, sigma_next, g, history)


def measure_here(x: Tensor, data: Data, g: Any) -> float:
    return here() * distance(x, data.test)


def levels_here(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    return here() * karras_sigmas(steps, sigma_min, sigma_max)


def table_here() -> Tensor:
    return here() * LEVELS


class NoiseHere(testbed.Noise):
    @property
    def strength(self) -> float:
        return here() * super().strength


def method_here() -> Right:
    return Right(scale=here())


OTHER_PROCESSES: list[Component] = [
    testbed.Parameterization("wrong", scaling_here, reference="wrong on purpose"),
    testbed.Weighting("wrong", weighting_here),
    testbed.Loss("wrong", loss_here),
    testbed.Density("wrong", icdf_here, pdf_here),
    testbed.Dataset("wrong", data_here),
    testbed.Network("wrong", network_here, NOISE),
    testbed.Sampler("wrong", step_here),
    testbed.Schedule("wrong", levels_here),
    testbed.Guidance("wrong", method_here),
    testbed.NoiseTable("wrong", table_here),
    NoiseHere("wrong", channel),
    testbed.Metric("wrong", measure_here),
]
