"""IDX files, the format of MNIST: a header of sizes, then the numbers; gzipped or not.

The header is 0, 0, the type, the number of dimensions, then each size as four bytes, the highest
first (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from testbed.data import decoded
from testbed.data.readers.base import Contents, Reader, Rows
from testbed.errors import InputError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SUFFIXES = (".idx", "-ubyte", ".idx1-ubyte", ".idx3-ubyte", ".gz")
MNIST = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""The files of MNIST and of what has its form, without a suffix .gz."""
READ = 2**22
"""Bytes that are read in one piece."""


class Header(NamedTuple):
    """The type and the sizes of an IDX file, and where its numbers begin."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        """How many bytes its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize


def takes(path: Path, head: bytes) -> bool:
    """Whether the name of a file is that of an IDX file."""
    return path.name.lower().endswith(SUFFIXES)


def _opened(path: Path) -> BinaryIO:
    zipped = path.suffix.lower() == ".gz"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def header(file: BinaryIO, path: Path) -> Header:
    """The header at the beginning of a file.

    Raises:
        InputError: it is no IDX file, or its header is cut off.
    """
    magic = file.read(4)
    if len(magic) < 4:
        raise InputError(f"{path} is cut off: of its header there are {len(magic)} bytes.")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES:
        raise InputError(
            f"{path} is no IDX file: it begins with {magic.hex(' ')}, expected 00 00, the type of "
            f"its numbers (one of {', '.join(f'{one:02x}' for one in TYPES)}) and how many "
            "dimensions they have."
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(
            f"{path} is cut off: its header has {magic[3]} sizes, of which {len(sizes) // 4} are "
            "there."
        )
    shape = struct.unpack(f">{magic[3]}I", sizes)
    return Header(np.dtype(TYPES[magic[2]]), shape, 4 + len(sizes))


def open_file(path: Path) -> Contents:
    """The array of an IDX file, under the name ""; mapped into memory where it is not gzipped.

    Raises:
        InputError: it is no such file, or not as long as its header says.
    """
    try:
        with _opened(path) as file:
            found = header(file, path)
    except (OSError, EOFError, zlib.error) as problem:
        raise _damaged(path, problem) from None
    return Contents(path, ("",), lambda _: _array(path, found))


def _damaged(path: Path, problem: Exception) -> InputError:
    return InputError(f"{path} is damaged, or no gzipped file: {problem}.")


def _array(path: Path, found: Header) -> Rows:
    if path.suffix.lower() != ".gz":
        there = path.stat().st_size - found.start
        if there != found.bytes:
            raise InputError(_length(path, found, there))
        if not there:
            return np.empty(found.shape, found.dtype)
        return np.memmap(path, found.dtype, "r", found.start, found.shape)
    if found.bytes > decoded.IN_MEMORY:

        def decode() -> decoded.Blocks:
            pieces = (np.frombuffer(piece, found.dtype) for piece in _pieces(path, found))
            return found.shape, found.dtype, pieces, []

        return decoded.copy(decoded.key([path]), decode)[0]
    return np.frombuffer(b"".join(_pieces(path, found)), found.dtype).reshape(found.shape)


def _pieces(path: Path, found: Header) -> Iterator[bytes]:
    """The bytes of the numbers of a gzipped file, some at a time.

    Raises:
        InputError: there are more or fewer than the header says, or the file is damaged.
    """
    there = 0
    try:
        with _opened(path) as file:
            file.read(found.start)
            while piece := file.read(READ):
                there += len(piece)
                if there > found.bytes:
                    raise InputError(_length(path, found, there))
                yield piece
    except (OSError, EOFError, zlib.error) as problem:
        raise _damaged(path, problem) from None
    if there < found.bytes:
        raise InputError(_length(path, found, there))


def _length(path: Path, found: Header, there: int) -> str:
    sizes = " x ".join(map(str, found.shape))
    what = "is cut off" if there < found.bytes else "is too long"
    least = "" if there < found.bytes else "at least "
    return (
        f"{path} {what}: its header says {sizes} numbers of {found.dtype.itemsize} bytes, "
        f"{found.bytes} bytes, and {least}{there} follow it."
    )


def takes_folder(path: Path, head: bytes) -> bool:
    """Whether a folder holds files of MNIST's names."""
    return any(
        re.search(r"-idx\d-ubyte(\.gz)?$|\.idx\d-ubyte(\.gz)?$", f.name) for f in path.iterdir()
    )


def open_folder(path: Path) -> Contents:
    """The four files of MNIST's form in a folder, each gzipped or not.

    Raises:
        InputError: one of them is missing.
    """
    files: dict[str, Path] = {}
    missing = []
    for array, name in MNIST.items():
        forms = (name, f"{name}.gz", name.replace("-idx", ".idx"))
        existing = [path / form for form in forms if (path / form).is_file()]
        if existing:
            files[array] = existing[0]
        else:
            missing.append(f"{name}.gz")
    if missing:
        raise InputError(
            f"{path}: expected the four files of MNIST's form, gzipped or not; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )

    def load(name: str) -> Rows:
        return open_file(files[name])[""]

    titles = {name: str(file) for name, file in files.items()}
    return Contents(path, tuple(files), load, titles=titles)


IDX = Reader("an IDX file, gzipped or not", SUFFIXES, takes, open_file)
IDX_FOLDER = Reader(
    "a folder of the four files of MNIST's form", (), takes_folder, open_folder, folder=True
)
