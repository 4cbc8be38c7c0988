"""Loss and excess risk per noise level, on held-out data with fixed noise shared by all trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import MetricValue
from testbed.diffusion.correlated import WHITE, Noise, learned
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics.information import kl_bound
from testbed.oracles import Gaussian, Oracle
from testbed.random import stream
from testbed.tensors import per_sample

if TYPE_CHECKING:  # half a second to import, for which training need not wait
    import pandas as pd


@dataclass(frozen=True)
class Held:
    """Held-out (x0, eps) at each level with the answers that no training changes.

    Args:
        sigma: (L,) levels.
        x0, eps: (n, *shape), the same at every level.
        wiener: (L,) loss of the best linear denoiser, the Gaussian fitted to the training split.
        optimum: (L, n, *shape) the oracle's denoiser, given the condition, or None.
        index: (n,) the rows of the test split that x0 are.
        condition: the classes of x0 that a conditional model is given: name -> (n,) int64, or None.
        optimum_dropped: as `optimum`, with nothing given, for a conditional model.
        oracle: of the data, where its answers for other noise are known, or None.
    """

    sigma: Tensor
    x0: Tensor
    eps: Tensor
    wiener: Tensor
    optimum: Tensor | None
    index: Tensor
    condition: Mapping[str, Tensor] | None = None
    optimum_dropped: Tensor | None = None
    oracle: Oracle | None = None

    def on(self, device: torch.device) -> dict[str, Tensor] | None:
        """The condition on a device; None without one."""
        if self.condition is None:
            return None
        return {name: y.to(device) for name, y in self.condition.items()}


def rows(data: Data, n: int, generator: torch.Generator) -> Tensor:
    """n rows of the test split in a random order, none again before all were drawn; (n,) int64."""
    index = torch.randperm(len(data.test), generator=generator)
    return index.repeat(math.ceil(n / len(index)))[:n]


def held(
    data: Data,
    sigma_min: float,
    sigma_max: float,
    levels: int,
    draws: int,
    conditions: Sequence[str] = (),
) -> Held:
    """`draws` held-out pairs at `levels` log-spaced noise levels; the same for every caller.

    `conditions` are those of a conditional model: it is measured given the classes of x0.
    """
    generator = stream(0, "evaluation")
    index = rows(data, draws, generator)
    x0 = data.test[index]
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
    if not conditions:
        known = data.oracle if mapped else None
        return Held(sigma, x0, eps, wiener, optimum, index, oracle=known)
    condition = {name: c[index] for name, c in data.condition("test", conditions).items()}
    dropped, optimum = optimum, None
    if data.conditional is not None:
        exact = data.conditional
        optimum = torch.stack(
            [exact.denoise(x.double(), s, condition) for x, s in zip(noisy, sigma, strict=True)]
        )
    return Held(sigma, x0, eps, wiener, optimum, index, condition, dropped)


def per_level(
    denoiser: Denoiser,
    against: Held,
    device: torch.device,
    dropped: bool = False,
    noise: Noise = WHITE,
) -> pd.DataFrame:
    """One row per level; losses and excess risks per dimension, in x0 space.

    Of a conditional model given the classes of x0, and with `dropped` also, in the columns
    loss_dropped, loss_dropped_se, excess_dropped and excess_dropped_se, with all switched off.

    Columns: sigma; loss E|D - x0|^2/d and its standard error over draws; wiener; optimum, the
    oracle's loss on the same draws; excess E|D - D*|^2/d and its error; target_rms, output_rms and
    input_rms of the network; error_rms of its output against its target. x has white noise; where
    training had another, and its exact answer is known, `limit` is E|D_n - D*|^2/d of the D_n that
    such training tends to.
    """
    p, sd = denoiser.parameterization, denoiser.sigma_data
    x0, eps = against.x0.to(device), against.eps.to(device)
    n = len(x0)
    condition = against.on(device)
    table = []
    for i, s in enumerate(against.sigma):
        sigma = s.expand(n).to(device)
        x = x0 + per_sample(sigma, x0).to(x0.dtype) * eps
        with torch.no_grad():
            F = denoiser.output(x, sigma, condition)
            D = p.denoise(F, x, sigma, sigma_data=sd)
        target = p.target(x0, eps, sigma, sigma_data=sd)
        loss, loss_se = excess(D, x0)
        row = {
            "sigma": float(s),
            "loss": loss,
            "loss_se": loss_se,
            "wiener": float(against.wiener[i]),
            "target_rms": _rms(target),
            "output_rms": _rms(F),
            "error_rms": _rms(F - target),
            "input_rms": _rms(per_sample(denoiser.inputs(sigma)[0], x) * x),
        }
        if against.optimum is not None:
            D_star = against.optimum[i].to(device)
            row["optimum"] = float((D_star - x0).square().mean())
            row["excess"], row["excess_se"] = excess(D, D_star)
            if not noise.white and against.oracle is not None:
                D_n = learned(noise, against.oracle, p, x.cpu().double(), s, sd)
                row["limit"] = float((D_n - against.optimum[i]).square().mean())
        if dropped:
            with torch.no_grad():
                D = denoiser(x, sigma)
            row["loss_dropped"], row["loss_dropped_se"] = excess(D, x0)
            if against.optimum_dropped is not None:
                D_star = against.optimum_dropped[i].to(device)
                row["excess_dropped"], row["excess_dropped_se"] = excess(D, D_star)
        table.append(row)
    import pandas as pd

    return pd.DataFrame(table)


def excess(D: Tensor, D_star: Tensor) -> tuple[float, float]:
    """E|D - D*|^2/d over samples (n, ...), and its standard error."""
    found = (D.double() - D_star).square().flatten(1).mean(1)
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def summary(levels: pd.DataFrame, d: int) -> dict[str, MetricValue]:
    """The numbers of a whole curve, with their errors where the levels have them.

    `loss_vs_wiener`: geometric mean over levels of loss/Wiener loss; below 1 beats the best linear
    denoiser. `excess_nats`: d int excess(sigma)/sigma^2 dlog sigma over the levels' range by the
    trapezoid rule: `information.kl_bound`. `limit_nats`: the same of `limit`.
    `excess_dropped_nats`: that of a conditional model with all switched off.
    """
    import numpy as np

    ratio = float(np.exp(np.log(levels["loss"] / levels["wiener"]).mean()))
    columns = [one for one in ("excess", "limit", "excess_dropped") if one in levels]
    integrals = {f"{column}_nats": integral(levels, column, d) for column in columns}
    return {"loss_vs_wiener": MetricValue(ratio), **integrals}


def integral(levels: pd.DataFrame, column: str, d: int) -> MetricValue:
    """`information.kl_bound` of a column of excess risks, with the errors in `column`_se."""
    found = kl_bound(levels["sigma"], levels[column], d, levels.get(f"{column}_se"))
    return MetricValue(found.value, found.error)
