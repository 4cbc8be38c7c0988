"""Data sets of files: scikit-learn's digits, and a user's own arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testbed.components.dataset import Data, Dataset
from testbed.data import pixels, roles
from testbed.data.assembly import Dequantised, Statements, assembled, divided, halves
from testbed.errors import InputError
from testbed.hookspecs import hookimpl


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
    rows = halves(len(data), test, seed)
    return divided(data, labels, rows, seed, quantum, dequantise)


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
    data: str = "",
    labels: str = "",
    columns: tuple[str, ...] = (),
    labels_path: str = "",
    test_path: str = "",
    test: float = 0.2,
    split_seed: int = 0,
    range: Any = None,
    layout: pixels.Layout = "auto",
    scale: float = 1.0,
    shift: float = 0.0,
    quantum: float = 0.0,
    dequantised: Dequantised = False,
) -> Data:
    """The numbers of a file: .npy, .npz, .safetensors, .csv or Parquet. Nothing is unpickled.

    What is recognised, and not stated by an option, is said in the notes of the data.

    Args:
        path: the file, with samples (N, ...).
        data, labels: the names of the arrays in a file of several; "" recognises them, "none" is no
            labels. With `x_train` and `x_test` in the file, `x` is the name.
        columns: the columns of a table that a sample is made of; all that have no other role by
            default.
        labels_path, test_path: the files of the labels and of the held-out samples, where these are
            in files of their own.
        test: the fraction of the test split, where the file has no split.
        split_seed: the seed of the split.
        range: [low, high], which is taken to [-1, 1], or "as_stored"; by default the range of 8-bit
            pixels is recognised.
        layout: where the channels of images are; see `pixels.layout`.
        scale, shift: the samples are scale * (x + shift).
        quantum: the spacing of the stored numbers where they are quantised, 1 for 8-bit images,
            else 0; that of 8-bit pixels is recognised.
        dequantised: whether uniform noise of that width is added, or is "already" in the numbers.

    Raises:
        InputError: no such file, arrays that are missing or unclear, numbers that are not finite,
            a range or layout in doubt, labels that are no classes, a quantum that does not fit, or
            a `test` that is no share.
    """
    if not path:
        raise InputError("dataset 'array': path = '' is not a file; name one.")
    names = roles.Names(data, labels, columns)
    try:
        stated = Statements(range, layout, scale, shift, quantum, dequantised, test, split_seed)
        return assembled(roles.find(Path(path), names, labels_path, test_path), stated)
    except InputError as problem:
        raise InputError(f"dataset 'array': {problem}") from None


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Real data."""
    yield Dataset("digits", digits, reference="UCI; sklearn.datasets.load_digits")
    yield Dataset("array", array)
