"""The part oracle: the exact target gives the exact denoiser (Robbins 1956; Efron 2011)."""

from __future__ import annotations

import torch

from testbed.audit.reference import noisy, rounding, tweedie
from testbed.audit.rows import LawCheck, gamma, rows, skipped
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
) -> list[LawCheck]:
    """Checks the subject's D against oracle.denoise and against autograd of oracle.log_density."""
    checks: list[LawCheck] = []
    x0, eps, sigma64 = noisy(oracle, subject.levels, samples)
    x64, name = x0 + per_sample(sigma64, x0) * eps, subject.name
    denoise = subject.denoiser(oracle)
    for dtype in dtypes:
        x, sigma = x64.to(dtype), sigma64.to(torch.promote_types(dtype, torch.float32))
        try:
            with torch.no_grad():
                D = denoise(x, sigma).double()
        except (RuntimeError, TypeError, ValueError) as problem:
            if dtype == torch.float64:
                raise
            checks.append(skipped(TARGET, name, f"{dtype}: it raised {problem}"))
            continue
        x, sigma = x.double(), sigma.double()
        s = per_sample(sigma, x)
        exact, score = oracle.denoise(x, sigma), tweedie(oracle, x, sigma)
        off = rounding(oracle, x, exact, sigma)
        own = subject.uncertainty(oracle, x, sigma, dtype)
        checks += rows(TARGET, name, sigma, D, exact, own + off.A, dtype)
        checks += rows(TWEEDIE, name, sigma, D, x + s**2 * score, own + off.B, dtype)
        if dtype == torch.float64:
            unit = gamma(8, dtype) * (x.abs() + exact.abs())
            bound = (own + off.B + unit) / s**2
            checks += rows(SCORE, name, sigma, (D - x) / s**2, score, bound)
    return checks
