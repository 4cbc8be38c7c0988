"""What is trained in the benchmarks: the five parameterizations by their recipes, on digits."""

from __future__ import annotations

import functools

import torch

import testbed
from testbed.components.dataset import Data
from testbed.training.batch import Batch
from testbed.training.curve import Window
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, TrainingJob
from testbed.trial import recipes

FIVE = ("eps", "v", "edm", "x0", "score")
REGISTRY = testbed.Registry()
LONG = 10**6


@functools.cache
def data() -> Data:
    return REGISTRY.dataset("digits")()


def training_job(name: str, seed: int, width: int, batch: int, steps: int = LONG) -> TrainingJob:
    """A trial of `steps` steps, with a row every 2,000."""
    p = REGISTRY.parameterization(name)
    recipe = REGISTRY.recipe_of(p)
    assert recipe is not None
    objective = recipes.published(p, REGISTRY, data().sigma_data)
    network = REGISTRY.network("mlp", width=width, depth=3)(data().shape, 0, seed)
    denoiser = testbed.Denoiser(
        network,
        objective.parameterization,
        data().sigma_data,
        c_in=recipe.c_in,
        c_noise=recipe.c_noise,
        table=objective.table,
    )
    points = max(1, steps // 2000)
    return TrainingJob(denoiser, objective, Training(steps=steps, batch=batch, points=points), seed)


def training_jobs(trials: int, width: int, batch: int, steps: int = LONG) -> list[TrainingJob]:
    """The five, with as many seeds as it takes."""
    return [training_job(FIVE[i % 5], i // 5, width, batch, steps) for i in range(trials)]


def trainer(one: TrainingJob, device: str = "cpu") -> Trainer:
    where = torch.device(device)
    return Trainer(one.denoiser, one.objective, data(), one.training, one.seed, where)


def run_blocks(loop: Trainer | Batch, blocks: int) -> None:
    """Steps of training as `windows` makes them, without the points of the curve."""
    window = Window.empty(len(loop.diverged), loop.BINS, loop.device)
    for _ in range(blocks):
        loop._block(window, loop.step + BLOCK)
    window.points(loop.step, 0.0)


def operations(width: int, batch: int) -> float:
    """Multiplications and additions of one training step of one trial.

    Forward, gradient of the weights, and of the inputs where they have a gradient.
    """
    d, depth, features = data().train[0].numel(), 3, 32
    inner = width * width * 2 * depth + width * d
    outer = d * width + features * width
    return 2 * batch * (3 * inner + 2 * outer)
