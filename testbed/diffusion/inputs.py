"""The network's inputs by name: c_in, the scale of x, and c_noise, the noise level as a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.diffusion import noise_levels
from testbed.diffusion.parameterization import Parameterization

InputScale = Callable[[Tensor, float], Tensor]
"""A function of sigma (any shape) and sigma_data, shaped like sigma."""
VP_STEPS = 1000
"""M of Karras et al. 2022, table 1: the number of levels of DDPM."""


class NoiseInput(NamedTuple):
    """c_noise as a function of sigma and sigma_data, and the kind of number that it is."""

    function: InputScale
    kind: str


def shared_c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = 1/sqrt(sigma^2 + sigma_data^2): unit input variance for any parameterization."""
    return 1 / torch.sqrt(sigma**2 + sigma_data**2)


def unit_c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = 1: the network's input is x itself."""
    return torch.ones_like(sigma)


def vp_c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = alpha = 1/sqrt(1 + sigma^2): the input is alpha x0 + s eps, alpha^2 + s^2 = 1."""
    return 1 / torch.sqrt(1 + sigma**2)


def flow_c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = 1/(1 + sigma) = 1 - t: the input is x_t = (1 - t) x0 + t eps."""
    return 1 / (1 + sigma)


def shared_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = log(sigma)/4 (Karras et al. 2022, table 1)."""
    return torch.log(sigma) / 4


def sigma_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = sigma: the network's time is the noise level itself."""
    return sigma


def log_sigma_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = log sigma (Song et al. 2021, the continuous model)."""
    return torch.log(sigma)


def log_half_sigma_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = log(sigma/2) (Karras et al. 2022, table 1, VE)."""
    return torch.log(sigma / 2)


def log_snr_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = log(1/sigma^2), the log SNR (Salimans and Ho 2022)."""
    return -2 * torch.log(sigma)


def time_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = sigma/(1 + sigma) = t of x_t = (1 - t) x0 + t eps: 0 is data, 1 is noise."""
    return sigma / (1 + sigma)


def reversed_time_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = 1/(1 + sigma) = 1 - t: 0 is noise, 1 is data."""
    return 1 / (1 + sigma)


def cosine_time_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = 2/pi arctan(sigma) = t of x_t = cos(pi t/2) x0 + sin(pi t/2) eps."""
    return noise_levels.COSINE.time(sigma)


def vp_time_c_noise(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_noise = (M - 1) t, M = 1000 (Karras et al. 2022, table 1, VP).

    t is that of the linear VP schedule, with beta_d = 19.9 and beta_min = 0.1.
    """
    return (VP_STEPS - 1) * noise_levels.VP.time(sigma)


C_IN: dict[str, InputScale] = {
    "shared": shared_c_in,
    "unit": unit_c_in,
    "vp": vp_c_in,
    "flow": flow_c_in,
}
C_NOISE = {
    "shared": NoiseInput(shared_c_noise, "log_sigma"),
    "sigma": NoiseInput(sigma_c_noise, "sigma"),
    "log_sigma": NoiseInput(log_sigma_c_noise, "log_sigma"),
    "log_half_sigma": NoiseInput(log_half_sigma_c_noise, "log_sigma"),
    "log_snr": NoiseInput(log_snr_c_noise, "log_sigma"),
    "time": NoiseInput(time_c_noise, "time"),
    "reversed_time": NoiseInput(reversed_time_c_noise, "time"),
    "cosine_time": NoiseInput(cosine_time_c_noise, "time"),
    "vp_time": NoiseInput(vp_time_c_noise, "index"),
}
"""Besides "native", the parameterization's own, and "index", that of the level in a table."""


def noise_kind(c_noise: str, parameterization: Parameterization) -> str:
    """The kind of number that c_noise is: "sigma", "log_sigma", "time" or "index"."""
    if c_noise == "index":
        return "index"
    # One that is not affine has no c_noise of its own.
    if c_noise == "native" and not parameterization.affine:
        c_noise = "shared"
    named = C_NOISE.get(c_noise)
    return named.kind if named else parameterization.noise_kind
