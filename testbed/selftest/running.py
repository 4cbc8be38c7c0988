"""Running the laws of the self-test and saying how each ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from testbed.errors import InputError, one_line, unknown
from testbed.registry import Registry
from testbed.selftest import denoising, measuring, sampling, training
from testbed.selftest.law import LAWS, Broken, Setup

MODULES = (denoising, training, sampling, measuring)
"""The modules whose laws are run, in this order: each enters its own when it is imported."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Found:
    """How one law of the self-test ended.

    `message`: the numbers, of a law that is broken what was expected beside them.
    """

    law: str
    sentence: str
    passed: bool
    message: str
    seconds: float


def run(seed: int = 0, dtype: str = "float64", registry: Registry | None = None) -> Iterator[Found]:
    """Runs every law on inputs of `seed`; yields each ending as it comes.

    Args:
        seed: of the inputs; any integer.
        dtype: of the inputs, "float64" or "float32". Training is in float32 in either.
        registry: the bundled plugins alone where none is given.

    Raises:
        InputError: another dtype.
    """
    if dtype not in DTYPES:
        raise InputError(unknown("dtype", dtype, DTYPES))
    setup = Setup(seed, DTYPES[dtype], registry or Registry())
    for law in LAWS:
        start = time.perf_counter()
        try:
            passed, message = True, law.run(setup)
        except Broken as broken:
            passed, message = False, str(broken)
        except Exception as problem:  # an installation in which a function is missing, for example
            passed, message = False, f"raised {one_line(problem)}"
        yield Found(law.name, law.sentence, passed, message, time.perf_counter() - start)
