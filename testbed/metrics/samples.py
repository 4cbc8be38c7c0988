"""Sample metrics by name: samples against a split of a data set.

Each is a distance: it grows as samples get worse. Its floor is the same number for real samples of
the other split, as many as there are samples (`testbed.study.reference_tables`). What each sees
and misses, and what it costs, is in docs/reference/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from testbed.components.dataset import Data
from testbed.components.metric import Metric, MetricValue
from testbed.hookspecs import hookimpl
from testbed.metrics import classifier, distances, kernels, neighbours, projections
from testbed.metrics.resampling import jackknife, mean


def _subset(split: Tensor, n: int, generator: Generator) -> Tensor:
    """Draws n rows of a split without replacement; all of them where it has fewer."""
    return split[torch.randperm(len(split), generator=generator)[:n]]


def mmd(samples: Tensor, data: Data, generator: Generator, n: int = 1000) -> MetricValue:
    """Returns the unbiased multi-bandwidth MMD^2 to n held-out samples, with its error and p.

    The permutation p is exact but for the median distance of the n held-out rows, from which the
    kernel comes.
    """
    x, y = distances.rows(samples, _subset(data.test, n, generator), least=2)
    return kernels.two_sample(x, y, distances.gaussians(y), generator)


def energy(samples: Tensor, data: Data, generator: Generator, n: int = 1000) -> MetricValue:
    """Returns the energy distance to n held-out samples, its jackknife error and exact p."""
    x, y = distances.rows(samples, _subset(data.test, n, generator), least=2)
    return kernels.two_sample(x, y, torch.neg, generator)


def sliced_wasserstein(
    samples: Tensor, data: Data, generator: Generator, n: int = 1000, directions: int = 128
) -> MetricValue:
    """Returns SW_2 to n held-out samples, which is biased upwards: read it against its floor.

    error^2 = that of the grouped jackknife + s(W_2^2)^2 / (4 SW^2 L) of the L directions.
    """
    x, y = distances.rows(samples, _subset(data.test, n, generator), least=2)
    u = projections.directions(x.shape[1], directions, generator)
    along = lru_cache(2)(projections.sorted_along)  # one side stays whole in the jackknife
    W = projections.squared_wasserstein(x, y, u, along)
    value = math.sqrt(float(W.mean()))
    error = jackknife(lambda a, b: projections.sliced_wasserstein(a, b, u, along), x, y, generator)
    if directions > 1 and value > 0:
        error = math.hypot(error, float(W.std()) / (2 * value * math.sqrt(directions)))
    return MetricValue(value, error)


def c2st(samples: Tensor, data: Data, generator: Generator, n: int = 1000) -> MetricValue:
    """Returns the accuracy of a classifier of samples against held-out data; 1/2 at best."""
    x, y = distances.rows(samples, _subset(data.test, n, generator), least=4)
    return classifier.accuracy(x, y, generator)


def _gap(
    measure: Callable[[Tensor, Tensor, int, neighbours.Radii], float],
    samples: Tensor,
    data: Data,
    generator: Generator,
    n: int,
    k: int,
) -> MetricValue:
    """Returns 1 - measure(x, y, k) for n held-out samples y, with the grouped jackknife's error."""
    x, y = distances.rows(samples, _subset(data.test, n, generator), least=1)
    if not x.isfinite().all():
        return MetricValue(math.nan)
    radii = lru_cache(1)(neighbours.radii)  # one side stays whole in the jackknife
    value = 1 - measure(x, y, k, radii)
    return MetricValue(value, jackknife(lambda a, b: measure(a, b, k, radii), x, y, generator))


def precision_gap(
    samples: Tensor, data: Data, generator: Generator, n: int = 1000, k: int = 3
) -> MetricValue:
    """Returns 1 - precision: the share of samples off the manifold of n held-out ones."""
    return _gap(neighbours.precision, samples, data, generator, n, k)


def recall_gap(
    samples: Tensor, data: Data, generator: Generator, n: int = 1000, k: int = 3
) -> MetricValue:
    """Returns 1 - recall: the share of n held-out samples off the manifold of the samples."""
    return _gap(neighbours.recall, samples, data, generator, n, k)


