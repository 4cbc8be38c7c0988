"""The readers of data: which files each takes, and the arrays that they hold, by name."""

from __future__ import annotations

from pathlib import Path

from testbed.data.readers import (
    arrow,
    idx,
    image_folders,
    numpy_files,
    pickles,
    safetensors_files,
    tables,
)
from testbed.data.readers.base import Contents, Reader, Rows, readable
from testbed.errors import InputError, no_such

__all__ = ["READERS", "Contents", "Reader", "Rows", "open_path"]

READERS: tuple[Reader, ...] = (
    pickles.PICKLES,
    numpy_files.NUMPY,
    arrow.PARQUET,
    safetensors_files.SAFETENSORS,
    tables.CSV,
    idx.IDX,
    arrow.SAVED,
    arrow.SHARDS,
    idx.IDX_FOLDER,
    image_folders.IMAGE_FOLDERS,
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
    known += ", or " + ", or ".join(reader.expected for reader in READERS if reader.folder)
    folder = path.is_dir()
    if not folder and not path.is_file():
        raise InputError(f"{option} = {str(path)!r}: {no_such(path, 'file or folder')}")
    with readable(path):
        head = b"" if folder else _head(path)
        reader = next((r for r in READERS if r.folder == folder and r.takes(path, head)), None)
    if reader is None and folder:
        raise InputError(
            f"{option} = {str(path)!r} is a folder, and is not a file; give one of {known}."
        )
    if reader is None:
        raise InputError(f"{path}: no reader takes it; give one of {known}.")
    with readable(path, reader.expected):
        return reader.open(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
