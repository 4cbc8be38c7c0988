"""The classifier two-sample test (Lopez-Paz and Oquab 2017)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from testbed.components.metric import MetricValue


def accuracy(x: Tensor, y: Tensor, generator: Generator) -> MetricValue:
    """Returns how often a classifier fitted to one half of the rows tells x from y in the other.

    It is a logistic regression on z_j and z_j^2, z the whitened principal components of the half
    that it is fitted to: it sees means and variances, not higher moments. As many rows of x as of y
    are used.

    With n rows in the other half, the number of right answers has at most the variance of
    Bin(n, 1/2) where the distributions agree, whatever the classifier:

        p = P(Bin(n, 1/2) >= right),   error = sqrt(a (1 - a) / n)

    the error being that of the accuracy a of the one classifier that was trained.

    Args:
        x, y: (N, D) and (M, D), at least 4 rows each; min(N, M) of both are used.
        generator: The source of the rows and the halves. The order of x and of y does not matter.

    Returns:
        The accuracy in [0, 1], 1/2 where they agree; its error; p. All are nan where x is not
        finite.

    Raises:
        ValueError: There are fewer than 4 rows.
    """
    from scipy import stats
    from sklearn.linear_model import LogisticRegression

    n = min(len(x), len(y))
    if n < 4:
        raise ValueError(f"a classifier needs at least 4 rows of each, got {n}")
    if not x.isfinite().all():
        return MetricValue(math.nan)
    u = torch.randn(x.shape[1], dtype=torch.float64, generator=generator)
    halves: list[list[np.ndarray]] = [[], []]
    for z in (x, y):
        # Ranked along a direction first: a random order that is not an order of the argument.
        z = z[(z * u).sum(1).argsort()][torch.randperm(len(z), generator=generator)[:n]]
        halves[0].append(z[: n // 2].numpy())
        halves[1].append(z[n // 2 :].numpy())
    train, test = (np.concatenate(half) for half in halves)
    label, label_test = (np.repeat([1, 0], [len(one) for one in half]) for half in halves)
    m = train.mean(0)
    _, s, Vt = np.linalg.svd(train - m, full_matrices=False)
    kept = s > s[0] * max(train.shape) * np.finfo(np.float64).eps
    whiten = Vt[kept].T / s[kept] * math.sqrt(len(train))

    def features(rows: np.ndarray) -> np.ndarray:
        z = (rows - m) @ whiten
        return np.concatenate([z, z**2], 1)

    model = LogisticRegression(max_iter=1000).fit(features(train), label)
    right = int((model.predict(features(test)) == label_test).sum())
    a = right / len(label_test)
    error = math.sqrt(a * (1 - a) / len(label_test))
    return MetricValue(a, error, float(stats.binom.sf(right - 1, len(label_test), 0.5)))
