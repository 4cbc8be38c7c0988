"""Against the others and against a distribution: conversions, and Tweedie's formula."""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import convert
from testbed.oracles import Empirical
from testbed.tensors import per_sample
from testbed.testing.bounds import Rounding
from testbed.testing.cases import SIGMA_DATAS, Case, case, draws, levels
from testbed.testing.checks import Context
from testbed.testing.failures import Skipped
from testbed.testing.parameterizations.cases import LAWS, cases, target, x_rounding
from testbed.testing.rounding import K, Worst, carried, roundoff


def _pair_error(p: Parameterization, c: Case, F: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of (x0, eps) read off F and x; gamma_k of the added terms, as `convert` computes."""
    r = Rounding(p, c)
    dx, dF = x_rounding(c), r.target()
    if not p.affine:
        x0 = r.denoise(F, dF, dx)
        return x0, (x0 + dx + roundoff(c.dtype) * (c.x_size + c.x0.double().abs())) / c.s
    skip, _, a, b = r.coefficients
    s = c.s
    weights = p.pair_weights(c.sigma.double().clone(), sigma_data=c.sigma_data)
    n = per_sample(weights[1] - c.sigma.double() * weights[0], c.x0).abs()
    # b - sigma a may cancel, and a derived a carries what 1 - c_skip lost.
    lost = gamma(K, torch.float64) * (1 + skip) * (b + s * a) / n
    x, F = c.x.double().abs(), F.double().abs()
    g = roundoff(c.dtype)
    x0 = (s * (g * F + dF) + b * (g * x + dx)) / n + lost * c.x_size
    eps = ((g * F + dF) + a * (g * x + dx)) / n + lost * (c.x_size / s)
    return x0, eps


@LAWS.law("F* converts to every other registered parameterization's target, and from it.")
def cross_conversion(p: Parameterization, context: Context) -> str:
    worst, others = Worst(), [n for n in context.registry.names("parameterization") if n != p.name]
    if not others:
        raise Skipped("no other parameterization is registered")
    for name in others:
        q = context.registry.parameterization(name)
        low = max(p.sigma_range[0], q.sigma_range[0])
        high = min(p.sigma_range[1], q.sigma_range[1])
        if not low < high:
            continue
        wired = {sd for sd in (p.sigma_data, q.sigma_data) if sd is not None}
        if len(wired) > 1:
            continue
        for sd in wired or SIGMA_DATAS[:2]:
            c = case((9, 9), levels((low, high)), sd)
            for one, other in ((p, q), (q, p)):
                F, wanted = target(one, c), target(other, c)
                got = convert(F.clone(), one, other, x=c.x, sigma=c.sigma.clone(), sigma_data=sd)
                x0, eps = _pair_error(one, c, F)
                bound = _carried_to_target(other, c, x0, eps)
                worst.compare(
                    f"{one.name} -> {other.name}", got, wanted, bound, c.sigma, sigma_data=sd
                )
    return f"{len(others)} others, {worst}"


def _carried_to_target(q: Parameterization, c: Case, x0: Tensor, eps: Tensor) -> Tensor:
    """The effect on q's F* of errors in x0 and eps, and F*'s own rounding, twice."""
    own = 2 * Rounding(q, c).target()
    if q.affine:
        _, _, a, b = Rounding(q, c).coefficients
        return a * x0 + b * eps + own
    return own + carried(
        lambda y, e, s: q.target(y, e, s, sigma_data=c.sigma_data),
        (c.x0, c.eps, c.sigma),
        (x0, eps, torch.zeros_like(c.sigma)),
    )


@LAWS.law(
    "Tweedie on a finite data set {y_i}: F* averaged over p(y_i|x) gives D = x + sigma^2 grad log "
    "p (not affine: F* at every y_i gives y_i)."
)
def tweedie(p: Parameterization, context: Context) -> str:
    worst, n = Worst(), 6
    for like in cases(p, torch.float64):
        sd = like.sigma_data
        # Off-centre and lopsided: a mean of zero or equal distances would hide a wrong term.
        y = sd * (draws((n, 3), 11) + torch.tensor([1.0, -0.5, 0.25]).double())
        sigma = like.sigma.repeat_interleave(n)
        near = y.repeat(len(sigma) // n, 1)
        c = Case(near, draws(near.shape, 12), sigma, sd)
        x, s = c.x, c.s
        pairs = [Case(y_i.expand_as(x), (x - y_i) / s, sigma, sd) for y_i in y]
        if not p.affine:
            for y_i, pair in zip(y, pairs, strict=True):
                F = target(p, pair)
                dx = gamma(4, torch.float64) * (x.abs() + y_i.abs())
                bound = Rounding(p, pair).denoise(F, Rounding(p, pair).target(), dx)
                got = p.denoise(F, x.clone(), sigma.clone(), sigma_data=sd)
                worst.compare("denoise(F* of y_i)", got, pair.x0, bound, sigma, sigma_data=sd)
            continue
        logits = torch.stack([-(x - y_i).square().sum(1) / (2 * sigma**2) for y_i in y], 1)
        w = logits.softmax(1)
        F = sum((w[:, i, None] * target(p, pairs[i]) for i in range(n)), torch.zeros_like(x))
        D = p.denoise(F, x.clone(), sigma.clone(), sigma_data=sd)
        at = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(Empirical(y).log_density(at, sigma).sum(), at)
        # An error of u |l_i| in each logit moves its weight by as much; autograd's weights carry
        # a common factor of the size of log p besides (math of a softmax: r |log r| <= 1/e).
        M = logits.abs().mul(w).sum(1, keepdim=True) + logits.logsumexp(1, keepdim=True).abs() + n
        spread = sum((w[:, i, None] * (x - y[i]).abs() for i in range(n)), torch.zeros_like(x))
        size = sum(
            (w[:, i, None] * (pairs[i].x_size + x.abs()) for i in range(n)), torch.zeros_like(x)
        )
        dF = sum(
            (w[:, i, None] * Rounding(p, q).target() for i, q in enumerate(pairs)),
            torch.zeros_like(x),
        )
        bound = Rounding(p, c).denoise(F, dF, gamma(4, torch.float64) * size)
        g = gamma(K + 6, torch.float64)
        bound = bound + g * (size + M * spread)
        worst.compare("D of the mean F*", D, x + s**2 * score, bound, sigma, sigma_data=sd)
    return str(worst)
