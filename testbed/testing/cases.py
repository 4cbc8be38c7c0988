"""What components are tried on: clean data, noise, and one noise level per sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn

from testbed.random import stream
from testbed.tensors import per_sample

SIGMA_DATAS = (0.1, 0.5, 1.0, 10.0)


@dataclass(frozen=True)
class Case:
    """x0, eps (B, ...) of one dtype; sigma (B,) or scalar; sigma_data."""

    x0: Tensor
    eps: Tensor
    sigma: Tensor
    sigma_data: float

    @property
    def dtype(self) -> torch.dtype:
        """That of x0 and eps."""
        return self.x0.dtype

    @property
    def s(self) -> Tensor:
        """Sigma in float64, shaped to multiply x0."""
        return per_sample(self.sigma, self.x0).double()

    @property
    def x(self) -> Tensor:
        """x0 + sigma eps, from float64 rounded once to the dtype."""
        return (self.x0.double() + self.s * self.eps.double()).to(self.dtype)

    @property
    def x_size(self) -> Tensor:
        """|x0| + sigma |eps|, float64."""
        return self.x0.double().abs() + self.s * self.eps.double().abs()

    def to(self, dtype: torch.dtype) -> Self:
        """The same case in another dtype; sigma stays as it is."""
        return type(self)(self.x0.to(dtype), self.eps.to(dtype), self.sigma, self.sigma_data)


def draws(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, at least 1/16 in size, so that no product of a case underflows."""
    return _draws(tuple(shape), seed).to(dtype, copy=True)


@lru_cache(256)
def _draws(shape: tuple[int, ...], seed: int) -> Tensor:
    z = torch.randn(shape, generator=stream(seed, "testing/draws"), dtype=torch.float64)
    return z.sign() * z.abs().clamp(min=1 / 16)


def case(
    shape: tuple[int, ...],
    sigma: Tensor,
    sigma_data: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """x0 of deviation sigma_data and unit eps, both of `shape`."""
    x0 = sigma_data * draws(shape, 2 * seed)
    return Case(x0.to(dtype), draws(shape, 2 * seed + 1, dtype), sigma, sigma_data)


def levels(sigma_range: tuple[float, float] = (0.0, math.inf), n: int = 9) -> Tensor:
    """n log-spaced levels, ascending, of 1e-4 to 1e4 as far as the open range allows; float64.

    They are float32 numbers, so that sigma is the same in any dtype.
    """
    low, high = sigma_range
    bottom = max(1e-4, low * (1 + 2**-10))
    top = min(max(1e4, 1e4 * bottom), high * (1 - 2**-10))
    if bottom >= top:
        bottom = max(low * (1 + 2**-10), 1e-4 * top)
    grid = torch.logspace(math.log10(bottom), math.log10(top), n, dtype=torch.float64)
    return grid.float().double()


def moderate(sigma_range: tuple[float, float], n: int) -> Tensor:
    """n levels around 1, or around the middle of a range without 1: differences keep digits."""
    inside = levels(sigma_range, 257)
    middle = min(max(1.0, float(inside[64])), float(inside[192]))
    ratio = min(3.0, float(inside[-1]) / middle, middle / float(inside[0]))
    return torch.logspace(
        math.log10(middle / ratio**0.9), math.log10(middle * ratio**0.9), n, dtype=torch.float64
    )


def awaken(module: nn.Module | None) -> None:
    """Draws every parameter anew, so that none that starts at zero hides the rest."""
    generator = stream(0, "testing/awake")
    with torch.no_grad():
        for parameter in module.parameters() if module is not None else ():
            size = max(1, parameter.shape[-1] if parameter.ndim else 1) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / size)
