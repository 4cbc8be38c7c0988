"""Level 3, second order: Cov[x0|x] = sigma^2 dD/dx, so dD/dx is symmetric and nowhere negative."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.audit.reference import jacobian_rounding, noisy
from testbed.audit.rows import Row, gamma, rows, skipped, verdict
from testbed.audit.subject import Denoise, Subject
from testbed.errors import ComponentError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

ATTACHED = "D has a gradient with respect to x"
COVARIANCE = "second order: sigma^2 dD/dx = Cov[x0|x]"
SYMMETRIC = "second order: dD/dx is symmetric"
POSITIVE = "second order: dD/dx has no negative eigenvalue"


def jacobian(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor | None:
    """dD_i/dx_j by autograd, (B, d, d); None where D does not depend on x for autograd."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        D = denoise(x, sigma).flatten(1)
        if not D.requires_grad:
            return None
        parts = [
            torch.autograd.grad(D[:, i].sum(), x, retain_graph=True, allow_unused=True)[0]
            for i in range(D.shape[1])
        ]
    if any(part is None for part in parts):
        return None
    return torch.stack([part.flatten(1) for part in parts], dim=1)


def check(subject: Subject, oracle: Oracle, samples: int = 8) -> list[Row]:
    """The subject's Jacobian against the oracle's posterior covariance (Efron 2011, sec. 2).

    An error of the oracle's own Jacobian J reaches the subject's by its slopes |dD/dx0| and
    |dD/deps|/sigma; the last step adds gamma_12 of its terms.
    """
    x0, eps, sigma = noisy(oracle, subject.levels, samples)
    x, name = x0 + per_sample(sigma, x0) * eps, subject.name
    try:
        J = jacobian(subject.denoiser(oracle), x, sigma)
    except (RuntimeError, TypeError, ComponentError) as problem:
        return [skipped(COVARIANCE, name, f"autograd cannot pass: {problem}")]
    if J is None:
        return [verdict(ATTACHED, name, False, "float64")]
    found = [verdict(ATTACHED, name, True, "float64")]
    s, truth = sigma[:, None, None], oracle.covariance(x, sigma).detach()
    exact = truth / s**2
    off = jacobian_rounding(oracle, x, exact, sigma)
    by = [
        part.expand_as(x).flatten(1).amax(1)[:, None, None]
        for part in subject.reach(oracle, x, sigma)
    ]
    size = exact.flatten(1).norm(dim=1)[:, None, None]
    terms = by[0] + by[1] * size + by[2] * (1 + size) / s
    conditioned = subject.inexactness(oracle, x, sigma) / per_sample(sigma, x)
    state = conditioned.expand_as(x).flatten(1).amax(1)[:, None, None]
    bound = (by[1] + by[2] / s) * off + gamma(12, torch.float64) * terms + state
    found += rows(COVARIANCE, name, sigma, s**2 * J, truth, s**2 * (bound + off).expand_as(J))
    found += rows(SYMMETRIC, name, sigma, J, J.mT, (2 * bound).expand_as(J))
    finite = torch.isfinite(J).flatten(1).all(1)[:, None]
    even = torch.where(finite[..., None], (J + J.mT) / 2, 0.0)
    lowest = torch.where(finite, torch.linalg.eigvalsh(even)[:, :1], torch.nan)
    # An error of at most e in every entry moves an eigenvalue by at most d e.
    allowed = oracle.dim * (bound[:, 0] + off[:, 0])
    found += rows(POSITIVE, name, sigma, lowest.clamp(max=0), torch.zeros_like(lowest), allowed)
    return found
