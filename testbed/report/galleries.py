"""Samples beside real data: grids for images, principal components for vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from testbed.report.drawing import REFERENCE, Picture, ink, panels, picture
from testbed.report.results import Results

Array = NDArray[np.float64]
SIDE = 8
DOTS = 400


def gallery(results: Results, case: str, means: dict[tuple[str, str], str]) -> Picture | None:
    """Returns a picture of real data beside the samples of every variant, a row per arm.

    Args:
        results: The study's.
        case: The case whose samples are drawn; there is no picture without two real samples.
        means: The mean of a sample metric by (arm, variant), written below each panel.
    """
    real = results.real(case)
    if real is None or len(real) < 2:
        return None
    image = images_of(real) is not None
    arms, order = results.arms(case), results.variants(case)
    figure, grid = panels(len(order) + 1, rows=len(arms), width=1.9, height=2.25, shared=False)
    frame = _Frame(real)
    for row, arm in zip(grid, arms, strict=True):
        for axes, variant in zip(row, [None, *order], strict=True):
            samples = real if variant is None else results.samples(case, arm, variant)
            colour = REFERENCE if variant is None else ink(variant, order)["color"]
            axes.set_title("real" if variant is None else variant, color=colour)
            outside = _panel(axes, samples, frame, colour, image)
            if samples is not None and variant is not None:
                label = filter(None, (means.get((arm, variant)), outside))
                axes.set_xlabel(" · ".join(label), fontsize=8)
        if arm:
            row[0].set_ylabel(arm, fontweight="bold")
    note = (
        "Values are cut to the real data’s range."
        if image
        else "The axes are the first two principal ones of the real data, which fix the frame too."
    )
    return picture(figure, "samples", case, note)


def of_spaces(results: Results, images: str, spaces: Mapping[str, str]) -> Picture | None:
    """Returns real images beside the decoded samples of several cases, a row for each variant.

    Args:
        results: The study's.
        images: The data set, which names the picture.
        spaces: What each case's denoisers are of, by the case, written above its column.
    """
    first = next(iter(spaces))
    real = results.real(first)
    if real is None or len(real) < 2 or images_of(real) is None:
        return None
    labels = dict.fromkeys(
        (arm, variant)
        for case in spaces
        for arm in results.arms(case)
        for variant in results.variants(case, arm)
    )
    figure, grid = panels(1 + len(spaces), len(labels), width=2.6, height=2.75, shared=False)
    frame = _Frame(real)
    for row, (arm, variant) in zip(grid, labels, strict=True):
        columns: dict[str, Array | None] = {"real": real}
        for case, space in spaces.items():
            name = space if space.startswith(case) else f"{case}: {space}"
            columns[name] = results.samples(case, arm, variant)
        for axes, (name, samples) in zip(row, columns.items(), strict=True):
            _panel(axes, samples, frame, REFERENCE, image=True)
            axes.set_title(name, fontsize=8)
        row[0].set_ylabel(f"{arm}: {variant}" if arm else variant, fontweight="bold")
    return picture(figure, "spaces", images, "Values are cut to the real images’ range.")


def _panel(axes: Axes, samples: Array | None, frame: _Frame, colour: Any, image: bool) -> str:
    """Draws samples in a frame without ticks; returns what lies outside of it."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#bbbbbb")
    if samples is None:
        axes.text(0.5, 0.5, "no samples", ha="center", va="center", transform=axes.transAxes)
        return ""
    if not image:
        return _scatter(axes, samples, frame, colour)
    _grid(axes, samples, frame)
    return ""


class _Frame:
    """The frame of every panel, fixed by the real data: range of values, two directions, limits."""

    def __init__(self, real: Array) -> None:
        self.low, self.high = float(real.min()), float(real.max())
        flat = real.reshape(len(real), -1)
        self.mean = flat.mean(0)
        axes = np.linalg.svd(flat - self.mean, full_matrices=False)[2][:2]
        # A principal axis has no sign of its own: its largest entry is made positive.
        peak = np.abs(axes).argmax(1)
        self.axes = axes * np.sign(axes[np.arange(len(axes)), peak])[:, None]
        plane = self.project(real)
        middle, half = (plane.max(0) + plane.min(0)) / 2, (plane.max(0) - plane.min(0)) / 2
        self.bottom, self.top = middle - 1.35 * half, middle + 1.35 * half

    def project(self, samples: Array) -> Array:
        """Returns (n, 2) coordinates on the real data's first two principal axes."""
        plane = (samples.reshape(len(samples), -1) - self.mean) @ self.axes.T
        return plane if plane.shape[1] == 2 else np.hstack([plane, np.zeros_like(plane)])


def images_of(samples: Array) -> Array | None:
    """Returns (n, h, w, c) where the data are images of one or three channels, else None."""
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return np.moveaxis(samples, 1, -1)
    return samples[..., None] if samples.ndim == 3 and min(samples.shape[1:]) > 1 else None


def _grid(axes: Axes, samples: Array, frame: _Frame) -> None:
    """Draws the first 64 images, with a pixel between them; those of one channel dark on light."""
    images = images_of(samples)
    assert images is not None
    h, w, channels = images.shape[1:]
    sheet = np.full((SIDE * (h + 1) - 1, SIDE * (w + 1) - 1, channels), frame.high)
    for i, image in enumerate(images[: SIDE**2]):
        y, x = (i // SIDE) * (h + 1), (i % SIDE) * (w + 1)
        sheet[y : y + h, x : x + w] = image
    sheet = np.nan_to_num(sheet, nan=frame.low, posinf=frame.high, neginf=frame.low)
    sheet = (np.clip(sheet, frame.low, frame.high) - frame.low) / (frame.high - frame.low or 1)
    picture = 1 - sheet.repeat(3, axis=-1) if channels == 1 else sheet
    axes.imshow(picture, interpolation="none")


def _scatter(axes: Axes, samples: Array, frame: _Frame, colour: Any) -> str:
    """Draws the first 400 samples in the real data's plane; returns how many lie outside of it."""
    plane = frame.project(samples[:DOTS])
    inside = ((plane >= frame.bottom) & (plane <= frame.top)).all(1)
    axes.plot(*plane[inside].T, ".", ms=2.2, mew=0, color=colour, alpha=0.7, rasterized=True)
    axes.set_xlim(frame.bottom[0], frame.top[0])
    axes.set_ylim(frame.bottom[1], frame.top[1])
    outside = int((~inside).sum())
    return f"{outside} of {len(plane)} outside" if outside else ""
