"""Target, scaling and denoiser are one parameterization: the laws of one against itself."""

from __future__ import annotations

import itertools

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

SPREAD = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 8.0)
"""sigma_data of the channels of a case, whose samples are rows of nine."""


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
    _own_channel(p)
    by_channel = [p.with_channels(SPREAD)] if p.takes_channels else []
    for q, c in itertools.product([p, *by_channel], cases(p, *DTYPES)):
        F = target(q, c)
        bound = Rounding(q, c).denoise(F, Rounding(q, c).target(), x_rounding(c))
        worst.compare(
            "denoise(target)",
            denoise(q, F, c),
            c.x0,
            bound,
            c.sigma,
            sigma_data=c.sigma_data,
            dtype=c.dtype,
        )
    return str(worst)


def _own_channel(p: Parameterization) -> None:
    """CheckFailed unless the target of a channel is that of data whose channels are all like it."""
    if not p.takes_channels:
        return
    for c in cases(p, torch.float64):
        F = target(p.with_channels(SPREAD), c)
        for i, s in enumerate(SPREAD):
            alone = target(p.with_channels([s] * len(SPREAD)), c)[:, i]
            demand(
                torch.allclose(F[:, i], alone, rtol=0, atol=2.0**-40 * float(F.abs().max())),
                f"the target of channel {i} is not that of its own sigma_data_channels, {s:g}: "
                "another channel's enters it.",
            )


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
