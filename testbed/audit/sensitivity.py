"""The sensitivity of a denoiser's last step to an error in x, x0 or eps, to first order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from testbed.diffusion.parameterization import Parameterization


class Sensitivity(NamedTuple):
    """|dD/dx|, |dD/dx0| and |dD/deps| of a denoiser's last step, the others fixed; (B, 1, ...).

    An error of size e in one of them moves D by its slope times e, to first order.
    """

    x: Tensor
    x0: Tensor
    eps: Tensor


def denoise_pair(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, x: Tensor, sigma: Tensor
) -> tuple[Tensor, Sensitivity]:
    """Returns denoise(target(x0, eps), x) and its slopes |c_skip|, |c_out a| and |c_out b|.

    The slopes are taken by autograd, so that they hold for parameterizations that are not affine.
    """
    variables = [variable.detach().requires_grad_() for variable in (x, x0, eps)]
    with torch.enable_grad():
        F = p.target(variables[1], variables[2], sigma, sigma_data=sigma_data)
        D = p.denoise(F, variables[0], sigma, sigma_data=sigma_data)
        if not D.requires_grad:
            zero = torch.zeros_like(D)
            return D, Sensitivity(zero, zero, zero)
        slopes = torch.autograd.grad(D.sum(), variables, allow_unused=True, materialize_grads=True)
    return D.detach(), Sensitivity(*(slope.abs() for slope in slopes))
