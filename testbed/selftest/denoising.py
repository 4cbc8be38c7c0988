"""Closed forms of the denoiser, its score, and the objective with its gradient."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.predictions import convert
from testbed.oracles import Empirical, Gaussian, Mixture
from testbed.registry import Registry
from testbed.selftest.formulas import (
    SCALINGS,
    SD,
    SIGMA,
    SLOPES,
    WEIGHTS,
    Scaling,
    lognormal,
    lognormal_pdf,
)
from testbed.selftest.law import CHANCE, Nearest, Setup, gamma, law
from testbed.training.objective import Objective

A = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
B = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
"""Data SD a and noise b have the moments of a Gaussian exactly: |a|^2 = |b|^2 = d and a.b = 0."""


class Linear(nn.Module):
    """F = slope x + rate c_noise + level, which shows what the network was given."""

    def __init__(self, slope: float = 0.5, rate: float = 0.25, level: float = 1.0) -> None:
        super().__init__()
        self.slope, self.rate, self.level = slope, rate, level

    def forward(self, x: Tensor, c_noise: Tensor, condition: object = None) -> Tensor:
        c = c_noise.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return self.slope * x + self.rate * c + self.level


def nothing() -> Linear:
    """F = 0."""
    return Linear(0.0, 0.0, 0.0)


def _inputs(c: Scaling, shared: bool) -> tuple[Tensor, Tensor]:
    """c_in and c_noise, own or shared."""
    if not shared:
        return c.in_, c.noise
    return 1 / torch.sqrt(SIGMA**2 + SD**2), SIGMA.log() / 4


@law("D = c_skip x + c_out F(c_in x, c_noise), for every parameterization, own inputs or shared")
def denoiser(setup: Setup) -> str:
    worst, g = Nearest(), gamma(32, setup.dtype)
    x = setup.normal("x", len(SIGMA), 3) * (1 + SIGMA[:, None]).to(setup.dtype)
    for name, scaling in SCALINGS.items():
        c = scaling(SIGMA, SD)
        p = setup.registry.parameterization(name)
        for mode in ("native", "shared"):
            c_in, c_noise = (value[:, None] for value in _inputs(c, mode == "shared"))
            F = 0.5 * c_in * x.double() + 0.25 * c_noise + 1
            skip, out = c.skip[:, None], c.out[:, None]
            wanted = skip * x.double() + out * F
            size = skip * x.double().abs() + out.abs() * (
                0.5 * c_in * x.double().abs() + 0.25 * c_noise.abs() + 1
            )
            D = Denoiser(Linear(), p, SD, c_in=mode, c_noise=mode)
            what = f"D of {name} with {mode} inputs"
            worst.near(what, D(x, SIGMA), wanted, g * size)
            alone = torch.cat([D(x[i : i + 1], float(s)) for i, s in enumerate(SIGMA)])
            worst.near(f"{what}, one by one,", alone, wanted, g * size)
            s = SIGMA[:, None]
            # The score is read from x and F, of which each is known to a few roundings.
            lost = (size + x.double().abs()) / s**2
            worst.near(
                f"score of {name} with {mode} inputs",
                D.score(x, SIGMA),
                (wanted - x.double()) / s**2,
                gamma(64, setup.dtype) * lost + gamma(64) * lost,
            )
    return str(worst)


@law("At x = x0 + sigma eps each of x0, eps, score, v and flow gives each other")
def conversions(setup: Setup) -> str:
    worst = Nearest()
    s = SIGMA[:, None]
    x0, eps = (setup.normal(name, len(SIGMA), 3).double() for name in ("x0", "eps"))
    phi = s.atan()
    kinds = {
        "x0": x0,
        "eps": eps,
        "score": -eps / s,
        "v": phi.cos() * eps - phi.sin() * x0,
        "flow": eps - x0,
    }
    x = x0 + s * eps
    # (x0, eps) is read from x and q: an error of either is divided by b - sigma a.
    lost = (x0.abs() + s * eps.abs()) * (1 + 1 / s) ** 2 + eps.abs() / s
    for one, q in kinds.items():
        for other, wanted in kinds.items():
            found = convert(q, one, other, x=x, sigma=SIGMA, sigma_data=SD)
            worst.near(f"{one} to {other}", found, wanted, gamma(64) * lost * (1 + s))
    return str(worst)


@law("Gaussian, two components and two points: E[x0|x], score and log-density")
def posteriors(setup: Setup) -> str:
    worst, g = Nearest(), gamma(256)
    x = 3 * setup.normal("x", len(SIGMA), 2).double()
    v = SD**2 + SIGMA[:, None] ** 2
    normal = Gaussian(torch.zeros(2), SD**2 * torch.eye(2))
    edm = Denoiser(nothing(), setup.registry.parameterization("edm"), SD)
    for what, found in (("oracle", normal.denoise(x, SIGMA)), ("F = 0 of edm", edm(x, SIGMA))):
        worst.near(f"D of N(0, 1/4) by {what}", found, SD**2 / v * x, g * x.abs())
    worst.near("score of N(0, 1/4)", normal.score(x, SIGMA), -x / v, g * x.abs() / v)
    log_p = -x.square().sum(1) / (2 * v[:, 0]) - torch.log(2 * math.pi * v[:, 0])
    size = x.square().sum(1) / v[:, 0] + v[:, 0].log().abs() + 2
    worst.near("log p of N(0, 1/4)", normal.log_density(x, SIGMA), log_p, g * size)
    m, s = torch.tensor([1.0, 0.5], dtype=torch.float64), SIGMA[:, None]
    both = Mixture(torch.stack([m, -m]), stds=torch.full((2,), SD, dtype=torch.float64))
    side = torch.tanh((x @ m)[:, None] / v)
    wanted = (SD**2 * x + s**2 * side * m) / v
    # The weights are a softmax of numbers of this size, known to as many roundings.
    size = x.abs() + m + ((x.abs() + m) ** 2).sum(1, keepdim=True) / v
    worst.near("D of two components", both.denoise(x, SIGMA), wanted, g * size)
    points = Empirical(torch.stack([m, -m]))
    wanted = torch.tanh((x @ m)[:, None] / s**2) * m
    size = m * (1 + ((x.abs() + m) ** 2).sum(1, keepdim=True) / s**2)
    worst.near("D of two points", points.denoise(x, SIGMA), wanted, g * size)
    return str(worst)


@functools.lru_cache(maxsize=1)
def _density(registry: Registry) -> Density:
    """The log-normal density; its cut is found by bisection."""
    return registry.density("lognormal")


def _objective(setup: Setup, p: str, weighting: str, loss: str, space: str) -> Objective:
    found = setup.registry
    return Objective(
        found.parameterization(p),
        found.weighting(weighting) if weighting else None,
        found.loss(loss, space=space),
        _density(found),
        SD,
    )


def _error(c: Scaling, F: Tensor) -> tuple[Tensor, Tensor]:
    """e = D - x0 for x0 = SD a, eps = b, (6, 4), and the sum of its terms' absolute values."""
    s, skip, out = (value[:, None] for value in (SIGMA, c.skip, c.out))
    terms = (skip - 1) * SD * A, skip * s * B, out * F
    return sum(terms[1:], terms[0]), sum((t.abs() for t in terms[1:]), terms[0].abs())


