"""Laws of what is made of a user's own files: spacing of values, shrinkage, classes, pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from torch import Tensor

U32, U64 = 2.0**-24, 2.0**-53

Spacing = Callable[[Tensor, float], float | None]
Problem = Callable[[Tensor, float, float], str]


def law_spacing(spacing: Spacing) -> None:
    """The spacing that a grid was made with, whatever its levels, offset and rounding to float32.

    A value of size m is rounded by u m at most, so that the widest distance, of n steps, is off by
    2 u m and q by 2 u m/n.
    """
    chance = np.random.default_rng(0)
    grids: dict[float, NDArray[Any]] = {
        1.0: chance.integers(0, 16, (40, 16)),
        1 / 15: chance.integers(0, 16, (40, 16)),
        2 / 255: chance.integers(0, 256, (100, 12)) - 127.5,
        2 / 65535: chance.integers(0, 65536, (500, 12)) - 32767.5,
        0.1: chance.choice([0, 6, 10, 15], (20, 3)),  # coprime in all, no two of them
        0.25: 4000 + chance.integers(0, 9, (50, 4)),
        1e-3: chance.integers(0, 2, (10, 2)),
    }
    for q, steps in grids.items():
        x = torch.from_numpy((q * steps).astype(np.float32))
        most = float(x.abs().max())
        found = spacing(x, 2 * U32 * most)
        assert found is not None, q
        n = (steps.max() - steps.min()) or 1
        assert abs(found - q) <= 2 * U32 * most / n + 4 * U64 * q, q


def law_no_spacing(spacing: Spacing) -> None:
    """Values that lie on no grid have none, nor have those that are all equal."""
    chance = np.random.default_rng(1)
    grid = chance.integers(0, 16, (400, 16))
    for x in (
        chance.normal(size=(400, 16)),
        chance.normal(size=(3, 2)),
        grid + chance.random(grid.shape),
        np.full((5, 5), 3.0),
    ):
        assert spacing(torch.from_numpy(x.astype(np.float32)), 16 * U32) is None


def law_mismatch(mismatch: Problem) -> None:
    """Another spacing than that of the values is told, with theirs; their own is not."""
    chance = np.random.default_rng(2)
    k = torch.from_numpy(chance.integers(0, 16, (400, 16)).astype(np.float32))
    assert mismatch(k, 1.0, U32 * 15) == ""
    assert mismatch(k / 15, 1 / 15, 2 * U32) == ""
    assert "1 apart" in mismatch(k, 2.0, U32 * 15)
    assert "1 apart, 2 times" in mismatch(k, 0.5, U32 * 15)
    assert "0.0666666" in mismatch(k / 15, 1 / 16, 2 * U32)
    noisy = k + torch.from_numpy(chance.random(k.shape).astype(np.float32))
    assert "no grid" in mismatch(noisy, 1.0, U32 * 16)
    # Three values that happen to be even may be whole numbers all the same.
    assert mismatch(torch.tensor([[0.0, 2.0], [4.0, 2.0]]), 1.0, U32 * 4) == ""


def law_undequantised(undequantised: Problem) -> None:
    """Noise of the width of the quantum passes, wherever it lies; none and narrower do not."""
    chance = np.random.default_rng(3)
    k = chance.integers(0, 16, (400, 16))
    u = chance.random(k.shape)

    def said(x: NDArray[Any]) -> str:
        return undequantised(torch.from_numpy(x.astype(np.float32)), 1.0, 16 * U32)

    assert said(k + u) == ""
    assert said(k + u - 0.5) == ""
    assert said(k + u + 0.3) == ""
    assert "without noise" in said(k + 0 * u)
    assert "not uniform" in said(k + u / 2)
    assert "not uniform" in said(k + 0.3 * chance.normal(size=k.shape) ** 3)


def law_ledoit_wolf(estimate: Callable[[Tensor], tuple[Tensor, float]]) -> None:
    """scikit-learn's estimate, for fewer and for more samples than dimensions, off centre.

    Both take sums of N products, each within gamma_N of its absolute terms; the sums of squares of
    the centred data lose at most what |z|^2/|x|^2 says, here a factor below 2^10.
    """
    chance = np.random.default_rng(4)
    for n, d in ((48, 192), (30, 30), (200, 5), (3, 4)):
        A = chance.normal(size=(d, d)) / np.sqrt(d)
        x = 3 + chance.normal(size=(n, d)) @ A
        expected, share = sklearn_ledoit_wolf(x)
        found, rho = estimate(torch.from_numpy(x))
        bound = 2.0**10 * (n + d) * U64
        assert abs(rho - share) <= bound
        assert float(np.abs(found.numpy() - expected).max()) <= bound * np.abs(expected).max()


Classes = Callable[[Sequence[NDArray[Any]], str], tuple[list[Tensor], list[str]]]


def law_classes(classes: Classes) -> None:
    """Every form that labels have gives the same classes, in the order of the labels."""
    y = np.array([2, 0, 1, 1, 2, 0])
    forms = {
        "as they are": y,
        "from 1": y + 1,
        "gaps": np.array([0, 5, 999])[y],
        "a column": y[:, None],
        "one-hot": np.eye(3)[y],
        "one-hot truths": np.eye(3, dtype=bool)[y],
        "whole floats": y.astype(np.float32),
        "text": np.array(["ant", "bee", "cat"])[y],
    }
    for name, form in forms.items():
        (train, test), notes = classes([form[:4], form[4:]], "y")
        assert train.dtype == torch.int64, name
        assert [train.tolist(), test.tolist()] == [[2, 0, 1, 1], [2, 0]], name
        assert (notes == []) == (name in ("as they are", "whole floats")), name
