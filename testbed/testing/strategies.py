"""Hypothesis strategies: noise levels, sigma_data, shapes, dtypes, cases and parameterizations.

from testbed.testing import strategies

@given(c=strategies.cases(), p=strategies.parameterizations())
def test_it(c, p): ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from testbed.diffusion.parameterization import Parameterization
from testbed.registry import Registry, default_registry
from testbed.testing.cases import Case, draws

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def sigmas(low: float = 1e-4, high: float = 1e4) -> st.SearchStrategy[float]:
    """Log-uniform noise levels from low to high."""

    def clipped(y: float) -> float:
        return min(max(math.exp(y), low), high)

    return st.floats(math.log(low), math.log(high)).map(clipped)


def sigmas_of(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """The noise levels at which x of a dtype has a meaning."""
    return sigmas(1e-2, 1e2) if dtype == torch.float16 else sigmas()


def dtypes(among: Sequence[torch.dtype] = DTYPES) -> st.SearchStrategy[torch.dtype]:
    """Floating-point types of data."""
    return st.sampled_from(among)


sigma_datas = sigmas(0.1, 10)
"""Log-uniform from 0.1 to 10."""

seeds = st.integers(0, 2**20)

shapes = st.integers(1, 3).flatmap(
    lambda b: st.sampled_from([(b,), (b, 1), (b, 3), (b, b), (b, 2, 3), (b, b, 2, 1)])
)
"""Batches of vectors and images; square ones, so that a sigma on the wrong axis broadcasts."""


@st.composite
def cases(draw: st.DrawFn, among: Sequence[torch.dtype] = DTYPES) -> Case:
    """x0 and eps of any shape and dtype; one noise level for all samples, or one each.

    Sigma is a tensor of float32 or wider, scalar or (B,).
    """
    dtype, shape = draw(dtypes(among)), draw(shapes)
    wide = torch.promote_types(dtype, torch.float32)
    level = sigmas_of(dtype)
    if draw(st.booleans()):
        sigma = torch.tensor(draw(level), dtype=torch.float64)
    else:
        found = draw(st.lists(level, min_size=shape[0], max_size=shape[0]))
        sigma = torch.tensor(found, dtype=torch.float64)
    sigma = sigma.to(draw(st.sampled_from([wide, torch.float64])))
    sigma_data, seed = draw(sigma_datas), draw(seeds)
    return Case(draws(shape, 2 * seed, dtype), draws(shape, 2 * seed + 1, dtype), sigma, sigma_data)


def parameterizations(registry: Registry | None = None) -> st.SearchStrategy[Parameterization]:
    """The parameterizations of a registry, the default one otherwise."""
    found = registry or default_registry()
    return st.sampled_from([found.parameterization(n) for n in found.names("parameterization")])