@law(
    "loss = lambda |D - x0|^2/d in x0 space, |q' - q|^2/d without a weighting; edm's at F = 0 is 1"
)
def loss(setup: Setup) -> str:
    worst, g = Nearest(), gamma(64, torch.float32)
    x0, eps = ((k * v).expand(len(SIGMA), 4).to(setup.dtype) for k, v in ((SD, A), (1.0, B)))
    for name, scaling in SCALINGS.items():
        c = scaling(SIGMA, SD)
        for F in (0 * B, 0.5 * B + 0.25 * A):
            e, size = _error(c, F)
            out = F.expand(len(SIGMA), 4).to(setup.dtype)
            for word, weight in WEIGHTS.items():
                k = weight(SIGMA)[:, None]
                found = _objective(setup, name, word, "l2", "x0")(out, x0, eps, SIGMA)
                what = f"the loss of {name} weighted by {word}"
                worst.near(what, found, (k * e**2).mean(1), g * (k * size**2).mean(1))
            for space, slope in SLOPES.items():
                b = slope(SIGMA)[:, None]
                q, sizes = e / b, (size / b).double()
                found = _objective(setup, name, "", "l2", space)(out, x0, eps, SIGMA)
                what = f"the loss of {name} in {space} space"
                worst.near(what, found, (q**2).mean(1), g * (sizes**2).mean(1))
                k = WEIGHTS["edm"](SIGMA)[:, None] * b**2
                # q' and q themselves are of this size, whatever their difference is.
                near = sizes + 2 * (SD + SIGMA[:, None]) * (1 + 1 / b)
                huber = torch.where(q.abs() <= 1, q**2 / 2, q.abs() - 0.5)
                for word, wanted in (("l1", q.abs()), ("huber", huber)):
                    found = _objective(setup, name, "edm", word, space)(out, x0, eps, SIGMA)
                    bound = g * (k * (wanted + (1 + sizes) * near)).mean(1)
                    what = f"the {word} loss of {name} in {space} space"
                    worst.near(what, found, (k * wanted).mean(1), bound)
    edm = _objective(setup, "edm", "edm", "l2", "x0")(0 * x0, x0, eps, SIGMA)
    worst.near("edm's loss on Gaussian data at F = 0", edm, torch.ones(6), g * torch.ones(6) * 2)
    return str(worst)


