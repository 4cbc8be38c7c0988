"""Gradient clipping of the loss itself, beside a published code; its law is in tests/laws."""

import dataclasses

import pytest
import torch
from helpers.training import CPU, data
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
    trainer = Trainer.of(one, data(), CPU)
    list(trainer)
    optimiser = torch.optim.SGD(parameters, lr=rate / trainer.scale)
    norms = []
    for step in range(steps):
        optimiser.zero_grad()
        raw_losses(one, weights, step).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, clip)))
        optimiser.step()
    assert max(norms) > clip
    found = torch.cat([p.detach().flatten() for p in parameters])
    # A step is at most rate clip/scale long; its gradient is off by 200 U and what weights moved.
    bound = steps * rate * min(clip, max(norms)) / trainer.scale * 1e-4 + 8 * U * found.norm()
    assert float((trainer.weights.W[0] - found).norm()) <= float(bound)


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
