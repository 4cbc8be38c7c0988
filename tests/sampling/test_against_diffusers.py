"""Samplers and schedules against diffusers' schedulers, to its float32.

Both sides take the same levels, the same exact denoiser and the same noise; a scheduler for the
variance preserving process has the state alpha x. Left out is its Euler with churn: it adds the
noise after the network has been asked, and so is not algorithm 2 of Karras et al. 2022.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import float64
from laws.samplers import carried, named, noises, run, some_noise
from laws.solvers import SGM, mixture
from torch import Tensor

from testbed.diffusion import noise_levels
from testbed.registry import default_registry

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed"),
    pytest.mark.slow,  # the import alone takes seconds
]

KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
WHOLE = {"clip_sample": False}


@dataclass(frozen=True)
class Same:
    """A scheduler and the sampler that it is, with the settings under which it is that."""

    module: str
    scheduler: str
    sampler: str
    loses: str = ""
    vp: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def built(self) -> Any:
        home = importlib.import_module(f"diffusers.schedulers.scheduling_{self.module}")
        return getattr(home, self.scheduler)(**self.settings)


EULER = ("euler_discrete", "EulerDiscreteScheduler", "euler")
DDIM = ("ddim", "DDIMScheduler", "ddim", "beta", True)
DDPM = ("ddpm", "DDPMScheduler", "ddpm", "beta", True)
TWO_M = ("dpmsolver_multistep", "DPMSolverMultistepScheduler", "dpmpp_2m", "lambda", True)
LMS = ("lms_discrete", "LMSDiscreteScheduler", "lms")
EULER_A = ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", "euler_ancestral")
SAME = {
    "Euler": Same(*EULER),
    "Euler, Karras": Same(*EULER, settings=KARRAS),
    "Heun": Same("heun_discrete", "HeunDiscreteScheduler", "heun"),
    "Heun, Karras": Same("heun_discrete", "HeunDiscreteScheduler", "heun", settings=KARRAS),
    "LMS": Same(*LMS),
    "LMS of order 2, Karras": Same(*LMS, "", False, KARRAS, {"order": 2}, {"order": 2}),
    "Euler ancestral": Same(*EULER_A),
    "DPM++ 2M": Same(*TWO_M),
    "DPM++ 2M, Karras": Same(*TWO_M, KARRAS),
    "DDIM": Same(*DDIM, WHOLE),
    "DDIM, eta 1/2": Same(*DDIM, WHOLE, {"eta": 0.5}, {"eta": 0.5}),
    "DDIM, eta 1": Same(*DDIM, WHOLE, {"eta": 1.0}, {"eta": 1.0}),
    "DDPM, small": Same(*DDPM, WHOLE),
    "DDPM, large": Same(
        *DDPM, {**WHOLE, "variance_type": "fixed_large"}, options={"variance": "large"}
    ),
}
STEPS = 20
ROUNDINGS = 16
"""Operations of a scheduler between the network's output and the next state."""


def levels_of(scheduler: Any, vp: bool) -> tuple[list[float], list[float]]:
    """Sigma at each call of the network, and at each state; from its own float32 numbers."""
    if vp and not hasattr(scheduler, "sigmas"):
        abar = scheduler.alphas_cumprod.double()[torch.as_tensor(scheduler.timesteps).long()]
        calls = torch.sqrt((1 - abar) / abar).tolist()
        return calls, [*calls, 0.0]
    sigmas = scheduler.sigmas.double().tolist()
    return sigmas[: len(scheduler.timesteps)], list(dict.fromkeys(sigmas))


def float32(levels: list[float], loses: str) -> Callable[[Tensor, float], float]:
    """The relative error of a scheduler's step from sigma, in float32.

    beta = 1 - abar/abar' has 1/beta times the error of its terms, the difference h of two
    lambda = -log sigma |lambda|/h times theirs; in the step to 0, abar' = 1, both are exact.
    """
    lost = dict.fromkeys(levels, 1.0)
    for s, t in pairwise(levels[:-1]):
        if loses == "beta":
            lost[s] = 1 / (1 - (1 + t**2) / (1 + s**2))
        elif loses == "lambda":
            lost[s] = max(1.0, abs(math.log(s)), abs(math.log(t))) / math.log(s / t)
    ladder = torch.tensor(levels, dtype=torch.float64)

    def unit(x: Tensor, sigma: float) -> float:
        """At a level between two, such as a midpoint, that of the one above."""
        above = float(ladder[ladder >= sigma * (1 - 2**-40)].min())
        return gamma(ROUNDINGS * lost[above], torch.float32)

    return unit


