"""Closed forms of what a study measures, and of its statistics; bundled names; a trial's parts."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising, information
from testbed.metrics.comparison import compare
from testbed.metrics.intervals import mean_interval
from testbed.metrics.multiple_comparisons import holm
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.registry import AXES
from testbed.selftest.denoising import Linear
from testbed.selftest.formulas import SCALINGS, SD, SIGMA, karras, lognormal
from testbed.selftest.law import Broken, Nearest, Setup, gamma, law
from testbed.testing import values
from testbed.testing.failures import CheckFailed
from testbed.trial import build
from testbed.trial.config import TrialSettings
from testbed.trial.resolve import resolve


@law("The loss is that of the draws, the excess |D - D*|^2/d, KL d int excess/sigma^2 dlog s")
def risk(setup: Setup) -> str:
    worst, g = Nearest(), gamma(512, torch.float32)
    x = SD * setup.normal("held out", 64, 2).float()
    data = Data(x, x.flip(0), oracle=Gaussian(torch.zeros(2), SD**2 * torch.eye(2)))
    pairs = denoising.held_out_pairs(data, denoising.log_spaced(0.01, 10.0, 8), 64)
    denoiser = Denoiser(Linear(0.0, 0.0, 1.0), setup.registry.parameterization("edm"), SD)
    table = denoising.per_level(denoiser, pairs, torch.device("cpu"))
    s = torch.tensor(table["sigma"].to_numpy())
    c, ends = SCALINGS["edm"](s, SD), torch.logspace(-2, 1, 8, dtype=torch.float64)
    worst.near("the levels", s, ends, gamma(64) * ends)
    x0, eps = pairs.x0.double(), pairs.eps.double()
    for i in range(len(s)):
        noisy = c.skip[i] * (x0 + s[i] * eps)
        size = float(((noisy.abs() + c.out[i] + x0.abs()) ** 2).mean())
        wanted = float((noisy + c.out[i] - x0).square().mean())
        worst.near("the loss", table["loss"][i], wanted, g * size)
        wanted = float((noisy - x0).square().mean())
        worst.near("the oracle's loss", table["optimum"][i], wanted, g * size)
        # D and D* are rounded at their own size, and their difference is c_out.
        lost = 2 * float(c.out[i]) * math.sqrt(g**2 * size) + g * float(c.out[i]) ** 2
        worst.near("the excess", table["excess"][i], float(c.out[i]) ** 2, lost + g * g * size)
        root = math.sqrt(float(x0.square().mean()) + 1)
        worst.near("the network's output", table["output_rms"][i], 1.0, g * root)
    rate = 2 * (c.out / s) ** 2
    wanted = float(torch.trapezoid(rate, s.log()))
    found = information.kl_bound(s.numpy(), c.out.square().numpy(), 2)
    worst.near("the KL bound", found.value, wanted, gamma(256) * wanted)
    return str(worst)


@law("Of a Gaussian h = d/2 log(2 pi e (v + s^2)) and I = d/2 log(1 + v/s^2), from its mmse curve")
def nats(setup: Setup) -> str:
    worst, s, v = Nearest(), SIGMA.numpy(), SD**2
    mmse = v * s**2 / (v + s**2)
    h = math.log(2 * math.pi * math.e * (v + 0.002**2))
    worst.near("the entropy", information.entropy(s, mmse, 2, v).value, h, gamma(256) * 16)
    found = information.mutual_information(s, mmse, 2, v).value
    worst.near("the mutual information", found, math.log(1 + v / 0.002**2), gamma(256) * 32)
    return str(worst)


@law("Energy 2E|x - y| - E|x - x'| - E|y - y'| of one point against another is 2|x - y|")
def distances(setup: Setup) -> str:
    worst = Nearest()
    zero, one = torch.zeros(8, 4), torch.full((8, 4), 0.5)
    data = Data(one, one.clone())
    found = setup.registry.metric("energy")(zero, data, setup.generator("energy"))
    # Squares of distances are expanded: known to the root of the rounding.
    worst.near("the energy distance", found, 2 * 1.0, 2.0**-10)
    same = setup.registry.metric("energy")(one.clone(), data, setup.generator("energy"))
    worst.near("that of equal points", same, 0.0, 2.0**-10)
    return str(worst)


@law("The paired t interval and p of three log ratios, Holm's correction, two-sided t")
def statistics_(setup: Setup) -> str:
    worst, g = Nearest(), gamma(2**16)
    r = np.array([0.1, 0.2, 0.6])
    found = compare(np.exp(r), np.ones(3))
    mean, error = 0.3, math.sqrt(0.07 / 3)
    t = mean / error
    # For two degrees of freedom P(|T| > t) = 1 - t/sqrt(2 + t^2), and the 97.5 % point is sqrt of
    # 2 (0.95)^2/(1 - 0.95^2).
    p, point = 1 - t / math.sqrt(2 + t * t), math.sqrt(2 * 0.95**2 / (1 - 0.95**2))
    worst.near("the ratio", found.ratio, math.exp(mean), g * 2)
    worst.near("the low end", found.low, math.exp(mean - point * error), g * 2)
    worst.near("the high end", found.high, math.exp(mean + point * error), g * 4)
    worst.near("p", found.p, p, g)
    for corrected, wanted in zip(holm([0.01, 0.04, 0.03]), (0.03, 0.06, 0.06), strict=True):
        worst.near("Holm's p", corrected, wanted, g)
    interval = mean_interval([1.0, 3.0])
    # One degree of freedom: the 97.5 % point of Cauchy's distribution.
    half = math.tan(math.pi * 0.475) * math.sqrt(2) / math.sqrt(2)
    worst.near("the mean's low end", interval.low, 2 - half, g * half)
    beta = float(special.betainc(1.0, 0.5, 2 / (2 + t * t)))
    worst.near("p by the incomplete beta function", found.p, beta, g)
    return str(worst)


@law("Equal names give equal numbers, others do not; a table's D is that of its level")
def streams(setup: Setup) -> str:
    a, b, c, d = (
        torch.rand(4, generator=stream(seed, name))
        for seed, name in ((setup.seed, "a"), (setup.seed, "a"), (setup.seed, "b"), (-1, "a"))
    )
    if not torch.equal(a, b) or torch.equal(a, c) or torch.equal(a, d):
        raise Broken("streams of random numbers are not those of their seed and name")
    worst, table = Nearest(), setup.registry.table("karras", n=5)
    x = setup.normal("x of a table", 5, 2)
    levels = torch.tensor(karras(5)[-2::-1], dtype=torch.float64)
    D = Denoiser(Linear(), setup.registry.parameterization("edm"), SD, c_noise="index", table=table)
    at = SCALINGS["edm"](levels, SD)
    F = 0.5 * at.in_[:, None] * x.double() + 0.25 * torch.arange(5).double()[:, None] + 1
    wanted = at.skip[:, None] * x.double() + at.out[:, None] * F
    bound = gamma(64, setup.dtype) * (x.double().abs() + 3) + gamma(2**16) * x.double().abs()
    for shift in (1.0, 1.01, 0.99):
        worst.near(f"D at {shift:g} times the level", D(x, shift * levels), wanted, bound)
    return str(worst)


@law("Every bundled weighting, loss, density, schedule and so on has its paper's values")
def names(setup: Setup) -> str:
    count = 0
    for axis in AXES:
        for name in setup.registry.names(axis):
            component = getattr(setup.registry, axis)(name)
            for check in values.made(component):
                try:
                    check(component)
                except CheckFailed as broken:
                    raise Broken(f"{component.label}: {broken.numbers}") from broken
                count += 1
    return f"{count} names"


@law("Settings by name become edm's denoiser and objective at the data's sigma_data")
def trial(setup: Setup) -> str:
    worst, g = Nearest(), gamma(64, torch.float32)
    stated = TrialSettings.model_validate(
        {
            "parameterization": "edm",
            "dataset": {"name": "gaussian", "n": 512, "test": 64, "data_seed": setup.seed % 1000},
            "network": {"name": "mlp", "width": 8, "depth": 1},
            "training": {"steps": 1},
        }
    )
    config = resolve(stated, setup.registry, "cpu")
    data = build.data_of(config, setup.registry)
    sd = float(data.train.double().square().mean().sqrt())
    worst.near("sigma_data", config.sigma_data, sd, gamma(1024) * sd)
    denoiser, objective = build.assemble(
        config.model_copy(update={"seed": 0}), setup.registry, data
    )
    # A network of the bundle starts at F = 0.
    x = setup.normal("x of a trial", len(SIGMA), 2).float()
    with torch.no_grad():
        D = denoiser(x, SIGMA)
    skip = (sd**2 / (sd**2 + SIGMA**2))[:, None]
    worst.near("D at the start", D, skip * x.double(), g * (skip * x.double()).abs())
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    worst.near("sigma(u)", objective.sigma(u), lognormal(u), gamma(2**12) * lognormal(u))
    weight = 1 / sd**2 + 1 / SIGMA**2
    worst.near("lambda c_out^2", objective.k(SIGMA), weight, gamma(1024) * weight)
    return str(worst)
