"""The weights of one or many trials in one buffer, and what a step does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from testbed.errors import InputError
from testbed.training.settings import Training


def decay(ema: float, step: int) -> float:
    """That of the average at a step, min(ema, (1 + t)/(10 + t)): it forgets the start at first."""
    return min(ema, (1 + step) / (10 + step))


class Run(NamedTuple):
    """Neighbouring rows with equal settings: one call updates them."""

    rows: slice
    optimiser: torch.optim.Adam
    weights: nn.Parameter
    average: Tensor
    ema: float


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
        self.runs: list[Run] = []
        start = 0
        own = [(one.learning_rate, one.betas, one.ema) for one in settings]
        for i in range(1, len(own) + 1):
            if i == len(own) or own[i] != own[start]:
                rate, betas, ema = own[start]
                part = nn.Parameter(self.W[start:i])
                part.grad = self.G[start:i]
                adam = torch.optim.Adam([part], lr=rate, betas=betas, fused=True)
                self.runs.append(Run(slice(start, i), adam, part, self.ema[start:i], ema))
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
        """Clipping, Adam and the averages."""
        if self.clip is not None:
            self.G[:, : self.columns] *= (self.clip / (norms + 1e-6)).clamp(max=1.0)[:, None]
        for run in self.runs:
            run.optimiser.step()
            run.average.lerp_(run.weights.detach(), 1 - decay(run.ema, step))

    def clear(self, row: int) -> None:
        """Sets a row, its moments and its average to zero."""
        with torch.no_grad():
            self.W[row] = 0.0
            self.ema[row] = 0.0
        for run in self.runs:
            if run.rows.start <= row < run.rows.stop:
                state = run.optimiser.state[run.weights]
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name][row - run.rows.start] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `restore` goes on."""
        tensors = {"W": self.W, "ema": self.ema}
        for i, run in enumerate(self.runs):
            adam = run.optimiser.state[run.weights]
            tensors |= {f"adam{i}.{key}": value for key, value in adam.items()}
        return tensors

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether a `state()` is of as many trials and weights."""
        return "W" in tensors and tensors["W"].shape == self.W.shape

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from a `state()` that fits."""
        with torch.no_grad():
            self.W.copy_(tensors["W"])
            self.ema.copy_(tensors["ema"])
        for i, run in enumerate(self.runs):
            state: dict[str, Any] = {
                key: tensors[f"adam{i}.{key}"].to(self.W.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam{i}.{key}" in tensors
            }
            run.optimiser.state[run.weights] = state