@law("d loss/dF = 2 lambda c_out (D - x0)/d, by autograd")
def gradient(setup: Setup) -> str:
    worst, g = Nearest(), gamma(64, torch.float32)
    x0, eps = ((k * v).expand(len(SIGMA), 4).to(setup.dtype) for k, v in ((SD, A), (1.0, B)))
    for name, scaling in SCALINGS.items():
        c = scaling(SIGMA, SD)
        F = 0.5 * B + 0.25 * A
        e, size = _error(c, F)
        for word, weight in WEIGHTS.items():
            at = F.expand(len(SIGMA), 4).to(setup.dtype).clone().requires_grad_()
            losses = _objective(setup, name, word, "l2", "x0")(at, x0, eps, SIGMA)
            (found,) = torch.autograd.grad(losses.sum(), at)
            k = 2 * weight(SIGMA)[:, None] * c.out[:, None] / 4
            what = f"the gradient of {name} weighted by {word}"
            worst.near(what, found, k * e, g * k.abs() * size)
    return str(worst)


@law("sigma(u) is the density's quantile, and lambda p(log sigma) the effective weight")
def draws(setup: Setup) -> str:
    worst = Nearest()
    objective = _objective(setup, "v", "min_snr", "l2", "x0")
    u = torch.rand(256, generator=setup.generator("u"), dtype=torch.float64)
    wanted = lognormal(u)
    # A quantile is as steep as 1/p: an error of the probability u moves log sigma by gamma/p.
    steep = wanted / lognormal_pdf(wanted)
    worst.near("sigma(u)", objective.sigma(u), wanted, gamma(256) * (wanted + steep))
    weight = WEIGHTS["min_snr"](SIGMA) * lognormal_pdf(SIGMA)
    size = weight * (1 + SIGMA.log() ** 2)
    worst.near("lambda p", objective.effective_weight(SIGMA), weight, gamma(256) * size)
    return str(worst)


@law("The expected loss of edm at F = 0 is 1 on data of its sigma_data, by which it is divided")
def scale(setup: Setup) -> str:
    worst = Nearest()
    rows = (SD * torch.stack([A, B, -A, -B])).float()
    data = Data(rows, rows.clone())
    worst.near("sigma_data", data.sigma_data, SD, gamma(8) * SD)
    found = _objective(setup, "edm", "edm", "l2", "x0").scale(data)
    # The mean of 8192 losses of variance at most 2/d.
    worst.near("the loss's scale", found, 1.0, CHANCE * math.sqrt(2 / 4 / 8192))
    shifted = Data(rows + 1, rows + 1)
    wanted = math.sqrt(SD**2 + 1)
    worst.near("sigma_data off centre", shifted.sigma_data, wanted, gamma(8, torch.float32))
    return f"{found:.4f}"


@law("x = x_t/alpha, sigma = s/alpha for the VP, cosine and flow schedules")
def borders(setup: Setup) -> str:
    worst, g = Nearest(), gamma(256)
    t = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    alpha = {
        "VP": torch.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2),
        "COSINE": torch.cos(math.pi * t / 2),
        "FLOW": 1 - t,
    }
    noise = {"VP": torch.sqrt(1 - alpha["VP"] ** 2), "COSINE": torch.sin(math.pi * t / 2)}
    noise["FLOW"] = t
    x = setup.normal("x", 3, 2).double()
    for name, a in alpha.items():
        border = getattr(testbed.noise_levels, name)
        found, sigma = border.to_ve(x, t)
        s = noise[name] / a
        worst.near(f"sigma of {name}", sigma, s, g * (s + 1 / s))
        worst.near(f"x of {name}", found, x / a[:, None], g * x.abs() / a[:, None] * 4)
        back, time = border.from_ve(x / a[:, None], s)
        worst.near(f"t of {name}", time, t, g * (1 + s + 1 / s))
        worst.near(f"x_t of {name}", back, x, g * x.abs() * (2 + s[:, None] + 1 / s[:, None]))
    return str(worst)
