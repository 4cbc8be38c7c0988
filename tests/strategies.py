"""What the laws are tried on: Hypothesis strategies, and a fixed case for the mutants."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bounds import exact, rounded
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

settings.register_profile("default", max_examples=60, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("TESTBED_PROFILE", "default"))

WIDE = (torch.float64, torch.float32)
DTYPES = (*WIDE, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Clean data, noise and noise levels. Capital letters are the same numbers with 50 digits."""

    x0: Tensor
    eps: Tensor
    sigma: Tensor
    sigma_data: float

    @property
    def dtype(self) -> torch.dtype:
        return self.x0.dtype

    @property
    def X0(self) -> Any:
        return exact(self.x0)

    @property
    def EPS(self) -> Any:
        return exact(self.eps)

    @property
    def S(self) -> Any:
        """Sigma, shaped to multiply x0."""
        return column(exact(self.sigma), self.x0)

    @property
    def SD(self) -> Any:
        return exact(self.sigma_data)

    @property
    def X(self) -> Any:
        return self.X0 + self.S * self.EPS

    @property
    def X_SIZE(self) -> Any:
        """The sum of the absolute values of x's terms."""
        return np.abs(self.X0) + self.S * np.abs(self.EPS)

    @property
    def x(self) -> Tensor:
        """x0 + sigma eps, rounded once."""
        return rounded(self.X, self.dtype)


def float64(numbers: Any) -> Tensor:
    """A tensor of Python numbers that keeps their digits."""
    return torch.tensor(numbers, dtype=torch.float64)


def column(value: Any, x: Tensor) -> Any:
    """A number, or one per sample, shaped to multiply x."""
    return value if np.ndim(value) == 0 else np.reshape(value, (-1,) + (1,) * (x.ndim - 1))


def draws(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, at least 1/16 in size, so that no product of a case underflows."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z.sign() * z.abs().clamp(min=1 / 16)).to(dtype)


def case(
    shape: tuple[int, ...],
    sigma: Tensor,
    sigma_data: float = 0.5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    return Case(draws(shape, 2 * seed, dtype), draws(shape, 2 * seed + 1, dtype), sigma, sigma_data)


def fixed(dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    """Nine levels, one per sample; square, so that a sigma on the wrong axis still broadcasts."""
    return case((9, 9), torch.logspace(-3, 2, 9, dtype=torch.float64), 0.5, dtype, seed)


def levels(low: float = 1e-4, high: float = 1e4) -> st.SearchStrategy[float]:
    """Log-uniform noise levels."""
    return st.floats(np.log(low), np.log(high)).map(lambda y: float(np.clip(np.exp(y), low, high)))


def levels_of(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """The noise levels at which a dtype has a meaning."""
    return levels(1e-2, 1e2) if dtype == torch.float16 else levels()


sigma_datas = levels(0.1, 10)
seeds = st.integers(0, 2**20)
shapes = st.integers(1, 3).flatmap(
    lambda b: st.sampled_from([(b,), (b, 1), (b, 3), (b, b), (b, 2, 3), (b, b, 2, 1)])
)


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Case:
    """Any shape, dtype and noise levels: one for all samples or one each."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(shapes)
    wide = torch.promote_types(dtype, torch.float32)
    if draw(st.booleans()):
        found: Any = draw(levels_of(dtype))
    else:
        found = draw(st.lists(levels_of(dtype), min_size=shape[0], max_size=shape[0]))
    sigma = torch.tensor(found, dtype=draw(st.sampled_from([wide, torch.float64])))
    return case(shape, sigma, draw(sigma_datas), dtype, draw(seeds))
