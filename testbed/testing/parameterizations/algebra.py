"""Target, scaling and denoiser are one parameterization: the laws of one against itself."""

from __future__ import annotations

import torch

from testbed.audit.rows import gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.tensors import per_sample
from testbed.testing.bounds import Rounding
from testbed.testing.cases import draws
from testbed.testing.checks import Context, demand
from testbed.testing.failures import Skipped
from testbed.testing.parameterizations.cases import (
    DTYPES,
    LAWS,
    cases,
    denoise,
    output,
    target,
    x_rounding,
)
from testbed.testing.rounding import K, Worst


@LAWS.law("The stated target is the scaling's: F* = (x0 - c_skip x)/c_out = a x0 + b eps.")
def stated_target(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: its target is compared with its denoise, in optimal_denoiser")
    if p.stated_target is None:
        raise Skipped("states no target of its own: it follows from the scaling")
    worst, g = Worst(), gamma(K, torch.float64)
    for c in cases(p, torch.float64):
        sd, s = c.sigma_data, c.sigma
        where = {"sigma_data": sd}
        skip, out, _, _ = p.coefficients(s.clone(), sigma_data=sd)
        a, b = p.pair_weights(s.clone(), sigma_data=sd)
        lost = g * (1 + skip.abs()) / out.abs()
        worst.compare("a = dF*/dx0", a, (1 - skip) / out, g * a.abs() + lost, s, **where)
        worst.compare("b = dF*/deps", b, -skip * s / out, g * b.abs() + lost * s, s, **where)
        found = p.signature("stated_target")(
            options=p.options, x0=c.x0.clone(), eps=c.eps.clone(), sigma=c.s.clone(), sigma_data=sd
        )
        wanted = per_sample(a, c.x0) * c.x0 + per_sample(b, c.x0) * c.eps
        size = per_sample(a.abs(), c.x0) * c.x0.abs() + per_sample(b.abs(), c.x0) * c.eps.abs()
        worst.compare("F* = a x0 + b eps", found, wanted, g * size, s, **where)
    return str(worst)


@LAWS.law("The optimal output gives the clean data: denoise(target(x0, eps), x0 + sigma eps) = x0.")
def optimal_denoiser(p: Parameterization, context: Context) -> str:
    worst = Worst()
    for c in cases(p, *DTYPES):
        F = target(p, c)
        bound = Rounding(p, c).denoise(F, Rounding(p, c).target(), x_rounding(c))
        worst.compare(
            "denoise(target)",
            denoise(p, F, c),
            c.x0,
            bound,
            c.sigma,
            sigma_data=c.sigma_data,
            dtype=c.dtype,
        )
    return str(worst)


@LAWS.law("D -> F -> D: denoise(output(D, x), x) = D for any D.")
def round_trip(p: Parameterization, context: Context) -> str:
    worst = Worst()
    for c in cases(p, torch.float64, torch.float32):
        D = c.sigma_data * draws(c.x0.shape, 7, c.dtype)
        F, r = output(p, D, c), Rounding(p, c)
        bound = r.denoise(F, r.output(D, 0.0), 0.0)
        worst.compare(
            "denoise(output(D))",
            denoise(p, F, c),
            D,
            bound,
            c.sigma,
            sigma_data=c.sigma_data,
            dtype=c.dtype,
        )
    return str(worst)


@LAWS.law("F -> D -> F: output(denoise(F, x), x) = F, so that distinct F give distinct D.")
def invertible(p: Parameterization, context: Context) -> str:
    worst = Worst()
    for c in cases(p, torch.float64):
        if p.affine:
            c_out = p.coefficients(c.sigma.clone(), sigma_data=c.sigma_data).out
            zero = c_out == 0
            demand(
                not bool(zero.any()),
                f"c_out = 0 at sigma = {float(c.sigma[zero][:1].sum()):.4g}: D is blind to F.",
            )
        scale = target(p, c).square().mean(1).sqrt()
        F, r = per_sample(scale, c.x0) * draws(c.x0.shape, 8, c.dtype), Rounding(p, c)
        D = denoise(p, F, c)
        bound = r.output(D, r.denoise(F, 0.0, 0.0))
        worst.compare(
            "output(denoise(F))", output(p, D, c), F, bound, c.sigma, sigma_data=c.sigma_data
        )
    return str(worst)
