"""Named streams of random numbers: every draw has an explicit generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

Generators = torch.Generator | Sequence[torch.Generator]
"""The source of all noise of a batch, or one for each of its samples."""


def stream(seed: int, name: str) -> torch.Generator:
    """The CPU generator of (seed, name), at its start.

    Streams of different names are independent: an additional draw from one changes no number of
    another.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
