"""The identities: laws that hold up to rounding, with bounds that follow from it.

The two sides of a law never come from the same helper: D_A is `oracle.denoise`, D_B is autograd of
`oracle.log_density`; a parameterization's target and its denoiser are stated separately; for a
trained model D comes from the scaling and the score from F through the pair (x0, eps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.audit.rows import Row, gamma, rows, skipped
from testbed.components import Sampler
from testbed.denoiser import Denoiser
from testbed.noise import karras_sigmas, per_sample
from testbed.oracles import Mixture, Oracle
from testbed.parameterization import Parameterization
from testbed.predictions import KINDS, convert, pair_weights
from testbed.random import stream
from testbed.sampling.loop import sample

LEVELS = torch.logspace(-4, 4, 9, dtype=torch.float64)


def mixture() -> Mixture:
    """The audit's own data: three dimensions, three unequal modes, off-centre and asymmetric."""
    return Mixture(
        means=torch.tensor([[1.0, -0.5, 2.0], [-1.5, 0.4, 0.3], [0.2, 1.7, -1.1]]).double(),
        stds=torch.tensor([0.3, 0.7, 0.15], dtype=torch.float64),
        weights=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    )


def noisy(oracle: Oracle, levels: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x0, eps, sigma), float64: `samples` draws at each level, levels mixed in the batch."""
    generator = stream(0, "audit")
    sigma = levels.repeat(samples)
    x0 = oracle.sample(len(sigma), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return x0, eps, sigma


def tweedie(oracle: Oracle, x: Tensor, sigma: Tensor) -> Tensor:
    """grad log p_sigma(x) by autograd of the log-density, (B, ...)."""
    x = x.detach().requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_density(x, sigma).sum(), x)
    return score


class Rounding(NamedTuple):
    """How far rounding may move D_A = oracle.denoise and D_B = x + sigma^2 score, (B, 1, ...)."""

    A: Tensor
    B: Tensor


def rounding(oracle: Oracle, x: Tensor, D: Tensor, sigma: Tensor) -> Rounding:
    """Bounds in float64, per sample.

    Sums: x, D, x - D and, through the eigenvectors, dot products of length d, twice:
    gamma_(8+2d) (|x| + |D|).

    Softmax: an error of gamma |l_k| in each logit moves D by at most gamma sum_k r_k |l_k|
    |mu_k - D|; since l_k = log r_k + log p and r |log r| <= 1/e, that is below gamma M sqrt(tr Cov)
    with M the size of the terms that log p is the sum of: |log p|, d |log sigma| and d for the
    constants. Autograd forms r_k as exp(l_k - log p), all of them off by a common factor
    1 + gamma M, which moves D_B by gamma M |x - D| besides.
    """
    shape = per_sample(sigma, x).shape
    unit = gamma(8 + 2 * oracle.dim, torch.float64)
    size = (x.abs() + D.abs()).flatten(1).norm(dim=1)
    M = oracle.log_density(x, sigma).abs() + oracle.dim * (2 + sigma.log().abs())
    spread = oracle.covariance_trace(x, sigma).clamp(min=0).sqrt()
    A = unit * (size + M * spread)
    B = A + unit * M * (x - D).flatten(1).norm(dim=1)
    return Rounding(A.reshape(shape).detach(), B.reshape(shape).detach())


class Pushed(NamedTuple):
    """D through a parameterization, its slopes by autograd, and the rounding of the way."""

    D: Tensor
    by_x0: Tensor
    by_eps: Tensor
    rounding: Tensor


def push(
    p: Parameterization, sigma_data: float, D: Tensor, eps: Tensor, x: Tensor, sigma: Tensor
) -> Pushed:
    """p.denoise(p.target(D, eps), x); the rounding is gamma_12 sum_i |dD/di| |i|, i = D, eps, x.

    For an affine p the sum is |c_out a D| + |c_out b eps| + |c_skip x|, the added terms; for
    another it is the first-order effect.
    """
    parts = [part.detach().requires_grad_() for part in (D, eps, x)]
    F = p.target(parts[0], parts[1], sigma, sigma_data=sigma_data)
    through = p.denoise(F, parts[2], sigma, sigma_data=sigma_data)
    slopes = [
        torch.zeros_like(part) if slope is None else slope.abs()
        for part, slope in zip(
            parts, torch.autograd.grad(through.sum(), parts, allow_unused=True), strict=True
        )
    ]
    size = torch.stack(
        [slope * part.detach().abs() for slope, part in zip(slopes, parts, strict=True)]
    ).sum(0)
    return Pushed(through.detach(), slopes[0], slopes[1], gamma(12, torch.float64) * size)


def check_parameterization(
    p: Parameterization,
    sigma_data: float,
    oracle: Oracle | None = None,
    levels: Tensor = LEVELS,
    samples: int = 16,
) -> list[Row]:
    """Conversions of p's target, and Tweedie's formula through p, on an exact distribution.

    Args:
        p: any parameterization.
        sigma_data: handed to p.
        oracle: the distribution; by default the audit's three-dimensional mixture.
        levels: noise levels, (L,) float64.
        samples: draws per level.
    """
    oracle = oracle or mixture()
    x0, eps, sigma = noisy(oracle, levels, samples)
    s = per_sample(sigma, x0)
    found = _conversions(p, sigma_data, x0, eps, sigma, torch.float64)
    found += _conversions(p, sigma_data, x0.float(), eps.float(), sigma.float(), torch.float32)

    x = x0 + s * eps
    D = oracle.denoise(x, sigma)
    score = tweedie(oracle, x, sigma)
    # The optimal output is the mean of the target: x0 -> D_A, eps -> -sigma grad log p (D_B).
    way = push(p, sigma_data, D, -s * score, x, sigma)
    off = rounding(oracle, x, D, sigma)
    moved = way.by_x0 * off.A + way.by_eps * off.B / s + way.rounding
    tweedie_law = "Tweedie: D = x + sigma^2 grad log p"
    found += rows("target of the oracle gives its denoiser", p.name, sigma, way.D, D, moved + off.A)
    found += rows(tweedie_law, p.name, sigma, way.D, x + s**2 * score, moved + off.B)
    found += rows(
        "score: (D - x)/sigma^2 = grad log p",
        p.name,
        sigma,
        (way.D - x) / s**2,
        score,
        (moved + off.B + gamma(8, torch.float64) * (x.abs() + D.abs())) / s**2,
    )
    return found


def _conversions(
    p: Parameterization,
    sigma_data: float,
    x0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    dtype: torch.dtype,
) -> list[Row]:
    """p's target converted to every kind, against that kind of the pair it was made from."""
    law = "conversion of the target to every kind"
    if not p.affine:
        return [skipped(law, p.name, "not affine: no bound is derived")]
    s = per_sample(sigma, x0)
    x = x0 + s * eps
    F = p.target(x0, eps, sigma, sigma_data=sigma_data)
    s64 = s.double()
    root = torch.sqrt(1 + s64**2)
    expected = {
        "x0": x0.double(),
        "eps": eps.double(),
        "score": -eps.double() / s64,
        "v": (eps.double() - s64 * x0.double()) / root,
        "flow": eps.double() - x0.double(),
    }
    a, b = (per_sample(c, x0).abs() for c in p.pair_weights(sigma, sigma_data=sigma_data))
    n = per_sample(_difference(p, sigma, sigma_data), x0).abs()
    size_x = x0.abs().double() + s64 * eps.abs()
    size_F = a * x0.abs() + b * eps.abs()
    size_x0 = (s64 * size_F + b * size_x) / n
    size_eps = (size_F + a * size_x) / n
    found: list[Row] = []
    for name in KINDS:
        a_q, b_q = (per_sample(c, x0).abs() for c in pair_weights(name, sigma))
        bound = gamma(12, dtype) * (a_q * size_x0 + b_q * size_eps)
        got = convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        found += rows(f"{law}: {name}", p.name, sigma.double(), got, expected[name], bound)
    return found


