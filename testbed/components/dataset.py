"""Data sets: by name, and what each hands to the rest."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from testbed.components import quantisation
from testbed.components.base import Component, Takes
from testbed.components.condition import ConditionTable
from testbed.components.first_stage import FirstStage
from testbed.errors import InputError, UnknownName, unknown
from testbed.oracles import Conditional, Oracle
from testbed.tensors import BLOCK, blocks


@dataclass(frozen=True)
class Dataset(Component):
    """A data set by name: `build(**options) -> Data`.

    The same options give the same data, bit for bit.
    """

    axis = "dataset"
    functions: ClassVar = {"build": Takes(role="build")}
    build: Callable[..., Data]

    def __call__(self) -> Data:
        """The train and test split, sigma_data and, where there is one, the oracle.

        Raises:
            InputError: `build` raises, or does not return Data.
        """
        signature = self.signature("build")
        data = signature(options=self.options)
        if not isinstance(data, Data):
            raise signature.wrong("testbed.Data", data)
        return data


@dataclass(frozen=True, eq=False)
class Data:
    """A training and a test split.

    Args:
        train, test: (N, *shape) float32, clean data x0; a `testbed.data.mapped.Mapped` where they
            stay on disk.
        train_labels, test_labels: (N,) int64 classes from 0, or None.
        oracle: the exact distribution where it is known, else None.
        basis: (D, 2) orthonormal columns of the plane that the data lie in, or None.
        further: the conditions besides the label, name -> (train, test) classes, each like the
            labels.
        tables: the values of those of the further conditions that stand for a vector, the tokens of
            a text or an image: their classes are numbers of rows.
        texts: of those of the further conditions whose classes are numbers of texts, all of these,
            each once; a study's `text_encoder` makes a table of tokens of them.
        conditional: the exact distributions given conditions, where they are known.
        quantum: the spacing of the values of quantised data, in units of x0, else None.
        dequantised: whether uniform noise of that width has been added to both splits.
        notes: sentences for the plan and the report, such as what was done to the numbers of a
            file.
        first_stage: of latents, what takes images to them and back.
        pixels: of latents, the images that they are of.

    Raises:
        InputError: an empty split, values that are not finite, splits of different shapes, labels
            that do not fit, a table or texts of no condition or too few of them, a text twice,
            all-zero training data, values off the grid of their quantum, or dequantised ones
            without noise.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    oracle: Oracle | None = None
    basis: Tensor | None = None
    further: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tables: Mapping[str, ConditionTable] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditional: Conditional | None = None
    quantum: float | None = None
    dequantised: bool = False
    notes: tuple[str, ...] = ()
    first_stage: FirstStage | None = None
    pixels: Data | None = None
    sigma_data: float = field(init=False)
    """sqrt(E|x0|^2 / d) about zero, over the training split, in units of x0."""

    def __post_init__(self) -> None:
        for name, split, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if split.ndim < 2 or split.numel() == 0:
                raise InputError(f"{name} data have shape {tuple(split.shape)}, expected (N, ...).")
            if not all(bool(torch.isfinite(block).all()) for block in blocks(split)):
                raise InputError(f"{name} data hold values that are not finite.")
            if labels is not None:
                _check_classes(f"{name} labels", labels, len(split))
        for name, both in self.further.items():
            if name == "label" or not name.isidentifier():
                raise InputError(f"condition {name!r} must be an identifier other than 'label'.")
            for word, split, classes in zip(
                ("train", "test"), (self.train, self.test), both, strict=True
            ):
                _check_classes(f"{word} classes of condition {name!r}", classes, len(split))
        for name in {**self.tables, **self.texts}:
            self._check_values(name)
        if self.train.shape[1:] != self.test.shape[1:]:
            raise InputError(
                f"train samples have shape {self.shape}, test samples {tuple(self.test.shape[1:])}."
            )
        energy = sum(float(block.double().square().sum()) for block in blocks(self.train))
        sigma_data = math.sqrt(energy / self.train.numel())
        if sigma_data == 0:
            raise InputError("the training data are all zero: sigma_data would be 0.")
        object.__setattr__(self, "sigma_data", sigma_data)
        self._check_quantum()

    def _check_values(self, name: str) -> None:
        """InputError unless a condition has a row of its table and a text for each class."""
        if name not in self.further:
            what = "table" if name in self.tables else "texts"
            raise InputError(f"{what}: {unknown('condition', name, self.further)}")
        highest = max(int(classes.max()) for classes in self.further[name])
        texts, table = self.texts.get(name), self.tables.get(name)
        if table is not None and highest >= len(table):
            raise InputError(
                f"condition {name!r} has number {highest}, and its table {len(table)} rows."
            )
        if texts is None:
            return
        if len(set(texts)) < len(texts) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the texts of condition {name!r} must be different strings.")
        if highest >= len(texts) or (table is not None and len(table) != len(texts)):
            rows = "" if table is None else f" and its table {len(table)} rows"
            raise InputError(
                f"condition {name!r} has number {highest}, {len(texts)} texts{rows}: expected a "
                "text for each."
            )

    def _check_quantum(self) -> None:
        """InputError unless the data lie on the grid of their quantum.

        A wrong quantum shifts every likelihood in bits per dimension, and no other number shows it.
        Of more numbers than two blocks, evenly spaced rows are looked at.
        """
        q = self.quantum
        if q is None:
            if self.dequantised:
                raise InputError("dequantised data need their quantum, the width of the noise.")
            return
        if not 0 < q < math.inf:
            raise InputError(f"quantum = {q!r} must be positive and finite, or None.")
        some = [split[:: -(-split.numel() // BLOCK)] for split in (self.train, self.test)]
        values = torch.cat([rows.flatten() for rows in some])
        # scale (x + shift) in float32 is rounded three times.
        error = 4 * 2.0**-24 * float(values.abs().max())
        if self.dequantised:
            problem = quantisation.undequantised(values, q, error)
        else:
            problem = quantisation.mismatch(values, q, error)
        if problem:
            raise InputError(f"quantum = {q:g}, but {problem}.")

    @property
    def sigma_data_error(self) -> float:
        """The standard error of sigma_data over samples, s(m)/(2 sigma_data sqrt(N)), m = |x0|^2/d.

        Infinite for a single sample.
        """
        m = torch.cat([x.double().square().flatten(1).mean(1) for x in blocks(self.train)])
        if len(m) < 2:
            return math.inf
        return float(m.std()) / (2 * self.sigma_data * math.sqrt(len(m)))

    @functools.cached_property
    def sigma_data_channels(self) -> tuple[float, ...]:
        """sqrt(E|x0|^2/d) of each channel, the first axis of a sample, over the training split."""
        channels = self.train.shape[1]
        energies = [
            x.double().square().reshape(len(x), channels, -1).sum((0, 2))
            for x in blocks(self.train)
        ]
        mean = torch.stack(energies).sum(0) * channels / self.train.numel()
        return tuple(mean.sqrt().tolist())

    def agrees(self, sigma_data: float) -> bool:
        """Whether the data may have this sigma_data: within four standard errors of theirs."""
        # The data's own value is itself rounded: the data are float32, the sums float64.
        rounding = 2.0**-23 * self.sigma_data
        return abs(sigma_data - self.sigma_data) <= 4 * self.sigma_data_error + rounding

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def labels(self) -> int:
        """The number of classes; 0 without labels."""
        if self.train_labels is None:
            return 0
        highest = [t.max() for t in (self.train_labels, self.test_labels) if t is not None]
        return int(torch.stack(highest).max()) + 1

    @property
    def classes(self) -> dict[str, int]:
        """The number of classes of each condition, "label" among them where there are labels.

        That of a condition with a table is its number of rows, with texts that of its texts.
        """
        values: dict[str, Sized] = {**self.texts, **self.tables}
        return {
            name: len(values[name])
            if name in values
            else int(torch.stack([classes.max() for classes in both]).max()) + 1
            for name, both in self._conditions().items()
        }

    def condition(self, split: str, names: Iterable[str]) -> dict[str, Tensor]:
        """The classes of each condition in a split, "train" or "test": name -> (N,) int64.

        Raises:
            UnknownName: the data have no such condition.
        """
        conditions = self._conditions()
        for name in names:
            if name not in conditions:
                raise UnknownName(unknown("condition", name, conditions))
        return {name: conditions[name][split == "test"] for name in names}

    def _conditions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (train, test) classes."""
        if self.train_labels is None or self.test_labels is None:
            return dict(self.further)
        return {"label": (self.train_labels, self.test_labels), **self.further}

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of the numbers, as hexadecimal digits; it enters a trial's identity."""
        digest = hashlib.sha256()
        further = (part for name in sorted(self.further) for part in self.further[name])
        for part in (self.train, self.test, self.train_labels, self.test_labels, *further):
            if part is not None:
                digest.update(str((part.dtype, tuple(part.shape))).encode())
                for block in blocks(part):
                    digest.update(block.contiguous().numpy().tobytes())
        for name in sorted(self.tables):
            table = self.tables[name]
            digest.update(f"{name} {table.kind}".encode())
            if table.off is not None:
                digest.update(f" off {table.off}".encode())
            for values in (table.rows, table.mask):
                if values is not None:
                    digest.update(str((values.dtype, tuple(values.shape))).encode())
                    digest.update(values.contiguous().numpy().tobytes())
        for name in sorted(self.texts):
            digest.update(json.dumps([name, *self.texts[name]]).encode())
        if self.first_stage is not None:
            digest.update(self.first_stage.digest.encode())
        return digest.hexdigest()


def _check_classes(what: str, classes: Tensor, n: int) -> None:
    """InputError unless they are n int64 classes from 0."""
    if classes.shape != (n,):
        raise InputError(f"{what} have shape {tuple(classes.shape)}, expected ({n},).")
    if classes.dtype != torch.int64 or classes.min() < 0:
        raise InputError(
            f"{what} are {classes.dtype} from {classes.min()}, expected int64 classes from 0."
        )
