"""Named streams of random numbers: every draw has an explicit generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator of the CPU begins at `seed` in the block, and is put back after it.

    Those of CUDA devices are seeded as well. Where there are none `torch.manual_seed` would keep a
    stack trace for each kind of device that might turn up, which takes a hundred times as long.
    """
    with torch.random.fork_rng(devices=[]):
        if torch.cuda.is_available():
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
