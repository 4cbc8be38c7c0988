"""Training distributions of sigma, each by its inverse CDF and its pdf over log sigma."""

import math
from typing import Annotated

import torch

import testbed
from testbed.diffusion.noise_levels import ddpm_sigmas, linear_betas, table_pdf, table_quantile
from testbed.diffusion.noise_levels import vp as vp_schedule
from testbed.errors import InputError

Finite = Annotated[float, testbed.Limits()]
Positive = Annotated[float, testbed.Limits(above=0)]
Beta = Annotated[float, testbed.Limits(above=0, below=1)]
Count = Annotated[int, testbed.Limits(least=1)]
Fraction = Annotated[float, testbed.Limits(least=0, below=1)]


def _normal(z):
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def lognormal(u, mean: Finite = -1.2, std: Positive = 1.2):
    """log sigma ~ N(mean, std^2)."""
    return torch.exp(mean + std * torch.special.ndtri(u))


def lognormal_pdf(sigma, mean: Finite = -1.2, std: Positive = 1.2):
    return _normal((torch.log(sigma) - mean) / std) / std


def loguniform(u, low: Positive = 1e-4, high: Positive = 1e4):
    """log sigma uniform on [log low, log high]."""
    if not low < high:
        raise InputError(f"high = {high:g} must be above low = {low:g}.")
    return low * (high / low) ** u


def loguniform_pdf(sigma, low: Positive = 1e-4, high: Positive = 1e4):
    inside = (sigma >= low) & (sigma <= high)
    return inside.to(sigma) / math.log(high / low)


def cosine(u):
    """sigma = tan(pi t/2), t uniform."""
    return torch.tan(math.pi / 2 * u)


def cosine_pdf(sigma):
    """sech(log sigma)/pi = 2 sigma/(pi (1 + sigma^2))."""
    return 2 * sigma / (math.pi * (1 + sigma**2))


def logit_normal(u, mean: Finite = 0.0, std: Positive = 1.0):
    """logit(t) ~ N(mean, std^2) with the flow time t = sigma/(1 + sigma)."""
    t = torch.sigmoid(mean + std * torch.special.ndtri(u))
    return t / (1 - t)


def logit_normal_pdf(sigma, mean: Finite = 0.0, std: Positive = 1.0):
    """logit(t) = log sigma, which keeps the digits that 1 - t loses."""
    return _normal((torch.log(sigma) - mean) / std) / std


def _table(n, start, end):
    return ddpm_sigmas(linear_betas(n, start, end))


def ddpm(u, n: Count = 1000, start: Beta = 1e-4, end: Beta = 0.02):
    """The n levels of the linear beta table with equal mass."""
    return table_quantile(_table(n, start, end), u)


def ddpm_pdf(sigma, n: Count = 1000, start: Beta = 1e-4, end: Beta = 0.02):
    """Mass 1/n over the log-spacing around each level; 0 outside the table."""
    return table_pdf(_table(n, start, end), sigma)


def vp(u, beta_d: Positive = 19.9, beta_min: Positive = 0.1, first: Fraction = 1e-5):
    """sigma(t) = sqrt(exp(beta_d t^2/2 + beta_min t) - 1), t uniform on [first, 1]."""
    return vp_schedule(beta_min, beta_min + beta_d).sigma(first + (1 - first) * u)


def vp_pdf(sigma, beta_d=19.9, beta_min=0.1, first=1e-5):
    """sigma/(sigma'(t) (1 - first)) at the t of sigma."""
    schedule = vp_schedule(beta_min, beta_min + beta_d)
    t = schedule.time(sigma)
    inside = (t >= first) & (t <= 1)
    p = sigma / schedule.sigma_rate(t.clamp(first, 1)) / (1 - first)
    return torch.where(inside, p, torch.zeros_like(p))


@testbed.hookimpl
def testbed_densities():
    yield testbed.Density(
        "lognormal", lognormal, lognormal_pdf, reference="Karras et al. 2022, table 1"
    )
    yield testbed.Density("loguniform", loguniform, loguniform_pdf)
    yield testbed.Density(
        "cosine", cosine, cosine_pdf, reference="Nichol and Dhariwal 2021; Kingma and Gao 2023"
    )
    yield testbed.Density(
        "logit_normal", logit_normal, logit_normal_pdf, reference="Esser et al. 2024"
    )
    yield testbed.Density("vp", vp, vp_pdf, reference="Karras et al. 2022, table 1, VP")
    yield testbed.Density("ddpm", ddpm, ddpm_pdf, reference="Ho et al. 2020, sec. 4")
