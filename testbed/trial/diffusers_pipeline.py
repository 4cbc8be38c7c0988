"""Samples of a pipeline of diffusers in a folder, by the testbed's samplers and guidance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from testbed.checkpoints import diffusers_folders
from testbed.checkpoints.diffusers_folders import TEXT, DiffusersFolder
from testbed.data.latents import Latents
from testbed.errors import InputError
from testbed.networks import autoencoder
from testbed.registry import Registry, default_registry
from testbed.sampling.pipeline import Pipeline

STEPS = 50
WIDEST = (0.002, 80.0)
"""The noise levels of a path where neither a table nor the scheduler states any."""


def diffusers_pipeline(
    path: str | Path,
    prompts: Sequence[str] | None = None,
    *,
    subfolder: str = "",
    scheduler: str | Path | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
) -> Pipeline:
    """What draws samples of a model of diffusers: images where it has an AutoencoderKL.

    Its conditions are "text", one of the prompts or -1 for the empty one, and "label". Without
    another sampler a call takes 50 steps of DDIM over the levels of its table, of Heun where its
    levels are continuous.

    Args:
        path, subfolder, scheduler: as for `load_diffusers`.
        prompts: the texts that it is to know, of a model that attends to texts.
        device: where to put it.
        registry: where sampler and schedule are found; by default the bundled ones.

    Raises:
        InputError: as `load_diffusers`; a model of texts without prompts; a first stage that cannot
            be read.
    """
    folder = diffusers_folders.read(path, subfolder=subfolder, scheduler=scheduler)
    if folder.text is not None and prompts is None:
        raise InputError(f'{path}: its network attends to texts: give prompts = ["..."].')
    if prompts is not None:
        folder = folder.with_prompts(prompts)
    registry = registry or default_registry()
    denoiser, table = folder.denoiser(registry=registry).eval().to(device), folder.reading.table
    ends = folder.reading.sigma_range or WIDEST
    if table is not None:
        ends = float(table.sigmas[0]), float(table.sigmas[-1])
    classes = {"label": folder.labels} if folder.labels else {}
    return Pipeline(
        denoiser,
        folder.shape,
        ends,
        registry.sampler("ddim" if table is not None else "heun"),
        registry.schedule("table" if table is not None else "karras"),
        STEPS,
        denoiser.sigma_data,
        classes={**classes, **({TEXT: len(prompts)} if prompts is not None else {})},
        texts={} if prompts is None else {TEXT: prompts},
        always=frozenset(name for name in classes if folder.null is None),
        table=table,
        first_stage=_first_stage(folder, device),
        device=device,
    )


def _first_stage(folder: DiffusersFolder, device: str) -> Latents | None:
    """What decodes its samples; None where they are no latents."""
    if folder.first_stage is None:
        return None
    found, scale, shift = autoencoder.read(folder.first_stage)
    module = found.to(device).float().eval().requires_grad_(False)
    size = folder.shape[1] * found.stride, folder.shape[2] * found.stride
    shifts = torch.full(folder.shape[:1], shift)
    return Latents(module.mean, module.decode, found.stride, size, scale, shifts)
