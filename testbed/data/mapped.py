"""Samples that stay on disk: a tensor whose rows are read and converted when they are indexed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from testbed.data import decoded
from testbed.data.readers.base import Rows

aten = torch.ops.aten


class Mapped(Tensor):
    """Samples (N, *shape) float32 of which only those are in memory that are being used.

    It is a tensor to whoever uses it. `x[rows]`, `x[3]`, `x[3:5]` and `x.index_select(0, rows)`
    read and convert these rows; any other operation reads all of them, and gives what it would give
    of the same numbers in memory. Moved to another device it stays on disk, and the rows that are
    indexed are sent there.

    Args:
        source: the rows on disk, (M, ...) of any numbers.
        convert: samples (n, *shape) float32 of such rows.
        shape: that of a sample.
        order: (N,) int64, the rows of the source that the samples are, in their order.
        device: where indexed rows are sent.
    """

    source: Rows
    convert: Callable[[NDArray[Any]], Tensor]
    order: NDArray[np.int64]

    @staticmethod
    def __new__(
        cls,
        source: Rows,
        convert: Callable[[NDArray[Any]], Tensor],
        shape: Sequence[int],
        order: NDArray[np.int64],
        device: torch.device | str = "cpu",
    ) -> Mapped:
        """A tensor without a storage of its own."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, (len(order), *shape), dtype=torch.float32, device=torch.device(device)
        )
        made.source, made.convert, made.order = source, convert, order
        return made

    def rows(self, which: NDArray[np.int64]) -> Tensor:
        """The samples of these numbers (n,), read, converted and sent to the device."""
        return self.convert(np.asarray(self.source[self.order[which]])).to(self.device)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        """All samples, in memory."""
        return self[:].numpy(force=force)

    def tolist(self) -> Any:
        """All samples, as lists."""
        return self[:].tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Rows where rows alone are asked for, else the operation on all of them."""
        kwargs = dict(kwargs or {})
        found = _rows(func, args)
        if found is not None:
            return found
        if func is aten._to_copy.default and kwargs.get("dtype", torch.float32) is torch.float32:
            x: Mapped = args[0]
            device = kwargs.get("device") or x.device
            return cls(x.source, x.convert, x.shape[1:], x.order, device)
        args, kwargs = tree_map(_whole, (args, kwargs))
        return func(*args, **kwargs)


def _whole(value: Any) -> Any:
    return value.rows(np.arange(len(value))) if isinstance(value, Mapped) else value


def _rows(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """What an indexing of the rows of samples on disk gives; None for any other operation."""
    x, *of = args or (None,)
    if not isinstance(x, Mapped):
        return None
    if func is aten.index.Tensor:
        (index,) = of
        if len(index) > 1 or index[0] is None or index[0].dtype == torch.bool:
            return None
        found = x.rows(index[0].cpu().numpy().reshape(-1))
        return found.reshape(*index[0].shape, *x.shape[1:])
    if func is aten.index_select.default and of[0] == 0:
        return x.rows(of[1].cpu().numpy())
    if func is aten.select.int and of[0] == 0:
        return x.rows(np.array([of[1]]))[0]
    if func is aten.slice.Tensor and (not of or of[0] == 0):
        start, stop, step = [*of[1:], None, None, None][:3]
        return x.rows(np.arange(len(x))[start:stop:step])
    return None


def stays(count: int, shape: Sequence[int]) -> bool:
    """Whether this many samples of a shape stay on disk."""
    return 4 * count * math.prod(shape) > decoded.IN_MEMORY
