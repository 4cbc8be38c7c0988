"""Wrong parameterizations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mutants.wrong import wrong
from torch import Tensor

import testbed

# What a scaling and a target that disagree must fail; `convert` asks the stated target alone.
ALGEBRA = ("stated_target", "optimal_denoiser", "tweedie")
# What a target and a denoise that disagree must fail.
INVERSE = ("optimal_denoiser", "round_trip", "invertible", "cross_conversion", "tweedie")


def r_of(sigma: Tensor) -> Tensor:
    return torch.sqrt(1 + sigma**2)


def v_target(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return (eps - sigma * x0) / r_of(sigma)


def v_with(
    skip: Callable[[Tensor], Tensor] = lambda s: 1 / (1 + s**2),
    out: Callable[[Tensor], Tensor] = lambda s: -s / r_of(s),
    in_: Callable[[Tensor], Tensor] = lambda s: 1 / r_of(s),
    noise: Callable[[Tensor], Tensor] = lambda s: s,
    before: Callable[[Tensor], Tensor] = lambda s: s,
    target: Callable[..., Tensor] | None = v_target,
    **more: Any,
) -> testbed.Parameterization:
    """v with a part replaced; `before` is done to sigma first."""

    def scaling(sigma: Tensor) -> testbed.Coefficients:
        s = before(sigma)
        return testbed.Coefficients(skip(s), out(s), in_(s), noise(s))

    given = {"noise_kind": "sigma", "reference": "wrong on purpose", **more}
    return testbed.Parameterization("wrong", scaling, target=target, **given)


def edm_with(
    r: Callable[[Tensor, float], Tensor] = lambda s, sd: torch.sqrt(s**2 + sd**2), **more: Any
) -> testbed.Parameterization:
    """EDM with another root, and EDM's own target."""

    def scaling(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
        root = r(sigma, sigma_data)
        return testbed.Coefficients(
            sigma_data**2 / root**2, sigma * sigma_data / root, 1 / root, torch.log(sigma) / 4
        )

    def target(x0: Tensor, eps: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
        root = torch.sqrt(sigma**2 + sigma_data**2)
        return (sigma * x0 - sigma_data**2 * eps) / (sigma_data * root)

    given = {"noise_kind": "log_sigma", "reference": "wrong on purpose", **more}
    return testbed.Parameterization("wrong", scaling, target=target, **given)


def plain(
    target: Callable[..., Tensor], denoise: Callable[..., Tensor], **more: Any
) -> testbed.Parameterization:
    """One that gives target and denoise and no scaling."""
    return testbed.Parameterization(
        "wrong", target=target, denoise=denoise, reference="wrong on purpose", **more
    )


def eps_target(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return eps


def eps_denoise(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return x - sigma * F


wrong("c_out has the other sign", v_with(out=lambda s: s / r_of(s)), *ALGEBRA)
wrong("square dropped in c_skip", v_with(skip=lambda s: 1 / r_of(s)), *ALGEBRA)
wrong("alpha for sigma in c_out", v_with(out=lambda s: -1 / r_of(s)), *ALGEBRA)
wrong("root dropped", v_with(out=lambda s: -s / (1 + s**2)), *ALGEBRA)
wrong("sigma_data missing", edm_with(lambda s, sd: torch.sqrt(s**2 + 1)), *ALGEBRA)
wrong("sigma_data not squared", edm_with(lambda s, sd: torch.sqrt(s**2 + sd)), *ALGEBRA)
wrong("target negated", v_with(target=lambda x0, eps, sigma: -v_target(x0, eps, sigma)), *ALGEBRA)
wrong(
    "target off by one part in a million",
    v_with(target=lambda x0, eps, sigma: (1 + 1e-6) * v_target(x0, eps, sigma)),
    *ALGEBRA,
)
wrong(
    "x for x0 in the target",
    v_with(target=lambda x0, eps, sigma: (eps - sigma * (x0 + sigma * eps)) / r_of(sigma)),
    *ALGEBRA,
    "singular",
)
wrong(
    "target right at x0 = 0 or 1 and eps = 0 or 1 only",
    v_with(target=lambda x0, eps, sigma: v_target(x0**2, eps, sigma)),
    "stated_target",
)
wrong(
    "the first sigma for all",
    v_with(before=lambda s: 0 * s + s.reshape(-1)[:1].sum()),
    *ALGEBRA,
    "per_sample",
    "vmap",
    "injective_noise",
    "noise_kind",
)
wrong(
    "c_out vanishes above sigma = 100",
    v_with(out=lambda s: torch.where(s > 100, 0.0, -s / r_of(s)), target=None),
    "finite",
    "singular",
    *INVERSE,
)
wrong(
    "c_out overflows",
    v_with(out=lambda s: -torch.exp(s), target=None),
    "finite",
    "singular",
    *INVERSE,
)
wrong("float32 inside", v_with(before=lambda s: s.float()), *ALGEBRA, "differentiable")
wrong("c_in vanishes", v_with(in_=lambda s: torch.where(s > 1e3, 0.0, 1 / r_of(s))), "sees_x")
wrong(
    "c_out wrong on a quarter of a decade only",
    v_with(out=lambda s: torch.where((s > 0.05) & (s < 0.09), s, -s) / r_of(s)),
    *ALGEBRA,
)
wrong("c_in overflows", v_with(in_=lambda s: torch.exp(s)), "finite")
wrong("c_noise depends on the batch", v_with(noise=lambda s: s / s.mean()), "per_sample")
wrong("c_noise saturates", v_with(noise=lambda s: s.clamp(max=1)), "injective_noise", "noise_kind")
wrong(
    "c_noise is not monotone",
    v_with(noise=lambda s: torch.sin(s) + 1, noise_kind="time"),
    "injective_noise",
)
wrong("log sigma declared as sigma", v_with(noise=lambda s: torch.log(s) / 4), "noise_kind")
wrong("sigma declared as log sigma", v_with(noise_kind="log_sigma"), "noise_kind")
wrong("unknown kind of noise", v_with(noise_kind="log_snr"), "metadata")
wrong("no reference", v_with(reference=" "), "metadata")
wrong("recipe names no density", v_with(recipe=testbed.Recipe(density="log_normal")), "metadata")
wrong(
    "recipe sets an unknown option",
    v_with(recipe=testbed.Recipe(density={"name": "lognormal", "sigma": 1.0})),
    "metadata",
)
wrong(
    "singular limit not declared",
    testbed.Parameterization(
        "wrong",
        lambda sigma: testbed.Coefficients(torch.ones_like(sigma), -sigma, 1 / r_of(sigma), sigma),
        target=eps_target,
        reference="wrong on purpose",
    ),
    "singular",
)
wrong("singular limit declared that is none", v_with(singular=(math.inf,)), "singular")
wrong("claims unit_target at any sigma_data", v_with(claims=("unit_target",)), "claim.unit_target")
wrong("claims unit_input at any sigma_data", v_with(claims=("unit_input",)), "claim.unit_input")
wrong("claims homogeneous without sigma_data", v_with(claims=("homogeneous",)), "claim.homogeneous")
wrong(
    "claims homogeneous, hard-wired",
    v_with(claims=("homogeneous",), sigma_data=1.0),
    "claim.homogeneous",
)
wrong(
    "claims boundary, c_out constant",
    testbed.Parameterization(
        "wrong",
        lambda sigma: testbed.Coefficients(0 * sigma, 1 + 0 * sigma, 1 / r_of(sigma), sigma),
        target=lambda x0, eps, sigma: x0,
        reference="wrong on purpose",
        claims=("boundary",),
    ),
    "claim.boundary",
)
wrong(
    "claims boundary, 1e-9 left of c_out",
    v_with(out=lambda s: -(s / r_of(s) + 1e-9), target=None, claims=("boundary",)),
    "claim.boundary",
)
wrong("torch's global generator", v_with(before=lambda s: s + 0 * torch.rand(())), "pure")
wrong(
    "numpy's global generator", v_with(before=lambda s: s + 0 * np.random.rand()), "pure", "compile"
)
wrong(
    "Python's global generator", v_with(before=lambda s: s + 0 * random.random()), "pure", "compile"
)


wrong(  # it is refused: what takes a scalar sigma raises
    "a scalar's coefficient has a dimension",
    v_with(noise=lambda s: s.reshape(-1)),
    "shape",
    "broadcasting",
    "empty_batch",
)
wrong("a scalar is another level", v_with(before=lambda s: s if s.ndim else 2 * s), "broadcasting")


def double_in_place(sigma: Tensor) -> Tensor:
    kept = sigma.clone()
    sigma *= 2
    return kept


wrong("sigma changed in place", v_with(before=double_in_place), "pure", "differentiable")
wrong("gradient of sigma detached", v_with(before=lambda s: s.detach()), "differentiable")
wrong(
    "control flow on the values of sigma",
    v_with(before=lambda s: s if bool((s > 0).all()) else -s),
    "vmap",
    "compile",
)
wrong(
    "numpy inside",
    v_with(before=lambda s: torch.from_numpy(np.asarray(s.detach().cpu().numpy()))),
    "device",
    "differentiable",
    "vmap",
)


def dead(sigma: Tensor, gamma: float = 5.0) -> testbed.Coefficients:
    return testbed.Coefficients(1 / (1 + sigma**2), -sigma / r_of(sigma), 1 / r_of(sigma), sigma)


wrong(
    "an option that does nothing",
    testbed.Parameterization("wrong", dead, target=v_target, reference="wrong on purpose"),
    "options",
)


def across(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Sigma on the last axis where it fits there."""
    fits = x.ndim == 2 and x.shape[0] == x.shape[1]
    return x - (sigma.reshape(1, -1) if sigma.ndim and fits else sigma) * F


# Without a scaling: target and denoise.
wrong("not affine: sign of denoise", plain(eps_target, lambda F, x, sigma: x + sigma * F), *INVERSE)
wrong(
    "not affine: sigma on the wrong axis",
    plain(eps_target, across),
    "optimal_denoiser",
    "round_trip",
    "invertible",
    "cross_conversion",
    "per_sample",
)
wrong("not affine: |F|", plain(eps_target, lambda F, x, sigma: x - sigma * F.abs()), *INVERSE)
wrong(
    "not affine: clipped D",
    plain(eps_target, lambda F, x, sigma: (x - sigma * F).clamp(-1, 1)),
    *INVERSE,
)
wrong(
    "not affine: F detached",
    plain(eps_target, lambda F, x, sigma: x - sigma * F.detach()),
    "differentiable",
)


def shrink_x(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return x.sub_(sigma * F)


wrong(
    "not affine: x changed in place",
    plain(eps_target, shrink_x),
    "pure",
    "differentiable",
    "cross_conversion",
)
wrong(
    "not affine: centred on the batch",
    plain(lambda x0, eps, sigma: eps - eps.mean(0), eps_denoise),
    *INVERSE,
    "per_sample",
    "vmap",
)
wrong(
    "not affine: maximum over the batch",
    plain(eps_target, lambda F, x, sigma: x - sigma * F + 0 * x.amax()),
    "empty_batch",
)


def mixed(eps: Tensor) -> Tensor:
    """A reflection, its own inverse, (d, d)."""
    d = eps.shape[-1]
    index = torch.arange(d, device=eps.device, dtype=eps.dtype)
    return 2 * torch.outer(index + 1, index + 1) / ((index + 1) ** 2).sum() - torch.eye(
        d, device=eps.device, dtype=eps.dtype
    )


wrong(
    "not affine: a matrix product that autocast narrows",
    plain(lambda x0, eps, sigma: eps @ mixed(eps), lambda F, x, sigma: x - sigma * (F @ mixed(F))),
    "autocast",
)
wrong(
    "not affine: a constant on the CPU",
    plain(eps_target, lambda F, x, sigma: x - sigma * F * torch.ones(x.shape[-1], dtype=x.dtype)),
    "device",
)

CALLS = [0]


def counting(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    CALLS[0] += 1
    return x - sigma * F * (1 + 2.0**-52 * (CALLS[0] % 2))


wrong("not affine: remembers its calls", plain(eps_target, counting), "pure")
