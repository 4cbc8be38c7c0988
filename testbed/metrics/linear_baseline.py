"""The best linear denoiser, that of a Gaussian with the training split's mean and covariance.

What a fitted one is worth depends on the number of samples N for each of the d dimensions. By
`python benchmarks/linear_baseline.py`, on Gaussian data of 16 to 192 dimensions, independent or
correlated, its loss over that of the best linear denoiser is, as geometric mean over noise levels,

    N/d        sample covariance    shrunk
    1/4        20 to 54             1.0 to 1.5
    1          1.6 to 13            1.0 to 1.2
    2          1.04 to 1.11         1.0 to 1.2
    5          1.00 to 1.04         1.0 to 1.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.oracles import Gaussian

SHRUNK_BELOW = 2
"""Samples a dimension below which the covariance is shrunk."""
SOUND_FROM = 5
"""Samples a dimension from which a loss below the baseline's beats the best linear denoiser."""


@dataclass(frozen=True)
class LinearBaseline:
    """The Wiener denoiser of a Gaussian fitted to a training split.

    Args:
        denoiser: that of the fitted Gaussian.
        shrinkage: the share of the scaled identity in its covariance; None where it is the samples'
            own covariance.
        sound: whether a loss below its own can be said to beat the best linear denoiser.
    """

    denoiser: Gaussian
    shrinkage: float | None
    sound: bool

    @property
    def estimator(self) -> str:
        """How its covariance was estimated, in words."""
        if self.shrinkage is None:
            return "sample covariance"
        return f"covariance shrunk by {self.shrinkage:.2g} (Ledoit and Wolf 2004)"


def fit(data: Data) -> LinearBaseline:
    """The baseline of a data set, its covariance shrunk where the samples are few."""
    n, sound = len(data.train), is_sound(data)
    if n >= SHRUNK_BELOW * data.train[0].numel():
        return LinearBaseline(Gaussian.fit(data.train), None, sound)
    x = data.train.double()
    covariance, shrinkage = ledoit_wolf(x.flatten(1))
    return LinearBaseline(Gaussian(x.mean(0), covariance), shrinkage, sound)


def is_sound(data: Data) -> bool:
    """Whether there are SOUND_FROM training samples for each dimension."""
    return len(data.train) >= SOUND_FROM * data.train[0].numel()


def note(data: Data) -> str:
    """A sentence on a baseline that is not sound, for the plan; empty for one that is."""
    n, d = len(data.train), data.train[0].numel()
    if is_sound(data):
        return ""
    how = "is shrunk (Ledoit and Wolf 2004)" if n < SHRUNK_BELOW * d else "is that of few samples"
    return (
        f"{n} training samples in {d} dimensions: the covariance of the linear (Wiener) baseline "
        f"{how}, and a loss below that baseline's need not be below that of the best linear "
        "denoiser."
    )


def ledoit_wolf(x: Tensor) -> tuple[Tensor, float]:
    """The shrunk covariance (d, d) float64 of x (N, d), and the share of the identity in it.

    With the sample covariance S = sum_k z_k z_k^T / N of the centred z_k, |A|^2 = tr(A A^T)/d,
    m = tr S/d, delta^2 = |S - m I|^2 and beta^2 = min(delta^2, sum_k |z_k z_k^T - S|^2 / N^2), the
    covariance is rho m I + (1 - rho) S with rho = beta^2/delta^2; rho = 0 where delta = 0.

    Source: Ledoit and Wolf 2004, J. Multivariate Anal. 88, eq. 14 and lemmas 3.2 to 3.4.
    """
    x = x.double()
    n, d = x.shape
    z = x - x.mean(0)
    S = z.mT @ z / n
    m, identity = S.trace() / d, torch.eye(d, dtype=torch.float64)
    delta = float((S - m * identity).square().sum()) / d
    # sum_k |z_k z_k^T - S|^2 = sum_k |z_k|^4 - N |S|^2.
    spread = float(z.square().sum(1).square().sum()) / n - float(S.square().sum())
    beta = min(delta, max(0.0, spread) / (n * d))
    rho = beta / delta if delta > 0 else 0.0
    return rho * m * identity + (1 - rho) * S, rho
