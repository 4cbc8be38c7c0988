"""The weights of one or many trials in one buffer, and their update in a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.errors import InputError
from testbed.training import optimizers, rates
from testbed.training.averages import OWN
from testbed.training.settings import Training

BUFFERS = ("W", "m", "v", "ema")


class RowGroup(NamedTuple):
    """Neighbouring rows with equal settings, which one call updates.

    `steps` is the number of Adam's steps so far, a tensor () for its fused form.
    """

    rows: slice
    settings: Training
    steps: Tensor


class Weights:
    """W (K, P) with a row for each trial; gradients G, Adam's moments and the averages like W.

    Args:
        trials: the parameters of each trial, equal in number, shapes and dtype.
        settings: the settings of each trial; neighbours with equal ones are updated together.
        scales: the loss of each trial at F = 0, by which its loss is divided.
        network: the number of parameters that are the network's; they come first, and the norm and
            the clipping of gradients are theirs. By default it is all of them.

    Raises:
        InputError: parameters of several dtypes.
    """

    def __init__(
        self,
        trials: Sequence[Sequence[Tensor]],
        settings: Sequence[Training],
        scales: Sequence[float],
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
        # The columns of the network; the objective's own parameters come last.
        self.columns = sum(self.sizes[:network])
        clip = [one.clip or math.inf for one in settings]
        clips = any(one.clip > 0 for one in settings)
        self.clip = torch.tensor(clip, device=self.W.device) if clips else None
        # Of the gradient's norm: what turns it into that of the loss that is clipped.
        units = [
            scale if one.clip_loss == "raw" else 1.0
            for one, scale in zip(settings, scales, strict=True)
        ]
        self.units = torch.tensor(units, device=self.W.device)
        # Adam's moments; sgd keeps its momentum in the first.
        self.m, self.v = torch.zeros_like(self.W), torch.zeros_like(self.W)
        self.profiles: dict[float, Tensor] = {}
        self.groups: list[RowGroup] = []
        start = 0
        for i in range(1, len(settings) + 1):
            if i == len(settings) or settings[i] != settings[start]:
                steps = torch.zeros((), device=self.W.device)
                self.groups.append(RowGroup(slice(start, i), settings[start], steps))
                start = i

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parameters in a buffer (K, P), each (K, ...), or in a row of it (P,)."""
        parts = torch.split(buffer, self.sizes, dim=-1)
        lead = buffer.shape[:-1]
        return [part.view((*lead, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    def take(self, gradients: Sequence[Tensor]) -> Tensor:
        """Puts the gradients, each (K, ...), in G; returns the norms of the network's, (K,)."""
        torch.cat([g.reshape(len(self.W), -1) for g in gradients], dim=1, out=self.G)
        norms: Tensor = torch.linalg.vector_norm(self.G[:, : self.columns], dim=1)
        return norms

    def update(self, norms: Tensor, step: int) -> None:
        """Clips the gradients, whose norms are (K,), and updates weights and averages.

        A gradient g of norm |g| becomes g min(1, clip/(u |g| + 1e-6)), as torch's clip_grad_norm_
        of u g: u is 1, or the loss at F = 0 where the loss itself is clipped.
        """
        if self.clip is not None:
            factors = self.clip / (self.units * norms + 1e-6)
            self.G[:, : self.columns] *= factors.clamp(max=1.0)[:, None]
        self.descend(step)
        for rows, settings, _ in self.groups:
            self.ema[rows].lerp_(self.W[rows], 1 - rates.decay(settings, step))
        self.average(step)

    def average(self, step: int) -> None:
        """Updates the averages of `keep`."""
        for width, average in self.profiles.items():
            average.lerp_(self.W, 1 - rates.profile_decay(width, step))

    def keep(self, widths: Sequence[float]) -> None:
        """Keeps power-function averages of these widths too, from the first step on."""
        self.profiles = {width: self.W.clone() for width in widths}

    def averages(self) -> dict[str, Tensor]:
        """Copies of all averages of the network's weights, each (K, columns), by name.

        `averages.OWN` is that of the settings, `str(width)` a power-function average.
        """
        kept = {OWN: self.ema, **{str(width): rows for width, rows in self.profiles.items()}}
        return {name: rows[:, : self.columns].clone() for name, rows in kept.items()}

    def descend(self, step: int) -> None:
        """Updates the weights by a step of the optimiser."""
        for rows, settings, steps in self.groups:
            W, G, m, v = (buffer[rows] for buffer in (self.W, self.G, self.m, self.v))
            optimizers.descend(W, G, m, v, steps, settings, rates.learning_rate(settings, step))

    def clear(self, row: int) -> None:
        """Sets a row, its moments and its average to zero."""
        for buffer in (self.W, self.m, self.v, self.ema, *self.profiles.values()):
            buffer[row] = 0.0

    def state(self) -> dict[str, Tensor]:
        """The tensors from which `restore` continues."""
        return {
            **{name: getattr(self, name) for name in BUFFERS},
            **{f"average.{width}": rows for width, rows in self.profiles.items()},
            "counts": torch.stack([group.steps for group in self.groups]),
        }

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether a `state()` has as many trials and weights."""
        return all(
            name in tensors and tensors[name].shape == own.shape
            for name, own in self.state().items()
        )

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continues from a `state()` that fits."""
        for name in BUFFERS:
            getattr(self, name).copy_(tensors[name])
        for width, rows in self.profiles.items():
            rows.copy_(tensors[f"average.{width}"])
        for group, steps in zip(self.groups, tensors["counts"], strict=True):
            group.steps.copy_(steps)
