"""Schedules: at which noise levels a sampler stops on its way to 0, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from testbed.components.schedule import Schedule
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_levels import Spacing
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, unknown
from testbed.hookspecs import hookimpl

Time = Literal["ve", "vp", "cosine", "flow"]
BORDERS = {
    border.name: border
    for border in (noise_levels.VE, noise_levels.VP, noise_levels.COSINE, noise_levels.FLOW)
}


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Levels from sigma_max to sigma_min and 0, at equal steps of sigma^(1/rho).

    Raises:
        InputError: rho is not positive.
    """
    if not rho > 0:
        raise InputError(f"schedule 'karras': rho = {rho!r} must be positive.")
    return noise_levels.karras_sigmas(steps, sigma_min, sigma_max, rho)


def uniform(steps: int, sigma_min: float, sigma_max: float, time: Time = "ve") -> Tensor:
    """Levels at equal steps of the time t of x_t = alpha x0 + s eps, which is sigma for "ve".

    Raises:
        InputError: No noise schedule has the name `time`.
    """
    if time not in BORDERS:
        raise InputError(f"schedule 'uniform': {unknown('time', time, BORDERS)}")
    border = BORDERS[time]
    first, last = border.time(torch.tensor([sigma_max, sigma_min], dtype=torch.float64)).tolist()
    t = torch.linspace(first, last, steps, dtype=torch.float64)
    return torch.cat([border.sigma(t), torch.zeros(1, dtype=torch.float64)])


def ddpm(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    n: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    spacing: Spacing = "trailing",
) -> Tensor:
    """Levels of the linear beta table, as far as it lies within [sigma_min, sigma_max].

    Raises:
        InputError: The table has fewer than `steps` levels there.
    """
    table = noise_levels.ddpm_sigmas(noise_levels.linear_betas(n, start, end))
    return within("schedule 'ddpm'", table, steps, sigma_min, sigma_max, spacing)


def own(
    steps: int, sigma_min: float, sigma_max: float, table: Tensor, spacing: Spacing = "trailing"
) -> Tensor:
    """Levels of the trial's own table, as far as it lies within [sigma_min, sigma_max].

    Raises:
        InputError: The table has fewer than `steps` levels there.
    """
    return within("schedule 'table'", table, steps, sigma_min, sigma_max, spacing)


def within(
    owner: str, table: Tensor, steps: int, sigma_min: float, sigma_max: float, spacing: str
) -> Tensor:
    """Picks `steps` levels, by `spacing`, of those of an ascending table in [sigma_min, sigma_max].

    Raises:
        InputError: There are fewer levels, or the spacing is unknown.
    """
    inside = table[(table >= sigma_min) & (table <= sigma_max)]
    if steps > len(inside):
        raise InputError(
            f"{owner}: steps = {steps}, but its table has {len(inside)} levels from "
            f"{sigma_min:g} to {sigma_max:g}: take fewer steps."
        )
    return noise_levels.table_sigmas(inside, steps, spacing)


def snapped(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    """The levels of a path to 0 on a table: the nearest ones, each once; (m + 1,) float64, m <= n.

    Args:
        sigmas: (n + 1,) descending levels, the last of them 0.
        table: The levels of a discrete denoiser.
        low, high: The lowest and the highest of them that it was trained on.
    """
    return torch.cat([table.snapped(sigmas[:-1], low, high).flip(0), sigmas[-1:]])


SCHEDULES = {
    one.name: one
    for one in (
        Schedule("karras", karras, reference="Karras et al. 2022, arXiv:2206.00364, eq. 5"),
        Schedule("uniform", uniform),
        Schedule("table", own, reference="Lin et al. 2024, arXiv:2305.08891, table 2"),
        Schedule("ddpm", ddpm, reference="Ho et al. 2020; Lin et al. 2024, arXiv:2305.08891"),
    )
}


@hookimpl
def testbed_schedules() -> Iterable[Schedule]:
    yield from SCHEDULES.values()
