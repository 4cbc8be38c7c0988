"""A denoiser of any codebase as a subject, and the exact network for one that wraps a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from testbed.audit.adapters import Adapter
from testbed.audit.algebra import conditioning
from testbed.audit.reach import Reach
from testbed.audit.reference import LEVELS, distributions, mixture, noisy
from testbed.audit.rows import Row, gamma, rows, skipped, verdict
from testbed.audit.subject import Affine, Denoise, Subject
from testbed.diffusion.denoiser import SHARED
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import pair_weights, slope
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

OPERATIONS = 32
"""Roundings granted to a foreign denoiser on the way from its inputs to its output."""

SHAPE = "returns x's shape and dtype (float32 for a narrower one will do)"
FINITE = "finite at every noise level"
SINGLE = "each sample has its own sigma: a batch equals its samples one by one"
PURE = "does not change its arguments"
STEADY = "the same answer twice, without the global random state"
Make = Callable[[Oracle], Callable[..., Tensor]]


class ExternalDenoiser(Subject):
    """A callable read through an Adapter.

    Args:
        name: of the subject in the table.
        make: `make(oracle)` gives the callable that claims to be the exact denoiser of `oracle`.
        adapter: how to read it.
        oracles: the distributions it can be made for; none if it claims to be exact for nothing.
        levels: (L,) float64; those that the adapter does not reach are left out.
        through: for one around a network, the parameterization and sigma_data of that network.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        adapter: Adapter,
        oracles: Mapping[str, Oracle],
        levels: Tensor = LEVELS,
        through: tuple[Parameterization, float] | None = None,
    ) -> None:
        self.name, self.make, self.adapter, self.oracles = name, make, adapter, oracles
        self.through = through
        low, high = adapter.reaches
        self.levels = levels[(levels >= low) & (levels <= high)]
        if adapter.table is not None:
            index = torch.unique((adapter.table - self.levels[:, None]).abs().argmin(1))
            self.levels = adapter.table[index].double()
        if len(self.levels) == 0:
            raise InputError(
                f"none of the noise levels {levels.tolist()} lies between {low:g} and {high:g}."
            )

    def data(self) -> Mapping[str, Oracle]:
        return self.oracles

    def denoiser(self, oracle: Oracle) -> Denoise:
        return self.adapter(self.make(oracle))

    def reach(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Reach:
        """Of D read off q = a x0 + b eps: B |a|, B |b| and |b/(b - sigma a)|, B = |dD/dq|.

        For one around a network, that of its parameterization. |dD/dx| is 1 at least: what returns
        x0 may have formed it as x - sigma eps.
        """
        if self.through is not None:
            return Affine(*self.through).reach(oracle, x, sigma)
        a, b = pair_weights(self.adapter.kind, sigma)
        B = 1 / slope(self.adapter.kind, sigma).abs()
        by_x = (b / (b - sigma * a)).abs().clamp(min=1)
        return Reach(*(per_sample(part, x) for part in (by_x, B * a.abs(), B * b.abs())))

    def inexactness(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """gamma_32 ((1 + kappa) of the state and of the noise argument) times D's slopes.

        |dD/dx| |x| + |sigma dD/dsigma| by autograd of the oracle; kappa are the condition numbers
        of the adapter's coordinates (alpha(t) and sigma(t) of a rounded t). What returns another
        kind, q = a D + b (x - D)/sigma, has taken its own x and sigma there too.
        """
        with torch.enable_grad():
            state, level = x.clone().requires_grad_(), sigma.clone().requires_grad_()
            D = oracle.denoise(state, level).flatten(1)
            by_x, by_sigma = torch.zeros_like(D), torch.zeros_like(D)
            for j in range(D.shape[1]):
                first, second = torch.autograd.grad(
                    D[:, j].sum(), (state, level), retain_graph=True, allow_unused=True
                )
                by_x[:, j] = (first * x).abs().flatten(1).sum(1) if first is not None else 0
                by_sigma[:, j] = second * sigma if second is not None else 0
        kappa_sigma, kappa_alpha = conditioning(self.adapter.noise_schedule, sigma)
        if self.through is not None:
            kappa_sigma = kappa_sigma + ExactNetwork(*self.through, oracle).conditioning(sigma)
        if self.adapter.time_argument == "log_sigma":
            kappa_sigma = kappa_sigma + sigma.log().abs()
        if self.adapter.time_argument == "1-time":
            t = self.adapter.noise_schedule.time(sigma)
            kappa_sigma = kappa_sigma * (1 + 1 / t)
        # Sigma itself is float32 in narrow dtypes, and exact here: the subject reads the same one.
        unit = gamma(OPERATIONS, dtype)
        moved = (1 + kappa_alpha)[:, None] * by_x + (1 + kappa_sigma)[:, None] * by_sigma.abs()
        if self.through is None:
            eps = ((x - D.detach().reshape(x.shape)) / per_sample(sigma, x)).flatten(1)
            by_alpha, by_level = self._read(x.flatten(1), D.detach(), eps, sigma)
            moved = moved + kappa_alpha[:, None] * by_alpha + kappa_sigma[:, None] * by_level
        return unit * moved.detach().reshape(x.shape)

    def _read(self, x: Tensor, D: Tensor, eps: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """|alpha dD/dalpha| and |sigma dD/dsigma| through q at a fixed D, in D read off q."""
        kind = self.adapter.kind
        pairs = jvp(lambda s: pair_weights(kind, s), (sigma,), (sigma,))
        (_, b), (a_slope, b_slope) = pairs[0], pairs[1]
        B = (1 / slope(kind, sigma).abs())[:, None]
        by_level = B * (a_slope[:, None] * D + (b_slope - b)[:, None] * eps).abs()
        by_alpha = B * (b / sigma).abs()[:, None] * x.abs()
        if kind == "score":  # that of the state's own density, 1/alpha times ours
            by_alpha = by_alpha + B * b.abs()[:, None] * eps.abs()
        return by_alpha, by_level

    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[Row]:
        oracle = next(iter(self.oracles.values()), mixture())
        return structure(self.name, self.denoiser(oracle), oracle, self, dtypes)


def structure(
    name: str,
    denoise: Denoise,
    oracle: Oracle,
    subject: ExternalDenoiser,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32),
) -> list[Row]:
    """What any denoiser owes its caller, whatever it was trained on."""
    found: list[Row] = []
    x0, eps, sigma = noisy(oracle, subject.levels, 4)
    wide = x0 + per_sample(sigma, x0) * eps
    for dtype in dtypes:
        word = str(dtype).removeprefix("torch.")
        x, level = wide.to(dtype), sigma.to(torch.promote_types(dtype, torch.float32))
        try:
            with torch.no_grad():
                before = x.clone(), level.clone()
                state = torch.get_rng_state()
                D = denoise(x, level)
                quiet = torch.equal(torch.get_rng_state(), state)
                again = denoise(before[0].clone(), before[1].clone())
                ones = torch.cat([denoise(x[i : i + 1], level[i : i + 1]) for i in range(len(x))])
        except (RuntimeError, TypeError, ValueError, AttributeError) as problem:
            if dtype == dtypes[0] and not _narrow(denoise, wide, sigma):
                raise InputError(f"{name} raised {type(problem).__name__}: {problem}") from problem
            found.append(skipped(SHAPE, name, f"{dtype}: it raised {problem}"))
            continue
        # x in bfloat16 and sigma in float32 promote to float32, which loses nothing.
        kept = D.dtype in (dtype, level.dtype) and D.shape == x.shape
        found.append(verdict(SHAPE, name, kept, word))
        found.append(verdict(FINITE, name, bool(torch.isfinite(D).all()), word))
        same = torch.equal(x, before[0]) and torch.equal(level, before[1])
        found.append(verdict(PURE, name, same, word))
        steady = torch.allclose(D, again, rtol=0, atol=0, equal_nan=True)
        found.append(verdict(STEADY, name, quiet and steady, word))
        at = x.double(), level.double()
        bound = 2 * subject.uncertainty(oracle, *at, dtype).expand_as(at[0])
        found += rows(SINGLE, name, at[1], D.double(), ones.double(), bound, dtype)
    return found


def _narrow(denoise: Denoise, x: Tensor, sigma: Tensor) -> bool:
    """Whether the callable works in float32 at least."""
    try:
        with torch.no_grad():
            denoise(x.float(), sigma.float())
    except Exception:
        return False
    return True


class ExactNetwork(nn.Module):
    """The network whose preconditioned denoiser is the oracle: F*(c_in x, c_noise) inverted.

    sigma is read off c_noise, a monotone curve, x = input/c_in, and F is p's for
    the oracle's D there. A wrapper around it is the exact denoiser if its c_skip, c_out, c_in and
    c_noise are p's.
    """

    def __init__(
        self,
        p: Parameterization,
        sigma_data: float,
        oracle: Oracle,
        inputs: Mapping[str, str] | None = None,
        low: float = 1e-6,
        high: float = 1e6,
    ) -> None:
        super().__init__()
        self.p, self.sigma_data, self.oracle = p, sigma_data, oracle
        self.inputs = dict(inputs or {})
        self.grid = torch.linspace(math.log(low), math.log(high), 4001, dtype=torch.float64)
        self.table = self.coefficients(self.grid.exp())[1]

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_in, c_noise) at sigma, float64."""
        found = []
        for name in ("c_in", "c_noise"):
            if self.inputs.get(name) == "shared":
                found.append(SHARED[name](sigma, self.sigma_data))
            else:
                c = self.p.coefficients(sigma, sigma_data=self.sigma_data)
                found.append(c.in_ if name == "c_in" else c.noise)
        return found[0], found[1]

    def sigma(self, c_noise: Tensor) -> Tensor:
        """The noise level at which c_noise is that, (B,) float64: Newton's method from a table.

        The table's cells are 0.007 wide in log sigma; four steps square that to below rounding.
        """
        wanted = c_noise.double().detach()
        table, sign = self.table, 1 if self.table[-1] > self.table[0] else -1
        cell = torch.searchsorted(sign * table, sign * wanted).clamp(1, len(table) - 1)
        y = (self.grid[cell] + self.grid[cell - 1]) / 2
        with torch.enable_grad():
            for _ in range(4):
                y = y.detach().requires_grad_()
                c = self.coefficients(y.exp())[1]
                (rate,) = torch.autograd.grad(c.sum(), y)
                step = ((c - wanted) / rate).nan_to_num(nan=0.0)
                # Where the curve is flat to rounding, sigma is not in it: stay in the table.
                y = (y - step.clamp(-0.01, 0.01)).clamp(self.grid[0], self.grid[-1])
        return y.detach().exp()

    def forward(self, x: Tensor, c_noise: Tensor, *condition: Any) -> Tensor:
        """F of the oracle at (x/c_in, sigma(c_noise)); (B, ...), dtype of x."""
        sigma = self.sigma(c_noise.reshape(-1).expand(x.shape[0]))
        c_in, _ = self.coefficients(sigma)
        state = x.double() / per_sample(c_in, x)
        D = self.oracle.denoise(state, sigma)
        return self.p.output(D, state, sigma, sigma_data=self.sigma_data).to(x.dtype)

    def conditioning(self, sigma: Tensor) -> Tensor:
        """|d log sigma/d log c_noise|: what the rounding of c_noise does to sigma."""
        level = sigma.detach().clone().requires_grad_()
        with torch.enable_grad():
            c_noise = self.coefficients(level)[1]
            (rate,) = torch.autograd.grad(c_noise.sum(), level)
        return (c_noise / (rate * level)).abs().detach()


def around_network(
    name: str,
    wrap: Callable[[nn.Module], Callable[..., Tensor]],
    p: Parameterization,
    sigma_data: float,
    adapter: Adapter,
    levels: Tensor = LEVELS,
) -> ExternalDenoiser:
    """The subject of a wrapper: `wrap(network)` is the denoiser that p's network belongs in."""
    if not p.affine:
        raise InputError(f"{p.label} is not affine: no exact network can be made for it.")
    return ExternalDenoiser(
        name,
        lambda oracle: wrap(ExactNetwork(p, sigma_data, oracle)),
        adapter,
        distributions(),
        levels,
        (p, sigma_data),
    )
