"""The operations of a step, written down as they run below autograd and torch.func.

`torch.fx.experimental.proxy_tensor.make_fx` writes down the same, and imports Dynamo and Inductor
for it: as long as torch itself takes, in each process that trains.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

SHAPE = "shape"
"""Of a node's result, in the node's `meta`."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A graph of what runs meanwhile; a tensor from elsewhere is a constant of its module."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.module = fx.Graph(), nn.Module()
        self._nodes: Any = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: Dynamo would be imported to be told to look away."""
        return False

    def argument(self, tensor: Any) -> Any:
        """Makes a tensor the next input of the graph; returns it."""
        self._name(tensor, self.graph.placeholder(f"arg{len(self.graph.nodes)}"))
        return tensor

    def node(self, value: Any) -> Any:
        """What stands in the graph for a value: the node of a tensor, anything else itself."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            name = f"constant{len(self.graph.nodes)}"
            self.module.register_buffer(name, value.detach())
            self._name(value, self.graph.get_attr(name))
        return self._nodes[value]

    def _name(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self._nodes[value] = node
            node.meta[SHAPE] = value.shape
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value):
                if isinstance(part, Tensor):
                    self._name(part, self.graph.call_function(operator.getitem, (node, i)))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and writes it down.

        Raises:
            RuntimeError: it takes a number out of a tensor, which may be another in the next step.
        """
        arguments, named = map_aggregate((args, kwargs or {}), self.node)
        if torch.Tag.data_dependent_output in func.tags and any(
            isinstance(one, fx.Node) and one.op != "get_attr" for one in arguments
        ):
            raise RuntimeError(f"{func} takes a number out of a tensor that is traced.")
        # Of a constant, what is fresh is a copy: the next operation may change it in place.
        what = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        found = func(*args, **(kwargs or {}))
        self._name(found, self.graph.call_function(what, arguments, named))
        return found


def traced(step: Callable[..., Any], *arguments: Any) -> fx.GraphModule:
    """The operations of `step(*arguments)`, with its bits, as a module.

    Args:
        step: returns a tensor or tensors.
        arguments: tensors and lists of tensors; the module takes all of these tensors one by one.

    Raises:
        RuntimeError: what the step does depends on the numbers in a tensor.
    """
    recorder = _Recorder()
    map_aggregate(arguments, recorder.argument)
    with recorder:
        found = step(*arguments)
    recorder.graph.output(map_aggregate(found, recorder.node))
    recorder.graph.eliminate_dead_code()
    return fx.GraphModule(recorder.module, recorder.graph)
