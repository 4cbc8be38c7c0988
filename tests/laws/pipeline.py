"""Laws of inpainting: a denoiser that has been told a part of the image."""

import math
from collections.abc import Callable
from typing import Any

import torch
from helpers.bounds import gamma
from helpers.strategies import draws
from torch import Tensor

import testbed
from testbed.components.guidance import Denoise
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.random import stream

Told = Callable[[Denoise, Tensor, Tensor], Denoise]
"""(denoiser, x0, known) -> the denoiser that keeps the known region."""
STEPS, TOP = 8, 20.0


def softly(x: Tensor, sigma: Tensor) -> Tensor:
    """A D that is not linear, elementwise."""
    return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1).to(x.dtype)))


def law_keeps_what_is_known(told: Told, sampler: testbed.Sampler) -> None:
    """The known region is x0 + sigma_i n_i on the path, n_i of unit size, and x0 at its end.

    Without fresh noise n_i is the noise at the start, to the roundings of the steps. The rest is
    drawn as if nothing were known, where D is elementwise; a half known pixel lies in between.
    """
    shape = (64, 3, 4, 4)
    x0, eps = draws(shape, 1, torch.float64), draws(shape, 2, torch.float64)
    known = torch.zeros(shape[1:], dtype=torch.float64)
    known[..., :2] = 1
    sigmas = karras_sigmas(STEPS, 0.05, TOP)
    path: list[tuple[float, Tensor]] = []

    def run(denoise: Denoise, seen: Any = None) -> Tensor:
        generator = stream(0, "known")
        x = x0 + TOP * eps
        return testbed.sample(denoise, x, sigmas, sampler, generator, callback=seen)

    given = told(softly, x0, known.expand(shape))
    found = run(given, lambda i, sigma, x: path.append((sigma, x)))
    inside = known.expand(shape) == 1
    # Four operations a step, on numbers as large as x at the start.
    size = gamma(8 * STEPS, torch.float64) * float((x0.abs() + TOP * eps.abs()).max())
    assert float((found - x0)[inside].abs().max()) <= size
    n = int(inside.sum())
    for sigma, x in path:
        noise = ((x - x0) / sigma)[inside]
        if sampler.deterministic:
            assert float((noise - eps[inside]).abs().max()) <= size / sigma
        # The mean square of n unit normals is 1 within five standard errors, sqrt(2/n).
        assert abs(float(noise.square().mean()) - 1) <= 5 * math.sqrt(2 / n)
    assert torch.equal(found[~inside], run(softly)[~inside])
    x, sigma = x0 + eps, torch.ones(len(x0), dtype=torch.float64)
    half = told(softly, x0, torch.full(shape, 0.5, dtype=torch.float64))(x, sigma)
    middle = (x0 + softly(x, sigma)) / 2
    assert float((half - middle).abs().max()) <= gamma(4) * float(x0.abs().max() + 1)
