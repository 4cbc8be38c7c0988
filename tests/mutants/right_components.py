"""Unusual components that are right: no check may reject them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import testbed
from testbed.components.base import Component
from testbed.components.guidance import Condition, Conditional, Denoise, LogClasses
from testbed.diffusion.noise_levels import ddpm_sigmas, linear_betas
from testbed.sampling.guidance_methods import ClassifierFreeGuidance

RIGHT: dict[str, Component] = {}


def affine(
    mistake_free: str,
    scaling: Callable[..., tuple[Tensor, Tensor]],
    target: Callable[..., Tensor] | None = None,
    **more: Any,
) -> None:
    """Enters a parameterization given by (c_skip, c_out)."""

    def whole(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
        skip, out = scaling(sigma, sigma_data)
        return testbed.Coefficients(skip, out, 1 / torch.sqrt(sigma**2 + sigma_data**2), sigma)

    RIGHT[mistake_free] = testbed.Parameterization(
        "right", whole, target=target, reference="a check of the checks", **more
    )


def r2(sigma: Tensor, sd: float) -> Tensor:
    return sigma**2 + sd**2


EDM_CLAIMS = ("unit_target", "unit_input", "homogeneous", "boundary")

affine(
    "EDM, target derived",
    lambda s, sd: (sd**2 / r2(s, sd), s * sd / r2(s, sd).sqrt()),
    claims=EDM_CLAIMS,
)
affine(
    "EDM, 1 - c_skip first",
    lambda s, sd: (1 - s**2 / r2(s, sd), s * sd / r2(s, sd).sqrt()),
    claims=EDM_CLAIMS,
)
affine(
    "EDM by angles",
    lambda s, sd: (torch.cos(torch.atan(s / sd)) ** 2, sd * torch.sin(torch.atan(s / sd))),
    lambda x0, eps, sigma, sigma_data: (
        torch.sin(torch.atan(sigma / sigma_data)) * x0 / sigma_data
        - torch.cos(torch.atan(sigma / sigma_data)) * eps
    ),
    claims=EDM_CLAIMS,
)
affine(
    "flow by a sigmoid",
    lambda s, sd: (torch.sigmoid(-s.log()), torch.sigmoid(s.log())),
    lambda x0, eps, sigma: x0 - eps,
    claims=("boundary",),
)
affine(
    "noise of data's size",
    lambda s, sd: (1 + 0 * s, -s / sd),
    lambda x0, eps, sigma, sigma_data: sigma_data * eps,
    singular=(math.inf,),
    claims=("boundary",),
)
affine(
    "x0 of data's size, derived",
    lambda s, sd: (0 * s, sd + 0 * s),
    claims=("unit_target", "unit_input", "homogeneous"),
)
affine(
    "v, hard-wired to sigma_data = 1",
    lambda s, sd: (1 / (1 + s**2), -s / (1 + s**2).sqrt()),
    sigma_data=1.0,
    claims=("unit_target", "unit_input", "boundary"),
)
affine(
    "a narrow range",
    lambda s, sd: (1 / (1 + s**2), -s / (1 + s**2).sqrt()),
    sigma_range=(0.002, 80.0),
)
affine(
    "large sigma only",
    lambda s, sd: (1 / (1 + s**2), -s / (1 + s**2).sqrt()),
    sigma_range=(1e5, math.inf),
)
affine(
    "noise in another unit",
    lambda s, sd: (1 + 0 * s, -s * s.pow(0.25)),
    lambda x0, eps, sigma: eps / sigma**0.25,
    singular=(0.0, math.inf),
    claims=("boundary",),
)

TABLE = ddpm_sigmas(linear_betas())


def indexed(sigma: Tensor) -> testbed.Coefficients:
    """eps with the index of the nearest level as c_noise."""
    table = TABLE.to(sigma.device, sigma.dtype)
    index = torch.searchsorted(table, sigma.contiguous()).clamp(max=999).to(sigma)
    return testbed.Coefficients(1 + 0 * sigma, -sigma, 1 / torch.sqrt(1 + sigma**2), index)


RIGHT["an index as c_noise"] = testbed.Parameterization(
    "right",
    indexed,
    target=lambda x0, eps, sigma: eps,
    noise_kind="index",
    reference="Ho et al. 2020",
    singular=(math.inf,),
    sigma_range=(0.01, 157.0),
)


def plain(name: str, target: Callable[..., Tensor], denoise: Callable[..., Tensor]) -> None:
    RIGHT[name] = testbed.Parameterization(
        "right", target=target, denoise=denoise, reference="a check of the checks"
    )


plain(
    "not affine: asinh of the data",
    lambda x0, eps, sigma, sigma_data: torch.asinh(x0 / sigma_data),
    lambda F, x, sigma, sigma_data: sigma_data * torch.sinh(F),
)
plain(
    "not affine: a cube of the noise",
    lambda x0, eps, sigma: eps + eps**3,
    lambda F, x, sigma: (
        x - sigma * (2 / math.sqrt(3) * torch.sinh(torch.asinh(3 * math.sqrt(3) / 2 * F) / 3))
    ),
)
plain(
    "not affine: v by target and denoise",
    lambda x0, eps, sigma: (eps - sigma * x0) / torch.sqrt(1 + sigma**2),
    lambda F, x, sigma: (x - sigma * torch.sqrt(1 + sigma**2) * F) / (1 + sigma**2),
)


def flipped(eps: Tensor) -> Tensor:
    return eps.flip(-1)


plain(
    "not elementwise: the last axis reversed",
    lambda x0, eps, sigma: flipped(eps) if eps.ndim > 1 else eps,
    lambda F, x, sigma: x - sigma * (flipped(F) if x.ndim > 1 else F),
)

RIGHT["pinball of a half, without a claim"] = testbed.Loss("right", lambda a, b: (a - b).abs() / 2)
RIGHT["a Bregman divergence claims the mean"] = testbed.Loss(
    "right",
    # Of the convex log cosh: b log cosh is what it costs to say a where b is true.
    lambda a, b: (
        (
            (torch.nn.functional.softplus(2 * b) - b)
            - (torch.nn.functional.softplus(2 * a) - a)
            - torch.tanh(a) * (b - a)
        ).clamp(min=0)
        + (a - b) ** 2
    ),
    elicits_mean=True,
)


class Running(nn.Module):
    """A running mean of the squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones((), dtype=torch.float64))


