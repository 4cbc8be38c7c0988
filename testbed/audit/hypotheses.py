"""The mistakes that a diagnosis looks for in a denoiser: in its state, noise level and output."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from testbed.diffusion.predictions import PREDICTION_TYPES

Function = Callable[[Tensor], Tensor]


def alpha(sigma: Tensor) -> Tensor:
    """Returns the VP schedule's alpha = 1/sqrt(1 + sigma^2)."""
    return 1 / torch.sqrt(1 + sigma**2)


STATES: dict[str, Function] = {
    "": torch.ones_like,
    "the state is multiplied by alpha = 1/sqrt(1 + sigma^2) once too often": alpha,
    "the state is divided by alpha = 1/sqrt(1 + sigma^2) once too often": lambda s: 1 / alpha(s),
    "the state is multiplied by 1/(1 + sigma) once too often": lambda s: 1 / (1 + s),
    "the state is multiplied by 1 + sigma once too often": lambda s: 1 + s,
    "the state is multiplied by abar for sqrt(abar)": lambda s: alpha(s) ** 2,
    "the state is divided by abar for sqrt(abar)": lambda s: 1 / alpha(s) ** 2,
    "the state is divided by s for alpha": lambda s: 1 / s,
}
NOISE_LEVELS: dict[str, Function] = {
    "": lambda s: s,
    "the noise level is taken as sigma^2": lambda s: s**2,
    "the noise level is taken as sqrt(sigma)": torch.sqrt,
    "the noise level is taken as 1/sigma: the direction of time is turned": lambda s: 1 / s,
    "the noise level is taken as s = sigma/sqrt(1 + sigma^2), that of VP coordinates": (
        lambda s: s * alpha(s)
    ),
    "the noise level is taken as t = sigma/(1 + sigma), the flow's time": lambda s: s / (1 + s),
    "the noise level is taken as the flow's sigma of t = sigma": lambda s: s / (1 - s).abs(),
    "the noise level is taken as sigma^4: log(sigma) read for log(sigma)/4": lambda s: s**4,
    "the noise level is taken as sigma^(1/4): log(sigma)/4 read for log(sigma)": lambda s: s**0.25,
    "the noise level is taken as sigma^0.434: log10(sigma) read for log(sigma)": (
        lambda s: s ** (1 / math.log(10))
    ),
    "the noise level is taken as sigma^2.303: log(sigma) read for log10(sigma)": (
        lambda s: s ** math.log(10)
    ),
    "the noise level is taken as twice sigma": lambda s: 2 * s,
    "the noise level is taken as half sigma": lambda s: s / 2,
    "the noise level of the batch's first sample is used for all": lambda s: s[:1].expand_as(s),
    "the noise level of the batch's last sample is used for all": lambda s: s[-1:].expand_as(s),
    "the mean noise level of the batch is used for all": lambda s: s.mean().expand_as(s),
    "the noise levels of the batch are in reverse order": lambda s: s.flip(0),
}
C_NOISES: dict[str, Function] = {
    "sigma": lambda s: s,
    "sigma^2": lambda s: s**2,
    "1/sigma": lambda s: 1 / s,
    "1000 sigma": lambda s: 1000 * s,
    "log(sigma)": torch.log,
    "log(sigma)/4": lambda s: torch.log(s) / 4,
    "log(sigma)/2": lambda s: torch.log(s) / 2,
    "-log(sigma)": lambda s: -torch.log(s),
    "-log(sigma)/4": lambda s: -torch.log(s) / 4,
    "1000 log(sigma)/4": lambda s: 250 * torch.log(s),
    "log10(sigma)": torch.log10,
    "log2(sigma)": torch.log2,
    "log(sigma)/4 of the batch's first sample": lambda s: (torch.log(s) / 4)[:1].expand_as(s),
    "sigma of the batch's first sample": lambda s: s[:1].expand_as(s),
    "s = sigma/sqrt(1 + sigma^2)": lambda s: s * alpha(s),
    "alpha = 1/sqrt(1 + sigma^2)": alpha,
    "the flow's time sigma/(1 + sigma)": lambda s: s / (1 + s),
    "1/(1 + sigma)": lambda s: 1 / (1 + s),
    "the angle arctan(sigma)": torch.atan,
    "the cosine schedule's time 2/pi arctan(sigma)": lambda s: 2 / math.pi * torch.atan(s),
    "0": torch.zeros_like,
}
"""What a wrapper may give its network for a noise level."""
# The weights (a, b) of the output, as functions of sigma: prediction types and usual confusions.
PAIRS: dict[str, tuple[Function, Function]] = {
    **{f"the {name}": (kind.a, kind.b) for name, kind in PREDICTION_TYPES.items()},
    "the score of x_t in VP coordinates, -eps/s (1/alpha times the score of x)": (
        torch.zeros_like,
        lambda s: -1 / (s * alpha(s)),
    ),
    "alpha times the score of x": (torch.zeros_like, lambda s: -alpha(s) / s),
    "the noise sigma eps": (torch.zeros_like, lambda s: s),
    "the noise s eps of VP coordinates": (torch.zeros_like, lambda s: s * alpha(s)),
    "the score without 1/sigma^2, D - x": (torch.zeros_like, lambda s: -s),
    "the score with 1/sigma^3, eps over sigma^2": (torch.zeros_like, lambda s: -1 / s**2),
    "x + sigma eps, that is 2 x - D": (torch.ones_like, lambda s: 2 * s),
    "v with alpha and s exchanged": (lambda s: -alpha(s), lambda s: s * alpha(s)),
    "v with a plus, alpha eps + s x0": (lambda s: s * alpha(s), alpha),
    "eps + x0": (torch.ones_like, torch.ones_like),
    "the state x": (torch.ones_like, lambda s: s),
    "alpha x0": (alpha, torch.zeros_like),
    "x0/alpha": (lambda s: 1 / alpha(s), torch.zeros_like),
    "s x0": (lambda s: s * alpha(s), torch.zeros_like),
    "(1 + sigma) x0": (lambda s: 1 + s, torch.zeros_like),
    "x0/(1 + sigma)": (lambda s: 1 / (1 + s), torch.zeros_like),
    "alpha eps": (torch.zeros_like, alpha),
    "nothing (zeros)": (torch.zeros_like, torch.zeros_like),
}


def misread(table: Tensor | None) -> dict[str, Function]:
    """Returns the misreadings of an index into a table of noise levels, by their description."""
    if table is None:
        return {}
    table = table.double()
    abar = 1 / (1 + table**2)
    alphas = torch.cat([abar[:1], abar[1:] / abar[:-1]])

    def at(values: Tensor, step: int = 0) -> Function:
        def level(s: Tensor) -> Tensor:
            index = (s[:, None] - table).abs().argmin(1) + step
            return values[index.clamp(0, len(table) - 1)]

        return level

    return {
        "the index is one too low": at(table, -1),
        "the index is one too high": at(table, 1),
        "the table is read from its other end": at(table.flip(0)),
        "alpha of the step is taken for its cumulative product": at(torch.sqrt(1 / alphas - 1)),
    }
