"""Solvers of the probability-flow ODE dx/dsigma = (x - D)/sigma, and its churned variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from testbed.components.sampler import Sampler
from testbed.components.signature import Limits
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.random import Generators

NotNegative = Annotated[float, Limits(least=0)]
ScalarDenoise = Callable[[Tensor, float], Tensor]
"""A denoiser (x, sigma) -> D, x (B, ...), at one sigma for the whole batch."""
History = list[tuple[float, Tensor]]
"""The levels of the run's earlier steps, each with what the method keeps of that step."""


def toward(D: Tensor, x: Tensor, ratio: float) -> Tensor:
    """D + (sigma'/sigma)(x - D): the ODE's solution from sigma to sigma' for a constant D.

    It is Euler's step x + (sigma' - sigma)(x - D)/sigma; as a mean it keeps D's digits at 0.
    """
    return D + ratio * (x - D)


def fresh(x: Tensor, generator: Generators | None) -> Tensor:
    """Draws z ~ N(0, I) like x, (B, ...), on the generator's device: z is equal on every device.

    With a generator for each sample, that of a sample depends on no other.

    Raises:
        InputError: There is another number of generators than of samples.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise InputError(
                f"{len(generator)} generators for {len(x)} samples: give one for each."
            )
        return torch.stack([fresh(one, own) for one, own in zip(x, generator, strict=True)])
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


def churned(
    x: Tensor,
    sigma: float,
    generator: Generators | None,
    steps: int,
    churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
) -> tuple[Tensor, float]:
    """Returns (x_hat, sigma_hat) = (x + S_noise sqrt(sigma_hat^2 - sigma^2) z, (1 + gamma) sigma).

    gamma = min(S_churn/N, sqrt(2) - 1) for sigma in [S_min, S_max], else 0, N the number of steps
    (Karras et al. 2022, algorithm 2).
    """
    gamma = min(churn / steps, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
    if gamma == 0:
        return x, sigma
    sigma_hat = (1 + gamma) * sigma
    return x + s_noise * math.sqrt(sigma_hat**2 - sigma**2) * fresh(x, generator), sigma_hat


def euler(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: History,
    steps: int,
    churn: NotNegative = 0.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
) -> Tensor:
    """x' = D + (sigma'/sigma_hat)(x_hat - D)."""
    x, sigma = churned(x, sigma, generator, steps, churn, s_min, s_max, s_noise)
    return toward(denoise(x, sigma), x, sigma_next / sigma)


def heun(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: History,
    steps: int,
    churn: NotNegative = 0.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
) -> Tensor:
    """Heun's second-order step; Euler's where sigma' = 0 (Karras et al. 2022, algorithm 2)."""
    x, sigma = churned(x, sigma, generator, steps, churn, s_min, s_max, s_noise)
    d = (x - denoise(x, sigma)) / sigma
    predicted = x + (sigma_next - sigma) * d
    if sigma_next == 0:
        return predicted
    d_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (d + d_next) / 2


def lms(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: History,
    order: int = 4,
) -> Tensor:
    """x' = x + sum_j d_j int l_j(tau) dtau over [sigma, sigma'], d = (x - D)/sigma.

    l_j are the Lagrange polynomials of the last `order` levels: the Adams-Bashforth method for
    steps of any lengths. The first steps have fewer; the first is Euler's (Katherine Crowson,
    k-diffusion, linear multistep).

    Raises:
        InputError: The order is below 1.
    """
    if order < 1:
        raise InputError(f"order = {order!r} must be at least 1.")
    history.append((sigma, (x - denoise(x, sigma)) / sigma))
    del history[:-order]
    levels, slopes = zip(*history, strict=True)
    weights = lagrange_integrals(list(levels), sigma, sigma_next)
    for weight, d in zip(weights, slopes, strict=True):
        x = x + weight * d
    return x


@cache
def _gauss_legendre(n: int) -> tuple[Any, Any]:
    """The n points in [-1, 1] and their weights, (n,) float64 each."""
    return np.polynomial.legendre.leggauss(n)


def lagrange_integrals(levels: list[float], start: float, end: float) -> list[float]:
    """The integrals int l_j(tau) dtau from start to end, l_j(levels[k]) = 1 for k = j, else 0.

    They are taken by Gauss and Legendre with n points for n levels, exact up to degree 2 n - 1.
    """
    points, weights = _gauss_legendre(len(levels))
    tau = (start + end) / 2 + (end - start) / 2 * points
    integrals = []
    for j, level in enumerate(levels):
        others = levels[:j] + levels[j + 1 :]
        l_j = math.prod(((tau - other) / (level - other) for other in others), start=np.ones(1))
        integrals.append(float((weights * l_j).sum() * (end - start) / 2))
    return integrals


def dpmpp_2m(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: History,
) -> Tensor:
    """x' = D_i + (sigma'/sigma)(x - D_i), D_i = D + (D - D_before)/(2 r).

    r = h_before/h with h = log(sigma/sigma') is the ratio of two steps in lambda = -log sigma. The
    first step and the one to 0 have D_i = D (Lu et al. 2022, arXiv:2211.01095, algorithm 2).
    """
    D = denoise(x, sigma)
    history.append((sigma, D))
    if len(history) == 1 or sigma_next == 0:
        return toward(D, x, sigma_next / sigma)
    before, D_before = history.pop(0)
    r = math.log(before / sigma) / math.log(sigma / sigma_next)
    return toward(D + (D - D_before) / (2 * r), x, sigma_next / sigma)


@hookimpl
def testbed_samplers() -> Iterable[Sampler]:
    """Yields Euler's and Heun's methods, linear multistep, and DPM++ 2M."""
    karras = "Karras et al. 2022, arXiv:2206.00364, algorithm 2"
    for name, step in (("euler", euler), ("heun", heun)):
        yield Sampler(name, step, noise="churn", inflation="s_noise", reference=karras)
    yield Sampler("lms", lms, reference="Hairer, Norsett and Wanner 1993, sec. III.5")
    yield Sampler("dpmpp_2m", dpmpp_2m, reference="Lu et al. 2022, arXiv:2211.01095, algorithm 2")
