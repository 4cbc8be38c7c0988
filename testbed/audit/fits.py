"""Fits of a wrong denoiser's output: A x + B D'(x) at a noise level that it may have misread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.diffusion.noise_levels import VE, NoiseSchedule
from testbed.oracles import Oracle
from testbed.tensors import per_sample

RESIDUAL = 1e-6
"""Relative residual below which a fit explains an output: far above the rounding of a fit of two
numbers to 48, far below what a wrong hypothesis leaves on the audit's mixture (above 1e-3)."""
WIDE = torch.linspace(math.log(1e-5), math.log(1e5), 231).double()
"""Logarithms of the noise levels among which one is looked for that no factor of four reaches."""
MOST = 2**18
"""Numbers that an oracle is asked about in one call while a level is looked for."""


class Answers(NamedTuple):
    """What a denoiser returned for x (B, ...) at sigma (B,): its output (B, ...), float64.

    `residual` is what a fit may leave of it, relative: `RESIDUAL`, or twice the unit of rounding
    of the dtype that it was returned in.
    """

    x: Tensor
    sigma: Tensor
    output: Tensor
    residual: float = RESIDUAL

    @property
    def levels(self) -> Tensor:
        """The noise levels, (L,) ascending."""
        levels: Tensor = torch.unique(self.sigma)
        return levels

    def at(self, level: Tensor) -> Answers:
        """Returns those at one level."""
        here = self.sigma == level
        return Answers(self.x[here], self.sigma[here], self.output[here], self.residual)


class Misreading(NamedTuple):
    """A hypothesis: the subject answers for (g x, sigma'), g and sigma' (B,), by some mistakes."""

    mistakes: tuple[str, ...]
    g: Tensor
    sigma: Tensor


class Fit(NamedTuple):
    """Output = A x + B D'(g x, sigma') at each level, (L,) each, and the mistakes that imply it."""

    mistakes: tuple[str, ...]
    A: Tensor
    B: Tensor
    g: Tensor
    sigma: Tensor


def fit(misreadings: Iterable[Misreading], found: Answers, oracle: Oracle) -> Fit | None:
    """Returns the first hypothesis whose fit leaves no residual; None where none does.

    Of outputs in a narrow dtype several may, and the first within twice the best is taken.
    """
    kept: list[tuple[float, Fit]] = []
    for mistakes, g, level in misreadings:
        D = oracle.denoise(per_sample(g, found.x) * found.x, level)
        fits, worst = [], 0.0
        for one in found.levels:
            here = found.sigma == one
            A, B, residual = least_squares(found.x[here], D[here], found.output[here])
            worst = max(worst, float(residual))
            if not residual < found.residual:
                break
            fits.append((A, B, g[here][0], level[here][0]))
        else:
            columns = zip(*fits, strict=True)
            kept.append((worst, Fit(mistakes, *(torch.stack(column) for column in columns))))
            if worst < RESIDUAL:
                break
    best = min((residual for residual, _ in kept), default=0.0)
    return next((one for residual, one in kept if residual <= max(RESIDUAL, 2 * best)), None)


def least_squares(x: Tensor, D: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns A and B of the nearest y = A x + B D, and the norm of the residual over that of y.

    D may be several, (K, *x.shape), and the three are then (K,).
    """
    several = D.flatten(-x.ndim)
    basis, y = torch.stack([x.flatten().expand_as(several), several], dim=-1), y.flatten()
    scale = basis.norm(dim=-2).clamp(min=1e-300)
    wanted = y[:, None].expand(*several.shape, 1)
    solution = torch.linalg.lstsq(basis / scale[..., None, :], wanted).solution[..., 0] / scale
    rest = y - (basis @ solution[..., None])[..., 0]
    return solution[..., 0], solution[..., 1], rest.norm(dim=-1) / y.norm().clamp(min=1e-300)


def denoised(x: Tensor, factors: Tensor, levels: Tensor, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Returns x (n, ...) times each factor (K,) and D of it at the level (K,): (K, n, ...) both."""
    states = factors.reshape(-1, *[1] * x.ndim) * x
    D = oracle.denoise(states.flatten(0, 1), levels.repeat_interleave(len(x)))
    return states, D.reshape(states.shape)


def nearest(residual: Callable[[Tensor], Tensor], grid: Tensor, size: int) -> float:
    """Returns the logarithm of the level that leaves the least: that of a grid, and then refined.

    Args:
        residual: maps logarithms (K,) to what each leaves, (K,).
        size: how many numbers an oracle is asked about at one level.
    """
    from scipy import optimize

    left = torch.cat([residual(some) for some in torch.split(grid, max(1, MOST // size))])
    best, step = float(grid[left.nan_to_num(torch.inf).argmin()]), float(grid[1] - grid[0])
    refined = optimize.minimize_scalar(
        lambda log_level: float(residual(torch.tensor([log_level], dtype=torch.float64))),
        bounds=(best - step, best + step),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return float(refined.x)


class LevelFit(NamedTuple):
    """Output = A x + B D'(g x, level) at one noise level."""

    A: Tensor
    B: Tensor
    g: Tensor
    level: Tensor


def fit_level(found: Answers, oracle: Oracle, schedule: NoiseSchedule) -> LevelFit | None:
    """Returns the noise level that one level's output is for, with g = alpha/alpha'; None for none.

    It is looked for up to four times too low or too high, and then from 1e-5 to 1e5.
    """
    sigma = found.sigma[0]

    def at(log_levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels = log_levels.exp()
        return least_squares(found.x, denoised(found.x, g(levels), levels, oracle)[1], found.output)

    def g(levels: Tensor) -> Tensor:
        right, wrong = (schedule.alpha(schedule.time(s)) for s in (sigma, levels))
        return right / wrong

    centre = math.log(float(sigma))
    near = torch.linspace(centre - math.log(4), centre + math.log(4), 81).double()
    for grid in (near, WIDE):
        best = nearest(lambda logs: at(logs)[2], grid, found.x.numel())
        A, B, residual = (one[0] for one in at(torch.tensor([best], dtype=torch.float64)))
        if residual < found.residual:
            level = torch.tensor(best, dtype=torch.float64).exp()
            return LevelFit(A, B, g(level), level)
    return None


def fit_levels(found: Answers, oracle: Oracle, schedule: NoiseSchedule) -> list[LevelFit] | None:
    """Returns the level that each level's output is for, x being formed by alpha or by none."""
    for form in dict.fromkeys((VE, schedule)):
        fits = []
        for one in found.levels:
            level = fit_level(found.at(one), oracle, form)
            if level is None:
                break
            fits.append(level)
        else:
            return fits
    return None
