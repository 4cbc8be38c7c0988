"""The laws of noises, n = eps + strength z: what z is, its covariance and what a target keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.correlated import CorrelatedOracle, Noise
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.testing import behaviour
from testbed.testing.cases import draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.datasets import chance
from testbed.testing.failures import Skipped
from testbed.testing.options import options_matter
from testbed.testing.rounding import Worst

LAWS = Group("noise")
SHAPES = ((3,), (3, 4), (2, 3, 4))
DRAWS = 8192


def sharing(c: Noise, shape: tuple[int, ...]) -> Tensor:
    """P (d, d), which takes the mean over the coordinates that share a number of z."""
    drawn = c.shape_of_z(shape)
    numbers = torch.arange(math.prod(drawn)).reshape(drawn).expand(shape).flatten()
    alike = (numbers[:, None] == numbers).double()
    return alike / alike.sum(1)


def covariance(c: Noise, shape: tuple[int, ...]) -> Tensor:
    """Sigma = I + strength^2 (ones where z is shared), (d, d), by the places of z alone."""
    alike = (sharing(c, shape) > 0).double()
    return torch.eye(len(alike), dtype=torch.float64) + c.strength**2 * alike * (not c.white)


def _cases(c: Noise) -> Iterator[tuple[Noise, tuple[int, ...], str]]:
    """The noise at its own strength and at a large one, in every shape."""
    for shape in SHAPES:
        yield c, shape, f"for {shape}"
    for strength in () if c.white else (2.0,):
        one = c.bound({**c.options, "strength": strength})
        for shape in SHAPES:
            yield one, shape, f"for {shape} at strength = {strength:g}"


@lru_cache(16)
def _eps(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "testing/eps"), dtype=torch.float64)


def drawn(
    c: Noise, lead: tuple[int, ...], shape: tuple[int, ...], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """eps, n and the target's noise, (*lead, *shape) float64."""
    eps = _eps(*lead, *shape, seed=seed)
    n, target = c.pair(eps.clone(), shape, stream(seed, "testing/z"))
    return eps, n, target


def _moment(a: Tensor, b: Tensor, wanted: Tensor, what: str, where: str) -> float:
    """The largest error of E a b^T over its standard error, (N, d) each, as demanded."""
    moment, square = a.T @ b / len(a), a.square().T @ b.square() / len(a)
    error = ((square - moment**2).clamp(min=0) / (len(a) - 1)).sqrt()
    gap = (moment - wanted).abs()
    z, limit = float((gap / error).nan_to_num(nan=math.inf).max()), chance(gap.numel())
    demand(
        z <= limit,
        f"{what} is {z:.3g} standard errors off (up to {float(gap.max()):.3g}) {where}, at most "
        f"{limit:.3g} by chance (1e-6).",
    )
    return z


@LAWS.law("The shape of z is that of x0 with ones in it: an axis is drawn, or is shared.")
def shape_of_z(c: Noise, context: Context) -> str:
    for shape in (*SHAPES, (1,), (8, 8), (1, 5, 5), (3, 1, 2)):
        c.shape_of_z(shape)  # raises where it is another
    return ", ".join(f"{shape} -> {c.shape_of_z(shape)}" for shape in SHAPES)


@LAWS.law("n and the target's noise have the shape and dtype of eps, for any batch.")
def shape(c: Noise, context: Context) -> None:
    for one, shape, where in _cases(c):
        for lead in ((5,), shape[:1], shape[-1:], (2, 3), (0,)):
            for dtype in (torch.float64, torch.float32):
                eps = torch.ones(*lead, *shape, dtype=dtype)
                for found in one.pair(eps, shape, stream(0, "testing/z")):
                    demand(
                        found.shape == eps.shape and found.dtype == dtype,
                        f"{tuple(found.shape)} {found.dtype} for {tuple(eps.shape)} {dtype}, "
                        f"{where}.",
                    )


@LAWS.law("E n = 0, within standard errors.")
def mean(c: Noise, context: Context) -> str:
    worst = 0.0
    for one, shape, where in _cases(c):
        _, n, _ = drawn(one, (DRAWS,), shape)
        n = n.flatten(1)
        z = float((n.mean(0).abs() / n.std(0)).max()) * math.sqrt(DRAWS)
        limit = chance(n.shape[1])
        demand(
            z <= limit,
            f"E n is {z:.3g} standard errors from 0 {where}, at most {limit:.3g} by chance (1e-6).",
        )
        worst = max(worst, z)
    return f"{worst:.2g} standard errors at most"


@LAWS.law(
    "Cov n = Sigma = I + strength^2 (1 where z is shared), within standard errors; its eigenvalue "
    "on what z moves is the stated one."
)
def covariance_(c: Noise, context: Context) -> str:
    worst = 0.0
    for one, shape, where in _cases(c):
        Sigma, P = covariance(one, shape), sharing(one, shape)
        stated = torch.eye(len(P), dtype=torch.float64) + (one.eigenvalue(shape) - 1) * P
        gap = float((stated - Sigma).abs().max())
        demand(
            gap <= gamma(16, torch.float64) * float(Sigma.abs().max()),
            f"the eigenvalue {one.eigenvalue(shape):.6g} gives another Sigma, off by {gap:.3g}, "
            f"{where}.",
        )
        _, n, _ = drawn(one, (DRAWS,), shape)
        n = n.flatten(1)
        worst = max(worst, _moment(n, n, Sigma, "Cov n", where))
    return f"{worst:.2g} standard errors at most"


