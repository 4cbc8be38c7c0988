"""Likelihood of a denoiser: the density that its probability-flow ODE carries to a noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from testbed.components.guidance import Denoise
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, unknown
from testbed.sampling.loop import StepDenoiser
from testbed.sampling.solvers import heun

LogDensity = Callable[[Tensor, float], Tensor]

DIVERGENCES = ("exact", "hutchinson")
ROWS = 4096
"""Samples times directions of one reverse pass at most, which bounds its memory."""
ROUNDING = 2.0**-40
"""Relative error granted to a level: far above a rounding, far below what two levels differ by."""


class Likelihood(NamedTuple):
    """Each sample's log p and the standard error of its divergence, in nats, (B,) float64.

    The error is 0 for the exact divergence, and nan for a single probe.
    """

    log_p: Tensor
    error: Tensor


def log_likelihood(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    prior: LogDensity | None = None,
    *,
    sigma_data: float | None = None,
    divergence: str = "exact",
    probes: int = 1,
    generator: Generator | None = None,
) -> Likelihood:
    """log p(x) at sigmas[0] by the probability-flow ODE, in nats (Song et al. 2021, eq. 39).

        dx/dsigma = (x - D)/sigma,   dlog p/dlog sigma = -(d - tr dD/dx)
        log p(x_0) = log p(x_n) + int (d - tr dD/dx) dlog sigma

    x goes by Heun's step in sigma, which is exact where D is constant and where D is the nearest
    point of a plane; the trace, taken at the levels, by the trapezoid rule in log sigma, over which
    d - tr dD/dx is smooth, and constant for large sigma and for data in a plane. Both are of second
    order.

    Args:
        denoiser: Any callable (x, sigma) -> x0, x (B, ...), sigma (B,) float64, that treats samples
            one by one and lets autograd pass. It gets x in the dtype of x; all else is float64.
            One with a table answers for the nearest level, and its ODE is that of the answer.
        x: The points at noise level sigmas[0], (B, ...).
        sigmas: (n + 1,) noise levels that ascend strictly from above 0; see `levels`.
        prior: The log density at the last level, called as `prior(x, sigma)`, (B,) nats; by default
            that of N(0, (sigma^2 + sigma_data^2) I), from which samples are drawn.
        sigma_data: The default prior's; it is that of the denoiser where that has one.
        divergence: "exact" takes d reverse passes a level; "hutchinson" the mean over `probes` of
            v^T (dD/dx) v, v = +-1 with equal chance (Hutchinson 1990), the same v at every level
            (Grathwohl et al. 2019, sec. 3.1), which has no bias.
        probes: The number of v for each sample; their spread gives the error.
        generator: The source of v.

    Raises:
        InputError: The levels do not ascend, the divergence is unknown, there are no probes or no
            generator for them, no sigma_data for the default prior, or autograd finds no x in D.
    """
    levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64)]
    ascending = len(levels) > 1 and all(a < b for a, b in pairwise(levels))
    if not ascending or not levels[0] > 0 or levels[-1] == math.inf:
        raise InputError(
            "sigmas must be two or more levels that ascend strictly from above 0 to a finite one, "
            f"got {len(levels)}, from {levels[:1]} to {levels[-1:]}."
        )
    if prior is None:
        prior = _prior(sigma_data or getattr(denoiser, "sigma_data", None))
    V = _probes(divergence, probes, x, generator)

    D = StepDenoiser(denoiser, torch.float64)

    def denoise(y: Tensor, sigma: float) -> Tensor:
        with torch.no_grad():
            return D(y.to(x.dtype), sigma).double()

    y, d = x.detach().double(), x[0].numel()
    rate = d - traces(D, y.to(x.dtype), levels[0], V)
    gained = torch.zeros_like(rate)
    for sigma, sigma_next in pairwise(levels):
        y = heun(denoise, y, sigma, sigma_next, None, [], len(levels) - 1)
        before, rate = rate, d - traces(D, y.to(x.dtype), sigma_next, V)
        gained += math.log(sigma_next / sigma) * (before + rate) / 2
    log_p, k = prior(y, levels[-1]).double() + gained.mean(0), len(gained)
    if V is None:
        return Likelihood(log_p, torch.zeros_like(log_p))
    error = gained.std(0) / math.sqrt(k) if k > 1 else torch.full_like(log_p, math.nan)
    return Likelihood(log_p, error)


def _prior(sigma_data: float | None) -> LogDensity:
    if sigma_data is None:
        raise InputError("the default prior needs sigma_data = ..., or give prior = ....")
    return lambda x, sigma: normal_log_density(x, sigma**2 + sigma_data**2)


def _probes(divergence: str, probes: int, x: Tensor, generator: Generator | None) -> Tensor | None:
    if divergence not in DIVERGENCES:
        raise InputError(unknown("divergence", divergence, DIVERGENCES))
    if divergence == "exact":
        return None
    if probes < 1 or generator is None:
        raise InputError(
            f"divergence 'hutchinson' with probes = {probes!r} and generator = {generator!r}: "
            "expected at least 1 and a torch.Generator."
        )
    return rademacher(probes, x, generator)


def traces(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, V: Tensor | None
) -> Tensor:
    """Returns tr dD/dx, (1, B), or v^T (dD/dx) v of each probe of V (K, B, ...), (K, B); float64.

    Raises:
        InputError: D has no gradient with respect to x.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        D = denoise(x, sigma)
    if not D.requires_grad:
        raise InputError(
            "the denoiser's D has no gradient with respect to x: it detaches x, or runs under "
            "torch.no_grad()."
        )
    forms = []
    for v in _directions(x) if V is None else torch.split(V, max(1, ROWS // len(x))):
        (pulled,) = torch.autograd.grad(D, x, v, retain_graph=True, is_grads_batched=True)
        forms.append((v.double() * pulled.double()).flatten(2).sum(2))
    quadratic = torch.cat(forms)
    return quadratic.sum(0, keepdim=True) if V is None else quadratic


def _directions(x: Tensor) -> Iterator[Tensor]:
    """The unit vectors of a sample's d dimensions, for every sample: (k, B, ...), in blocks."""
    d = x[0].numel()
    for block in torch.split(torch.arange(d, device=x.device), max(1, ROWS // len(x))):
        e = torch.nn.functional.one_hot(block, d).to(x.dtype)
        yield e.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


def rademacher(k: int, x: Tensor, generator: Generator) -> Tensor:
    """Draws k probes +-1 for each sample of x (B, ...), on the generator's device: (k, B, ...)."""
    v = torch.randint(2, (k, *x.shape), generator=generator, device=generator.device)
    return (2 * v - 1).to(x.device, x.dtype)


def normal_log_density(x: Tensor, variance: float) -> Tensor:
    """Returns log N(x; 0, variance I) = -(|x|^2/variance + d log(2 pi variance))/2, (B,)."""
    d = x[0].numel()
    return -(x.flatten(1).square().sum(1) / variance + d * math.log(2 * math.pi * variance)) / 2


def bits_per_dim(log_p: Tensor, d: int, quantum: float) -> Tensor:
    """Returns (-log p - d log quantum)/(d log 2), shaped like log_p, which is in nats.

    log p is the density at x0 + quantum (u - 1/2), u uniform on [0, 1)^d, of values of spacing
    `quantum`. The mean over u is not below the bits that the model's mass of the cell around x0
    takes, by Jensen's inequality (Theis et al. 2016, arXiv:1511.01844, sec. 3.1).

    Raises:
        InputError: The quantum is not positive and finite.
    """
    if not 0 < quantum < math.inf:
        raise InputError(f"quantum = {quantum!r} must be positive and finite.")
    return (-log_p - d * math.log(quantum)) / (d * math.log(2))


def levels(
    steps: int, sigma_min: float, sigma_max: float, table: NoiseTable | None = None
) -> Tensor:
    """Returns steps + 1 levels from sigma_min to sigma_max, equally spaced in log sigma; float64.

    With a table, these are the levels of it within the range that are nearest to the spaced ones,
    each once: a discrete denoiser is then never called between its levels.

    Raises:
        InputError: The table has fewer than two levels there.
    """
    ends = math.log10(sigma_min), math.log10(sigma_max)
    spaced = torch.logspace(*ends, steps + 1, dtype=torch.float64)
    if table is None:
        return spaced
    # A level that was computed to lie on an end may have been rounded past it.
    low, high = (1 - ROUNDING) * sigma_min, (1 + ROUNDING) * sigma_max
    nearest = sorted({s for s in table.quantised(spaced).tolist() if low <= s <= high})
    if len(nearest) < 2:
        raise InputError(
            f"{table.label} has {len(nearest)} levels from {sigma_min:g} to {sigma_max:g}: a "
            "likelihood needs two."
        )
    return torch.tensor(nearest, dtype=torch.float64)
