"""Level 5, sampling: every form of one denoiser goes the same way, step by step.

An error may be invisible in one form: a missing alpha cancels where a sampler uses the noise only.
So a subject is tried under every deterministic sampler, and the probability-flow ODE

    dx/dsigma = (x - D)/sigma = -sigma grad log p      (Karras et al. 2022, eq. 1)

is also solved by scipy, which shares nothing with the samplers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from testbed.audit.reference import noisy, rounding, tweedie
from testbed.audit.rows import Row, gamma, rows, skipped
from testbed.audit.subject import Denoise, Subject
from testbed.components.sampler import Sampler
from testbed.diffusion.ddpm import NoPosterior
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.oracles import Oracle
from testbed.random import stream
from testbed.sampling.loop import sample
from testbed.tensors import per_sample

DERIVATIVE = "derivative: (x - D)/sigma = -sigma grad log p"
TRAJECTORY = "trajectory by x0 and by score"
ODE = "probability-flow ODE: scipy's solve_ivp by D and by score"
COARSE, FINE = 1e-6, 1e-9
MOST = 2000
"""Calls after which an ODE is given up: ten times what the exact denoiser needs."""


class TooStiff(Exception):
    """The ODE of a wrong denoiser needs steps without end."""


def check(
    subject: Subject,
    oracle: Oracle,
    samplers: Sequence[Sampler],
    sigmas: Tensor | None = None,
    samples: int = 8,
) -> list[Row]:
    """The derivative, every sampler's trajectory, and the ODE.

    Side A gives every sampler the subject's D; side B gives it x + sigma^2 grad log p by autograd,
    and the same noise where it draws any.
    Rounding in each call is carried to every later point by the sampler's own sensitivity,
    sum_i |dx_n/dD_i| delta_i, first order, by autograd.
    """
    low, high = float(subject.levels.min()), float(subject.levels.max())
    if sigmas is None:
        sigmas = karras_sigmas(18, max(0.002, low), min(80.0, high))[:-1]
    generator = stream(0, "audit/sampler")
    noise = torch.randn((samples, *oracle.shape), generator=generator, dtype=torch.float64)
    start = oracle.sample(samples, generator) + sigmas[0] * noise
    denoise, name = subject.denoiser(oracle), subject.name

    def by_data(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return denoise(x, sigma)

    def by_score(x: Tensor, sigma: Tensor) -> Tensor:
        return x.detach() + per_sample(sigma, x) ** 2 * tweedie(oracle, x, sigma)

    def uncertainty(x: Tensor, sigma: Tensor) -> Tensor:
        D = oracle.denoise(x, sigma).detach()
        return subject.uncertainty(oracle, x, sigma) + rounding(oracle, x, D, sigma).B

    x0, eps, sigma = noisy(oracle, subject.levels, samples)
    s = per_sample(sigma, x0)
    x = x0 + s * eps
    found = rows(
        DERIVATIVE,
        name,
        sigma,
        (x - by_data(x, sigma)) / s,
        -s * tweedie(oracle, x, sigma),
        (uncertainty(x, sigma) + gamma(8, x.dtype) * x.abs()) / s,
    )
    for sampler in samplers:
        law = f"{TRAJECTORY}: {sampler.name}"
        try:
            bounds = _reach(oracle, sampler, start, sigmas, uncertainty)
        except NoPosterior:
            found.append(skipped(law, name, "its variance is a trained model's"))
            continue
        ways = [_points(way, start, sigmas, sampler) for way in (by_data, by_score)]
        for i, bound in enumerate(bounds):
            level = sigmas[i + 1].expand(samples)
            found += rows(law, name, level, ways[0][i], ways[1][i], bound)
    return found


def _points(denoise: Denoise, start: Tensor, sigmas: Tensor, sampler: Sampler) -> list[Tensor]:
    """The trajectory's points after each step."""
    points: list[Tensor] = []

    def keep(i: int, level: float, x: Tensor) -> None:
        points.append(x)

    end = sample(denoise, start, sigmas, sampler, stream(0, "audit/fresh"), keep)
    return [*points[1:], end]


