"""Laws of the distances in feature spaces, each with outside truth."""

import itertools
import math
import statistics
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from testbed.metrics.features import perceptual

Distance = Callable[[Tensor, Tensor], float]
Paired = Callable[[perceptual.Lpips, Tensor, Tensor], Tensor]
EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_moments(m: np.ndarray, S: np.ndarray, n: int, seed: int) -> Tensor:
    """n rows whose mean is m and whose covariance over n - 1 is S, to rounding."""
    z = normal(n, len(m), seed=seed).numpy()
    z = z - z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return torch.from_numpy(m + white @ np.linalg.cholesky(S).T)


A = np.array([[2.0, 0.7], [0.7, 0.5]])
B = np.array([[1.0, -0.4], [-0.4, 3.0]])


def law_frechet_closed_form(f: Distance) -> None:
    """Of 2 x 2 covariances that do not commute: (tr (AB)^(1/2))^2 = tr AB + 2 (det AB)^(1/2)."""
    m = np.array([0.3, -1.0])
    x, y = with_moments(m, A, 9, seed=1), with_moments(0 * m, B, 14, seed=2)
    root = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    truth = m @ m + np.trace(A) + np.trace(B) - 2 * root
    # Some twenty sums of ten terms of order one; the conditions are below 20.
    assert f(x, y) == pytest.approx(truth, abs=20 * 10 * 20 * EPS)


def law_frechet_scipy(f: Distance) -> None:
    """As Heusel et al. have it: covariances by numpy, the root of their product by scipy."""
    x = normal(60, 7, seed=3) @ normal(7, 7, seed=4) + 2
    y = normal(45, 7, seed=5) @ normal(7, 7, seed=6)
    S, T = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = linalg.sqrtm(S @ T)
    d = (x.mean(0) - y.mean(0)).numpy()
    truth = d @ d + np.trace(S) + np.trace(T) - 2 * np.trace(root).real
    # The root of a product has the condition of its eigenvectors, below 1e4 here.
    assert f(x, y) == pytest.approx(truth, rel=1e4 * 7 * EPS)


def law_frechet_few_rows(f: Distance) -> None:
    """Fewer rows than features: eigenvalues of the product of covariances, by 50 digits.

    Those of the product that are 0 may on one processor all come out below it, whose roots are
    then left out: there are several draws.
    """
    for seed in (7, 9, 11, 13):
        x, y = normal(4, 6, seed=seed), normal(5, 6, seed=seed + 1, mean=0.5)
        # Each of six singular values, and 30 sums, are known to a few roundings of the size, 10.
        assert f(x, y) == pytest.approx(exact_frechet(x, y), abs=40 * 10 * EPS)


def exact_frechet(x: Tensor, y: Tensor) -> float:
    """The distance with the eigenvalues of S T, for covariances S and T of rows, by 50 digits."""
    with mpmath.workdps(50):
        S, T, d2 = mpmath.zeros(x.shape[1]), mpmath.zeros(x.shape[1]), mpmath.mpf(0)
        means = []
        for rows, C in ((x, S), (y, T)):
            z = mpmath.matrix(rows.tolist())
            m = [sum(z[:, j]) / z.rows for j in range(x.shape[1])]
            for i, j in itertools.product(range(x.shape[1]), repeat=2):
                products = [(z[k, i] - m[i]) * (z[k, j] - m[j]) for k in range(z.rows)]
                C[i, j] = sum(products) / (z.rows - 1)
            means.append(m)
        d2 = sum((a - b) ** 2 for a, b in zip(*means, strict=True))
        values = mpmath.eig(S * T, left=False, right=False)
        root = sum(mpmath.sqrt(abs(mpmath.re(value))) for value in values)
        return float(d2 + sum(S[i, i] + T[i, i] for i in range(x.shape[1])) - 2 * root)


def law_frechet_itself(f: Distance) -> None:
    """Samples are at distance 0 from themselves, to roundings of the covariance's trace."""
    x = normal(5, 40, seed=9)
    assert abs(f(x, x)) <= 40 * 40 * EPS


