"""Laws of the samplers beyond Euler and Heun: formulas, marginals, orders, one trajectory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import mpmath
import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import draws, float64
from laws.solvers import SGM, mixture
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.oracles import Mixture
from testbed.registry import default_registry

Denoise = Callable[[Tensor, Tensor], Tensor]
sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)


def named(name: str, options: dict[str, Any]) -> testbed.Sampler:
    return default_registry().sampler(name, **options)


@contextmanager
def noises(given: list[Tensor]) -> Iterator[list[int]]:
    """torch.randn gives these, one after the other, in the dtype asked for; counts them."""
    taken = [0]

    def randn(*shape: Any, **asked: Any) -> Tensor:
        found = given[taken[0]]
        taken[0] += 1
        return found.to(asked.get("dtype") or torch.get_default_dtype())

    with mock.patch.object(torch, "randn", randn):
        yield taken


def some_noise(like: Tensor, n: int, seed: int = 9) -> list[Tensor]:
    """n draws that float32 can hold, as float64."""
    return [draws(tuple(like.shape), seed + i).float().double() for i in range(n)]


def carried(
    sampler: testbed.Sampler,
    denoise: Denoise,
    x: Tensor,
    levels: list[float],
    noise: list[Tensor],
    unit: float | Callable[[Tensor, float], float],
) -> Tensor:
    """How far rounding moves the end, first order (Higham 2002, sec. 3.3); shaped like x.

    Every call of D may be wrong by unit (|x| + |D| + sigma max|z|)/w: its own rounding, and that
    of the step's sums, which an error in D of that size would make if D weighs w; w is that of D in
    Euler's step, 1 - sigma'/sigma, the smallest of the steps that may ask at that level (with churn
    up to sqrt(2) times their own). Samples do not interact.
    """
    kicks: list[Tensor] = []
    sizes: list[Tensor] = []
    z = max((float(one.abs().max()) for one in noise), default=0.0)

    def kicked(x: Tensor, sigma: Tensor) -> Tensor:
        D = denoise(x, sigma)
        kicks.append(torch.zeros_like(D, requires_grad=True))
        s = float(sigma[0])
        w = min(1 - b / a for a, b in pairwise(levels) if b * 0.999 <= s <= 2 * a)
        size = x.detach().abs() + D.detach().abs() + s * z
        sizes.append((unit(x.detach(), s) if callable(unit) else unit) * size / w)
        return D + kicks[-1]

    with noises(noise):
        end = testbed.sample(kicked, x, levels, sampler, torch.Generator())
    columns = []
    for j in range(end.shape[1]):
        slopes = torch.autograd.grad(
            end[:, j].sum(), kicks, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        columns.append(sum((a.abs() * b).sum(1) for a, b in zip(slopes, sizes, strict=True)))
    return torch.stack([torch.as_tensor(column) for column in columns], 1)


def run(
    sampler: testbed.Sampler, denoise: Denoise, x: Tensor, levels: list[float], noise: list[Tensor]
) -> Tensor:
    with noises(noise):
        return testbed.sample(denoise, x, levels, sampler, torch.Generator())


def shrunk(x: Any, sigma: Any) -> Any:
    """A denoiser that knows its level: x/(1 + sigma) + 1/4."""
    return x / (1 + (sigma.reshape(-1, 1) if isinstance(sigma, Tensor) else sigma)) + 0.25


def abar(s: Any) -> Any:
    return 1 / (1 + s**2)


def posterior(x: Any, D: Any, s: Any, t: Any) -> tuple[Any, Any, Any]:
    """Mean of x_{t-1}, beta and beta~ (Ho et al. 2020, eq. 7), from and to x = x_t/sqrt(abar)."""
    a, a_prev = abar(s), abar(t)
    beta = 1 - a / a_prev
    x_t = sqrt(a) * x
    mean = sqrt(a_prev) * beta / (1 - a) * D + sqrt(1 - beta) * (1 - a_prev) / (1 - a) * x_t
    return mean / sqrt(a_prev), beta / a_prev, beta * (1 - a_prev) / (1 - a) / a_prev


def ddpm(D: Any, x: Any, levels: Any, z: Any, variance: str = "small") -> Any:
    for s, t in pairwise(levels):
        x, beta, beta_tilde = posterior(x, D(x, s), s, t)
        if t:
            x = x + sqrt(beta_tilde if variance == "small" else beta) * next(z)
    return x


def ddim(D: Any, x: Any, levels: Any, z: Any, eta: float = 0.0) -> Any:
    """Song et al. 2021, eqs. 12 and 16."""
    for s, t in pairwise(levels):
        a, a_prev = abar(s), abar(t)
        x_t = sqrt(a) * x
        eps = (x_t - sqrt(a) * D(x, s)) / sqrt(1 - a)
        sigma = exact(eta) * sqrt((1 - a_prev) / (1 - a)) * sqrt(1 - a / a_prev)
        predicted = (x_t - sqrt(1 - a) * eps) / sqrt(a)
        x_prev = sqrt(a_prev) * predicted + sqrt(1 - a_prev - sigma**2) * eps
        if sigma:
            x_prev = x_prev + sigma * next(z)
        x = x_prev / sqrt(a_prev)
    return x


def ancestral(s: Any, t: Any, eta: float) -> tuple[Any, Any]:
    """(down, up) as k-diffusion has them."""
    up = exact(eta) * sqrt(t**2 * (s**2 - t**2) / s**2)
    return sqrt(t**2 - up**2), up


def euler_ancestral(D: Any, x: Any, levels: Any, z: Any, eta: float = 1.0) -> Any:
    for s, t in pairwise(levels):
        down, up = ancestral(s, t, eta)
        x = x + (x - D(x, s)) / s * (down - s)
        if up:
            x = x + up * next(z)
    return x


def first_order(D: Any, x: Any, s: Any, t: Any) -> Any:
    """DPM-Solver++-1 in lambda: (sigma_t/sigma_s) x - alpha_t (exp(-h) - 1) D, alpha = 1."""
    h = -mpmath.log(t) + mpmath.log(s) if t else mpmath.inf
    return mpmath.exp(-h) * x - mpmath.expm1(-h) * D


def dpmpp_2m(D: Any, x: Any, levels: Any, z: Any) -> Any:
    """Lu et al. 2022, algorithm 2, with the last step of first order."""
    before: tuple[Any, Any] | None = None
    for s, t in pairwise(levels):
        now = D(x, s)
        h = mpmath.log(s) - mpmath.log(t) if t else mpmath.inf
        if before is None or not t:
            mixed = now
        else:
            r = before[1] / h
            mixed = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before[0]
        x, before = first_order(mixed, x, s, t), (now, h)
    return x


def dpmpp_2s_ancestral(D: Any, x: Any, levels: Any, z: Any, eta: float = 1.0) -> Any:
    """Lu et al. 2022, algorithm 1 with r = 1/2, to sigma_down."""
    for s, t in pairwise(levels):
        now = D(x, s)
        if not t:
            return first_order(now, x, s, t)
        down, up = ancestral(s, t, eta)
        middle = mpmath.exp((mpmath.log(s) + mpmath.log(down)) / 2)
        x = first_order(D(first_order(now, x, s, middle), middle), x, s, down)
        if up:
            x = x + up * next(z)
    return x


def dpmpp_sde(D: Any, x: Any, levels: Any, z: Any, eta: float = 1.0) -> Any:
    """k-diffusion's with r = 1/2; W is the Brownian motion, drawn in two pieces."""
    for s, t in pairwise(levels):
        now = D(x, s)
        if not t:
            return first_order(now, x, s, t)
        m = mpmath.exp((mpmath.log(s) + mpmath.log(t)) / 2)
        W_m = sqrt(s - m) * next(z) if eta else 0 * x
        W_t = W_m + sqrt(m - t) * next(z) if eta else 0 * x
        down, up = ancestral(s, m, eta)
        x_m = first_order(now, x, s, down) + up * W_m / sqrt(s - m)
        down, up = ancestral(s, t, eta)
        x = first_order(D(x_m, m), x, s, down) + up * W_t / sqrt(s - t)
    return x


