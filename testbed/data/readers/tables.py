"""Tables with a row for each sample: .csv files, and columns of Arrow."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from testbed.data.readers.base import Contents, Reader, Rows
from testbed.errors import InputError

SEPARATORS = (",", ";", "\t")
"""Of a .csv file, the first that stands in its first line; else spaces."""
ENCODING = "utf-8-sig"
"""UTF-8, with or without a mark at its beginning."""
UNNAMED = "Unnamed: 0"
"""What pandas calls a first column without a name."""


def open_csv(path: Path) -> Contents:
    """The columns of a .csv file.

    The first line that is no comment holds the columns' names, unless it holds numbers alone; then
    the columns are called "0", "1", .... Numbers that count 0, 1, 2, ... are names.
    """
    import pandas as pd

    with path.open(encoding=ENCODING) as file:
        for skipped, line in enumerate(file):  # noqa: B007  used after the loop
            if line.strip() and not line.startswith("#"):
                break
        else:
            raise InputError(f"{path} cannot be read as numbers: it has no line of them.")
    separator = next((one for one in SEPARATORS if one in line), r"\s+")
    cells = [cell.strip() for cell in re.split(separator, line.strip())]
    counted = len(cells) > 2 and cells == [str(i) for i in range(len(cells))]
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(
            path,
            sep=separator,
            header=None if all(map(_is_number, cells)) and not counted else 0,
            skiprows=skipped,
            index_col=False,
            skipinitialspace=True,
            encoding=ENCODING,
        )
    notes: list[str] = []
    if counted:
        notes.append(f"{path}: the first line counts the columns: it is read as their names.")
    if UNNAMED in table and table[UNNAMED].tolist() == list(range(len(table))):
        del table[UNNAMED]
        notes.append(f"{path}: the first column has no name and counts the rows: it is left out.")
    table.columns = table.columns.map(str)

    def load(name: str) -> Rows:
        column = table[name]
        if column.dtype.kind in "iufb":
            found: Rows = column.to_numpy()
            return found
        return np.asarray(["" if cell != cell else str(cell) for cell in column], dtype=str)

    return Contents(path, tuple(table.columns), load, table=True, notes=tuple(notes))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def import_pyarrow(path: Path) -> Any:
    """The module pyarrow, for a path that needs it.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: it is read by pyarrow, which is missing: pip install pyarrow.")
    import pyarrow

    return pyarrow


def column_array(column: Any, title: str, first: int = 0) -> Rows:
    """A column of Arrow, or a part of it from row `first` on, as an array of NumPy.

    Raises:
        InputError: it has missing values, lists of different lengths, or no numbers and no text.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    types = pa.types
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise InputError(f"{title} has no value in row {row}; fill or remove such rows.")
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
        different = np.flatnonzero(lengths != lengths[:1])
        if len(different):
            row = int(different[0])
            raise InputError(
                f"{title} has lists of different lengths: {lengths[0]} numbers in row {first}, "
                f"{lengths[row]} in row {first + row}; expected samples of one shape."
            )
        inner = column_array(column.flatten(), title)[:]
        return inner.reshape(len(column), -1, *inner.shape[1:])  # type: ignore[no-any-return]
    if types.is_string(kind) or types.is_large_string(kind):
        return np.asarray(column.to_pylist(), dtype=str)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    raise InputError(f"{title} holds {kind}, expected numbers, lists of numbers, or text.")


CSV: Reader = Reader(
    "a .csv file with a row for each sample, its first line the columns' names or numbers",
    (".csv", ".tsv", ".txt"),
    lambda path, head: path.suffix.lower() in CSV.suffixes,
    open_csv,
)
