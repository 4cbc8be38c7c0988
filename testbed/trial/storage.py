"""The store of a folder's files: all that is read from or written to a trial's folder goes through.

`Store` is the interface and `LocalDisk` its only implementation so far. What the files are called
and what they hold is for `testbed.trial.folders`.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from testbed.errors import InputError

LOCK, HALF_WRITTEN = "lock", ".tmp"


class Busy(InputError):
    """Another process owns the folder."""


class Store(Protocol):
    """Named files of one folder, each of which is there whole or not at all.

    All methods that change something may raise OSError with the name of the file.
    """

    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file.

        Raises:
            OSError: the file is there and cannot be read.
        """
        ...

    def put(self, name: str, content: bytes, durable: bool = True) -> None:
        """Writes or replaces a file: a crash leaves the old content or the new one.

        Where it need not be `durable`, a power cut may leave neither, and nothing waits for a disk.
        """
        ...

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a file. A crash may lose a part of what was added, and no more."""
        ...

    def rename(self, name: str, to: str) -> None:
        """Gives a file another name; a file that had that name is replaced."""
        ...

    def remove(self, *names: str) -> None:
        """Deletes files, those that there are; the folder goes with its last file."""
        ...

    def sweep(self, *names: str) -> None:
        """Deletes what a crash has left half written: of these files, or of all without names."""
        ...

    def names(self) -> list[str]:
        """The sorted names of the files and of the folders within; nothing half written."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def own(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Keeps other processes from owning the folder meanwhile.

        Args:
            patience: seconds to wait for another owner to end.

        Raises:
            Busy: another process still owns the folder then.
        """
        ...

    def folder(self, name: str) -> Store:
        """The store of a folder within."""
        ...

    def path(self, name: str = "") -> Path:
        """Where a file lies, or the folder: for messages, and for a tool that uploads the file."""
        ...


@dataclass(frozen=True)
class LocalDisk:
    """A folder of the local disk; it is made when the first file is written."""

    at: Path

    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

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
        if not durable:
            return
        folder = os.open(self.at, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

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

    def rename(self, name: str, to: str) -> None:
        """Gives a file another name; a file that had that name is replaced."""
        os.replace(self.path(name), self.path(to))

    def remove(self, *names: str) -> None:
        """Deletes files, and what a crash has left half written of them."""
        for name in names:
            self.path(name).unlink(missing_ok=True)
            self.path(name + HALF_WRITTEN).unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty, or not there
            self.at.rmdir()

    def sweep(self, *names: str) -> None:
        """Deletes what a crash has left half written: of these files, or of all without names."""
        files = [self.path(name + HALF_WRITTEN) for name in names]
        for file in files or self.at.glob(f"*{HALF_WRITTEN}"):
            file.unlink(missing_ok=True)

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

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.path(name).is_file()

    @contextmanager
    def own(self, patience: float = 0.0) -> Iterator[None]:
        """Holds a lock on the file `lock`, which ends with the process.

        Raises:
            Busy: another process still has the lock after `patience` seconds.
        """
        self.at.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + patience
        with self.path(LOCK).open("w") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise Busy(
                            f"{self.at} is being worked on by another process: wait for it, or "
                            "end it."
                        ) from None
                time.sleep(0.05)
            yield

    def folder(self, name: str) -> LocalDisk:
        """The store of a folder within."""
        return LocalDisk(self.at / name)

    def path(self, name: str = "") -> Path:
        """Where a file lies, or the folder."""
        return self.at / name
