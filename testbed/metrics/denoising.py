"""Loss and excess risk by noise level, on held-out data with fixed noise shared by all trials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import MetricValue
from testbed.diffusion.correlated import WHITE, Noise, training_optimum
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import linear_baseline
from testbed.metrics.information import kl_bound
from testbed.oracles import Oracle
from testbed.random import stream
from testbed.tensors import per_sample

if TYPE_CHECKING:  # half a second to import, for which training need not wait
    import pandas as pd


@dataclass(frozen=True)
class HeldOutPairs:
    """Held-out (x0, eps) at each noise level, with the reference losses that no training changes.

    Args:
        sigma: The noise levels, (L,) float64.
        x0, eps: (n, *shape), the same at every level.
        wiener: The loss of the linear baseline, see `linear_baseline`, (L,).
        optimum: The oracle's denoiser under the condition, (L, n, *shape), or None.
        index: The rows of the test split that x0 are, (n,).
        condition: The classes of x0 that a conditional model gets: name -> (n,) int64, or None.
        optimum_dropped: For a conditional model, as `optimum` with all conditions switched off.
        oracle: The oracle of the data where it is exact for other noise too, or None.
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

    def noisy(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields sigma (n,) and x = x0 + sigma eps (n, *shape) of each level, on a device."""
        x0, eps = self.x0.to(device), self.eps.to(device)
        for level in self.sigma:
            sigma = level.expand(len(x0)).to(device)
            yield sigma, x0 + per_sample(sigma, x0).to(x0.dtype) * eps

    def on(self, device: torch.device) -> dict[str, Tensor] | None:
        """Returns the condition on a device; None without one."""
        if self.condition is None:
            return None
        return {name: y.to(device) for name, y in self.condition.items()}


def rows(data: Data, n: int, generator: torch.Generator) -> Tensor:
    """Draws n rows of the test split, none again before all were drawn: (n,) int64."""
    index = torch.randperm(len(data.test), generator=generator)
    return index.repeat(math.ceil(n / len(index)))[:n]


def log_spaced(sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """Returns n levels at equal distances of log sigma, ascending, (n,) float64."""
    return torch.logspace(math.log10(sigma_min), math.log10(sigma_max), n, dtype=torch.float64)


def held_out_pairs(
    data: Data, sigma: Tensor, draws: int, conditions: Sequence[str] = ()
) -> HeldOutPairs:
    """Returns `draws` pairs, the same for every caller and at every level.

    Args:
        data: The data; x0 is of its test split.
        sigma: The noise levels, ascending, (L,) float64.
        draws: The number n of pairs.
        conditions: The conditions of a conditional model: it gets the classes of x0.
    """
    generator = stream(0, "evaluation")
    index = rows(data, draws, generator)
    x0 = data.test[index]
    eps = torch.randn(x0.shape, generator=generator)
    linear = linear_baseline.fit(data).denoiser
    noisy = [(x0 + float(s) * eps, s) for s in sigma]
    wiener = torch.stack([(linear.denoise(x, s).double() - x0).square().mean() for x, s in noisy])
    oracle, optimum = data.oracle, None
    if oracle is not None:
        optimum = torch.stack([oracle.denoise(x.double(), s) for x, s in noisy])
    if not conditions:
        if oracle is not None and type(oracle).mapped is Oracle.mapped:
            oracle = None
        return HeldOutPairs(sigma, x0, eps, wiener, optimum, index, oracle=oracle)
    condition = {name: c[index] for name, c in data.condition("test", conditions).items()}
    dropped, optimum, exact = optimum, None, data.conditional
    if exact is not None:
        optimum = torch.stack([exact.denoise(x.double(), s, condition) for x, s in noisy])
    return HeldOutPairs(sigma, x0, eps, wiener, optimum, index, condition, dropped)


def per_level(
    denoiser: Denoiser,
    pairs: HeldOutPairs,
    device: torch.device,
    dropped: bool = False,
    noise: Noise = WHITE,
) -> pd.DataFrame:
    """Returns a row for each level; losses and excess risks are per dimension, in x0 space.

    A conditional model gets the classes of x0. With `dropped` the columns loss_dropped,
    loss_dropped_se, excess_dropped and excess_dropped_se are those with all conditions off.

    Columns: sigma; loss E|D - x0|^2/d and its standard error over draws; wiener; optimum, the
    oracle's loss on the same draws; excess E|D - D*|^2/d and its error; target_rms, output_rms and
    input_rms of the network; error_rms of its output against its target. x has white noise; where
    training had another, and its exact answer is known, `limit` is E|D_n - D*|^2/d of the D_n that
    such training tends to.
    """
    p, sd = denoiser.parameterization, denoiser.sigma_data
    x0, eps = pairs.x0.to(device), pairs.eps.to(device)
    condition = pairs.on(device)
    table = []
    for i, (sigma, x) in enumerate(pairs.noisy(device)):
        with torch.no_grad():
            F = denoiser.output(x, sigma, condition)
            D = p.denoise(F, x, sigma, sigma_data=sd)
        target = p.target(x0, eps, sigma, sigma_data=sd)
        loss, loss_se = excess(D, x0)
        row = {
            "sigma": float(pairs.sigma[i]),
            "loss": loss,
            "loss_se": loss_se,
            "wiener": float(pairs.wiener[i]),
            "target_rms": _rms(target),
            "output_rms": _rms(F),
            "error_rms": _rms(F - target),
            "input_rms": _rms(per_sample(denoiser.inputs(sigma)[0], x) * x),
        }
        if pairs.optimum is not None:
            D_star = pairs.optimum[i].to(device)
            row["optimum"] = float((D_star - x0).square().mean())
            row["excess"], row["excess_se"] = excess(D, D_star)
            if not noise.white and pairs.oracle is not None:
                D_n = training_optimum(noise, pairs.oracle, p, x.cpu().double(), pairs.sigma[i], sd)
                row["limit"] = float((D_n - pairs.optimum[i]).square().mean())
        if dropped:
            with torch.no_grad():
                D = denoiser(x, sigma)
            row["loss_dropped"], row["loss_dropped_se"] = excess(D, x0)
            if pairs.optimum_dropped is not None:
                D_star = pairs.optimum_dropped[i].to(device)
                row["excess_dropped"], row["excess_dropped_se"] = excess(D, D_star)
        table.append(row)
    import pandas as pd

    return pd.DataFrame(table)


def excess(D: Tensor, D_star: Tensor) -> tuple[float, float]:
    """Returns E|D - D*|^2/d over samples (n, ...), and its standard error."""
    errors = (D.double() - D_star).square().flatten(1).mean(1)
    return float(errors.mean()), float(errors.std()) / math.sqrt(len(errors))


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def summary(levels: pd.DataFrame, d: int) -> dict[str, MetricValue]:
    """Returns the numbers of a whole curve, with their errors where the levels have them.

    `loss_vs_wiener`: geometric mean over levels of loss/Wiener loss; below 1 beats the best linear
    denoiser where the baseline is sound. `excess_nats`: d int excess(sigma)/sigma^2 dlog sigma over
    the levels' range by the trapezoid rule (`information.kl_bound`). `limit_nats`: the same of
    `limit`.
    `excess_dropped_nats`: the same of a conditional model with all conditions switched off.
    """
    import numpy as np

    ratio = float(np.exp(np.log(levels["loss"] / levels["wiener"]).mean()))
    columns = [name for name in ("excess", "limit", "excess_dropped") if name in levels]
    integrals = {f"{column}_nats": integral(levels, column, d) for column in columns}
    return {"loss_vs_wiener": MetricValue(ratio), **integrals}


def integral(levels: pd.DataFrame, column: str, d: int) -> MetricValue:
    """Returns `information.kl_bound` of a column of excess risks; its errors are in `column`_se."""
    bound = kl_bound(levels["sigma"], levels[column], d, levels.get(f"{column}_se"))
    return MetricValue(bound.value, bound.error)
