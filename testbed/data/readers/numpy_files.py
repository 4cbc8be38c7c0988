"""NumPy's own files: .npy, mapped into memory, and .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from testbed.data.readers.base import Contents, Reader, Rows

MAGIC = b"\x93NUMPY"
ZIP = b"PK"


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
        with np.load(path, allow_pickle=False) as archive:
            found: Rows = archive[name]
            return found

    return Contents(path, names, load)


def _mapped(path: Path) -> Rows:
    """The array of a .npy file, mapped into memory where it holds anything."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except ValueError:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]


NUMPY = Reader(
    "a .npy or .npz file without pickled objects",
    (".npy", ".npz"),
    takes,
    open_file,
)
