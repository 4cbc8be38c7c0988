"""Level 2, oracle: the exact target gives the exact denoiser (Robbins 1956; Efron 2011)."""

from __future__ import annotations

import torch

from testbed.audit.reference import noisy, rounding, tweedie
from testbed.audit.rows import Row, gamma, rows, skipped
from testbed.audit.subject import Subject
from testbed.oracles import Oracle
from testbed.tensors import per_sample

TARGET = "target of the oracle gives its denoiser"
TWEEDIE = "Tweedie: D = x + sigma^2 grad log p"
SCORE = "score: (D - x)/sigma^2 = grad log p"


def check(
    subject: Subject,
    oracle: Oracle,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
    samples: int = 16,
) -> list[Row]:
    """The subject's D against oracle.denoise, and against autograd of oracle.log_density."""
    found: list[Row] = []
    x0, eps, sigma = noisy(oracle, subject.levels, samples)
    wide = x0 + per_sample(sigma, x0) * eps
    denoise = subject.denoiser(oracle)
    for dtype in dtypes:
        x = wide.to(dtype)
        level = sigma.to(torch.promote_types(dtype, torch.float32))
        try:
            with torch.no_grad():
                got = denoise(x, level).double()
        except (RuntimeError, TypeError, ValueError) as problem:
            if dtype == torch.float64:
                raise
            found.append(skipped(TARGET, subject.name, f"{dtype}: it raised {problem}"))
            continue
        x, at = x.double(), level.double()
        s, name = per_sample(at, x), subject.name
        D, score = oracle.denoise(x, at), tweedie(oracle, x, at)
        off, moved = rounding(oracle, x, D, at), subject.uncertainty(oracle, x, at, dtype)
        found += rows(TARGET, name, at, got, D, moved + off.A, dtype)
        found += rows(TWEEDIE, name, at, got, x + s**2 * score, moved + off.B, dtype)
        if dtype == torch.float64:
            unit = gamma(8, dtype) * (x.abs() + D.abs())
            bound = (moved + off.B + unit) / s**2
            found += rows(SCORE, name, at, (got - x) / s**2, score, bound)
    return found