def followed(
    scheduler: Any, one: Same, denoise: Any, x: Tensor, calls: list[float], noise: list[Tensor]
) -> Tensor:
    """The scheduler's end, from the state x of the variance exploding process."""
    state = x / math.sqrt(1 + calls[0] ** 2) if one.vp else x
    with noises(noise):
        for sigma, t in zip(calls, scheduler.timesteps, strict=True):
            at = state * math.sqrt(1 + sigma**2) if one.vp else state
            D = denoise(at, torch.full((len(at),), sigma, dtype=torch.float64))
            scheduler.is_scale_input_called = True
            eps = (at - D) / sigma
            state = scheduler.step(eps, t, state, **one.step).prev_sample.double()
    return state


def law_end_is_diffusers(one: Same, sampler: Any) -> None:
    """The same end, within what rounding to float32 in every step carries."""
    oracle, scheduler = mixture(SGM), one.built()
    scheduler.set_timesteps(STEPS)
    calls, levels = levels_of(scheduler, one.vp)
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    noise = some_noise(x, 2 * STEPS)
    wanted = followed(scheduler, one, oracle.denoise, x, calls, noise)
    bound = carried(sampler, oracle.denoise, x, levels, noise, float32(levels, one.loses))
    found = run(sampler, oracle.denoise, x, levels, noise)
    assert float(bound.max()) < 0.003, "the bound says nothing"
    assert_within(found, exact(wanted), 0, 1, plus=exact(bound))


@pytest.mark.parametrize("one", SAME.values(), ids=SAME)
def test_end_is_diffusers(one: Same) -> None:
    law_end_is_diffusers(one, named(one.sampler, one.options))


def test_2s_without_noise_is_the_singlestep_solver() -> None:
    """Where every second level is the middle in log sigma, as on the exponential schedule."""
    one = Same(
        "dpmsolver_singlestep", "DPMSolverSinglestepScheduler", "dpmpp_2s_ancestral",
        "lambda", True, EXPONENTIAL, options={"eta": 0.0},
    )  # fmt: skip
    oracle, scheduler = mixture(SGM), one.built()
    scheduler.set_timesteps(STEPS + 1)
    calls, levels = levels_of(scheduler, True)
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    wanted = followed(scheduler, one, oracle.denoise, x, calls, [])
    pairs = [*levels[:-1:2], 0.0]
    sampler = named(one.sampler, one.options)
    bound = carried(sampler, oracle.denoise, x, pairs, [], float32(levels, one.loses))
    found = run(sampler, oracle.denoise, x, pairs, [])
    assert float(bound.max()) < 0.003, "the bound says nothing"
    assert_within(found, exact(wanted), 0, 1, plus=exact(bound))


