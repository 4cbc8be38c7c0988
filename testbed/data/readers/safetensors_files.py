"""Files of safetensors: named tensors without code."""

from __future__ import annotations

from pathlib import Path

import torch

from testbed.data.readers.base import Contents, Reader, Rows

NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Floats that NumPy does not have; float32 has all their values."""


def open_file(path: Path) -> Contents:
    """The tensors of a file by name."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = tuple(file.keys())

    def load(name: str) -> Rows:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
        found: Rows = (tensor.float() if tensor.dtype in NARROW else tensor).numpy()
        return found

    return Contents(path, names, load)


SAFETENSORS = Reader(
    "a .safetensors file",
    (".safetensors",),
    lambda path, head: path.suffix.lower() == ".safetensors",
    open_file,
)
