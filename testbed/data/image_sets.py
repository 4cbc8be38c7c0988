"""Data sets of images: Fashion-MNIST, and a user's own folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from testbed.components.dataset import Data, Dataset
from testbed.data import roles
from testbed.data.assembly import Dequantised, Statements, assembled, labels_of
from testbed.data.readers import idx, open_path
from testbed.data.readers.pictures import Colour, Fit, Pictures
from testbed.errors import InputError
from testbed.hookspecs import hookimpl

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""
LABELS = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
MOST_PIXELS = 4096
"""Of a side that images are brought to."""


def fashion_mnist(
    path: str = "", n: int = 60_000, test: int = 10_000, dequantised: bool = False
) -> Data:
    """60,000 and 10,000 articles of clothing, 28x28 pixels mapped to [-1, 1]; (N, 1, 28, 28).

    The labels are 0..9, the spacing of the values is 2/255, and the split is its own.

    Args:
        path: the folder of the four IDX files, gzipped or not; "" is that of Debian's package
            dataset-fashion-mnist.
        n, test: the first so many images of each split are taken; all where it has fewer.
        dequantised: whether uniform noise of the width of the spacing is added.

    Raises:
        InputError: the files are not there, or damaged; or they are other data.

    Source: Xiao, Rasul and Vollgraf 2017.
    """
    folder = Path(path) if path else FASHION
    if not folder.is_dir():
        raise InputError(
            f"dataset 'fashion_mnist': path = {path!r}: {folder} is not a folder. Install Debian's "
            "package dataset-fashion-mnist, or write path = the folder of the files "
            f"{', '.join(f'{name}.gz' for name in idx.MNIST.values())}."
        )
    try:
        found = roles.of(idx.open_folder(folder), roles.Names("x", "y"))
        labels_of(found)  # as many as there are images, before some are taken
        parts = {"train": found.parts["train"].first(n), "test": found.parts["test"].first(test)}
        names = ", ".join(f"{i} = {name}" for i, name in enumerate(LABELS))
        found = roles.Roles(parts, (*found.notes, f"{folder}: the classes are {names}."))
        data = assembled(found, Statements(range=[0, 255], layout="grey", dequantised=dequantised))
        if data.shape != (1, 28, 28) or data.labels > len(LABELS):
            raise InputError(
                f"{folder} holds {data.labels} classes of samples {data.shape[1:]}, expected "
                f"{len(LABELS)} of (28, 28): read other data by dataset = "
                f'{{ name = "array", path = "{folder}" }}.'
            )
    except InputError as problem:
        raise InputError(f"dataset 'fashion_mnist': {problem}") from None
    return data


def images(
    path: str = "",
    size: Any = None,
    crop: Literal["centre", "none"] = "centre",
    colour: Colour = "auto",
    data: str = "",
    labels: str = "",
    test: float = 0.2,
    split_seed: int = 0,
    range: Any = None,
    dequantised: Dequantised = False,
) -> Data:
    """The images of a folder, of a folder of `datasets`, or of Parquet; (N, channels, h, w).

    They are decoded once, into the user's cache. Pixels are taken to [-1, 1]. What is done to
    palettes, transparency, 16 bits and so on is in `testbed.data.readers.pictures`, and said in the
    notes of the data.

    Args:
        path: the folder, with a folder for each class where there are classes; `train` and `test`
            within are the split.
        size: the side, or [height, width], that each image is brought to; by default they must be
            of one size.
        crop: whether the largest centred part of that aspect is cut out first, or the image is
            stretched.
        colour: "grey", "rgb" or "rgba"; "auto" is grey where all of them are grey.
        data, labels: the names of the columns, where there are columns; labels = "none" leaves
            the classes out.
        test: the fraction of the test split, where there is none.
        split_seed: the seed of the split.
        range: [low, high], which is taken to [-1, 1], or "as_stored"; by default that of the bits.
        dequantised: whether uniform noise of the width of the spacing is added.

    Raises:
        InputError: no such folder, an image that cannot be decoded, images of different sizes,
            labels that are no classes, or a `test` that is no share.
    """
    if not path:
        raise InputError("dataset 'images': path = '' is not a folder; name one.")
    try:
        fit = Fit(_size(size), crop == "centre", colour)
        found = roles.of(open_path(Path(path)), roles.Names(data, labels))
        for part in found.parts.values():
            if not isinstance(part.samples, Pictures):
                raise InputError(f'{part.title} holds no encoded images: use the dataset "array".')
        stated = Statements(
            range=range, dequantised=dequantised, test=test, split_seed=split_seed, fit=fit
        )
        return assembled(found, stated)
    except InputError as problem:
        raise InputError(f"dataset 'images': {problem}") from None


def _size(stated: Any) -> tuple[int, int] | None:
    """(height, width) of a side, or of a list of both."""
    if stated is None:
        return None
    sides = stated if isinstance(stated, list | tuple) else [stated, stated]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(1 <= side <= MOST_PIXELS for side in sides):
        raise InputError(
            f"size = {stated!r}: expected a number of pixels from 1 to {MOST_PIXELS}, or "
            "[height, width]."
        )
    return sides[0], sides[1]


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Images."""
    yield Dataset("fashion_mnist", fashion_mnist, reference="arXiv:1708.07747")
    yield Dataset("images", images)
