"""The training curve: its points, and what is collected on the way from one to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CurvePoint:
    """A point of a training curve: means over the steps since the point before.

    The loss is divided by its value at F = 0.
    """

    step: int
    loss: float
    gradient_norm: float
    gradient_norm_cv: float
    """the standard deviation of the norm over its mean"""
    seconds: float
    bins: tuple[float, ...]
    """the loss in each sigma bin; nan for a bin without a draw"""


@dataclass
class Window:
    """The sums and lists of K trials between two points, kept on the device without a wait."""

    losses: list[Tensor]
    norms: list[Tensor]
    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, trials: int, bins: int, device: torch.device) -> Window:
        """A window before its first step."""
        return cls([], [], *(torch.zeros(trials * bins, device=device) for _ in range(2)))

    def add(self, per_draw: Tensor, norms: Tensor, bins: Tensor) -> None:
        """Adds n steps: losses (n, K, B), gradient norms (n, K) and each draw's bin (n, K, B).

        A draw of trial k in sigma bin b has the number k BINS + b.
        """
        self.losses.append(per_draw.mean(2))
        self.norms.append(norms)
        per_draw = per_draw.flatten()
        self.sums.index_add_(0, bins.flatten(), per_draw)
        self.counts.index_add_(0, bins.flatten(), torch.ones_like(per_draw))

    def first_nonfinite(self) -> list[int | None]:
        """For each trial the first step with a loss or a gradient that is not finite, or None."""
        nonfinite = ~torch.isfinite(torch.cat(self.losses) + torch.cat(self.norms))
        first = nonfinite.int().argmax(0).tolist()
        return [
            int(step) if diverged else None
            for step, diverged in zip(first, nonfinite.any(0).tolist(), strict=True)
        ]

    def points(self, step: int, seconds: float) -> list[CurvePoint]:
        """For each trial the means over the window; `step` is its last."""
        norms = torch.cat(self.norms).double().cpu()
        means, deviations = norms.mean(0).tolist(), norms.std(0, correction=0).tolist()
        losses = torch.cat(self.losses).double().mean(0).tolist()
        bins = (self.sums / self.counts).view(len(losses), -1).tolist()
        return [
            CurvePoint(step, loss, mean, deviation / mean if mean else 0.0, seconds, tuple(row))
            for loss, mean, deviation, row in zip(losses, means, deviations, bins, strict=True)
        ]
