"""Settings that are the same objective and function family, up to a constant factor of F."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from testbed.denoiser import Denoiser
from testbed.training.objective import Objective

# Each side of a comparison is a few dozen float64 roundings of well-conditioned terms.
TOLERANCE = 1e-12


def signature(denoiser: Denoiser, objective: Objective, sigma: Tensor) -> dict[str, Tensor] | None:
    """What decides a training run, as functions of sigma; None for one that is not affine l2.

    The target's direction (a, b)/|(a, b)| up to sign, the effective weight of |F - F*|^2 up to a
    constant, and both inputs.
    """
    p, sd = objective.parameterization, objective.sigma_data
    if not p.affine or not objective.loss.quadratic:
        return None
    a, b = p.pair_weights(sigma, sigma_data=sd)
    c_in, c_noise = denoiser.inputs(sigma)
    out = p.coefficients(sigma, sigma_data=sd).out
    weight = objective.effective_weight(sigma) * out**2
    first = torch.sign(b[0] if b[0] != 0 else a[0])
    return {
        "target": first * torch.stack([a, b]) / (first * torch.stack([a[0], b[0]])).norm(),
        "weight": weight / weight.sum(),
        "c_in": c_in,
        "c_noise": c_noise,
    }


def twins(
    members: Sequence[tuple[Mapping[str, Any], Denoiser, Objective]], sigma: Tensor
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The pairs of labels whose trainings are the same, up to a constant factor of F."""
    described = [(labels, signature(d, o, sigma)) for labels, d, o in members]
    found = []
    for (first, one), (second, other) in itertools.combinations(described, 2):
        if one is None or other is None:
            continue
        same = all(
            torch.allclose(one[key], other[key], rtol=TOLERANCE, atol=TOLERANCE) for key in one
        )
        if same:
            found.append((first, second))
    return found
