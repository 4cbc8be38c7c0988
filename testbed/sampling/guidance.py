"""Guidance: a denoiser bent towards a condition, which is a denoiser (x, sigma) -> D again.

    classifier-free   D_w = D_n + sum_i w_i (D_i - D_n)
    classifier        D_l = D + l sigma^2 grad_x log p(y|x)

D_i is the denoiser under condition i and D_n the one under the negative condition, which is nothing
by default. Every prediction type q = a x0 + b eps is affine in D at fixed x, with coefficients that
do not depend on the condition, so the same w holds in all of them, and grad_x log p(y|x) = g enters
by dq/dD (`predictions.slope`):

    eps_l = eps - l sigma g,                      score_l = score + l g,
    v_l = v - l sigma sqrt(1 + sigma^2) g,        flow_l = flow - l sigma (1 + sigma) g,
    F_l = F + l sigma^2 g/c_out.

For exact parts sigma^2 grad_x log p(y|x) = D_y - D (Bayes' rule and Tweedie), so the two are one
with l = w where D is the unconditional denoiser.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.base import Sigma
from testbed.components.guidance import Condition, Conditional, Denoise, LogClasses
from testbed.diffusion.ddpm import Normal, posterior_of
from testbed.tensors import per_sample
from testbed.training.conditions import OFF


@dataclass(frozen=True)
class ConditionedDenoiser:
    """A denoiser under one condition, D_y.

    Args:
        denoiser: (x, sigma, condition) -> D.
        condition: The condition of the samples; None switches all conditions off.
    """

    denoiser: Conditional
    condition: Condition | None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns D_y at x (B, ...) and sigma (B,), shaped like x and of its dtype."""
        return self.denoiser(x, sigma, self.condition)

    def posterior(self, x: Tensor, sigma: Sigma, sigma_next: Sigma) -> Normal:
        """The mean and the variance of x at the level `sigma_next`, both (B, ...).

        Raises:
            NoPosterior: The denoiser learns no variance.
        """
        return posterior_of(self.denoiser)(x, sigma, sigma_next, self.condition)


EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True)
class ClassifierFree:
    """D_w = D_n + sum_i w_i (D_i - D_n) = (1 - sum_i w_i) D_n + sum_i w_i D_i.

    One condition with w = 1 is D_i itself, and with w = 0 D_n, to the last bit: a denoiser of
    weight zero is not called. Several conditions are composed. All of them are one call of the
    denoiser, with a batch of that many times the samples.

    Args:
        denoiser: (x, sigma, condition) -> D; a condition of None switches all conditions off.
        terms: Each condition with its scale w.
        negative: The condition of D_n.
        interval: The noise levels (low, high] that are guided; every w is 1 at the others.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, whose scale is w - 1; several conditions:
    the conjunction of Liu et al. 2022, arXiv:2206.01714; the interval: Kynkaanniemi et al. 2024,
    arXiv:2404.07724, eqs. 5 and 6.
    """

    denoiser: Conditional
    terms: Sequence[tuple[Condition | None, float]]
    negative: Condition | None = None
    interval: tuple[float, float] = EVERYWHERE

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns D_w at x (B, ...) and sigma, (B,) or a scalar, shaped like x and of its dtype."""
        scales = [w for _, w in self.terms]
        if self.interval == EVERYWHERE:
            return self._weighted(x, sigma, scales)
        low, high = self.interval
        guided = (low < sigma) & (sigma <= high)
        if bool(guided.all()):
            return self._weighted(x, sigma, scales)
        D = self._weighted(x, sigma, [1.0] * len(scales))
        if not bool(guided.any()):
            return D
        inside = guided.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(inside, self._weighted(x, sigma, scales), D)

    def _weighted(self, x: Tensor, sigma: Tensor, scales: Sequence[float]) -> Tensor:
        """(1 - sum_i w_i) D_n + sum_i w_i D_i."""
        conditions = [self.negative, *(condition for condition, _ in self.terms)]
        weights = [1 - sum(scales), *scales]
        used = [(c, w) for c, w in zip(conditions, weights, strict=True) if w != 0]
        n = len(used)
        together = joined([condition for condition, _ in used], len(x), x.device)
        D = self.denoiser(
            torch.cat([x] * n), sigma.repeat(n) if sigma.ndim else sigma, together
        ).chunk(n)
        return functools.reduce(
            operator.add, (w * one for one, (_, w) in zip(D, used, strict=True))
        )


def joined(
    conditions: Sequence[Condition | None], samples: int, device: torch.device
) -> Condition | None:
    """The conditions of several batches of that many samples as that of one batch, in their order.

    A condition that one of them has is switched off for the others; None where none has any.
    """
    if len(conditions) == 1:
        return conditions[0]
    names = dict.fromkeys(name for one in conditions for name in one or ())
    off = torch.full((samples,), OFF, device=device)
    return {
        name: torch.cat([(one or {}).get(name, off).expand(samples) for one in conditions])
        for name in names
    } or None


@dataclass(frozen=True)
class ClassifierGuided:
    """D_l = D + l sigma^2 grad_x log p(y|x).

    Args:
        denoiser: (x, sigma) -> D.
        log_classes: (x, sigma) -> (B, C) nats, log p(y|x) of a noisy x up to a constant per row
            that does not depend on x.
        y: The classes, (B,) int64; a sample of class -1 is not guided.
        scale: The guidance scale l.

    Source: Dhariwal and Nichol 2021, arXiv:2105.05233, eq. 14, with sigma for sqrt(1 - abar).
    """

    denoiser: Denoise
    log_classes: LogClasses
    y: Tensor
    scale: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns D_l at x (B, ...) and sigma (B,), shaped like x and of its dtype."""
        D = self.denoiser(x, sigma)
        if self.scale == 0:
            return D
        s = per_sample(sigma, x).to(x.dtype)
        return D + self.scale * s**2 * class_gradient(self.log_classes, x, sigma, self.y)


def class_gradient(log_classes: LogClasses, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """Returns grad_x log p(y|x) by autograd, (B, ...) like x; 0 for the samples with y = -1."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p_y = log_classes(x, sigma).gather(1, y.clamp(min=0)[:, None])[:, 0]
        (g,) = torch.autograd.grad(log_p_y.sum(), x)
    return torch.where((y >= 0).reshape(-1, *[1] * (x.ndim - 1)), g, 0.0)
