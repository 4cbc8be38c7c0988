"""Loss and excess risk per noise level, on held-out data with fixed noise shared by all trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from testbed.coloured import WHITE, Noise, learned
from testbed.data.base import Data
from testbed.denoiser import Denoiser
from testbed.metrics.information import kl_bound
from testbed.noise import per_sample
from testbed.oracles import Gaussian, Oracle
from testbed.random import stream

if TYPE_CHECKING:  # half a second to import, for which training need not wait
    import pandas as pd


@dataclass(frozen=True)
class Held:
    """Held-out (x0, eps) at each level with the answers that no training changes.

    Args:
        sigma: (L,) levels.
        x0, eps: (n, *shape), the same at every level.
        wiener: (L,) loss of the best linear denoiser, the Gaussian fitted to the training split.
        optimum: (L, n, *shape) the oracle's denoiser, or None.
        oracle: itself, where its answers for other noise are known, or None.
    """

    sigma: Tensor
    x0: Tensor
    eps: Tensor
    wiener: Tensor
    optimum: Tensor | None
    oracle: Oracle | None = None


def held(data: Data, sigma_min: float, sigma_max: float, levels: int, draws: int) -> Held:
    """`draws` held-out pairs at `levels` log-spaced noise levels; the same for every caller."""
    generator = stream(0, "evaluation")
    index = torch.randperm(len(data.test), generator=generator)
    x0 = data.test[index.repeat(math.ceil(draws / len(index)))[:draws]]
    eps = torch.randn(x0.shape, generator=generator)
    ends = math.log10(sigma_min), math.log10(sigma_max)
    sigma = torch.logspace(*ends, levels, dtype=torch.float64)
    linear = Gaussian.fit(data.train)
    noisy = [x0 + float(s) * eps for s in sigma]
    wiener = torch.stack(
        [
            (linear.denoise(x, s).double() - x0).square().mean()
            for x, s in zip(noisy, sigma, strict=True)
        ]
    )
    optimum = None
    if data.oracle is not None:
        oracle = data.oracle
        optimum = torch.stack(
            [oracle.denoise(x.double(), s) for x, s in zip(noisy, sigma, strict=True)]
        )
    mapped = data.oracle is not None and type(data.oracle).mapped is not Oracle.mapped
    return Held(sigma, x0, eps, wiener, optimum, data.oracle if mapped else None)


def per_level(
    denoiser: Denoiser, against: Held, device: torch.device, noise: Noise = WHITE
) -> pd.DataFrame:
    """One row per level; losses and excess risks per dimension, in x0 space.

    Columns: sigma; loss E|D - x0|^2/d and its standard error over draws; wiener; optimum, the
    oracle's loss on the same draws; excess E|D - D*|^2/d and its error; target_rms, output_rms and
    input_rms of the network; error_rms of its output against its target. x has white noise; where
    training had another, and its exact answer is known, `limit` is E|D_n - D*|^2/d of the D_n that
    such training tends to.
    """
    p, sd = denoiser.parameterization, denoiser.sigma_data
    x0, eps = against.x0.to(device), against.eps.to(device)
    n = len(x0)
    table = []
    for i, s in enumerate(against.sigma):
        sigma = s.expand(n).to(device)
        x = x0 + per_sample(sigma, x0).to(x0.dtype) * eps
        with torch.no_grad():
            F = denoiser.output(x, sigma)
            D = p.denoise(F, x, sigma, sigma_data=sd)
        target = p.target(x0, eps, sigma, sigma_data=sd)
        loss = (D.double() - x0).square().flatten(1).mean(1)
        row = {
            "sigma": float(s),
            "loss": float(loss.mean()),
            "loss_se": float(loss.std()) / math.sqrt(n),
            "wiener": float(against.wiener[i]),
            "target_rms": _rms(target),
            "output_rms": _rms(F),
            "error_rms": _rms(F - target),
            "input_rms": _rms(per_sample(denoiser.inputs(sigma)[0], x) * x),
        }
        if against.optimum is not None:
            D_star = against.optimum[i].to(device)
            excess = (D.double() - D_star).square().flatten(1).mean(1)
            row["optimum"] = float((D_star - x0).square().mean())
            row["excess"] = float(excess.mean())
            row["excess_se"] = float(excess.std()) / math.sqrt(n)
            if noise.of and against.oracle is not None:
                D_n = learned(noise, against.oracle, p, x.cpu().double(), s, sd)
                row["limit"] = float((D_n - against.optimum[i]).square().mean())
        table.append(row)
    import pandas as pd

    return pd.DataFrame(table)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def summary(levels: pd.DataFrame, d: int) -> dict[str, float]:
    """The numbers of a whole curve.

    `loss_vs_wiener`: geometric mean over levels of loss/Wiener loss; below 1 beats the best linear
    denoiser. `excess_nats`: d int excess(sigma)/sigma^2 dlog sigma over the levels' range by the
    trapezoid rule: `information.kl_bound`. `limit_nats`: the same of `limit`.
    """
    import numpy as np

    found = {"loss_vs_wiener": float(np.exp(np.log(levels["loss"] / levels["wiener"]).mean()))}
    if "excess" in levels:
        found["excess_nats"] = kl_bound(levels["sigma"], levels["excess"], d).value
    if "limit" in levels:
        found["limit_nats"] = kl_bound(levels["sigma"], levels["limit"], d).value
    return found
