"""The part learning: the terms of a loss, and the sizes of a trained model's errors.

    E|D - x0|^2 = E|D - D*|^2 + E tr Cov[x0|x]      loss = excess risk + posterior variance

for any D whatever, and the score's error E|s - s*|^2 = E|D - D*|^2/sigma^4 (Fisher divergence).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from testbed.audit.curvature import jacobian
from testbed.audit.reference import noisy
from testbed.audit.rows import LawCheck
from testbed.audit.subject import Subject
from testbed.components.guidance import Denoise
from testbed.errors import ComponentError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

SPLIT = "loss = excess risk + posterior variance"
FALSE_ALARM = 1e-6
"""Probability that a true law fails anywhere in one audit, over all its noise levels."""


@dataclass(frozen=True)
class Effect:
    """A measured size of a trained model with its confidence interval; it never fails."""

    name: str
    subject: str
    sigma: float
    value: float
    low: float
    high: float
    unit: str
    data: str = ""


def check(
    subject: Subject, oracle: Oracle, draws: int = 4096, dtype: torch.dtype = torch.float64
) -> list[LawCheck]:
    """Checks the split for a deliberately wrong D' = 1.1 D + 0.05, D being the subject's.

    The subject's own error is in the loss and in the excess alike. The law tests that x0 is a draw
    of the posterior whose mean the subject claims to be: the mean of
    |D' - x0|^2 - |D' - D|^2 - tr Cov must be 0 within its standard error. The subject computes in
    `dtype`.
    """
    levels = subject.levels
    x0, eps, sigma = noisy(oracle, levels, draws)
    x = x0 + per_sample(sigma, x0) * eps
    denoise = subject.denoiser(oracle)
    with torch.no_grad():
        D = denoise(x, sigma).double()
        wrong = 1.1 * D + 0.05
        loss = (wrong - x0).square().flatten(1).mean(1)
        excess = (wrong - D).square().flatten(1).mean(1)
        variance = oracle.covariance_trace(x, sigma) / oracle.dim
        # Rounding of the three terms themselves, where nothing is left to be random.
        rounding = subject.uncertainty(oracle, x, sigma, dtype).expand_as(x)
        size = (wrong.abs() + x0.abs() + D.abs()) * 8 * rounding
    checks: list[LawCheck] = []
    z = -special.ndtri(FALSE_ALARM / (2 * len(levels)))
    for level in levels:
        here = sigma == level
        rest = (loss - excess - variance)[here]
        error = float(rest.mean().abs())
        bound = z * float(rest.std()) / math.sqrt(len(rest)) + float(size[here].mean())
        ratio = error / bound if bound > 0 else (0.0 if error == 0 else math.inf)
        ratio = math.inf if math.isnan(ratio) else ratio
        checks.append(LawCheck(SPLIT, subject.name, float(level), "float64", error, bound, ratio))
    return checks


def measure(
    denoise: Denoise,
    name: str,
    x0: Tensor,
    sigmas: Tensor,
    oracle: Oracle | None,
    generator: torch.Generator,
    jacobians: int = 16,
    confidence: float = 0.95,
) -> list[Effect]:
    """Measures a trained model's D at each noise level, with t intervals over draws.

    Args:
        denoise: (x, sigma) -> x0; x (n, ...) float32, sigma (n,).
        name: The name of the model in the table.
        x0: Held-out data, (n, ...) float32; at least two samples.
        sigmas: The noise levels, (L,).
        oracle: The oracle of the data, for excess risk and Fisher divergence, where it is known.
        generator: The source of the noise.
        jacobians: The number of draws that get a Jacobian, for its asymmetry,
            |J - J^T|_F/|J + J^T|_F (0 for a gradient field, whose curl is 0), and the curl of the
            score, |J - J^T|_F/sigma^2.
        confidence: The coverage of the intervals.
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
    d, effects = x0[0].numel(), []

    def add(size: str, sigma: float, values: Tensor, unit: str) -> None:
        mean, n = float(values.double().mean()), len(values)
        quantile = float(special.stdtrit(n - 1, (1 + confidence) / 2))
        half = quantile * float(values.double().std()) / math.sqrt(n)
        effects.append(Effect(size, name, sigma, mean, mean - half, mean + half, unit))

    for level in sigmas.tolist():
        sigma = torch.full((len(x0),), level, dtype=torch.float64)
        x = x0 + level * eps
        with torch.no_grad():
            D = denoise(x, sigma).double()
        loss = (D - x0).square().flatten(1).mean(1)
        add("loss", level, loss, "|D - x0|^2 per dimension")
        if oracle is not None:
            exact = oracle.denoise(x.double(), sigma)
            excess = (D - exact).square().flatten(1).mean(1)
            add("excess risk", level, excess, "|D - D*|^2 per dimension")
            add("Fisher divergence", level, d * excess / level**4, "nats")
            variance = oracle.covariance_trace(x.double(), sigma) / d
            rest = loss - excess - variance
            add("loss - excess risk - posterior variance", level, rest, "0 for the data's oracle")
        J = _first_jacobians(denoise, x, sigma, min(jacobians, len(x)))
        if J is not None:
            skew, whole = ((J + sign * J.mT).flatten(1).norm(dim=1) for sign in (-1, 1))
            add("asymmetry of dD/dx", level, skew / whole, "|J - J^T|/|J + J^T|")
            add("curl of the score", level, skew / level**2, "|J - J^T|/sigma^2")
    return effects


def _first_jacobians(denoise: Denoise, x: Tensor, sigma: Tensor, n: int) -> Tensor | None:
    """Returns dD/dx of the first n samples, (n, d, d) float64; None where autograd cannot pass."""
    try:
        J = jacobian(denoise, x[:n], sigma[:n])
    except (RuntimeError, TypeError, ComponentError):
        return None
    return None if J is None or n < 2 else J.double()
