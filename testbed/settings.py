"""What else must know a setting, stated once, where its field is declared.

A setting of a trial is a field of a pydantic model or of a dataclass, annotated with a `Setting`:

    steps: Annotated[int, Setting("Number of optimiser steps.", batch=True)] = 2000

The trial's identity, what may train as one batch, what is compared as an objective, the report's
settings and the reference of study keys are all read from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """What else must know a setting.

    Args:
        says: a sentence for the reference of study keys.
        identity: whether it is part of the trial's id.
        batch: whether all trials of a batch must have it alike.
        objective: whether it is judged by what it does when objectives are compared; all others
            must be equal.
        evaluation: whether it is of the evaluation alone: trials that differ in it only are one
            training.
        axis: the axis of the components that it names; "" for other values.
        report: the row of the report's settings that shows it; "" for none.
        replaced_by: the setting that, where it is not 0, acts in this one's place; "" for none. The
            report's settings then show that one alone.
        from_recipe: whether the recipe says it where a study does not.
        recipe_with: of a setting from the recipe, those without which it makes no sense: it is
            taken from there only where one of them is. A table is that of the density and of an
            index; a study that states both has no use for the recipe's.
        since: the schema with which it came, 0 for those of the first. A trial of an earlier one
            is read with the default, and the default leaves the identity as it was.
    """

    says: str
    identity: bool = True
    batch: bool = False
    objective: bool = False
    evaluation: bool = False
    axis: str = ""
    report: str = ""
    replaced_by: str = ""
    from_recipe: bool = False
    recipe_with: tuple[str, ...] = ()
    since: int = 0


class Field(NamedTuple):
    """A setting of a model: its name, type, default and `Setting`."""

    name: str
    type: Any
    default: Any
    setting: Setting


REQUIRED = object()
"""The default of a setting that has none."""


def fields(model: type[Any]) -> tuple[Field, ...]:
    """The settings of a pydantic model or dataclass, in the order of their declaration."""
    if model not in _FIELDS:
        _FIELDS[model] = tuple(_fields(model))
    return _FIELDS[model]


_FIELDS: dict[type[Any], tuple[Field, ...]] = {}
"""Those of each model that was asked for: to read its annotations takes a while."""


def _fields(model: type) -> Iterator[Field]:
    for name, hint in get_type_hints(model, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        inner, *metadata = get_args(hint)
        for setting in metadata:
            if isinstance(setting, Setting):
                yield Field(name, inner, _default(model, name), setting)


def _default(model: type, name: str) -> Any:
    declared = getattr(model, "model_fields", {}).get(name)
    if declared is not None:
        return (
            REQUIRED if declared.is_required() else declared.get_default(call_default_factory=True)
        )
    (field,) = (field for field in dataclasses.fields(model) if field.name == name)
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def names(model: type[Any], **wanted: bool | str) -> tuple[str, ...]:
    """The settings whose `Setting` has these values, for example `names(Training, batch=True)`."""
    return tuple(
        field.name
        for field in fields(model)
        if all(getattr(field.setting, key) == value for key, value in wanted.items())
    )


class Typed:
    """Its fields take values by their type, as TOML has them, where pydantic validates them.

    Else `"yes"` and 1 are a truth value, and `"3"`, true and 3.0 a whole number. A whole number is
    still a number.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        return _strict(handler(source))


def _strict(schema: Any) -> Any:
    """A schema of pydantic whose numbers and truth values are of their own type."""
    if isinstance(schema, dict) and schema.get("type") in ("bool", "float", "int"):
        schema["strict"] = True
    inner = schema.values() if isinstance(schema, dict) else schema
    for one in inner if isinstance(inner, Iterable) else ():
        if isinstance(one, dict | list | tuple):
            _strict(one)
    return schema
