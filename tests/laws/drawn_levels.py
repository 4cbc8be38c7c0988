"""Laws of how many of training's draws fall to a level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from testbed.registry import default_registry
from testbed.training.objective import Objective

Shares = Callable[[Objective, Tensor, Tensor], Tensor]
MEAN, STD, LOW, HIGH = -1.2, 1.2, 0.002, 80.0
ROUNDING = 1e-12
"""A thousand times what bisection and the quantile's float64 leave."""


def objective(table: str = "") -> Objective:
    """Draws from EDM's density, or uniformly from the levels of a table of 40."""
    registry = default_registry()
    noise_table = registry.table(table, n=40) if table else None
    density = registry.density("lognormal", mean=MEAN, std=STD, sigma_min=LOW, sigma_max=HIGH)
    if noise_table is not None:
        density = noise_table.density(*(float(noise_table.sigmas[end]) for end in (0, -1)))
    return Objective(
        registry.parameterization("edm"),
        registry.weighting("edm"),
        registry.loss("l2"),
        density,
        0.5,
        table=noise_table,
    )


def law_share_of_draws(shares: Shares) -> None:
    """Of a log-normal that of the normal distribution's table; of a table its levels, counted."""
    grid = np.array([0.002, 0.01, 0.03, 0.4, 1.0, 7.0, 80.0])
    # 0.5 stands for 0.4: it has that level's distances, 0.4 / sqrt(0.4 0.03) and sqrt(0.4)/0.4.
    levels = np.array([*grid, 0.5])
    logs = np.log(grid)
    half = np.diff(logs) / 2
    before, after = np.append(half[0], half), np.append(half, half[-1])
    before, after = np.append(before, before[3]), np.append(after, after[3])
    edges = np.log(levels) - before, np.log(levels) + after
    z = [(np.clip(edge, np.log(LOW), np.log(HIGH)) - MEAN) / STD for edge in edges]
    whole = np.diff(stats.norm.cdf([(np.log(end) - MEAN) / STD for end in (LOW, HIGH)]))
    wanted = (stats.norm.cdf(z[1]) - stats.norm.cdf(z[0])) / whole
    found = shares(objective(), torch.tensor(levels), torch.tensor(grid)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)
    of_table = objective("karras")
    assert of_table.table is not None
    known = of_table.table.sigmas.numpy()
    nearest = known[np.abs(known - levels[:, None]).argmin(1)]
    inside = (known >= (nearest * np.exp(-before))[:, None]) & (
        known < (nearest * np.exp(after))[:, None]
    )
    found = shares(of_table, torch.tensor(levels), torch.tensor(grid)).numpy()
    np.testing.assert_allclose(found, inside.mean(1), rtol=0, atol=ROUNDING)
