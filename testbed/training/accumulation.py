"""The gradient of a step's loss, of the whole batch at once or of its parts one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from testbed.training.parallel import ProcessGroup


def part(inputs: Any, i: int, parts: int, dim: int) -> Any:
    """Part i of all tensors in nested tuples and mappings, cut along `dim` into equal parts."""

    def cut(value: Any) -> Any:
        return value.chunk(parts, dim)[i] if isinstance(value, Tensor) else value

    return tree_map(cut, inputs)


def accumulated(
    per_draw: Callable[..., Tensor],
    inputs: tuple[Any, ...],
    parameters: Sequence[Tensor],
    parts: int = 1,
    dim: int = 0,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The loss of each draw, and the gradient of its mean over the batch, added up over trials.

    The mean over the batch is that of its equal parts, and so is the gradient: it differs from that
    of the whole by the rounding of other sums. Activations are kept of one part at a time.

    Args:
        per_draw: called with `inputs`; returns (B,) or, with `dim` 1, (K, B).
        inputs: nested tuples and mappings of tensors, whose dimension `dim` is the batch.
        parameters: what the gradient is of.
        parts: a divisor of B.
        dim: the dimension of the batch.
        process_group: the processes that have a part of the batch each.
    """
    over = 1
    if process_group is not None:
        inputs, over = part(inputs, process_group.rank, process_group.size, dim), process_group.size
    values: list[Tensor] = []
    total: Sequence[Tensor] = ()
    for i in range(parts):
        value = per_draw(*(inputs if parts == 1 else part(inputs, i, parts, dim)))
        mean = value.mean(dim).sum() / (parts * over)
        found = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
        total = found if i == 0 else [a + b for a, b in zip(total, found, strict=True)]
        values.append(value.detach())
    whole = values[0] if parts == 1 else torch.cat(values, dim)
    if process_group is not None:
        return process_group.gathered(whole, dim), process_group.summed(total)
    return whole, total
