"""The laws of densities of sigma: an inverse CDF and a pdf over log sigma, of one distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.density import Density
from testbed.random import stream
from testbed.testing import behaviour
from testbed.testing.cases import SIGMA_DATAS, levels
from testbed.testing.checks import Context, Group, Run, demand
from testbed.testing.failures import CheckFailed
from testbed.testing.options import options_matter

LAWS = Group("density")
CELLS = 2**18
DRAWS = 2**17
SIGNIFICANCE = 1e-6


def _law(sentence: str) -> Callable[[Run], Run]:
    """Enters a law; a density that asks for sigma_data must obey it at each of several."""

    def enter(run: Run) -> Run:
        @functools.wraps(run)
        def everywhere(d: Density, context: Context) -> str | None:
            scales = SIGMA_DATAS if d.takes_sigma_data else (1.0,)
            shown = [run(d.with_sigma_data(sigma_data), context) for sigma_data in scales]
            return shown[-1]

        return LAWS.law(sentence)(everywhere)

    return enter


def _edges(d: Density) -> tuple[float, float]:
    options = {**d.defaults, **d.options}
    return options["sigma_min"], options["sigma_max"]


def _uniform(n: int) -> Tensor:
    """n midpoints of (0, 1), ascending."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def _mass(d: Density) -> tuple[Tensor, Tensor, float]:
    """(log sigma at the cells' upper edges, the pdf's integral up to them, a bound of its error).

    The midpoint rule, whose error is at most half a cell times the pdf's total variation; the edges
    of the cut, where it falls to 0, are edges of cells.
    """
    low, high = (math.log(edge) for edge in _edges(d))
    h = (high - low) / CELLS
    middle = low + h * (torch.arange(CELLS, dtype=torch.float64) + 0.5)
    p = d.pdf_over_log_sigma(middle.exp())
    variation = float(p.diff().abs().sum())
    return middle + h / 2, h * p.cumsum(0), h * variation / 2


def _atom(d: Density) -> float:
    """The largest mass of one level: 0 for a continuous density, a level's for a table."""
    sigma = d.sigma(_uniform(2**16))
    _, counts = torch.unique_consecutive(sigma, return_counts=True)
    return float(counts.max()) / len(sigma) if int(counts.max()) > 1 else 0.0


@_law("p(log sigma) is finite and not negative, 0 outside [sigma_min, sigma_max].")
def positive(d: Density, context: Context) -> None:
    low, high = _edges(d)
    sigma = levels((low, high), 1025)
    for value, where in (
        (sigma, "inside"),
        (torch.tensor([low / 2, 2 * high]).double(), "outside"),
    ):
        p = d.pdf_over_log_sigma(value.clone())
        held = torch.isfinite(p) & ((p >= 0) if where == "inside" else (p == 0))
        if not bool(held.all()):
            at = int((~held).nonzero()[0])
            raise CheckFailed(f"p = {float(p[at]):.4g} at sigma = {float(value[at]):.4g}, {where}.")


@_law("The pdf integrates to one over log sigma within the cut (a table's to one level).")
def normalised(d: Density, context: Context) -> str:
    _, mass, error = _mass(d)
    atom = _atom(d)
    total = float(mass[-1])
    # A cut inside a level takes the whole of it from the inverse CDF and a part of it from the pdf:
    # at most half a level at either edge. The sum has CELLS terms; the cut's edges, bisected to one
    # ulp, are divided by the mass between them.
    low, high = d.cut
    bound = (
        error + atom + gamma(CELLS, torch.float64) * total + gamma(4, torch.float64) / (high - low)
    )
    demand(
        abs(total - 1) <= bound,
        f"the integral is {total:.8g}, off by {abs(total - 1):.3g}, bound {bound:.3g} (quadrature "
        f"{error:.2g}, one level {atom:.2g}).",
    )
    return f"integral 1 {total - 1:+.2g}, bound {bound:.2g}"


