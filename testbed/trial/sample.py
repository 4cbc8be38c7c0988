"""Samples of a trained trial, as numbers or as a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from testbed.components.dataset import Data
from testbed.errors import InputError, no_such, one_line
from testbed.random import Generators, stream
from testbed.sampling.guidance import EVERYWHERE
from testbed.sampling.pipeline import Classes
from testbed.trial import class_conditions, restore, texts
from testbed.trial.build import component, dataset
from testbed.trial.folders import Folder
from testbed.trial.guided import Guide
from testbed.trial.specs import ComponentSpec
from testbed.trial.storage import LocalDisk

SUFFIXES = (".npy", ".safetensors", ".png", ".svg")


@dataclass(frozen=True)
class Request:
    """What is asked of a trial's pipeline, as the command line words it; see `Pipeline`.

    Args:
        condition, negative: words `name=class`; without a condition the samples have classes of
            held-out data.
        sampler, schedule: names, or tables `{name = "ddim", eta = 0.5}`.
        each: whether every sample has a generator of its own, seeded with seed, seed + 1, ...
        image, known: files: .npy in the units of the data, or an image.
    """

    condition: Sequence[str] = ()
    negative: Sequence[str] = ()
    scale: float | None = None
    interval: tuple[float, float] = EVERYWHERE
    steps: int | None = None
    sampler: str = ""
    schedule: str = ""
    eta: float | None = None
    each: bool = False
    image: Path | None = None
    strength: float = 1.0
    known: Path | None = None


def draw(
    which: str,
    n: int,
    out: Path,
    seed: int,
    device: str,
    console: Console,
    request: Request,
) -> None:
    """Draws n samples of a trial and writes them to `out`, by its suffix numbers or a picture.

    Raises:
        InputError: no such trial, one without weights, a condition that it has not, a text that it
            cannot have, or a request that does not fit.
    """
    wanted = _values("--condition", request.condition)
    unwanted = _values("--negative", request.negative)
    prompts = _prompts(wanted, unwanted)
    denoiser, data, config, registry = restore.restore(which, device, prompts)
    for line in texts.foreign(dataset(registry, config.dataset, config.encoder), prompts):
        console.print(line, markup=False, highlight=False)
    guide = Guide(config, registry, data, denoiser, torch.device(device))
    if unwanted and request.scale is None:
        negatives = class_conditions.negatives(
            _classes(unwanted, data), guide.conditions, guide.way, data
        )
        guide = Guide(config, registry, data, denoiser, torch.device(device), negatives)
    pipeline = restore.pipeline_of(denoiser, data, config, registry, torch.device(device))
    pipeline = replace(pipeline, own=guide.trained)
    condition: Mapping[str, Classes] = guide.of_samples(n)
    if wanted:
        given = _classes(wanted, data)
        condition = class_conditions.chosen(given, guide.conditions, guide.way, data, n)
    negative = _classes(unwanted, data) if unwanted and request.scale is not None else None
    parts: dict[str, Any] = {
        axis: component(registry, axis, ComponentSpec.parse(word))
        for axis, word in (("sampler", request.sampler), ("schedule", request.schedule))
        if word
    }
    if request.each:
        generator: Generators = [stream(seed + i, "draw") for i in range(n)]
    else:
        generator = stream(seed, "draw")
    steps = request.steps or config.evaluation.steps
    shown = data.pixels or data
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("sampling", total=steps)
        samples = pipeline(
            n,
            condition,
            negative,
            scale=request.scale,
            interval=request.interval,
            steps=steps,
            eta=request.eta,
            generator=generator,
            image=read_image(request.image, shown.shape, pipeline.extent),
            strength=request.strength,
            known=read_image(request.known, shown.shape, (0.0, 1.0)),
            callback=lambda i, sigma, x: bar.update(task, completed=i + 1),
            **parts,
        ).cpu()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, samples.numpy())
    elif out.suffix == ".safetensors":
        facts = {"trial": str(which), "seed": str(seed)}
        Folder(LocalDisk(out.parent)).put_tensors(out.name, {"samples": samples}, facts)
    else:
        picture(samples, shown.test, config.parameterization.name).savefig(out, dpi=150)


def _prompts(*conditions: Mapping[str, int | str]) -> dict[str, list[str]]:
    """The texts among the values of conditions, by the condition's name."""
    found: dict[str, list[str]] = {}
    for name, value in chain.from_iterable(one.items() for one in conditions):
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found