def cubic(x: list[float], y: list[float]) -> float:
    return (math.fsum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def law_kernel_pairs(f: Distance) -> None:
    """(x.y/F + 1)^3 over pairs one at a time, without those of a row with itself."""
    x, y = normal(9, 4, seed=10, mean=0.5), normal(13, 4, seed=11)
    a, b = x.tolist(), y.tolist()
    truth = (
        statistics.fmean(itertools.starmap(cubic, itertools.permutations(a, 2)))
        + statistics.fmean(itertools.starmap(cubic, itertools.permutations(b, 2)))
        - 2 * statistics.fmean(itertools.starmap(cubic, itertools.product(a, b)))
    )
    largest = max(cubic(one, one) for one in a + b)
    # 3 (F + 2) roundings of a kernel's value, and of sums of 22 of them for each row.
    assert f(x, y) == pytest.approx(truth, abs=(18 + 22) * largest * EPS)


def law_kernel_expectation(f: Distance) -> None:
    """Unbiased: of N(a, 1) and N(b, 1) its mean is E k(x,x') + E k(y,y') - 2 E k(x,y).

    In one dimension E (xy + 1)^3 = 1 + 3ab + 3(1 + a^2)(1 + b^2) + (a^3 + 3a)(b^3 + 3b).
    """

    def mean(a: float, b: float) -> float:
        third = (a**3 + 3 * a) * (b**3 + 3 * b)
        return 1 + 3 * a * b + 3 * (1 + a**2) * (1 + b**2) + third

    for a, b in ((0.5, 0.5), (0.5, -0.5)):
        truth = mean(a, a) + mean(b, b) - 2 * mean(a, b)
        values = [
            f(normal(12, 1, seed=2 * s, mean=a), normal(8, 1, seed=2 * s + 1, mean=b))
            for s in range(400)
        ]
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert abs(statistics.fmean(values) - truth) < 5 * error


TINY = perceptual.Layout(
    (
        ("convolution", 4, 3, 1, 1), ("relu",), ("pool", 2, 2),
        ("convolution", 5, 3, 1, 1), ("relu",),
    ),
    (1, 4),
    2,
)  # fmt: skip


def tiny_lpips(seed: int = 0) -> perceptual.Lpips:
    """A backbone of two layers with positive weights of the layers, float64."""
    network = perceptual.Lpips(TINY).double()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = drawn.abs() if name.startswith("lin") else drawn / 3
    return network.requires_grad_(False)


def law_lpips_by_hand(f: Paired) -> None:
    """Unit vectors at each pixel, weighted squares, means over pixels, summed over layers."""
    network = tiny_lpips()
    x, y = normal(2, 3, 6, 6, seed=12).sigmoid(), normal(2, 3, 6, 6, seed=13).sigmoid()
    weights = [network.get_parameter(f"lin{k}.model.1.weight").flatten().tolist() for k in (0, 1)]
    first, _, pool, second, _ = network.features
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    truth = []
    for pair in zip(x, y, strict=True):
        layers: list[list[np.ndarray]] = [[], []]
        for image in pair:
            shift = np.array(perceptual.SHIFT)[:, None, None]
            scale = np.array(perceptual.SCALE)[:, None, None]
            h = torch.from_numpy((2 * image.numpy() - 1 - shift) / scale)[None]
            one = np.maximum(first(h).numpy(), 0)
            two = np.maximum(second(pool(torch.from_numpy(one))).numpy(), 0)
            layers[0].append(one[0])
            layers[1].append(two[0])
        total = 0.0
        for (a, b), w in zip(layers, weights, strict=True):
            height, width = a.shape[1:]
            for i, j in itertools.product(range(height), range(width)):
                u, v = (z[:, i, j] / (math.sqrt((z[:, i, j] ** 2).sum()) + 1e-10) for z in (a, b))
                terms = [w[c] * (u[c] - v[c]) ** 2 for c in range(len(w))]
                total += math.fsum(terms) / (height * width)
        truth.append(total)
    np.testing.assert_allclose(f(network, x, y), truth, rtol=1e-12)
