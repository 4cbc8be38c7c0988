"""Mistakes in the steps of samplers, and in the levels they stop at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from laws import samplers, schedules
from laws import solvers as sampling
from mutants.registry import (
    FAMILIES,
    REGISTRY,
    STEPS,
    Family,
    broken,
    kit,
    tests,
    wrong,
)
from torch import Tensor

import testbed
from testbed.audit import reference, trajectories
from testbed.audit.subject import ParameterizedDenoiser
from testbed.diffusion import noise_levels


@dataclass(frozen=True)
class Sampled:
    """A sampler that ought to be of this order, and the method of this name."""

    sampler: testbed.Sampler
    order: int
    name: str


def of_sampler(subject: Sampled) -> set[str]:
    v = ParameterizedDenoiser(REGISTRY.parameterization("v"), 0.5)
    found = trajectories.check(v, reference.mixture(), [subject.sampler], STEPS)
    found += trajectories.check_flow(v, reference.gaussian(), [subject.sampler])
    known = {
        "converges_with_order": lambda: sampling.law_converges_with_order(
            subject.sampler, subject.order
        ),
    }
    if subject.name in ("euler", "heun"):
        known["denoiser_is_never_called_at_zero"] = lambda: (
            sampling.law_denoiser_is_never_called_at_zero(subject.sampler)
        )
        known["step_is_the_formula"] = lambda: sampling.law_step_is_the_formula(
            subject.sampler, subject.name, 0.5, 1.0
        )
    return broken(found) | kit(subject.sampler) | tests(**known)


def step(function: Callable[..., Tensor]) -> testbed.Sampler:
    """A sampler from `function(D, x, sigma, sigma_next)`."""

    def full(
        denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, history: Any
    ) -> Any:
        return function(denoise, x, sigma, sigma_next)

    return testbed.Sampler("wrong", full)


def slope(D: Any, x: Tensor, s: float) -> Tensor:
    return (x - D(x, s)) / s


def euler_step(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return x + (t - s) * slope(D, x, s)


def midpoint(level: Callable[[float, float], float]) -> testbed.Sampler:
    """Half an Euler step, then a whole one by the slope there, at `level(sigma, sigma_next)`."""

    def function(D: Any, x: Tensor, s: float, t: float) -> Tensor:
        if t == 0:
            return euler_step(D, x, s, t)
        half = euler_step(D, x, s, (s + t) / 2)
        return x + (t - s) * slope(D, half, level(s, t))

    return step(function)


def heun(second: Callable[..., Tensor], weight: float = 0.5) -> testbed.Sampler:
    """Heun's step with another second slope, or another weight of it."""

    def function(D: Any, x: Tensor, s: float, t: float) -> Tensor:
        end = euler_step(D, x, s, t)
        if t == 0:
            return end
        slopes = (1 - weight) * slope(D, x, s) + weight * second(D, x, end, s, t)
        return x + (t - s) * slopes

    return step(function)


def at_the_end(D: Any, x: Tensor, end: Tensor, s: float, t: float) -> Tensor:
    return slope(D, end, t)


