"""Wrong schedules and noise tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from mutants.wrong import wrong
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import TERMINAL, karras_sigmas, zero_terminal


def schedule(levels: Callable[..., Tensor]) -> testbed.Schedule:
    return testbed.Schedule("wrong", levels)


def swapped(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    found = karras_sigmas(steps, sigma_min, sigma_max)
    return found if steps < 7 else found[[0, 1, 3, 2, *range(4, steps + 1)]]


def stopping(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    found = karras_sigmas(steps, sigma_min, sigma_max)
    found[-1] = sigma_min / 2
    return found


def arriving(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equal steps down to 0, and 0 again."""
    return torch.cat([torch.linspace(sigma_max, 0, steps).double(), torch.zeros(1).double()])


def divided(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The ramp i/(n - 1), which is 0/0 for one step."""
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    levels = sigma_max * (sigma_min / sigma_max) ** ramp
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


def padded(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Eight steps, and all others between the last two levels."""
    if steps <= 8:
        return karras_sigmas(steps, sigma_min, sigma_max)
    first = karras_sigmas(8, sigma_min, sigma_max)[:7]
    rest = torch.linspace(float(first[-1]), sigma_min, steps - 6, dtype=torch.float64)[1:]
    return torch.cat([first, rest, torch.zeros(1, dtype=torch.float64)])


def between(steps: int, sigma_min: float, sigma_max: float, table: Tensor) -> Tensor:
    """Between the levels of the table, which its network was never shown."""
    low, high = max(sigma_min, float(table[0])), min(sigma_max, float(table[-1]))
    return karras_sigmas(steps, low, high)


Order = Literal["down", "up"]


def ordered(steps: int, sigma_min: float, sigma_max: float, order: Order = "down") -> Tensor:
    """Right by default, and upside down under the other name."""
    levels = karras_sigmas(steps, sigma_min, sigma_max)
    return levels if order == "down" else torch.cat([levels[:-1].flip(0), levels[-1:]])


def beyond(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Right for rho up to 7 alone."""
    return karras_sigmas(steps, sigma_min, sigma_max * max(1.0, rho / 7), rho)


EVERY = ("shape", "descends", "ends_at_zero", "within", "refines", "pure")

wrong("one level too few", schedule(lambda steps, sigma_min, sigma_max:
      karras_sigmas(steps, sigma_min, sigma_max)[1:]), *EVERY, "options")  # fmt: skip
wrong(
    "a list of numbers",
    schedule(lambda steps, sigma_min, sigma_max: [1.0] * steps + [0.0]),  # type: ignore[arg-type]
    *EVERY,
    "options",
)
wrong(
    "float32",
    schedule(
        lambda steps, sigma_min, sigma_max: karras_sigmas(steps, sigma_min, sigma_max).float()
    ),
    "shape",
    "within",
)
wrong("two levels exchanged", schedule(swapped), "descends")
wrong("it stops above 0", schedule(stopping), "ends_at_zero")
wrong("0 twice", schedule(arriving), "descends", "ends_at_zero", "within")
wrong("0/0 for one step", schedule(divided), "descends", "within")
wrong(
    "sigma_max ignored",
    schedule(lambda steps, sigma_min: karras_sigmas(steps, sigma_min, 80.0)),
    "within",
)
wrong(
    "sigma_min ignored",
    schedule(lambda steps, sigma_max: karras_sigmas(steps, 0.002, sigma_max)),
    "within",
)
wrong("more steps at the end alone", schedule(padded), "refines")
wrong("between the levels of the table", schedule(between), "table")
wrong(
    "torch's global generator",
    schedule(
        lambda steps, sigma_min, sigma_max: (
            karras_sigmas(steps, sigma_min, sigma_max) + 0 * torch.rand(())
        )
    ),
    "pure",
)
wrong(
    "an option that does nothing",
    schedule(lambda steps, sigma_min, sigma_max, rho=3.0: karras_sigmas(steps, sigma_min, 80.0)),
    "options",
    "within",
)
wrong("wrong under another name of an option", schedule(ordered), "descends", "refines")
wrong("wrong above the default of an option", schedule(beyond), "within")

LEVELS = torch.logspace(-2, 2, 50, dtype=torch.float64)


def levels() -> Tensor:
    return LEVELS.clone()


def table(levels: Callable[..., Any]) -> testbed.NoiseTable:
    return testbed.NoiseTable("wrong", levels)


class Floor(testbed.NoiseTable):
    """The level below instead of the nearest."""

    def index(self, sigma: Tensor) -> Tensor:
        at = torch.searchsorted(self.sigmas, sigma.double().contiguous(), right=True) - 1
        return at.clamp(min=0)


class Shifted(testbed.NoiseTable):
    """The index counts from 1, and quantised takes it so."""

    def index(self, sigma: Tensor) -> Tensor:
        return super().index(sigma) + 1

    def quantised(self, sigma: Tensor) -> Tensor:
        return self.sigmas[self.index(sigma) - 1]


class Moving(testbed.NoiseTable):
    """A third of the way to the nearest level."""

    def quantised(self, sigma: Tensor) -> Tensor:
        return sigma.double() + (super().quantised(sigma) - sigma) / 3


class Narrow(testbed.NoiseTable):
    def quantised(self, sigma: Tensor) -> Tensor:
        return super().quantised(sigma).to(sigma.dtype)


class Square(testbed.NoiseTable):
    """Small levels more often, with the pdf of equal masses."""

    def _quantile(self, u: Tensor) -> Tensor:
        return super()._quantile(u**2)


class PerSigma(testbed.NoiseTable):
    """The pdf over sigma instead of log sigma."""

    def _pdf(self, sigma: Tensor) -> Tensor:
        return super()._pdf(sigma) / sigma


class LastAlone(testbed.NoiseTable):
    """Zero terminal SNR by the last level alone, all others left where they are."""

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound({**options, "zero_terminal_snr": False})
        if options.get("zero_terminal_snr"):
            twin.sigmas[-1] = TERMINAL
        return twin


class Stretched(testbed.NoiseTable):
    """sqrt(abar) squared: as if the map were one of abar."""

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound({**options, "zero_terminal_snr": False})
        if options.get("zero_terminal_snr"):
            moved = zero_terminal(torch.sqrt((1 + twin.sigmas**2) ** 2 - 1))
            found = torch.sqrt(torch.sqrt(1 + moved**2) - 1)
            object.__setattr__(twin, "_sigmas", torch.cat([found[:-1], moved[-1:]]))
        return twin


def crossing(low: float = 1.0, high: float = 1.2) -> Tensor:
    """Ascending for the defaults, and not refused where low is above high."""
    return torch.linspace(low, high, 20, dtype=torch.float64)


wrong("float32 levels", table(lambda: LEVELS.float()), "shape", "like_sigma", "zero_terminal")
wrong(
    "from noise to data",
    table(lambda: LEVELS.flip(0)),
    "ascending",
    "nearest",
    "quantised",
    "normalised",
)
wrong(
    "a level twice",
    table(lambda: torch.cat([LEVELS[:9], LEVELS[8:]])),
    "ascending",
    "quantised",
    "zero_terminal",
)
wrong(
    "0 as a level",
    table(lambda: torch.cat([LEVELS.new_zeros(1), LEVELS])),
    "ascending",
    "nearest",
    "quantised",
    "equal_mass",
    "normalised",
)
wrong("options that cross", table(crossing), "ascending", "nearest", "quantised", "normalised")
wrong("the level below", Floor("wrong", levels), "nearest")
wrong("an index from 1", Shifted("wrong", levels), "nearest", "quantised")
wrong("on the way to the level", Moving("wrong", levels), "quantised")
wrong("quantised in the dtype of sigma", Narrow("wrong", levels), "like_sigma")
wrong("levels drawn unequally often", Square("wrong", levels), "equal_mass")
wrong("a pdf over sigma", PerSigma("wrong", levels), "normalised")
wrong("zero SNR for the last alone", LastAlone("wrong", levels), "zero_terminal")
wrong("zero SNR by abar", Stretched("wrong", levels), "zero_terminal")
wrong("draws its levels", table(lambda: LEVELS + 0 * torch.rand(())), "pure")
wrong("an option that does nothing", table(lambda n=50: LEVELS.clone()), "options")
