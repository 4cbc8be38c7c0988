"""L_vlb of a learned variance: the terms of the evidence lower bound, from the side of F.

With log variance = log beta~ + v delta, delta = log(beta/beta~) and v = (nu + 1)/2, the terms of
Nichol and Dhariwal 2021 (arXiv:2102.09672, eqs. 5 and 6) are, per dimension and in nats,

    L_t = [v delta + exp(-v delta) (1 + g |D - x0|^2) - 1]/2,   g = 1/sigma'^2 - 1/sigma^2,
    L_0 = [v delta + exp(-v delta) |D - x0|^2/beta~]/2 + const,

sigma' the level before sigma. The constant, log(2 pi beta~)/2, has no gradient and is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from testbed.diffusion.ddpm import Chain, extremes, small
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError
from testbed.tensors import per_sample


class VariationalTerms(NamedTuple):
    """The coefficients of L_t at each level, (n,) each; |D - x0|^2 = c_out^2 |F - F*|^2."""

    delta: Tensor
    """log(beta/beta~)"""
    w: Tensor
    """g c_out^2, and at t = 0 c_out^2/beta~"""
    one: Tensor
    """the 1 in the brackets of L_t: 1, and at t = 0 nothing"""
    a: Tensor
    b: Tensor
    """F* = a x0 + b eps"""


class Variational:
    """n E_t[L_t] for a network whose nu is learned, its mean held fixed.

    Args:
        parameterization: an affine parameterization.
        sigmas: (n,) ascending, the noise levels of training, each with equal mass.
        sigma_data: sqrt(E|x0|^2 / d), as for the denoiser.

    Raises:
        InputError: fewer than two levels, or a non-affine parameterization.
    """

    def __init__(
        self, parameterization: Parameterization, sigmas: Tensor, sigma_data: float
    ) -> None:
        if not parameterization.affine:
            raise InputError(
                f"{parameterization.label} is not affine: its variance is not learned."
            )
        chain = Chain(sigmas)
        s, before = chain.sigmas, chain.before
        low, high = extremes(s, before, chain.after)
        out = parameterization.coefficients(s, sigma_data=sigma_data).out
        q = before / s
        # (1 - q^2)^2/beta~ = g; beta~ = sigma'^2 (1 - q^2).
        g = torch.where(before > 0, ((1 - q) * (1 + q)) ** 2 / small(s, before), 1 / low)
        a, b = parameterization.pair_weights(s, sigma_data=sigma_data)
        terms = VariationalTerms(torch.log(high / low), g * out**2, (before > 0).double(), a, b)
        self.terms = torch.stack(terms, dim=1).float()
        self.middles = (s[1:] + s[:-1]) / 2

    def __call__(self, F: Tensor, nu: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """n L_t per sample, mean over dimensions, in nats, (B,); F is used without its gradient.

        Args:
            F, nu: (B, ...) the two halves of the output at x = x0 + sigma eps.
            x0, eps: (B, ...) clean data and unit noise.
            sigma: (B,) levels of the chain.
        """
        if self.terms.device != F.device:
            self.terms, self.middles = self.terms.to(F.device), self.middles.to(F.device)
        t = torch.bucketize(sigma.double().contiguous(), self.middles)
        delta, w, one, a, b = (per_sample(c, F).to(F.dtype) for c in self.terms[t].unbind(1))
        r = (F.detach() - (a * x0 + b * eps)) ** 2
        y = delta * (nu + 1) / 2
        # expm1 keeps the digits: at the optimum the terms are small differences.
        term = y + one * torch.expm1(-y) + torch.exp(-y) * w * r
        return len(self.terms) * (term / 2).flatten(1).mean(1)
