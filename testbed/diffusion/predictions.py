"""Prediction types and the conversions between them.

Each type is q = a(sigma) x0 + b(sigma) eps. At a given x = x0 + sigma eps,

    x0 = (b x - sigma q)/(b - sigma a),   eps = (q - a x)/(b - sigma a),

so every conversion goes through the pair (x0, eps): n types cost n pairs (a, b) instead of n^2
equations, and no digits are lost that the pair keeps (through x0 alone, v -> eps in float32 at
sigma = 1e-4 is 3e-4 off).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.base import Sigma
from testbed.diffusion.parameterization import Parameterization, combine
from testbed.errors import UnknownName, unknown
from testbed.tensors import per_sample, widen


@dataclass(frozen=True)
class PredictionType:
    """q = a(sigma) x0 + b(sigma) eps; a and b map float64 sigma to float64, same shape."""

    name: str
    a: Callable[[Tensor], Tensor]
    b: Callable[[Tensor], Tensor]


def _alpha(sigma: Tensor) -> Tensor:
    return 1 / torch.sqrt(1 + sigma**2)


PREDICTION_TYPES = {
    prediction_type.name: prediction_type
    for prediction_type in (
        PredictionType("x0", torch.ones_like, torch.zeros_like),
        PredictionType("eps", torch.zeros_like, torch.ones_like),
        PredictionType("score", torch.zeros_like, lambda sigma: -1 / sigma),
        # Salimans and Ho 2022: v = alpha eps - s x0 with s = sigma alpha.
        PredictionType("v", lambda sigma: -sigma * _alpha(sigma), _alpha),
        # Rectified flow with t = 1 at the noise: u = eps - x0.
        PredictionType("flow", lambda sigma: -torch.ones_like(sigma), torch.ones_like),
    )
}


def prediction_type(name: str) -> PredictionType:
    """The prediction type of that name.

    Raises:
        UnknownName: there is none; the message has the nearest name.
    """
    if name not in PREDICTION_TYPES:
        raise UnknownName(unknown("prediction type", name, PREDICTION_TYPES))
    return PREDICTION_TYPES[name]


def pair_weights(
    source: str | Parameterization, sigma: Tensor, sigma_data: float | None = None
) -> tuple[Tensor, Tensor]:
    """(a, b) of q = a x0 + b eps, each float64, shaped like sigma."""
    if isinstance(source, Parameterization):
        return source.pair_weights(sigma, sigma_data=sigma_data)
    sigma = widen(sigma).double()
    return prediction_type(source).a(sigma), prediction_type(source).b(sigma)


def slope(space: str | Parameterization, sigma: Tensor, sigma_data: float | None = None) -> Tensor:
    """dq/dD = a - b/sigma at fixed x, float64, shaped like sigma; B_q = 1/|dq/dD|."""
    sigma = widen(sigma).double()
    a, b = pair_weights(space, sigma, sigma_data)
    return a - b / sigma


def to_pair(
    q: Tensor,
    source: str | Parameterization,
    *,
    x: Tensor,
    sigma: Sigma,
    sigma_data: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a prediction q of type `source` at x; both (B, ...), dtype of q."""
    if isinstance(source, Parameterization) and not source.affine:
        x0 = source.denoise(q, x, sigma, sigma_data=sigma_data).to(q.dtype)
        wide = torch.promote_types(q.dtype, torch.float32)
        eps = (x.to(wide) - x0.to(wide)) / per_sample(sigma, x)
        return x0, eps.to(q.dtype)
    sigma = widen(sigma).double()
    a, b = pair_weights(source, sigma, sigma_data)
    n = b - sigma * a
    return combine(-sigma / n, q, b / n, x), combine(1 / n, q, -a / n, x)


def from_pair(
    x0: Tensor,
    eps: Tensor,
    target: str | Parameterization,
    *,
    sigma: Sigma,
    sigma_data: float | None = None,
) -> Tensor:
    """q = a x0 + b eps of type `target`; (B, ...), dtype of x0."""
    if isinstance(target, Parameterization):
        return target.target(x0, eps, sigma, sigma_data=sigma_data)
    a, b = pair_weights(target, widen(sigma))
    return combine(a, x0, b, eps)


def convert(
    value: Tensor,
    source: str | Parameterization,
    target: str | Parameterization,
    *,
    x: Tensor,
    sigma: Sigma,
    sigma_data: float | None = None,
) -> Tensor:
    """A prediction of type `source` as one of type `target`, at the same x = x0 + sigma eps.

    Args:
        value: (B, ...) the prediction.
        source, target: "x0", "eps", "score", "v", "flow", or a Parameterization (its F).
        x: (B, ...) noisy data, variance exploding.
        sigma: scalar or (B,).
        sigma_data: sqrt(E|x0|^2 / d); needed where a parameterization takes it.

    Returns:
        (B, ...), dtype of value.

    Raises:
        UnknownName: an unknown prediction type.
        ValueError: value and x differ in shape, or sigma fits neither.

    Rounding: |error| <= gamma_12 times the sum of the absolute values of the added terms, with
    gamma_k = k u/(1 - k u). So x0 -> eps loses u/sigma for sigma -> 0 and eps -> x0 loses u sigma
    for sigma -> infinity, whatever the formula, and from v nothing is lost at either end.
    """
    if value.shape != x.shape:
        raise ValueError(f"value has shape {tuple(value.shape)}, x {tuple(x.shape)}: not the same.")
    wide = torch.promote_types(value.dtype, torch.float32)
    x0, eps = to_pair(value.to(wide), source, x=x.to(wide), sigma=sigma, sigma_data=sigma_data)
    return from_pair(x0, eps, target, sigma=sigma, sigma_data=sigma_data).to(value.dtype)
