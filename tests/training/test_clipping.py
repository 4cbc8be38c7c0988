"""Gradient clipping of the loss itself: torch's clip_grad_norm_ on the loss that a paper writes."""

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from helpers.training import CPU, REGISTRY, data, network
from torch import Tensor, nn
from torch.func import functional_call

import testbed
from testbed.errors import InputError
from testbed.training import batch as batches
from testbed.training import trainer as trainers
from testbed.training.batch import Batch
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Loop, Trainer, TrainingJob, draws, losses, sigma_functions
from testbed.training.weights import Weights

FIVE = ("edm", "eps", "score", "v", "x0")
U = 2.0**-24
STEPS = 3


def job(name: str, seed: int = 0, weighting: str = "edm", **training: Any) -> TrainingJob:
    """A trial with EDM's weighting and density: the losses at F = 0 are far apart."""
    p = REGISTRY.parameterization(name)
    sd = data().sigma_data
    density = REGISTRY.density("lognormal")
    objective = Objective(p, REGISTRY.weighting(weighting), REGISTRY.loss("l2"), density, sd)
    denoiser = testbed.Denoiser(network(data(), seed), p, sd, c_in="shared", c_noise="shared")
    settings = Training(**{"steps": STEPS, "batch": 16, "points": 1, **training})
    return TrainingJob(denoiser, objective, settings, seed)


def named(one: TrainingJob, row: Tensor) -> dict[str, nn.Parameter]:
    """The network's parameters with the values of a row of weights."""
    network = one.denoiser.network
    assert isinstance(network, nn.Module)
    shapes = {name: p.shape for name, p in network.named_parameters()}
    parts = torch.split(row.detach().clone(), [shape.numel() for shape in shapes.values()])
    return {
        name: nn.Parameter(part.view(shape))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def raw_losses(one: TrainingJob, weights: dict[str, nn.Parameter], step: int) -> Tensor:
    """The losses of a step as they are, not divided by their value at F = 0, (B,)."""
    samples = data().train
    drawn = draws(one.seed, 0, one.training.batch, len(samples), tuple(samples.shape[1:]))
    sigma = one.objective.sigma(drawn.u[step : step + 1])
    (at,) = sigma_functions(one.denoiser, one.objective, sigma).steps(CPU)
    network = one.denoiser.network
    assert isinstance(network, nn.Module)
    call = functools.partial(functional_call, network, weights)
    x0, eps = samples[drawn.indices[step]], drawn.eps[step]
    return losses(lambda *inputs: call(inputs), one.objective, x0, eps, at)


def clipped(one: TrainingJob, row: Tensor, step: int) -> tuple[Tensor, float, float]:
    """torch's clipped gradient of the raw loss, (P,); its norm before, and its rounding.

    A sum of 16 gradients is off by at most n U times the sum of their norms, n = 200 roundings.
    """
    weights = named(one, row)
    parameters = list(weights.values())
    per_draw = raw_losses(one, weights, step)
    each = [
        torch.cat([g.flatten() for g in torch.autograd.grad(term, parameters, retain_graph=True)])
        for term in per_draw
    ]
    per_draw.mean().backward()
    norm = float(nn.utils.clip_grad_norm_(parameters, one.training.clip))
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    lost = 200 * U * float(torch.stack(each).norm(dim=1).mean())
    return gradient, norm, lost * min(1.0, one.training.clip / norm)


class Taken:
    """The weights and the clipped gradients of each step of a run."""

    def __init__(self, loop: Loop) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.scales = [loop.scale_of(k) for k in range(len(loop.diverged))]
        descend = loop.weights.descend

        def listen(step: int) -> None:
            self.steps.append((loop.weights.W.detach().clone(), loop.weights.G.clone()))
            descend(step)

        loop.weights.descend = listen  # type: ignore[method-assign]
        list(loop.windows())


def law_raw_clipping(made: type[Weights], engine: str) -> None:
    """Times the loss at F = 0 each gradient is torch's clipped one of the raw loss."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "Weights", made)
        patch.setattr(batches, "Weights", made)
        jobs = [
            job(name, seed, clip=clip, clip_loss="raw", learning_rate=rate)
            for seed, (name, clip, rate) in enumerate(
                itertools.product(FIVE, (0.3, 1.0), (1e-3, 1e-2))
            )
        ]
        if engine == "batched":
            runs = [(jobs, Taken(Batch(jobs, data(), CPU)))]
        else:
            runs = [([one], Taken(Trainer.of(one, data(), CPU))) for one in jobs]
    scales = [scale for _, taken in runs for scale in taken.scales]
    assert max(scales) > 30 * min(scales)
    reached = []
    for trials, taken in runs:
        assert len(taken.steps) == STEPS
        for step, (W, G) in enumerate(taken.steps):
            for k, one in enumerate(trials):
                right, norm, lost = clipped(one, W[k], step)
                assert float((G[k] * taken.scales[k] - right).norm()) <= lost
                reached.append(norm > one.training.clip)
    assert 0 < sum(reached) < len(reached)  # some are clipped, some are not


class Relative(Weights):
    """The norm is that of the divided loss."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.units = torch.ones_like(self.units)


class Divided(Weights):
    """The norm is divided by the loss at F = 0 once more."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.units = 1 / self.units


class Lengthened(Weights):
    """A gradient below the largest norm is brought up to it."""

    def update(self, norms: Tensor, step: int) -> None:
        clip, self.clip = self.clip, None
        self.G *= (clip / (self.units * norms + 1e-6))[:, None]
        super().update(norms, step)
        self.clip = clip


class OfTheFirst(Weights):
    """The loss at F = 0 is that of the first trial."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.units = self.units[:1].expand_as(self.units)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_the_gradient_of_the_raw_loss_is_clipped_as_torch_does(engine: str) -> None:
    law_raw_clipping(Weights, engine)


@pytest.mark.parametrize(
    ("mutant", "engine"),
    [
        (Relative, "sequential"),
        (Relative, "batched"),
        (Divided, "sequential"),
        (Divided, "batched"),
        (Lengthened, "sequential"),
        (OfTheFirst, "batched"),
    ],
)
def test_clipping_mutants_are_caught(mutant: type[Weights], engine: str) -> None:
    with pytest.raises(AssertionError):
        law_raw_clipping(mutant, engine)


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
