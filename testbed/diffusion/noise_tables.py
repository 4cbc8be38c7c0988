"""Noise tables: the noise levels of a discrete denoiser, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Component, Takes
from testbed.components.density import Density
from testbed.diffusion import noise_levels
from testbed.errors import ComponentError, InputError, unknown
from testbed.hookspecs import hookimpl

NEAREST = ("sigma", "log_sigma")


class Lookup:
    """Functions of sigma at the level nearest to it, computed once for all levels of a table.

    Args:
        table: the levels, (n,).
        functions: sigma (n,) -> several tensors (n,).
    """

    def __init__(
        self, table: NoiseTable, functions: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> None:
        self.table, self.functions = table, functions
        self.rows: Tensor | None = None

    def __call__(self, sigma: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Their values in a dtype, computed in float64; each shaped like sigma, on its device."""
        rows = self.rows
        if rows is None or rows.device != sigma.device or rows.dtype != dtype:
            columns = torch.stack([one.double() for one in self.functions(self.table.sigmas)], 1)
            self.rows = columns.to(sigma.device, dtype)
        # An index in brackets without dimensions would wait for the device.
        assert self.rows is not None
        return torch.embedding(self.rows, self.table.index(sigma)).unbind(-1)


@dataclass(frozen=True)
class NoiseTable(Component):
    """The noise levels of a discrete denoiser: `levels([options])`, (n,) ascending, n >= 2.

    Every table has two options: `nearest` says whether the level nearest to a sigma is the nearest
    in "sigma" or in "log_sigma", and `zero_terminal_snr` whether the last level is moved to
    infinity (`noise_levels.zero_terminal`).

    A table has its levels, `sigmas`, once its options are bound.
    """

    axis = "table"
    functions: ClassVar = {"levels": Takes(role="levels")}
    levels: Callable[..., Tensor]
    _sigmas: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _edges: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def defaults(self) -> dict[str, Any]:
        return {"nearest": "sigma", "zero_terminal_snr": False, **super().defaults}

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        return {"nearest": NEAREST, **super().choices}

    def bound(self, options: Mapping[str, Any]) -> Self:
        table = super().bound(options)
        nearest = table.options["nearest"]
        if nearest not in NEAREST:
            raise InputError(f"{self.label}: {unknown('nearest', nearest, NEAREST)}")
        object.__setattr__(table, "_sigmas", table._made() if table.named else None)
        object.__setattr__(table, "_edges", None)
        return table

    def _made(self) -> Tensor:
        """The levels of the bound options, (n,) float64.

        Raises:
            InputError: `levels` refuses the options, or gives fewer than two levels.
            ComponentError: `levels` raises, or returns no tensor (n,).
        """
        try:
            sigmas = self.signature("levels")(options=self.options)
        except ComponentError:
            raise
        except InputError as problem:
            raise InputError(f"{self.label}: {problem}") from None
        if not isinstance(sigmas, Tensor) or sigmas.ndim != 1:
            raise self.signature("levels").wrong("a tensor of levels (n,)", sigmas)
        if len(sigmas) < 2:
            raise InputError(f"{self.label}: n = {len(sigmas)} levels: expected 2 or more.")
        if self.options["zero_terminal_snr"]:
            sigmas = noise_levels.zero_terminal(sigmas)
        return sigmas

    @property
    def named(self) -> bool:
        """Whether its options say which levels they are; `FileTable` has options that may not."""
        return True

    @property
    def sigmas(self) -> Tensor:
        """The levels, (n,) float64.

        Raises:
            InputError: the options are not bound, or do not say which levels they are.
        """
        if self._sigmas is None:
            raise InputError(f"{self.label}: its options name no levels.")
        return self._sigmas

    @property
    def terminal(self) -> bool:
        """Whether the last level stands for sigma = infinity, where there is no signal."""
        return bool(self.sigmas[-1] >= noise_levels.TERMINAL)

    def index(self, sigma: Tensor) -> Tensor:
        """The index of the nearest level, the lower of two; int64, shaped like sigma."""
        if self._edges is None:
            # Once for every step of a sampler.
            object.__setattr__(self, "_edges", self._between())
        assert self._edges is not None
        return torch.searchsorted(self._edges.to(sigma.device), sigma.double().contiguous())

    def _between(self) -> Tensor:
        """Where the nearest level changes, (n - 1,) float64."""
        below, above = self.sigmas[:-1], self.sigmas[1:]
        in_log = self.options["nearest"] == "log_sigma"
        return torch.sqrt(below * above) if in_log else (below + above) / 2

    def c_noise(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """The index of the nearest level as a c_noise, float64, shaped like sigma."""
        return self.index(sigma).double()

    def position(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """The place of sigma between two levels, as a c_noise; float64, shaped like sigma.

        It is i + (log sigma - log sigma_i)/(log sigma_(i+1) - log sigma_i), from 0 to n - 1.
        """
        levels = self.sigmas.log().to(sigma.device)
        at = sigma.double().log().contiguous()
        i = (torch.searchsorted(levels, at) - 1).clamp(0, len(levels) - 2)
        return i + ((at - levels[i]) / (levels[i + 1] - levels[i])).clamp(0, 1)

    def quantised(self, sigma: Tensor) -> Tensor:
        """The nearest level; float64, shaped like sigma."""
        return torch.take(self.sigmas.to(sigma.device), self.index(sigma))

    def snapped(self, sigma: Tensor, low: float, high: float) -> Tensor:
        """The levels nearest to the sigmas (n,), each once and ascending; (m,) float64, m <= n.

        Args:
            low, high: two of the levels; of those below, between and above them only those between
                count, such as those that training draws.
        """
        nearest = self.quantised(sigma).clamp(low, high)
        return torch.tensor(sorted(set(nearest.tolist())), dtype=torch.float64)

    def density(self, sigma_min: float, sigma_max: float) -> Density:
        """The density whose index is uniform: equal masses, cut to [sigma_min, sigma_max]."""
        cut = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        return Density("table", self._quantile, self._pdf).bound(cut)

    def _quantile(self, u: Tensor) -> Tensor:
        return noise_levels.table_quantile(self.sigmas, u)

    def _pdf(self, sigma: Tensor) -> Tensor:
        return noise_levels.table_pdf(self.sigmas, sigma)


def ddpm(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The levels of DDPM: beta rises in equal steps from `start` to `end`; (n,) float64."""
    return noise_levels.ddpm_sigmas(noise_levels.linear_betas(n, start, end))


def scaled_linear(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """The levels of latent diffusion: sqrt(beta) rises in equal steps; (n,) float64."""
    return noise_levels.ddpm_sigmas(noise_levels.scaled_linear_betas(n, start, end))


def cosine(n: int = 1000, offset: float = 0.008, most: float = 0.999) -> Tensor:
    """The levels at which abar is a squared cosine, with beta at most `most`; (n,) float64."""
    return noise_levels.ddpm_sigmas(noise_levels.cosine_betas(n, offset, most))


def karras(n: int = 1000, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """The levels at which sigma^(1/rho) rises in equal steps from low to high; (n,) float64.

    Raises:
        InputError: fewer than two or too many levels, not 0 < low < high, or not rho > 0.
    """
    if not 2 <= n <= noise_levels.MOST_LEVELS or not 0 < low < high or not rho > 0:
        raise InputError(
            f"n = {n}, low = {low:g}, high = {high:g}, rho = {rho:g}: expected n from 2 to "
            f"{noise_levels.MOST_LEVELS}, 0 < low < high and rho > 0."
        )
    return noise_levels.karras_sigmas(n, low, high, rho)[:-1].flip(0)


def geometric(n: int = 10, low: float = 0.01, high: float = 1.0) -> Tensor:
    """The levels at which log sigma rises in equal steps from low to high; (n,) float64.

    Raises:
        InputError: fewer than two or too many levels, or not 0 < low < high < infinity.
    """
    if not 2 <= n <= noise_levels.MOST_LEVELS or not 0 < low < high < math.inf:
        raise InputError(
            f"n = {n}, low = {low:g}, high = {high:g}: expected n from 2 to "
            f"{noise_levels.MOST_LEVELS} and 0 < low < high, finite."
        )
    return noise_levels.exponential_sigmas(n, low, high)[:-1].flip(0)


def flow(n: int = 1000, shift: float = 1.0) -> Tensor:
    """sigma = t/(1 - t) of n times t in equal steps up to 1, moved by `shift`; (n,) float64."""
    return noise_levels.flow_sigmas(n, shift)


TABLES = {
    table.name: table
    for table in (
        NoiseTable("ddpm", ddpm, reference="Ho et al. 2020, arXiv:2006.11239, sec. 4"),
        NoiseTable(
            "scaled_linear", scaled_linear, reference="Rombach et al. 2022, arXiv:2112.10752"
        ),
        NoiseTable(
            "cosine", cosine, reference="Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17"
        ),
        NoiseTable("karras", karras, reference="Karras et al. 2022, arXiv:2206.00364, eq. 5"),
        NoiseTable("geometric", geometric, reference="Song and Ermon 2019, arXiv:1907.05600"),
        NoiseTable("flow", flow, reference="Esser et al. 2024, arXiv:2403.03206, eq. 23"),
    )
}


@hookimpl
def testbed_tables() -> Iterable[NoiseTable]:
    yield from TABLES.values()
