"""How much of training's draws falls to each noise level that a study measures at.

A level that training can draw may still be one that it practically never does. With F the
distribution function of the levels that training draws, and h_- and h_+ half the distances of log
sigma from a level of the grid to its neighbours (at an end of the grid both are that to the one
that it has), the share of a level is

    F(sigma exp(h_+)) - F(sigma exp(-h_-)),

and its expected number of draws is the share times steps times batch. A level of a table that
stands for one of the grid has that one's h, whatever the distance to the next of the table, so that
continuous and discrete variants are judged by one rule.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from testbed.training.objective import Objective
from testbed.trial import build
from testbed.trial.config import TrialConfig

BISECTIONS = 50
"""Of (0, 1), to find F: its error is 2^-50, or a millionth of a draw in 10^9."""


def below(objective: Objective, sigma: Tensor) -> Tensor:
    """Returns the share of training's draws below each sigma, F(sigma); float64, like sigma.

    F is found by bisection of `objective.sigma`, which does not decrease in u and holds all that
    training does to a level: the density's cut, and the table.
    """
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(BISECTIONS):
        u = (low + high) / 2
        under = objective.sigma(u) < sigma
        low, high = torch.where(under, u, low), torch.where(under, high, u)
    return torch.where(low == 0, low, high)


def shares(objective: Objective, levels: Tensor, grid: Tensor) -> Tensor:
    """Returns the share of training's draws around each level, (L,) float64.

    Args:
        objective: what is trained.
        levels: those that are asked for or measured, (L,); one stands for the level of the table
            that is nearest to it, where there is a table.
        grid: the levels that are asked for, (K,), ascending.
    """
    if len(grid) == 1:
        return torch.ones_like(levels)
    logs = torch.log(grid)
    half = torch.diff(logs) / 2
    before, after = torch.cat([half[:1], half]), torch.cat([half, half[-1:]])
    near = (torch.log(levels)[:, None] - logs).abs().argmin(1)
    at = levels if objective.table is None else objective.table.quantised(levels)
    return below(objective, at * after[near].exp()) - below(objective, at / before[near].exp())


def table(config: TrialConfig, objective: Objective) -> pd.DataFrame:
    """Returns the columns level and share of every level that a trial is asked for or measured at.

    A level of the grid that lies beyond those that are trained on has the share of the last one:
    what is beyond is told by the range of training.
    """
    measured = build.measured_levels(config)
    grid = measured
    if config.asked_levels is not None:
        grid = torch.tensor(config.asked_levels, dtype=torch.float64)
    levels = torch.unique(torch.cat([grid, measured]))
    low, high = config.trained
    found = shares(objective, levels.clamp(low, high), grid)
    return pd.DataFrame({"level": levels.numpy(), "share": found.numpy()})
