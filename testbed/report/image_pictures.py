"""Pictures of what a denoiser does to images: D and the score by level, and nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from testbed.report.drawing import COLUMN, NARROWEST, Picture, panels, picture
from testbed.report.galleries import images_of
from testbed.report.results import Results, tensor
from testbed.report.words import number
from testbed.trial.folders import Folder
from testbed.trial.pictures import DENOISED, FACTS, NEIGHBOURS

Array = NDArray[np.float64]
MOST_STEPS = 5
"""The most points of a training that are shown of each variant."""
SCORE = 3.0
"""The score's grey values end at this over sigma."""
TITLES = 0.25
"""Inches for the levels above a sheet."""
PAPER = 1.0
"""White, between images."""


class Levels(NamedTuple):
    """Denoised images: noise levels (L,), x and D (L, n, *shape).

    The levels of two trials may differ a little, since each is measured at its own. Of latents x
    and D are decoded, x at the size of clean latents, and there is no score of the images.
    """

    sigma: Array
    x: Array
    D: Array
    decoded: bool = False

    def at(self, columns: NDArray[np.intp]) -> Levels:
        """Those of some of the levels."""
        return Levels(self.sigma[columns], self.x[columns], self.D[columns], self.decoded)

    @property
    def score(self) -> Array:
        """(D - x)/sigma^2, (L, n, *shape)."""
        return (self.D - self.x) / self._each**2

    def noisy(self, sigma_data: float) -> Array:
        """X over sqrt(1 + sigma^2/sigma_data^2): of the data's size at every level."""
        if self.decoded:
            return self.x
        return self.x / np.sqrt(1 + (self._each / sigma_data) ** 2)

    @property
    def _each(self) -> Array:
        return self.sigma.reshape(-1, *[1] * (self.x.ndim - 1))


class Strip(NamedTuple):
    """A row of the picture: its name, and images (L, n, *shape) whose black and white are given."""

    name: str
    images: Array
    low: Array
    high: Array


def of_case(results: Results, case: str) -> Iterator[Picture]:
    """Yields the pictures of a case whose data are images and whose trials kept them."""
    real = results.real(case)
    if real is None or images_of(real) is None:
        return
    found = {
        (arm, variant): levels_of(folders[max(folders)])
        for arm in results.arms(case)
        for variant in results.variants(case, arm)
        if (folders := results.measured(case, arm, variant))
    }
    kept = {label: one for label, one in found.items() if one is not None}
    if kept:
        first = next(iter(kept.values()))
        columns = np.unique(first.sigma, return_index=True)[1]
        same = {k: one.at(columns) for k, one in kept.items() if one.x.shape == first.x.shape}
        first = first.at(columns)
        ends = np.full(len(first.sigma), real.min()), np.full(len(first.sigma), real.max())
        noisy = Strip("x", first.noisy(results.sigma_data(case)), *ends)
        names = {label: _named(*label) for label in same}
        rows = [noisy, *(Strip(names[label], one.D, *ends) for label, one in same.items())]
        yield _by_level(rows, first.sigma, "denoised", case)
        scores = [
            Strip(names[label], one.score, -SCORE / one.sigma, SCORE / one.sigma)
            for label, one in same.items()
        ]
        if not first.decoded:
            yield _by_level(scores, first.sigma, "scores", case)
        training = [*_training(results, case, columns, ends)]
        if training:
            yield _by_level(training, first.sigma, "denoised_training", case)
    yield from _neighbours(results, case, real)


def levels_of(folder: Folder) -> Levels | None:
    """The denoised images that a folder keeps; None where it keeps none, or damaged ones."""
    facts = folder.json_or_empty(FACTS)
    sigma = np.asarray(facts.get("sigmas", []), dtype=float)
    pairs = tensor(folder, DENOISED)
    if pairs is None or pairs.ndim < 4 or pairs.shape[:2] != (2, len(sigma)) or not len(sigma):
        return None
    x, D = pairs
    return Levels(sigma, x, D, bool(facts.get("decoded")))


def _named(arm: str, variant: str) -> str:
    return f"{arm}: {variant}" if arm else variant


def _training(
    results: Results, case: str, columns: NDArray[np.intp], ends: tuple[Array, Array]
) -> Iterator[Strip]:
    """Yields a strip for each variant and some of its points and its end, if it has points."""
    for arm in results.arms(case):
        for variant in results.variants(case, arm):
            folders = results.measured(case, arm, variant)
            steps = np.array(list(folders))
            if len(steps) < 2:
                continue
            few = np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round())
            for step in steps[few.astype(int)]:
                levels = levels_of(folders[int(step)])
                if levels is not None and len(levels.sigma) > max(columns):
                    D = levels.at(columns).D
                    yield Strip(f"{_named(arm, variant)}, {step}", D, *ends)


