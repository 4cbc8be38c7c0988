"""A denoiser of any codebase as a subject, and the exact network for one that wraps a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp

from testbed.audit.adapters import Adapter
from testbed.audit.algebra import conditioning
from testbed.audit.reference import DIM, LEVELS, distributions, mixture, noisy
from testbed.audit.rows import LawCheck, gamma, rows, skipped, verdict
from testbed.audit.sensitivity import Sensitivity
from testbed.audit.subject import ParameterizedDenoiser, Subject
from testbed.components.guidance import Denoise
from testbed.diffusion.parameterization import Coefficients, Parameterization
from testbed.diffusion.predictions import pair_weights, slope
from testbed.errors import InputError, one_line
from testbed.oracles import Oracle
from testbed.tensors import per_sample

OPERATIONS = 32
"""Roundings granted to an external denoiser on the way from its inputs to its output.

A torch module has as many besides as its sums have terms, whose order may depend on the batch.
"""

ANSWERS = "answers at every noise level"
SHAPE = "returns x's shape and dtype (float32 for a narrower one will do)"
FINITE = "finite at every noise level"
SINGLE = "each sample has its own sigma: a batch equals its samples one by one"
SQUARE = "the same in a batch that is as large as a dimension"
PURE = "does not change its arguments"
STEADY = "the same answer twice, without the global random state"
Make = Callable[[Oracle], Callable[..., Tensor]]


class ExternalDenoiser(Subject):
    """A callable of another codebase as a subject, read through an Adapter.

    It is audited at those of the audit's noise levels that the adapter reaches.

    Args:
        name: The name of the subject in the table.
        make: `make(oracle)` gives the callable that claims to be the exact denoiser of `oracle`.
        adapter: The conventions of the callable.
        oracles: The distributions it can be made for; none if it claims to be exact for nothing.
        wrapped: The network that it wraps, if any, and how it does.

    Raises:
        InputError: No noise level lies in the adapter's range.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        adapter: Adapter,
        oracles: Mapping[str, Oracle],
        wrapped: Wrapped | None = None,
    ) -> None:
        self.name, self.make, self.adapter, self.oracles = name, make, adapter, oracles
        self.wrapped = wrapped
        self.roundings = OPERATIONS
        self.trouble: dict[str, str] = {}
        """What it raises, by when."""
        self.refused: dict[float, str] = {}
        """The levels at which it raises, with what it raises; they are not among `levels`."""
        low, high = adapter.reaches
        self.levels = LEVELS[(low <= LEVELS) & (high >= LEVELS)]
        if adapter.table is not None:
            index = torch.unique((adapter.table - self.levels[:, None]).abs().argmin(1))
            self.levels = adapter.table[index].double()
        if len(self.levels) == 0:
            raise InputError(
                f"none of the noise levels {LEVELS.tolist()} lies between {low:g} and {high:g}."
            )

    @property
    def preconditioning(self) -> tuple[Parameterization, float] | None:
        """The parameterization and sigma_data of the network that it wraps, if any."""
        return self.wrapped and (self.wrapped.p, self.wrapped.sigma_data)

    @property
    def reference(self) -> Oracle:
        """One of its distributions; the audit's mixture where it has none."""
        return next(iter(self.oracles.values()), mixture(self.adapter.dim or DIM))

    def of_dtype(self, dtype: torch.dtype) -> ExternalDenoiser:
        """Returns the same denoiser as one that takes this dtype alone."""
        adapter = replace(self.adapter, dtype=dtype)
        same = ExternalDenoiser(self.name, self.make, adapter, self.oracles, self.wrapped)
        same.roundings = self.roundings
        return same

    def raises(self, dtype: torch.dtype, levels: Tensor | None = None) -> str:
        """Returns what it raises at these levels, by default all of its own; "" for nothing.

        Raises:
            InputError: It does not return a tensor shaped like x.
        """
        x0, eps, sigma = noisy(self.reference, self.levels if levels is None else levels, 1)
        x = (x0 + per_sample(sigma, x0) * eps).to(dtype)
        try:
            with torch.no_grad():
                self.denoiser(self.reference)(
                    x, sigma.to(torch.promote_types(dtype, torch.float32))
                )
        except InputError:
            raise
        except Exception as problem:  # the code of others may raise anything
            return brief(problem)
        return ""

    def leave_out_refused(self, dtype: torch.dtype) -> list[LawCheck]:
        """Checks that it answers at every level, and keeps those where it does as `levels`.

        Raises:
            InputError: It raises at every level, or does not return a tensor shaped like x.
        """
        problem = self.raises(dtype)
        if problem:
            self.refused = {
                float(level): why
                for level in self.levels
                if (why := self.raises(dtype, level.reshape(1)))
            }
            if len(self.refused) in (0, len(self.levels)):
                shape = tuple(self.adapter.shape or self.reference.shape)
                raise InputError(
                    f"{self.name} raised {problem}. It was given states of shape {shape} in "
                    f"{word_of(dtype)}; --shape and --dtype say which it takes, where it takes "
                    "one alone."
                )
            kept = [float(level) not in self.refused for level in self.levels]
            self.levels = self.levels[torch.tensor(kept)]
        word = word_of(dtype)
        bad = [
            LawCheck(ANSWERS, self.name, level, word, math.nan, math.nan, math.inf)
            for level in self.refused
        ]
        return bad or [verdict(ANSWERS, self.name, True, word)]

    def data(self) -> Mapping[str, Oracle]:
        return self.oracles

    def denoiser(self, oracle: Oracle) -> Denoise:
        return self.adapter(self.make(oracle))

    def sensitivity(self, oracle: Oracle, x: Tensor, sigma: Tensor) -> Sensitivity:
        """Returns the slopes of D read off q = a x0 + b eps, with B = |dD/dq|.

        They are |b/(b - sigma a)|, B |a| and B |b|; around a network, those of its
        parameterization. |dD/dx| is 1 at least: what returns x0 may have formed it as
        x - sigma eps.
        """
        if self.preconditioning is not None:
            return ParameterizedDenoiser(*self.preconditioning).sensitivity(oracle, x, sigma)
        unsigned = self.adapter.unsigned_prediction_type
        a, b = pair_weights(unsigned, sigma)
        B = 1 / slope(unsigned, sigma).abs()
        by_x = (b / (b - sigma * a)).abs().clamp(min=1)
        return Sensitivity(*(per_sample(each, x) for each in (by_x, B * a.abs(), B * b.abs())))

    def input_rounding(
        self, oracle: Oracle, x: Tensor, sigma: Tensor, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Returns gamma_32 (1 + kappa) times D's slopes, for the state and the time argument.

        The slopes |dD/dx| |x| + |sigma dD/dsigma| are taken by autograd of the oracle; kappa are
        the condition numbers of the adapter's schedule, alpha(t) and sigma(t) of a rounded t. What
        returns another prediction type, q = a D + b (x - D)/sigma, uses its own x and sigma there
        too.
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
        if self.preconditioning is not None:
            kappa_sigma = kappa_sigma + ExactNetwork(*self.preconditioning, oracle).conditioning(
                sigma
            )
        if self.adapter.time_argument == "log_sigma":
            kappa_sigma = kappa_sigma + sigma.log().abs()
        if self.adapter.time_argument == "1-time":
            t = self.adapter.noise_schedule.time(sigma)
            kappa_sigma = kappa_sigma * (1 + 1 / t)
        # Sigma itself is float32 in narrow dtypes, and exact here: the subject reads the same one.
        most = int(1 / torch.finfo(dtype).eps)  # gamma_k has no meaning from k u = 1 on
        unit = gamma(min(self.roundings, most), dtype)
        change = (1 + kappa_alpha)[:, None] * by_x + (1 + kappa_sigma)[:, None] * by_sigma.abs()
        if self.preconditioning is None:
            eps = ((x - D.detach().reshape(x.shape)) / per_sample(sigma, x)).flatten(1)
            by_alpha, by_level = self._prediction_slopes(x.flatten(1), D.detach(), eps, sigma)
            change = change + kappa_alpha[:, None] * by_alpha + kappa_sigma[:, None] * by_level
        return unit * change.detach().reshape(x.shape)

    def _prediction_slopes(
        self, x: Tensor, D: Tensor, eps: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns |alpha dD/dalpha| and |sigma dD/dsigma| of D read off q, q being of a fixed D."""
        unsigned = self.adapter.unsigned_prediction_type
        weights = jvp(lambda s: pair_weights(unsigned, s), (sigma,), (sigma,))
        (_, b), (a_slope, b_slope) = weights[0], weights[1]
        B = (1 / slope(unsigned, sigma).abs())[:, None]
        by_level = B * (a_slope[:, None] * D + (b_slope - b)[:, None] * eps).abs()
        by_alpha = B * (b / sigma).abs()[:, None] * x.abs()
        if unsigned == "score":  # that of the state's own density, 1/alpha times ours
            by_alpha = by_alpha + B * b.abs()[:, None] * eps.abs()
        return by_alpha, by_level

    def algebra(self, dtypes: tuple[torch.dtype, ...]) -> list[LawCheck]:
        return structure(self.name, self.denoiser(self.reference), self.reference, self, dtypes)


def word_of(dtype: torch.dtype) -> str:
    """Returns `float32` of torch.float32."""
    return str(dtype).removeprefix("torch.")


def brief(problem: BaseException, most: int = 200) -> str:
    """Returns an exception in one line of at most `most` letters."""
    line = one_line(problem)
    return line if len(line) <= most else line[:most] + " ..."


def structure(
    name: str,
    denoise: Denoise,
    oracle: Oracle,
    subject: ExternalDenoiser,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32),
) -> list[LawCheck]:
    """Checks what any denoiser owes its caller, whatever it was trained on."""
    checks: list[LawCheck] = []
    x0, eps, sigma64 = noisy(oracle, subject.levels, 4)
    x64 = x0 + per_sample(sigma64, x0) * eps
    for dtype in dtypes:
        word = word_of(dtype)
        x, sigma = x64.to(dtype), sigma64.to(torch.promote_types(dtype, torch.float32))
        try:
            with torch.no_grad():
                before = x.clone(), sigma.clone()
                state = torch.get_rng_state()
                D = denoise(x, sigma)
                quiet = torch.equal(torch.get_rng_state(), state)
                again = denoise(before[0].clone(), before[1].clone())
                ones = torch.cat([denoise(x[i : i + 1], sigma[i : i + 1]) for i in range(len(x))])
        except InputError:
            raise
        except Exception as problem:  # the code of others may raise anything
            checks.append(skipped(SHAPE, name, f"{word}: it raised {brief(problem)}"))
            continue
        steady = torch.allclose(D, again, rtol=0, atol=0, equal_nan=True)
        laws = {
            # x in bfloat16 and sigma in float32 promote to float32, which loses nothing.
            SHAPE: D.dtype in (dtype, sigma.dtype) and D.shape == x.shape,
            FINITE: bool(torch.isfinite(D).all()),
            PURE: torch.equal(x, before[0]) and torch.equal(sigma, before[1]),
            STEADY: quiet and steady,
        }
        checks += [verdict(law, name, held, word) for law, held in laws.items()]
        wide = x.double(), sigma.double()
        bound = 2 * subject.uncertainty(oracle, *wide, dtype).expand_as(wide[0])
        checks += rows(SINGLE, name, wide[1], D.double(), ones.double(), bound, dtype)
        # A sigma on the wrong axis broadcasts where the batch is as large as a dimension.
        for n in sorted(set(subject.adapter.shape or x.shape[1:]) - {1}):
            few = torch.arange(n) * max(1, len(x) // n) % len(x)
            try:
                with torch.no_grad():
                    square = denoise(x[few], sigma[few]).double()
            except InputError:
                raise
            except Exception as problem:
                checks.append(verdict(SQUARE, name, False, word))
                subject.trouble[f"a batch of {n} samples, as many as a dimension has"] = brief(
                    problem
                )
                continue
            checks += rows(
                SQUARE, name, wide[1][few], square, ones[few].double(), bound[few], dtype
            )
    return checks


class ExactNetwork(nn.Module):
    """The network whose preconditioned denoiser is the oracle: F*(c_in x, c_noise) inverted.

    sigma is read off c_noise, a monotone curve, x is input/c_in, and F is p's for the oracle's D
    there. A wrapper around the network is the exact denoiser if its c_skip, c_out, c_in and c_noise
    are p's.

    Args:
        p, sigma_data: The preconditioning that the network belongs in.
        oracle: The distribution of the data.
    """

    def __init__(self, p: Parameterization, sigma_data: float, oracle: Oracle) -> None:
        super().__init__()
        self.p, self.sigma_data, self.oracle = p, sigma_data, oracle
        self.grid = torch.linspace(math.log(1e-6), math.log(1e6), 4001, dtype=torch.float64)
        self.table = self.coefficients(self.grid.exp()).noise

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Returns p's coefficients at sigma, float64."""
        return self.p.coefficients(sigma, sigma_data=self.sigma_data)

    def sigma(self, c_noise: Tensor) -> Tensor:
        """Returns the noise level of c_noise, (B,) float64, by Newton's method from a table.

        The table's cells are 0.007 wide in log sigma; four steps square that to below rounding.
        """
        target = c_noise.double().detach()
        table, sign = self.table, 1 if self.table[-1] > self.table[0] else -1
        cell = torch.searchsorted(sign * table, sign * target).clamp(1, len(table) - 1)
        y = (self.grid[cell] + self.grid[cell - 1]) / 2
        with torch.enable_grad():
            for _ in range(4):
                y = y.detach().requires_grad_()
                c = self.coefficients(y.exp()).noise
                (rate,) = torch.autograd.grad(c.sum(), y)
                step = ((c - target) / rate).nan_to_num(nan=0.0)
                # Where the curve is flat to rounding, sigma is not in it: stay in the table.
                y = (y - step.clamp(-0.01, 0.01)).clamp(self.grid[0], self.grid[-1])
        return y.detach().exp()

    def forward(self, x: Tensor, c_noise: Tensor, *condition: Any) -> Tensor:
        """Returns F of the oracle at (x/c_in, sigma(c_noise)): (B, ...), dtype of x."""
        sigma = self.sigma(c_noise.reshape(-1).expand(x.shape[0]))
        state = x.double() / per_sample(self.coefficients(sigma).in_, x)
        D = self.oracle.denoise(state, sigma)
        return self.p.output(D, state, sigma, sigma_data=self.sigma_data).to(x.dtype)

    def conditioning(self, sigma: Tensor) -> Tensor:
        """Returns |d log sigma/d log c_noise|, (B,): how a rounding of c_noise moves sigma."""
        level = sigma.detach().clone().requires_grad_()
        with torch.enable_grad():
            c_noise = self.coefficients(level).noise
            (rate,) = torch.autograd.grad(c_noise.sum(), level)
        return (c_noise / (rate * level)).abs().detach()


class Wrapped(NamedTuple):
    """A network in a wrapper: `wrap(network)` is the denoiser around p's network."""

    wrap: Callable[[nn.Module], Callable[..., Tensor]]
    p: Parameterization
    sigma_data: float


class Calls(nn.Module):
    """The exact network, which remembers what it is called with and what it returns."""

    def __init__(self, network: ExactNetwork) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        """(input, c_noise, F) of each call, (B, ...), (B,) and (B, ...) float64."""

    def forward(self, x: Tensor, c_noise: Tensor, *condition: Any) -> Tensor:
        """Returns F as the network does."""
        F: Tensor = self.network(x, c_noise, *condition)
        noise = c_noise.detach().double().reshape(-1).expand(len(x))
        self.calls.append((x.detach().double(), noise, F.detach().double()))
        return F


def around_network(
    name: str,
    wrap: Callable[[nn.Module], Callable[..., Tensor]],
    p: Parameterization,
    sigma_data: float,
    adapter: Adapter,
    oracles: Mapping[str, Oracle] | None = None,
) -> ExternalDenoiser:
    """Returns a wrapper as a subject: `wrap(network)` is the denoiser around p's network.

    Raises:
        InputError: p is not affine, so that no exact network exists.
    """
    if not p.affine:
        raise InputError(f"{p.label} is not affine: no exact network can be made for it.")
    return ExternalDenoiser(
        name,
        lambda oracle: wrap(ExactNetwork(p, sigma_data, oracle)),
        adapter,
        distributions() if oracles is None else oracles,
        Wrapped(wrap, p, sigma_data),
    )
