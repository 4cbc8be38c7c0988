"""Decoded copies: what a compressed file holds, written once as .npy into the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed import cache
from testbed.errors import InputError, one_line

IN_MEMORY = 2**30
"""Bytes up to which an array, or the float32 samples of a data set, are kept in memory."""

Blocks = tuple[tuple[int, ...], np.dtype[Any], Iterator[NDArray[Any]], list[str]]
"""The shape (N, ...) and type of an array, its numbers in blocks, and sentences about it."""


def key(files: Iterable[Path], *settings: object) -> str:
    """The digest of files, by path, size and time of their last change, and of settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        found = file.stat()
        digest.update(f"{file.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def copy(name: str, decode: Callable[[], Blocks]) -> tuple[NDArray[Any], list[str]]:
    """The decoded copy of that name, mapped into memory, and the sentences about it.

    It is made where it is missing or damaged: under a lock, so that of several processes one
    decodes, and by a rename, so that nobody sees half of it.

    Args:
        name: the key of all that the copy depends on.
        decode: returns the array in blocks.

    Raises:
        InputError: the copy cannot be written.
    """
    file = cache.folder() / "decoded" / f"{name}.npy"
    if (found := _read(file)) is not None:
        return found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with cache.locked(file):
            if _read(file) is None:
                _write(file, *decode())
    except OSError as problem:
        raise InputError(
            f"{file}, a decoded copy, cannot be written ({one_line(problem)}); the folder of the "
            "cache follows XDG_CACHE_HOME."
        ) from None
    found = _read(file)
    if found is None:
        raise InputError(f"{file}, a decoded copy, cannot be read: delete it.")
    return found


def _read(file: Path) -> tuple[NDArray[Any], list[str]] | None:
    try:
        notes = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        return np.load(file, mmap_mode="r", allow_pickle=False), notes
    except (OSError, ValueError):
        return None


def _write(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterator[NDArray[Any]],
    notes: list[str],
) -> None:
    half = file.with_suffix(".half.npy")
    try:
        with half.open("wb") as whole:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(whole, {**header, "shape": shape})
            for block in blocks:
                whole.write(np.ascontiguousarray(block).view(np.uint8).data)
        file.with_suffix(".json").write_text(json.dumps(notes), encoding="utf-8")
        os.replace(half, file)
    finally:
        half.unlink(missing_ok=True)
