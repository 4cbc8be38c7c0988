"""Components with a state: a module that is trained beside the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from testbed.components.base import Component
from testbed.errors import InputError

StateBuilder = Callable[..., torch.nn.Module]


@dataclass(frozen=True)
class StatefulComponent(Component):
    """A component whose function may take a `state`, the module that `state([options])` builds.

    The parameters of the state are trained together with the network, and its buffers are kept in
    checkpoints.

    Raises:
        InputError: a function takes a state and none is built, or the other way round.
    """

    state: StateBuilder | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        takes_state = any("state" in signature.inputs for signature in self.signatures())
        if takes_state and self.state is None:
            raise InputError(
                f"{self.label}: asks for a state, and state=... does not say how to build one."
            )
        if self.state is not None and not takes_state:
            raise InputError(
                f"{self.label}: builds a state, and no function asks for it by that name."
            )

    def build(self) -> torch.nn.Module | None:
        """A new state, or None for a component without one.

        Raises:
            InputError: what was built is no torch module.
        """
        if self.state is None:
            return None
        signature = self.signature("state")
        module = signature(options=self.options)
        if not isinstance(module, torch.nn.Module):
            raise InputError(f"{signature.title}: must build a torch.nn.Module, got {module!r}.")
        return module
