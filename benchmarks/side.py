"""Two things measured side by side: interleaved rounds, the median of their ratio, its interval."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats

from testbed.trial.worker import device_title

Work = Callable[[], Any]
Clock = Callable[[], float]


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


def clock_of(device: torch.device) -> Clock:
    """Of one thread its CPU time, which other processes do not add to; of a GPU the time of day."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Of one call."""
    start = clock()
    work()
    return clock() - start


def wait(device: torch.device) -> None:
    """Returns when all that was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    works: Mapping[str, Work], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, clock))
    return found


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Of the two, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": device_title(device),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