def _difference(p: Parameterization, sigma: Tensor, sigma_data: float) -> Tensor:
    """b - sigma a, the determinant of (F, x) against (x0, eps)."""
    a, b = p.pair_weights(sigma, sigma_data=sigma_data)
    return b - sigma.double() * a


def check_sampler(
    p: Parameterization,
    sigma_data: float,
    samplers: Sequence[Sampler],
    oracle: Oracle | None = None,
    sigmas: Tensor | None = None,
    samples: int = 8,
) -> list[Row]:
    """The sampler's derivative and whole trajectories: by way of x0 through p, and of the score.

    Side A gives every sampler `p.denoise(p.target(D, (x - D)/sigma), x)` with D the oracle's; side
    B gives it x + sigma^2 grad log p by autograd. Rounding in each call is carried to the end point
    by the sampler's own sensitivity: |dx_end/dD_i| delta_i summed over the calls, first order, by
    autograd.
    """
    oracle = oracle or mixture()
    sigmas = karras_sigmas(18)[:-1] if sigmas is None else sigmas
    generator = stream(0, "audit/sampler")
    noise = torch.randn((samples, *oracle.shape), generator=generator, dtype=torch.float64)
    start = oracle.sample(samples, generator) + sigmas[0] * noise

    def by_data(x: Tensor, sigma: Tensor) -> Tensor:
        D = oracle.denoise(x, sigma)
        return push(p, sigma_data, D, (x - D) / per_sample(sigma, x), x, sigma).D

    def by_score(x: Tensor, sigma: Tensor) -> Tensor:
        return x.detach() + per_sample(sigma, x) ** 2 * tweedie(oracle, x, sigma)

    def uncertainty(x: Tensor, sigma: Tensor) -> Tensor:
        D, s = oracle.denoise(x, sigma).detach(), per_sample(sigma, x)
        way, off = push(p, sigma_data, D, (x - D) / s, x, sigma), rounding(oracle, x, D, sigma)
        ours = way.by_x0 * off.A + way.by_eps * (off.A + gamma(4, x.dtype) * x.abs()) / s
        return ours + way.rounding + off.B

    x0, eps, sigma = noisy(oracle, LEVELS, samples)
    s = per_sample(sigma, x0)
    x = x0 + s * eps
    found = rows(
        "derivative: (x - D)/sigma = -sigma grad log p",
        p.name,
        sigma,
        (x - by_data(x, sigma)) / s,
        -s * tweedie(oracle, x, sigma),
        (uncertainty(x, sigma) + gamma(8, x.dtype) * x.abs()) / s,
    )
    # A step's own rounding moves x_next by gamma |x|, as an error of gamma |x|/(1 - r) in D would.
    nearest = float((1 - sigmas[1:] / sigmas[:-1]).min())
    for sampler in samplers:
        law = f"trajectory by x0 and by score: {sampler.name}"
        if not sampler.deterministic:
            found.append(skipped(law, p.name, "the sampler draws noise"))
            continue
        kicks: list[Tensor] = []
        sizes: list[Tensor] = []

        def watched(
            x: Tensor, sigma: Tensor, kicks: list[Tensor] = kicks, sizes: list[Tensor] = sizes
        ) -> Tensor:
            at = x.detach()
            kicks.append(torch.zeros_like(at, requires_grad=True))
            sizes.append(uncertainty(at, sigma) + gamma(8, x.dtype) * at.abs() / nearest)
            return oracle.denoise(x, sigma) + kicks[-1]

        end = sample(watched, start, sigmas, sampler)
        bound = torch.zeros_like(end)
        for j in range(oracle.dim):
            slopes = torch.autograd.grad(end.flatten(1)[:, j].sum(), kicks, retain_graph=True)
            reach = sum(
                (slope.abs() * size).flatten(1).sum(1)
                for slope, size in zip(slopes, sizes, strict=True)
            )
            bound.flatten(1)[:, j] = reach
        by_x0, by_s = (sample(way, start, sigmas, sampler) for way in (by_data, by_score))
        end_level = sigmas[-1].expand(samples)
        found += rows(law, p.name, end_level, by_x0, by_s, bound)
    return found