def test_sde_is_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Brownian motion is drawn by a package that is not needed here: increments are given."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    one = Same("dpmsolver_sde", "DPMSolverSDEScheduler", "dpmpp_sde", "lambda", settings=KARRAS)
    oracle, scheduler = mixture(SGM), one.built()
    scheduler.set_timesteps(STEPS)
    levels = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    noise = some_noise(x, 2 * STEPS)
    pieces: list[tuple[float, float, Tensor]] = []
    for i, (s, t) in enumerate(pairwise(levels[:-1])):
        pieces += [(s, math.sqrt(s * t), noise[2 * i]), (math.sqrt(s * t), t, noise[2 * i + 1])]

    def increment(start: Any, end: Any) -> Tensor:
        """(W(end) - W(start))/sqrt(start - end) of the Brownian motion made of the pieces."""
        inside = [(a, b, z) for a, b, z in pieces if a <= start * 1.0001 and b >= end * 0.9999]
        parts = [math.sqrt(a - b) * z for a, b, z in inside]
        return torch.stack(parts).sum(0) / math.sqrt(sum(a - b for a, b, _ in inside))

    scheduler.noise_sampler = increment
    calls = []
    for s, t in pairwise(levels):
        calls += [s, math.sqrt(s * t)] if t else [s]
    wanted = followed(scheduler, one, oracle.denoise, x, calls, [])
    sampler = named("dpmpp_sde", {})
    bound = carried(sampler, oracle.denoise, x, levels, noise, float32(levels, one.loses))
    found = run(sampler, oracle.denoise, x, levels, noise)
    assert float(bound.max()) < 0.003, "the bound says nothing"
    assert_within(found, exact(wanted), 0, 1, plus=exact(bound))


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 7, 18, 50, 1000])
def test_a_ddpm_schedule_has_diffusers_levels(spacing: str, steps: int) -> None:
    """Its betas are float32, off by u/2 of the last, so that abar_t has (t + 1) (u beta + 2 u) and
    sigma half of that over 1 - abar."""
    scheduler = Same(*DDIM, {**WHOLE, "timestep_spacing": spacing}).built()
    scheduler.set_timesteps(steps)
    t = scheduler.timesteps.double()
    abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    wanted = torch.sqrt((1 - abar) / abar)
    found = default_registry().schedule("ddpm", spacing=spacing)(steps, 1e-6, 1e6)
    assert (len(found), float(found[-1])) == (steps + 1, 0.0)
    u = gamma(1, torch.float32)
    bound = wanted * 3 * u * (t + 1) / (2 * (1 - abar))
    assert_within(found[:-1], exact(wanted), 0, 1, plus=exact(bound))


@pytest.mark.parametrize("steps", [2, 7, 10, 50])
@pytest.mark.parametrize("offset", [1, 3])
def test_leading_with_an_offset_has_diffusers_indices(steps: int, offset: int) -> None:
    """Stable Diffusion 1 has steps_offset = 1; latent diffusion adds 1 in its own words."""
    scheduler = Same(*DDIM, {**WHOLE, "steps_offset": offset}).built()
    scheduler.set_timesteps(steps)
    wanted = [*scheduler.timesteps.tolist(), 0.0]
    counted = torch.arange(1000, dtype=torch.float64)
    assert noise_levels.table_sigmas(counted, steps, "leading", offset).tolist() == wanted
    if offset == 1:
        assert noise_levels.table_sigmas(counted, steps, "latent").tolist() == wanted


@pytest.mark.parametrize("steps", [2, 18])
def test_an_exponential_schedule_has_diffusers_levels(steps: int) -> None:
    """It forms exp(log sigma) in float32, whose error is that of log sigma, at most 5 u."""
    scheduler = Same(*EULER, settings=EXPONENTIAL).built()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    found = default_registry().schedule("exponential")(steps, float(sigmas[-2]), float(sigmas[0]))
    assert_within(found, exact(sigmas), exact(sigmas), 16, torch.float32)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 28])
def test_shifted_times_are_diffusers(steps: int, shift: float) -> None:
    """Stable Diffusion 3. Its float32 times t' have a rounding each, and as sigma = t'/(1 - t') one
    over 1 - t'; its first is 1, where sigma is infinite."""
    scheduler = Same("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", "euler",
                     settings={"shift": shift}).built()  # fmt: skip
    scheduler.set_timesteps(steps)
    t = scheduler.sigmas.double()[:-1]
    assert float(t[0]) == 1
    low = float(t[-1] / (1 - t[-1]))
    found = default_registry().schedule("uniform", time="flow", shift=shift)(
        steps, low, noise_levels.TERMINAL
    )[:-1]
    moved = found / (1 + found)
    assert_within(moved, exact(t), exact(t), 8, torch.float32)


@pytest.mark.parametrize("steps", [2, 18])
def test_a_karras_schedule_has_diffusers_levels(steps: int) -> None:
    scheduler = Same(*EULER, settings=KARRAS).built()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    found = default_registry().schedule("karras")(steps, float(sigmas[-2]), float(sigmas[0]))
    # Its ends are rounded to float32 before or after; sigma^(1/7) in float64.
    assert_within(found, exact(sigmas), exact(sigmas), 4, torch.float32)


def test_nothing_here_needs_torchvision() -> None:
    assert "torchvision" not in sys.modules