def lms(D: Any, x: Any, levels: Any, z: Any, order: int = 4) -> Any:
    """The weights that integrate every polynomial below degree `order` through the past levels."""
    past: list[tuple[Any, Any]] = []
    for s, t in pairwise(levels):
        past = [*past, (s, (x - D(x, s)) / s)][-order:]
        n = range(len(past))
        powers = mpmath.matrix([[level**k for level, _ in past] for k in n])
        wanted = mpmath.matrix([(t ** (k + 1) - s ** (k + 1)) / (k + 1) for k in n])
        weights = mpmath.lu_solve(powers, wanted)
        x = x + sum(w * d for w, (_, d) in zip(weights, past, strict=True))
    return x


def stochastic(
    second_order: bool, D: Any, x: Any, levels: Any, z: Any, churn: float, s_min: float,
    s_max: float, s_noise: float,
) -> Any:  # fmt: skip
    """Karras et al. 2022, algorithm 2, line by line."""
    N = len(levels) - 1
    for s, t in pairwise(levels):
        g = min(exact(churn) / N, sqrt(exact(2)) - 1) if s_min <= s <= s_max else exact(0)
        s_hat = s + g * s
        if g:
            x = x + sqrt(s_hat**2 - s**2) * exact(s_noise) * next(z)
        d = (x - D(x, s_hat)) / s_hat
        end = x + (t - s_hat) * d
        if t and second_order:
            end = x + (t - s_hat) * (d / 2 + (end - D(end, t)) / t / 2)
        x = end
    return x


