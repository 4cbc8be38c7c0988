"""The law of gradient clipping of the loss itself: torch's clip_grad_norm_ on a paper's loss."""

import functools
import itertools
from typing import Any

import pytest
import torch
from helpers.training import CPU, REGISTRY, data, network
from torch import Tensor, nn
from torch.func import functional_call

import testbed
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
