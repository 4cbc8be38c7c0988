"""What a store is: named files of one folder, and who may write them."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from testbed.errors import InputError

AWAY = frozenset(
    [
        *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    ]
)
"""What an access to a network disk ends with whose server has gone, for a while or for good."""

P = ParamSpec("P")
T = TypeVar("T")


class Busy(InputError):
    """Another process owns the folder."""


class LeaseLost(Busy):
    """This process owned the folder, stood still for longer than its lease, and was replaced."""


class StoreAway(OSError):
    """A server or a network disk that keeps a study does not answer: nothing of it is lost."""


@contextmanager
def answering(at: Path) -> Iterator[None]:
    """Accesses to a folder of a disk. What data or a plugin raise outside of it is their own.

    Raises:
        StoreAway: the disk is away.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno not in AWAY or isinstance(problem, StoreAway):
            raise
        file = problem.filename or str(at)
        raise StoreAway(problem.errno, problem.strerror, file) from problem


def accessing(
    access: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """A method of a store of a disk that is an access to its folder, `at`."""

    @functools.wraps(access)
    def told(store: Any, /, *words: P.args, **named: P.kwargs) -> T:
        with answering(store.at):
            return access(store, *words, **named)

    return told


class Store(Protocol):
    """Named files of one folder, each of which is there whole or not at all.

    All methods that change something may raise OSError with the name of the file, and Busy where
    another process owns the folder and the store sees to it that only an owner writes.
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
            LeaseLost: at the end, where another process owns it by now.
        """
        ...

    def confirm(self) -> None:
        """Makes sure that a folder which this process has begun to own is still its own.

        Raises:
            LeaseLost: another process owns it by now.
        """
        ...

    def folder(self, name: str) -> Store:
        """The store of a folder within, which has the same owner."""
        ...

    def apart(self, name: str) -> Store:
        """The store of a folder within that has an owner of its own."""
        ...

    def path(self, name: str = "") -> Path:
        """Where a file lies, or the folder: for messages, and for a tool that uploads the file."""
        ...
