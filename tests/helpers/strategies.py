"""What the laws are tried on: Hypothesis strategies, and a fixed case for the mutants."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from helpers.bounds import exact, rounded
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.testing import cases as plain
from testbed.testing import strategies
from testbed.testing.cases import draws
from testbed.testing.strategies import DTYPES, seeds, shapes, sigma_datas
from testbed.testing.strategies import sigmas as levels
from testbed.testing.strategies import sigmas_of as levels_of

__all__ = [
    "DTYPES",
    "WIDE",
    "Case",
    "case",
    "cases",
    "column",
    "draws",
    "fixed",
    "float64",
    "levels",
    "levels_of",
    "seeds",
    "shapes",
    "sigma_datas",
]

# In CI the examples follow from the tests: one tree has one verdict. Elsewhere they are new.
CI = os.environ.get("CI") == "true"
settings.register_profile("default", max_examples=25, deadline=None, derandomize=CI)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("TESTBED_PROFILE", "default"))

WIDE = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Case(plain.Case):
    """Clean data, noise and noise levels. Capital letters are the same numbers with 50 digits."""

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


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[Case]:
    """Any shape, dtype and noise levels: one for all samples or one each."""
    return strategies.cases(dtypes).map(lambda c: Case(c.x0, c.eps, c.sigma, c.sigma_data))
