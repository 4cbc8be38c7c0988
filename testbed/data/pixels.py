"""The range and the layout of numbers from a file: recognised, or as a study states them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed.data.readers import Rows
from testbed.data.roles import Part
from testbed.errors import InputError
from testbed.tensors import BLOCK

Layout = Literal["auto", "channels_first", "channels_last", "grey"]
CHANNELS = (1, 3, 4)
"""The numbers of channels by which images are recognised."""
SIDE = 8
"""The side from which pixels (N, h, w) are taken for grey images."""
HALF, BITS8 = 127, 255
"""8-bit pixels are recognised where they reach above the middle of their range."""
BITS16 = 65535
MANY = 16
"""Numbers of a sample from which whole numbers up to 255 may be pixels."""
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Extent:
    """What the numbers of a data set are.

    Args:
        low, high: the least and the largest.
        whole: whether all are whole numbers.
    """

    low: float
    high: float
    whole: bool


@dataclass(frozen=True)
class Affine:
    """Samples are scale (x + shift).

    Args:
        scale, shift: in the units of the file.
        note: a sentence on a range that was recognised or stated; empty where neither was.
        quantum: the spacing of whole numbers whose range is known, in units of the file, else 0.
    """

    scale: float
    shift: float
    note: str = ""
    quantum: float = 0.0


def blocks(x: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """The first row of each block of rows, and the block."""
    rows = max(1, BLOCK // max(1, int(np.prod(x.shape[1:]))))
    for start in range(0, x.shape[0], rows):
        yield start, np.asarray(x[start : start + rows])


def extent(parts: Mapping[str, Part]) -> Extent:
    """The extent of all parts together.

    Raises:
        InputError: an empty part, one that holds no real numbers, or a number that is not finite,
            with its place.
    """
    low, high, whole = np.inf, -np.inf, True
    for part in parts.values():
        x = part.samples
        if x.dtype.kind not in "iuf":
            raise InputError(f"{part.title} holds {x.dtype}, expected real numbers.")
        if 0 in x.shape or not x.shape:
            raise InputError(f"{part.title} has shape {x.shape}, expected samples (N, ...).")
        for start, block in blocks(x):
            if block.dtype.kind == "f" and not np.isfinite(block).all():
                index = np.argwhere(~np.isfinite(block))[0]
                count = sum(int((~np.isfinite(b)).sum()) for _, b in blocks(x))
                place = part.place([start + int(index[0]), *map(int, index[1:])])
                raise InputError(
                    f"{place} is {block[tuple(index)]}, not finite, one of {count} such numbers: "
                    "remove their samples, or fill in what is missing."
                )
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            whole = whole and (block.dtype.kind != "f" or bool((block == np.floor(block)).all()))
    return Extent(low, high, whole)


def affine(
    parts: Mapping[str, Part], found: Extent, stated: Any, scale: float, shift: float
) -> Affine:
    """How the samples are scaled: as stated, or 8-bit pixels to [-1, 1], or not at all.

    Args:
        parts: the samples.
        found: their extent.
        stated: [low, high], which is taken to [-1, 1]; "as_stored"; or None, to recognise it.
        scale, shift: as a study has them; other values than 1 and 0 are a statement too.

    Raises:
        InputError: a range that the numbers leave, one that is stated twice, or one that is in
            doubt.
    """
    part = next(iter(parts.values()))
    by_hand = (scale, shift) != (1.0, 0.0)
    if scale == 0 or not np.isfinite([scale, shift]).all():
        raise InputError(f"scale = {scale}, shift = {shift}: expected numbers, and a scale not 0.")
    if stated is not None:
        if by_hand:
            raise InputError(
                f"range = {stated!r} and scale = {scale:g}, shift = {shift:g} say the same thing "
                "twice: leave one out."
            )
        if stated == "as_stored":
            return Affine(1.0, 0.0)
        low, high = _range(stated)
        _check_inside(parts, low, high)
        whole = found.whole and low.is_integer() and high.is_integer()
        return replace(_to_unit(part.title, low, high), quantum=float(whole))
    if by_hand:
        return Affine(scale, shift)
    shape, kind = part.samples.shape[1:], part.samples.dtype
    says = f"{part.title}: values from {found.low:.6g} to {found.high:.6g}"
    if kind == np.uint8 and found.high > HALF:
        return replace(_to_unit(f"{part.title}: 8 bits", 0, BITS8), quantum=1.0)
    if kind.kind == "u" and kind.itemsize <= 2:
        top = 2 ** (8 * kind.itemsize) - 1
        raise InputError(
            f"{says}, stored as {kind}, may be pixels of that range, of 0 to {top}, or something "
            f"else. Write range = [0, {found.high:g}] or range = [0, {top}], which is taken to "
            '[-1, 1], or range = "as_stored".'
        )
    image, many = _is_image(shape), int(np.prod(shape)) >= MANY
    if found.low >= 0 and HALF < found.high <= BITS8 + 1 and (image or (found.whole and many)):
        raise InputError(
            f"{says}, stored as {kind}, may be 8-bit pixels. Write range = [0, 255], which is "
            'taken to [-1, 1], or range = "as_stored".'
        )
    if image and found.low == 0 and found.high == 1:
        return Affine(1.0, 0.0, f"{says} are left so; range = [0, 1] takes them to [-1, 1].")
    return Affine(1.0, 0.0)


def _range(stated: Any) -> tuple[float, float]:
    if isinstance(stated, Sequence) and not isinstance(stated, str) and len(stated) == 2:
        numbers = [v for v in stated if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == 2 and -np.inf < numbers[0] < numbers[1] < np.inf:
            return float(numbers[0]), float(numbers[1])
    raise InputError(
        f'range = {stated!r}: expected [low, high], which is taken to [-1, 1], or "as_stored".'
    )


def _to_unit(title: str, low: float, high: float) -> Affine:
    """[low, high] to [-1, 1]."""
    note = f"{title}: values are taken from [{low:g}, {high:g}] to [-1, 1]."
    return Affine(2 / (high - low), -(low + high) / 2, note)


def _check_inside(parts: Mapping[str, Part], low: float, high: float) -> None:
    for part in parts.values():
        for start, block in blocks(part.samples):
            outside = (block < low) | (block > high)
            if outside.any():
                index = np.argwhere(outside)[0]
                place = part.place([start + int(index[0]), *map(int, index[1:])])
                raise InputError(
                    f"{place} is {block[tuple(index)]:g}, outside of range = [{low:g}, {high:g}]."
                )


def _is_image(shape: Sequence[int]) -> bool:
    """Whether a sample is an image, of one of the numbers of channels, or of none."""
    if len(shape) == 3:
        return bool({shape[0], shape[-1]} & set(CHANNELS))
    return len(shape) == 2 and min(shape) >= SIDE


def layout(
    part: Part, stated: Layout, pixels: bool
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], str]:
    """What puts samples channels first, and a sentence on it, empty where nothing is done.

    Args:
        part: the samples, (N, ...).
        stated: "auto" recognises it: images of 1, 3 or 4 channels, and grey ones of known range
            without an axis of channels.
        pixels: whether the numbers are known to be pixels: whole ones of a known range.

    Raises:
        InputError: a layout that the samples cannot have, or one that is in doubt.
    """
    shape = tuple(part.samples.shape[1:])
    name = _recognised(part, shape, pixels) if stated == "auto" else stated
    least = {"channels_first": 2, "channels_last": 2, "grey": 2}.get(name, 0)
    if len(shape) < least or (name == "grey" and len(shape) != 2):
        raise InputError(f"layout = {name!r}, but the samples of {part.title} have shape {shape}.")
    if name == "channels_last":
        first = (shape[-1], *shape[:-1])
        note = f"{part.title}: samples {shape} are channels last, and are stored as {first}."
        return lambda x: np.moveaxis(x, -1, 1), note
    if name == "grey":
        note = f"{part.title}: samples {shape} are grey images, and are stored as {(1, *shape)}."
        return lambda x: x[:, None], note
    return lambda x: x, ""


def _recognised(part: Part, shape: tuple[int, ...], pixels: bool) -> str:
    """The layout that samples of this shape have, "" where nothing says that it is another."""
    if len(shape) == 2 and pixels and min(shape) >= SIDE:
        return "grey"
    if len(shape) != 3 or set(shape) == {1}:
        return ""
    channels = shape[0] in CHANNELS, shape[2] in CHANNELS
    square = shape[1] == shape[2], shape[0] == shape[1]
    first, last = channels if channels[0] != channels[1] else square
    if any(channels) and first != last:
        return "channels_last" if last else "channels_first"
    if not any(channels) and (first or not last):
        return ""
    raise InputError(
        f"{part.title}: samples {shape} may be channels first or channels last: write "
        'layout = "channels_first" or layout = "channels_last".'
    )


@dataclass(frozen=True)
class Conversion:
    """Samples of rows of numbers: scale (x + shift), float32, laid out by `arrange`.

    It is computed in float64 where `wide`, for numbers that float32 does not have.
    """

    by: Affine
    arrange: Callable[[NDArray[Any]], NDArray[Any]]
    wide: bool = False

    def __call__(self, rows: NDArray[Any]) -> Tensor:
        """(n, *shape) float32 of rows (n, ...)."""
        kind = np.float64 if self.wide else np.float32
        x = torch.from_numpy(np.ascontiguousarray(rows).astype(kind))
        x = (self.by.scale * (x + self.by.shift)).float()
        found = torch.from_numpy(np.ascontiguousarray(self.arrange(x.numpy())))
        return found if found.ndim > 1 else found[:, None]

    def shape(self, x: Rows) -> tuple[int, ...]:
        """The shape of a sample of rows x."""
        return tuple(self(np.zeros((1, *x.shape[1:]), x.dtype)).shape[1:])


def converted(part: Part, conversion: Conversion) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block of a part, and its samples, (n, *shape) float32.

    Raises:
        InputError: a number that float32 does not have, with its place.
    """
    for start, block in blocks(part.samples):
        x = conversion(block)
        if not bool(torch.isfinite(x).all()):
            raise InputError(_beyond(part, start, block, conversion))
        yield start, x


def _beyond(part: Part, start: int, block: NDArray[Any], conversion: Conversion) -> str:
    """Which number of a block float32 does not have."""
    plain = replace(conversion, arrange=lambda x: x)
    index = (~torch.isfinite(plain(block).reshape(block.shape))).nonzero()[0].tolist()
    value = float(block[tuple(index)])
    hint = f": write scale, such as scale = {1 / abs(value):.1g}" if abs(value) > 1 else ""
    return (
        f"{part.place([start + index[0], *index[1:]])} is {value:.3g}, and scale (x + shift) is "
        f"beyond float32, whose largest number is {LARGEST:.2g}{hint}."
    )
