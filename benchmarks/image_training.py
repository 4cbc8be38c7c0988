"""Training steps of image networks: our engine's, and the loop that a user of diffusers writes.

Both have the same weights at the start and the same draws, so that they end with the same weights
but for rounding: `apart` says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from memory import memory
from side import Figure, clock_of, interleaved, ratios, wait
from torch import Tensor
from trials import REGISTRY, data, run_blocks

import testbed
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, TrainingJob, draws
from testbed.trial import recipes

SETTINGS = Training(
    steps=10**6, batch=8, optimizer="adamw", weight_decay=1e-2, betas=(0.9, 0.999), ema=0.9999,
    clip=1.0, clip_loss="raw", accumulation=2, points=500,
)  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"channels": (16, 32)},
    "dit": {"width": 64, "depth": 4},
}


def training_job(name: str) -> TrainingJob:
    """eps of DDPM on digits, 1 x 8 x 8."""
    p = REGISTRY.parameterization("eps")
    objective = recipes.published(p, REGISTRY, data().sigma_data)
    network = REGISTRY.network(name, **NETWORKS[name])(data().shape, 0, 0, noise_kind="index")
    denoiser = testbed.Denoiser(
        network, p, data().sigma_data, c_in="vp", c_noise="index", table=objective.table
    )
    return TrainingJob(denoiser, objective, SETTINGS, 0)


class Loop:
    """AdamW, clip_grad_norm_, accumulation and diffusers' EMAModel, and nothing else."""

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        network, training = job.denoiser.network, job.training
        assert isinstance(network, torch.nn.Module)
        self.network, self.training, self.device = network.to(device), training, device
        self.samples = data().train.to(device)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.parameters = list(network.parameters())
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, betas=training.betas, eps=training.eps,
            weight_decay=training.weight_decay, fused=True,
        )  # fmt: skip
        self.ema = EMAModel(self.parameters, decay=training.ema, foreach=True)
        self.step = 0

    def __call__(self) -> None:
        """A block of steps, with the draws of ours."""
        training = self.training
        drawn = draws(0, self.step // BLOCK, training.batch, len(self.samples), data().shape)
        times = (1000 * drawn.u).long()
        for index, t, eps in zip(
            *(one.to(self.device) for one in (drawn.indices, times, drawn.eps)), strict=True
        ):
            x0 = self.samples[index]
            parts = (one.chunk(training.accumulation) for one in (x0, eps, t))
            for part in zip(*parts, strict=True):
                loss = self._loss(*part) / training.accumulation
                loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, training.clip)
            self.adamw.step()
            self.adamw.zero_grad()
            self.ema.step(self.parameters)
            self.step += 1
        wait(self.device)

    def _loss(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        x_t = self.scheduler.add_noise(x0, eps, t)
        return torch.nn.functional.mse_loss(self.network(x_t, t, None), eps)


class Ours:
    """Our engine."""

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        self.trainer, self.device = Trainer.of(job, data(), device), device
        self.parameters = self.trainer.parameters

    def __call__(self) -> None:
        """A block of steps."""
        run_blocks(self.trainer, 1)
        wait(self.device)


def ours(name: str, device: torch.device) -> Ours:
    return Ours(training_job(name), device)


def theirs(name: str, device: torch.device) -> Loop:
    return Loop(training_job(name), device)


def training(name: str, rounds: int, device: torch.device) -> Iterator[Figure]:
    """A step of a U-Net or a DiT against the loop written by hand."""
    sides: dict[str, Ours | Loop] = {"ours": ours(name, device), "theirs": theirs(name, device)}
    found = interleaved(sides, rounds, clock_of(device))
    mine, other = (
        torch.cat([p.detach().flatten() for p in side.parameters]) for side in sides.values()
    )
    facts = {f"ms a step, {key}": 1000 * min(found[key]) / BLOCK for key in found}
    facts["apart"] = float((mine - other).norm() / other.norm())
    figure = f"train_{name}"
    yield Figure(
        figure, f"our step of {name} / a hand-written one",
        ratios(found["ours"], found["theirs"]), -1.05, facts,
    )  # fmt: skip
    yield memory(figure, "image_training", name, device)
