"""The laws of metrics of samples against a split of a data set."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Metric
from testbed.random import stream
from testbed.testing import behaviour
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import Skipped
from testbed.testing.options import options_matter
from testbed.testing.probes import normal_data

LAWS = Group("metric")
N = 200


def _data(m: Metric, shape: tuple[int, ...]) -> Data:
    """Correlated, about a plane, so that a metric of the plane has a meaning too; with classes.

    Skipped where the metric cannot measure them: weights that are not named, and the like.
    """
    data = normal_data(shape, 600)
    for problem in m.problems(data):
        raise Skipped(problem)
    return data


def _real(m: Metric, shape: tuple[int, ...]) -> Tensor:
    """Samples of the split that the metric does not compare with."""
    data = _data(m, shape)
    return (data.train if m.against == "test" else data.test)[:N].clone()


def _measured(m: Metric, samples: Tensor, seed: int = 0) -> float:
    return m(samples.clone(), _data(m, tuple(samples.shape[1:])), stream(seed, "testing/metric"))


@LAWS.law("It compares with the test or the training split.")
def metadata(m: Metric, context: Context) -> str:
    demand(m.against in ("test", "train"), f"against = {m.against!r}, expected 'test' or 'train'.")
    return m.against


@LAWS.law("Its floor, real samples against real ones, is a finite number.")
def floor(m: Metric, context: Context) -> str:
    values = [_measured(m, _real(m, shape)) for shape in m.shapes]
    for shape, value in zip(m.shapes, values, strict=True):
        demand(math.isfinite(value), f"real against real is {value}, for {shape}.")
    return f"real against real: {values[0]:.3g}"


@LAWS.law("The same samples and generator give the same number, and global state stays as it was.")
def reproducible(m: Metric, context: Context) -> None:
    samples, data = _real(m, m.shapes[0]), _data(m, m.shapes[0])
    behaviour.pure(
        lambda x: torch.tensor(m(x, data, stream(0, "testing/metric")), dtype=torch.float64),
        (samples,),
    )
    with behaviour.harmless(data.train, data.test):
        m(samples, data, stream(0, "testing/metric"))


@LAWS.law("The order of the samples does not matter.")
def permutation(m: Metric, context: Context) -> str:
    samples = _real(m, m.shapes[0])
    order = torch.randperm(N, generator=stream(0, "testing/order"))
    value, other = _measured(m, samples), _measured(m, samples[order])
    # Distances from an expanded square are known to the root of the rounding.
    bound = 2.0**-26 * max(abs(value), float(samples.abs().max()))
    same = abs(value - other) <= bound or (math.isnan(value) and math.isnan(other))
    demand(same, f"{value:.9g} in one order, {other:.9g} in another.")
    return f"differs by {abs(value - other):.1g}"


@LAWS.law("It grows, to its most, as samples move away: 1, 2, 4 sigma_data in every dimension.")
def sees_shift(m: Metric, context: Context) -> str:
    shown = []
    for shape in m.shapes:
        samples, sd = _real(m, shape), _data(m, shape).sigma_data
        values = [_measured(m, samples + k * sd) for k in (0, 1, 2, 4)]
        shown.append(", ".join(f"{v:.4g}" for v in values))
        demand(
            all(a < b or a == b == m.most for a, b in pairwise(values)) and values[0] < values[-1],
            f"{shown[-1]} for shifts of 0, 1, 2 and 4 sigma_data, for {shape}.",
        )
    return shown[0]


@LAWS.law("A sampling error that it states is finite and not negative, a p lies in [0, 1].")
def error(m: Metric, context: Context) -> str:
    found = m.estimate(_real(m, m.shapes[0]), _data(m, m.shapes[0]), stream(0, "testing/metric"))
    demand(
        math.isnan(found.error) or 0 <= found.error < math.inf,
        f"the sampling error of real samples is {found.error}.",
    )
    demand(math.isnan(found.p) or 0 <= found.p <= 1, f"p of real samples is {found.p}.")
    return f"{found.value:.3g}, error {found.error:.2g}, p {found.p:.2g}"


@LAWS.law("Samples that diverged, with a NaN or infinity among them, give no finite number.")
def diverged(m: Metric, context: Context) -> None:
    for bad in (math.nan, math.inf):
        samples = _real(m, m.shapes[0])
        samples.flatten(1)[3, -1] = bad
        value = _measured(m, samples)
        demand(not math.isfinite(value), f"with a {bad} among the samples it is {value:.4g}.")


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(m: Metric, context: Context) -> str:
    return options_matter(m)


@LAWS.law("A worker process that loads the same plugins measures the same.")
def spawned(m: Metric, context: Context) -> str:
    return behaviour.equal_elsewhere(m, context)
