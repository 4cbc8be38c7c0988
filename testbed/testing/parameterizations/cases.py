"""What a parameterization is tried on, and calls that protect the cases from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.testing.bounds import Rounding
from testbed.testing.cases import SIGMA_DATAS, Case, case, levels, moderate
from testbed.testing.checks import Group
from testbed.testing.rounding import K

LAWS = Group("parameterization")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def sigma_datas(p: Parameterization) -> tuple[float, ...]:
    """The values of sigma_data that p is tried at."""
    return SIGMA_DATAS if p.sigma_data is None else (p.sigma_data,)


def cases(p: Parameterization, *dtypes: torch.dtype) -> Iterator[Case]:
    """36 levels over p's range, nine for each sigma_data, one per sample.

    The batches are square, so that a sigma on the wrong axis still broadcasts.
    """
    grid, values = levels(p.sigma_range, 36), sigma_datas(p)
    for dtype, i in itertools.product(dtypes, range(4)):
        yield case((9, 9), grid[i::4], values[i % len(values)], dtype)


def mild(p: Parameterization, shape: tuple[int, ...] = (4, 3)) -> Case:
    """Few samples around sigma = 1, for what is no matter of size."""
    return case(
        shape, moderate(p.sigma_range, shape[0]), sigma_datas(p)[min(1, len(sigma_datas(p)) - 1)]
    )


def target(p: Parameterization, c: Case) -> Tensor:
    """F* of copies of the case's tensors."""
    return p.target(c.x0.clone(), c.eps.clone(), c.sigma.clone(), sigma_data=c.sigma_data)


def denoise(p: Parameterization, F: Tensor, c: Case) -> Tensor:
    """D of copies of F and of the case's tensors."""
    return p.denoise(F.clone(), c.x, c.sigma.clone(), sigma_data=c.sigma_data)


def output(p: Parameterization, D: Tensor, c: Case) -> Tensor:
    """F of copies of D and of the case's tensors."""
    return p.output(D.clone(), c.x, c.sigma.clone(), sigma_data=c.sigma_data)


def x_rounding(c: Case) -> Tensor:
    """x is the rounded x0 + sigma eps."""
    u = torch.finfo(c.dtype).eps / 2
    return u * c.x.double().abs() + gamma(2, torch.float64) * c.x_size


def parts(p: Parameterization, c: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """Target, D and coefficients with their bounds."""
    F = target(p, c)
    r = Rounding(p, c)
    dF = r.target()
    found = {"target": (F, dF), "D": (denoise(p, F, c), r.denoise(F, dF, 0.0))}
    if p.affine:
        names = ("c_skip", "c_out", "c_in", "c_noise")
        for name, q in zip(
            names, p.coefficients(c.sigma.clone(), sigma_data=c.sigma_data), strict=True
        ):
            q = q.expand(c.x0.shape[:1])
            # c_noise and 1 - c_skip may be small differences of numbers of size 1.
            found[name] = (q, gamma(K, q.dtype) * (1 + q.abs() if name != "c_in" else q.abs()))
    return found
