"""The training of a first stage: reconstruction plus the KL divergence of its posterior.

    L = (1/d) E[ r |Dec(z) - x|_p^p + k KL(N(m, s^2) || N(0, I)) ],   z = m + s eps,

d the number of an image's values, p = 1 or 2 (Rombach et al. 2022, arXiv:2112.10752, app. G,
without its adversarial and perceptual terms; KL: Kingma and Welling 2014, arXiv:1312.6114, app. B).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.data.latents import padded
from testbed.networks.autoencoder import Autoencoder
from testbed.random import stream


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(0, I)) = sum (m^2 + s^2 - 1 - log s^2)/2 of each latent, (n,) nats."""
    each = mean.square() + log_variance.exp() - 1 - log_variance
    return each.flatten(1).sum(1) / 2


def loss(
    x: Tensor,
    found: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    power: int,
    reconstruction: float,
    weight: float,
) -> Tensor:
    """L of a batch, a scalar.

    Args:
        x, found: (n, C, H, W) the images and their reconstruction.
        mean, log_variance: of the posterior, (n, c, h, w).
        power: p, 1 or 2.
        reconstruction, weight: r and k.
    """
    d = x[0].numel()
    distance = (found - x).abs().pow(power).flatten(1).sum(1)
    return (reconstruction * distance + weight * kl(mean, log_variance)).mean() / d


def train(
    autoencoder: Autoencoder,
    data: Data,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    power: int,
    reconstruction: float,
    weight: float,
    seed: int,
) -> Autoencoder:
    """The autoencoder, trained on the images of the training split by Adam; on the CPU.

    Batches and noises come from streams of `seed`.
    """
    rows, noise = stream(seed, "encoder/batch"), stream(seed, "encoder/noise")
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=learning_rate)
    for _ in _tracked(steps):
        index = torch.randint(len(data.train), (batch,), generator=rows)
        x = padded(data.train[index], autoencoder.stride)
        mean, log_variance = autoencoder.encode(x)
        eps = torch.randn(mean.shape, generator=noise)
        found = autoencoder.decode(mean + (log_variance / 2).exp() * eps)
        value = loss(x, found, mean, log_variance, power, reconstruction, weight)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return autoencoder.eval().requires_grad_(False)


def _tracked(steps: int) -> Iterable[int]:
    """The steps, with a bar on a terminal's standard error."""
    if not sys.stderr.isatty():
        return range(steps)
    from rich.console import Console
    from rich.progress import track

    return track(range(steps), "training the encoder", console=Console(stderr=True), transient=True)
