"""Embeddings of noise levels, of every kind of c_noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from testbed.errors import InputError

NOISE: dict[str, tuple[float, float]] = {
    "sigma": (0.0, 200.0),
    "log_sigma": (-100.0, 100.0),
    "time": (0.0, 1.0),
    "index": (0.0, 20_000.0),
}
"""The ranges of c_noise in which the slowest wave of `Sinusoids` does not repeat itself."""
RANGES: dict[str, tuple[float, float]] = NOISE | {"index": (0.0, 12_000.0)}
"""Those in which the slowest of the waves that `mlp` has by default does not."""
UNITS = {"sigma": 64.0, "log_sigma": 250.0, "time": 1000.0, "index": 1.0}
"""What c_noise is multiplied by, so that its levels lie as far apart as those of an index do."""
LONGEST = 10_000.0
INDEX_UNIT = 64.0
"""An index counts in units of this many levels where it is embedded like other kinds: the fastest
wave of `mlp` then turns by one radian from level to level, the slowest tells 12,000 apart."""
NO_SECOND = "this network was built for one noise level and got a second."


class FourierFeatures(nn.Module):
    """cos and sin of c_noise at `count` frequencies, geometric from `low` to `high` (rad per unit).

    c_noise (B,) -> (B, 2 count).
    """

    frequencies: Tensor

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__()
        grid = torch.logspace(math.log10(low), math.log10(high), count)
        self.register_buffer("frequencies", grid, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def sinusoid_frequencies(count: int) -> Tensor:
    """w_k = LONGEST^(-k/(count - 1)), from 1 to 1/LONGEST radians per unit; (count,) float64."""
    k = torch.arange(count, dtype=torch.float64)
    return torch.exp(-math.log(LONGEST) * k / max(1, count - 1))


class Sinusoids(nn.Module):
    """cos(w c) and sin(w c) of c = unit c_noise (Vaswani et al. 2017, sec. 3.5).

    c_noise (B,) -> (B, 2 count); the unit is that of its kind, a key of UNITS.
    """

    frequencies: Tensor

    def __init__(self, count: int, kind: str) -> None:
        super().__init__()
        w = UNITS.get(kind, 1.0) * sinusoid_frequencies(count)
        self.register_buffer("frequencies", w.to(torch.get_default_dtype()), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """W2 silu(W1 s + b1) + b2 of waves s of c_noise; (B,) -> (B, width).

    A second noise level r adds W3 silu(W1 s(r) + b1), where W3 starts at zero.

    Args:
        waves: `FourierFeatures` or `Sinusoids` of the kind of c_noise, which changes no weight.
        width: the number of features that it returns.
        second: whether there may be a second noise level.

    Raises:
        InputError: at a call, a second noise level where there may be none.
    """

    def __init__(self, waves: FourierFeatures | Sinusoids, width: int, second: bool) -> None:
        super().__init__()
        self.waves = waves
        self.inner = nn.Linear(2 * len(waves.frequencies), width)
        self.outer = nn.Linear(width, width)
        self.second = zero_linear(width, width, bias=False) if second else None

    def forward(self, c_noise: Tensor, second: Tensor | None = None) -> Tensor:
        embedding: Tensor = self.outer(self._hidden(c_noise))
        if second is None:
            return embedding
        if self.second is None:
            raise InputError(NO_SECOND)
        embedding = embedding + self.second(self._hidden(second))
        return embedding

    def _hidden(self, c_noise: Tensor) -> Tensor:
        return nn.functional.silu(self.inner(self.waves(c_noise)))


def zero_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts at zero and draws no random number."""
    layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, inputs, outputs, bias=bias
    )
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
