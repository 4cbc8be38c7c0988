"""The signature of a plugin's function, and the requirements on what it returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from torch import OutOfMemoryError, Tensor

from testbed.errors import ComponentError, InputError, one_line, unknown

MAIN_ROLES = ("", "function", "build", "measure", "levels", "method", "z_shape")
"""The roles of a component's only function, or of its first: a message need not name them."""


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


@dataclass(frozen=True)
class Limits:
    """The numbers that an option takes, which are finite: `std: Annotated[float, Limits(above=0)]`.

    Args:
        above, below: the numbers lie strictly between the two.
        least, most: they are at least the one and at most the other.
    """

    above: float = -math.inf
    below: float = math.inf
    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.above < value < self.below and self.least <= value <= self.most

    def __str__(self) -> str:
        """`above 0 and finite`."""
        ends = {"above": self.above, "at least": self.least, "below": self.below}
        ends["at most"] = self.most
        stated = [f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end)]
        bounded = math.isfinite(min(self.below, self.most))
        return " and ".join(stated if bounded else [*stated, "finite"])


@dataclass(frozen=True)
class Signature:
    """A function together with the quantities that it may take by the names of its arguments.

    Args:
        owner: the component or the file whose function it is, for messages.
        function: its arguments are some of `quantities`, and options; an option has a default.
        quantities: the names of the quantities that can be supplied.
        leading: the number of first arguments that are passed by position, whatever their name.
        role: the name of the function in messages. With a role, an exception of the function
            becomes one message that names owner, role and line.

    `inputs` are the quantities that the function takes, `defaults` its options with their defaults.

    Raises:
        InputError: an argument that is neither a quantity nor has a default, a catch-all, or one
            that cannot be passed by name.
    """

    owner: str
    function: Callable[..., Any]
    quantities: tuple[str, ...]
    leading: int = 0
    role: str = ""
    inputs: tuple[str, ...] = field(init=False)
    defaults: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"{self.title}: expected a function, got {self.function!r}.")
        try:
            arguments = list(_parameters(self.function).values())
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
        inputs, defaults = [], {}
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
                inputs.append(name)
            elif argument.default is argument.empty:
                raise InputError(
                    f"{self.title}: argument {name!r} is not supplied and has no default. "
                    f"Supplied: {', '.join(self.quantities) or 'none'}; an option needs a default."
                )
            else:
                defaults[name] = argument.default
        object.__setattr__(self, "inputs", tuple(inputs))
        object.__setattr__(self, "defaults", defaults)

    def __call__(self, *leading: Any, options: Mapping[str, Any], **quantities: Any) -> Any:
        """The function's value; `options` may hold more than this function's own.

        Raises:
            TypeError: a quantity that the function takes is missing or None.
            ComponentError: the function raised, where it has a role; not for lack of memory.
        """
        return self.bound(options, **quantities)(*leading)

    def bound(self, options: Mapping[str, Any], **quantities: Any) -> Callable[..., Any]:
        """The function of its leading arguments alone; it raises as `__call__` does.

        Raises:
            TypeError: a quantity that the function takes is missing or None.
        """
        arguments = {name: options[name] for name in self.defaults if name in options}
        for name in self.inputs:
            if quantities.get(name) is None:
                raise TypeError(f"{self.title} needs {name}; give {name}=... by keyword.")
            arguments[name] = quantities[name]
        function = partial(self.function, **arguments)
        return partial(self._value, function) if self.role else function

    def _value(self, function: Callable[..., Any], *leading: Any) -> Any:
        try:
            return function(*leading)
        except (InputError, MemoryError, OutOfMemoryError):
            raise
        except Exception as problem:
            raise ComponentError(
                f"{self.owner}: {self.role} raised {one_line(problem, self._file())}"
            ) from problem

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Of each option that is annotated by a `typing.Literal`, all its values."""
        hints = self._hints.items()
        return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}

    @property
    def unions(self) -> dict[str, tuple[type, ...]]:
        """Of each option that is annotated by several types, such as `int | str`, these."""
        hints = self._hints.items()
        return {name: get_args(hint) for name, hint in hints if isinstance(hint, UnionType)}

    @property
    def limits(self) -> dict[str, Limits]:
        """Of each option that is annotated by `Limits` these."""
        notes = {name: getattr(hint, "__metadata__", ()) for name, hint in self._hints.items()}
        return {name: n for name, of in notes.items() for n in of if isinstance(n, Limits)}

    @cached_property
    def _hints(self) -> dict[str, Any]:
        """The annotations of the options, those that mean something outside of their module."""
        function = inspect.unwrap(self.function)
        found: dict[str, Any] = {}
        for name in self.defaults:
            hint = getattr(function, "__annotations__", {}).get(name)
            if isinstance(hint, str):
                try:
                    hint = eval(hint, getattr(function, "__globals__", {}))
                except (NameError, TypeError):
                    continue
            found[name] = hint
        return found

    @property
    def title(self) -> str:
        """`parameterization 'v' (scaling)`: whose function this is, in a message."""
        return self.owner if self.role in MAIN_ROLES else f"{self.owner} ({self.role})"

    def wrong(self, expected: str, value: Any) -> ComponentError:
        """`weighting 'w': function must return EXPECTED, got VALUE`, to be raised."""
        return ComponentError(
            f"{self.owner}: {self.role} must return {expected}, got {_description(value)}."
        )

    def _file(self) -> str:
        """The file in which the function is written; "" where it has none."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return code.co_filename if code else ""


