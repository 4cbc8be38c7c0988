"""How far an error in x, x0 or eps moves a denoiser: the slopes of its last step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from testbed.diffusion.parameterization import Parameterization


class Reach(NamedTuple):
    """|dD/dx|, |dD/dx0| and |dD/deps| of a denoiser's last step, at fixed others; (B, 1, ...).

    An error of size e in a part moves D by the part's slope times e, to first order.
    """

    x: Tensor
    x0: Tensor
    eps: Tensor


def pushed(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, x: Tensor, sigma: Tensor
) -> tuple[Tensor, Reach]:
    """denoise(target(x0, eps), x) and its slopes, by autograd: |c_skip|, |c_out a|, |c_out b|."""
    parts = [part.detach().requires_grad_() for part in (x, x0, eps)]
    with torch.enable_grad():
        F = p.target(parts[1], parts[2], sigma, sigma_data=sigma_data)
        through = p.denoise(F, parts[0], sigma, sigma_data=sigma_data)
        if not through.requires_grad:
            zero = torch.zeros_like(through)
            return through, Reach(zero, zero, zero)
        found = torch.autograd.grad(through.sum(), parts, allow_unused=True)
    slopes = (
        torch.zeros_like(part) if slope is None else slope.abs()
        for part, slope in zip(parts, found, strict=True)
    )
    return through.detach(), Reach(*slopes)
