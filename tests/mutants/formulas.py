"""Mistakes in conversions, coefficients and targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from laws.audit import everywhere
from mutants.registry import (
    AFFINE,
    CONVERTED,
    FAMILIES,
    REGISTRY,
    WRONG_D,
    Family,
    alpha,
    audited,
    kit,
    wrong,
)
from mutants.wrong_parameterizations import edm_with, plain, r_of, v_target, v_with
from torch import Tensor

import testbed
from testbed import tensors
from testbed.audit import reference
from testbed.audit.subject import ParameterizedDenoiser
from testbed.diffusion import parameterization, predictions
from testbed.diffusion.predictions import PredictionType

# --- conversions ----------------------------------------------------------------------------------


def of_conversions(p: testbed.Parameterization) -> set[str]:
    return audited(ParameterizedDenoiser(p, 0.5), reference.mixture(), "algebra", "oracle") | kit(p)


FAMILIES["conversion"] = Family(
    "`testbed.diffusion.predictions` and the arithmetic below it, under EDM's parameterization",
    of_conversions,
    {"edm": REGISTRY.parameterization("edm")},
)


def kind(name: str, a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> Any:
    return lambda: mock.patch.dict(predictions.PREDICTION_TYPES, {name: PredictionType(name, a, b)})


def converting(change: Callable[..., Tensor]) -> Any:
    """`change(convert, value, source, target, x=, sigma=, sigma_data=)` for convert."""
    right = predictions.convert

    def convert(*given: Any, **named: Any) -> Tensor:
        return change(right, *given, **named)

    return lambda: everywhere("convert", convert, "testbed.")


def through_x0(right: Any, value: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    x0 = right(value, source, "x0", **given)
    return right(x0, "x0", target, **given)


def first_sigma(right: Any, *given: Any, sigma: Tensor, **named: Any) -> Tensor:
    return right(*given, sigma=sigma.flatten()[0], **named)


def in_float32(right: Any, value: Tensor, *given: Any, x: Tensor, **named: Any) -> Tensor:
    return right(value.float(), *given, x=x.float(), **named).to(value.dtype)


def conversion(mistake: str, patch: Any, meant: str, *also: str) -> None:
    wrong("conversion", mistake, REGISTRY.parameterization("edm"), meant, *also, patch=patch)


conversion(
    "v with a plus: alpha eps + s x0",
    kind("v", lambda s: s * alpha(s), alpha),
    "algebra.conversion",
    CONVERTED,
)
conversion("v with sigma for s", kind("v", lambda s: -s, alpha), "algebra.conversion")
conversion(
    "v with alpha and s exchanged",
    kind("v", lambda s: -alpha(s), lambda s: s * alpha(s)),
    "algebra.conversion",
)
conversion(
    "the score of the other sign",
    kind("score", torch.zeros_like, lambda s: 1 / s),
    "algebra.conversion",
)
conversion(
    "the score over sigma^2",
    kind("score", torch.zeros_like, lambda s: -1 / s**2),
    "algebra.conversion",
)
conversion(
    "the score not divided by sigma",
    kind("score", torch.zeros_like, lambda s: -torch.ones_like(s)),
    "algebra.conversion",
)
conversion(
    "flow with t = 1 at the data",
    kind("flow", torch.ones_like, lambda s: -torch.ones_like(s)),
    "algebra.conversion",
)
conversion(
    "flow of x for x0",
    kind("flow", lambda s: -torch.ones_like(s), lambda s: 1 - s),
    "algebra.conversion",
)
conversion("through x0 alone", converting(through_x0), "algebra.conversion", CONVERTED)
conversion(
    "the first sample's sigma for all",
    converting(first_sigma),
    "algebra.conversion",
    CONVERTED,
    "parameterization.cross_conversion",
)
conversion(
    "float32 inside",
    converting(in_float32),
    "algebra.conversion",
    CONVERTED,
    "parameterization.cross_conversion",
)
conversion(
    "sigma along the last axis",
    lambda: mock.patch.object(
        parameterization, "per_sample", lambda sigma, x: tensors.widen(sigma)
    ),
    "audit.answers",
    "parameterization.cross_conversion parameterization.device",
    "parameterization.differentiable parameterization.empty_batch",
    "parameterization.invertible parameterization.optimal_denoiser",
    "parameterization.options parameterization.per_sample parameterization.pure",
    "parameterization.shape parameterization.tweedie parameterization.vmap",
)

# --- coefficients and targets ---------------------------------------------------------------------


def of_parameterization(p: testbed.Parameterization) -> set[str]:
    return audited(ParameterizedDenoiser(p, 0.5), reference.mixture()) | kit(p)


FAMILIES["coefficients"] = Family(
    "the scaling of a parameterization, with its target stated rightly",
    of_parameterization,
    {"v": v_with(), "edm": edm_with()},
)
EPS = plain(lambda x0, eps, sigma: eps, lambda F, x, sigma: x - sigma * F)
FAMILIES["target"] = Family(
    "the stated target of a parameterization, with its scaling right",
    of_parameterization,
    {"v": v_with(), "eps without a scaling": EPS},
)


def in_place(s: Tensor) -> Tensor:
    return s.log_() if s.dtype == torch.float64 else torch.log(s)


def coefficients(mistake: str, p: testbed.Parameterization, meant: str, *also: str) -> None:
    wrong("coefficients", mistake, p, meant, *also)


def score_with(out: Callable[[Tensor], Tensor], target: Callable[..., Tensor]) -> Any:
    return v_with(lambda s: torch.ones_like(s), out, target=target, singular=(0.0, math.inf))


def score(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return -eps / sigma


def x0_(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return x0


def flow(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return eps - x0


coefficients(
    "c_out of the other sign",
    v_with(out=lambda s: s / r_of(s)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
coefficients(
    "c_skip is alpha for alpha^2",
    v_with(skip=lambda s: 1 / r_of(s)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split",
)
coefficients(
    "alpha for sigma in c_out",
    v_with(out=lambda s: -1 / r_of(s)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
coefficients(
    "the root dropped in c_out",
    v_with(out=lambda s: -s / (1 + s**2)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split",
)
coefficients(
    "sigma_data missing",
    edm_with(lambda s, sd: torch.sqrt(s**2 + 1)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
coefficients(
    "sigma_data not squared",
    edm_with(lambda s, sd: torch.sqrt(s**2 + sd)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split",
)
coefficients(
    "sigma for sigma^2 in the score's c_out",
    score_with(lambda s: s, score),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
coefficients(
    "off by one part in a million",
    v_with(lambda s: 0 * s, lambda s: 1 + 1e-6 + 0 * s, target=x0_),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
)
coefficients(
    "t for 1 - t: the flow's time turned",
    v_with(lambda s: s / (1 + s), lambda s: -s / (1 + s), target=flow),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
coefficients(
    "the first sample's sigma for all",
    v_with(before=lambda s: 0 * s + s.reshape(-1)[:1].sum()),
    "algebra.consistent",
    AFFINE,
    "learning.split oracle.score oracle.target oracle.tweedie",
    "parameterization.injective_noise parameterization.noise_kind",
    "parameterization.per_sample parameterization.vmap sampling.derivative",
    "second_order.covariance",
)
coefficients(
    "bfloat16 inside",
    v_with(before=lambda s: s.bfloat16().to(s.dtype)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "parameterization.differentiable parameterization.noise_kind",
)
coefficients(
    "the gradient through sigma is detached",
    v_with(before=lambda s: s.detach()),
    "parameterization.differentiable",
)
coefficients(
    "a draw from the global random state",
    v_with(noise=lambda s: s + 0 * torch.rand(())),
    "parameterization.pure",
    "audit.answers",
)
coefficients(
    "sigma overwritten by its logarithm",
    v_with(noise=in_place, noise_kind="log_sigma"),
    "parameterization.pure",
    "audit.answers parameterization.differentiable",
    "algebra.limits algebra.conversion algebra.round_trip algebra.equivariance",
    "algebra.consistent algebra.triangle",
)


def target(mistake: str, p: testbed.Parameterization, meant: str, *also: str) -> None:
    wrong("target", mistake, p, meant, *also)


target(
    "v with a plus",
    v_with(target=lambda x0, eps, sigma: (eps + sigma * x0) / r_of(sigma)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    CONVERTED,
    "learning.split parameterization.cross_conversion second_order.positive",
)
target(
    "v of the other sign",
    v_with(target=lambda x0, eps, sigma: -v_target(x0, eps, sigma)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
target(
    "x for x0",
    v_with(target=lambda x0, eps, sigma: (eps - sigma * (x0 + sigma * eps)) / r_of(sigma)),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split parameterization.singular",
)
target(
    "the score of x_t: not multiplied by alpha",
    score_with(lambda s: s**2, lambda x0, eps, sigma: -eps * r_of(sigma) / sigma),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
target(
    "the score without 1/sigma^2, D - x",
    score_with(lambda s: s**2, lambda x0, eps, sigma: -sigma * eps),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "learning.split second_order.positive",
)
target(
    "a constant added",
    v_with(target=lambda x0, eps, sigma: v_target(x0, eps, sigma) + 1e-3),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    "second_order.positive",
)
target(
    "NaN",
    v_with(target=lambda x0, eps, sigma: v_target(x0, eps, sigma) * math.nan),
    "algebra.consistent",
    AFFINE,
    WRONG_D,
    CONVERTED,
    "algebra.equivariance learning.split parameterization.cross_conversion",
    "parameterization.differentiable parameterization.finite parameterization.invertible",
    "parameterization.singular second_order.positive second_order.symmetric",
)
target(
    "float32 inside",
    plain(lambda x0, eps, sigma: eps.float().to(eps.dtype), lambda F, x, sigma: x - sigma * F),
    "algebra.consistent",
    WRONG_D,
    "algebra.limits parameterization.cross_conversion parameterization.differentiable",
    "parameterization.invertible parameterization.optimal_denoiser",
    "parameterization.round_trip parameterization.tweedie",
)
target(
    "the gradient through eps is detached",
    plain(lambda x0, eps, sigma: eps.detach(), lambda F, x, sigma: x - sigma * F),
    "parameterization.differentiable",
    "second_order.covariance",
)
target(
    "eps overwritten",
    plain(lambda x0, eps, sigma: eps.mul_(2) / 2, lambda F, x, sigma: x - sigma * F),
    "parameterization.pure",
    "audit.answers parameterization.differentiable",
)
