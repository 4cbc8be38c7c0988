"""Closed forms of training: steps of gradient descent, averages of the weights, a resumed run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.random import stream
from testbed.selftest.formulas import SCALINGS, SD, WEIGHTS, lognormal
from testbed.selftest.law import Broken, Nearest, Setup, gamma, law
from testbed.training.batch import Batch
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob
from testbed.training.trainer import draws as drawn

STEPS, BATCH, D = 30, 16, 4
RATE = 0.05
CPU = torch.device("cpu")


class Case(NamedTuple):
    """What is trained: a parameterization under a weighting, with offset noise of a strength."""

    parameterization: str
    weighting: str
    offset: float = 0.0


class Constant(nn.Module):
    """F = w, (D,), whatever comes in: the loss is a parabola of w, and its gradient plain."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.25, 0.125, 1.0]))

    def forward(self, x: Tensor, c_noise: Tensor, condition: object = None) -> Tensor:
        return self.w + 0 * x


@dataclass(frozen=True)
class Replay:
    """What training must arrive at: weights, average and the mean loss, with their bounds."""

    w: Tensor
    ema: Tensor
    loss: float
    lost: Tensor
    """how far float32 may take weights and average from here, (D,)"""
    loss_lost: float


def beta(t: int) -> float:
    """The average's decay with ema = 0.7: min(0.7, (1 + t)/(10 + t))."""
    return min(0.7, (1 + t) / (10 + t))


def power(t: int) -> float:
    """That of the power-function average of width 1/10: ((t/(t + 1))^(gamma + 1))."""
    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        width = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if width > 0.1 else (low, middle)
    return math.pow(t / (t + 1), low + 1)


def replay(
    case: Case, data: Data, seed: int, scale: float, decay: Callable[[int], float]
) -> Replay:
    """Gradient descent on lambda |D - x0|^2/(d scale) for F = w, in float64, on the same draws."""
    p, weighting, strength = case
    indices, u, eps = drawn(seed, 0, BATCH, len(data.train), (D,))
    z = torch.randn(*eps.shape[:2], 1, generator=stream(seed, "channel z/0"))
    eps = eps + strength * z
    w = Constant().w.detach().double()
    ema, lost, losses, loss_lost = w.clone(), torch.zeros(D).double(), [], 0.0
    g = gamma(BATCH + 64, torch.float32)
    for t in range(STEPS):
        sigma = lognormal(u[t])
        c, k = SCALINGS[p](sigma, SD), WEIGHTS[weighting](sigma)[:, None] / scale
        s, skip, out = (value[:, None] for value in (sigma, c.skip, c.out))
        x0, e = data.train[indices[t]].double(), eps[t].double()
        error = (skip - 1) * x0 + skip * s * e + out * w
        size = ((skip - 1) * x0).abs() + (skip * s * e).abs() + (out * w).abs()
        losses.append(float((k * error**2).mean()))
        loss_lost += float((k * (g * size**2 + 2 * size * out.abs() * lost)).mean()) / STEPS
        slope = (2 * k * out * error).mean(0) / D
        # Its own rounding, that of w, and what w is off already: the slope's slope.
        lost = lost + RATE * (
            g * (2 * k * out.abs() * size).mean(0) / D + (2 * k * out**2).mean(0) / D * lost
        )
        w = w - RATE * slope
        lost = lost + gamma(4, torch.float32) * (w.abs() + RATE * slope.abs())
        ema = decay(t) * ema + (1 - decay(t)) * w
    lost = lost + gamma(4 * STEPS, torch.float32) * ema.abs()
    return Replay(w, ema, sum(losses) / STEPS, lost, loss_lost)


def _data(setup: Setup) -> Data:
    x = SD * setup.normal("training data", 64, D).float()
    return Data(x, x + 1)


def _job(setup: Setup, case: Case, training: Training, seed: int) -> TrainingJob:
    found = setup.registry
    parameterization = found.parameterization(case.parameterization)
    denoiser = Denoiser(Constant(), parameterization, SD, c_in="shared", c_noise="shared")
    objective = Objective(
        parameterization,
        found.weighting(case.weighting),
        found.loss("l2"),
        found.density("lognormal"),
        SD,
        noise=found.noise("offset", strength=case.offset) if case.offset else found.noise("white"),
    )
    return TrainingJob(denoiser, objective, training, seed)


