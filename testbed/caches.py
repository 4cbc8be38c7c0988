"""The user's cache: files that can be made again, and may be deleted at any time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
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
