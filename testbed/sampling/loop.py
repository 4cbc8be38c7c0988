"""The one loop that every sampler shares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from testbed.components.guidance import Denoise
from testbed.components.sampler import Sampler
from testbed.diffusion.ddpm import NoPosterior, Normal, posterior_of
from testbed.diffusion.noise_levels import TERMINAL
from testbed.errors import InputError
from testbed.random import Generators, stream
from testbed.registry import default_registry

Callback = Callable[[int, float, Tensor], None]
FAR = 10.0
"""What a first step may leave of noise, over what it should: a large variance leaves more."""


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


def refused_at_infinity(sampler: Sampler, left: float, sigma_next: float) -> str:
    """Returns why a sampler cannot begin at sigma = infinity; "" where it can.

    Args:
        sampler: Any sampler.
        left: The noise that its step from there to `sigma_next` leaves where D = 0, root mean
            square.
        sigma_next: The noise that should be left.
    """
    if sigma_next / 2 <= left <= FAR * sigma_next:
        return ""
    return (
        f"{sampler.label} cannot step from sigma = infinity: noise of size {sigma_next:.4g} should "
        f"be left, and it leaves {left:.2g}. Take one that goes towards D, such as ddim."
    )


def sample(
    denoiser: Denoise,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    sampler: str | Sampler = "heun",
    generator: Generators | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Follows the probability-flow ODE, or a stochastic path, from sigmas[0] to sigmas[-1].

    Args:
        denoiser: Any callable (x, sigma) -> x0, x (B, ...), sigma (B,); it is never called at 0.
        x: (B, ...), already at noise level sigmas[0]: usually x0 + sigmas[0] eps.
        sigmas: (n + 1,) strictly descending noise levels; a final 0 is allowed.
        sampler: A name or a component of the registry.
        generator: The source of fresh noise, or one for each sample; stochastic samplers need one.
        callback: It is called before each step as `callback(i, sigma_i, x_i)`.
        progress: Whether a bar on standard error shows the progress.

    Returns:
        The samples at sigmas[-1], (B, ...), with the dtype and on the device of x.

    Raises:
        InputError: The levels do not descend, a level is negative or not finite, a stochastic
            sampler has no generator, a learned variance is wanted of a denoiser without one, or
            the first level stands for infinity (`noise_levels.TERMINAL`) and the sampler cannot
            step from there.
        UnknownName: No sampler has that name.
    """
    levels: list[float] = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    descending = all(a > b for a, b in pairwise(levels))
    if not levels or not descending or not levels[-1] >= 0 or levels[0] == float("inf"):
        raise InputError(f"sigmas must descend strictly to a level >= 0, got {_brief(levels)}.")
    if isinstance(sampler, str):
        sampler = default_registry().sampler(sampler)
    if not sampler.deterministic and generator is None:
        raise InputError(f"sampler {sampler.name!r} draws noise: give generator=torch.Generator().")
    if levels[0] >= TERMINAL and len(levels) > 1:
        _check_first_step(sampler, levels[:2], len(levels) - 1)
    denoise = StepDenoiser(denoiser, torch.promote_types(x.dtype, torch.float32))
    steps = list(pairwise(levels))
    step = sampler.signature("step").bound(sampler.options, steps=len(steps))
    history: list[Any] = []
    for i, (sigma, sigma_next) in enumerate(_tracked(steps, sampler.name) if progress else steps):
        if callback is not None:
            callback(i, sigma, x)
        x = step(denoise, x, sigma, sigma_next, generator, history)
    return x


def _check_first_step(sampler: Sampler, levels: Sequence[float], steps: int) -> None:
    """InputError where the first of `steps` steps does not take the noise away that it should."""
    sigma, sigma_next = levels
    start = torch.full((1, 256), sigma, dtype=torch.float64)
    step, generator = sampler.signature("step"), stream(0, "sampling/infinity")
    zero = StepDenoiser(lambda x, sigma: 0 * x, start.dtype)
    arguments: tuple[Any, ...] = (zero, start, sigma, sigma_next, generator, [])
    with contextlib.suppress(NoPosterior):
        left = step(*arguments, options=sampler.options, steps=steps).square().mean().sqrt()
        refused = refused_at_infinity(sampler, float(left), sigma_next)
        if refused:
            raise InputError(refused)


def _tracked(steps: list[tuple[float, float]], name: str) -> Iterable[tuple[float, float]]:
    """The steps, with a progress bar that counts them."""
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=name, console=Console(stderr=True))


def _brief(levels: list[float]) -> str:
    first = ", ".join(f"{level:g}" for level in levels[:4])
    return f"[{first}{', ...' if len(levels) > 4 else ''}] ({len(levels)} levels)"
