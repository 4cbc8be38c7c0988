"""What a reader of data is: it says which files it takes, and what arrays they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from testbed.errors import InputError, one_line, unknown


class Rows(Protocol):
    """An array with an entry for each sample, of which only those are read that are indexed.

    NumPy's arrays, in memory or mapped from a file, are such; so may be what decodes its entries.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the entries: numbers, truths, or text."""
        ...

    def __getitem__(self, rows: Any, /) -> Any:
        """The entries of a slice, or of an array of whole numbers, as an array of NumPy."""
        ...


@dataclass(frozen=True)
class Contents(Mapping[str, Rows]):
    """The arrays of a file or folder by name, in its order, each opened when it is looked up.

    Which of them are samples, labels or a split is told by their names, in `testbed.data.roles`. A
    reader of folders names what it finds accordingly: `x_train`, `y_train`, `x_test`, `y_test`.

    Args:
        path: where they are from.
        names: theirs.
        load: returns the array of a name.
        table: whether they are columns of one table, a row for each sample.
        notes: sentences on what was left out or changed.
        titles: what an array is in a message, where it is not the path with the array's name.
        named: whether the names are the file's own, and not those that a reader of folders gives.
    """

    path: Path
    names: tuple[str, ...]
    load: Callable[[str], Rows]
    table: bool = False
    notes: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    named: bool = True
    _found: dict[str, Rows] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> Rows:
        """The array of a name.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        if name not in self.names:
            what = "column" if self.table else "array"
            raise InputError(f"{self.path}: {unknown(what, name, self.names)}")
        if name not in self._found:
            with readable(self.path):
                self._found[name] = self.load(name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def title(self, name: str) -> str:
        """An array in a message: the file, with the array's name where it has one."""
        if name in self.titles:
            return self.titles[name]
        if self.table:
            return f"{self.path}: column {name!r}"
        return f"{self.path}: {name}" if name else str(self.path)


@contextmanager
def readable(path: Path, expected: str = "") -> Iterator[None]:
    """Turns whatever is raised within into one message that names the file and what it should be.

    Raises:
        InputError: whatever exception was raised, a lack of memory too.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as problem:
        what = f": expected {expected}" if expected else ""
        raise InputError(f"{path} cannot be read as numbers{what} ({one_line(problem)}).") from None


@dataclass(frozen=True)
class Reader:
    """A format of files, or of folders.

    Args:
        expected: the format in words, for example "a .csv file with a row for each sample".
        suffixes: how the names of its files end, for example (".csv",).
        takes: whether a path is of this format, from what it is called or holds; it gets the first
            bytes of a file, and none of a folder.
        open: the arrays of a path that it takes. Any exception becomes one message.
        folder: whether its paths are folders.
    """

    expected: str
    suffixes: tuple[str, ...]
    takes: Callable[[Path, bytes], bool]
    open: Callable[[Path], Contents]
    folder: bool = False
