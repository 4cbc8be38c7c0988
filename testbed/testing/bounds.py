"""How rounding travels through a parameterization: bounds of its target, output and denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.tensors import per_sample
from testbed.testing.cases import Case
from testbed.testing.rounding import K, carried, roundoff


@dataclass(frozen=True)
class Rounding:
    """Bounds, float64 (B, ...), for a parameterization on one case.

    For an affine one the added terms are those of D = c_skip x + c_out F and F* = a x0 + b eps. A
    c_skip near 1 or 0 may come out of a subtraction: it is known to gamma_K (1 + |c_skip|). For
    another, the first-order effect of gamma on every input, sigma included, and on the result.
    """

    p: Parameterization
    case: Case

    @property
    def unit(self) -> float:
        """gamma_k in the dtype of the case."""
        return roundoff(self.case.dtype)

    @cached_property
    def coefficients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """|c_skip|, |c_out|, |a| and |b|, float64, shaped to multiply x0."""
        c, sd = self.case, self.case.sigma_data
        # Copies: a component that changes sigma in place must not change the case.
        found = self.p.coefficients(c.sigma.double().clone(), sigma_data=sd)
        weights = self.p.pair_weights(c.sigma.double().clone(), sigma_data=sd)
        skip, out, a, b = (per_sample(q, c.x0).abs() for q in (found.skip, found.out, *weights))
        return skip, out, a, b

    def _sigma(self) -> Tensor:
        return self.case.sigma.double().expand(self.case.x0.shape[:1]).clone()

    def target(self) -> Tensor:
        """Of F* = target(x0, eps, sigma)."""
        c, p = self.case, self.p
        if p.affine:
            skip, out, a, b = self.coefficients
            found = self.unit * (a * c.x0.double().abs() + b * c.eps.double().abs())
            if p.stated_target is None:
                found = found + gamma(K, torch.float64) * (1 + skip) / out * c.x_size
            return found
        inputs = c.x0.double(), c.eps.double(), self._sigma()

        def target(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
            return p.target(x0, eps, sigma, sigma_data=c.sigma_data)

        size = carried(target, inputs, [value.abs() for value in inputs])
        return self.unit * (size + target(*(v.clone() for v in inputs)).abs())

    def denoise(self, F: Tensor, dF: Tensor | float, dx: Tensor | float) -> Tensor:
        """Of D = denoise(F, x, sigma), where F and x are off by dF and dx."""
        c, p = self.case, self.p
        F, x = F.detach().double(), c.x.double()
        if p.affine:
            skip, out, _, _ = self.coefficients
            own = self.unit * (skip * x.abs() + out * F.abs())
            return out * dF + skip * dx + own + gamma(K, torch.float64) * x.abs()

        def denoise(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
            return p.denoise(F, x, sigma, sigma_data=c.sigma_data)

        inputs = F, x, self._sigma()
        errors = [self.unit * value.abs() for value in inputs]
        errors = [errors[0] + dF, errors[1] + dx, errors[2]]
        return (
            carried(denoise, inputs, errors)
            + self.unit * denoise(*(v.clone() for v in inputs)).abs()
        )

    def output(self, D: Tensor, dD: Tensor | float) -> Tensor:
        """Of F = output(D, x, sigma), where D is off by dD."""
        c, p = self.case, self.p
        D, x = D.detach().double(), c.x.double()
        if p.affine:
            skip, out, _, _ = self.coefficients
            own = self.unit * (D.abs() + skip * x.abs())
            return (dD + own + gamma(K, torch.float64) * x.abs()) / out

        def output(D: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
            return p.output(D, x, sigma, sigma_data=c.sigma_data)

        # x - D over sigma is formed before the target sees it.
        inputs = D, x, self._sigma()
        errors = [self.unit * value.abs() for value in inputs]
        errors = [errors[0] + dD, errors[1] + self.unit * c.x_size, errors[2]]
        return (
            carried(output, inputs, errors) + self.unit * output(*(v.clone() for v in inputs)).abs()
        )
