"""Metrics of samples in a feature space: of a classifier of the data, or of networks on disk.

What each says and what it does not is in docs/reference/image-metrics.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Generator, Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Embedding, Metric, MetricValue
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.metrics import distances, frechet, kernels
from testbed.metrics.features import classifier, dinov2, inception, perceptual
from testbed.metrics.features.classifier import Features
from testbed.metrics.features.images import in_batches, pictures, unfit
from testbed.metrics.features.perceptual import Backbone
from testbed.metrics.features.weights import WeightsMetric, missing
from testbed.metrics.resampling import mean


def _features(
    found: Embedding, samples: Tensor, data: Data, generator: Generator, n: int
) -> tuple[Tensor, Tensor]:
    """Returns the features of the samples and of n held-out ones, (N, F) and (M, F) float64."""
    distances.rows(samples, data.test, least=2)
    held_out = data.test[torch.randperm(len(data.test), generator=generator)[:n]]
    return found.features(samples), found.features(held_out)


def feature_frechet(
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int = 1000,
    features: Features = "classifier",
) -> MetricValue:
    """Returns the Fréchet distance to n held-out samples in a classifier's features."""
    found = classifier.embedding(data, features)
    return frechet.estimate(*_features(found, samples, data, generator, n), generator)


def feature_kernel(
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int = 1000,
    features: Features = "classifier",
) -> MetricValue:
    """Returns the kernel distance, unbiased MMD^2 of (x.y/F + 1)^3, with its error and p."""
    found = classifier.embedding(data, features)
    x, y = _features(found, samples, data, generator, n)
    return kernels.of_rows(x, y, kernels.cubic, generator)


Network = Callable[[Tensor], Tensor]


@functools.lru_cache(maxsize=2)
def _loaded(load: Callable[..., Network], *words: str | int) -> Network:
    """A network that is read once a process."""
    return load(*words)


def _of_images(network: Network, low: float, high: float, about: str) -> Embedding:
    """The embedding of samples whose black and white are `low` and `high`."""
    return Embedding(in_batches(lambda x: network(pictures(x, low, high))), about)


def _weightless(weights: str, needed: str) -> None:
    """InputError where no weights are named."""
    for problem in missing(weights, needed):
        raise InputError(problem)


def inception_embedding(
    data: Data, weights: str = "", low: float = -1.0, high: float = 1.0
) -> Embedding:
    """Returns the 2048 features of FID's Inception network."""
    _weightless(weights, inception.NEEDED)
    network = _loaded(inception.features, weights)
    return _of_images(network, low, high, "The features are those of FID’s Inception network.")


def inception_misfits(
    data: Data, weights: str = "", low: float = -1.0, high: float = 1.0
) -> Iterator[str]:
    """Yields why there is no FID of such data."""
    yield from missing(weights, inception.NEEDED)
    yield from unfit(data, low, high)


def fid(
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int = 10_000,
    weights: str = "",
    low: float = -1.0,
    high: float = 1.0,
) -> MetricValue:
    """Returns the Fréchet Inception distance to n held-out samples."""
    found = inception_embedding(data, weights, low, high)
    return frechet.estimate(*_features(found, samples, data, generator, n), generator)


def dinov2_embedding(
    data: Data, weights: str = "", side: int = 224, low: float = -1.0, high: float = 1.0
) -> Embedding:
    """Returns the features of DINOv2's class token."""
    _weightless(weights, dinov2.NEEDED)
    network = _loaded(dinov2.features, weights, side)
    return _of_images(network, low, high, "The features are those of DINOv2’s class token.")


def dinov2_misfits(
    data: Data, weights: str = "", low: float = -1.0, high: float = 1.0
) -> Iterator[str]:
    """Yields why there is no FD-DINOv2 of such data."""
    yield from missing(weights, dinov2.NEEDED)
    yield from unfit(data, low, high)


def fd_dinov2(
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int = 10_000,
    weights: str = "",
    side: int = 224,
    low: float = -1.0,
    high: float = 1.0,
) -> MetricValue:
    """Returns the Fréchet distance to n held-out samples in DINOv2's features."""
    found = dinov2_embedding(data, weights, side, low, high)
    return frechet.estimate(*_features(found, samples, data, generator, n), generator)


def lpips_embedding(
    data: Data,
    weights: str = "",
    backbone: Backbone = "vgg",
    low: float = -1.0,
    high: float = 1.0,
) -> Embedding:
    """Returns phi, whose squared Euclidean distances are LPIPS."""
    _weightless(weights, perceptual.NEEDED)
    network = _loaded(perceptual.features, weights, backbone)
    return _of_images(network, low, high, f"The features are those of LPIPS ({backbone}).")


def lpips_misfits(
    data: Data,
    weights: str = "",
    backbone: Backbone = "vgg",
    low: float = -1.0,
    high: float = 1.0,
) -> Iterator[str]:
    """Yields why there is no LPIPS of such data."""
    yield from missing(weights, perceptual.NEEDED)
    yield from unfit(data, low, high, perceptual.LAYOUTS[backbone].least)


def lpips(
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int = 1000,
    weights: str = "",
    backbone: Backbone = "vgg",
    low: float = -1.0,
    high: float = 1.0,
) -> MetricValue:
    """Returns the mean of each sample's LPIPS to the nearest of n held-out images."""
    found = lpips_embedding(data, weights, backbone, low, high)
    x, y = _features(found, samples, data, generator, n)
    return mean(distances.to_nearest(x, y).square())


@hookimpl
def testbed_metrics() -> Iterable[Metric]:
    """Yields the Fréchet and the kernel distance of features, FID, FD-DINOv2 and LPIPS."""
    heusel = "Heusel et al. 2017, arXiv:1706.08500, eq. 6"
    yield Metric(
        "feature_frechet",
        feature_frechet,
        embed=classifier.embedding,
        misfits=classifier.unlabelled,
        reference=heusel,
    )
    yield Metric(
        "feature_kernel",
        feature_kernel,
        embed=classifier.embedding,
        misfits=classifier.unlabelled,
        reference="Binkowski et al. 2018, arXiv:1801.01401",
    )
    images = ((3, 32, 32),)
    yield WeightsMetric(
        "fid",
        fid,
        shapes=images,
        misfits=inception_misfits,
        needed=inception.NEEDED,
        reference=heusel,
    )
    yield WeightsMetric(
        "fd_dinov2",
        fd_dinov2,
        shapes=images,
        misfits=dinov2_misfits,
        needed=dinov2.NEEDED,
        reference="Stein et al. 2023, arXiv:2306.04675",
    )
    yield WeightsMetric(
        "lpips",
        lpips,
        shapes=images,
        misfits=lpips_misfits,
        needed=perceptual.NEEDED,
        reference="Zhang et al. 2018, arXiv:1801.03924",
    )
