"""Closed forms of sampling and likelihood: a Gaussian's probability-flow ODE, and its noise."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

import testbed
from testbed.diffusion.ddpm import Chain, Normal
from testbed.diffusion.denoiser import Denoiser
from testbed.sampling import likelihood as flow
from testbed.selftest.denoising import nothing
from testbed.selftest.formulas import SD, karras
from testbed.selftest.law import CHANCE, Nearest, Setup, gamma, law

HIGHEST = 80.0


def _denoiser(setup: Setup) -> Denoiser:
    """The exact one of N(0, I/4): EDM's F is 0."""
    return Denoiser(nothing(), setup.registry.parameterization("edm"), SD)


def _factor(sigmas: list[float], second: bool) -> float:
    """What Euler's steps, or Heun's, make of x: (x - D)/sigma = x sigma/(sigma^2 + SD^2)."""
    x = 1.0
    for a, b in pairwise(sigmas):
        d = x * a / (a * a + SD * SD)
        y = x + (b - a) * d
        if second and b > 0:
            y = x + (b - a) * (d + y * b / (b * b + SD * SD)) / 2
        x = y
    return x


@law("dx/dsigma = (x - D)/sigma takes N(0, 80^2 + 1/4) to a standard deviation of 0.5")
def ode(setup: Setup) -> str:
    worst, denoiser = Nearest(), _denoiser(setup)
    x = setup.normal("start", 64, 2)
    x = math.sqrt(HIGHEST**2 + SD**2) * x / x.square().mean().sqrt()
    end = {}
    for n in (32, 64):
        sigmas = karras(n)
        for sampler, second in (("euler", False), ("heun", True)):
            found = testbed.sample(denoiser, x, torch.tensor(sigmas, dtype=torch.float64), sampler)
            wanted = _factor(sigmas, second) * x.double()
            # Every step is rounded at the size of x then, which later steps shrink with it: n
            # steps of a few roundings each, and the factors of x add up to less than 4.
            bound = gamma(64 * n, setup.dtype) * x.double().abs() * SD / HIGHEST * 4
            worst.near(f"{n} steps of {sampler}", found, wanted, bound)
            end[sampler, n] = float(found.double().square().mean().sqrt())
    # The error of a method of second order at 64 steps is a third of what doubling them changed.
    change = abs(end["heun", 64] - end["heun", 32])
    worst.near("the standard deviation after the ODE", end["heun", 64], SD, change)
    return f"standard deviation {end['heun', 64]:.4f}, {worst}"


@law("Ancestral steps keep the marginals' variance, by its own recursion in 64 steps")
def noise(setup: Setup) -> str:
    n, sigmas = 8192, karras(64)
    x = HIGHEST * setup.normal("start of noise", n, 2)
    variance = HIGHEST**2
    for a, b in pairwise(sigmas):
        up2 = b * b * (1 - (b / a) ** 2)
        down, keep = math.sqrt(b * b - up2), SD * SD / (a * a + SD * SD)
        variance *= (keep + down / a * (1 - keep)) ** 2
        variance += up2
    worst = Nearest()
    for sampler in ("euler_ancestral", "ddpm"):
        found = testbed.sample(
            _denoiser(setup), x, torch.tensor(sigmas), sampler, setup.generator(sampler)
        )
        # 2 n squares of a normal number.
        bound = CHANCE * variance * math.sqrt(2 / (2 * n)) + gamma(64 * 64, setup.dtype)
        worst.near(f"the variance after {sampler}", found.double().square().mean(), variance, bound)
    return f"variance {variance:.4f}, {worst}"


@law("q(x_t|x_0) and q(x_(t-1)|x_t, x_0) of three steps of beta (Ho et al. 2020, eqs. 4, 6 and 7)")
def chain(setup: Setup) -> str:
    worst, g = Nearest(), gamma(64, setup.dtype)
    beta, abar = (0.1, 0.2, 0.3), (0.9, 0.72, 0.504)
    levels = [math.sqrt((1 - a) / a) for a in abar]
    found = Chain(torch.tensor(levels, dtype=torch.float64))
    x0, x = (setup.normal(name, 4, 2) for name in ("x0 of a chain", "x_t"))
    size = x0.double().abs() + x.double().abs()
    for t in range(3):
        marginal = found.marginal(x0, t)
        worst.near("a marginal's mean", marginal.mean, math.sqrt(abar[t]) * x0.double(), g * size)
        worst.near("a marginal's variance", marginal.variance, 1 - abar[t], gamma(64))
        step = found.step(x, t)
        worst.near("a step's mean", step.mean, math.sqrt(1 - beta[t]) * x.double(), g * size)
        worst.near("a step's variance", step.variance, beta[t], gamma(64))
        before = abar[t - 1] if t else 1.0
        mean = math.sqrt(before) * beta[t] / (1 - abar[t]) * x0.double()
        mean = mean + math.sqrt(1 - beta[t]) * (1 - before) / (1 - abar[t]) * x.double()
        posterior, variance = found.posterior(x, x0, t), beta[t] * (1 - before) / (1 - abar[t])
        worst.near("a posterior's mean", posterior.mean, mean, g * size)
        worst.near("a posterior's variance", posterior.variance, variance, gamma(64))
    one, other = (
        Normal(torch.full((1, 2), m).double(), torch.tensor(v).double())
        for m, v in ((0.0, 1.0), (1.0, 4.0))
    )
    # Two dimensions of (1/4 - 1 + log 4 + 1/4)/2.
    worst.near("a divergence", one.kl(other)[0], math.log(4) - 0.5, gamma(64))
    return str(worst)


@law("log p of N(0, I/4) at sigma = 0.002, in nats, and in bits per dimension")
def likelihood(setup: Setup) -> str:
    worst, denoiser, low = Nearest(), _denoiser(setup), 0.002
    x = setup.normal("points", 16, 2)
    v = SD**2 + low**2
    wanted = -x.double().square().sum(1) / (2 * v) - math.log(2 * math.pi * v)
    found = {n: flow.log_likelihood(denoiser, x, flow.levels(n, low, HIGHEST)) for n in (64, 128)}
    # Second order: a third of what doubling the steps changed, and rounding of D in x's dtype.
    change = (found[128].log_p - found[64].log_p).abs()
    size = 1 + x.double().square().sum(1) / v
    bound = change + gamma(4096, setup.dtype) * size
    worst.near("log p", found[128].log_p, wanted, bound)
    probed = flow.log_likelihood(
        denoiser,
        x,
        flow.levels(128, low, HIGHEST),
        divergence="hutchinson",
        probes=2,
        generator=setup.generator("probes"),
    )
    # The Jacobian is a multiple of I: every probe gives its trace.
    worst.near("log p by probes", probed.log_p, wanted, bound)
    bits = flow.bits_per_dim(torch.tensor([-3.0], dtype=torch.float64), 2, 0.25)
    worst.near("bits", bits[0], (3 - 2 * math.log(0.25)) / (2 * math.log(2)), gamma(16) * 4)
    return str(worst)
