"""A plain function that asks, by argument name, for the quantities and options it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from testbed.errors import InputError, unknown


@cache
def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


@dataclass(frozen=True)
class Formula:
    """A function together with the names of the quantities it may ask for.

    `function` names the arguments it wants out of `quantities`; every other argument must have a
    default and is an option. `leading` first arguments are passed by position, whatever their name.

    Raises:
        InputError: an argument that is neither a quantity nor has a default, a catch-all, or one
            that cannot be passed by name.
    """

    owner: str
    function: Callable[..., Any]
    quantities: tuple[str, ...]
    leading: int = 0
    wanted: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"{self.owner}: expected a function, got {self.function!r}.")
        try:
            arguments = list(_arguments(self.function).values())
        except ValueError:
            raise InputError(
                f"{self.owner}: {self.function!r} has no signature; wrap it in a def."
            ) from None
        first = arguments[: self.leading]
        if len(first) < self.leading or any(a.kind >= a.VAR_POSITIONAL for a in first):
            raise InputError(
                f"{self.owner}: must take {self.leading} arguments by position first, "
                f"takes ({', '.join(map(str, arguments))})."
            )
        wanted, defaults = [], {}
        for argument in arguments[self.leading :]:
            name = argument.name
            if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
                raise InputError(
                    f"{self.owner}: argument '{argument}' takes anything; name each option instead."
                )
            if argument.kind is argument.POSITIONAL_ONLY:
                raise InputError(
                    f"{self.owner}: argument {name!r} is positional only; it is passed by name."
                )
            if name in self.quantities:
                wanted.append(name)
            elif argument.default is argument.empty:
                raise InputError(
                    f"{self.owner}: argument {name!r} is not supplied and has no default. "
                    f"Supplied: {', '.join(self.quantities) or 'none'}; an option needs a default."
                )
            else:
                defaults[name] = argument.default
        object.__setattr__(self, "wanted", tuple(wanted))
        object.__setattr__(self, "defaults", defaults)

    def __call__(self, *leading: Any, options: Mapping[str, Any], **quantities: Any) -> Any:
        """The function's value; `options` may hold more than this function's own.

        Raises:
            TypeError: a quantity that the function names was not given (is None).
        """
        given = {}
        for name in self.wanted:
            if quantities.get(name) is None:
                raise TypeError(f"{self.owner} needs {name}; give {name}=... by keyword.")
            given[name] = quantities[name]
        own = {name: options[name] for name in self.defaults if name in options}
        return self.function(*leading, **given, **own)


def bind(owner: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved options: `defaults` overridden by `options`, names and types checked.

    An option takes the type of its default; an integer is accepted for a float. A default of None
    accepts anything.

    Raises:
        InputError: an unknown option, or a value of another type than the default's.
    """
    resolved = dict(defaults)
    for name, value in options.items():
        if name not in defaults:
            raise InputError(f"{owner}: {unknown('option', name, defaults)}")
        default = defaults[name]
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if default is not None and type(value) is not type(default):
            raise InputError(
                f"{owner}: option {name} = {value!r} must be a {type(default).__name__} "
                f"(default {default!r})."
            )
        resolved[name] = value
    return resolved
