"""A device without hardware: what belongs on it is on `meta`, and nothing else may meet it there.

`meta` has shapes and no values. Alone it misses much: a product with a matrix on the CPU, an
index or an embedding on the CPU pass. Under `OneDevice` any operation whose tensors lie on two
devices fails; a number without dimensions on the CPU is one of Python's, and a copy is explicit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OneDevice(TorchDispatchMode):
    """Fails on an operation whose tensors lie on more than one device; counts those on `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.on_meta = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        given = tree_leaves((arguments, keywords or {}))
        devices = {
            one.device.type
            for one in given
            if isinstance(one, Tensor) and not (one.ndim == 0 and one.device.type == "cpu")
        }
        self.on_meta += "meta" in devices
        if len(devices) > 1 and function not in COPIES:
            raise AssertionError(f"{function} is given tensors on {' and '.join(sorted(devices))}")
        return function(*arguments, **(keywords or {}))