def euler(D: Any, x: Any, levels: Any, z: Any, **churn: float) -> Any:
    return stochastic(False, D, x, levels, z, **churn)


def heun(D: Any, x: Any, levels: Any, z: Any, **churn: float) -> Any:
    return stochastic(True, D, x, levels, z, **churn)


PRINTED: dict[str, Callable[..., Any]] = {
    "euler": euler, "heun": heun, "lms": lms, "dpmpp_2m": dpmpp_2m, "ddim": ddim, "ddpm": ddpm,
    "euler_ancestral": euler_ancestral, "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
}  # fmt: skip
LADDERS = {
    "to zero": [10.0, 3.0, 1.0, 0.3, 0.1, 0.0],
    "wide": [80.0, 57.6, 3.0, 2.9, 0.01, 0.002],
    "one step": [1.0, 0.5],
    "one step to zero": [0.5, 0.0],
}
ROUNDINGS = 16
"""Operations between one value of D and the next state, coefficients included."""


def law_run_is_the_printed_formula(
    sampler: testbed.Sampler, name: str, options: dict[str, Any], levels: list[float]
) -> None:
    """A run with D = x/(1 + sigma) + 1/4 is the paper's formula with 50 digits, noise included."""
    x = draws((3, 2), 1)
    noise = some_noise(x, 2 * len(levels))
    z = (exact(one) for one in noise)
    wanted = PRINTED[name](shrunk, exact(x), [exact(level) for level in levels], z, **options)
    bound = carried(sampler, shrunk, x, levels, noise, gamma(ROUNDINGS))
    assert float(bound.max()) < 1e-8, "the bound says nothing"
    assert_within(run(sampler, shrunk, x, levels, noise), wanted, 0, 1, plus=exact(bound))


STABILITY = {
    "lms": "lms_order4",
    "dpmpp_2m": "dpmpp_2m",
    "euler_ancestral": "euler_ancestral_eta1_noise0",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral_eta1_noise0",
}


def rounding_of(oracle: Mixture) -> Callable[[Tensor, float], float]:
    """Relative error of the oracle's D: some 30 operations, and u max|logit| of its softmax."""
    span, narrow = float(oracle.m.abs().max()), float(oracle.L.min())

    def unit(x: Tensor, sigma: float) -> float:
        logit = float(((x.abs() + span) ** 2).sum(1).max()) / (2 * (narrow + sigma**2))
        return gamma(30 + 2 * logit + ROUNDINGS)

    return unit


def law_end_is_stability(sampler: testbed.Sampler, entry: str) -> None:
    """18 steps of EDM's discretisation: the end points of Stability's sampler, noise replaced by 0.

    Both sides are within the rounding that the run carries.
    """
    oracle, levels = mixture(SGM), SGM["discretization"]["edm"]["18"]
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    none = 40 * [torch.zeros_like(x)]
    bound = carried(sampler, oracle.denoise, x, levels, none, rounding_of(oracle))
    assert float(bound.max()) < 1e-9, "the bound says nothing"
    found = run(sampler, oracle.denoise, x, levels, none)
    assert_within(found, np.array(SGM["sampler"]["edm"][entry]), 0, 1, plus=exact(2 * bound))


MEAN, L = float64([0.5, -1.0, 0.0]), float64([0.04, 1.0, 4.0])


def wiener(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0|x] for x0 ~ N(MEAN, diag L)."""
    return MEAN + L / (L + sigma.reshape(-1, 1) ** 2) * (x - MEAN)


def moments(sampler: testbed.Sampler, levels: list[float]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the end, (3,) each, for x ~ N(MEAN, L + sigma_0^2) at the start.

    Every step is affine in x and in the noise. So the run is x' = A x + b + sum_i C_i z_i, and its
    coefficients are read off a batch: no noise and x = 0, no noise and x = 1, then for each draw
    one sample in which it alone is 1. The moments are exact: nothing is drawn.
    """
    most = 2 * (len(levels) - 1)
    x = torch.zeros(2 + most, 3, dtype=torch.float64)
    x[1] = 1.0
    unit = torch.eye(2 + most, dtype=torch.float64)
    design = [unit[:, 2 + i : 3 + i].expand_as(x) for i in range(most)]
    end = run(sampler, wiener, x, levels, design)
    b, A, C = end[0], end[1] - end[0], end[2:] - end[0]
    return A * MEAN + b, A**2 * (L + levels[0] ** 2) + (C**2).sum(0)


