"""Mistakes in inpainting, each rejected by its law."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from laws.pipeline import Told, law_keeps_what_is_known
from mutants.registry import laws_of, rejected_by
from torch import Tensor

from testbed.registry import default_registry
from testbed.sampling.pipeline import Known

DDIM = default_registry().sampler("ddim")


def told(D: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Told:
    """Inpainting by another function of (D, x0, m, x)."""

    def make(denoiser: Any, x0: Tensor, known: Tensor) -> Any:
        return lambda x, sigma: D(denoiser(x, sigma), x0, known, x)

    return make


def outside_of(denoiser: Any, x0: Tensor, known: Tensor) -> Any:
    """The known region is put in before the denoiser, and not after it."""
    return lambda x, sigma: denoiser(torch.lerp(x, x0, known), sigma)


WRONG: dict[str, Told] = {
    "nothing is kept": told(lambda D, x0, m, x: D),
    "the unknown region is kept": told(lambda D, x0, m, x: torch.lerp(x0, D, m)),
    "the noisy image is kept": told(lambda D, x0, m, x: torch.lerp(D, x, m)),
    "the image is added": told(lambda D, x0, m, x: D + m * x0),
    "black for the image": told(lambda D, x0, m, x: (1 - m) * D),
    "known or not, nothing between": told(lambda D, x0, m, x: torch.where(m > 0, x0, D)),
    "put in before the denoiser": outside_of,
}

INPAINTING = laws_of("laws: inpainting", "samples around the known region of an image")


@wraps(law_keeps_what_is_known)
def law(known: Told) -> None:
    law_keeps_what_is_known(known, DDIM)


rejected_by(INPAINTING, law, Known, **WRONG)
