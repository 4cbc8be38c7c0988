"""What every component is: a named set of functions with options, found by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from testbed.components.signature import Limits, Signature, bind
from testbed.errors import InputError

Sigma = float | Tensor


class Takes(NamedTuple):
    """What a function of a component takes: `quantities` by name, after `leading` by position.

    `role` is its name in messages; without one the function's own exceptions pass as they are.
    """

    quantities: tuple[str, ...] = ()
    leading: int = 0
    role: str = ""


@dataclass(frozen=True)
class Component:
    """A named function or set of functions with options, found by name in the registry.

    Args:
        name: an identifier, unique on the component's axis.
        reference: the paper that it is from, and the equation.
        options: the values of its options, the defaults included; `bound` sets them.

    Raises:
        InputError: the name is no identifier, or a function has a signature that does not fit.
    """

    axis: ClassVar[str] = ""
    functions: ClassVar[Mapping[str, Takes]] = {}
    """The fields that hold functions, and what each function takes."""

    name: str
    reference: str = field(default="", kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InputError(f"{type(self).__name__} name {self.name!r} must be an identifier.")
        self.defaults  # noqa: B018  a wrong signature is reported where it is written

    @property
    def label(self) -> str:
        """`weighting 'min_snr'`: the component in a message."""
        return f"{self.axis} {self.name!r}"

    def signature(self, field: str) -> Signature:
        """The function that `field` holds, with the quantities that it takes."""
        return _signature(self.label, getattr(self, field), self.functions[field])

    def signatures(self) -> list[Signature]:
        """The functions whose options are this component's options."""
        return [self.signature(name) for name in self.functions if getattr(self, name) is not None]

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option with its default."""
        defaults: dict[str, Any] = {}
        for signature in self.signatures():
            for name, value in signature.defaults.items():
                if defaults.setdefault(name, value) != value:
                    raise InputError(f"{self.label}: option {name!r} has two defaults.")
        return defaults

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """All values of each option that has names for values."""
        return {k: v for signature in self.signatures() for k, v in signature.choices.items()}

    def bound(self, options: Mapping[str, Any]) -> Self:
        """This component with `options` resolved against the defaults.

        Raises:
            InputError: an unknown option or a value of the wrong type.
        """
        component = copy.copy(self)
        choices: dict[str, tuple[Any, ...]] = {}
        unions: dict[str, tuple[type, ...]] = {}
        limits: dict[str, Limits] = {}
        for signature in self.signatures():
            choices |= signature.choices
            unions |= signature.unions
            limits |= signature.limits
        resolved = bind(self.label, self.defaults, options, choices, unions, limits)
        object.__setattr__(component, "options", resolved)
        return component


@cache
def _signature(owner: str, function: Callable[..., Any], takes: Takes) -> Signature:
    return Signature(owner, function, *takes)


def check_shapes(owner: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """InputError unless they are one or more shapes, tuples of positive whole numbers."""
    for shape in shapes or ((),):
        sizes = shape if isinstance(shape, tuple) else ()
        if not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise InputError(
                f"{owner}: shapes = {shapes!r}: expected shapes of samples, such as ((1, 8, 8),)."
            )


def check_range(owner: str, sigma_range: tuple[float, float]) -> None:
    """InputError unless 0 <= low < high."""
    low, high = sigma_range
    if not 0 <= low < high:
        raise InputError(f"{owner}: sigma_range = {sigma_range} needs 0 <= low < high.")