def _reach(
    oracle: Oracle, sampler: Sampler, start: Tensor, sigmas: Tensor, uncertainty: Denoise
) -> list[Tensor]:
    """How far the rounding of all calls so far may have moved each point of a trajectory."""
    kicks: list[Tensor] = []
    sizes: list[Tensor] = []
    # A step's own rounding moves x_next by gamma |x|, as an error of gamma |x|/(1 - r) in D would.
    nearest = float((1 - sigmas[1:] / sigmas[:-1]).min())

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        at = x.detach()
        kicks.append(torch.zeros_like(at, requires_grad=True))
        sizes.append(uncertainty(at, sigma) + gamma(8, x.dtype) * at.abs() / nearest)
        return oracle.denoise(x, sigma) + kicks[-1]

    bounds: list[Tensor] = []
    for point in _points(watched, start, sigmas, sampler):
        bound = torch.zeros_like(start).flatten(1)
        for j in range(oracle.dim):
            slopes = torch.autograd.grad(
                point.flatten(1)[:, j].sum(), kicks, retain_graph=True, allow_unused=True
            )
            bound[:, j] = sum(
                (slope.abs() * size).flatten(1).sum(1)
                for slope, size in zip(slopes, sizes, strict=True)
                if slope is not None
            )
        bounds.append(bound.reshape(start.shape))
    return bounds


def check_ode(
    subject: Subject, oracle: Oracle, span: tuple[float, float] | None = None, samples: int = 4
) -> list[Row]:
    """Both sides by scipy's DOP853 from the same noise, at a relative tolerance of 1e-9.

    The bound is what the score's own solution moves between tolerances 1e-6 and 1e-9: the coarse
    one's error, larger than that of the two fine ones together.
    """
    high, low = span or (
        min(40.0, float(subject.levels.max())),
        max(0.05, float(subject.levels.min())),
    )
    generator = stream(0, "audit/ode")
    noise = torch.randn((samples, *oracle.shape), generator=generator, dtype=torch.float64)
    start = oracle.sample(samples, generator) + high * noise
    denoise = subject.denoiser(oracle)

    def by_data(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return (x - denoise(x, sigma)) / per_sample(sigma, x)

    def by_score(x: Tensor, sigma: Tensor) -> Tensor:
        return -per_sample(sigma, x) * tweedie(oracle, x, sigma)

    coarse = _solve(by_score, start, high, low, COARSE)
    fine = _solve(by_score, start, high, low, FINE)
    ours = _solve(by_data, start, high, low, FINE)
    bound = (coarse - fine).abs().amax().expand_as(fine)
    return rows(ODE, subject.name, torch.full((samples,), low).double(), ours, fine, bound)


def _solve(slope: Denoise, start: Tensor, high: float, low: float, tolerance: float) -> Tensor:
    """x at `low` of dx/dlog sigma = sigma dx/dsigma; nan where scipy gives up."""

    calls = itertools.count()

    def rate(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        if next(calls) == MOST:
            raise TooStiff
        x = torch.from_numpy(flat).reshape(start.shape)
        sigma = torch.full((len(x),), float(np.exp(log_sigma)), dtype=torch.float64)
        found: np.ndarray = (per_sample(sigma, x) * slope(x, sigma)).reshape(-1).numpy()
        return found

    if not bool(torch.isfinite(slope(start, torch.full((len(start),), high).double())).all()):
        return torch.full_like(start, float("nan"))
    try:
        solved = solve_ivp(
            rate,
            (np.log(high), np.log(low)),
            start.reshape(-1).numpy(),
            method="DOP853",
            rtol=tolerance,
            atol=tolerance,
        )
    except TooStiff:
        return torch.full_like(start, float("nan"))
    if not solved.success:
        return torch.full_like(start, float("nan"))
    return torch.from_numpy(solved.y[:, -1].copy()).reshape(start.shape)