def read_image(
    file: Path | None, shape: tuple[int, ...], extent: tuple[float, float]
) -> torch.Tensor | None:
    """The samples of a .npy file as they are, or an image with its 0..255 taken to `extent`.

    Returns:
        (n, *shape) of a .npy file, (1, C, H, W) of an image.

    Raises:
        InputError: no such file, one that cannot be read, or an image for samples that are none.
    """
    if file is None:
        return None
    if not file.is_file():
        raise InputError(f"{file}: {no_such(file)}")
    try:
        if file.suffix == ".npy":
            return torch.from_numpy(np.load(file, allow_pickle=False)).float()
        from PIL import Image

        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(f"{file}: samples have shape {shape}, which is no image.")
        with Image.open(file) as opened:
            array = np.asarray(opened.convert("L" if shape[0] == 1 else "RGB"))
    except (OSError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{file}: cannot be read: {one_line(problem)}.") from None
    if array.shape[:2] != shape[1:]:
        sizes = [f"{height} x {width}" for height, width in (array.shape[:2], shape[1:])]
        raise InputError(
            f"{file} has {sizes[0]} pixels (height x width), and samples have {sizes[1]}."
        )
    low, high = extent
    pixels = torch.from_numpy(array.copy()).float().view(*array.shape[:2], shape[0])
    return low + (high - low) * pixels.permute(2, 0, 1)[None] / 255


def _values(option: str, words: Sequence[str]) -> dict[str, int | str]:
    """`name=class` or `name=text` for each condition.

    Raises:
        InputError: a word of another form, or a name twice.
    """
    found: dict[str, int | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise InputError(
                f"{option} {word}: expected NAME=CLASS, such as label=3, or NAME=TEXT."
            )
        if name in found:
            raise InputError(f"{option} {word}: {name} is given twice.")
        found[name] = int(value) if re.fullmatch(r"-?\d{1,9}", value) else value
    return found


def _classes(values: Mapping[str, int | str], data: Data) -> dict[str, int]:
    """The class of each condition, of a text its number."""
    return {
        name: texts.number(data, name, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def picture(samples: torch.Tensor, real: torch.Tensor, title: str) -> Figure:
    """A grid of images, or the first two principal components of the real data."""
    shape = samples.shape[1:]
    if len(shape) >= 2 and (len(shape) == 2 or shape[0] in (1, 3)):
        columns = math.ceil(math.sqrt(len(samples)))
        rows = math.ceil(len(samples) / columns)
        figure = Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4))
        figure.suptitle(title)
        low, high = float(real.min()), float(real.max())
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, image in zip(grid.flat, samples, strict=False):
            channels_last = image if image.ndim == 2 else image.permute(1, 2, 0)
            shown = ((channels_last - low) / (high - low)).clamp(0, 1)
            axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
        for axes in grid.flat:
            axes.axis("off")
        return figure
    flat, held = samples.flatten(1).double(), real.flatten(1).double()
    centre = held.mean(0)
    basis = torch.linalg.svd(held - centre, full_matrices=False).Vh[:2].T
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for points, label, style in ((held, "real", "0.75"), (flat, title, "C0")):
        at = ((points - centre) @ basis).numpy()
        second = at[:, 1] if at.shape[1] > 1 else 0 * at[:, 0]
        axes.scatter(at[:, 0], second, s=6, color=style, label=label)
    axes.set(xlabel="first principal component", ylabel="second")
    axes.set_aspect("equal")
    axes.legend(frameon=False)
    return figure
