"""Laws of the sample metrics, each with outside truth."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import MetricValue
from testbed.metrics import distances, neighbours, projections
from testbed.oracles import Conditional, Mixture

EPS = torch.finfo(torch.float64).eps
# As in test_distances.py: distances through |x|^2 + |y|^2 - 2 x.y, of rows about their mean.
CLOSE = 2e-12
TwoSample = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor], torch.Generator], MetricValue]
Ratio = Callable[[Tensor, Tensor, int], float]
Error = Callable[[Callable[[Tensor, Tensor], float], Tensor, Tensor, torch.Generator], float]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    draws = torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
    return mean + scale * draws


def near(values: list[float], truth: float) -> bool:
    """Whether the mean is within five of its standard errors."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return abs(statistics.fmean(values) - truth) < 5 * error


def u_statistic(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)."""
    within = [kernel(torch.pdist(z)).mean() for z in (x, y)]
    between = kernel(torch.linalg.vector_norm(x[:, None] - y, dim=2)).mean()
    return float(within[0] + within[1] - 2 * between)


def law_value(f: TwoSample) -> None:
    """T is the U-statistic, by all pairs at once."""
    x, y = distances.rows(normal(31, 3, mean=0.5), normal(43, 3, seed=1), least=2)
    for kernel in (torch.neg, distances.gaussians(y)):
        found = f(x, y, kernel, generator())
        assert found.value == pytest.approx(u_statistic(x, y, kernel), abs=CLOSE)


def law_jackknife(f: TwoSample) -> None:
    """The error is that of leaving out rows one by one, each time computed anew."""
    x, y = normal(6, 2, mean=1.0), normal(9, 2, seed=1)
    total = 0.0
    for n, at in (
        (6, [u_statistic(x[torch.arange(6) != i], y, torch.neg) for i in range(6)]),
        (9, [u_statistic(x, y[torch.arange(9) != i], torch.neg) for i in range(9)]),
    ):
        total += (n - 1) * statistics.pvariance(at)
    # Differences of terms of order one, times n.
    assert f(x, y, torch.neg, generator()).error == pytest.approx(math.sqrt(total), rel=1e-10)


def law_error(f: TwoSample) -> None:
    """error^2 is Var T where the distributions differ, 2 Var T where they agree, on average."""
    for shift, factor in ((1.5, 1.0), (0.0, 2.0)):
        found = [
            f(normal(30, 2, seed=2 * s, mean=shift), normal(40, 2, seed=2 * s + 1), torch.neg,
              generator(s))
            for s in range(300)
        ]  # fmt: skip
        values = [one.value for one in found]
        ratio = statistics.fmean(one.error**2 for one in found) / statistics.variance(values)
        # A variance of 300 has a relative error of sqrt((kurtosis - 1)/300) < 0.12; five of them,
        # less what the finite n adds to either end, keep 1 and 2 apart.
        assert factor * 0.7 < ratio < factor * 1.4


def law_uniform(f: TwoSample) -> None:
    """Where the distributions agree, p is uniform on its 200 steps (exact for this kernel)."""
    uniform(
        f(normal(8, 2, seed=2 * s), normal(12, 2, seed=2 * s + 1), torch.neg, generator(s)).p
        for s in range(400)
    )


def uniform(values: Iterable[float]) -> None:
    p = list(values)
    steps = (np.array(p) * 200).round()
    assert np.abs(steps - np.array(p) * 200).max() < 1e-9
    assert steps.min() >= 1
    assert steps.max() <= 200
    counts = np.histogram((steps - 0.5) / 200, bins=10, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-4


def law_power_of_two_samples(f: TwoSample) -> None:
    """Samples elsewhere have the smallest p there is."""
    assert f(normal(30, 2, mean=2.0), normal(40, 2, seed=1), torch.neg, generator()).p == 1 / 200


def law_of_means(f: Error) -> None:
    """For x.mean() - y.mean() with a row a group it is sqrt(s_x^2/N + s_y^2/M), exactly."""
    x, y = normal(10, 1), normal(7, 1, seed=1, scale=3.0)
    truth = math.sqrt(float(x.var() / 10 + y.var() / 7))
    found = f(lambda a, b: float(a.mean() - b.mean()), x, y, generator())
    assert found == pytest.approx(truth, rel=1e-12)


def law_of_many(f: Error) -> None:
    """With groups of many rows its square has the variance of the statistic as its mean."""
    squares = [
        f(lambda a, b: float(a.mean() - b.mean()), normal(60, 1, seed=2 * s),
          normal(90, 1, seed=2 * s + 1), generator(s)) ** 2
        for s in range(200)
    ]  # fmt: skip
    assert near(squares, 1 / 60 + 1 / 90)


Squared = Callable[[Tensor, Tensor, Tensor], Tensor]


def law_assignment(f: Squared) -> None:
    """Repeated to equal numbers, the best assignment of rows to rows, by linear programming."""
    x, y, u = (
        normal(4, 3, mean=1.0),
        normal(6, 3, seed=1),
        projections.directions(3, 5, generator()),
    )
    for found, u_l in zip(f(x, y, u), u.T, strict=True):
        a, b = (x @ u_l).repeat_interleave(3), (y @ u_l).repeat_interleave(2)
        cost = (a[:, None] - b).square().numpy()
        truth = cost[optimize.linear_sum_assignment(cost)].mean()
        assert float(found) == pytest.approx(truth, rel=100 * EPS)


def law_shift(f: Squared) -> None:
    """Along u, samples shifted by c are |u . c| away, exactly."""
    y, c = normal(50, 4, seed=1), torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    u = projections.directions(4, 40, generator())
    assert torch.allclose(f(y + c, y, u), (u.T @ c).square(), rtol=0, atol=1000 * EPS)


def by_trees(name: str) -> Ratio:
    """The formulas over scikit-learn's k-d trees."""

    def ratio(x: Tensor, y: Tensor, k: int) -> float:
        def balls(z: Tensor) -> np.ndarray:
            tree = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(z.numpy())
            return tree.kneighbors(z.numpy())[0][:, k]

        d = np.array([[math.dist(a, b) for b in y.tolist()] for a in x.tolist()])
        return float(
            {
                "precision": lambda: (d <= balls(y)).any(1).mean(),
                "recall": lambda: (d <= balls(x)[:, None]).any(0).mean(),
                "density": lambda: (d <= balls(y)).sum(1).mean() / k,
                "coverage": lambda: (d <= balls(y)).any(0).mean(),
            }[name]()
        )

    return ratio


