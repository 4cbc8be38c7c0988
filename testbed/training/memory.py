"""The memory of a GPU: what is free, and the least that a training takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from testbed.components.dataset import Data
from testbed.training.trainer import TrainingJob

BUFFERS = 5
"""Weights, gradients, Adam's two moments and the averages: each as large as the parameters."""


def free(device: torch.device) -> int | None:
    """The bytes that a training could take on a GPU, or None for a device that cannot be asked."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # what this process holds and does not use is free
    return torch.cuda.mem_get_info(device)[0]


def least(jobs: Sequence[TrainingJob], data: Data) -> int:
    """The bytes that trainings take together at the least: without what a step computes."""
    parameters = (p for job in jobs for p in job.denoiser.parameters())
    buffers = BUFFERS * sum(p.numel() * p.element_size() for p in parameters)
    return buffers + data.train.numel() * data.train.element_size()


def require(jobs: Sequence[TrainingJob], data: Data, device: torch.device) -> None:
    """Refuses trainings for which the device has no memory, before anything is moved there.

    Raises:
        torch.OutOfMemoryError: with what is free and what they take at the least.
    """
    room, needed = free(device), least(jobs, data)
    if room is not None and room < needed:
        what = "the training takes" if len(jobs) == 1 else f"{len(jobs)} trainings as one take"
        raise torch.OutOfMemoryError(
            f"{device} has {room / 2**30:.2f} GiB free; {what} at least {needed / 2**30:.2f} GiB."
        )