def _description(value: Any) -> str:
    """A value in a few words: a tensor's shape, a number, or its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    brief = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if brief and len(repr(value)) < 40 else type(value).__name__


def shaped_like_sigma(signature: Signature, value: Any, sigma: Tensor, name: str = "") -> Tensor:
    """The value of a function of sigma, a number or a tensor, as a tensor shaped like sigma.

    `name` says which of several values of the function it is.

    Raises:
        ComponentError: the value is neither, or the tensor has another shape.
    """
    expected = f"{name and name + ', '}a tensor shaped like sigma"
    if isinstance(value, Tensor):
        if value.ndim and value.shape != sigma.shape:
            raise signature.wrong(f"{expected}, {tuple(sigma.shape)}", value)
        here: Tensor = value.to(sigma.device)
        alike = here.shape == sigma.shape and here.dtype == sigma.dtype
        return here if alike else here + 0 * sigma
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value + 0 * sigma
    raise signature.wrong(f"{expected}, or a number", value)


def require_shape_of(signature: Signature, value: Any, argument: Tensor, name: str) -> Tensor:
    """The value of a function, which must be a tensor shaped like its argument of that name.

    Raises:
        ComponentError: the value is no tensor, or has another shape.
    """
    if not isinstance(value, Tensor) or value.shape != argument.shape:
        raise signature.wrong(f"a tensor shaped like {name}, {tuple(argument.shape)}", value)
    return value


WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
}
"""What a user calls the type of an option."""


def bind(
    owner: str,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    choices: Mapping[str, Sequence[Any]] | None = None,
    unions: Mapping[str, tuple[type, ...]] | None = None,
    limits: Mapping[str, Limits] | None = None,
) -> dict[str, Any]:
    """The resolved options: `defaults` overridden by `options`, names and types checked.

    An option takes one of its `choices` where it has some, else one of the types that `unions` has
    of it, else the type of its default; an integer is accepted for a float. A default of None
    accepts anything. A number lies within its `limits`, and NaN is none.

    Raises:
        InputError: an unknown option, a value that is not one of its choices, one of another type
            than the default's, or a number that it does not take.
    """
    resolved = dict(defaults)
    for name, value in options.items():
        if name not in defaults:
            raise InputError(f"{owner}: {unknown('option', name, defaults)}")
        default = defaults[name]
        if names := (choices or {}).get(name):
            if not any(type(value) is type(one) and value == one for one in names):
                known = [one if isinstance(one, str) else str(one).lower() for one in names]
                raise InputError(f"{owner}: {unknown(name, value, known)}")
            resolved[name] = value
            continue
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        types = (unions or {}).get(name, (type(default),))
        if default is not None and type(value) not in types:
            raise InputError(
                f"{owner}: option {name} = {value!r} must be "
                f"{' or '.join(WORDS.get(one, one.__name__) for one in types)} "
                f"(default {default!r})."
            )
        within = (limits or {}).get(name)
        if value != value or (within is not None and value not in within):
            raise InputError(
                f"{owner}: option {name} = {value!r} must be {within or 'a number'} "
                f"(default {default!r})."
            )
        resolved[name] = value
    return resolved
