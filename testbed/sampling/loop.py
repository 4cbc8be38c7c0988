"""The one loop that every sampler shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from testbed.components.guidance import Denoise
from testbed.components.sampler import Sampler
from testbed.diffusion.ddpm import Normal, posterior_of
from testbed.errors import InputError
from testbed.registry import default_registry

Callback = Callable[[int, float, Tensor], None]


class StepDenoiser:
    """A denoiser as a sampler's step calls it: `denoise(x, sigma)`, sigma one float for the batch.

    Args:
        denoiser: (x, sigma) -> x0 with sigma (B,).
        dtype: The dtype of the sigma that the denoiser gets.
    """

    def __init__(self, denoiser: Denoise, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The denoiser's D at the noise level sigma, (B, ...)."""
        return self.denoiser(x, torch.full(x.shape[:1], sigma, dtype=self.dtype, device=x.device))

    def posterior(self, x: Tensor, sigma: float, sigma_next: float) -> Normal:
        """The mean and the variance of x at the level `sigma_next`, both (B, ...).

        Raises:
            NoPosterior: The denoiser has no `posterior(x, sigma, sigma_next)`.
        """
        return posterior_of(self.denoiser)(x, sigma, sigma_next)


def sample(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    sampler: str | Sampler = "heun",
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Follows the probability-flow ODE, or a stochastic path, from sigmas[0] to sigmas[-1].

    Args:
        denoiser: Any callable (x, sigma) -> x0, x (B, ...), sigma (B,); it is never called at 0.
        x: (B, ...), already at noise level sigmas[0]: usually x0 + sigmas[0] eps.
        sigmas: (n + 1,) strictly descending noise levels; a final 0 is allowed.
        sampler: A name or a component of the registry.
        generator: The source of fresh noise; stochastic samplers need one.
        callback: It is called before each step as `callback(i, sigma_i, x_i)`.
        progress: Whether a bar on standard error shows the progress.

    Returns:
        The samples at sigmas[-1], (B, ...), with the dtype and on the device of x.

    Raises:
        InputError: The levels do not descend, a level is negative or not finite, a stochastic
            sampler has no generator, or a learned variance is wanted of a denoiser without one.
        UnknownName: No sampler has that name.
    """
    levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64)]
    descending = all(a > b for a, b in pairwise(levels))
    if not levels or not descending or not levels[-1] >= 0 or levels[0] == float("inf"):
        raise InputError(f"sigmas must descend strictly to a level >= 0, got {_brief(levels)}.")
    if isinstance(sampler, str):
        sampler = default_registry().sampler(sampler)
    if not sampler.deterministic and generator is None:
        raise InputError(f"sampler {sampler.name!r} draws noise: give generator=torch.Generator().")
    denoise = StepDenoiser(denoiser, torch.promote_types(x.dtype, torch.float32))
    step = sampler.signature("step")
    history: list[Any] = []
    steps = list(pairwise(levels))
    for i, (sigma, sigma_next) in enumerate(_tracked(steps, sampler.name) if progress else steps):
        if callback is not None:
            callback(i, sigma, x)
        arguments = (denoise, x, sigma, sigma_next, generator, history)
        x = step(*arguments, options=sampler.options, steps=len(steps))
    return x


def _tracked(steps: list[tuple[float, float]], name: str) -> Iterable[tuple[float, float]]:
    """The steps, with a progress bar that counts them."""
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=name, console=Console(stderr=True))


def _brief(levels: list[float]) -> str:
    first = ", ".join(f"{level:g}" for level in levels[:4])
    return f"[{first}{', ...' if len(levels) > 4 else ''}] ({len(levels)} levels)"
