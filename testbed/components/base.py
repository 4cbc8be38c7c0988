"""What every component is: a named set of functions with options, found by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from testbed.components.signature import Signature, bind
from testbed.errors import InputError

Sigma = float | Tensor


@dataclass(frozen=True)
class Component:
    """A named function or set of functions with options, found by name in the registry."""

    axis: ClassVar[str] = ""
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InputError(f"{type(self).__name__} name {self.name!r} must be an identifier.")
        self.defaults  # noqa: B018  a wrong signature is reported where it is written

    @property
    def label(self) -> str:
        """`weighting 'min_snr'`: the component in a message."""
        return f"{self.axis} {self.name!r}"

    def formulas(self) -> list[Signature]:
        """The functions whose options are this component's options."""
        raise NotImplementedError

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option with its default."""
        found: dict[str, Any] = {}
        for formula in self.formulas():
            for name, value in formula.defaults.items():
                if found.setdefault(name, value) != value:
                    raise InputError(f"{self.label}: option {name!r} has two defaults.")
        return found

    def bound(self, options: Mapping[str, Any]) -> Self:
        """This component with `options` resolved against the defaults.

        Raises:
            InputError: an unknown option or a value of the wrong type.
        """
        twin = copy.copy(self)
        object.__setattr__(twin, "options", bind(self.label, self.defaults, options))
        return twin


def check_range(owner: str, sigma_range: tuple[float, float]) -> None:
    """InputError unless 0 <= low < high."""
    low, high = sigma_range
    if not 0 <= low < high:
        raise InputError(f"{owner}: sigma_range = {sigma_range} needs 0 <= low < high.")
