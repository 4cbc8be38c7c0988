"""Small pictures for MLflow's pages: images as a sheet, vectors as points of a plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT, SIDE, DOT = 64, 256, 1
REAL, DRAWN = (205, 205, 205), (31, 119, 180)
Pixels = NDArray[np.uint8]


def picture(samples: NDArray[Any], real: NDArray[Any]) -> Pixels:
    """Samples as pixels, framed by the real data.

    Args:
        samples: (n, *shape).
        real: (m, *shape), m at least 1; its range is that of the grey values, its first two
            principal axes are those of the plane.

    Returns:
        (height, width, 3). Of images the first 64, with a pixel between them; values outside the
        range of the real data are cut to it, and what is not finite is as the lowest. Of vectors
        all, on the real data in grey; those outside the frame are left out.
    """
    shape = samples.shape[1:]
    if len(shape) == 2 and min(shape) > 1:
        return _sheet(samples[..., None], real)
    if len(shape) == 3 and shape[0] in (1, 3):
        return _sheet(np.moveaxis(samples, 1, -1), real)
    return _plane(samples, real)


def by_level(pairs: NDArray[Any], sigma: NDArray[Any], real: NDArray[Any]) -> Pixels:
    """Noisy images and what became of them, two rows of a sheet for each noise level.

    Args:
        pairs: (2, L, n, *shape), x and D(x, sigma) of images.
        sigma: (L,).
        real: (m, *shape); its range is that of the grey values, and x is divided by
            sqrt(1 + sigma^2 / E real^2).

    Returns:
        (height, width, 3).
    """
    each = sigma.reshape(-1, *[1] * (pairs.ndim - 2))
    x = pairs[0] / np.sqrt(1 + each**2 / np.square(real).mean())
    rows = np.stack([x, pairs[1]], 1)
    n = rows.shape[2]
    images = rows.reshape(-1, *rows.shape[3:])
    found = images[..., None] if images.ndim == 3 else np.moveaxis(images, 1, -1)
    return _sheet(found, real, columns=n)


def _sheet(images: NDArray[Any], real: NDArray[Any], columns: int = 0) -> Pixels:
    low, high = float(real.min()), float(real.max())
    first = np.nan_to_num(images[:COUNT], nan=low, posinf=high, neginf=low)
    grey = 255 * (np.clip(first, low, high) - low) / ((high - low) or 1.0)
    n, h, w, colours = grey.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h + 1, w + 1, 3), 255, np.uint8)
    cells[:n, :h, :w] = np.broadcast_to(np.rint(grey), (n, h, w, 3)) if colours == 1 else grey
    sheet = cells.reshape(rows, columns, h + 1, w + 1, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (h + 1), columns * (w + 1), 3)[:-1, :-1]


def _plane(samples: NDArray[Any], real: NDArray[Any]) -> Pixels:
    flat = real.reshape(len(real), -1).astype(float)
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:2]
    # A principal axis has no sign of its own: its largest entry is made positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    half = 1.35 * np.abs((flat - mean) @ axes.T).max(0)
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for points, colour in ((flat, REAL), (samples.reshape(len(samples), -1), DRAWN)):
        at = ((points - mean) @ axes.T) / np.where(half > 0, half, 1.0)
        at = np.hstack([at, np.zeros((len(at), 2 - at.shape[1]))])
        at = at[(np.abs(at) <= 1).all(1)]  # not finite is outside, too
        column, row = np.rint((SIDE - 1) * (at * [1, -1] + 1) / 2).astype(int).T
        for down in range(-DOT, DOT + 1):
            for right in range(-DOT, DOT + 1):
                inside = np.clip(row + down, 0, SIDE - 1), np.clip(column + right, 0, SIDE - 1)
                pixels[inside] = colour
    return pixels
