"""The folder `testbed` in the user's cache: what takes long to make and is the same each time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def folder() -> Path:
    """The folder `testbed` in the user's cache, where the platform has it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "testbed"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[int]:
    """Holds the lock beside a file; gives its descriptor."""
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def kept(name: str, make: Callable[[], bytes], intact: Callable[[bytes], bool]) -> bytes:
    """The content of a file of the cache; it is made where it is missing or damaged.

    It is made under a lock, so that of several processes one makes it and the others wait, written
    to a temporary file and renamed. Where the cache cannot be written, it is made each time.

    Args:
        name: of the file; it says all that the content depends on.
        make: makes the content.
        intact: whether a content that was read is whole.
    """
    file = folder() / name
    if (found := _read(file, intact)) is not None:
        return found
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(file))
        except OSError:
            return make()
        if (found := _read(file, intact)) is not None:
            return found
        content, new = make(), file.with_name(f"{file.name}.new")
        with contextlib.suppress(OSError):  # a full disk: the next process makes it again
            new.write_bytes(content)
            os.replace(new, file)
        return content


def _read(file: Path, intact: Callable[[bytes], bool]) -> bytes | None:
    """The content of a file; None where there is none, or one that is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content if intact(content) else None
