"""A plain function that asks, by argument name, for the quantities and options it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import OutOfMemoryError, Tensor

from testbed.errors import ComponentError, InputError, said, unknown

UNTITLED = ("", "function", "build", "measure", "levels", "method", "z_shape")
"""Roles of what is a component's only function, or its first."""


@cache
def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


@dataclass(frozen=True)
class Signature:
    """A function together with the names of the quantities it may ask for.

    `function` names the arguments it wants out of `quantities`; every other argument must have a
    default and is an option. `leading` first arguments are passed by position, whatever their name.
    With a `role`, what the function raises becomes one message that names owner, role and line.

    Raises:
        InputError: an argument that is neither a quantity nor has a default, a catch-all, or one
            that cannot be passed by name.
    """

    owner: str
    function: Callable[..., Any]
    quantities: tuple[str, ...]
    leading: int = 0
    role: str = ""
    wanted: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"{self.title}: expected a function, got {self.function!r}.")
        try:
            arguments = list(_arguments(self.function).values())
        except ValueError:
            raise InputError(
                f"{self.title}: {self.function!r} has no signature; wrap it in a def."
            ) from None
        first = arguments[: self.leading]
        if len(first) < self.leading or any(a.kind >= a.VAR_POSITIONAL for a in first):
            raise InputError(
                f"{self.title}: must take {self.leading} arguments by position first, "
                f"takes ({', '.join(map(str, arguments))})."
            )
        wanted, defaults = [], {}
        for argument in arguments[self.leading :]:
            name = argument.name
            if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
                raise InputError(
                    f"{self.title}: argument '{argument}' takes anything; name each option instead."
                )
            if argument.kind is argument.POSITIONAL_ONLY:
                raise InputError(
                    f"{self.title}: argument {name!r} is positional only; it is passed by name."
                )
            if name in self.quantities:
                wanted.append(name)
            elif argument.default is argument.empty:
                raise InputError(
                    f"{self.title}: argument {name!r} is not supplied and has no default. "
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
            ComponentError: the function raised, where it has a role; not for lack of memory.
        """
        given = {}
        for name in self.wanted:
            if quantities.get(name) is None:
                raise TypeError(f"{self.title} needs {name}; give {name}=... by keyword.")
            given[name] = quantities[name]
        own = {name: options[name] for name in self.defaults if name in options}
        if not self.role:
            return self.function(*leading, **given, **own)
        try:
            return self.function(*leading, **given, **own)
        except (InputError, MemoryError, OutOfMemoryError):
            raise
        except Exception as problem:
            raise ComponentError(
                f"{self.owner}: {self.role} raised {said(problem, self._file())}"
            ) from problem

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Of each option that is annotated by a `typing.Literal`, all its values."""
        try:
            hints = get_type_hints(self.function)
        except (NameError, TypeError):  # an annotation that means nothing outside of its module
            return {}
        named = {name: hints[name] for name in self.defaults if name in hints}
        return {k: get_args(v) for k, v in named.items() if get_origin(v) is Literal}

    @property
    def title(self) -> str:
        """`parameterization 'v' (scaling)`: whose function this is, in a message."""
        return self.owner if self.role in UNTITLED else f"{self.owner} ({self.role})"

    def wrong(self, wanted: str, found: Any) -> ComponentError:
        """`weighting 'w': function must return WANTED, got FOUND`, to be raised."""
        return ComponentError(f"{self.owner}: {self.role} must return {wanted}, got {told(found)}.")

    def _file(self) -> str:
        """Where the function was written, or nothing."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return code.co_filename if code else ""


def told(found: Any) -> str:
    """What a function returned, in a few words: a tensor's shape, a number, or its type."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    brief = found is None or isinstance(found, bool | int | float | str)
    return repr(found) if brief and len(repr(found)) < 40 else type(found).__name__


def shaped_like_sigma(formula: Signature, found: Any, sigma: Tensor, name: str = "") -> Tensor:
    """What a function of sigma returned, a number or a tensor, as a tensor shaped like sigma.

    `name` is that of one of several values.

    Raises:
        ComponentError: it is of another kind or shape.
    """
    wanted = f"{name and name + ', '}a tensor shaped like sigma"
    if isinstance(found, Tensor):
        if found.ndim and found.shape != sigma.shape:
            raise formula.wrong(f"{wanted}, {tuple(sigma.shape)}", found)
        return found.to(sigma.device) + 0 * sigma
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found + 0 * sigma
    raise formula.wrong(f"{wanted}, or a number", found)


def require_shape_of(formula: Signature, found: Any, given: Tensor, name: str) -> Tensor:
    """What a function returned, which must be a tensor shaped like its argument `given`.

    Raises:
        ComponentError: it is something else, or of another shape.
    """
    if not isinstance(found, Tensor) or found.shape != given.shape:
        raise formula.wrong(f"a tensor shaped like {name}, {tuple(given.shape)}", found)
    return found


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
