"""Two-sample statistics of a kernel, with a jackknife error and a permutation test.

With K the kernel between all P = N + M rows and s in {0, 1}^P the rows that are samples, x,

    T(s) = s'Ks / (N (N - 1)) + (1 - s)'K(1 - s) / (M (M - 1)) - 2 s'K(1 - s) / (N M),

the diagonal of K being 0. It is the energy distance for k = -|x - y| and MMD^2 for a positive
definite kernel; in a feature space, with the polynomial kernel, it is the kernel distance KID.
K is symmetric: of each pair of squares of `SIDE` rows and columns one is formed, which multiplies
all relabellings at once. Memory of SIDE^2 + `PERMUTATIONS` P numbers, time of
P^2 (D + PERMUTATIONS) / 2.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from testbed.components.metric import MetricValue

PERMUTATIONS = 199
"""Relabellings of a permutation test: its smallest p is 1 / (1 + PERMUTATIONS)."""

SIDE = 512
"""Rows and columns of a square of K, which stays in a core's own cache."""


def cubic(z: Tensor, w: Tensor) -> Tensor:
    """Returns k(z_i, w_j) = (z_i . w_j / F + 1)^3, (n, m) (Binkowski et al. 2018, section 4).

    Args:
        z, w: (n, F) and (m, F) features, not centred: the kernel knows their origin.
    """
    return (z @ w.T / z.shape[1] + 1) ** 3


class Relabelled(NamedTuple):
    """T of the samples and of random relabellings.

    Args:
        T: (1 + PERMUTATIONS,) float64, T(s) first, then T(s_b) of each relabelling s_b.
        error: the standard error of T(s).
        tied: how far relabellings that give the same T may be apart, which reach it in another
            order of additions.
    """

    T: Tensor
    error: float
    tied: float

    def judged(self) -> MetricValue:
        """Returns T(s), its error and p; all are nan where T(s) is not finite.

        p = (1 + #{b : T(s_b) >= T(s)}) / (1 + PERMUTATIONS) (Phipson and Smyth 2010): exact for a
        kernel that does not depend on which rows are samples.
        """
        value = float(self.T[0])
        if not math.isfinite(value):
            return MetricValue(math.nan)
        p = (1 + int((self.T[1:] >= self.T[0] - self.tied).sum())) / (1 + PERMUTATIONS)
        return MetricValue(value, self.error, p)


def mean(found: Sequence[Relabelled]) -> MetricValue:
    """Returns the mean of the T of C independent pairs of samples, with its error and p.

    error^2 is the sum of theirs over C^2. A relabelling of all is one of each, so that p is exact
    for the hypothesis that every pair agrees.
    """
    error = math.sqrt(sum(one.error**2 for one in found))
    T, tied = sum(one.T for one in found), sum(one.tied for one in found)
    assert isinstance(T, Tensor)
    return Relabelled(T / len(found), error / len(found), tied / len(found)).judged()


def two_sample(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor], g: Generator
) -> MetricValue:
    """Returns `of_rows` with a kernel that is an elementwise function of the distances."""
    return of_rows(x, y, lambda z, w: kernel(torch.cdist(z, w)), g)


def of_rows(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], g: Generator
) -> MetricValue:
    """Returns T of x against y, the U-statistic, with its error and p; see `relabelled`."""
    return relabelled(x, y, kernel, g).judged()


def relabelled(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], g: Generator
) -> Relabelled:
    """Returns T of x against y, the U-statistic, its error, and T of random relabellings.

    The error is the delete-one jackknife over the rows of both samples,

        error^2 = (N - 1)/N sum_i (T_(-i) - mean_i T_(-i))^2  +  the same over the rows of y

    (Arvesen 1969). On average it is not below the variance (Efron and Stein 1981): right where the
    distributions differ, twice the variance where they agree, T then being all second order.

    Args:
        x, y: (N, D) and (M, D) float64, N >= 2 and M >= 2; the error is nan below 3.
        kernel: The kernel (n, m) of rows (n, D) and (m, D), symmetric in the two.
        g: The source of the relabellings.
    """
    N, M = len(x), len(y)
    z = torch.cat([x, y])
    S, after = _labels(N, N + M, g.get_state().numpy().tobytes())
    g.set_state(after)
    row = torch.zeros(N + M, 2, dtype=torch.float64)
    within = torch.zeros(S.shape[1], dtype=torch.float64)
    squares = [slice(start, start + SIDE) for start in range(0, N + M, SIDE)]
    for i, j in itertools.combinations_with_replacement(squares, 2):
        K = kernel(z[i], z[j])
        if i == j:
            K.fill_diagonal_(0)
        KS = K @ S[j]
        row[i] += torch.stack([KS[:, 0], K.sum(1)], 1)
        if i != j:  # its mirror image, K', has the rows j
            row[j] += torch.stack([S[i, 0] @ K, K.sum(0)], 1)
        within += (1 if i == j else 2) * (S[i] * KS).sum(0)
    a, r = row.T
    T = _statistic(within, S.T @ r, r.sum(), N, M)
    tied = (N + M) * torch.finfo(torch.float64).eps * float(r.abs().max()) / min(N, M)
    if min(N, M) < 3:
        return Relabelled(T, math.nan, tied)
    W, R = within[0], r[:N].sum()
    # Without row i: what it had with samples, a_i, and with the rest, r_i - a_i, is gone.
    x_out = _statistic(W - 2 * a[:N], R - r[:N] - a[:N], r.sum() - 2 * r[:N], N - 1, M)
    y_out = _statistic(W, R - a[N:], r.sum() - 2 * r[N:], N, M - 1)
    parts = [(n - 1) * out.var(unbiased=False) for n, out in ((N, x_out), (M, y_out))]
    return Relabelled(T, math.sqrt(float(sum(parts))), tied)


@functools.lru_cache(maxsize=4)
def _labels(N: int, P: int, state: bytes) -> tuple[Tensor, Tensor]:
    """Returns s and PERMUTATIONS relabellings of it, (P, 1 + PERMUTATIONS) float64.

    The second value is the state of the generator after them. A metric has the same stream for
    every model that it measures, and sorts once for all of them.

    Args:
        N: How many of the P rows are samples.
        P: The number of rows.
        state: That of the generator before.
    """
    g = Generator()
    g.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    s = torch.zeros(P, 1, dtype=torch.float64)
    s[:N] = 1
    others = torch.rand(P, PERMUTATIONS, dtype=torch.float64, generator=g).argsort(0) < N
    return torch.cat([s, others.double()], 1), g.get_state()


def _statistic(W: Tensor, R: Tensor, total: Tensor, N: int, M: int) -> Tensor:
    """Returns T from W = s'Ks, R = s'K1 and total = 1'K1."""
    between = R - W
    rest = total - R - between
    return W / (N * (N - 1)) + rest / (M * (M - 1)) - 2 * between / (N * M)