def heun_to_zero(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    end = euler_step(D, x, s, t)
    return x + (t - s) * (slope(D, x, s) + (end - D(end, t)) / max(t, 1e-9)) / 2


def noisy_euler(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return euler_step(D, x, s, t) + 0 * torch.randn(x.shape, dtype=x.dtype)


def euler_in_place(D: Any, x: Tensor, s: float, t: float) -> Tensor:
    return x.add_((t - s) * slope(D, x, s))


FAMILIES["sampler"] = Family(
    "one step of a solver of dx/dsigma = (x - D)/sigma",
    of_sampler,
    {
        "euler": Sampled(REGISTRY.sampler("euler"), 1, "euler"),
        "heun": Sampled(REGISTRY.sampler("heun"), 2, "heun"),
        # Of third order on a Gaussian, where x'''/24 and (df/dx) x''/8 cancel.
        "midpoint": Sampled(midpoint(lambda s, t: (s + t) / 2), 3, "midpoint"),
    },
)


def euler(mistake: str, function: Callable[..., Tensor], meant: str, *also: str) -> None:
    wrong("sampler", mistake, Sampled(step(function), 1, "euler"), meant, *also)


def second_order(mistake: str, sampler: testbed.Sampler, name: str, meant: str, *also: str) -> None:
    order = FAMILIES["sampler"].right[name].order
    wrong("sampler", mistake, Sampled(sampler, order, name), meant, *also)


euler(
    "Euler: sigma' - sigma of the other sign",
    lambda D, x, s, t: x - (t - s) * slope(D, x, s),
    "sampler.order",
    "sampling.flow",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler(
    "Euler: half the score",
    lambda D, x, s, t: x + (t - s) * slope(D, x, s) / 2,
    "sampler.order",
    "sampling.flow",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler(
    "Euler: divided by the next sigma",
    lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (t or s),
    "sampler.data_point",
    "tests.step_is_the_formula",
)
euler(
    "Euler: steps in sigma^2",
    lambda D, x, s, t: x + (t**2 - s**2) * slope(D, x, s) / s,
    "sampler.order",
    "sampling.flow",
    "sampler.data_point tests.converges_with_order tests.step_is_the_formula",
)
euler(
    "Euler: x overwritten",
    euler_in_place,
    "sampler.pure",
    "sampling.flow",
    "tests.converges_with_order",
)
euler("Euler: a draw from the global random state", noisy_euler, "sampler.pure")
second_order(
    "Heun: the second slope for the average",
    heun(at_the_end, 1.0),
    "heun",
    "tests.converges_with_order",
    "tests.step_is_the_formula",
)
second_order(
    "Heun: a wrong average, 1/3 and 2/3",
    heun(at_the_end, 2 / 3),
    "heun",
    "tests.converges_with_order",
    "tests.step_is_the_formula",
)
second_order(
    "Heun: the second slope at x",
    heun(lambda D, x, end, s, t: slope(D, x, t)),
    "heun",
    "tests.converges_with_order",
    "sampler.data_point tests.step_is_the_formula",
)
second_order(
    "Heun: the second slope at the first sigma",
    heun(lambda D, x, end, s, t: slope(D, end, s)),
    "heun",
    "tests.converges_with_order",
    "sampler.data_point tests.step_is_the_formula",
)
second_order(
    "Heun: calls the denoiser at zero",
    step(heun_to_zero),
    "heun",
    "sampler.levels",
    "sampler.data_point tests.denoiser_is_never_called_at_zero",
)
second_order(
    "midpoint: the second slope at the first sigma",
    midpoint(lambda s, t: s),
    "midpoint",
    "tests.converges_with_order",
    "sampler.data_point",
)
second_order(
    "midpoint: the second slope at the last sigma",
    midpoint(lambda s, t: t),
    "midpoint",
    "tests.converges_with_order",
    "sampler.data_point",
)


# --- samplers with a memory, and samplers that draw -----------------------------------------------


@dataclass(frozen=True)
class Named:
    """A sampler that ought to be the one of this name, with marginals of this order."""

    sampler: testbed.Sampler
    name: str
    order: int


def of_named(subject: Named) -> set[str]:
    sampler, name, levels = subject.sampler, subject.name, samplers.LADDERS["to zero"]
    v = ParameterizedDenoiser(REGISTRY.parameterization("v"), 0.5)
    found = trajectories.check(v, reference.mixture(), [sampler], STEPS)
    known = {
        "run_is_the_printed_formula": lambda: samplers.law_run_is_the_printed_formula(
            sampler, name, sampler.options, levels
        ),
        "marginals_converge": lambda: samplers.law_marginals_converge(sampler, subject.order),
    }
    if name in samplers.STABILITY:
        known["end_is_stability"] = lambda: samplers.law_end_is_stability(
            sampler, samplers.STABILITY[name]
        )
    if name in samplers.GAINS:
        known["moments_follow_the_recursion"] = lambda: samplers.law_moments_follow_the_recursion(
            sampler, name, levels
        )
    return broken(found) | kit(sampler) | tests(**known)


ORDER = {"lms": 2, "dpmpp_2m": 2, "heun": 2, "dpmpp_2s_ancestral": 2, "dpmpp_sde": 2}
CHURNED = {"churn": 3.0, "s_min": 0.0, "s_max": 50.0, "s_noise": 1.1}
FAMILIES["named sampler"] = Family(
    "a whole run of a sampler that looks back or draws noise",
    of_named,
    {
        name: Named(REGISTRY.sampler(name), name, ORDER.get(name, 1))
        for name in ("lms", "dpmpp_2m", "ddim", "euler_ancestral", "ddpm", "dpmpp_2s_ancestral",
                     "dpmpp_sde")
    },
)  # fmt: skip


def like(name: str, step: Callable[..., Tensor]) -> Named:
    """A sampler with the options and the name of the right one."""
    right = REGISTRY.sampler(name)
    found = testbed.Sampler(
        name, step, right.deterministic and not right.noise, noise=right.noise
    ).bound({})
    return Named(found, name, ORDER.get(name, 1))


def named(name: str, mistake: str, step: Callable[..., Tensor], meant: str, *also: str) -> None:
    wrong("named sampler", f"{name}: {mistake}", like(name, step), meant, *also)


FORMULA, ENDS = "tests.run_is_the_printed_formula", "tests.end_is_stability"
MOMENTS = f"{FORMULA} tests.moments_follow_the_recursion tests.marginals_converge"


def z(x: Tensor, generator: Any) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def up_of(s: float, t: float, eta: float) -> float:
    return eta * t * math.sqrt(1 - (t / s) ** 2)


def stepping(
    to: Callable[[float, float, float], float], added: Callable[[float, float, float], float]
) -> Callable[..., Tensor]:
    """Euler to `to(s, t, up)`, and noise of the size `added(s, t, up)`."""

    def step(
        D: Any, x: Tensor, s: float, t: float, generator: Any, history: Any, eta: float = 1.0
    ) -> Tensor:
        up = up_of(s, t, eta)
        now = D(x, s)
        end = now + to(s, t, up) / s * (x - now)
        size = added(s, t, up)
        return end + size * z(x, generator) if size else end

    return step


def down_of(s: float, t: float, up: float) -> float:
    return math.sqrt(max(0.0, t**2 - up**2))


named(
    "euler_ancestral",
    "steps to sigma' and adds the noise on top",
    stepping(lambda s, t, up: t, lambda s, t, up: up),
    "sampler.marginal",
    MOMENTS,
    ENDS,
    "sampler.values",
)
named(
    "euler_ancestral",
    "down and up exchanged",
    stepping(lambda s, t, up: up or t, lambda s, t, up: down_of(s, t, up) if up else 0.0),
    "sampler.marginal",
    MOMENTS,
    ENDS,
    "sampler.values sampler.generator",
)
named(
    "euler_ancestral",
    "sigma' - up for the root of the difference of squares",
    stepping(lambda s, t, up: t - up, lambda s, t, up: up),
    "sampler.marginal",
    MOMENTS,
    ENDS,
    "sampler.values",
)
named(
    "euler_ancestral",
    "noise of the size sigma'",
    stepping(down_of, lambda s, t, up: t if up else 0.0),
    "sampler.marginal",
    MOMENTS,
)
named(
    "euler_ancestral",
    "noise in the step to zero",
    stepping(down_of, lambda s, t, up: up or 0.01 * s * (t == 0)),
    "sampler.data_point",
    "tests.moments_follow_the_recursion tests.run_is_the_printed_formula",
)


def ddpm_step(power: int, size: Callable[[float, float], float]) -> Callable[..., Tensor]:
    def step(
        D: Any, x: Tensor, s: float, t: float, generator: Any, history: Any, variance: str = "small"
    ) -> Tensor:
        now = D(x, s)
        end = now + (t / s) ** power * (x - now)
        return end + math.sqrt(size(s, t)) * z(x, generator) if t else end

    return step


def beta(s: float, t: float) -> float:
    return (s**2 - t**2) * (1 + t**2) / (1 + s**2)


def beta_tilde(s: float, t: float) -> float:
    return t**2 * (1 - t**2 / s**2)


named(
    "ddpm",
    "beta for beta~",
    ddpm_step(2, beta),
    "tests.moments_follow_the_recursion",
    "tests.run_is_the_printed_formula",
)
named(
    "ddpm",
    "the mean of Euler's step",
    ddpm_step(1, beta_tilde),
    "sampler.marginal",
    MOMENTS,
    "sampler.values",
)
named(
    "ddpm",
    "the variance for the deviation",
    ddpm_step(2, lambda s, t: beta_tilde(s, t) ** 2),
    "sampler.marginal",
    MOMENTS,
)
named(
    "ddpm",
    "beta~ of VP coordinates, not divided by abar",
    ddpm_step(2, lambda s, t: beta_tilde(s, t) / (1 + t**2)),
    "sampler.marginal",
    MOMENTS,
)


def two_m(mixed: Callable[..., Any]) -> Callable[..., Tensor]:
    """DPM++ 2M with another D_i of D, D_before, h_before and h."""

    def step(D: Any, x: Tensor, s: float, t: float, generator: Any, history: list[Any]) -> Tensor:
        now = D(x, s)
        history.append((s, now))
        ahead = now
        if t and len(history) > 1:
            before, D_before = history[-2]
            ahead = mixed(now, D_before, math.log(before / s), math.log(s / t))
        return ahead + t / s * (x - ahead)

    return step


named(
    "dpmpp_2m",
    "r inverted",
    two_m(lambda D, d, a, h: D + (D - d) * a / (2 * h)),
    FORMULA,
    ENDS,
    "sampler.values",
)
named(
    "dpmpp_2m",
    "towards the past",
    two_m(lambda D, d, a, h: D - (D - d) * h / (2 * a)),
    FORMULA,
    ENDS,
    "tests.marginals_converge",
    "sampler.values",
)
named(
    "dpmpp_2m",
    "without the half",
    two_m(lambda D, d, a, h: D + (D - d) * h / a),
    FORMULA,
    ENDS,
    "tests.marginals_converge",
    "sampler.values",
)
named(
    "dpmpp_2m",
    "as if all steps were equal",
    two_m(lambda D, d, a, h: D + (D - d) / 2),
    FORMULA,
    ENDS,
    "sampler.values",
)


def equal_steps(
    D: Any, x: Tensor, s: float, t: float, generator: Any, history: list[Any], order: int = 4
) -> Tensor:
    """Adams and Bashforth's weights for steps of one length, whatever the steps are."""
    history.append((x - D(x, s)) / s)
    table = [
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    weights = table[min(order, len(history), 4) - 1]
    return x + (t - s) * sum(w * d for w, d in zip(weights, reversed(history), strict=False))


named("lms", "weights of equal steps", equal_steps, FORMULA, ENDS, "sampler.values")


def two_s(
    middle: Callable[[float, float, float], float], noisy: bool = True
) -> Callable[..., Tensor]:
    def step(
        D: Any, x: Tensor, s: float, t: float, generator: Any, history: Any, eta: float = 1.0
    ) -> Tensor:
        now = D(x, s)
        if not t:
            return now
        up = up_of(s, t, eta)
        down = down_of(s, t, up)
        m = middle(s, t, down)
        there = D(now + m / s * (x - now), m)
        end = there + down / s * (x - there)
        return end + up * z(x, generator) if up else end

    return step


named(
    "dpmpp_2s_ancestral",
    "the middle in sigma",
    two_s(lambda s, t, down: (s + down) / 2),
    "tests.moments_follow_the_recursion",
    "tests.end_is_stability tests.run_is_the_printed_formula",
    "sampler.values",
)
named(
    "dpmpp_2s_ancestral",
    "the middle of the way to sigma'",
    two_s(lambda s, t, down: math.sqrt(s * t)),
    "tests.moments_follow_the_recursion",
    "tests.end_is_stability tests.marginals_converge tests.run_is_the_printed_formula",
    "sampler.values",
)


def sde(own: Callable[[Any, Any, float], Any]) -> Callable[..., Tensor]:
    """DPM++ SDE with another noise of the whole step from z_1, z_2 and the first's share."""

    def step(
        D: Any, x: Tensor, s: float, t: float, generator: Any, history: Any, eta: float = 1.0
    ) -> Tensor:
        now = D(x, s)
        if not t:
            return now
        z_1, z_2 = (z(x, generator) if eta else 0 * x for _ in range(2))
        m = math.sqrt(s * t)
        up_m, up = up_of(s, m, eta), up_of(s, t, eta)
        there = D(now + down_of(s, m, up_m) / s * (x - now) + up_m * z_1, m)
        return there + down_of(s, t, up) / s * (x - there) + up * own(z_1, z_2, (s - m) / (s - t))

    return step


named(
    "dpmpp_sde",
    "both noises the same draw",
    sde(lambda a, b, share: a),
    "tests.moments_follow_the_recursion",
    MOMENTS,
)
named(
    "dpmpp_sde",
    "two independent noises",
    sde(lambda a, b, share: b),
    "tests.moments_follow_the_recursion",
    MOMENTS,
    "sampler.marginal",
)
named(
    "dpmpp_sde",
    "shares not under a root",
    sde(lambda a, b, share: share * a + (1 - share) * b),
    "sampler.marginal",
    MOMENTS,
)


def churning(
    raised: Callable[[float, float], float], added: Callable[[float, float], float],
    asked: Callable[[float, float], float],
) -> Callable[..., Tensor]:  # fmt: skip
    """Euler with churn: sigma_hat of sigma and S_churn/N, the noise, and where D is asked."""

    def step(
        D: Any, x: Tensor, s: float, t: float, generator: Any, history: Any, steps: int,
        churn: float = 0.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003,
    ) -> Tensor:  # fmt: skip
        s_hat = raised(s, churn / steps) if s_min <= s <= s_max else s
        if s_hat > s:
            x = x + s_noise * added(s, s_hat) * z(x, generator)
        now = D(x, asked(s, s_hat))
        return now + t / s_hat * (x - now)

    return step


def churned(mistake: str, step: Callable[..., Tensor], meant: str, *also: str) -> None:
    found = testbed.Sampler("euler", step, noise="churn").bound(CHURNED)
    wrong("named sampler", f"churn: {mistake}", Named(found, "euler", 1), meant, *also)


def hat(s: float, g: float) -> float:
    return s * (1 + min(g, math.sqrt(2) - 1))


def root(s: float, s_hat: float) -> float:
    return math.sqrt(s_hat**2 - s**2)


def at_hat(s: float, s_hat: float) -> float:
    return s_hat


churned(
    "not capped at sqrt(2) - 1",
    churning(lambda s, g: s * (1 + g), root, at_hat),
    "sampler.marginal",
    MOMENTS,
)
churned(
    "sigma_hat - sigma for the root",
    churning(hat, lambda s, h: h - s, at_hat),
    "sampler.marginal",
    MOMENTS,
)
churned("D asked at sigma", churning(hat, root, lambda s, h: s), "sampler.marginal", MOMENTS)

# --- schedules -----------------------------------------------------------------------------------


def of_spacing(levels: Callable[..., Tensor]) -> set[str]:
    return tests(
        spacing_is_table_2=lambda: schedules.law_spacing_is_table_2(levels),
        offset_is_added=lambda: schedules.law_offset_is_added(levels),
    )


def spaced(
    moved: Callable[[Tensor, int], Tensor] = lambda index, offset: index + offset,
    **other: Callable[[int, int], Tensor],
) -> Callable[..., Tensor]:
    """`table_sigmas` with one spacing replaced, or with another use of the offset."""

    def levels(table: Tensor, n: int, spacing: str, steps_offset: int = 0) -> Tensor:
        index = {**noise_levels.SPACINGS, **other}[spacing](len(table), n).long()
        index = moved(index, steps_offset)
        return torch.cat([table[index], torch.zeros(1, dtype=table.dtype)])

    return levels


FAMILIES["schedule"] = Family(
    "the levels that are taken of a table", of_spacing, {"right": noise_levels.table_sigmas}
)
SPACED, OFFSET = "tests.spacing_is_table_2", "tests.offset_is_added"
wrong(
    "schedule",
    "leading: counted from 0",
    spaced(leading=lambda size, n: torch.arange(n - 1, -1, -1) * (size // n) - 1),
    SPACED,
    OFFSET,
)
wrong(
    "schedule",
    "trailing: not moved by one",
    spaced(trailing=lambda size, n: (size - torch.arange(n) * size / n).clamp(max=size - 1)),
    SPACED,
)
wrong(
    "schedule",
    "linspace: cut off for rounded",
    spaced(linspace=lambda size, n: torch.linspace(size - 1, 0, n, dtype=torch.float64) - 0.5),
    SPACED,
)
wrong(
    "schedule",
    "the last level for 0",
    lambda *given: noise_levels.table_sigmas(*given)[:-1],
    SPACED,
    OFFSET,
)
wrong(
    "schedule",
    "latent: as Stability has it",
    spaced(latent=noise_levels.SPACINGS["stability"]),
    SPACED,
    OFFSET,
)
wrong("schedule", "the offset ignored", spaced(lambda index, offset: index), OFFSET)
wrong("schedule", "the offset below", spaced(lambda index, offset: index - offset), OFFSET)
wrong("schedule", "the offset twice", spaced(lambda index, offset: index + 2 * offset), OFFSET)
wrong(
    "schedule",
    "the last level stays",
    spaced(lambda index, offset: torch.cat([index[:-1] + offset, index[-1:]])),
    OFFSET,
)
wrong(
    "schedule",
    "trailing for leading with an offset",
    spaced(lambda index, offset: index + 99 * offset),
    OFFSET,
)
