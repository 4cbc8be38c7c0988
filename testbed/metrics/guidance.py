"""Guidance against the exactly guided oracle, and a classifier against the exact one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from testbed.components.guidance import Denoise, LogClasses
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.metrics.denoising import HeldOutPairs, excess
from testbed.registry import default_registry
from testbed.sampling.guidance import class_gradient
from testbed.sampling.loop import sample

if TYPE_CHECKING:
    import pandas as pd


def per_level(
    guided: Denoise, exact: Denoise, pairs: HeldOutPairs, device: torch.device
) -> dict[str, list[float]]:
    """Returns excess_guided by level, E|D_w - D_w*|^2/d at held-out x, and excess_guided_se.

    Args:
        guided, exact: D_w of the model and of the oracle, (x, sigma) -> D.
        pairs: The held-out pairs that both are compared on.
        device: The device of the model.
    """
    with torch.no_grad():
        risks = [
            excess(guided(x, sigma), exact(x.double(), sigma)) for sigma, x in pairs.noisy(device)
        ]
    means, errors = zip(*risks, strict=True)
    return {"excess_guided": list(means), "excess_guided_se": list(errors)}


class Ends(NamedTuple):
    """The ends of trajectories, (n, ...) float64, and their error: root mean square a dimension."""

    x: Tensor
    error: float


def ode_ends(guided: Denoise, x: Tensor, high: float, low: float, steps: int) -> Ends:
    """Returns the ends of the guided ODE dx/dsigma = (x - D_w(x, sigma))/sigma from sigma = high.

    Heun's method with `steps` intervals down to `low`, and the step of Euler to 0 that every
    sampler ends with. The error is that of a method of order 2 by Richardson: a third of the
    difference from half as many intervals of the same levels.

    Args:
        guided: D_w, usually exact, (x, sigma) -> D.
        x: The start, (n, ...).
        high, low: The first level and the last one above 0.
        steps: Number of intervals, even.
    """
    heun = default_registry().sampler("heun")
    with torch.no_grad():
        found, coarse = (
            sample(guided, x.double(), karras_sigmas(n + 1, low, high), heun)
            for n in (steps, steps // 2)
        )
    return Ends(found, end_points(found, coarse) / 3)


def end_points(samples: Tensor, exact: Tensor) -> float:
    """Returns the root mean square per dimension of the distance between end points (n, ...)."""
    return math.sqrt(float((samples.double() - exact.double()).square().mean()))


def classified(
    classifier: LogClasses, exact: LogClasses, y: Tensor, pairs: HeldOutPairs, device: torch.device
) -> pd.DataFrame:
    """Compares a classifier with the exact one by level, at held-out x of classes y (n,).

    Columns: sigma; accuracy, of the likeliest class, and bayes_accuracy, the exact classifier's;
    kl_nats E KL(p*(y|x) || p(y|x)), 0 for the exact one; gradient_rms, sqrt(E|g - g*|^2/d) sigma of
    g = grad_x log p(y|x), which is the error in eps at scale 1.
    """
    import pandas as pd

    table = []
    y = y.to(device)
    for sigma, x in pairs.noisy(device):
        with torch.no_grad():
            log_p, log_q = exact(x.double(), sigma), classifier(x, sigma).double()
            p = log_p.exp()
        error = class_gradient(classifier, x, sigma, y) - class_gradient(
            exact, x.double(), sigma, y
        )
        s = float(sigma[0])
        table.append(
            {
                "sigma": s,
                "accuracy": float((log_q.argmax(1) == y).double().mean()),
                "bayes_accuracy": float((log_p.argmax(1) == y).double().mean()),
                # 0 log 0 = 0: an impossible class has no part.
                "kl_nats": float((p * torch.where(p > 0, log_p - log_q, 0.0)).sum(1).mean()),
                "gradient_rms": s * math.sqrt(float(error.square().mean())),
            }
        )
    return pd.DataFrame(table)
