"""Comparing with bounds that follow from rounding, and how errors travel through a function.

A bound is gamma_k = k u/(1 - k u) times the sum of the absolute values of the added terms, k the
number of roundings on the longest path from an input to the result (Higham 2002, sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.testing.failures import CheckFailed

K = 32
"""Roundings allowed to a formula of a component, computed in float64."""

NARROW = {torch.float64: K, torch.float32: 16, torch.bfloat16: 5}
"""Roundings in the dtype itself: all of them in float32 and wider; in bfloat16 only those of x, F
and D, for the arithmetic between is float32."""


def roundoff(dtype: torch.dtype) -> float:
    """gamma_k of a component's arithmetic on tensors of `dtype`."""
    return gamma(NARROW[dtype], dtype)


def name_of(dtype: torch.dtype) -> str:
    """`float64` for torch.float64."""
    return str(dtype).removeprefix("torch.")


class Worst:
    """The largest error over its bound, and where; raises at the first that exceeds it.

    With `same`, of one computation done in two ways, a number that is the same NaN or infinity in
    both is no error: that it is not finite is another law's matter.
    """

    def __init__(self, same: bool = False) -> None:
        self.same = same
        self.ratio = 0.0
        self.where = ""

    def compare(
        self,
        what: str,
        found: Tensor,
        wanted: Tensor,
        bound: Tensor | float,
        sigma: Tensor | None = None,
        **where: object,
    ) -> None:
        """|found - wanted| <= bound for every element.

        A shape that differs, nothing to compare, and NaN fail. `sigma` (B,) and `where`
        (sigma_data, dtype) go into the message.
        """
        if found.shape != wanted.shape:
            raise CheckFailed(
                f"{what}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}."
            )
        if found.numel() == 0:
            raise CheckFailed(f"{what}: nothing was compared.")
        a, b = found.detach().double(), wanted.detach().double()
        error = (a - b).abs()
        limit = torch.as_tensor(bound).detach().double().expand_as(error)
        ratio = torch.where(error == 0, 0.0, error / limit).nan_to_num(nan=float("inf"))
        if self.same:
            alike = (a == b) | (a.isnan() & b.isnan())
            ratio = torch.where(alike & ~a.isfinite(), 0.0, ratio)
        at = int(ratio.argmax())
        worst = float(ratio.flatten()[at])
        here = ", ".join(f"{name} = {_shown(value)}" for name, value in where.items())
        if sigma is not None:
            level = sigma.expand(a.shape[:1]) if sigma.ndim == 0 else sigma
            row = at // max(1, error[0].numel())
            here = f"sigma = {float(level[row]):.4g}" + (f", {here}" if here else "")
        if not worst <= 1:
            raise CheckFailed(
                f"{what}: error {float(error.flatten()[at]):.3g} is {worst:.3g} times its bound "
                f"{float(limit.flatten()[at]):.3g} (got {float(a.flatten()[at]):.6g}, expected "
                f"{float(b.flatten()[at]):.6g}){_factor(a, b)}{f' at {here}' if here else ''}."
            )
        if worst >= self.ratio:
            self.ratio, self.where = worst, here

    def __str__(self) -> str:
        return f"error at most {self.ratio:.2g} of its bound"


def _factor(found: Tensor, wanted: Tensor) -> str:
    """` (= -1 times)` where every number found is the same multiple of what was wanted."""
    if found.numel() < 2 or not bool((wanted != 0).all()):
        return ""
    ratio = (found / wanted).flatten()
    factor = ratio.median()
    held = bool(((ratio - factor).abs() <= 1e-6 * factor.abs()).all()) and float(factor) != 0
    return f" (= {float(factor):.6g} times)" if held and abs(float(factor) - 1) > 1e-5 else ""


def _shown(value: object) -> str:
    if isinstance(value, torch.dtype):
        return name_of(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Function = Callable[..., Tensor]


def carried(function: Function, inputs: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
    """sum_i |d function/d i| error_i: what small errors of the inputs do to the value, float64.

    Slopes by central differences, one coordinate of every sample at a time, since the function may
    hide its gradient; all differences in one batch. inputs, errors: (B, ...) or (B,), float64; the
    function maps them to (B, ...) sample by sample.
    """
    flat = [value.flatten(1) if value.ndim > 1 else value[:, None] for value in inputs]
    wrong = [error.reshape(one.shape) for error, one in zip(errors, flat, strict=True)]
    steps = [2.0**-17 * torch.maximum(one.abs(), e) for one, e in zip(flat, wrong, strict=True)]
    widths, sizes = (torch.cat([one.mT for one in each]) for each in (steps, wrong))
    n, batch = widths.shape
    moved = []
    for k, (value, one) in enumerate(zip(inputs, flat, strict=True)):
        # (n, B, d): the step of one coordinate each, 0 where it is one of another input.
        step = one.new_zeros(n, *one.shape)
        start = sum(h.shape[1] for h in steps[:k])
        step[start : start + one.shape[1]] = torch.diag_embed(steps[k]).movedim(1, 0)
        moved.append(torch.stack([one + step, one - step]).reshape(-1, *value.shape[1:]))
    ends = function(*moved)
    up, down = ends.reshape(2, n, batch, *ends.shape[1:])
    widths, sizes = (each.reshape(n, batch, *[1] * (up.ndim - 2)) for each in (widths, sizes))
    slopes = (up - down).abs() / (2 * widths)
    return torch.where((widths > 0) & (sizes > 0), slopes * sizes, 0.0).sum(0)
