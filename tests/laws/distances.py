"""Laws of the sample distances, each with outside truth."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from testbed.metrics import distances, kernels

Distance = Callable[[Tensor, Tensor], float]
Row = Sequence[float]
EPS = torch.finfo(torch.float64).eps
# A distance through |x|^2 + |y|^2 - 2 x.y has an absolute error of about (D + 2) EPS R^2 in its
# square, R the radius of the data. At the distances d of this file, R/d < 10 and D < 20: relative
# error below 22 * 100 EPS = 5e-13 in d, as much again in a kernel, and means do not add to it.
CLOSE = 2e-12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    draws = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return mean + scale * draws


def mmd(samples: Tensor, reference: Tensor) -> float:
    x, y = distances.rows(samples, reference, least=2)
    return kernels.two_sample(x, y, distances.gaussians(y), generator()).value


def energy(samples: Tensor, reference: Tensor) -> float:
    x, y = distances.rows(samples, reference, least=2)
    return kernels.two_sample(x, y, torch.neg, generator()).value


def nearest(samples: Tensor, data: Tensor) -> float:
    return float(distances.to_nearest(samples, data).mean())


def off_plane(samples: Tensor, basis: Tensor, mean: Tensor) -> float:
    return float(distances.outside(samples, basis, mean).mean())


def rows(x: Tensor) -> list[list[float]]:
    return x.double().reshape(len(x), -1).tolist()


def distinct(x: list[Row]) -> Iterator[tuple[Row, Row]]:
    return itertools.permutations(x, 2)


Pairs = Callable[[list[Row]], Iterator[tuple[Row, Row]]]


def discrepancy(k: Callable[[Row, Row], float], x: list[Row], y: list[Row], within: Pairs) -> float:
    return (
        statistics.fmean(itertools.starmap(k, within(x)))
        + statistics.fmean(itertools.starmap(k, within(y)))
        - 2 * statistics.fmean(itertools.starmap(k, itertools.product(x, y)))
    )


def brute_mmd(
    pool: str = "y", octaves: Sequence[int] = (-2, -1, 0, 1, 2), within: Pairs = distinct
) -> Distance:
    def distance(samples: Tensor, reference: Tensor) -> float:
        x, y = rows(samples), rows(reference)
        source = {"x": x, "y": y, "xy": x + y}[pool]
        median = statistics.median(math.dist(*p) for p in itertools.combinations(source, 2))

        def k(one: Row, other: Row) -> float:
            d = math.dist(one, other)
            return statistics.fmean(math.exp(-0.5 * (d / (2**b * median)) ** 2) for b in octaves)

        return discrepancy(k, x, y, within)

    return distance


def brute_energy(power: float = 1, within: Pairs = distinct, factor: float = 1) -> Distance:
    def distance(samples: Tensor, reference: Tensor) -> float:
        def k(one: Row, other: Row) -> float:
            return -(math.dist(one, other) ** power)

        return factor * discrepancy(k, rows(samples), rows(reference), within)

    return distance


def example() -> tuple[Tensor, Tensor]:
    """Images of different number, place and width, away from the origin."""
    return normal(7, 2, 3, seed=1, mean=3.0, scale=1.5), normal(12, 2, 3, seed=2, mean=2.0)


def law_brute_mmd(f: Distance) -> None:
    assert f(*example()) == pytest.approx(brute_mmd()(*example()), rel=CLOSE)


def law_brute_energy(f: Distance) -> None:
    assert f(*example()) == pytest.approx(brute_energy()(*example()), rel=CLOSE)


def law_same_kernel(f: Distance) -> None:
    """Linear in the samples' empirical distribution: the kernel must not depend on the samples.

    For three samples a, b, c the three pairs say what the single rows cannot:
    W(S) = sum over i != j in S of k_ij is additive over pairs, so with U the unbiased within-term
    3 U(abc) = U(ab) + U(bc) + U(ac), and the same holds for the terms with the reference.
    """
    samples, reference = normal(3, 4, seed=3, scale=2.0), normal(9, 4, seed=4)
    whole = f(samples, reference)
    parts = [f(samples[list(pair)], reference) for pair in ((0, 1), (1, 2), (0, 2))]
    assert whole == pytest.approx(statistics.fmean(parts), abs=CLOSE)


def law_unbiased(f: Distance) -> None:
    """Between samples of one distribution the mean is 0, within five of its standard errors."""
    values = [f(normal(5, 2, seed=2 * s), normal(6, 2, seed=2 * s + 1)) for s in range(300)]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert abs(statistics.fmean(values)) < 5 * error


def law_energy_scipy(f: Distance) -> None:
    """scipy's is the root of the V-statistic, whose within-terms are (n - 1)/n of ours."""
    x, y = normal(15, seed=5), normal(11, seed=6, mean=0.5)
    biased = f(x, y)
    for z in (x.numpy(), y.numpy()):
        biased += np.abs(z[:, None] - z).sum() / (len(z) ** 2 * (len(z) - 1))
    assert math.sqrt(biased) == pytest.approx(stats.energy_distance(x, y), rel=CLOSE)


def law_energy_gaussian(f: Distance) -> None:
    """N(m, 1) against N(0, 1), x - y ~ N(m, 2):  2 E|N(m, 2)| - 2 E|N(0, 2)|."""
    m = 1.5
    truth = 2 * math.sqrt(2) * (stats.foldnorm(m / math.sqrt(2)).mean() - stats.foldnorm(0).mean())
    values = [
        f(normal(20, seed=2 * s, mean=m), normal(20, seed=2 * s + 1)) for s in range(1000, 1200)
    ]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert error < 0.05 * truth
    assert abs(statistics.fmean(values) - truth) < 5 * error


def law_copies(f: Distance) -> None:
    """A memorised sample is at distance 0, not at the root of a rounding error."""
    data = normal(100, 5, mean=3.0)
    assert f(data[20:60], data) == 0


OffPlane = Callable[[Tensor, Tensor, Tensor], float]


def plane(dimension: int = 12, k: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal directions in the plane, those out of it, and a point of it off the origin."""
    q, _ = torch.linalg.qr(normal(dimension, dimension, seed=14))
    return q[:, :k], q[:, k:], normal(dimension, seed=15, scale=3.0)


def law_off_plane(f: OffPlane) -> None:
    """x = m + B z + C w is off the plane by w:  the energy is mean |w|^2 / D."""
    B, C, m = plane()
    z, w = normal(9, 2, seed=16, scale=5.0), normal(9, 10, seed=17)
    truth = sum(v * v for row in w.tolist() for v in row) / (9 * 12)
    # Twenty terms of size |x| <= 30 where |w| is about 1: 20 * 30 EPS, squared and doubled.
    assert f(m + z @ B.T + w @ C.T, B, m) == pytest.approx(truth, rel=2 * 600 * EPS)