def law_trees(name: str, f: Ratio) -> None:
    for k in (1, 3, 5):
        x, y = normal(40, 3, mean=0.5), normal(50, 3, seed=1)
        assert f(x, y, k) == pytest.approx(by_trees(name)(x, y, k), abs=4 * EPS)


def law_expected_coverage(f: Ratio) -> None:
    """Of samples like the data, coverage is on average what N, M and k say."""
    for N, M, k in ((20, 30, 5), (30, 20, 2), (5, 5, 4)):
        for scale in (1.0, 5.0):
            values = []
            for s in range(200):
                x, y = (normal(n, 2, seed=2 * s + i) for i, n in enumerate((N, M)))
                values.append(f((scale * x).exp(), (scale * y).exp(), k))
            assert near(values, neighbours.expected_coverage(N, M, k))


Given = Callable[[Tensor, Data, torch.Generator, Mapping[str, Tensor], int], MetricValue]
APART, SHIFTS = 6.0, (0.9, 0.0)
"""Two conditions' means are as far apart, and the samples of each are off by a shift."""


def two_conditions() -> Data:
    """N(+-APART/2, 1) given the label."""
    oracle = Mixture(torch.tensor([[-APART / 2], [APART / 2]]).double(), torch.ones(2).double())
    x, y = oracle.sample_labelled(60, generator())
    exact = Conditional(oracle, {"label": torch.tensor([0, 1])})
    return Data(x.float(), x.float(), y, y, oracle, conditional=exact)


def given(seed: int, shifts: tuple[float, float], each: int = 20) -> tuple[Tensor, Tensor]:
    """So many samples of each condition, off by its shift, (2 each, 1), and their label."""
    label = torch.tensor([0, 1]).repeat(each)
    x = normal(2 * each, 1, seed=seed) + torch.tensor([shifts]).double().T[label]
    return x + APART * (label[:, None] - 0.5), label


def law_given(f: Given) -> None:
    """The mean over conditions of 2 E|N(m, 2)| - 2 E|N(0, 2)| of samples off by m; its error."""
    data = two_conditions()
    truth = statistics.fmean(
        2 * math.sqrt(2) * float(stats.foldnorm(m / math.sqrt(2)).mean() - stats.foldnorm(0).mean())
        for m in SHIFTS
    )
    found = []
    for s in range(100):
        x, label = given(s, SHIFTS)
        found.append(f(x, data, generator(s), {"label": label}, 30))
    assert near([one.value for one in found], truth)
    spread = statistics.variance(one.value for one in found)
    # As in law_error: right for the one that is shifted, twice the variance for the other; a
    # variance of 100 is within 0.5 and 1.9 of the truth.
    assert 1 / 1.9 < statistics.fmean(one.error**2 for one in found) / spread < 2 / 0.5


def law_p_given(f: Given) -> None:
    """p is uniform where every condition's samples are right, and least where those of one are not.

    Whichever that is.
    """
    data = two_conditions()

    def p(seed: int, *shifts: float, each: int = 8) -> float:
        x, label = given(seed, shifts, each)  # type: ignore[arg-type]
        return f(x, data, generator(1000 + seed), {"label": label}, 12).p

    uniform(p(seed, 0.0, 0.0) for seed in range(400))
    assert p(0, 3.0, 0.0, each=20) == p(0, 0.0, 3.0, each=20) == 1 / 200


D, N = 64, 400
