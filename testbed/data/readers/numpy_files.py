"""NumPy's own files: .npy, mapped into memory, and .npz."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.data import decoded
from testbed.data.readers.base import Contents, Reader, Rows

MAGIC = b"\x93NUMPY"
ZIP = b"PK"
READ = 2**22
"""Bytes that are read in one piece."""


def takes(path: Path, head: bytes) -> bool:
    """Whether the bytes are NumPy's, or the name is and the bytes are no other's."""
    if head.startswith(MAGIC):
        return True
    if head.startswith(ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    return path.suffix.lower() in NUMPY.suffixes


def open_file(path: Path) -> Contents:
    """The array of a .npy file under the name "", or those of a .npz file; nothing is unpickled."""
    with path.open("rb") as file:
        single = file.read(len(MAGIC)) == MAGIC
    if single:
        return Contents(path, ("",), lambda _: _mapped(path))
    with np.load(path, allow_pickle=False) as archive:
        names = tuple(archive.files)

    def load(name: str) -> Rows:
        if (large := _large(path, name)) is not None:
            return decoded.copy(decoded.key([path], name), lambda: large)[0]
        with np.load(path, allow_pickle=False) as archive:
            found: Rows = archive[name]
            return found

    return Contents(path, names, load)


def _large(path: Path, name: str) -> decoded.Blocks | None:
    """An array of a .npz file in blocks, where it is too large for memory; else None."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        major, _ = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if major == 1
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    size = math.prod(shape) * dtype.itemsize
    if size <= decoded.IN_MEMORY or fortran or dtype.hasobject:
        return None

    def blocks() -> Iterator[NDArray[Any]]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            np.lib.format.read_magic(file)
            read(file)
            for left in range(size, 0, -READ):
                yield np.frombuffer(file.read(min(left, READ)), np.uint8)

    return shape, dtype, blocks(), []


def _mapped(path: Path) -> Rows:
    """The array of a .npy file, mapped into memory where it holds anything."""
    try:
        with np.errstate(over="ignore"):  # a header's shape may be too large for any file
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except ValueError:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]


NUMPY = Reader(
    "a .npy or .npz file without pickled objects",
    (".npy", ".npz"),
    takes,
    open_file,
)
