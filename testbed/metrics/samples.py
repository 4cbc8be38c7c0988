"""Sample metrics by name: samples against the held-out split of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from testbed.components import Metric
from testbed.data.base import Data
from testbed.hookspecs import hookimpl
from testbed.metrics import distances


def _some(split: Tensor, n: int, generator: Generator) -> Tensor:
    return split[torch.randperm(len(split), generator=generator)[:n]]


def mmd(samples: Tensor, data: Data, generator: Generator, n: int = 1000) -> float:
    """Unbiased multi-bandwidth MMD^2 to n held-out samples."""
    return distances.mmd(samples, _some(data.test, n, generator))


def energy(samples: Tensor, data: Data, generator: Generator, n: int = 1000) -> float:
    """Energy distance to n held-out samples."""
    return distances.energy(samples, _some(data.test, n, generator))


def off_plane(samples: Tensor, data: Data, generator: Generator) -> float:
    """Energy per dimension outside the plane of embedded 2-D data; nan for data without one."""
    if data.basis is None or data.basis.shape[0] == data.basis.shape[1]:
        return math.nan
    origin = torch.zeros(data.basis.shape[0], dtype=torch.float64)
    return distances.off_plane(samples, data.basis, origin)


def nearest_train(samples: Tensor, data: Data, generator: Generator) -> float:
    """Mean distance to the nearest training sample; well below `nearest_test`: memorised."""
    return distances.nearest(samples, data.train)


def nearest_test(samples: Tensor, data: Data, generator: Generator) -> float:
    """Mean distance to the nearest held-out sample."""
    return distances.nearest(samples, data.test)


@hookimpl
def testbed_metrics() -> Iterable[Metric]:
    """Sample distances, off-plane energy, and the pair that shows memorisation."""
    for measure in (mmd, energy, off_plane, nearest_test):
        yield Metric(measure.__name__, measure)
    yield Metric("nearest_train", nearest_train, against="train")
