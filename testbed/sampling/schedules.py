"""Schedules: at which noise levels a sampler stops on its way to 0, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor

from testbed.components.schedule import Schedule
from testbed.components.signature import Limits
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_levels import Spacing
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, unknown
from testbed.hookspecs import hookimpl

Positive = Annotated[float, Limits(above=0)]
Beta = Annotated[float, Limits(above=0, below=1)]
Count = Annotated[int, Limits(least=1)]
Time = Literal["ve", "vp", "cosine", "flow"]
BORDERS = {
    border.name: border
    for border in (noise_levels.VE, noise_levels.VP, noise_levels.COSINE, noise_levels.FLOW)
}


def karras(steps: int, sigma_min: float, sigma_max: float, rho: Positive = 7.0) -> Tensor:
    """Levels from sigma_max to sigma_min and 0, at equal steps of sigma^(1/rho)."""
    return noise_levels.karras_sigmas(steps, sigma_min, sigma_max, rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels from sigma_max to sigma_min and 0, at equal steps of log sigma."""
    return noise_levels.exponential_sigmas(steps, sigma_min, sigma_max)


def uniform(
    steps: int, sigma_min: float, sigma_max: float, time: Time = "ve", shift: Positive = 1.0
) -> Tensor:
    """Levels at equal steps of the time t of x_t = alpha x0 + s eps, which is sigma for "ve".

    sigma = shift s_t/alpha_t; for "flow" that is the time t' = shift t/(1 + (shift - 1) t) (Esser
    et al. 2024, arXiv:2403.03206, eq. 23). The ends are sigma_max and sigma_min for every shift.

    Raises:
        InputError: no noise schedule has the name `time`, or the shift has no effect because the
            time is sigma itself.
    """
    if time not in BORDERS:
        raise InputError(f"schedule 'uniform': {unknown('time', time, BORDERS)}")
    if time == "ve" and shift != 1:
        raise InputError(
            f"schedule 'uniform': shift = {shift!r} has no effect on equal steps of sigma: write "
            'another time, such as time = "flow".'
        )
    border = BORDERS[time]
    ends = torch.tensor([sigma_max / shift, sigma_min / shift], dtype=torch.float64)
    first, last = border.time(ends).tolist()
    t = torch.linspace(first, last, steps, dtype=torch.float64)
    return torch.cat([shift * border.sigma(t), torch.zeros(1, dtype=torch.float64)])


def ddpm(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    n: Count = 1000,
    start: Beta = 1e-4,
    end: Beta = 0.02,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
) -> Tensor:
    """Levels of the linear beta table, as far as it lies within [sigma_min, sigma_max].

    Raises:
        InputError: as `within`.
    """
    table = noise_levels.ddpm_sigmas(noise_levels.linear_betas(n, start, end))
    return within("schedule 'ddpm'", table, steps, (sigma_min, sigma_max), spacing, steps_offset)


def own(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    table: Tensor,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
) -> Tensor:
    """Levels of the trial's own table, as far as it lies within [sigma_min, sigma_max].

    Raises:
        InputError: as `within`.
    """
    return within("schedule 'table'", table, steps, (sigma_min, sigma_max), spacing, steps_offset)


def within(
    owner: str,
    table: Tensor,
    steps: int,
    sigma_range: tuple[float, float],
    spacing: str,
    steps_offset: int,
) -> Tensor:
    """Picks `steps` levels of those of an ascending table within a range, by their indices there.

    Raises:
        InputError: there are fewer levels, the spacing is unknown, or it leads with `steps_offset`
            to indices that are not there.
    """
    sigma_min, sigma_max = sigma_range
    inside = table[(table >= sigma_min) & (table <= sigma_max)]
    if steps > len(inside):
        raise InputError(
            f"{owner}: steps = {steps}, but its table has {len(inside)} levels from "
            f"{sigma_min:g} to {sigma_max:g}: take fewer steps."
        )
    try:
        return noise_levels.table_sigmas(inside, steps, spacing, steps_offset)
    except InputError as problem:
        raise InputError(f"{owner}: {problem}") from None


def snapped(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    """The levels of a path to 0 on a table: the nearest ones, each once; (m + 1,) float64, m <= n.

    Args:
        sigmas: (n + 1,) descending levels, the last of them 0.
        table: The levels of a discrete denoiser.
        low, high: The lowest and the highest of them that it was trained on.
    """
    return torch.cat([table.snapped(sigmas[:-1], low, high).flip(0), sigmas[-1:]])


def path(
    schedule: Schedule,
    steps: int,
    sigma_range: tuple[float, float],
    table: NoiseTable | None = None,
    trained: tuple[float, float] | None = None,
) -> Tensor:
    """The noise levels of a sampler's path, (steps + 1,) float64, descending to 0.

    Those of a discrete denoiser are levels that it was trained on: the nearest, each once.

    Args:
        schedule: Where the path stops.
        steps: The number of steps.
        sigma_range: The lowest and the highest level of the path.
        table: The levels of a discrete denoiser.
        trained: The lowest and the highest of them that it was trained on; by default all.
    """
    sigmas: Tensor = schedule(steps, *sigma_range, table)
    if table is None:
        return sigmas
    return snapped(sigmas, table, *(trained or (0.0, math.inf)))


SCHEDULES = {
    one.name: one
    for one in (
        Schedule("karras", karras, reference="Karras et al. 2022, arXiv:2206.00364, eq. 5"),
        Schedule(
            "exponential",
            exponential,
            reference="k-diffusion, get_sigmas_exponential; Song and Ermon 2019, arXiv:1907.05600",
        ),
        Schedule("uniform", uniform),
        Schedule("table", own, reference="Lin et al. 2024, arXiv:2305.08891, table 2"),
        Schedule("ddpm", ddpm, reference="Ho et al. 2020; Lin et al. 2024, arXiv:2305.08891"),
    )
}


@hookimpl
def testbed_schedules() -> Iterable[Schedule]:
    yield from SCHEDULES.values()
