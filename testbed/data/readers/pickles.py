"""Files of pickled objects, which are refused: to read one is to run what it says."""

from __future__ import annotations

import zipfile
from pathlib import Path

from testbed.data.readers.base import Contents, Reader
from testbed.errors import InputError

PROTOCOLS = tuple(b"\x80" + bytes([version]) for version in range(2, 6))


def takes(path: Path, head: bytes) -> bool:
    """Whether a file is a pickle, or an archive of one as torch.save writes it."""
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return head.startswith(PROTOCOLS) or path.suffix.lower() in PICKLES.suffixes


def refuse(path: Path) -> Contents:
    """Says how the file is converted.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{path} is a pickle, as torch.save writes it: to read one is to run what it says, and it "
        "is not read. If you trust it, convert it once in Python: "
        f"x = torch.load({path.name!r}); numpy.savez({path.stem + '.npz'!r}, x=x.numpy()), with "
        "y=labels.numpy() besides where there are labels."
    )


PICKLES = Reader(
    "a file without pickled objects",
    (".pt", ".pth", ".ckpt", ".pkl", ".pickle"),
    takes,
    refuse,
)
