"""What is made once in a run of the tests, however many workers there are."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import TypeAdapter

Made = TypeVar("Made")


def once(
    factory: pytest.TempPathFactory, name: str, kind: type[Made], make: Callable[[Path], Made]
) -> Made:
    """What `make` returns of a folder that it fills, to read or to copy.

    The first worker that needs it makes it; others wait for that, and take what it left.

    Args:
        name: Of the folder, the same in every worker.
        kind: What `make` returns: a path, or a dataclass of what JSON can hold.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, record, returned = root / name, root / f"{name}.json", TypeAdapter(kind)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            record.write_bytes(returned.dump_json(make(folder)))
        return returned.validate_json(record.read_bytes())
