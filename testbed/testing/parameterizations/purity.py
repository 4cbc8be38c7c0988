"""Manners: one sample at a time, nothing changed, and at home in torch's transforms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from testbed.diffusion.parameterization import Parameterization
from testbed.testing import behaviour
from testbed.testing.bounds import Rounding
from testbed.testing.cases import Case
from testbed.testing.checks import Context
from testbed.testing.failures import CheckFailed
from testbed.testing.parameterizations.cases import LAWS, cases, denoise, mild, parts, target
from testbed.testing.rounding import Worst


@LAWS.law("A batch is a stack of samples, in any order: each sees its own x and sigma alone.")
def per_sample_(p: Parameterization, context: Context) -> str:
    worst = Worst(same=True)
    for c in cases(p, torch.float64):
        whole = parts(p, c)
        order = torch.tensor([3, 0, 7, 1, 8, 2, 6, 4, 5])
        shuffled = parts(p, Case(c.x0[order], c.eps[order], c.sigma[order], c.sigma_data))
        alone = [
            parts(p, Case(c.x0[i : i + 1], c.eps[i : i + 1], c.sigma[i : i + 1], c.sigma_data))
            for i in range(len(order))
        ]
        for name, (value, bound) in whole.items():
            single = torch.cat([one[name][0] for one in alone])
            limit = torch.cat([one[name][1] for one in alone])
            worst.compare(
                f"{name} of one sample",
                value,
                single,
                bound + limit,
                c.sigma,
                sigma_data=c.sigma_data,
            )
            worst.compare(
                f"{name} in another order",
                value[order],
                shuffled[name][0],
                bound[order] + shuffled[name][1],
                c.sigma[order],
                sigma_data=c.sigma_data,
            )
    return str(worst)


@LAWS.law("Pure: arguments and global state stay as they were, the same call gives the same bits.")
def pure(p: Parameterization, context: Context) -> None:
    c = mild(p)
    sd = c.sigma_data
    behaviour.pure(
        lambda a, b, s: p.target(a, b, s, sigma_data=sd),
        (c.x0.clone(), c.eps.clone(), c.sigma.clone()),
    )
    behaviour.pure(
        lambda a, b, s: p.denoise(a, b, s, sigma_data=sd), (c.eps.clone(), c.x, c.sigma.clone())
    )
    if p.affine:
        behaviour.pure(lambda s: torch.stack(p.coefficients(s, sigma_data=sd)), (c.sigma.clone(),))
        if p.stated_target is not None:
            F_star = p.signature("stated_target")
            behaviour.pure(
                lambda a, b, s: F_star(options=p.options, x0=a, eps=b, sigma=s, sigma_data=sd),
                (c.x0.clone(), c.eps.clone(), c.s.clone()),
            )


@LAWS.law("Autograd gives the derivatives of target and D in x0, eps, F, x and sigma (gradcheck).")
def differentiable(p: Parameterization, context: Context) -> str:
    c = mild(p, (2, 3))
    sd = c.sigma_data

    def check(name: str, function: Callable[..., Tensor], *values: Tensor) -> None:
        inputs = tuple(value.detach().clone().requires_grad_() for value in values)
        try:
            torch.autograd.gradcheck(function, inputs)
        except Exception as problem:
            raise CheckFailed(f"{name}: {' '.join(str(problem).split())[:300]}") from problem

    check("target", lambda a, b, s: p.target(a, b, s, sigma_data=sd), c.x0, c.eps, c.sigma)
    check("D", lambda a, b, s: p.denoise(a, b, s, sigma_data=sd), c.eps, c.x, c.sigma)
    return "torch.autograd.gradcheck, float64"


@LAWS.law("torch.func.vmap over samples equals the batch.")
def vmap(p: Parameterization, context: Context) -> str:
    c, worst = mild(p), Worst(same=True)
    sd, wanted = c.sigma_data, parts(p, mild(p))
    F = wanted["target"][0]

    def both(x0: Tensor, eps: Tensor, F: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        y = p.target(x0[None], eps[None], s[None].clone(), sigma_data=sd)
        return y[0], p.denoise(F[None], x[None], s[None].clone(), sigma_data=sd)[0]

    mapped = torch.func.vmap(both, randomness="same")(c.x0, c.eps, F, c.x, c.sigma)
    for name, found in zip(("target", "D"), mapped, strict=True):
        worst.compare(name, found, wanted[name][0], 2 * wanted[name][1], c.sigma)
    return str(worst)


@LAWS.law("torch.compile traces target and D in one piece, without a graph break, to equal values.")
def compile_(p: Parameterization, context: Context) -> str:
    c, worst = mild(p), Worst(same=True)
    sd, wanted = c.sigma_data, parts(p, mild(p))

    def both(x0: Tensor, eps: Tensor, F: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        y = p.target(x0, eps, s.clone(), sigma_data=sd)
        return y, p.denoise(F, x, s.clone(), sigma_data=sd)

    found = behaviour.compiled(both, (c.x0, c.eps, wanted["target"][0], c.x, c.sigma))
    for name, value in zip(("target", "D"), found, strict=True):
        worst.compare(name, value, wanted[name][0], 2 * wanted[name][1], c.sigma)
    return str(worst)


@LAWS.law("Under torch.autocast(bfloat16) float32 stays float32: denoise(target(x0, eps), x) = x0.")
def autocast(p: Parameterization, context: Context) -> str:
    worst = Worst(same=True)
    for c in cases(p, torch.float32):
        bounds = Rounding(p, c)
        plain = target(p, c)
        limit = bounds.target(), bounds.denoise(plain, 0.0, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            F, D = target(p, c), denoise(p, plain, c)
        where = {"sigma_data": c.sigma_data}
        worst.compare("target", F, plain, 2 * limit[0], c.sigma, **where)
        worst.compare("D", D, denoise(p, plain, c), 2 * limit[1], c.sigma, **where)
    return str(worst)


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(p: Parameterization, context: Context) -> str:
    return behaviour.equal_elsewhere(p, context)
