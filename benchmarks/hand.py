"""The shortest hand-written loop that does the mathematics of one EDM trial."""

from __future__ import annotations

import torch
from trials import data

from testbed.training.trainer import TrainingJob


def loop(one: TrainingJob, steps: int) -> None:
    """Batches, sigma, noise, EDM's loss, Adam and the average, and nothing else."""
    network, training = one.denoiser.network, one.training
    assert isinstance(network, torch.nn.Module)
    parameters = list(network.parameters())
    averages = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam(parameters, lr=training.learning_rate, betas=training.betas, fused=True)
    samples, sd = data().train.flatten(1), data().sigma_data
    for _ in range(steps):
        x0 = samples[torch.randint(len(samples), (training.batch,))]
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(training.batch))[:, None]
        x = x0 + sigma * torch.randn_like(x0)
        r2 = sigma**2 + sd**2
        F = network(x / r2.sqrt(), sigma[:, 0].log() / 4, None)
        target = (x0 - sd**2 / r2 * x) * r2.sqrt() / (sigma * sd)
        loss = (F - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - training.ema)
