"""A folder of a disk whose owner holds a file lock."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from testbed.trial.storage.base import Busy, accessing

LOCK, HALF_WRITTEN = "lock", ".tmp"


@dataclass(frozen=True)
class LocalDisk:
    """A folder of the local disk; it is made when the first file is written."""

    at: Path

    @accessing
    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    @accessing
    def put(self, name: str, content: bytes, durable: bool = True) -> None:
        """Writes a temporary file to the disk, renames it, and writes the folder to the disk.

        Of one that need not be `durable`, only the system's cache is sure to have it.

        Raises:
            OSError: with the name of the file, of which no part is left then.
        """
        file, temporary = self.path(name), self.path(name + HALF_WRITTEN)
        self.at.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                if durable:
                    os.fsync(handle.fileno())
            os.replace(temporary, file)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise OSError(problem.errno, problem.strerror, str(file)) from problem
        if durable:
            self.flush()

    @accessing
    def flush(self) -> None:
        """Writes the names of the files to the disk."""
        folder = os.open(self.at, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @accessing
    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a file.

        Raises:
            OSError: with the name of the file.
        """
        file = self.path(name)
        self.at.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("ab") as handle:
                handle.write(content)
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, str(file)) from problem

    @accessing
    def rename(self, name: str, to: str) -> None:
        """Gives a file another name; a file that had that name is replaced."""
        os.replace(self.path(name), self.path(to))

    @accessing
    def remove(self, *names: str) -> None:
        """Deletes files, and what a crash has left half written of them."""
        for name in names:
            self.path(name).unlink(missing_ok=True)
            self.path(name + HALF_WRITTEN).unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or not there
            self.at.rmdir()

    @accessing
    def sweep(self, *names: str) -> None:
        """Deletes what a crash has left half written: of these files, or of all without names."""
        files = [self.path(name + HALF_WRITTEN) for name in names]
        for file in files or self.at.glob(f"*{HALF_WRITTEN}"):
            file.unlink(missing_ok=True)

    @accessing
    def names(self) -> list[str]:
        """The sorted names of the files and of the folders within."""
        try:
            with os.scandir(self.at) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.is_dir()
                    or not (entry.name == LOCK or entry.name.endswith(HALF_WRITTEN))
                )
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []

    @accessing
    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            return stat.S_ISREG(self.path(name).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def own(self, patience: float = 0.0) -> Iterator[None]:
        """Holds a lock on the file `lock`, which ends with the process.

        Raises:
            Busy: another process still has the lock after `patience` seconds.
        """
        end = time.monotonic() + patience
        while not (handle := self._locked()):
            if time.monotonic() >= end:
                raise Busy(
                    f"{self.at} is being worked on by another process: wait for it, or end it."
                )
            time.sleep(0.05)
        with handle:
            try:
                yield
            finally:
                self.remove(LOCK)

    @accessing
    def _locked(self) -> IO[str] | None:
        """The file `lock` with the lock on it; None where another process has that."""
        self.at.mkdir(parents=True, exist_ok=True)
        try:
            handle = self.path(LOCK).open("w")
        except FileNotFoundError:  # another process has deleted the folder meanwhile
            return None
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle.fileno()), self.path(LOCK).stat()):
                return handle
        handle.close()  # another process has it, or has deleted the file with its folder
        return None

    def confirm(self) -> None:
        """A file lock ends with its process alone: there is nothing to look up."""

    def folder(self, name: str) -> LocalDisk:
        """The store of a folder within."""
        return LocalDisk(self.at / name)

    def apart(self, name: str) -> LocalDisk:
        """The store of a folder within: every folder has a lock of its own."""
        return self.folder(name)

    def path(self, name: str = "") -> Path:
        """Where a file lies, or the folder."""
        return self.at / name
