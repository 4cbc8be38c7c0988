"""Samples of a trained trial, as numbers or as a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.random import stream
from testbed.trial import class_conditions, evaluate, restore, texts
from testbed.trial.folders import Folder
from testbed.trial.guided import Guide

SUFFIXES = (".npy", ".safetensors", ".png", ".svg")


def draw(
    which: str,
    n: int,
    out: Path,
    seed: int,
    device: str,
    console: Console,
    condition: Sequence[str] = (),
    negative: Sequence[str] = (),
) -> None:
    """Draws n samples and writes them to `out`, by its suffix numbers or a picture.

    `condition` holds `name=class` or `name=text`, what all samples are to have; without any, those
    of a conditional or guided trial are of classes of the held-out data. `negative` holds the same
    for D_n of classifier-free guidance, in place of the study's.

    Raises:
        InputError: no such trial, one without weights, a condition that it has not, or a text that
            it cannot have.
    """
    wanted, unwanted = _values("--condition", condition), _values("--negative", negative)
    prompts: dict[str, list[str]] = {}
    for name, value in (*wanted.items(), *unwanted.items()):
        if isinstance(value, str):
            prompts.setdefault(name, []).append(value)
    denoiser, data, config, registry = restore.restore(which, device, prompts)
    guide = Guide(config, registry, data, denoiser, torch.device(device))
    if unwanted:
        of_negative = class_conditions.negatives(
            _classes(unwanted, data), guide.conditions, guide.way, data
        )
        guide = Guide(config, registry, data, denoiser, torch.device(device), of_negative)
    classes = guide.of_samples(n)
    if wanted:
        given = _classes(wanted, data)
        classes = class_conditions.chosen(given, guide.conditions, guide.way, data, n)
    steps = config.evaluation.steps
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("sampling", total=steps)
        samples = evaluate.draw(
            denoiser,
            data,
            config,
            n,
            stream(seed, "draw"),
            torch.device(device),
            registry,
            lambda i, sigma, x: bar.update(task, completed=i + 1),
            guide.trained(classes),
        ).cpu()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, samples.numpy())
    elif out.suffix == ".safetensors":
        facts = {"trial": str(which), "seed": str(seed)}
        Folder.at(out.parent).put_tensors(out.name, {"samples": samples}, facts)
    else:
        picture(samples, data.test, config.parameterization.name).savefig(out, dpi=150)


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
