"""The part second order: Cov[x0|x] = sigma^2 dD/dx, symmetric and positive semidefinite."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.audit.reference import jacobian_rounding, noisy
from testbed.audit.rows import LawCheck, gamma, rows, skipped, verdict
from testbed.audit.subject import Subject
from testbed.components.guidance import Denoise
from testbed.errors import ComponentError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

ATTACHED = "D has a gradient with respect to x"
COVARIANCE = "second order: sigma^2 dD/dx = Cov[x0|x]"
SYMMETRIC = "second order: dD/dx is symmetric"
POSITIVE = "second order: dD/dx has no negative eigenvalue"


def jacobian(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor | None:
    """Returns dD_i/dx_j by autograd, (B, d, d); None where D does not depend on x for autograd."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        D = denoise(x, sigma).flatten(1)
        if not D.requires_grad:
            return None
        gradients = [
            torch.autograd.grad(D[:, i].sum(), x, retain_graph=True, allow_unused=True)[0]
            for i in range(D.shape[1])
        ]
    if any(gradient is None for gradient in gradients):
        return None
    return torch.stack([gradient.flatten(1) for gradient in gradients], dim=1)


def check(subject: Subject, oracle: Oracle, samples: int = 8) -> list[LawCheck]:
    """Checks the subject's Jacobian against the oracle's covariance (Efron 2011, sec. 2).

    An error of the oracle's own Jacobian J reaches the subject's by its slopes |dD/dx0| and
    |dD/deps|/sigma; the last step adds gamma_12 of its terms.
    """
    x0, eps, sigma = noisy(oracle, subject.levels, samples)
    x, name = x0 + per_sample(sigma, x0) * eps, subject.name
    try:
        J = jacobian(subject.denoiser(oracle), x, sigma)
    except (RuntimeError, TypeError, ComponentError) as problem:
        return [skipped(COVARIANCE, name, f"autograd cannot pass: {problem}")]
    checks = [verdict(ATTACHED, name, J is not None, "float64")]
    if J is None:
        return checks
    s, covariance = sigma[:, None, None], oracle.covariance(x, sigma).detach()
    exact = covariance / s**2
    rounding = jacobian_rounding(oracle, x, exact, sigma)

    def largest(errors: Tensor) -> Tensor:
        return errors.expand_as(x).flatten(1).amax(1)[:, None, None]

    by_x, by_x0, by_eps = map(largest, subject.sensitivity(oracle, x, sigma))
    size = exact.flatten(1).norm(dim=1)[:, None, None]
    terms = by_x + by_x0 * size + by_eps * (1 + size) / s
    inputs = largest(subject.input_rounding(oracle, x, sigma) / per_sample(sigma, x))
    bound = (by_x0 + by_eps / s) * rounding + gamma(12, torch.float64) * terms + inputs
    checks += rows(COVARIANCE, name, sigma, s**2 * J, covariance, s**2 * (bound + rounding))
    checks += rows(SYMMETRIC, name, sigma, J, J.mT, 2 * bound)
    finite = torch.isfinite(J).flatten(1).all(1)[:, None]
    even = torch.where(finite[..., None], (J + J.mT) / 2, 0.0)
    lowest = torch.where(finite, torch.linalg.eigvalsh(even)[:, :1], torch.nan)
    # An error of at most e in every entry moves an eigenvalue by at most d e.
    bound = oracle.dim * (bound + rounding)[:, 0]
    return checks + rows(
        POSITIVE, name, sigma, lowest.clamp(max=0), torch.zeros_like(lowest), bound
    )
