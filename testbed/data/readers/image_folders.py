"""Folders of images, with a folder for each class; in `train` and `test` where there is a split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from testbed.data.readers.base import Contents, Reader, Rows
from testbed.data.readers.pictures import of_files
from testbed.data.splits import SPLITS
from testbed.errors import InputError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".avif", ".jp2"),
)
SHOWN = 3
"""Files that a sentence names."""


def takes(path: Path, head: bytes) -> bool:
    """Whether there is an image in the folder, or in one within."""
    return any(file.suffix.lower() in SUFFIXES for file in _files(path))


def _files(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files of a folder and of those within, sorted, without hidden ones; it follows links."""
    if path.resolve() in seen:
        return
    within = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                if entry.is_dir():
                    within.append(Path(entry.path))
                else:
                    yield Path(entry.path)
    for folder in within:
        yield from _files(folder, seen | {path.resolve()})


def open_folder(path: Path) -> Contents:
    """The images `x` and labels `y`, or those of each split.

    Raises:
        InputError: images both in folders of classes and beside them, or splits beside classes.
    """
    files = list(_files(path))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in SUFFIXES]
    splits = _splits(path, images)
    arrays: dict[str, Rows] = {}
    titles: dict[str, str] = {}
    for split, (root, of_split) in splits.items():
        word = f"_{split}" if split else ""
        arrays[f"x{word}"] = of_files(of_split, "", str(root))
        titles |= {f"x{word}": str(root), f"y{word}": f"{root}: its folders"}
        if (classes := _classes(root, of_split)) is not None:
            arrays[f"y{word}"] = classes
    named = ", ".join(str(file.relative_to(path)) for file in others[:SHOWN])
    more = ", ..." if len(others) > SHOWN else ""
    notes = (f"{path}: files that are no images are left out: {named}{more}.",) if others else ()
    return Contents(
        path, tuple(arrays), arrays.__getitem__, notes=notes, titles=titles, named=False
    )


def _splits(path: Path, images: list[Path]) -> dict[str, tuple[Path, list[Path]]]:
    """The images by split, with the folder of each; by "" where there is no split.

    Folders called train and test are a split where there are both, and nothing else.
    """
    tops: dict[str, list[Path]] = {}
    for file in images:
        inner = file.relative_to(path).parts
        tops.setdefault(inner[0] if len(inner) > 1 else "", []).append(file)
    words = {top: SPLITS.get(top.lower(), "") for top in tops}
    if "train" not in words.values() or not {"test", "validation"} & set(words.values()):
        return {"": (path, images)}
    if stray := next((tops[top][0] for top, word in words.items() if not word), None):
        raise InputError(f"{stray} belongs to no split: {path} has folders of splits beside it.")
    if len(set(words.values())) < len(words):
        raise InputError(f"{path} holds folders {', '.join(words)}: two of them are one split.")
    return {words[top]: (path / top, files) for top, files in tops.items()}


def _classes(root: Path, images: list[Path]) -> Rows | None:
    """The name of the folder of each image, (N,) text; None where none is in a folder."""
    inner = [file.relative_to(root).parts for file in images]
    stray = [file for file, parts in zip(images, inner, strict=True) if len(parts) == 1]
    if stray and len(stray) < len(images):
        raise InputError(
            f"{stray[0]} lies beside folders of classes: it has no class. Move it into one, or "
            "leave the folders out."
        )
    return None if stray else np.asarray([parts[0] for parts in inner])


IMAGE_FOLDERS = Reader(
    "a folder of images, with a folder for each class where there are classes",
    (),
    takes,
    open_folder,
    folder=True,
)
