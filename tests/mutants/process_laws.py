"""Mistakes in noise levels and in steps of samplers, each rejected by its law."""

import math
from collections.abc import Callable
from typing import Any

import torch
from helpers.strategies import fixed, float64
from laws import ddpm, schedules
from laws import noise_levels as noises
from laws import solvers as sampling
from mutants.registry import given, laws_of, rejected_by
from torch import Tensor

import testbed
from testbed import tensors
from testbed.diffusion import noise_levels
from testbed.registry import default_registry

# --- noise levels --------------------------------------------------------------------------------

LEVELS = laws_of("laws: noise levels", "borders, tables and discretisations of noise levels")


class ScoreDivided(noise_levels.NoiseSchedule):
    def score_to_ve(self, score: Tensor, t: Any) -> Tensor:
        alpha = tensors.per_sample(self.alpha(tensors.widen(t)), score)
        return score / alpha


class StateNotScaled(noise_levels.NoiseSchedule):
    def from_ve(self, x: Tensor, sigma: Any) -> tuple[Tensor, Tensor]:
        return x, self.time(tensors.widen(sigma))


def schedule(
    name: str, kind: type[noise_levels.NoiseSchedule] = noise_levels.NoiseSchedule, **wrong: Any
) -> Any:
    right = noises.SCHEDULES[name]
    fields = ("name", "alpha", "s", "time", "sigma_rate")
    return kind(**{field: wrong.get(field, getattr(right, field)) for field in fields})


rejected_by(
    LEVELS,
    given(noises.law_border_is_the_definition, "vp", 0.4),
    noise_levels.VP,
    vp_alpha_squared=schedule("vp", alpha=lambda t: noise_levels.VP.alpha(t) ** 2),
    vp_variance_for_s=schedule("vp", s=lambda t: noise_levels.VP.s(t) ** 2),
    vp_integral_without_half=noise_levels.vp(0.1, 39.9),
)
rejected_by(
    LEVELS,
    given(noises.law_border_goes_there_and_back, "cosine", fixed()),
    noise_levels.COSINE,
    cosine_time_in_radians=schedule("cosine", time=torch.atan),
    state_not_scaled=schedule("cosine", StateNotScaled),
)
rejected_by(
    LEVELS,
    given(noises.law_border_goes_there_and_back, "flow", fixed()),
    noise_levels.FLOW,
    flow_time_is_sigma=schedule("flow", time=lambda sigma: sigma / (1 + sigma**2)),
)
rejected_by(
    LEVELS,
    given(noises.law_rate_is_the_derivative, "flow", 0.4),
    noise_levels.FLOW,
    flow_rate_square_dropped=schedule("flow", sigma_rate=lambda t: 1 / (1 - t)),
)
rejected_by(
    LEVELS,
    given(noises.law_rate_is_the_derivative, "cosine", 0.4),
    noise_levels.COSINE,
    cosine_rate_chain_dropped=schedule(
        "cosine", sigma_rate=lambda t: 1 / torch.cos(math.pi / 2 * t) ** 2
    ),
)
rejected_by(
    LEVELS,
    given(noises.law_score_obeys_the_chain_rule, "vp", 0.4, 0),
    noise_levels.VP,
    score_divided_by_alpha=schedule("vp", ScoreDivided),
    score_by_s=schedule("vp", alpha=noise_levels.VP.s),
)


def one_minus_product(betas: Tensor) -> Tensor:
    abar = torch.cumprod(1 - betas, 0)
    return torch.sqrt((1 - abar) / abar)


def product_rooted(betas: Tensor) -> Tensor:
    abar = torch.cumprod(1 - betas, 0).sqrt()
    return torch.sqrt((1 - abar) / abar)


rejected_by(
    LEVELS,
    noises.law_first_step_keeps_its_digits,
    noise_levels.ddpm_sigmas,
    one_minus_abar=one_minus_product,
)
rejected_by(
    LEVELS,
    noises.law_table_is_the_product,
    noise_levels.ddpm_sigmas,
    abar_is_a_root=product_rooted,
    alpha_bar_starts_at_one=lambda betas: noise_levels.ddpm_sigmas(
        torch.cat([torch.zeros(1).double(), betas[:-1]])
    ),
)
rejected_by(
    LEVELS,
    given(noises.law_karras, 18),
    noise_levels.karras_sigmas,
    karras_over_n=lambda n: torch.cat([noise_levels.karras_sigmas(n + 1)[:-2], float64([0.0])]),
    karras_rho_five=lambda n: noise_levels.karras_sigmas(n, rho=5.0),
    karras_ascending=lambda n: torch.cat(
        [noise_levels.karras_sigmas(n)[:-1].flip(0), float64([0.0])]
    ),
)

rejected_by(LEVELS, ddpm.law_posterior, 0, a_step_later=1)


