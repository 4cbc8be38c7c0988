"""What goes in and comes out: finite numbers, shapes, dtypes, devices, batches of any size."""

from __future__ import annotations

import itertools

import torch

from testbed.diffusion.parameterization import Parameterization
from testbed.testing import behaviour
from testbed.testing.cases import Case, levels
from testbed.testing.checks import Context, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.parameterizations.cases import (
    DTYPES,
    LAWS,
    cases,
    denoise,
    mild,
    parts,
    sigma_datas,
    target,
)
from testbed.testing.rounding import Worst


@LAWS.law("Coefficients, target and D are finite over sigma_range within [1e-4, 1e4].")
def finite(p: Parameterization, context: Context) -> str:
    for c in cases(p, torch.float64, torch.float32):
        found = {"target": target(p, c)}
        found["D"] = denoise(p, c.eps, c)
        if p.affine:
            names = ("c_skip", "c_out", "c_in", "c_noise")
            values = p.coefficients(c.sigma.clone(), sigma_data=c.sigma_data)
            found |= dict(zip(names, values, strict=True))
        for name, value in found.items():
            bad = ~torch.isfinite(value).reshape(len(c.sigma), -1).all(1)
            if bool(bad.any()):
                raise CheckFailed(
                    f"{name} is not finite at sigma = {float(c.sigma[bad][0]):.4g}, "
                    f"sigma_data = {c.sigma_data:g}, {c.dtype}."
                )
    return f"sigma from {float(c.sigma[0]):.3g} to {float(c.sigma[-1]):.3g}"


@LAWS.law("The network sees x: c_in is not 0 at any level.")
def sees_x(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: training gives it 1/sqrt(sigma^2 + sigma_data^2)")
    for sd in sigma_datas(p):
        sigma = levels(p.sigma_range, 65)
        c_in = p.coefficients(sigma.clone(), sigma_data=sd).in_
        if bool((c_in == 0).any()):
            at = float(sigma[c_in == 0][0])
            raise CheckFailed(f"c_in = 0 at sigma = {at:.4g}, sigma_data = {sd:g}.")
    return f"c_in from {float(c_in.abs().min()):.3g} to {float(c_in.abs().max()):.3g}"


@LAWS.law("Target and D have the shape and dtype of x0, coefficients the shape of sigma.")
def shape(p: Parameterization, context: Context) -> str:
    shapes = [(2,), (1, 1), (3, 3), (2, 2, 3), (3, 1, 4, 4)]
    for dims, dtype in itertools.product(shapes, (*DTYPES, torch.float16)):
        c = mild(p, dims).to(dtype)
        for sigma in (c.sigma, c.sigma[0], c.sigma.float()):
            here = Case(c.x0, c.eps, sigma, c.sigma_data)
            for name, found in (("target", target(p, here)), ("D", denoise(p, here.eps, here))):
                demand(
                    found.shape == c.x0.shape and found.dtype == dtype,
                    f"{name} is {tuple(found.shape)} {found.dtype} for x0 {dims} {dtype} and "
                    f"sigma {tuple(sigma.shape)} {sigma.dtype}.",
                )
            if p.affine:
                for q in p.coefficients(sigma.clone(), sigma_data=c.sigma_data):
                    demand(
                        q.shape == sigma.shape and q.dtype in (torch.float32, torch.float64),
                        f"a coefficient is {tuple(q.shape)} {q.dtype} for sigma "
                        f"{tuple(sigma.shape)} {sigma.dtype}.",
                    )
    return f"{len(shapes)} shapes, {len(DTYPES) + 1} dtypes"


@LAWS.law("Results are on the device of x.")
def device(p: Parameterization, context: Context) -> str:
    c = mild(p)
    sd = c.sigma_data
    behaviour.on_device(lambda a, b, s: p.target(a, b, s, sigma_data=sd), (c.x0, c.eps, c.sigma))
    return behaviour.on_device(
        lambda a, b, s: p.denoise(a, b, s, sigma_data=sd), (c.eps, c.x, c.sigma)
    )


@LAWS.law("A scalar sigma, a Python float too, means the same level for every sample.")
def broadcasting(p: Parameterization, context: Context) -> str:
    worst = Worst(same=True)
    for c in cases(p, torch.float64):
        for level in c.sigma[[0, 4, 8]]:
            full = Case(c.x0, c.eps, level.expand(9).clone(), c.sigma_data)
            wanted = parts(p, full)
            for name, (value, bound) in parts(p, Case(c.x0, c.eps, level, c.sigma_data)).items():
                worst.compare(
                    name,
                    value,
                    wanted[name][0],
                    2 * bound + wanted[name][1],
                    level,
                    sigma_data=c.sigma_data,
                )
            F = wanted["target"][0]
            got = p.denoise(F, full.x, float(level), sigma_data=c.sigma_data)
            worst.compare("D at a float", got, wanted["D"][0], 2 * wanted["D"][1], level)
    return str(worst)


@LAWS.law("No samples in, no samples out: B = 0 gives shape (0, ...).")
def empty_batch(p: Parameterization, context: Context) -> None:
    c = mild(p)
    none = Case(c.x0[:0], c.eps[:0], c.sigma[:0], c.sigma_data)
    for sigma in (none.sigma, c.sigma[0]):
        here = Case(none.x0, none.eps, sigma, c.sigma_data)
        for name, found in (("target", target(p, here)), ("D", denoise(p, none.eps, here))):
            demand(found.shape == none.x0.shape, f"{name} has shape {tuple(found.shape)}.")
