"""Modules that a learned weighting or a loss with a state trains beside the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from testbed.components.signature import Signature
from testbed.errors import InputError

State = Callable[..., torch.nn.Module]


def check_state(owner: str, state: State | None, asked: bool) -> None:
    """InputError unless a state is built exactly where a function asks for one."""
    if asked and state is None:
        raise InputError(f"{owner}: asks for a state, and state=... does not say how to build one.")
    if state is not None and not asked:
        raise InputError(f"{owner}: builds a state, and no function asks for it by that name.")


def build_state(formula: Signature | None, options: Mapping[str, Any]) -> torch.nn.Module | None:
    """The module that `formula` builds.

    Raises:
        InputError: what it built is no torch module.
    """
    if formula is None:
        return None
    found = formula(options=options)
    if not isinstance(found, torch.nn.Module):
        raise InputError(f"{formula.title}: must build a torch.nn.Module, got {found!r}.")
    return found
