"""The audit's own distributions, and how far rounding may move their exact answers.

None of them is centred, isotropic or one-dimensional: on such data many wrong formulas are right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.oracles import Empirical, Gaussian, Mixture, Oracle
from testbed.random import stream
from testbed.tensors import per_sample

LEVELS = torch.logspace(-4, 4, 9, dtype=torch.float64)


DIM = 3
"""The dimensions of the audit's own distributions, where a denoiser does not ask for others."""


def mixture(dim: int = DIM) -> Mixture:
    """Returns a mixture of three unequal modes, off-centre and asymmetric.

    In other dimensions than three the means are drawn, the same at every call.
    """
    means = torch.tensor([[1.0, -0.5, 2.0], [-1.5, 0.4, 0.3], [0.2, 1.7, -1.1]]).double()
    if dim != DIM:
        means = torch.randn(3, dim, generator=stream(0, "audit/means"), dtype=torch.float64)
    return Mixture(
        means=means,
        stds=torch.tensor([0.3, 0.7, 0.15], dtype=torch.float64),
        weights=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    )


def gaussian(dim: int = DIM) -> Gaussian:
    """Returns a Gaussian of correlated dimensions of unequal width, off-centre.

    In other dimensions than three mean and covariance are drawn, the same at every call.
    """
    S = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)
    m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    if dim != DIM:
        z = torch.randn(dim + 1, dim, generator=stream(0, "audit/covariance"), dtype=torch.float64)
        m, S = z[0], z[1:].mT @ z[1:] / dim
    return Gaussian(m, S)


def empirical(dim: int = DIM) -> Empirical:
    """Returns the empirical distribution of twelve points of the mixture."""
    return Empirical(mixture(dim).sample(12, stream(0, "audit/empirical")))


def distributions(dim: int | None = None) -> dict[str, Oracle]:
    """Returns the audit's own distributions by name, in `dim` dimensions, by default three."""
    d = DIM if dim is None else dim
    return {"mixture": mixture(d), "gaussian": gaussian(d), "empirical": empirical(d)}


def noisy(oracle: Oracle, levels: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (x0, eps, sigma), float64: `samples` at each level, the levels mixed in the batch."""
    generator = stream(0, "audit")
    sigma = levels.repeat(samples)
    x0 = oracle.sample(len(sigma), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return x0, eps, sigma


def tweedie(oracle: Oracle, x: Tensor, sigma: Tensor) -> Tensor:
    """Returns grad log p_sigma(x) by autograd of the log-density, (B, ...)."""
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_density(x, sigma).sum(), x)
    return score


class Rounding(NamedTuple):
    """Bounds on the rounding of D_A = oracle.denoise and D_B = x + sigma^2 score, (B, 1, ...)."""

    A: Tensor
    B: Tensor


def logit_size(oracle: Oracle, x: Tensor, sigma: Tensor) -> Tensor:
    """Returns M, the size of the terms of log p, (B,): |log p| + d |log sigma| + 2 d."""
    constants = oracle.dim * (2 + torch.log(sigma).abs())
    return constants.add(oracle.log_density(x, sigma).abs())


def rounding(oracle: Oracle, x: Tensor, D: Tensor, sigma: Tensor) -> Rounding:
    """Returns the bounds of both in float64, for each sample.

    Sums: x, D, x - D and, through the eigenvectors, dot products of length d, twice:
    gamma_(8+2d) (|x| + |D|).

    Softmax: an error of gamma |l_k| in each logit moves D by at most gamma sum_k r_k |l_k|
    |mu_k - D|; since l_k = log r_k + log p and r |log r| <= 1/e, that is below gamma M sqrt(tr Cov)
    with M the size of the terms that log p is the sum of. Autograd forms r_k as
    exp(l_k - log p), all of them off by a common factor 1 + gamma M, which moves D_B by
    gamma M |x - D| besides.
    """
    shape = per_sample(sigma, x).shape
    unit = gamma(8 + 2 * oracle.dim, torch.float64)
    size = (x.abs() + D.abs()).flatten(1).norm(dim=1)
    M = logit_size(oracle, x, sigma)
    spread = oracle.covariance_trace(x, sigma).clamp(min=0).sqrt()
    A = unit * (size + M * spread)
    B = A + unit * M * (x - D).flatten(1).norm(dim=1)
    return Rounding(A.reshape(shape).detach(), B.reshape(shape).detach())


def jacobian_rounding(oracle: Oracle, x: Tensor, J: Tensor, sigma: Tensor) -> Tensor:
    """Returns how far rounding may move an entry of J = Cov/sigma^2 in float64, (B, 1, 1).

    J is 1 minus or plus terms r_k L/(L + sigma^2) <= 1 and r_k (mu_k - D) pull_k with
    pull_k = C_k^-1 (x - m_k), |pull_k| <= sqrt(2 M)/sigma where r_k counts; by Cauchy and Schwarz
    their sum is below sqrt(2 M tr Cov)/sigma. Each r_k is off by gamma M, the rest by
    gamma_(8+2d).
    """
    M = logit_size(oracle, x, sigma)
    spread = oracle.covariance_trace(x, sigma).clamp(min=0).sqrt()
    size = 1 + J.flatten(1).norm(dim=1) + torch.sqrt(2 * M) * spread / sigma
    bound: Tensor = gamma(8 + 2 * oracle.dim, torch.float64) * (1 + M) * size
    return bound[:, None, None].detach()
