"""The weights of one or many trials in one buffer, and what a step does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.errors import InputError
from testbed.training import optimizers, rates
from testbed.training.settings import Training

BUFFERS = ("W", "m", "v", "ema")


class Run(NamedTuple):
    """Neighbouring rows with equal settings: one call updates them.

    `steps` is the number of steps that Adam has done: a tensor, as its fused form wants it.
    """

    rows: slice
    settings: Training
    steps: Tensor


class Weights:
    """W (K, P), a row for each trial; gradients G, Adam's moments and the averages lie alike.

    Args:
        trials: the parameters of each, equal in number, shapes and dtype.
        settings: of each; neighbours with equal ones are updated together.
        network: how many of the parameters are the network's; they come first, and the gradient's
            norm and clipping are theirs. All by default.

    Raises:
        InputError: parameters of several dtypes.
    """

    def __init__(
        self,
        trials: Sequence[Sequence[Tensor]],
        settings: Sequence[Training],
        network: int | None = None,
    ) -> None:
        first = trials[0]
        dtypes = {p.dtype for p in first}
        if len(dtypes) > 1:
            names = ", ".join(sorted(map(str, dtypes)))
            raise InputError(f"the weights of one network are of several dtypes: {names}.")
        self.shapes = [p.shape for p in first]
        self.sizes = [p.numel() for p in first]
        self.W = torch.stack([torch.cat([p.detach().flatten() for p in row]) for row in trials])
        self.G = torch.zeros_like(self.W)
        self.ema = self.W.clone()
        # Columns of the network; the objective's own parameters come last.
        self.columns = sum(self.sizes[:network])
        clip = torch.tensor([one.clip for one in settings], device=self.W.device)
        self.clip = torch.where(clip > 0, clip, torch.inf) if bool((clip > 0).any()) else None
        # Adam's moments; sgd keeps its momentum in the first.
        self.m, self.v = torch.zeros_like(self.W), torch.zeros_like(self.W)
        self.runs: list[Run] = []
        start = 0
        for i in range(1, len(settings) + 1):
            if i == len(settings) or settings[i] != settings[start]:
                steps = torch.zeros((), device=self.W.device)
                self.runs.append(Run(slice(start, i), settings[start], steps))
                start = i

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parameters in a buffer (K, P), each (K, ...), or in a row of it (P,)."""
        parts = torch.split(buffer, self.sizes, dim=-1)
        lead = buffer.shape[:-1]
        return [part.view((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def take(self, gradients: Sequence[Tensor]) -> Tensor:
        """Keeps the gradients, each (K, ...), in G; the norms of the network's, (K,)."""
        torch.cat([g.reshape(len(self.W), -1) for g in gradients], dim=1, out=self.G)
        norms: Tensor = torch.linalg.vector_norm(self.G[:, : self.columns], dim=1)
        return norms

    def update(self, norms: Tensor, step: int) -> None:
        """Clipping, the optimiser and the averages."""
        if self.clip is not None:
            self.G[:, : self.columns] *= (self.clip / (norms + 1e-6)).clamp(max=1.0)[:, None]
        self.descend(step)
        for run in self.runs:
            beta = rates.decay(run.settings, step)
            self.ema[run.rows].lerp_(self.W[run.rows], 1 - beta)

    def descend(self, step: int) -> None:
        """The optimiser's step, for each run of equal settings."""
        for rows, settings, steps in self.runs:
            W, G, m, v = (buffer[rows] for buffer in (self.W, self.G, self.m, self.v))
            optimizers.descend(W, G, m, v, steps, settings, rates.learning_rate(settings, step))

    def clear(self, row: int) -> None:
        """Sets a row, its moments and its average to zero."""
        for buffer in (self.W, self.m, self.v, self.ema):
            buffer[row] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `restore` goes on."""
        return {
            **{name: getattr(self, name) for name in BUFFERS},
            "counts": torch.stack([run.steps for run in self.runs]),
        }

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether a `state()` is of as many trials and weights."""
        mine = self.state()
        return all(name in tensors and tensors[name].shape == mine[name].shape for name in mine)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from a `state()` that fits."""
        for name in BUFFERS:
            getattr(self, name).copy_(tensors[name])
        for run, steps in zip(self.runs, tensors["counts"], strict=True):
            run.steps.copy_(steps)
