"""Tables of noise levels that a study reads from a file, or writes as a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from testbed.data import scheduler_files
from testbed.data.readers import open_path
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError
from testbed.hookspecs import hookimpl


def numbers(path: Path, name: str = "", option: str = "path") -> Tensor:
    """The numbers of a file: its array or column `name`, or its only one; float64.

    A table of one row and several columns is that row. The readers are those of data sets.

    Args:
        path: the file, relative to the working directory.
        name: of several arrays, the one that is taken.
        option: the option that names the file, for messages.

    Raises:
        InputError: no such file, several arrays of other names, or no real numbers.
    """
    found = open_path(path, option)
    names = [name] if name in found.names else list(found)
    if not names:
        raise InputError(f"{path} holds no numbers.")
    single_row = found.table and len(names) > 1 and found[names[0]].shape == (1,)
    if len(names) > 1 and not single_row:
        kind = "columns" if found.table else "arrays"
        named = f" or one by the name {name!r}" if name else ""
        raise InputError(f"{path} has the {kind} {', '.join(names)}: expected a single one{named}.")
    parts = [np.asarray(found[one]) for one in names]
    if wrong := [part.dtype for part in parts if part.dtype.kind not in "iuf"]:
        raise InputError(f"{path} holds values of type {wrong[0]}: expected real numbers.")
    array = np.concatenate(parts) if single_row else parts[0]
    return torch.from_numpy(array.astype(np.float64))


@dataclass(frozen=True)
class FileTable(NoiseTable):
    """A table whose levels a study reads from a file, by `path`, or writes by another option.

    Once the options are bound, what the file says stands in that other option, and `path` is empty:
    so it is part of the trial's identity, and the trial does not need the file again.

    Args:
        contents: the option that has what the file says.
        read: what a file says, as a value of that option.
    """

    contents: str
    read: Callable[[Path], Any]

    @property
    def defaults(self) -> dict[str, Any]:
        return {"path": "", **super().defaults}

    @property
    def named(self) -> bool:
        return bool(self.options[self.contents])

    @property
    def sigmas(self) -> Tensor:
        if not self.options.get(self.contents):
            raise InputError(
                f'{self.label}: names no levels: write path = "FILE", or {self.contents} = ....'
            )
        return super().sigmas

    def bound(self, options: Mapping[str, Any]) -> Self:
        path = options.get("path")
        if path and options.get(self.contents):
            raise InputError(
                f"{self.label}: path and {self.contents} are both given: expected one of them."
            )
        if isinstance(path, str) and path:
            try:
                options = {**options, "path": "", self.contents: self.read(Path(path))}
            except InputError as problem:
                raise InputError(f"{self.label}: {problem}") from None
        return super().bound(options)


def _read(contents: str, path: Path) -> tuple[float, ...]:
    """The sigmas or betas of a file.

    Raises:
        InputError: the file cannot be read, or its numbers are none.
    """
    found = numbers(path, contents)
    try:
        noise_levels.sigmas_of(found, contents)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    return tuple(found.tolist())


def _sigmas(contents: str, values: Sequence[Any]) -> Tensor:
    """The levels of sigmas or betas in a list.

    Raises:
        InputError: the values are none of these.
    """
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"values[{i}] = {value!r}: expected a number.")
    try:
        return noise_levels.sigmas_of(torch.tensor(values, dtype=torch.float64), contents)
    except InputError as problem:
        raise InputError(f"values: {problem}") from None


def betas(values: tuple[float, ...] = ()) -> Tensor:
    """The levels of a list of betas: sigma_i of abar_i = prod_{j<=i} (1 - beta_j); (n,) float64.

    Raises:
        InputError: fewer than two, or one that is not between 0 and 1.
    """
    return _sigmas("betas", values)


def sigmas(values: tuple[float, ...] = ()) -> Tensor:
    """The levels of a list of sigmas; (n,) float64.

    Raises:
        InputError: fewer than two, or not positive, finite and ascending.
    """
    return _sigmas("sigmas", values)


def diffusers(config: Any = None) -> Tensor:
    """The levels of a scheduler of diffusers, from its configuration; (n,) float64.

    Raises:
        InputError: as `scheduler_files.sigmas_of`.
    """
    return scheduler_files.sigmas_of(config)


FILE_TABLES = {
    table.name: table
    for table in (
        FileTable("betas", betas, "values", partial(_read, "betas")),
        FileTable("sigmas", sigmas, "values", partial(_read, "sigmas")),
        FileTable(
            "diffusers",
            diffusers,
            "config",
            scheduler_files.read,
            reference="diffusers, scheduler_config.json",
        ),
    )
}


@hookimpl
def testbed_tables() -> Iterable[FileTable]:
    """Tables from files."""
    yield from FILE_TABLES.values()