@_law("The inverse CDF draws from the pdf (Kolmogorov-Smirnov, significance 1e-6).")
def draws(d: Density, context: Context) -> str:
    from scipy import stats

    edges, mass, _ = _mass(d)
    u = torch.rand(DRAWS, generator=stream(0, "testing/density"), dtype=torch.float64)
    y = torch.log(d.sigma(u)).numpy()
    total = float(mass[-1])
    demand(total > 0, "the pdf has no mass.")
    x = np.concatenate([[math.log(_edges(d)[0])], edges.numpy()])
    # The pdf's own integral is `normalised`'s matter.
    cdf = np.concatenate([[0.0], (mass / total).numpy()])
    found = stats.kstest(y, lambda at: np.interp(at, x, cdf))
    at = math.exp(float(found.statistic_location))
    # A table's level is a step in one and a ramp in the other: half a level apart.
    statistic = max(0.0, float(found.statistic) - _atom(d))
    p_value = float(stats.kstwo.sf(statistic, DRAWS)) if statistic else 1.0
    demand(
        p_value >= SIGNIFICANCE,
        f"Kolmogorov-Smirnov distance {float(found.statistic):.4g} at sigma = {at:.4g}, p = "
        f"{p_value:.2g} < {SIGNIFICANCE:g} ({DRAWS} draws).",
    )
    return f"distance {float(found.statistic):.2g}, p = {p_value:.2g} ({DRAWS} draws)"


@_law("sigma(u) increases with u (a table's does not decrease) within [sigma_min, sigma_max].")
def increasing(d: Density, context: Context) -> str:
    low, high = _edges(d)
    tails = torch.logspace(-12, -5, 8, dtype=torch.float64)
    sigma = d.sigma(torch.cat([tails, _uniform(4096), 1 - tails.flip(0)]))
    demand(bool(torch.isfinite(sigma).all()), "sigma(u) is not finite.")
    step = sigma.diff()
    demand(bool((step >= 0).all()), f"sigma(u) falls by {-float(step.min()):.4g}.")
    demand(float(sigma[-1]) > float(sigma[0]), "sigma(u) is constant.")
    demand(
        low <= float(sigma[0]) and float(sigma[-1]) <= high,
        f"sigma(u) goes from {float(sigma[0]):.4g} to {float(sigma[-1]):.4g}, outside of {low:g} "
        f"to {high:g}.",
    )
    return f"{float(sigma[0]):.4g} to {float(sigma[-1]):.4g}"


@_law("sigma(u) has the shape of u and float64, p the shape of sigma; elementwise, empty too.")
def shape(d: Density, context: Context) -> None:
    u, sigma = _uniform(12), levels(_edges(d), 12)
    for dims in ((12,), (3, 4), (0,)):
        few = slice(0) if dims == (0,) else slice(None)
        a, b = u[few].reshape(dims), sigma[few].reshape(dims)
        for name, function, value in (("sigma", d.sigma, a), ("p", d.pdf_over_log_sigma, b)):
            found = function(value.clone())
            demand(
                found.shape == value.shape and found.dtype == torch.float64,
                f"{name} is {tuple(found.shape)} {found.dtype} for {tuple(value.shape)} float64.",
            )


@_law("Elementwise: sigma(u) and p depend on their own element alone.")
def per_sample(d: Density, context: Context) -> None:
    order = torch.arange(17) * 5 % 17
    for name, function, value in (
        ("sigma(u)", d.sigma, _uniform(17)),
        ("p", d.pdf_over_log_sigma, levels(_edges(d), 17)),
    ):
        whole = function(value.clone())
        for found in (
            torch.cat([function(one[None].clone()) for one in value]),
            function(value[order])[order.argsort()],
        ):
            # The same float64 formula in a vector and a scalar loop: a few ulp of elementary
            # functions, carried by a condition below 2^10 within the cut.
            close = (found == whole) | ((found - whole).abs() <= 2.0**-40 * whole.abs())
            if not bool(close.all()):
                at = int((~close).nonzero()[0])
                raise CheckFailed(
                    f"{name} is {float(whole[at]):.8g} in a batch, {float(found[at]):.8g} without."
                )


@_law("Pure: arguments and global state stay as they were, the same call gives the same bits.")
def pure(d: Density, context: Context) -> None:
    d.cut  # noqa: B018  worked out once, before the argument is watched
    behaviour.pure(d.sigma, (_uniform(65),))
    behaviour.pure(lambda u: d._quantile(u), (_uniform(65),))
    behaviour.pure(d.pdf_over_log_sigma, (levels(_edges(d), 65),))


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(d: Density, context: Context) -> str:
    return options_matter(d)


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(d: Density, context: Context) -> str:
    return behaviour.equal_elsewhere(d, context)
