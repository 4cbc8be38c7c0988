"""Real data: scikit-learn's digits, and a user's own files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from testbed.components import quantisation
from testbed.components.dataset import Data, Dataset
from testbed.data import pixels, roles
from testbed.data.classes import classes
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.random import stream

Dequantised = Literal[False, True, "already"]
ROUNDED = 2.0**-24
"""How far float32 may be off, as a share of the number."""


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
    return _divided(data, labels, rows, seed, quantum, dequantise)


def halves(n: int, test: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of the training and of the test split, drawn from `seed`: (n_train,), (n_test,).

    Raises:
        InputError: a fraction that leaves either side empty.
    """
    n_test = round(n * test)
    if not 0 < n_test < n:
        raise InputError(f"test = {test} of {n} samples leaves one split empty.")
    order = torch.randperm(n, generator=stream(seed, "split"))
    return order[n_test:], order[:n_test]


def _divided(
    data: Tensor,
    labels: Tensor | None,
    rows: tuple[Tensor, Tensor],
    seed: int,
    quantum: float | None,
    dequantised: Dequantised,
    notes: tuple[str, ...] = (),
) -> Data:
    """The data with these rows as their training and test split, noise added where it is wanted.

    Raises:
        InputError: noise without a quantum.
    """
    if dequantised and quantum is None:
        raise InputError("dequantised = true: the data need their quantum, the noise's width.")
    if dequantised is True:
        assert quantum is not None
        data = quantisation.dequantise(data, quantum, stream(seed, "dequantisation"))
    train_rows, test_rows = rows
    return Data(
        train=data[train_rows],
        test=data[test_rows],
        train_labels=None if labels is None else labels[train_rows],
        test_labels=None if labels is None else labels[test_rows],
        quantum=quantum,
        dequantised=bool(dequantised),
        notes=notes,
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
            a range or layout in doubt, labels that are no classes, or a quantum that does not fit.
    """
    if not path:
        raise InputError("dataset 'array': path = '' is not a file; name one.")
    try:
        names = roles.Names(data, labels, columns)
        found = roles.find(Path(path), names, labels_path, test_path)
        x, by, notes = _samples(found, range, layout, (scale, shift))
        y, more = _labels(found)
        spacing, note = _spacing(found, by, quantum, dequantised)
        if "all" in found.parts:
            rows = halves(len(x), test, split_seed)
        else:
            n = found.parts["train"].samples.shape[0]
            rows = torch.arange(n), torch.arange(n, len(x))
        said = (*found.notes, *notes, *more, *note)
        width = abs(by.scale) * spacing or None
        return _divided(x, y, rows, split_seed, width, dequantised, said)
    except InputError as problem:
        raise InputError(f"dataset 'array': {problem}") from None


def _samples(
    found: roles.Roles, stated: Any, layout: pixels.Layout, by_hand: tuple[float, float]
) -> tuple[Tensor, pixels.Affine, list[str]]:
    """The samples of all parts (N, *shape) float32, how they were scaled, and sentences on it."""
    shapes = {part.title: part.samples.shape[1:] for part in found.parts.values()}
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{title} {shape}" for title, shape in shapes.items())
        raise InputError(f"{each}: expected samples of one shape in both splits.")
    extent = pixels.extent(found.parts)
    by = pixels.affine(found.parts, extent, stated, *by_hand)
    part = next(iter(found.parts.values()))
    arrange, note = pixels.layout(part, layout, by.quantum == 1)
    x = torch.cat([pixels.tensor(one, by, extent, arrange) for one in found.parts.values()])
    return x, by, [one for one in (by.note, note) if one]


def _labels(found: roles.Roles) -> tuple[Tensor | None, list[str]]:
    """The classes of all parts (N,) int64, or None, and sentences on what was recognised."""
    parts = list(found.parts.values())
    if parts[0].labels is None:
        return None, []
    for part in parts:
        if part.labels is None or not part.labels.shape or 0 in part.labels.shape:
            raise InputError(f"{part.labels_title} holds no label for each sample.")
    labels = [np.asarray(part.labels[:]) for part in parts if part.labels is not None]
    y, notes = classes(labels, parts[0].labels_title)
    for part, one in zip(parts, y, strict=True):
        if len(one) != part.samples.shape[0]:
            raise InputError(
                f"{part.title} has {part.samples.shape[0]} samples and labels of shape "
                f"{tuple(one.shape)}, {part.labels_title}."
            )
    missing = set(y[-1].tolist()) - set(y[0].tolist())
    if missing:
        notes.append(f"{parts[0].labels_title}: classes {sorted(missing)} are held out only.")
    return torch.cat(y), notes


def _spacing(
    found: roles.Roles, by: pixels.Affine, quantum: float, dequantised: Dequantised
) -> tuple[float, list[str]]:
    """The spacing of the stored numbers, 0 for none, and a sentence where one was recognised.

    Raises:
        InputError: a stated one that the numbers do not have.
    """
    if not quantum and not by.quantum:
        return 0.0, []
    some = []
    for part in found.parts.values():
        x = part.samples
        step = max(1, int(np.prod(x.shape)) // quantisation.MOST_VALUES)
        some.append(torch.from_numpy(np.asarray(x[::step]).astype(np.float64).flatten()))
    values, title = torch.cat(some), next(iter(found.parts.values())).title
    error = ROUNDED * float(values.abs().max())
    if not quantum:
        apart = quantisation.spacing(values, error)
        if apart == by.quantum:
            return by.quantum, [f"{title}: the values are 1 apart, which is their quantum."]
        return 0.0, [f"{title}: no quantum is taken, as the values are {apart} apart and not 1."]
    if not 0 < quantum < float("inf"):
        raise InputError(f"quantum = {quantum!r} must be positive and finite.")
    if dequantised == "already":
        if problem := quantisation.undequantised(values, quantum, error):
            raise InputError(
                f'{title}: quantum = {quantum:g} and dequantised = "already", but {problem}. Write '
                "dequantised = true to add noise of that width, or another quantum."
            )
    elif problem := quantisation.mismatch(values, quantum, error):
        raise InputError(
            f"{title}: quantum = {quantum:g}, but {problem}. Write the spacing of the numbers in "
            'the file; or, if noise of that width is in them, dequantised = "already".'
        )
    return quantum, []


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Real data."""
    yield Dataset("digits", digits, reference="UCI; sklearn.datasets.load_digits")
    yield Dataset("array", array)
