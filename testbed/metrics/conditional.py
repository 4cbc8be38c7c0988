"""Samples drawn with a condition against the exact distribution given it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Generator, Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Metric, MetricValue
from testbed.hookspecs import hookimpl
from testbed.metrics import distances, kernels

FEWEST = 3
"""Samples of a condition below which its distance has no error, so that it is not counted."""


def conditional_energy(
    samples: Tensor,
    data: Data,
    generator: Generator,
    condition: Mapping[str, Tensor],
    n: int = 200,
) -> MetricValue:
    """Returns (1/C) sum over c of the energy distance of the samples with c to n draws of p(x|c).

    The sum is over the C conditions that FEWEST samples or more were drawn with, each alike; it is
    nan without one. The U-statistics have independent draws: error^2 is the sum of those of their
    jackknives over C^2, and p is that of relabellings within each condition.

    Args:
        condition: the classes that the samples (N, *shape) were drawn with: name -> (N,) int64.
    """
    if data.conditional is None:
        return MetricValue(math.nan)
    names = list(condition)
    rows = torch.stack([condition[name] for name in names], 1)
    found = []
    for classes in sorted(set(map(tuple, rows.tolist()))):
        index = (rows == rows.new_tensor(classes)).all(1)
        if int(index.sum()) < FEWEST:
            continue
        exact = data.conditional.given(dict(zip(names, classes, strict=True)))
        x, y = distances.rows(samples[index], exact.sample(n, generator), least=FEWEST)
        found.append(kernels.relabelled(x, y, lambda z, w: -torch.cdist(z, w), generator))
    return kernels.mean(found) if found else MetricValue(math.nan)


def unknown_given(data: Data) -> Iterator[str]:
    """Why the samples of such data cannot be compared with p(x|c)."""
    if data.conditional is None:
        yield "the data's exact distributions given a condition are not known."


@hookimpl
def testbed_metrics() -> Iterable[Metric]:
    """Yields the energy distance given a condition."""
    yield Metric(
        "conditional_energy",
        conditional_energy,
        misfits=unknown_given,
        reference="Szekely and Rizzo 2013",
    )
