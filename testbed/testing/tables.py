"""The laws of noise tables: the levels of a discrete denoiser, ascending, each as likely."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NEAREST, NoiseTable
from testbed.testing import behaviour, densities
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import options_matter
from testbed.testing.rounding import Worst

LAWS = Group("table")


def _bound(t: NoiseTable, **options: object) -> NoiseTable:
    """The table with its options, and these; its levels are known then.

    Raises:
        Skipped: they name no levels.
    """
    one = t.bound({**t.options, **options})
    if not one.named:
        raise Skipped("its options name no levels: bind them to try it")
    return one


def _around(levels: Tensor) -> dict[str, float]:
    """A range that all levels lie within, with room at both ends.

    Raises:
        CheckFailed: a level is not positive, or not finite.
    """
    low, high = float(levels.min()), float(levels.max())
    demand(0 < low <= high < math.inf, f"the levels go from {low:.4g} to {high:.4g}.")
    return {"sigma_min": low / 2, "sigma_max": 2 * high}


def _between(levels: Tensor) -> Tensor:
    """Noise levels beyond both ends of a table and between, and the table's own."""
    low, high = _around(levels).values()
    grid = torch.logspace(0, 1, 400, dtype=torch.float64).sub(1).div(9)
    return torch.cat([low * (high / low) ** grid, levels])


@LAWS.law("The levels are (n,) float64, n >= 2.")
def shape(t: NoiseTable, context: Context) -> str:
    s = _bound(t).sigmas
    demand(s.ndim == 1 and len(s) >= 2 and s.dtype == torch.float64, f"{tuple(s.shape)} {s.dtype}.")
    return f"{len(s)} levels"


@LAWS.law("The levels are positive, finite and ascend strictly.")
def ascending(t: NoiseTable, context: Context) -> str:
    s = _bound(t).sigmas
    demand(
        bool(torch.isfinite(s).all() and (s > 0).all()),
        f"they go from {float(s.min()):.4g} to {float(s.max()):.4g}.",
    )
    rise = s.diff()
    if not bool((rise > 0).all()):
        i = int((rise <= 0).nonzero()[0])
        raise CheckFailed(f"{float(s[i]):.6g} is followed by {float(s[i + 1]):.6g}.")
    return f"{float(s[0]):.4g} to {float(s[-1]):.4g}"


@LAWS.law("The level taken for sigma is the nearest, in sigma or in log sigma, of all of them.")
def nearest(t: NoiseTable, context: Context) -> None:
    for word in NEAREST:
        one = _bound(t, nearest=word)
        sigma = _between(one.sigmas)
        a, b = (torch.log(v) if word == "log_sigma" else v for v in (sigma, one.sigmas))
        distance = (a[:, None] - b).abs()
        mine = distance.gather(1, one.index(sigma)[:, None])[:, 0]
        # Between two levels the middle is rounded, and so is each distance from it.
        rounding = gamma(8, torch.float64) * (a.abs() + b.abs().max())
        far = mine - distance.min(1).values > rounding
        if bool(far.any()):
            i = int(far.nonzero()[0])
            raise CheckFailed(
                f"{float(sigma[i]):.6g} is taken to {float(one.quantised(sigma)[i]):.6g}, and "
                f"{float(one.sigmas[distance[i].argmin()]):.6g} is nearer in {word}."
            )


@LAWS.law("A level is its own nearest: quantised(sigma_i) = sigma_i, and index(sigma_i) = i.")
def quantised(t: NoiseTable, context: Context) -> None:
    for word in NEAREST:
        one = _bound(t, nearest=word)
        twice = one.quantised(one.quantised(_between(one.sigmas)))
        once = one.quantised(_between(one.sigmas))
        demand(torch.equal(once, twice), f"quantised twice it moves, nearest in {word}.")
        index = one.index(one.sigmas)
        other = (index != torch.arange(len(index))).nonzero().flatten().tolist()
        demand(not other, f"level {other[:1]} is taken for another.")


@LAWS.law("index(sigma) is int64, quantised(sigma) float64, both shaped like sigma, of any dtype.")
def like_sigma(t: NoiseTable, context: Context) -> None:
    one = _bound(t)
    for dims in ((), (0,), (3,), (2, 3)):
        for dtype in (torch.float64, torch.float32):
            sigma = one.sigmas.mean().to(dtype).expand(dims)
            for name, found, kind in (
                ("index", one.index(sigma), torch.int64),
                ("quantised", one.quantised(sigma), torch.float64),
            ):
                demand(
                    found.shape == sigma.shape and found.dtype == kind,
                    f"{name} is {tuple(found.shape)} {found.dtype} for {dims} {dtype}.",
                )


@LAWS.law("Every level has the mass 1/n: u in the middle of the i-th n-th draws sigma_i.")
def equal_mass(t: NoiseTable, context: Context) -> None:
    one = _bound(t)
    n = len(one.sigmas)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = one.density(**_around(one.sigmas)).sigma(u)
    missed = (found != one.sigmas).nonzero().flatten().tolist()
    demand(not missed, f"{len(missed)} of {n} levels are not drawn, the first {missed[:1]}.")


@LAWS.law("The pdf of the levels, 1/n over the log-spacing around each, integrates to one.")
def normalised(t: NoiseTable, context: Context) -> str:
    one = _bound(t)
    return densities.normalised(one.density(**_around(one.sigmas)), context) or ""


@LAWS.law(
    "Zero terminal SNR moves sqrt(abar) = 1/sqrt(1 + sigma^2) by one affine map, that keeps the "
    "first and takes the last to 0 (Lin et al. 2024, algorithm 1); the levels still ascend."
)
def zero_terminal(t: NoiseTable, context: Context) -> str:
    before = _bound(t, zero_terminal_snr=False).sigmas
    after = _bound(t, zero_terminal_snr=True).sigmas
    demand(len(before) == len(after), f"{len(before)} levels become {len(after)}.")
    demand(float(after[-1]) == TERMINAL, f"the last level is {float(after[-1]):.4g}.")
    demand(bool((after.diff() > 0).all()), "the moved levels do not ascend.")
    root, moved = (1 / torch.sqrt(1 + s**2) for s in (before, after))
    first, last = root[0], root[-1]
    wanted = first * (root - last) / (first - last)
    worst = Worst()
    bound = gamma(16, torch.float64) * first * (root + last) / (first - last)
    worst.compare("sqrt(abar)", moved[:-1], wanted[:-1], bound[:-1])
    return f"sigma {float(before[-1]):.4g} becomes infinity; {worst}"


@LAWS.law("Pure: global state stays as it was, and the same options give the same levels.")
def pure(t: NoiseTable, context: Context) -> None:
    behaviour.pure(lambda: _bound(t).sigmas, ())


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(t: NoiseTable, context: Context) -> str:
    return options_matter(_bound(t))


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(t: NoiseTable, context: Context) -> str:
    _bound(t)
    # The table itself: a process is started anew for a component that it was not started for.
    return behaviour.equal_elsewhere(t, context)
