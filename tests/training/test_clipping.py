"""Gradient clipping, of the scaled loss and of the loss itself; its law is in tests/laws."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import CPU, data, gradient_norms, ran, same, trainer
from laws.clipping import FIVE, Taken, U, job, named, raw_losses
from torch import Tensor, nn

import testbed
from testbed.errors import InputError
from testbed.training.batch import Batch
from testbed.training.settings import Training
from testbed.training.trainer import Trainer


@pytest.mark.parametrize("name", FIVE)
def test_a_run_is_that_of_a_published_code(name: str) -> None:
    """Steps of torch's SGD on the raw loss, clipped by torch, at rate over the loss at F = 0."""
    steps, rate, clip = 20, 0.05, 1.0
    settings = {"steps": steps, "optimizer": "sgd", "learning_rate": rate, "clip": clip}
    one = job(name, **settings, clip_loss="raw")
    weights = named(one, torch.cat([p.detach().flatten() for p in one.denoiser.parameters()]))
    parameters = list(weights.values())
    made = Trainer.of(one, data(), CPU)
    list(made)
    optimiser = torch.optim.SGD(parameters, lr=rate / made.scale)
    norms = []
    for step in range(steps):
        optimiser.zero_grad()
        raw_losses(one, weights, step).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, clip)))
        optimiser.step()
    assert max(norms) > clip
    found = torch.cat([p.detach().flatten() for p in parameters])
    # A step is at most rate clip/scale long; its gradient is off by 200 U and what weights moved.
    bound = steps * rate * min(clip, max(norms)) / made.scale * 1e-4 + 8 * U * found.norm()
    assert float((made.weights.W[0] - found).norm()) <= float(bound)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_a_constant_in_the_weighting_has_an_effect_on_raw_clipping_alone(engine: str) -> None:
    """With the loss three times as large, a third of the gradients' factor is left."""

    def end(clip_loss: str, constant: float) -> Tensor:
        one = job("v", clip=0.2, clip_loss=clip_loss)
        weighting = testbed.Weighting("more", lambda sigma: constant / sigma**2).bound({})
        one = one._replace(objective=dataclasses.replace(one.objective, weighting=weighting))
        loop = Trainer.of(one, data(), CPU)
        if engine == "batched":
            return Taken(Batch([one], data(), CPU)).steps[0][1]
        return Taken(loop).steps[0][1]

    relative = [end("relative", constant) for constant in (1.0, 4.0)]
    assert torch.allclose(*relative, rtol=64 * U, atol=64 * U)
    few, many = (end("raw", constant) for constant in (1.0, 4.0))
    assert torch.allclose(few / 4, many, rtol=1e-4, atol=1e-4 * float(many.norm()))


def test_a_clip_of_0_clips_nothing_whatever_its_loss() -> None:
    ends = [
        Taken(Trainer.of(job("eps", clip_loss=what), data(), CPU)).steps[-1][1]
        for what in ("relative", "raw")
    ]
    assert torch.equal(*ends)


def test_an_unknown_loss_of_clipping_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Unknown clip_loss 'rwa'.*Did you mean 'raw'"):
        Training(clip_loss="rwa")


def gradients(**options: Any) -> tuple[list[float], float]:
    """The norms of the gradients that the optimiser is given, and the norm in the row."""
    one = trainer(steps=20, **options)
    norms = gradient_norms(one)
    (row,) = one
    return norms, row.gradient_norm


def test_clipping_bounds_every_gradient() -> None:
    norms, _ = gradients(clip=0.1)
    assert max(norms) <= 0.1 * (1 + 64 * U)
    assert min(gradients()[0]) > 0.1


def test_a_clipped_gradient_has_the_largest_norm_allowed() -> None:
    # torch divides by norm + 1e-6; the norms here are above 0.1.
    norms, _ = gradients(clip=0.1)
    assert min(norms) >= 0.1 * (1 - 1e-5 - 64 * U)


def test_the_row_shows_the_norm_before_clipping() -> None:
    clipped, shown = gradients(clip=0.1)
    assert shown > 2 * np.mean(clipped)


@pytest.mark.slow
def test_a_bound_that_is_never_reached_changes_nothing() -> None:
    assert same(ran(trainer(clip=1e9)), ran(trainer()))


@pytest.mark.slow
def test_a_bound_that_is_reached_changes_the_run() -> None:
    assert not same(ran(trainer(clip=0.1))[1], ran(trainer())[1])