def running(a: Tensor, b: Tensor, state: Running) -> Tensor:
    with torch.no_grad():
        state.mean.mul_(0.9).add_(0.1 * (a - b).double().square().mean())
    return (a - b) ** 2 / state.mean.detach()


RIGHT["a loss divided by its running mean"] = testbed.Loss("right", running, state=Running)


def at_levels(u: Tensor) -> Tensor:
    table = torch.logspace(-2, 1, 40, dtype=torch.float64)
    return table[(u * 40).long().clamp(0, 39)]


def mass_of_levels(sigma: Tensor) -> Tensor:
    step = 3 * math.log(10) / 39
    low, high = math.log(1e-2) - step / 2, math.log(10) + step / 2
    y = torch.log(sigma)
    return ((y >= low) & (y < high)).to(sigma) / (40 * step)


RIGHT["a coarse table"] = testbed.Density("right", at_levels, mass_of_levels)
RIGHT["two bumps"] = testbed.Density(
    "right",
    lambda u: torch.where(u < 0.5, 0.1 * (2 * u).clamp(1e-12, 1), 1 + 9 * (2 * u - 1)),
    lambda sigma: (
        0.5
        * (((sigma > 0) & (sigma < 0.1)) * sigma / 0.1 + ((sigma > 1) & (sigma < 10)) * sigma / 9)
    ),
)


def churn(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, history: Any) -> Any:
    """An ancestral step: as much noise as a posterior draw has."""
    D = denoise(x, sigma)
    up = sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
    down = sigma_next**2 / sigma
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return D + down / sigma * (x - D) + up * z


def adams(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, history: Any) -> Any:
    """Second order in log sigma with one evaluation a step (DPM-Solver++(2M), Lu et al. 2022)."""
    D = denoise(x, sigma)
    last, history[:] = list(history), [(D, sigma)]
    if not last or sigma_next == 0:
        return D + sigma_next / sigma * (x - D)
    before, previous = last[0]
    ratio = math.log(previous / sigma) / math.log(sigma / sigma_next)
    D = D + (D - before) / (2 * ratio)
    return D + sigma_next / sigma * (x - D)