def check_model(denoiser: Denoiser, x0: Tensor, eps: Tensor, sigma: Tensor) -> list[Row]:
    """A trained model's D against x + sigma^2 score, the score from F and not from D.

    Args:
        denoiser: any Denoiser; a non-affine parameterization has its score from D, and is skipped.
        x0, eps: (B, ...) in the model's dtype.
        sigma: (B,).
    """
    law, p, sd = "trained model: D = x + sigma^2 score(F)", denoiser.parameterization, 0.0
    if not p.affine:
        return [skipped(law, p.name, "not affine: its score is computed from D")]
    sd = denoiser.sigma_data
    s = per_sample(sigma, x0).double()
    x = x0 + s.to(x0.dtype) * eps
    with torch.no_grad():
        D, score = denoiser(x, sigma), denoiser.score(x, sigma)
        F = denoiser.output(x, sigma).double().abs()
    c = p.coefficients(sigma.double(), sigma_data=sd)
    a, _ = (per_sample(w, x).abs() for w in p.pair_weights(sigma, sigma_data=sd))
    n = per_sample(_difference(p, sigma, sd), x).abs()
    skip, out = per_sample(c.skip, x).abs(), per_sample(c.out, x).abs()
    size = skip * x.double().abs() + out * F + s * (F + a * x.double().abs()) / n
    second = x.double() + s**2 * score.double()
    return rows(law, p.name, sigma.double(), D, second, gamma(12, x.dtype) * size)