def stops(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *given: change(default_registry().schedule("karras")(*given))


rejected_by(
    LEVELS,
    given(schedules.law_ends_are_its_own, 5),
    default_registry().schedule("karras"),
    one_level_short=stops(lambda levels: levels[1:]),
    zero_left_out=stops(lambda levels: torch.cat([levels[:-1], levels[-2:-1] / 2])),
    ascending=stops(lambda levels: torch.cat([levels[:-1].flip(0), levels[-1:]])),
    above_the_top=stops(lambda levels: torch.cat([2 * levels[:1], levels[1:]])),
)


def uniform(change: Callable[[float], float] = lambda shift: shift) -> Callable[..., Tensor]:
    """Levels at equal steps of a time, with another shift."""

    def levels(n: int, low: float, high: float, time: str, shift: float) -> Tensor:
        return default_registry().schedule("uniform", time=time, shift=change(shift))(n, low, high)

    return levels


def multiplied(n: int, low: float, high: float, time: str, shift: float) -> Tensor:
    return shift * default_registry().schedule("uniform", time=time)(n, low, high)


rejected_by(
    LEVELS,
    schedules.law_shift_is_of_time,
    uniform(),
    shift_inverted=uniform(lambda shift: 1 / shift),
    shift_ignored=uniform(lambda shift: 1.0),
    shift_of_the_variance=uniform(math.sqrt),
    shift_leaves_the_range=multiplied,
)


def logarithmic(steps: int, low: float, high: float, over: int = 1, power: float = 1.0) -> Tensor:
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - over)
    levels = high * (low / high) ** (ramp**power)
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


rejected_by(
    LEVELS,
    schedules.law_exponential,
    default_registry().schedule("exponential"),
    exponential_over_n=lambda *given: logarithmic(*given, over=0),
    exponential_ramp_squared=lambda *given: logarithmic(*given, power=2.0),
    exponential_is_linear=lambda *given: default_registry().schedule("uniform")(*given),
)

# --- sampling ------------------------------------------------------------------------------------

SOLVERS = laws_of("laws: samplers", "steps, orders and trajectories of Euler and Heun")


def step(function: Callable[..., Tensor]) -> testbed.Sampler:
    """A sampler from a step without generator and history."""

    def full(
        denoise: Any, x: Tensor, sigma: float, sigma_next: float, generator: Any, history: Any
    ) -> Tensor:
        return function(denoise, x, sigma, sigma_next)

    return testbed.Sampler("wrong", full)


def heun(second: Callable[..., Tensor], average: bool = True) -> testbed.Sampler:
    """Heun's step with another second slope."""

    def function(denoise: Any, x: Tensor, s: float, t: float) -> Tensor:
        slope = (x - denoise(x, s)) / s
        end = x + (t - s) * slope
        if t == 0:
            return end
        there = second(denoise, x, end, s, t)
        return x + (t - s) * ((slope + there) / 2 if average else there)

    return step(function)


def right_second(denoise: Any, x: Tensor, end: Tensor, s: float, t: float) -> Tensor:
    return (end - denoise(end, t)) / t


EULER = {
    "euler_wrong_direction": step(lambda D, x, s, t: x - (t - s) * (x - D(x, s)) / s),
    "euler_half_score": step(lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (2 * s)),
    "euler_divides_by_the_next": step(lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (t or s)),
    "euler_moves_D": step(lambda D, x, s, t: D(x, s)),
    "euler_sigma_squared": step(lambda D, x, s, t: x + (t**2 - s**2) * (x - D(x, s)) / s**2),
}
HEUN = {
    "heun_without_average": heun(right_second, average=False),
    "heun_second_slope_at_x": heun(lambda D, x, end, s, t: (x - D(x, t)) / t),
    "heun_second_slope_at_sigma": heun(lambda D, x, end, s, t: (end - D(end, s)) / s),
    "heun_is_euler": heun(lambda D, x, end, s, t: (x - D(x, s)) / s),
}
rejected_by(SOLVERS, given(sampling.law_step_is_the_formula, "euler", 0.5, 1.0), "euler", **EULER)
rejected_by(SOLVERS, given(sampling.law_step_is_the_formula, "heun", 0.5, 1.0), "heun", **HEUN)
rejected_by(
    SOLVERS,
    given(sampling.law_converges_with_order, 2),
    "heun",
    **{f"order_of_{mistake}": sampler for mistake, sampler in HEUN.items()},
)
rejected_by(
    SOLVERS,
    given(sampling.law_converges_with_order, 1),
    "euler",
    order_of_half_score=EULER["euler_half_score"],
    order_of_wrong_direction=EULER["euler_wrong_direction"],
)


def heun_to_zero(denoise: Any, x: Tensor, s: float, t: float) -> Tensor:
    slope = (x - denoise(x, s)) / s
    end = x + (t - s) * slope
    return x + (t - s) * (slope + (end - denoise(end, t)) / max(t, 1e-9)) / 2


rejected_by(
    SOLVERS,
    sampling.law_denoiser_is_never_called_at_zero,
    "heun",
    heun_calls_at_zero=step(heun_to_zero),
    euler_calls_one_level_late=step(lambda D, x, s, t: x + (t - s) * (x - D(x, t)) / s),
)


def sampler_instead(wrong: testbed.Sampler) -> Callable[..., Tensor]:
    return lambda denoise, x, levels, sampler: testbed.sample(denoise, x, levels, sampler=wrong)


rejected_by(
    SOLVERS,
    given(sampling.law_trajectory_is_stability, "euler"),
    testbed.sample,
    stability_euler_is_heun=sampler_instead(default_registry().sampler("heun")),
)
rejected_by(
    SOLVERS,
    given(sampling.law_trajectory_is_stability, "heun"),
    testbed.sample,
    stability_heun_without_average=sampler_instead(HEUN["heun_without_average"]),
)
rejected_by(
    SOLVERS,
    sampling.law_euler_is_ddim,
    testbed.sample,
    ddim_is_heun=sampler_instead(default_registry().sampler("heun")),
    ddim_stops_before_zero=lambda denoise, x, levels, sampler: testbed.sample(
        denoise, x, levels[:-1], sampler=sampler
    ),
)
