"""The one loop that every sampler shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from testbed.components.sampler import Sampler
from testbed.diffusion.ddpm import Normal, posterior_of
from testbed.errors import InputError
from testbed.registry import default_registry

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, float, Tensor], None]


class Asked:
    """A denoiser as a step calls it: `denoise(x, sigma)` with one float for the whole batch.

    Args:
        denoiser: (x, sigma) -> x0 with sigma (B,).
        dtype: of sigma.
    """

    def __init__(self, denoiser: Denoise, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D at the noise level sigma, (B, ...)."""
        each = torch.full(x.shape[:1], sigma, dtype=self.dtype, device=x.device)
        return self.denoiser(x, each)

    def posterior(self, x: Tensor, sigma: float, following: float) -> Normal:
        """Mean and variance of x at the level `following`, both (B, ...).

        Raises:
            NoPosterior: the denoiser has no `posterior(x, sigma, following)`.
        """
        return posterior_of(self.denoiser)(x, sigma, following)


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
        denoiser: any callable (x, sigma) -> x0, x (B, ...), sigma (B,); never called at 0.
        x: (B, ...), already at noise level sigmas[0]: usually x0 + sigmas[0] eps.
        sigmas: (n + 1,) strictly descending levels; a final 0 is allowed.
        sampler: a name or a component of the registry.
        generator: the source of fresh noise; stochastic samplers need one.
        callback: called before each step as `callback(i, sigma_i, x_i)`.
        progress: show a bar on standard error.

    Returns:
        (B, ...) at sigmas[-1], dtype and device of x.

    Raises:
        InputError: levels that do not descend, a level that is negative or not finite, a stochastic
            sampler without a generator, or a learned variance of a denoiser that has none.
        UnknownName: no sampler of that name.
    """
    levels = [float(s) for s in torch.as_tensor(sigmas, dtype=torch.float64)]
    descending = all(a > b for a, b in pairwise(levels))
    if not levels or not descending or not levels[-1] >= 0 or levels[0] == float("inf"):
        raise InputError(f"sigmas must descend strictly to a level >= 0, got {_brief(levels)}.")
    chosen = default_registry().sampler(sampler) if isinstance(sampler, str) else sampler
    if not chosen.deterministic and generator is None:
        raise InputError(f"sampler {chosen.name!r} draws noise: give generator=torch.Generator().")
    wide = torch.promote_types(x.dtype, torch.float32)

    denoise = Asked(denoiser, wide)
    step = chosen.signature("step")
    history: list[Any] = []
    pairs = list(pairwise(levels))
    for i, (sigma, following) in enumerate(_shown(pairs, chosen.name) if progress else pairs):
        if callback is not None:
            callback(i, sigma, x)
        given = (denoise, x, sigma, following, generator, history)
        x = step(*given, options=chosen.options, steps=len(pairs))
    return x


def _shown(steps: list[tuple[float, float]], name: str) -> Iterable[tuple[float, float]]:
    """The steps, behind a bar that counts them."""
    from rich.console import Console
    from rich.progress import track

    return track(steps, description=name, console=Console(stderr=True))


def _brief(levels: list[float]) -> str:
    shown = ", ".join(f"{level:g}" for level in levels[:4])
    return f"[{shown}{', ...' if len(levels) > 4 else ''}] ({len(levels)} levels)"
