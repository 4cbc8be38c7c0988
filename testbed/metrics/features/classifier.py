"""The features of a small classifier, trained once per data set and kept in the user's cache.

The network sees x / sigma_data. Images go through convolutions that halve their sides down to four
pixels, vectors through one layer; what the last layer before the classes returns, normalised to
mean 0 and |f|^2 = F, are the features: their size, which the kernel of `feature_kernel` sees, would
else grow with the steps of training.
It is trained on the training split, on one thread, from named streams: the same data and sources
give the same bits on one kind of machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from testbed import cache, random
from testbed.components.dataset import Data
from testbed.components.metric import Embedding
from testbed.errors import InputError
from testbed.metrics.features.images import in_batches
from testbed.random import seeded, stream
from testbed.training import checkpoint

Features = Literal["classifier", "random"]
"""Of a trained classifier, or of the same network before training."""
SMALLEST = 4
"""Pixels of the smaller side at which convolutions stop to halve."""


@dataclass(frozen=True)
class Settings:
    """The classifier's size and its training by Adam, its rate falling to 0 as a cosine."""

    steps: int = 400
    batch: int = 128
    width: int = 32
    features: int = 64
    learning_rate: float = 2e-3


SETTINGS = Settings()


class Classifier(nn.Module):
    """Logits (B, C) of x (B, *shape), through `features` (B, F)."""

    def __init__(self, shape: tuple[int, ...], classes: int, settings: Settings) -> None:
        super().__init__()
        self.body = nn.Sequential(*_body(shape, settings))
        self.last = nn.Linear(settings.features, classes)

    def features(self, x: Tensor) -> Tensor:
        """The activations before the classes, (B, F)."""
        found: Tensor = self.body(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(x))
        return logits


def _body(shape: tuple[int, ...], settings: Settings) -> Iterator[nn.Module]:
    """Convolutions for images (H, W) and (C, H, W), a layer for anything else."""
    height, width = shape[-2:] if len(shape) > 1 else (1, 1)
    wide = settings.width
    if len(shape) in (2, 3) and min(height, width) > SMALLEST:
        channels = shape[0] if len(shape) == 3 else 1
        yield nn.Unflatten(1, (1, height)) if len(shape) == 2 else nn.Identity()
        stride = 2 if min(height, width) > 4 * SMALLEST else 1
        while True:
            yield nn.Conv2d(channels, wide, 3, stride, padding=1)
            yield nn.SiLU()
            height, width = -(-height // stride), -(-width // stride)
            if min(height, width) <= SMALLEST:
                break
            channels, wide, stride = wide, min(2 * wide, 4 * settings.width), 2
        size = wide * height * width
    else:
        size = 4 * wide
        yield nn.Flatten()
        yield nn.Linear(torch.Size(shape).numel(), size)
        yield nn.SiLU()
    yield nn.Flatten()
    yield nn.Linear(size, settings.features)
    yield nn.LayerNorm(settings.features, elementwise_affine=False)


@dataclass(frozen=True)
class Trained:
    """A network with the sha256 of its weights, and its share of right answers on held-out data."""

    network: Classifier
    digest: str
    accuracy: float


def unlabelled(data: Data, features: Features = "classifier") -> Iterator[str]:
    """Yields why there is no such classifier of data; nothing where there is one."""
    if features == "classifier" and data.labels < 2:
        yield (
            "its features are those of a classifier, and the data have "
            f"{'no labels' if not data.labels else 'one class only'}: give them labels, or write "
            'features = "random" for those of the untrained network, which nothing has taught '
            "what matters."
        )


def embedding(data: Data, features: Features = "classifier") -> Embedding:
    """Returns the features of a data set's classifier, or of the untrained network.

    Raises:
        InputError: The data have no labels, and the features are those of a classifier.
    """
    for problem in unlabelled(data, features):
        raise InputError(problem)
    return _embedding(data, features)


@functools.lru_cache(maxsize=4)
def _embedding(data: Data, features: Features) -> Embedding:
    """One for each data set, so that what is made of it is kept too."""
    if features == "random":
        network = untrained(data.shape, 2, SETTINGS)
        digest = _digest(network.state_dict())
        about = f"The features are those of an untrained network ({digest[:12]})."
    else:
        found = trained(data, SETTINGS)
        network = found.network
        about = (
            "The features are those of a classifier of the training split, right on "
            f"{found.accuracy:.1%} of the held-out data ({found.digest[:12]})."
        )
    sd = data.sigma_data
    return Embedding(in_batches(lambda x: network.features(x.float() / sd)), about)


@functools.lru_cache(maxsize=4)
def trained(data: Data, settings: Settings) -> Trained:
    """The classifier of a data set's labels, from the cache or trained and kept there."""
    words = [data.digest, _sources(), torch.__version__, repr(astuple(settings))]
    key = hashlib.sha256(" ".join(words).encode()).hexdigest()[:24]

    def make() -> bytes:
        network = untrained(data.shape, data.labels, settings)
        fit(network, data, settings)
        facts = {"digest": _digest(network.state_dict()), "accuracy": _accuracy(network, data)}
        return checkpoint.encode_tensors(network.state_dict(), {"facts": json.dumps(facts)})

    content = cache.kept(f"classifier-{key}.safetensors", make, lambda one: _read(one) is not None)
    found = _read(content)
    assert found is not None
    network = untrained(data.shape, data.labels, settings)
    network.load_state_dict(found.weights)
    return Trained(network, found.digest, found.accuracy)


class _File(NamedTuple):
    """What a file of the cache holds."""

    weights: dict[str, Tensor]
    digest: str
    accuracy: float


def _read(content: bytes) -> _File | None:
    """The content of a file of the cache; None where it is damaged."""
    try:
        weights = checkpoint.decode_tensors(content)
        facts = json.loads(checkpoint.metadata_of(content)["facts"])
    except (SafetensorError, KeyError, ValueError):
        return None
    whole = facts["digest"] == _digest(weights)
    return _File(weights, facts["digest"], facts["accuracy"]) if whole else None


def untrained(shape: tuple[int, ...], classes: int, settings: Settings) -> Classifier:
    """The network at its start, the same for every data set of a shape and number of classes."""
    with seeded(stream(0, "features/weights").initial_seed()):
        return Classifier(shape, classes, settings).eval()


def fit(network: Classifier, data: Data, settings: Settings) -> None:
    """Trains by cross entropy on the training split, on one thread of the CPU."""
    assert data.train_labels is not None
    generator, parameters = stream(0, "features/draws"), list(network.parameters())
    optimizer = torch.optim.Adam(parameters, settings.learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    network.train()
    with _one_thread(), torch.enable_grad():
        for _ in range(settings.steps):
            i = torch.randint(len(data.train), (settings.batch,), generator=generator)
            logits = network(data.train[i] / data.sigma_data)
            loss = nn.functional.cross_entropy(logits, data.train_labels[i])
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = gradient
            optimizer.step()
            rate.step()
    optimizer.zero_grad()
    network.eval()


def _accuracy(network: Classifier, data: Data) -> float:
    """The share of right answers on the held-out split; nan where it has no labels."""
    if data.test_labels is None:
        return float("nan")
    with torch.no_grad():
        parts = [network(x / data.sigma_data).argmax(1) for x in torch.split(data.test, 1024)]
    return float((torch.cat(parts) == data.test_labels).double().mean())


def _digest(weights: Mapping[str, Tensor]) -> str:
    """The sha256 of weights by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


@functools.cache
def _sources() -> str:
    """The sha256 of the sources that the weights follow from."""
    files = (Path(__file__), Path(random.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: how many there are changes the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