def k(s: Any) -> Any:
    return L / (L + s**2)


def churn_of(s: float, N: int, o: dict[str, Any]) -> tuple[float, float]:
    """(sigma_hat, added variance)."""
    raised = s * (1 + min(o["churn"] / N, math.sqrt(2) - 1)) if o["s_min"] <= s <= o["s_max"] else s
    return raised, o["s_noise"] ** 2 * (raised**2 - s**2)


def gain_euler(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    s, more = churn_of(s, N, o)
    a = k(s) + t / s * (1 - k(s))
    return a, a**2 * more


def gain_heun(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    """The slope of x - m is s/(L + s^2)."""
    s, more = churn_of(s, N, o)
    a = 1 + (t - s) * s / (L + s**2)
    if t:
        a = 1 + (t - s) / 2 * (s / (L + s**2) + t / (L + t**2) * a)
    return a, a**2 * more


def gain_ancestral(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    up = o["eta"] ** 2 * t**2 * (1 - t**2 / s**2)
    return k(s) + math.sqrt(t**2 - up) / s * (1 - k(s)), up


def gain_ddpm(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    """beta~ and beta in VP coordinates, over alpha'^2 = 1/(1 + t^2)."""
    beta = 1 - (1 + t**2) / (1 + s**2)
    small = beta * (t**2 / (1 + t**2)) / (s**2 / (1 + s**2))
    added = (small if o["variance"] == "small" else beta) * (1 + t**2)
    return k(s) + (t / s) ** 2 * (1 - k(s)), added if t else 0.0


def gain_2s(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    if not t:
        return k(s), 0.0
    up = o["eta"] ** 2 * t**2 * (1 - t**2 / s**2)
    down = math.sqrt(t**2 - up)
    m = math.sqrt(s * down)
    middle = k(m) * (k(s) + m / s * (1 - k(s)))
    return middle + down / s * (1 - middle), up


def gain_sde(s: float, t: float, N: int, o: dict[str, Any]) -> Any:
    """z_1 acts twice: through D at the middle, and in the end's own noise."""
    if not t:
        return k(s), 0.0
    m = math.sqrt(s * t)
    (up_m, up) = (o["eta"] ** 2 * e**2 * (1 - e**2 / s**2) for e in (m, t))
    down_m, down = math.sqrt(m**2 - up_m), math.sqrt(t**2 - up)
    seen = (1 - down / s) * k(m)
    a = down / s + seen * (k(s) + down_m / s * (1 - k(s)))
    first = math.sqrt((s - m) / (s - t))
    return a, (seen * math.sqrt(up_m) + math.sqrt(up) * first) ** 2 + up * (1 - first**2)


GAINS: dict[str, Callable[..., Any]] = {
    "euler": gain_euler, "heun": gain_heun, "ddim": gain_ancestral, "ddpm": gain_ddpm,
    "euler_ancestral": gain_ancestral, "dpmpp_2s_ancestral": gain_2s, "dpmpp_sde": gain_sde,
}  # fmt: skip


def law_moments_follow_the_recursion(
    sampler: testbed.Sampler, name: str, levels: list[float]
) -> None:
    """On a Gaussian var' = a^2 var + u^2 and mean' - m = a (mean - m), a and u^2 in closed form."""
    variance, N = L + levels[0] ** 2, len(levels) - 1
    for s, t in pairwise(levels):
        a, more = GAINS[name](s, t, N, sampler.options)
        variance = a**2 * variance + more
    mean, found = moments(sampler, levels)
    # The mean starts at m and stays there. A coefficient is read off as a difference of ends of
    # size |m| + sigma_0, each with ROUNDINGS operations a call, at most two calls a step.
    size = MEAN.abs() + levels[0]
    off = gamma(2 * ROUNDINGS * N) * size
    assert_within(mean, exact(MEAN), exact(size), 2 * ROUNDINGS * N)
    noise = 2 * N + 1
    bound = 2 * off * torch.sqrt(noise * found) + noise * off**2
    assert_within(found, exact(variance), exact(variance), 4 * ROUNDINGS * N, plus=exact(bound))


def law_marginals_converge(sampler: testbed.Sampler, order: int) -> None:
    """The variance at the end tends to L + sigma^2 with this order in the number of steps.

    The measured order is an integer up to O(1/n): it rounds to `order`, and comes nearer.
    """
    low, high = 0.1, 10.0
    errors = []
    for n in (32, 64, 128, 256):
        levels = karras_sigmas(n + 1, low, high)[:-1].tolist()
        errors.append(float((moments(sampler, levels)[1] - (L + low**2)).abs().max()))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert round(measured[-1]) == order, measured
    distance = [abs(m - order) for m in measured]
    assert distance[0] > distance[1] > distance[2], measured