RIGHT["an ancestral sampler"] = testbed.Sampler("right", churn, deterministic=False)
RIGHT["a multistep sampler"] = testbed.Sampler("right", adams)
RIGHT["the exact solution of no ODE step"] = testbed.Sampler(
    "right",
    lambda denoise, x, sigma, sigma_next, generator, history: (
        (D := denoise(x, sigma)) + sigma_next / sigma * (x - D)
    ),
)


TEN = torch.tensor([14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113]).double()


def aligned(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Ten printed levels, and between them by log sigma, within the range (Sabour et al. 2024)."""
    y = TEN.log().clamp(math.log(sigma_min), math.log(sigma_max)).unique()
    if steps == 1:
        return torch.stack([y[-1].exp(), y.new_zeros(())])
    at = torch.linspace(len(y) - 1, 0, steps, dtype=torch.float64)
    low = at.floor().clamp(max=len(y) - 2).long()
    between = torch.lerp(y[low], y[low + 1], at - low)
    return torch.cat([between.exp(), y.new_zeros(1)])


def few(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Seven steps at most, and it says so."""
    if steps > 7:
        raise ValueError(f"steps = {steps}: there are 7.")
    y = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([y.exp().clamp(sigma_min, sigma_max), y.new_zeros(1)])


RIGHT["ten printed levels, below sigma_max"] = testbed.Schedule("right", aligned)
RIGHT["no more than seven steps"] = testbed.Schedule("right", few)
RIGHT["a table of two levels"] = testbed.NoiseTable(
    "right", lambda: torch.tensor([0.1, 20.0], dtype=torch.float64)
)
RIGHT["a table up to sigma = 1e4"] = testbed.NoiseTable(
    "right", lambda: torch.logspace(-3, 4, 64, dtype=torch.float64)
)

RIGHT["a recipe in units of sigma_data"] = testbed.Recipe(
    "right",
    parameterization="score",
    table={"name": "geometric", "n": 20, "low": "0.01 * sigma_data", "high": "100 * sigma_data"},
    density="table",
    loss="score",
    c_noise="index",
    reference="right on purpose",
)
RIGHT["a recipe with a learned weight"] = testbed.Recipe(
    "right",
    parameterization="x0",
    density="logit_normal",
    weighting="edm2",
    c_in="vp",
    output="-eps",
    reference="right on purpose",
)
Axis = Literal["rows", "columns", "all"]


def along(shape: tuple[int, ...], axis: Axis = "rows") -> tuple[int, ...]:
    """One number a row, a column or a sample."""
    if len(shape) == 1 or axis == "all":
        return (1,) * len(shape)
    return (*shape[:-1], 1) if axis == "rows" else (*shape[:-2], 1, shape[-1])


RIGHT["z of a row or a column"] = testbed.Noise("right", along)
RIGHT["z of a row, not in the target"] = testbed.Noise("right", along, in_target=False)


@dataclass(frozen=True)
class Interval(ClassifierFreeGuidance):
    """Guidance between two levels alone (Kynkäänniemi et al. 2024)."""

    scale: float = 3.0
    low: float = 0.2
    high: float = 5.0

    def denoiser(
        self, denoiser: Conditional, log_classes: LogClasses | None, condition: Condition
    ) -> Denoise:
        guided = super().denoiser(denoiser, log_classes, condition)

        def within(x: Tensor, sigma: Tensor) -> Tensor:
            inside = ((self.low <= sigma) & (sigma <= self.high)).expand(len(x))
            inside = inside.reshape(-1, *[1] * (x.ndim - 1))
            return torch.where(inside, guided(x, sigma), denoiser(x, sigma, condition))

        return within


RIGHT["guidance between two levels"] = testbed.Guidance(
    "right", Interval, claims=("conditional_at_one",)
)
RIGHT["guidance that calls its scale otherwise"] = testbed.Guidance(
    "right", lambda w=2.0: ClassifierFreeGuidance(w)
)
