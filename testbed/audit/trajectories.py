"""The part sampling: x0 and score of one denoiser give the same trajectories, step by step.

Some errors show in one of them only: a missing alpha cancels where a sampler uses the noise alone.
So a subject is audited under every deterministic sampler, and the probability-flow ODE

    dx/dsigma = (x - D)/sigma = -sigma grad log p      (Karras et al. 2022, eq. 1)

is also solved by scipy, which shares nothing with the samplers. Both sides of these laws go through
the sampler, or through scipy; the ends of a Gaussian's trajectories have a closed form besides.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from testbed.audit.reference import noisy, rounding, tweedie
from testbed.audit.rows import LawCheck, gamma, rows, skipped
from testbed.audit.subject import Subject
from testbed.components.guidance import Denoise
from testbed.components.sampler import Sampler
from testbed.diffusion.ddpm import NoPosterior
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.oracles import Gaussian, Oracle
from testbed.random import stream
from testbed.sampling.loop import sample
from testbed.tensors import per_sample

DERIVATIVE = "derivative: (x - D)/sigma = -sigma grad log p"
TRAJECTORY = "trajectory by x0 and by score"
ODE = "probability-flow ODE: scipy's solve_ivp by D and by score"
FLOW = "end of the trajectory: the exact flow of a Gaussian"
COARSE, FINE = 1e-6, 1e-9
FLOW_STEPS = 128
"""Steps of the finest trajectory that ends at a Gaussian's exact flow."""
MOST_CALLS = 2000
"""Calls after which an ODE is given up: ten times what the exact denoiser needs."""


class TooStiff(Exception):
    """The ODE of a wrong denoiser takes more calls than `MOST_CALLS`."""


def check(
    subject: Subject,
    oracle: Oracle,
    samplers: Sequence[Sampler],
    sigmas: Tensor | None = None,
    samples: int = 8,
) -> list[LawCheck]:
    """Checks the derivative, and the trajectory of every sampler.

    Side A gives every sampler the subject's D; side B gives it x + sigma^2 grad log p by autograd,
    and the same noise where it draws any. Rounding in each call is carried to every later point by
    the sampler's own sensitivity, sum_i |dx_n/dD_i| delta_i, to first order, by autograd.
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
    checks = rows(
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
            bounds = _error_bounds(oracle, sampler, start, sigmas, uncertainty)
        except NoPosterior:
            checks.append(skipped(law, name, "its variance is a trained model's"))
            continue
        sides = (_points(side, start, sigmas, sampler) for side in (by_data, by_score))
        for level, first, second, bound in zip(sigmas[1:], *sides, bounds, strict=True):
            checks += rows(law, name, level.expand(samples), first, second, bound)
    return checks


def exact_flow(oracle: Gaussian, x: Tensor, high: float, low: float) -> Tensor:
    """Returns the ODE's solution at `low` from x (B, d) at `high`, (B, d).

    x - m has the coordinates c in the eigenbasis of S, and dc/dsigma = sigma c/(L + sigma^2), so
    that c' = c sqrt((L + low^2)/(L + high^2)).
    """
    c = (x.flatten(1) - oracle.m) @ oracle.Q
    c = c * torch.sqrt((oracle.L + low**2) / (oracle.L + high**2))
    return (oracle.m + c @ oracle.Q.mT).reshape(x.shape)


def check_flow(
    subject: Subject,
    oracle: Gaussian,
    samplers: Sequence[Sampler],
    sigmas: Tensor | None = None,
    samples: int = 8,
) -> list[LawCheck]:
    """Checks where every sampler ends with the subject's D against the exact flow of a Gaussian.

    With n steps a sampler of order p >= 1 ends at x_n = x + C/n^p + ..., so that the extrapolated
    R_n = 2 x_n - x_(n/2) is off by O(1/n^q), q = max(2, p) (Richardson 1911). As n doubles, R_n
    moves by 2^q - 1 >= 3 times what it is off afterwards; the bound is all that it moves, three
    times as much. One that converges to anything else moves less and less and is as far off as
    before.
    """
    low, high = max(0.05, float(subject.levels.min())), min(40.0, float(subject.levels.max()))
    fine = karras_sigmas(FLOW_STEPS + 1, low, high)[:-1] if sigmas is None else sigmas
    fine = fine[: len(fine) - (len(fine) - 1) % 4]  # a quarter of the steps must end there too
    high, low = float(fine[0]), float(fine[-1])
    generator = stream(0, "audit/flow")
    noise = torch.randn((samples, *oracle.shape), generator=generator, dtype=torch.float64)
    start = oracle.sample(samples, generator) + high * noise
    denoise = subject.denoiser(oracle)

    def by_data(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return denoise(x, sigma)

    right = exact_flow(oracle, start, high, low)
    # Rounding of the last D is in the end as it is; what was before has shrunk.
    level = torch.full((samples,), low, dtype=torch.float64)
    rounded = 9 * len(fine) * subject.uncertainty(oracle, right, level)
    checks: list[LawCheck] = []
    for sampler in samplers:
        law = f"{FLOW}: {sampler.name}"
        try:
            ends = [
                sample(by_data, start, fine[::stride], sampler, stream(0, "audit/fresh"))
                for stride in (4, 2, 1)
            ]
        except NoPosterior:
            checks.append(skipped(law, subject.name, "its variance is a trained model's"))
            continue
        first, second = (2 * fine_end - end for end, fine_end in itertools.pairwise(ends))
        bound = (second - first).abs().amax() + rounded
        checks += rows(law, subject.name, level, second, right, bound.expand_as(right))
    return checks


def _points(denoise: Denoise, start: Tensor, sigmas: Tensor, sampler: Sampler) -> list[Tensor]:
    """Returns the trajectory's points after each step."""
    points: list[Tensor] = []
    generator = stream(0, "audit/fresh")
    end = sample(denoise, start, sigmas, sampler, generator, lambda i, s, x: points.append(x))
    return [*points[1:], end]