@LAWS.law("The target is made of n itself if in_target, and otherwise of eps itself, to the bit.")
def target(c: Noise, context: Context) -> str:
    for one, shape, where in _cases(c):
        eps, n, found = drawn(one, (5,), shape)
        name, wanted = ("n", n) if one.in_target else ("eps", eps)
        demand(torch.equal(found, wanted), f"it is not {name} {where}.")
    return "n" if c.in_target else "eps"


@LAWS.law("Each coordinate of the target's noise has the stated variance, within standard errors.")
def variance(c: Noise, context: Context) -> str:
    worst = 0.0
    for one, shape, where in _cases(c):
        _, _, found = drawn(one, (DRAWS,), shape)
        squares = found.flatten(1) ** 2
        gap = (squares.mean(0) - one.variance).abs()
        z = float((gap / squares.std(0)).max()) * math.sqrt(DRAWS)
        limit = chance(squares.shape[1])
        demand(
            z <= limit,
            f"it is {float(squares.mean()):.4g}, stated {one.variance:.4g}, {z:.3g} standard "
            f"errors off {where}, at most {limit:.3g} by chance (1e-6).",
        )
        worst = max(worst, z)
    return f"{c.variance:.4g}"


@LAWS.law(
    "E[target's noise | n] = K n with K = Cov(target's noise, n) Sigma^-1: 1 where z moves "
    "nothing, and `regression` where it does."
)
def regression(c: Noise, context: Context) -> str:
    worst = 0.0
    for one, shape, where in _cases(c):
        P = sharing(one, shape)
        K = torch.eye(len(P), dtype=torch.float64) + (one.regression(shape) - 1) * P
        _, n, found = drawn(one, (DRAWS,), shape)
        wanted = K @ covariance(one, shape)
        flat = found.flatten(1), n.flatten(1)
        worst = max(worst, _moment(*flat, wanted, "Cov(target's noise, n)", where))
    return f"{worst:.2g} standard errors at most"


@LAWS.law("z is multiplied by strength: (n - eps)/strength is the same for any, 0 adds nothing.")
def strength(c: Noise, context: Context) -> str:
    if c.white:
        raise Skipped("white: nothing is added")
    worst = Worst()
    for shape in SHAPES:
        found = {}
        for value in (0.0, 0.25, 1.0, 3.0):
            eps, n, _ = drawn(c.bound({**c.options, "strength": value}), (5,), shape)
            if value == 0:
                demand(torch.equal(n, eps), f"at strength 0 n is not eps, for {shape}.")
                continue
            found[value] = (n - eps) / value
            # n is rounded at its own size, and the difference is divided by the strength.
            bound = gamma(4, torch.float64) * (eps.abs() + n.abs()) / value
            worst.compare(f"z for {shape}", found[value], found[0.25], bound + bound * value / 0.25)
    return str(worst)


@LAWS.law("Every sample has a z of its own: Cov(n_i, n_j) = 0 for i other than j.")
def independent(c: Noise, context: Context) -> str:
    worst = 0.0
    for one, shape, where in _cases(c):
        _, n, _ = drawn(one, (DRAWS // 2, 2), shape)
        first, second = n.flatten(2).unbind(1)
        nothing = torch.zeros(first.shape[1], first.shape[1], dtype=torch.float64)
        worst = max(worst, _moment(first, second, nothing, "Cov(n_1, n_2)", where))
    return f"{worst:.2g} standard errors at most"


@LAWS.law("z is drawn from its generator alone, and another gives another; white noise draws none.")
def generator(c: Noise, context: Context) -> str:
    for shape in SHAPES:
        given = stream(0, "testing/z")
        before = given.get_state()
        eps = draws((5, *shape), 81)
        one = c if c.white else c.bound({**c.options, "strength": 1.0})
        first, _ = one.pair(eps, shape, given)
        drew = not torch.equal(given.get_state(), before)
        differs = not torch.equal(first, one.pair(eps, shape, stream(1, "testing/z"))[0])
        demand(
            drew == differs == (not c.white),
            f"it {'drew' if drew else 'drew nothing'} and another generator "
            f"{'changed' if differs else 'did not change'} n, for {shape}.",
        )
    return "draws nothing" if c.white else "reproducible with its generator"


@LAWS.law("For Gaussian data N(m, S) the exact D is m + S (S + sigma^2 Sigma)^-1 (x - m).")
def oracle(c: Noise, context: Context) -> str:
    worst = Worst()
    for one, shape, where in _cases(c):
        d = math.prod(shape)
        m, root = draws(shape, 82), draws((d, d), 83) / d
        S = root @ root.mT + torch.eye(d, dtype=torch.float64) / 16
        mine = CorrelatedOracle(Gaussian(m, S), one)
        x = m + draws((4, *shape), 84)
        for sigma in (0.3, 3.0):
            both = S + sigma**2 * covariance(one, shape)
            off = (x - m).flatten(1)
            wanted = m + (off @ torch.linalg.solve(both, S)).reshape(x.shape)
            # Each side solves a system of d equations whose condition is at most that of both.
            condition = float(torch.linalg.cond(both)) * float(torch.linalg.cond(S)) ** 0.5
            bound = gamma(8 * d, torch.float64) * condition * float(x.abs().max() + m.abs().max())
            worst.compare(f"D {where}", mine.denoise(x, sigma), wanted, bound)
    return str(worst)


@LAWS.law("Pure: eps and global state stay as they were, and the same draws give the same bits.")
def pure(c: Noise, context: Context) -> None:
    for shape in SHAPES:
        eps = draws((5, *shape), 85)
        behaviour.pure(lambda e, s=shape: c.pair(e, s, stream(0, "testing/z"))[0], (eps,))


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(c: Noise, context: Context) -> str:
    return options_matter(c)


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(c: Noise, context: Context) -> str:
    return behaviour.equal_elsewhere(c, context)
