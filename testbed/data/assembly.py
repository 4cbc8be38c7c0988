"""From the arrays of a file to the data: range, layout, labels, spacing, split, memory or disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from testbed.components import quantisation
from testbed.components.dataset import Data
from testbed.data import mapped, pixels, roles
from testbed.data.classes import classes
from testbed.data.mapped import Mapped
from testbed.data.readers.pictures import Fit, Pictures
from testbed.errors import InputError
from testbed.random import stream

Dequantised = Literal[False, True, "already"]
AS_THEY_ARE = Fit()
SHARE = "expected the share of the samples that is held out, above 0 and below 1"
ROUNDED = 2.0**-24
"""How far float32 may be off, as a share of the number."""


@dataclass(frozen=True)
class Statements:
    """What a study says of the numbers of a file; the options of `testbed.data.files.array`.

    Args:
        range, layout, scale, shift: how samples are made of numbers; see `testbed.data.pixels`.
        quantum, dequantised: the spacing of the numbers, and whether noise of its width is added.
        test, split_seed: the split of a file that has none.
        fit: what pictures are made to have in common.

    Raises:
        InputError: `test` is no share of the samples.
    """

    range: Any = None
    layout: pixels.Layout = "auto"
    scale: float = 1.0
    shift: float = 0.0
    quantum: float = 0.0
    dequantised: Dequantised = False
    test: float = 0.2
    split_seed: int = 0
    fit: Fit = AS_THEY_ARE

    def __post_init__(self) -> None:
        if not 0 < self.test < 1:
            raise InputError(f"test = {self.test:g}: {SHARE}.")


def halves(n: int, test: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of the training and of the test split, drawn from `seed`: (n_train,), (n_test,).

    Raises:
        InputError: a fraction that leaves either side empty.
    """
    n_test = round(n * test)
    if not 0 < n_test < n:
        raise InputError(f"test = {test:g} of {n} samples leaves one split empty: {SHARE}.")
    order = torch.randperm(n, generator=stream(seed, "split"))
    return order[n_test:], order[:n_test]


def divided(
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


def assembled(found: roles.Roles, stated: Statements) -> Data:
    """The data of the samples and labels of a file.

    Samples of more than `decoded.IN_MEMORY` bytes stay on disk.

    Raises:
        InputError: see `testbed.data.files.array`.
    """
    found, of_pictures = _decoded(found, stated.fit)
    if of_pictures is not None:
        whole = [0, pixels.BITS16 if of_pictures.itemsize == 2 else pixels.BITS8]
        kept = whole if stated.range is None and (stated.scale, stated.shift) == (1, 0) else None
        stated = replace(stated, range=kept or stated.range, layout="channels_last")
    conversion, notes = _conversion(found, stated)
    by, parts = conversion.by, list(found.parts.values())
    y, more = labels_of(found)
    spacing, note = _spacing(found, by, stated.quantum, stated.dequantised)
    counts = [part.samples.shape[0] for part in parts]
    if "all" in found.parts:
        rows = halves(counts[0], stated.test, stated.split_seed)
    else:
        rows = torch.arange(counts[0]), torch.arange(counts[0], sum(counts))
    said = (*found.notes, *notes, *more, *note)
    width = abs(by.scale) * spacing or None
    shape = conversion.shape(parts[0].samples)
    if mapped.stays(sum(counts), shape):
        return _on_disk(parts, conversion, rows, y, width, stated.dequantised, said)
    x = torch.empty(sum(counts), *shape)
    for first, part in zip((0, *counts[:-1]), parts, strict=True):
        for start, block in pixels.converted(part, conversion):
            x[first + start : first + start + len(block)] = block
    return divided(x, y, rows, stated.split_seed, width, stated.dequantised, said)


def _decoded(found: roles.Roles, fit: Fit) -> tuple[roles.Roles, np.dtype[Any] | None]:
    """The roles with arrays in the place of pictures, whose type is returned where there are any.

    Raises:
        InputError: a picture that cannot be decoded, or pictures of different sizes.
    """
    parts, notes, kind = {}, list(found.notes), None
    for split, part in found.parts.items():
        samples = part.samples
        if isinstance(samples, Pictures):
            samples, more = samples.decoded(fit)
            kind, notes = samples.dtype, notes + more
        parts[split] = replace(part, samples=samples)
    return roles.Roles(parts, tuple(dict.fromkeys(notes))), kind


def _on_disk(
    parts: list[roles.Part],
    conversion: pixels.Conversion,
    rows: tuple[Tensor, Tensor],
    y: Tensor | None,
    quantum: float | None,
    dequantised: Dequantised,
    notes: tuple[str, ...],
) -> Data:
    """The data, of which only those samples are read that are used.

    Raises:
        InputError: noise that is to be added, or a number that float32 does not have.
    """
    if dequantised is True:
        raise InputError(
            f"dequantised = true: {parts[0].title} is too large for memory, and its samples are "
            'read when they are used: add the noise to the file, and write dequantised = "already".'
        )
    for part in parts if conversion.wide else ():
        for _ in pixels.converted(part, conversion):
            pass
    shape = conversion.shape(parts[0].samples)
    first = 0 if len(parts) == 1 else len(rows[0])
    train, test = (
        Mapped(part.samples, conversion, shape, (index - offset).numpy())
        for part, index, offset in zip((parts[0], parts[-1]), rows, (0, first), strict=True)
    )
    train_labels, test_labels = (None, None) if y is None else (y[rows[0]], y[rows[1]])
    note = f"{parts[0].title}: samples stay on disk, and are read when they are used."
    return Data(
        train,
        test,
        train_labels,
        test_labels,
        quantum=quantum,
        dequantised=bool(dequantised),
        notes=(*notes, note),
    )


def _conversion(found: roles.Roles, stated: Statements) -> tuple[pixels.Conversion, list[str]]:
    """What makes samples of the numbers of all parts, and sentences on it."""
    shapes = {part.title: part.samples.shape[1:] for part in found.parts.values()}
    if len(set(shapes.values())) > 1:
        each = ", ".join(f"{title} {shape}" for title, shape in shapes.items())
        raise InputError(f"{each}: expected samples of one shape in both splits.")
    extent = pixels.extent(found.parts)
    by = pixels.affine(found.parts, extent, stated.range, stated.scale, stated.shift)
    part = next(iter(found.parts.values()))
    arrange, note = pixels.layout(part, stated.layout, by.quantum == 1)
    wide = max(abs(extent.low), abs(extent.high)) > pixels.LARGEST
    return pixels.Conversion(by, arrange, wide), [one for one in (by.note, note) if one]


def labels_of(found: roles.Roles) -> tuple[Tensor | None, list[str]]:
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
        whole = all(part.samples.dtype.kind in "iu" for part in found.parts.values())
        apart = quantisation.spacing(values, 0.0 if whole else error)
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
