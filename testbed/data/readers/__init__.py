"""The readers of data: which files each takes, and the arrays that they hold, by name."""

from __future__ import annotations

from pathlib import Path

from testbed.data.readers import numpy_files, pickles, safetensors_files, tables
from testbed.data.readers.base import Contents, Reader, Rows, readable
from testbed.errors import InputError

__all__ = ["READERS", "Contents", "Reader", "Rows", "open_path"]

READERS: tuple[Reader, ...] = (
    pickles.PICKLES,
    numpy_files.NUMPY,
    tables.PARQUET,
    safetensors_files.SAFETENSORS,
    tables.CSV,
)
"""Every reader; the first that takes a file reads it."""


def open_path(path: Path, option: str = "path") -> Contents:
    """The arrays of a file, by the first reader that takes it.

    Args:
        path: where it lies, relative to the working directory.
        option: the option that names it, for messages.

    Raises:
        InputError: there is no such file, no reader takes it, or it cannot be read.
    """
    known = ", ".join(suffix for reader in READERS[1:] for suffix in reader.suffixes)
    if path.is_dir() or not path.is_file():
        what = "is a folder, and is not a file" if path.is_dir() else "is not a file"
        raise InputError(f"{option} = {str(path)!r} {what}; give one of {known}.")
    with readable(path):
        with path.open("rb") as file:
            head = file.read(64)
        reader = next((one for one in READERS if one.takes(path, head)), None)
    if reader is None:
        raise InputError(f"{path}: no reader takes it; give one of {known}.")
    with readable(path, reader.expected):
        return reader.open(path)
