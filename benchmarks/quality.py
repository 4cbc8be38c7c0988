"""What each sample metric sees: python benchmarks/quality.py [SEEDS].

Prints, for each metric, its floor (mean and standard deviation of real samples over seeds), the
rms of its stated error there, its seconds, and for each fault of the samples how many of the
floor's deviations it moves by. 400 samples of 64 dimensions: four equal modes in a plane of width
0.3, a fifth at their mean, and 62 Gaussian directions of width 1 to 0.3; 2000 rows to train on,
1000 held out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Metric
from testbed.random import stream
from testbed.registry import default_registry

D, N = 64, 400
AXES: Tensor
AXES, _ = torch.linalg.qr(torch.randn(D, D, generator=stream(0, "axes"), dtype=torch.float64))
WIDTHS = torch.cat([torch.full((2,), 0.3), torch.linspace(1.0, 0.3, D - 2)]).double()
CENTRES = torch.tensor([[0, 0], [2, 2], [2, -2], [-2, 2], [-2, -2]]).double()


def normal(n: int, seed: int, name: str) -> Tensor:
    return torch.randn(n, D, generator=stream(seed, name), dtype=torch.float64)


def real(n: int, seed: int, name: str, lowest: int = 0) -> Tensor:
    which = torch.randint(lowest, 5, (n,), generator=stream(seed, f"{name}/mode"))
    z = normal(n, seed, name) * WIDTHS
    z[:, :2] += CENTRES[which]
    return (z @ AXES.T).float()


def moments(seed: int) -> Tensor:
    """A Gaussian with the data's mean and covariance."""
    spread = WIDTHS.square()
    spread[:2] += CENTRES.square().mean(0)
    return (normal(N, seed, "gaussian") * spread.sqrt() @ AXES.T).float()


def blurred(x: Tensor) -> Tensor:
    keep = torch.linspace(1.0, 0.7, D).float()
    return x @ AXES.float() * keep @ AXES.T.float()


FAULTS: dict[str, Callable[[int, Data], Tensor]] = {
    "noise": lambda s, data: real(N, s, "x") + 0.2 * normal(N, s, "noise").float(),
    "blur": lambda s, data: blurred(real(N, s, "x")),
    "shift": lambda s, data: real(N, s, "x") + 0.15,
    "dropped mode": lambda s, data: real(N, s, "x", lowest=1),
    "one mode": lambda s, data: real(N, s, "x", lowest=4),
    "Gaussian": lambda s, data: moments(s),
    "shrunk": lambda s, data: 0.8 * real(N, s, "x"),
    "copies": lambda s, data: data.train[torch.randperm(2000, generator=stream(s, "copy"))[:N]],
}


def column(metric: Metric, sets: list[Data], draw: Callable[[int, Data], Tensor]) -> Tensor:
    """value, error and p for each data set, (seeds, 3)."""
    found = [
        metric.estimate(draw(s, data), data, stream(s, metric.name)) for s, data in enumerate(sets)
    ]
    return torch.tensor(found).double()


def main(seeds: int) -> None:
    registry = default_registry()
    sets = [Data(real(2000, s, "train"), real(1000, s, "test")) for s in range(seeds)]
    heads = ["metric", "floor", "error", "s", *FAULTS]
    print("|" + "|".join(heads) + "|\n" + "|---" * len(heads) + "|")
    for name in registry.names("metric"):
        metric = registry.metric(name)
        start = time.perf_counter()
        floor = column(metric, sets, lambda s, data: real(N, s, "x"))
        seconds = (time.perf_counter() - start) / seeds
        mean, sd = float(floor[:, 0].mean()), float(floor[:, 0].std())
        error = float(floor[:, 1].square().mean().sqrt())
        moved = [
            (float(column(metric, sets[:3], draw)[:, 0].mean()) - mean) / sd
            for draw in FAULTS.values()
        ]
        numbers = [f"{mean:.3g} ± {sd:.2g}", f"{error:.2g}", f"{seconds:.2f}"]
        print("|".join(["", name, *numbers, *(f"{z:.1f}" for z in moved), ""]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
