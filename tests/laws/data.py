"""Laws of data sets, their splits, embeddings and oracles."""

import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from testbed.components.dataset import Data

U32, U64 = 2.0**-24, 2.0**-53
# A two-sided normal z beyond this has probability 6e-7. Data are fixed by their seed, so a law that
# holds once holds always: the level only says how much luck the choice of seed could have needed.
Z = 5.0


def rows(x: Tensor) -> set[bytes]:
    """The samples as a set."""
    return {row.numpy().tobytes() for row in x}


Split = Callable[[Tensor, Tensor | None, float, int], Data]


def law_partition(cut: Split) -> None:
    """Every sample is in one of the two, once, with its own label; the fraction is `test`."""
    x, y = torch.arange(1.0, 101)[:, None], torch.arange(1, 101)
    found = cut(x, y, 0.3, 7)
    assert sorted(torch.cat([found.train, found.test]).flatten().tolist()) == x.flatten().tolist()
    assert len(found.test) == 30
    assert torch.equal(found.train[:, 0].long(), found.train_labels)
    assert torch.equal(found.test[:, 0].long(), found.test_labels)


def law_shuffled(cut: Split) -> None:
    """Which samples are held out does not depend on their order: mean rank as of a random subset.

    Without replacement, n of N: variance (N - n)(N + 1)/(12 n).
    """
    x = torch.arange(1.0, 1001)[:, None]
    held = cut(x, None, 0.3, 7).test
    variance = (1000 - 300) * 1001 / (12 * 300)
    assert abs(float(held.mean()) - 500.5) < Z * math.sqrt(variance)


def law_seeded_split(cut: Split) -> None:
    """The seed, and nothing else, fixes the split."""
    x = torch.arange(1.0, 101)[:, None]
    assert torch.equal(cut(x, None, 0.3, 7).test, cut(x, None, 0.3, 7).test)
    assert not torch.equal(cut(x, None, 0.3, 7).test, cut(x, None, 0.3, 8).test)


def law_disjoint(make: Callable[..., Data]) -> None:
    """No sample is in both splits, however large either is."""
    for n, test in ((200, 200), (100, 400)):
        found = make(n=n, test=test, data_seed=3)
        assert not rows(found.train) & rows(found.test)


DIMS = [2, 3, 8, 64]


def law_orthonormal(make: Callable[[int], Tensor]) -> None:
    """|P^T P - 1| within the error of Householder's QR, gamma of O(D * 2) (Higham, theorem 19.4).

    8 operations a coordinate and column, and D more for the product here.
    """
    for dim in DIMS:
        P = make(dim)
        assert P.shape == (dim, 2)
        bound = (8 * 2 * dim + dim) * U64
        assert float((P.T @ P - torch.eye(2, dtype=torch.float64)).abs().max()) <= bound


def law_in_the_plane(data: Data) -> None:
    """Off the plane lies only what rounding to float32 put there: at most u |x| a sample.

    Each coordinate is rounded once, |error| <= u32 |x_i|; a projection lengthens nothing. P and
    the products with it are off by 20 D u64, which U32 dwarfs.
    """
    x = data.train.double()
    off = x - x @ data.basis @ data.basis.T
    bound = U32 + 40 * x.shape[1] * U64
    assert bool((off.norm(dim=1) <= bound * x.norm(dim=1) * (1 + 4 * U32)).all())


def law_sigma_data(measure: Callable[[Data], float]) -> None:
    """sqrt(E|x0|^2/d) about zero, over the training split alone."""
    train = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    data = Data(train=train, test=torch.full((2, 2), 100.0))
    assert measure(data) == math.sqrt(50 / 4)


def law_moments(data: Data) -> None:
    """The sample's mean and covariance in the plane are the oracle's, within their errors.

    E[x0] and Cov[x0] are the posterior's at a noise level that says nothing, sigma = 1e8.
    """
    assert data.oracle is not None
    nothing = torch.zeros(1, data.train.shape[1], dtype=torch.float64)
    P = data.basis
    mean = (data.oracle.denoise(nothing, 1e8) @ P)[0]
    cov = P.T @ data.oracle.covariance(nothing, 1e8)[0] @ P
    for part in (data.train, data.test):
        y = part.double() @ P - mean
        first = y.mean(0) / (y.std(0) / math.sqrt(len(y)))
        products = torch.stack([y[:, i] * y[:, j] for i, j in ((0, 0), (0, 1), (1, 1))], 1)
        expected = torch.stack([cov[0, 0], cov[0, 1], cov[1, 1]])
        second = (products.mean(0) - expected) / (products.std(0) / math.sqrt(len(y)))
        assert float(torch.cat([first, second]).abs().max()) < Z


def law_off_the_plane(data: Data) -> None:
    """The oracle knows the plane: no mean and no variance beside it, but rounding."""
    d = data.train.shape[1]
    beside = torch.eye(d, dtype=torch.float64) - data.basis @ data.basis.T
    nothing = torch.zeros(1, d, dtype=torch.float64)
    mean = data.oracle.denoise(nothing, 1e8)[0]
    cov = data.oracle.covariance(nothing, 1e8)[0]
    assert float((beside @ mean).norm()) <= 100 * d * U64 * float(mean.norm())
    assert float((beside @ cov).norm()) <= 100 * d * U64 * float(cov.norm())


def law_checkerboard(points: Tensor) -> None:
    """All points on dark squares, and as many on each (chi squared)."""
    cell = ((points.double() + 1) * 2).floor().clamp(0, 3).long()
    dark = (cell.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert bool(dark)
    expected = [len(points) / 8] * 8
    observed = [int(counts[4 * i + j]) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    assert stats.chisquare(observed, expected).pvalue > 1e-6
