"""Real data: scikit-learn's digits, and a user's own arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testbed.components import dataset
from testbed.components.dataset import Data, Dataset
from testbed.errors import InputError, unknown
from testbed.hookspecs import hookimpl
from testbed.random import stream


def split(
    data: Tensor,
    labels: Tensor | None,
    test: float,
    seed: int,
    quantum: float | None = None,
    dequantise: bool = False,
) -> Data:
    """A random split with a fraction `test` held out, drawn from `seed`.

    Args:
        data: (N, ...) float32.
        labels: (N,) int64, or None.
        test: the fraction of the test split.
        seed: the seed of the split and of the noise.
        quantum: the spacing of quantised values, or None.
        dequantise: whether uniform noise of that width is added, the same for every fraction.

    Raises:
        InputError: a fraction that leaves either side empty, or noise without a quantum.
    """
    n_test = round(len(data) * test)
    if not 0 < n_test < len(data):
        raise InputError(f"test = {test} of {len(data)} samples leaves one split empty.")
    if dequantise:
        if quantum is None:
            raise InputError("dequantised = true: the data need their quantum, the noise's width.")
        data = dataset.dequantise(data, quantum, stream(seed, "dequantisation"))
    order = torch.randperm(len(data), generator=stream(seed, "split"))
    train_rows, test_rows = order[n_test:], order[:n_test]
    return Data(
        train=data[train_rows],
        test=data[test_rows],
        train_labels=None if labels is None else labels[train_rows],
        test_labels=None if labels is None else labels[test_rows],
        quantum=quantum,
        dequantised=dequantise,
    )


def digits(test: float = 0.2, split_seed: int = 0, dequantised: bool = False) -> Data:
    """1,797 handwritten digits, 8x8 grey levels 0..16 mapped to [-1, 1]; (N, 1, 8, 8), labels 0..9.

    The spacing of their values is 1/8; `dequantised` adds uniform noise of that width. They come
    with scikit-learn (UCI Optical Recognition of Handwritten Digits, test part).

    Raises:
        InputError: scikit-learn is not installed.
    """
    # The file is read directly: importing scikit-learn takes longer than the rest of the start.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError("dataset 'digits' needs scikit-learn, which is not installed.")
    rows = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    images = torch.from_numpy(rows[:, :-1]).float().view(-1, 1, 8, 8) / 8 - 1
    labels = torch.from_numpy(rows[:, -1]).long()
    return split(images, labels, test, split_seed, 1 / 8, dequantised)


def array(
    path: str = "",
    data: str = "x",
    labels: str = "y",
    test: float = 0.2,
    split_seed: int = 0,
    scale: float = 1.0,
    shift: float = 0.0,
    quantum: float = 0.0,
    dequantised: bool = False,
) -> Data:
    """The numbers of a .npy file, or of a .npz file with arrays of the names `data` and `labels`.

    Nothing is unpickled.

    Args:
        path: the file, with samples (N, ...).
        data, labels: the names of the arrays in a .npz file; labels (N,) are optional.
        test: the fraction of the test split.
        split_seed: the seed of the split.
        scale, shift: the samples are scale * (x + shift), in float32.
        quantum: the spacing of the stored numbers where they are quantised, 1 for 8-bit images,
            else 0.
        dequantised: whether uniform noise of that width is added.

    Raises:
        InputError: no such file, an array that is missing or holds no real numbers, or a quantum
            that does not fit.
    """
    file = Path(path)
    if not path or not file.is_file():
        raise InputError(f"dataset 'array': path = {path!r} is not a file; give a .npy or .npz.")
    try:
        loaded: Any = np.load(file, allow_pickle=False)
        archive = isinstance(loaded, np.lib.npyio.NpzFile)
        arrays = {name: loaded[name] for name in loaded.files} if archive else None
    except Exception as problem:  # the exception depends on the damage of the zip file
        raise InputError(
            f"dataset 'array': {path} cannot be read as numbers: expected a .npy or .npz file "
            f"without pickled objects ({type(problem).__name__})."
        ) from None
    if arrays is not None and data not in arrays:
        raise InputError(f"dataset 'array': {path}: {unknown('array', data, arrays)}")
    x = loaded if arrays is None else arrays[data]
    if arrays is not None and labels != "y" and labels not in arrays:
        raise InputError(f"dataset 'array': {path}: {unknown('array', labels, arrays)}")
    y = None if arrays is None else arrays.get(labels)
    if not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
        raise InputError(f"dataset 'array': {path} holds {x.dtype}, expected real numbers.")
    if y is not None and not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"dataset 'array': labels in {path} are {y.dtype}, expected integers.")
    if y is not None and y.size and y.min() < 0:
        raise InputError(f"dataset 'array': labels in {path} must count from 0, got {y.min()}.")
    with np.errstate(over="ignore", invalid="ignore"):  # Data refuses what is not finite
        samples = scale * (torch.from_numpy(x.astype(np.float32)) + shift)
    if samples.ndim < 2:
        samples = samples.reshape(-1, 1)
    classes = None if y is None else torch.from_numpy(y.astype(np.int64))
    if classes is not None and classes.shape != samples.shape[:1]:
        raise InputError(
            f"dataset 'array': {path} has {len(samples)} samples and labels of shape "
            f"{tuple(classes.shape)}."
        )
    spacing = abs(scale) * quantum if quantum else None
    return split(samples, classes, test, split_seed, spacing, dequantised)


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Real data."""
    yield Dataset("digits", digits, reference="UCI; sklearn.datasets.load_digits")
    yield Dataset("array", array)
