"""Likelihood of held-out data: nats and bits per dimension, and the gap to the exact density."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import MetricValue
from testbed.components.quantisation import dequantise
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics.denoising import rows
from testbed.metrics.resampling import mean
from testbed.random import stream
from testbed.sampling.guidance import ConditionedDenoiser
from testbed.sampling.likelihood import bits_per_dim, levels, log_likelihood


def points(data: Data, n: int, sigma: float) -> Tensor:
    """Returns n held-out points of the density in question, (n, *shape) float64; always the same.

    Quantised data are dequantised, so that bits per dimension bound those of the values. Other data
    get noise, x0 + sigma eps: then x is from p_sigma, also where x0 lies on a manifold.
    """
    generator = stream(0, "likelihood")
    x0 = data.test[rows(data, n, generator)].double()
    if data.quantum is None:
        return x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return x0 if data.dequantised else dequantise(x0, data.quantum, generator)


def held_out(
    denoiser: Denoiser,
    data: Data,
    sigma_min: float,
    sigma_max: float,
    device: torch.device,
    samples: int,
    steps: int,
    divergence: str,
    probes: int,
    conditions: Sequence[str] = (),
) -> dict[str, MetricValue]:
    """Returns means over held-out points with standard errors, that of the probes included.

    `nll`: -log p/d, nats per dimension. `bits_per_dim` of quantised data. `nll_gap` of data with an
    oracle that are not: (log p* - log p)/d with its log p*, whose mean is KL(p* || p)/d, both at
    the first level.

    Args:
        denoiser: A trained denoiser on `device`.
        data: The data set; its test split is used.
        sigma_min, sigma_max: The range of the noise levels.
        device: The device of the denoiser.
        samples, steps: The numbers of points, and of Heun steps over `levels`.
        divergence, probes: As for `log_likelihood`.
        conditions: The conditions that the denoiser was trained with: p is then conditional on the
            classes of x0.
    """
    sigmas = levels(steps, sigma_min, sigma_max, denoiser.table)
    first, d = float(sigmas[0]), data.train[0].numel()
    x = points(data, samples, first)
    index = rows(data, samples, stream(0, "likelihood"))
    condition = {name: y[index] for name, y in data.condition("test", conditions).items()}
    on_device = {name: y.to(device) for name, y in condition.items()} or None
    log_p = log_likelihood(
        ConditionedDenoiser(denoiser, on_device),
        x.to(device),
        sigmas,
        sigma_data=denoiser.sigma_data,
        divergence=divergence,
        probes=probes,
        generator=stream(0, "likelihood/probes"),
    ).log_p.cpu()
    metrics = {"nll": mean(-log_p / d)}
    if data.quantum is not None:
        metrics["bits_per_dim"] = mean(bits_per_dim(log_p, d, data.quantum))
    elif condition and data.conditional is not None:
        metrics["nll_gap"] = mean((data.conditional.log_density(x, first, condition) - log_p) / d)
    elif data.oracle is not None and not condition:
        metrics["nll_gap"] = mean((data.oracle.log_density(x, first) - log_p) / d)
    return metrics
