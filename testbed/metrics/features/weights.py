"""Weights of published networks: read from disk, compared key by key, and never downloaded."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from testbed.components.metric import Metric
from testbed.errors import InputError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
CONVERT = (
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors') turns "
    "a dictionary of tensors into one where it came from"
)
SHOWN = 3


@dataclass(frozen=True)
class WeightsMetric(Metric):
    """A metric in the features of a network whose weights are on disk.

    Its option `weights` is their path; `digest`, their sha256, is filled in when the options are
    bound, so that a study's identity has it, and compared where it is given.

    Args:
        needed: which file or folder is needed and where it comes from.
    """

    needed: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        return {"digest": "", **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        """This metric with its options, `digest` among them.

        Raises:
            InputError: As for any component; no such file, or one with another digest.
        """
        metric = super().bound(options)
        path, stated = metric.options["weights"], metric.options["digest"]
        if not path:
            return metric
        if Path(path).suffix in PICKLED:
            raise InputError(
                f"{self.label}: weights = {path!r} is pickled, and nothing is unpickled here: "
                f"{CONVERT}."
            )
        if not Path(path).exists():
            raise InputError(f"{self.label}: weights = {path!r}: no such file. {self.needed}")
        found = digest(Path(path).absolute())
        if stated not in ("", found):
            raise InputError(
                f"{self.label}: weights = {path!r} have the digest {found}, and the study was made "
                f"with {stated}: put those back, or run the study anew."
            )
        metric.options["digest"] = found
        return metric


def missing(weights: str, needed: str) -> list[str]:
    """Why there are no weights, a sentence; nothing where a path is named."""
    return [] if weights else [f'it needs weights = "PATH". {needed}']


def digest(path: Path) -> str:
    """The sha256 of a file, or of the configuration and the safetensors of a folder, 16 digits."""
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.safetensors"), *path.glob("config.json")])
    marks = tuple((str(one), one.stat().st_mtime_ns, one.stat().st_size) for one in files)
    return _digest(marks)


@functools.lru_cache(maxsize=16)
def _digest(marks: tuple[tuple[str, int, int], ...]) -> str:
    sha = hashlib.sha256()
    for name, _, _ in marks:
        with open(name, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:16]


def read(
    build: Callable[[], nn.Module], path: Path, needed: str, ignored: Sequence[str] = ()
) -> nn.Module:
    """A module with weights from a safetensors file; every key and every shape must be right.

    Args:
        build: Makes the module; no weights are drawn for it.
        path: The file.
        needed: Which file is needed, for messages.
        ignored: Regular expressions of keys, matched from the beginning, that are left out.

    Raises:
        InputError: The file cannot be read, or its keys or shapes are not the module's.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise InputError(f"{path}: cannot be read as safetensors ({problem}). {needed}") from None
    with torch.device("meta"):
        network = build()
    network = network.to_empty(device="cpu")
    own = network.state_dict()
    # How many batches a normalisation has seen is part of no evaluation.
    left_out = [*ignored, r".*\.num_batches_tracked$"]
    found = {k: t for k, t in found.items() if not any(re.match(one, k) for one in left_out)}
    own = {k: t for k, t in own.items() if not k.endswith(".num_batches_tracked")}
    wrong = {
        "lacks": [key for key in own if key not in found],
        "has beside": [key for key in found if key not in own],
        "has in another shape": [
            f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in found and found[key].shape != own[key].shape
        ],
    }
    if any(wrong.values()):
        parts = [f"{what} {_few(keys)}" for what, keys in wrong.items() if keys]
        raise InputError(f"{path}: does not fit the network: it {'; it '.join(parts)}. {needed}")
    network.load_state_dict(found, strict=False)
    return network.requires_grad_(False).eval()


def _few(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
