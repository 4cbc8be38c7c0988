"""The latents that take the place of a study's images where it has an encoder.

An encoder is trained once for a data set and its settings. It is kept in the user's cache together
with the latents, by a digest of the images, the settings and the sources that make them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from testbed import cache
from testbed.checkpoints.diffusers_folders import DiffusersFolder
from testbed.components.dataset import Data
from testbed.data import latents
from testbed.data.latents import Latents
from testbed.errors import InputError
from testbed.networks import autoencoder
from testbed.training import autoencoder as training
from testbed.trial.encoder import Encoder

POWERS = {"l1": 1, "l2": 2}
VERSION = 1
"""Of what is kept: another one makes everything anew."""


def latent_data(images: Data, encoder: Encoder) -> Data:
    """The latents of images, with the first stage that decodes them.

    Raises:
        InputError: data that are no images, an encoder that does not fit them, or a folder that
            cannot be read.
    """
    if len(images.shape) != 3:
        raise InputError(f"encoder: samples have shape {images.shape}, expected images (C, H, W).")
    found, scaling, shifting = _autoencoder(images, encoder)
    name = f"first_stages/{_digest(images, encoder, found)}.safetensors"
    kept = load(cache.kept(name, lambda: _made(images, encoder, found), _intact))
    found.load_state_dict({k[8:]: t for k, t in kept.items() if k.startswith("weights.")})
    found.eval().requires_grad_(False)
    shift = {"channel": kept["train"].double().mean((0, 2, 3)).float(), "none": None}.get(
        encoder.shift, torch.full((kept["train"].shape[1],), shifting)
    )
    if isinstance(encoder.scale, float):
        scale = encoder.scale
    else:
        measured = encoder.scale == "measured"
        scale = latents.measured_scale(kept["train"], shift) if measured else scaling
    dtype = getattr(torch, encoder.precision)
    first_stage = _first_stage(found, images, dtype, scale, shift)
    train, test = (_scaled(kept[split], scale, shift) for split in ("train", "test"))
    note = _note(encoder, images, train, float(kept["error"]), scale)
    return latents.of(images, first_stage, train, test, note)


def of_folder(folder: DiffusersFolder, shape: tuple[int, ...]) -> Encoder | None:
    """The first stage of a model of diffusers; None where samples of a shape need none.

    Its scale and shift are those of its config.json. Samples that have the shape of the network's
    already are taken as they are.

    Raises:
        InputError: its first stage is no AutoencoderKL.
    """
    if folder.shape == shape or (stage := folder.first_stage) is None:
        return None
    return Encoder.model_validate({"path": str(stage), "scale": "config", "shift": "config"})


def in_latents(data: Data, folder: DiffusersFolder) -> Data:
    """The latents of images by the first stage of a model of diffusers; data as they are without.

    Raises:
        InputError: as `latent_data`, or a first stage that is no AutoencoderKL.
    """
    encoder = of_folder(folder, data.shape)
    return data if encoder is None else latent_data(data, encoder)


def _autoencoder(images: Data, encoder: Encoder) -> tuple[autoencoder.Autoencoder, float, float]:
    """The module, untrained without a folder, with scaling_factor and shift_factor."""
    channels = images.shape[0]
    if not encoder.path:
        seed = encoder.seed
        widths = encoder.channels, encoder.latent_channels, encoder.layers
        return autoencoder.build(channels, *widths, seed), 1.0, 0.0
    found, scale, shift = autoencoder.read(Path(encoder.path))
    if found.channels != channels:
        raise InputError(
            f"encoder.path = {encoder.path!r} is of images of {found.channels} channels, and the "
            f"data have {channels}."
        )
    return found, scale, shift


def _digest(images: Data, encoder: Encoder, found: autoencoder.Autoencoder) -> str:
    """What the weights and latents depend on, as hexadecimal digits."""
    settings = encoder.model_dump(exclude={"scale", "shift"})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
    digest = hashlib.sha256(json.dumps([VERSION, settings, versions, images.digest]).encode())
    for tensor in found.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _made(images: Data, encoder: Encoder, found: autoencoder.Autoencoder) -> bytes:
    """The trained weights, the latents before scale and shift, and the error of reconstruction."""
    if not encoder.path:
        training.train(
            found,
            images,
            steps=encoder.steps,
            batch=encoder.batch,
            learning_rate=encoder.learning_rate,
            power=POWERS[encoder.loss],
            reconstruction=encoder.reconstruction,
            weight=encoder.kl,
            seed=encoder.seed,
        )
    weights = {f"weights.{name}": t.contiguous() for name, t in found.state_dict().items()}
    plain = _first_stage(found, images, getattr(torch, encoder.precision))
    train, test = (
        torch.cat([plain.encode(block) for block in latents.blocks(split)]).contiguous()
        for split in (images.train, images.test)
    )
    error = torch.zeros(1, dtype=torch.float64)
    for block, z in zip(latents.blocks(images.test), latents.blocks(test), strict=True):
        error += (plain.decode(z) - block).double().square().sum()
    error = (error / images.test.numel()).sqrt()
    return save({**weights, "train": train, "test": test, "error": error})


def _intact(content: bytes) -> bool:
    try:
        return {"train", "test", "error"} <= load(content).keys()
    except SafetensorError:
        return False


def _first_stage(
    found: autoencoder.Autoencoder,
    images: Data,
    dtype: torch.dtype,
    scale: float = 1.0,
    shift: Tensor | None = None,
) -> Latents:
    module = found.to(dtype)
    size = (images.shape[1], images.shape[2])
    both = module.mean, module.decode
    return Latents(*both, found.stride, size, scale, shift, dtype, found.module)


def _scaled(means: Tensor, scale: float, shift: Tensor | None) -> Tensor:
    return scale * (means if shift is None else means - shift.view(1, -1, 1, 1))


def _note(encoder: Encoder, images: Data, train: Tensor, error: float, scale: float) -> str:
    """A sentence on the first stage."""
    made = f"read from {encoder.path}" if encoder.path else f"trained for {encoder.steps} steps"
    return (
        f"The denoisers are of latents {tuple(train.shape[1:])} of the images {images.shape}, by "
        f"an encoder {made}, multiplied by {scale:.4g}. Decoded again, held-out images are off by "
        f"{error:.3g} (root mean square; sigma_data of the images is {images.sigma_data:.3g}): no "
        "sample is nearer to the data than that. Losses of latents are not those of pixels."
    )
