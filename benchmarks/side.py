"""Two things measured side by side: interleaved rounds, the median of their ratio, its interval."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats

from testbed.trial.worker import device_title

Work = Callable[[], Any]


@dataclass
class Figure:
    """One line of the table: a ratio, its 95 % interval and what it should reach.

    Args:
        name: what `bench NAME` calls it.
        what: what is divided by what.
        ratios: one a round.
        wanted: the figure to reach, positive at least, negative at most; None for no demand.
        facts: the absolute numbers behind it, in the unit of their name.
    """

    name: str
    what: str
    ratios: list[float]
    wanted: float | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Order statistics that hold the median with at least 95 %; the extremes of few rounds."""
        ordered = sorted(self.ratios)
        # The k-th from either end; beyond the median with P(X < k) < 2.5 % each, X ~ B(n, 1/2).
        k = max(1, int(stats.binom.ppf(0.025, len(ordered), 0.5)))
        return ordered[k - 1], ordered[-k]

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches what is wanted."""
        if self.wanted is None:
            return None
        return self.ratio >= self.wanted if self.wanted > 0 else self.ratio <= -self.wanted


def seconds(work: Work) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work))
    return found


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Of the two, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "device": device_title(torch.device(device)),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
