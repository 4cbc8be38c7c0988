"""A classifier of noisy data, p(y|x) at every sigma, for classifier guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.diffusion.inputs import shared_c_in, shared_c_noise
from testbed.errors import InputError
from testbed.networks.mlp import Features
from testbed.random import seeded, stream
from testbed.tensors import per_sample
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, draws
from testbed.training.weights import Weights

FEATURES, FREQUENCIES = 16, (1 / 64, 64.0)


@dataclass(frozen=True)
class ClassifierSettings:
    """The size of a classifier's network, and its training by Adam with averaged weights.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 2000
    batch: int = 256
    width: int = 64
    depth: int = 2
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        self.training()
        if not (1 <= self.width <= 65536 and 1 <= self.depth <= 1000):
            raise InputError(
                f"width = {self.width}, depth = {self.depth}: expected 1 to 65536 and 1 to 1000."
            )

    def training(self) -> Training:
        """The settings of the optimiser."""
        return Training(steps=self.steps, batch=self.batch, learning_rate=self.learning_rate)


class Classifier(Features):
    """log p(y|x) = log_softmax of a residual MLP on c_in x and c_noise, with an output per class.

    c_in = 1/sqrt(sigma^2 + sigma_data^2), c_noise = log(sigma)/4. The last layer starts at zero, so
    that every class is equally likely at first.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, sigma_data: float, settings: ClassifierSettings
    ) -> None:
        super().__init__(shape, settings.width, settings.depth, FEATURES, FREQUENCIES)
        self.sigma_data = sigma_data
        self.last = nn.Linear(settings.width, classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(y|x), (B, C) nats, float32, for x (B, *shape) and sigma (B,)."""
        wide = sigma.double()
        c_in, c_noise = (f(wide, self.sigma_data) for f in (shared_c_in, shared_c_noise))
        scaled = per_sample(c_in, x).float() * x.float()
        return torch.log_softmax(self.last(self.features(scaled, c_noise.float())), 1)


def train(
    data: Data,
    condition: str,
    sigma_min: float,
    sigma_max: float,
    settings: ClassifierSettings,
    seed: int,
) -> Classifier:
    """A classifier of a condition, trained on the training split, with averaged weights; on CPU.

    It minimises E[-log p(y|x0 + sigma eps)] with log sigma uniform on [log sigma_min,
    log sigma_max]: its optimum is the exact p(y|x) at every sigma. Batches, noise levels, noises
    and initial weights come from streams of `seed` that nothing else uses.

    Raises:
        UnknownName: the data have no such condition.
    """
    y = data.condition("train", [condition])[condition]
    with seeded(stream(seed, "classifier/weights").initial_seed()):
        model = Classifier(data.shape, data.classes[condition], data.sigma_data, settings)
    parameters = list(model.parameters())
    weights = Weights([parameters], [settings.training()], [1.0])
    for p, view in zip(parameters, weights.views(weights.W[0]), strict=True):
        p.data = view
    own = stream(seed, "classifier/draws").initial_seed()
    low, high = math.log(sigma_min), math.log(sigma_max)
    for step in range(settings.steps):
        block, offset = divmod(step, BLOCK)
        if offset == 0:
            indices, u, noises = draws(own, block, settings.batch, len(data.train), data.shape)
            sigmas = torch.exp(low + (high - low) * u)
        index, eps, sigma = indices[offset], noises[offset], sigmas[offset]
        x = data.train[index] + per_sample(sigma, eps).float() * eps
        loss = nn.functional.nll_loss(model(x, sigma), y[index])
        weights.update(weights.take(torch.autograd.grad(loss, parameters)), step)
    with torch.no_grad():
        weights.W.copy_(weights.ema)
    return model.eval()