SETTINGS = Training(
    steps=STEPS, batch=BATCH, learning_rate=RATE, optimizer="sgd", ema=0.7, points=1
)
EDM = Case("edm", "edm")
CASES = (EDM, Case("v", "min_snr"), Case("eps", "eps"))


@law("Gradient descent: w - rate dloss/dw of the loss over its scale, alone and in a batch")
def training(setup: Setup) -> str:
    worst, data, seed = Nearest(), _data(setup), setup.seed
    jobs = [_job(setup, case, SETTINGS, seed) for case in CASES]
    batch = Batch(jobs, data, CPU)
    points = [point for window in batch.windows() for point in window]
    for i, case in enumerate(CASES):
        one = Trainer.of(_job(setup, case, SETTINGS, seed), data, CPU)
        (point,) = list(one)
        wanted = replay(case, data, seed, one.scale, beta)
        both = (("alone", one, 0, point), ("in a batch", batch, i, points[i]))
        for how, loop, row, at in both:
            what = f"of {case[0]} weighted by {case[1]}, {how}"
            weights = loop.weights.W[row]
            worst.near(f"the weights {what}", weights, wanted.w, wanted.lost)
            worst.near(f"the average {what}", loop.ema[row], wanted.ema, wanted.lost)
            if at is None:
                raise Broken(f"training {what} has no point of its curve")
            worst.near(f"the curve's loss {what}", at.loss, wanted.loss, wanted.loss_lost)
        averaged = batch.averaged(i).network
        assert isinstance(averaged, nn.Module)
        worst.near("the network's average", next(averaged.parameters()), wanted.ema, wanted.lost)
    offset = EDM._replace(offset=0.5)
    one = Trainer.of(_job(setup, offset, SETTINGS, seed), data, CPU)
    list(one)
    wanted = replay(offset, data, seed, one.scale, beta)
    worst.near("the weights with offset noise", one.weights.W[0], wanted.w, wanted.lost)
    return str(worst)


@law("beta is (t/(t + 1))^(gamma + 1) for an average of width 1/10 (Karras et al. 2024)")
def averages(setup: Setup) -> str:
    worst, data = Nearest(), _data(setup)
    one = Trainer.of(_job(setup, EDM, replace(SETTINGS, ema_width=0.1), setup.seed), data, CPU)
    list(one)
    wanted = replay(EDM, data, setup.seed, one.scale, power)
    worst.near("the average", one.ema[0], wanted.ema, wanted.lost)
    return str(worst)


@law("Adam's first step is rate g/(|g| + 1e-8); a clipped gradient has the stated norm")
def adam(setup: Setup) -> str:
    worst, data = Nearest(), _data(setup)
    start = Constant().w.detach().double()
    first = replace(SETTINGS, steps=1, optimizer="adam", learning_rate=0.01)
    for clip in (0.0, 1e-3):
        one = Trainer.of(_job(setup, EDM, replace(first, clip=clip), setup.seed), data, CPU)
        list(one)
        gradient = one.weights.G[0].double()
        step = one.weights.W[0].double() - start
        # w and its step are rounded to float32.
        bound = gamma(16, torch.float32) * (start.abs() + 0.01)
        worst.near("the first step", step, -0.01 * gradient / (gradient.abs() + 1e-8), bound)
        average = start + 0.9 * step
        worst.near("the first step's average", one.ema[0], average, bound)
        if clip:
            # 1e-6 is added to the norm that is divided by, and that is 1e-2 and more here.
            norm, small = float(gradient.norm()), 1e-4 + gamma(64, torch.float32)
            worst.near("the clipped norm", norm, clip, clip * small)
    return str(worst)


@law("A run that is stored and goes on ends at the same bits as one that was not")
def resuming(setup: Setup) -> str:
    data, longer = _data(setup), replace(SETTINGS, steps=100, points=2)
    whole = Trainer.of(_job(setup, CASES[1], longer, setup.seed), data, CPU)
    list(whole)
    half = Trainer.of(_job(setup, CASES[1], longer, setup.seed), data, CPU)
    next(iter(half))
    tensors, facts = half.state()
    again = Trainer.of(_job(setup, CASES[1], longer, setup.seed), data, CPU)
    again.restore({name: value.clone() for name, value in tensors.items()}, facts)
    list(again)
    for name in ("W", "ema"):
        if not torch.equal(getattr(again.weights, name), getattr(whole.weights, name)):
            raise Broken(f"{name} of the resumed run differs from that of the whole one")
    return f"resumed at step {facts['step']}"
