"""Laws of the samplers: the probability-flow ODE dx/dsigma = (x - D)/sigma."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.published import DIFFUSERS, SGM
from helpers.strategies import draws, float64
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import ddpm_sigmas, karras_sigmas, linear_betas
from testbed.oracles import Mixture

Denoise = Callable[[Tensor, Any], Tensor]
Sample = Callable[..., Tensor]


def mixture(numbers: dict[str, Any]) -> Mixture:
    given = numbers["mixture"]
    return Mixture(float64(given["means"]), float64(given["stds"]), float64(given["weights"]))


def euler_step(denoise: Denoise, x: Any, sigma: Any, sigma_next: Any) -> Any:
    """x + (sigma' - sigma) (x - D)/sigma, as printed."""
    return x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma


def heun_step(denoise: Denoise, x: Any, sigma: Any, sigma_next: Any) -> Any:
    """The mean of the slopes at both ends of Euler's step."""
    slope = (x - denoise(x, sigma)) / sigma
    end = x + (sigma_next - sigma) * slope
    slope_there = (end - denoise(end, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_there) / 2


STEPS = {"euler": euler_step, "heun": heun_step}


def textbook(name: str, sigma_next: float) -> Callable[..., Any]:
    """The step of that method; to 0 it is Euler's (Karras et al. 2022, algorithm 1)."""
    return STEPS[name] if sigma_next else euler_step


def half(x: Any, sigma: Any) -> Any:
    """A denoiser that is exact in any arithmetic: x/2 + 1/4."""
    return x / 2 + 0.25


def law_step_is_the_formula(sampler: testbed.Sampler, name: str, low: float, high: float) -> None:
    """One step from `high` to `low` with D = x/2 + 1/4, against the formula with 50 digits.

    At most 8 roundings of the terms |x| and h (|x| + |D|), h = |sigma' - sigma|/sigma; Heun's
    second slope is taken at |x| + h (|x| + |D|) and divided by sigma'.
    """
    x = draws((3, 2), 1)
    X, s, t = exact(x), exact(high), exact(low)
    wanted = textbook(name, low)(half, X, s, t)
    found = testbed.sample(half, x, [high, low], sampler=sampler)
    h = (s - t) / s
    size = np.abs(X) + h * (2 * np.abs(X) + 1)
    terms = size * (1 + (s - t) / t) * 2 if name == "heun" and low else size
    assert_within(found, wanted, terms, 8)


class Rounding:
    """The first-order effect of every rounding on the end of a computation.

    `touch(value, size)` marks that `value` was computed with an absolute error of at most `size`;
    `bound(end)` is the sum over all marks of |d end/d value| size (Higham 2002, sec. 3.3), by
    autograd. Samples do not interact, so a sum over the batch has the derivative of each.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[Tensor, Tensor]] = []

    def touch(self, value: Tensor, size: Tensor) -> Tensor:
        zero = torch.zeros_like(value, requires_grad=True)
        self.marks.append((zero, size.detach()))
        return value + zero

    def bound(self, end: Tensor) -> Tensor:
        """Shaped like end (B, d)."""
        columns = []
        for j in range(end.shape[1]):
            slopes = torch.autograd.grad(
                end[:, j].sum(), [zero for zero, _ in self.marks], retain_graph=True
            )
            parts = [
                (slope.abs() * size).sum(1)
                for slope, (_, size) in zip(slopes, self.marks, strict=True)
            ]
            columns.append(torch.stack(parts).sum(0))
        return torch.stack(columns, 1)


def trajectory(
    name: str, oracle: Mixture, x: Tensor, levels: list[float], wobble: list[float]
) -> tuple[Tensor, Tensor]:
    """(end, bound): the textbook method, and how far rounding can carry another implementation.

    The denoiser's error: a softmax carries u max|logit| besides some 30 operations on |m| and |x|.
    A state takes 5 roundings of its terms. `wobble` is the relative error of each level.
    """
    book = Rounding()
    span = float(oracle.m.abs().max())
    narrow = float(oracle.L.min())

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = float(sigma.detach().max())
        logit = float(((x.detach().abs() + span) ** 2).sum(1).max()) / (2 * (narrow + s**2))
        size = gamma(30 + 2 * logit) * (x.abs() + span)
        return book.touch(oracle.denoise(x, sigma.reshape(-1)), size)

    def state(x: Tensor, before: Tensor, h: float) -> Tensor:
        return book.touch(x, gamma(5) * (x.abs() + (1 + h) * (before.abs() + span)))

    def level(value: float, relative: float) -> Tensor:
        column = torch.full((len(x), 1), value, dtype=torch.float64)
        return book.touch(column, (relative + gamma(1)) * column)

    x = book.touch(x, gamma(4) * x.abs())
    at = [level(s, w) for s, w in zip(levels, wobble, strict=True)]
    for (s, t), (from_, to) in zip(pairwise(levels), pairwise(at), strict=True):
        h = (s - t) / s + ((s - t) / t if t and name == "heun" else 0)
        x = state(textbook(name, t)(denoise, x, from_, to), x, h)
    return x.detach(), book.bound(x)


def law_trajectory_is_stability(sample: Sample, name: str) -> None:
    """18 steps of EDM's discretisation: the end points of Stability's sampler.

    Both sides are within the running error bound of the textbook method.
    """
    oracle, levels = mixture(SGM), SGM["discretization"]["edm"]["18"]
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    _, bound = trajectory(name, oracle, x, levels, [0.0] * len(levels))
    found = sample(oracle.denoise, x, levels, sampler=name)
    wanted = np.array(SGM["sampler"]["edm"][name])
    assert float(bound.max()) < 1e-9, "the bound says nothing"
    assert_within(found, wanted, 0, 1, plus=exact(2 * bound))


def law_euler_is_ddim(sample: Sample) -> None:
    """Euler in sigma gives the points of diffusers' DDIM at eta = 0.

    x_T/alpha starts; the levels are the table's, whose abar = 1/(1 + sigma^2) has 3 (t + 1) + 8
    roundings, divided by 2 (1 - abar) in sigma (see test_conversions); the last is abar = 1.
    """
    oracle, t = mixture(DIFFUSERS), DIFFUSERS["ddim_timesteps"]
    sigma = ddpm_sigmas(linear_betas())[t]
    abar = 1 / (1 + sigma**2)
    wobble = [gamma(3 * (i + 1) + 8) / (2 * (1 - float(a))) for i, a in zip(t, abar, strict=True)]
    levels = [*sigma.tolist(), 0.0]
    x = float64(DIFFUSERS["x_T"]) * torch.sqrt(1 + sigma[0] ** 2)
    _, bound = trajectory("euler", oracle, x, levels, [*wobble, 0.0])
    start = wobble[0] * 2 * float(x.abs().max())
    found = sample(oracle.denoise, x, levels, sampler="euler")
    wanted = np.array(DIFFUSERS["trajectory_end"]["ddim_eta0_leading"])
    assert float(bound.max()) < 1e-9, "the bound says nothing"
    assert_within(found, wanted, 0, 1, plus=exact(2 * bound) + start)


MEAN, VARIANCE = float64([0.5, -1.0, 0.0]), float64([0.04, 1.0, 4.0])


def wiener(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0|x] for x0 ~ N(MEAN, diag VARIANCE)."""
    s2 = sigma.reshape(-1, 1) ** 2
    return MEAN + VARIANCE / (VARIANCE + s2) * (x - MEAN)


def exact_solution(x: Tensor, high: float, low: float) -> Tensor:
    """m + (x - m) sqrt((L + low^2)/(L + high^2))."""
    return MEAN + (x - MEAN) * torch.sqrt((VARIANCE + low**2) / (VARIANCE + high**2))


def law_converges_with_order(sampler: testbed.Sampler, order: int) -> None:
    """Doubling the number of steps divides the error by 2^order, in the limit.

    The measured order log2(e_n/e_2n) is an integer up to O(1/n): it rounds to `order`, and its
    distance from it shrinks when n doubles.
    """
    high, low = 10.0, 0.1
    x = MEAN + high * draws((4, 3), 2)
    errors = []
    for n in (64, 128, 256, 512):
        levels = karras_sigmas(n + 1, low, high)[:-1]
        end = testbed.sample(wiener, x, levels, sampler=sampler)
        errors.append(float((end - exact_solution(x, high, low)).abs().max()))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert round(measured[-1]) == order, measured
    distance = [abs(m - order) for m in measured]
    assert distance[0] > distance[1] > distance[2], measured


def law_denoiser_is_never_called_at_zero(sampler: testbed.Sampler) -> None:
    """Not at 0 and not beyond the levels: every call has one positive sigma per sample."""
    levels = [3.0, 1.0, 0.5, 0.0]
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (2,)
        assert bool((sigma == sigma[0]).all())
        seen.append(float(sigma[0]))
        return x / 2

    end = testbed.sample(denoise, draws((2, 3), 0), levels, sampler=sampler)
    assert bool(torch.isfinite(end).all())
    assert set(seen) == {3.0, 1.0, 0.5}
