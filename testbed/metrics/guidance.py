"""Guidance against the exactly guided oracle, and a classifier against the exact one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from testbed.components.guidance import Denoise, LogClasses
from testbed.metrics.denoising import Held, excess
from testbed.sampling.guidance import class_gradient
from testbed.tensors import per_sample

if TYPE_CHECKING:
    import pandas as pd


def per_level(
    guided: Denoise, exact: Denoise, against: Held, device: torch.device
) -> dict[str, list[float]]:
    """excess_guided by level, E|D_w - D_w*|^2/d at held-out x, and its error excess_guided_se."""
    means, errors = [], []
    x0, eps = against.x0.to(device), against.eps.to(device)
    for s in against.sigma:
        sigma = s.expand(len(x0)).to(device)
        x = x0 + per_sample(sigma, x0).to(x0.dtype) * eps
        with torch.no_grad():
            mean, error = excess(guided(x, sigma), exact(x.double(), sigma))
        means.append(mean)
        errors.append(error)
    return {"excess_guided": means, "excess_guided_se": errors}


def end_points(samples: Tensor, exact: Tensor) -> float:
    """guided_error: root mean square per dimension of the distance between end points (n, ...)."""
    return math.sqrt(float((samples.double() - exact.double()).square().mean()))


def classified(
    found: LogClasses, exact: LogClasses, y: Tensor, against: Held, device: torch.device
) -> pd.DataFrame:
    """One row per level, at held-out x of classes y (n,): a classifier beside the exact one.

    Columns: sigma; accuracy, of the likeliest class, and bayes_accuracy, the exact classifier's;
    kl_nats E KL(p*(y|x) || p(y|x)), 0 for the exact one; gradient_rms, sqrt(E|g - g*|^2/d) sigma of
    g = grad_x log p(y|x): what is wrong in eps with scale 1.
    """
    import pandas as pd

    table = []
    x0, eps, y = against.x0.to(device), against.eps.to(device), y.to(device)
    for s in against.sigma:
        sigma = s.expand(len(x0)).to(device)
        x = x0 + per_sample(sigma, x0).to(x0.dtype) * eps
        with torch.no_grad():
            log_p, log_q = exact(x.double(), sigma), found(x, sigma).double()
            p = log_p.exp()
        off = class_gradient(found, x, sigma, y) - class_gradient(exact, x.double(), sigma, y)
        table.append(
            {
                "sigma": float(s),
                "accuracy": float((log_q.argmax(1) == y).double().mean()),
                "bayes_accuracy": float((log_p.argmax(1) == y).double().mean()),
                # 0 log 0 = 0: an impossible class has no part.
                "kl_nats": float((p * torch.where(p > 0, log_p - log_q, 0.0)).sum(1).mean()),
                "gradient_rms": float(s) * math.sqrt(float(off.square().mean())),
            }
        )
    return pd.DataFrame(table)
