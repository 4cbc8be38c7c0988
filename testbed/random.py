"""Named streams of random numbers: every draw has an explicit generator."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for (seed, name).

    Streams of different names are independent, so a draw more in one changes no number in another.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