def _error_bounds(
    oracle: Oracle, sampler: Sampler, start: Tensor, sigmas: Tensor, uncertainty: Denoise
) -> list[Tensor]:
    """Returns how far the rounding of all earlier calls may have moved each trajectory point."""
    errors: list[Tensor] = []
    sizes: list[Tensor] = []
    # A step's own rounding moves x_next by gamma |x|, as an error of gamma |x|/(1 - r) in D would.
    nearest = float((1 - sigmas[1:] / sigmas[:-1]).min())

    def perturbed(x: Tensor, sigma: Tensor) -> Tensor:
        errors.append(torch.zeros_like(x.detach(), requires_grad=True))
        size = uncertainty(x.detach(), sigma)
        sizes.append(size + gamma(8, x.dtype) * x.detach().abs() / nearest)
        return oracle.denoise(x, sigma) + errors[-1]

    points = torch.stack(_points(perturbed, start, sigmas, sampler))
    n, d = len(points), oracle.dim
    bound = torch.zeros(n, len(start), d, dtype=start.dtype)
    for j in range(d):
        # All points at once: the i-th slopes are those of the i-th point.
        one = torch.zeros(n, n, len(start), d, dtype=start.dtype)
        one[range(n), range(n), :, j] = 1
        slopes = torch.autograd.grad(
            points, errors, one.reshape(n, *points.shape),
            retain_graph=True, allow_unused=True, is_grads_batched=True,
        )  # fmt: skip
        for slope, size in zip(slopes, sizes, strict=True):
            if slope is not None:
                bound[:, :, j] += (slope.abs() * size).flatten(2).sum(2)
    return list(bound.reshape(points.shape))


@functools.lru_cache(maxsize=1)  # several subjects in turn are held against one oracle
def _ends_by_score(oracle: Oracle, high: float, low: float, samples: int) -> tuple[Tensor, Tensor]:
    """Returns the ODE's solutions by the score at the tolerances 1e-6 and 1e-9."""

    def by_score(x: Tensor, sigma: Tensor) -> Tensor:
        return -per_sample(sigma, x) * tweedie(oracle, x, sigma)

    start = _start(oracle, high, samples)
    coarse, fine = (_solve(by_score, start, high, low, one) for one in (COARSE, FINE))
    return coarse, fine


def check_ode(subject: Subject, oracle: Oracle, samples: int = 4) -> list[LawCheck]:
    """Checks the ODE solved by both sides with scipy's DOP853, at a relative tolerance of 1e-9.

    The bound is what the score's own solution moves between tolerances 1e-6 and 1e-9: the coarse
    one's error, larger than that of the two fine ones together.
    """
    high, low = min(40.0, float(subject.levels.max())), max(0.05, float(subject.levels.min()))
    denoise = subject.denoiser(oracle)

    def by_data(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return (x - denoise(x, sigma)) / per_sample(sigma, x)

    coarse, fine = _ends_by_score(oracle, high, low, samples)
    by_x0 = _solve(by_data, _start(oracle, high, samples), high, low, FINE)
    bound = (coarse - fine).abs().amax().expand_as(fine)
    return rows(ODE, subject.name, torch.full((samples,), low).double(), by_x0, fine, bound)


def _start(oracle: Oracle, high: float, samples: int) -> Tensor:
    generator = stream(0, "audit/ode")
    noise = torch.randn((samples, *oracle.shape), generator=generator, dtype=torch.float64)
    return oracle.sample(samples, generator) + high * noise


def _solve(slope: Denoise, start: Tensor, high: float, low: float, tolerance: float) -> Tensor:
    """Returns x at `low` of dx/dlog sigma = sigma dx/dsigma; nan where scipy gives up."""
    from scipy.integrate import solve_ivp

    calls = itertools.count()

    def rate(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        if next(calls) == MOST_CALLS:
            raise TooStiff
        x = torch.from_numpy(flat).reshape(start.shape)
        sigma = torch.full((len(x),), float(np.exp(log_sigma)), dtype=torch.float64)
        rates: np.ndarray = (per_sample(sigma, x) * slope(x, sigma)).reshape(-1).numpy()
        return rates

    span, start_flat = (np.log(high), np.log(low)), start.reshape(-1).numpy()
    with contextlib.suppress(TooStiff):
        if slope(start, torch.full((len(start),), high).double()).isfinite().all():
            solution = solve_ivp(rate, span, start_flat, "DOP853", rtol=tolerance, atol=tolerance)
            if solution.success:
                return torch.from_numpy(solution.y[:, -1].copy()).reshape(start.shape)
    return torch.full_like(start, float("nan"))
