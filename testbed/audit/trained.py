"""The law of a trained Denoiser: D from the scaling against the score from F by the pair."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.audit.rows import LawCheck, gamma, rows, skipped
from testbed.diffusion.denoiser import Denoiser
from testbed.tensors import per_sample


def check_model(denoiser: Denoiser, x0: Tensor, eps: Tensor, sigma: Tensor) -> list[LawCheck]:
    """Checks a trained model's D against x + sigma^2 score, the score from F and not from D.

    Args:
        denoiser: Any Denoiser; one whose parameterization is not affine computes its score from D,
            and is skipped.
        x0, eps: (B, ...) in the model's dtype.
        sigma: The noise levels, (B,).
    """
    law, p = "trained model: D = x + sigma^2 score(F)", denoiser.parameterization
    if not p.affine:
        return [skipped(law, p.name, "not affine: its score is computed from D")]
    sd, sigma = denoiser.sigma_data, denoiser.level(sigma)
    s = per_sample(sigma, x0).double()
    x = x0 + s.to(x0.dtype) * eps
    with torch.no_grad():
        D, score = denoiser(x, sigma), denoiser.score(x, sigma)
        F = denoiser.output(x, sigma).double().abs()
    c = p.coefficients(sigma.double(), sigma_data=sd)
    weights = p.pair_weights(sigma, sigma_data=sd)
    a = per_sample(weights[0], x).abs()
    n = per_sample(weights[1] - sigma.double() * weights[0], x).abs()
    skip, out = per_sample(c.skip, x).abs(), per_sample(c.out, x).abs()
    size = skip * x.double().abs() + out * F + s * (F + a * x.double().abs()) / n
    second = x.double() + s**2 * score.double()
    return rows(law, p.name, sigma.double(), D, second, gamma(12, x.dtype) * size)
