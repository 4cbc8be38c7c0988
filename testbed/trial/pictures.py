"""What the pictures of a trial are made of: denoised images by level, and nearest neighbours.

Both are kept for images alone, wherever a trial is measured: at its points and at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Embedding, Metric
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising, distances
from testbed.sampling.guidance import ConditionedDenoiser
from testbed.tensors import is_image
from testbed.trial.folders import Folder

DENOISED, NEIGHBOURS, FACTS = "denoised.safetensors", "neighbours.safetensors", "pictures.json"
IMAGES = 4
"""Held-out images that are denoised, the same at every level and of every trial."""
MULTIPLES = (0.1, 0.32, 1.0, 3.2, 10.0)
"""Of sigma_data: they are denoised at the measured levels next to these, the same of every trial.

Far below D only copies, and far above it only forgets."""
SAMPLES = 8
"""Samples whose nearest training images are kept."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of samples, in one space.

    Args:
        space: whose distances are meant, a sentence.
        images: (n, *shape).
        distances: (n,) float64.
    """

    space: str
    images: Tensor
    distances: Tensor


def keep(
    folder: Folder,
    denoiser: Denoiser,
    against: denoising.HeldOutPairs,
    samples: Tensor,
    data: Data,
    metrics: Sequence[Metric],
    device: torch.device,
) -> None:
    """Writes the denoised images and the neighbours of the first samples; nothing for vectors.

    Args:
        folder: of the trial, or of one of its points.
        denoiser: what was trained.
        against: the held-out pairs, of which the first are denoised.
        samples: (N, *shape), on the CPU.
        data: with the training images, or their latents: what is kept of these is decoded.
        metrics: the first that measures in a feature space gives that of a second neighbour.
        device: where the denoiser is.
    """
    shown = data.pixels or data
    if not is_image(shown.shape):
        return
    rows = levels(against.sigma, data.sigma_data)
    pairs = denoised(denoiser, against, rows, device)
    if data.first_stage is not None:
        # A latent is decoded at the size of clean ones, which x is not.
        size = torch.sqrt(1 + (against.sigma[rows] / data.sigma_data) ** 2).float()
        pairs[0] /= size.view(-1, *[1] * (pairs.ndim - 2))
        images = data.first_stage.decode(pairs.flatten(0, 2))
        pairs = images.view(*pairs.shape[:3], *images.shape[1:])
    folder.put_tensors(DENOISED, {"denoised": pairs}, {})
    found = neighbours(samples[:SAMPLES], shown, metrics)
    images = torch.stack([samples[:SAMPLES], *(one.images for one in found)])
    folder.put_tensors(NEIGHBOURS, {"neighbours": images}, {})
    folder.put_json(
        FACTS,
        {
            "sigmas": against.sigma[rows].tolist(),
            "decoded": data.first_stage is not None,
            "neighbours": [
                {"space": one.space, "distances": one.distances.tolist()} for one in found
            ],
        },
    )


def levels(sigma: Tensor, sigma_data: float) -> list[int]:
    """The rows of the levels (L,) at which images are denoised; of few levels, some twice."""
    targets = torch.tensor(MULTIPLES, dtype=torch.float64) * sigma_data
    return [int(row) for row in (sigma.log() - targets.log()[:, None]).abs().argmin(1)]


def denoised(
    denoiser: Denoiser,
    against: denoising.HeldOutPairs,
    rows: Sequence[int],
    device: torch.device,
) -> Tensor:
    """x = x0 + sigma eps and D(x, sigma) of the first held-out images, (2, L, n, *shape) float32.

    A conditional model gets the classes of the images.
    """
    condition = against.on(device)
    few = None if condition is None else {name: y[:IMAGES] for name, y in condition.items()}
    given = ConditionedDenoiser(denoiser, few)
    pairs = []
    noisy = list(against.noisy(device))
    with torch.no_grad():
        for row in rows:
            sigma, x = noisy[row][0][:IMAGES], noisy[row][1][:IMAGES]
            pairs.append(torch.stack([x, given(x, sigma)]))
    return torch.stack(pairs, 1).float().cpu()


def neighbours(samples: Tensor, data: Data, metrics: Sequence[Metric]) -> list[Neighbours]:
    """The nearest training images by pixels, and by the first metric's features that has any."""
    x, y = distances.flat(samples), distances.flat(data.train)
    found = [_nearest("The distance is that of the pixels.", x, y, data.train)]
    for metric in metrics:
        if (space := metric.embedding(data)) is not None:
            x, y = space.features(samples), _features(space, data)
            return [*found, _nearest(space.about, x, y, data.train)]
    return found


@functools.lru_cache(maxsize=2)
def _features(space: Embedding, data: Data) -> Tensor:
    """The features of the training images, once for the trials of a process."""
    return space.features(data.train)


def _nearest(space: str, x: Tensor, y: Tensor, images: Tensor) -> Neighbours:
    """The images whose rows y (M, F) are nearest to x (n, F); the first for one that diverged."""
    row = torch.cdist(x, y).nan_to_num(nan=float("inf")).argmin(1)
    return Neighbours(space, images[row], torch.linalg.vector_norm(x - y[row], dim=1))