def _by_level(rows: Sequence[Strip], sigma: Array, kind: str, case: str) -> Picture:
    """A strip a row, a noise level a column; fewer images of each in a narrow column.

    All of it is one sheet, which is drawn sooner than an axes for each cell.
    """
    n, column = rows[0].images.shape[1], COLUMN.get()
    if column is not None:
        n = max(1, min(n, int((column / (NARROWEST * len(sigma)) - 0.1) / 0.4)))
    strips = [
        [side_by_side(images[:n], low, high) for images, low, high in zip(*strip[1:], strict=True)]
        for strip in rows
    ]
    h, w, _ = strips[0][0].shape
    gap = max(2, h // 3)
    cells = np.full((len(rows), h + gap, len(sigma), w + gap, 3), PAPER)
    for i, j in np.ndindex(len(rows), len(sigma)):
        cells[i, :h, j, :w] = strips[i][j]
    sheet = cells.reshape(len(rows) * (h + gap), len(sigma) * (w + gap), 3)[:-gap, :-gap]
    inches = len(sigma) * (0.4 * n + 0.1)
    height = inches * len(sheet) / sheet.shape[1] + TITLES
    figure, ((axes,),) = panels(1, 1, inches, height, shared=False)
    _show(axes, sheet)
    down, across = (size * (np.arange(k) + 0.5) - gap / 2 - 0.5
                    for size, k in ((h + gap, len(rows)), (w + gap, len(sigma))))  # fmt: skip
    axes.set_yticks(down, [strip.name for strip in rows])
    axes.set_xticks(across, [f"σ = {level:.2g}" for level in sigma])
    axes.tick_params(length=0, labelsize=8, bottom=False, labelbottom=False, labeltop=True)
    return picture(figure, kind, case)


def _show(axes: Axes, sheet: Array) -> None:
    axes.imshow(sheet, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def side_by_side(images: Array, low: float, high: float) -> Array:
    """Images (n, *shape) as one of (h, n (w + 1) - 1, 3), a white pixel between them.

    `low` and `high` become black and white for three channels, white and black for one, as in the
    gallery; what is not finite is as `low`.
    """
    found = images_of(images)
    assert found is not None
    n, h, w, channels = found.shape
    finite = np.nan_to_num(found, nan=low, posinf=high, neginf=low)
    unit = (np.clip(finite, low, high) - low) / ((high - low) or 1.0)
    unit = unit if channels == 3 else 1 - unit.repeat(3, axis=-1)
    cells = np.full((n, h, w + 1, 3), PAPER)
    cells[:, :, :w] = unit
    return np.moveaxis(cells, 0, 1).reshape(h, n * (w + 1), 3)[:, :-1]


def _neighbours(results: Results, case: str, real: Array) -> Iterator[Picture]:
    """Yields the picture of samples and their neighbours, a panel for each variant."""
    low, high = float(real.min()), float(real.max())
    found: list[tuple[str, Array, list[dict[str, Any]]]] = []
    for arm in results.arms(case):
        for variant in results.variants(case, arm):
            folders = results.measured(case, arm, variant)
            folder = folders[max(folders)] if folders else None
            images = tensor(folder, NEIGHBOURS) if folder else None
            facts = folder.json_or_empty(FACTS).get("neighbours", []) if folder else []
            if images is not None and len(images) == 1 + len(facts) and len(facts):
                found.append((_named(arm, variant), images, facts))
    if not found:
        return
    across = 2 if len(found) > 1 else 1
    height = max(len(images) for _, images, _ in found)
    figure, grid = panels(across, -(-len(found) // across), 4.6, 0.75 * height, shared=False)
    for axes, (name, images, facts) in zip(grid.flat, found, strict=False):
        _with_distances(axes, images, facts, low, high)
        axes.set_title(name)
    for axes in list(grid.flat)[len(found) :]:
        axes.set_visible(False)
    spaces = dict.fromkeys(fact["space"] for _, _, facts in found for fact in facts)
    yield picture(figure, "neighbours", case, " ".join(spaces))


def _with_distances(
    axes: Axes, images: Array, facts: Sequence[dict[str, Any]], low: float, high: float
) -> None:
    """Samples, and below them the neighbours of each space with their distances."""
    strips = [side_by_side(row, low, high) for row in images]
    h, width, _ = strips[0].shape
    gap = max(2, round(0.45 * h))
    blank = np.full((gap, width, 3), PAPER)
    _show(axes, np.concatenate([part for strip in strips for part in (strip, blank)]))
    w = (width + 1) / images.shape[1]
    names = "sample", "by pixels", "by features"
    for row, name in zip(range(len(strips)), names, strict=False):
        middle = row * (h + gap) + (h - 1) / 2
        axes.text(-w / 4, middle, name, ha="right", va="center", fontsize=7)
    for row, fact in enumerate(facts, start=1):
        for i, value in enumerate(fact["distances"]):
            x, y = (i + 0.5) * w - 1, row * (h + gap) + h + gap / 2 - 0.5
            axes.text(x, y, number(value), ha="center", va="center", fontsize=7)