def density_gap(
    samples: Tensor, data: Data, generator: Generator, n: int = 1000, k: int = 5
) -> MetricValue:
    """Returns 1 - density: 0 on average for real samples, below 0 where samples crowd at modes."""
    return _gap(neighbours.density, samples, data, generator, n, k)


def coverage_gap(
    samples: Tensor, data: Data, generator: Generator, n: int = 1000, k: int = 5
) -> MetricValue:
    """Returns 1 - coverage: the share of n held-out samples with no sample near them."""
    return _gap(neighbours.coverage, samples, data, generator, n, k)


def variance_ratio(
    samples: Tensor, data: Data, generator: Generator, share: float = 0.99
) -> MetricValue:
    """Returns sqrt(mean_j log(r_j)^2) over the components that hold `share` of the variance.

    r_j is the spread of the samples over that of the held-out data about their mean; the principal
    components are those of the training split. The error is that of the grouped jackknife.
    """
    x, y = distances.rows(samples, data.test, least=2)
    if not x.isfinite().all():
        return MetricValue(math.nan)
    U, _ = projections.principal(distances.flat(data.train), share)
    error = jackknife(lambda a, b: projections.off_ratio(a, b, U), x, y, generator)
    return MetricValue(projections.off_ratio(x, y, U), error)


def off_plane(samples: Tensor, data: Data, generator: Generator) -> MetricValue:
    """Returns the energy per dimension outside the plane of 2-D data; nan for data without one."""
    if data.basis is None or data.basis.shape[0] == data.basis.shape[1]:
        return MetricValue(math.nan)
    origin = torch.zeros(data.basis.shape[0], dtype=torch.float64)
    return mean(distances.outside(samples, data.basis, origin))


def off_manifold(samples: Tensor, data: Data, generator: Generator, k: int = 4) -> MetricValue:
    """Returns the energy per dimension outside the hull of k training samples; nan for k > D.

    They are the k nearest ones. The error is that of the mean over samples, with the training
    split fixed.
    """
    x, y = distances.rows(samples, data.train, least=1)
    if k > x.shape[1] or not x.isfinite().all():
        return MetricValue(math.nan)
    resolution = x.shape[1] * torch.finfo(data.train.dtype).eps * float(data.train.abs().max())
    return mean(neighbours.off_hull(x, y, k, resolution))


def nearest_train(samples: Tensor, data: Data, generator: Generator) -> MetricValue:
    """Returns the mean distance to the nearest training sample; it is small where memorised."""
    return mean(distances.to_nearest(samples, data.train))


def nearest_test(samples: Tensor, data: Data, generator: Generator) -> MetricValue:
    """Returns the mean distance to the nearest held-out sample."""
    return mean(distances.to_nearest(samples, data.test))


@hookimpl
def testbed_metrics() -> Iterable[Metric]:
    """Yields two-sample distances, fidelity, diversity, energy off the data, and memorisation."""
    yield Metric("mmd", mmd, reference="Gretton et al. 2012, eq. 3")
    yield Metric("energy", energy, reference="Szekely and Rizzo 2013")
    yield Metric("sliced_wasserstein", sliced_wasserstein, reference="Bonneel et al. 2015")
    yield Metric("c2st", c2st, reference="Lopez-Paz and Oquab 2017, arXiv:1610.06545", most=1.0)
    for of_balls in (precision_gap, recall_gap):
        yield Metric(of_balls.__name__, of_balls, reference="arXiv:1904.06991", most=1.0)
    yield Metric("density_gap", density_gap, reference="arXiv:2002.09797, section 3", most=1.0)
    yield Metric("coverage_gap", coverage_gap, reference="arXiv:2002.09797, section 3", most=1.0)
    yield Metric("variance_ratio", variance_ratio)
    yield Metric("off_plane", off_plane)
    yield Metric(
        "off_manifold",
        off_manifold,
        "train",
        shapes=((8,),),  # it needs k <= D, at larger k too
        reference="Vincent and Bengio 2001",
    )
    yield Metric("nearest_test", nearest_test)
    yield Metric("nearest_train", nearest_train, against="train")
