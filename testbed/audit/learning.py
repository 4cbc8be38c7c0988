"""Level 4, learning: what a loss is made of, and what a trained model missed.

    E|D - x0|^2 = E|D - D*|^2 + E tr Cov[x0|x]      loss = excess risk + posterior variance

for any D whatever, and the score's error E|s - s*|^2 = E|D - D*|^2/sigma^4 (Fisher divergence).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from testbed.audit.curvature import jacobian
from testbed.audit.reference import noisy
from testbed.audit.rows import Row
from testbed.audit.subject import Denoise, Subject
from testbed.errors import ComponentError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

SPLIT = "loss = excess risk + posterior variance"
FALSE_ALARM = 1e-6
"""Probability that a true law fails anywhere in one audit, over all its levels."""


@dataclass(frozen=True)
class Effect:
    """A measured size with its confidence interval; it never fails."""

    name: str
    subject: str
    sigma: float
    value: float
    low: float
    high: float
    unit: str
    data: str = ""


def effects_table(found: list[Effect]) -> pd.DataFrame:
    """All effects, one line each."""
    return pd.DataFrame([asdict(effect) for effect in found], columns=list(Effect.__annotations__))


def check(subject: Subject, oracle: Oracle, draws: int = 4096) -> list[Row]:
    """The split for a deliberately wrong D, made of the subject's: 1.1 D + 0.05.

    The subject's part in it is exact, so its own error is in the loss and in the excess alike; what
    the law tests is that x0 is a draw of the posterior whose mean the subject claims to be:
    mean of |D' - x0|^2 - |D' - D|^2 - tr Cov must be 0 within its standard error, with D the
    subject's.
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
        moved = subject.uncertainty(oracle, x, sigma).expand_as(x)
        size = (wrong.abs() + x0.abs() + D.abs()) * 8 * moved
    found: list[Row] = []
    chosen = [sigma == level for level in levels]
    z = stats.norm.isf(FALSE_ALARM / (2 * len(levels)))
    for level, rows_of in zip(levels.tolist(), chosen, strict=True):
        left = (loss - excess - variance)[rows_of]
        error = float(left.mean().abs())
        bound = z * float(left.std()) / math.sqrt(len(left)) + float(size[rows_of].mean())
        ratio = error / bound if bound > 0 else (0.0 if error == 0 else math.inf)
        ratio = math.inf if math.isnan(ratio) else ratio
        found.append(Row(SPLIT, subject.name, level, "float64", error, bound, ratio))
    return found


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
    """What a trained model's D is, level by level, with t intervals over draws.

    Args:
        denoise: (x, sigma) -> x0; x (n, ...) float32, sigma (n,).
        x0: (n, ...) held-out data, float32; at least two.
        sigmas: (L,) levels.
        oracle: where the data's is known: excess risk and Fisher divergence.
        generator: for the noise.
        jacobians: how many draws get a Jacobian, for symmetry: |J - J^T|_F/|J + J^T|_F (0 for a
            gradient field, whose curl is 0) and the curl of the score, |J - J^T|_F/sigma^2.
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
    d, found = x0[0].numel(), []

    def add(what: str, sigma: float, values: Tensor, unit: str) -> None:
        mean = float(values.double().mean())
        half = (
            float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
            * float(values.double().std())
            / math.sqrt(len(values))
        )
        found.append(Effect(what, name, sigma, mean, mean - half, mean + half, unit))

    for level in sigmas.tolist():
        sigma = torch.full((len(x0),), level, dtype=torch.float64)
        x = x0 + level * eps
        with torch.no_grad():
            D = denoise(x, sigma).double()
        add("loss", level, (D - x0).square().flatten(1).mean(1), "|D - x0|^2 per dimension")
        if oracle is not None:
            exact = oracle.denoise(x.double(), sigma)
            excess = (D - exact).square().flatten(1).mean(1)
            add("excess risk", level, excess, "|D - D*|^2 per dimension")
            add("Fisher divergence", level, d * excess / level**4, "nats")
            variance = oracle.covariance_trace(x.double(), sigma) / d
            left = (D - x0).square().flatten(1).mean(1) - excess - variance
            add("loss - excess risk - posterior variance", level, left, "0 for the data's oracle")
        J = _some_jacobians(denoise, x, sigma, min(jacobians, len(x)))
        if J is not None:
            skew, whole = ((J + sign * J.mT).flatten(1).norm(dim=1) for sign in (-1, 1))
            add("asymmetry of dD/dx", level, skew / whole, "|J - J^T|/|J + J^T|")
            add("curl of the score", level, skew / level**2, "|J - J^T|/sigma^2")
    return found


def _some_jacobians(denoise: Denoise, x: Tensor, sigma: Tensor, n: int) -> Tensor | None:
    """(n, d, d) in float64; None where autograd cannot pass."""
    try:
        J = jacobian(denoise, x[:n], sigma[:n])
    except (RuntimeError, TypeError, ComponentError):
        return None
    return None if J is None or n < 2 else J.double()
