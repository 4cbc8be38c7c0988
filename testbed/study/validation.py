"""A table of a study file against the model that reads it: a line for each mistake.

Each line has the file, the key where its value was stated, the value, and what was expected of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from testbed.errors import did_you_mean

KINDS = {
    "must be a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "must be a number": ("float_type", "float_parsing"),
    "must be a finite number": ("finite_number",),
    "must be true or false": ("bool_type", "bool_parsing"),
    "must be a text": ("string_type",),
    "must be a list": ("tuple_type", "list_type"),
    "must be a table": ("model_type", "dataclass_type", "dict_type", "mapping_type"),
}
NAMED = re.compile(
    r"(?:\w+: )?(?:\w+ '[^']*': )?(?:Unknown option '(\w+)'|Unknown (\w+)|(?:option )?(\w+))"
)
BY_TYPE = {name: text for text, names in KINDS.items() for name in names}
LIMITS = {
    "greater_than": "must be above {gt:.10g}",
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than": "must be below {lt:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "too_long": "must have at most {max_length} values",
    "too_short": "must have at least {min_length} values",
    "multiple_of": "must be a multiple of {multiple_of:.10g}",
}


def validated(
    model: type[Any],
    table: Any,
    origin: Callable[..., str],
    path: Path,
    problems: list[str],
    missing: bool = True,
) -> Any:
    """The validated model; or None, with a line in `problems` for each mistake.

    Args:
        model: what reads the table.
        table: the values.
        origin: where in the file a dotted key of the table was stated.
        path: the file.
        problems: gets the lines.
        missing: whether a key that is missing is a mistake.
    """
    try:
        return model.model_validate(table)
    except ValidationError as found:
        for problem in found.errors():
            if problem["type"] != "missing" or missing:
                problems.append(f"{path}: {_line(model, problem, origin)}")
    return None


def _line(model: type[Any], problem: Mapping[str, Any], origin: Callable[..., str]) -> str:
    keys = [*itertools.takewhile(lambda part: isinstance(part, str), problem["loc"])]
    within = "".join(f"[{one}]" for one in problem["loc"][len(keys) :])
    value, kind = problem.get("input"), problem["type"]
    if kind == "missing" and not within:
        return f"{origin('.'.join(keys))}: is required"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted(_siblings(model, keys[:-1]))
        where = origin(".".join(keys))
        given = f" = {written(value)}"
        if "grid." in where:  # once, not once for each of its values
            where, given = re.sub(r"\[\d+\]$", "", where), ""
        hint = did_you_mean(keys[-1], known)
        return f"{where}{given}: unknown key.{hint} Known: {', '.join(known)}."
    text = _expected(problem)
    if isinstance(value, Mapping) and (inner := named(text, value)):
        keys, value = [*keys, inner], value[inner]
        own = f"{inner} = {written(value)} "
        text = text.removeprefix(own) if text.startswith(f"{own}is ") else text
    if kind == "missing":
        within, text = "", "has too few values"
    where = f"{origin('.'.join(keys))}{within} = {written(value)}"
    return f"{where} {text}" if text.startswith("is ") else f"{where}: {text}"


def _expected(problem: Mapping[str, Any]) -> str:
    """What a value must be; `problem` is one of pydantic's."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in LIMITS:
        return LIMITS[kind].format(**context)
    if kind == "literal_error":
        words = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        hint = did_you_mean(str(problem["input"]), words)
        return f"must be {context['expected']}.{hint}" if hint else f"must be {context['expected']}"
    if kind in BY_TYPE:
        given = problem["input"]
        whole = kind.startswith("int") and isinstance(given, float) and given.is_integer()
        return f"{BY_TYPE[kind]}: write {given:.0f}" if whole else BY_TYPE[kind]
    return str(problem["msg"]).removeprefix("Value error, ")


def written(value: Any) -> str:
    """A value as a study file may have it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def named(text: str, table: Mapping[str, Any]) -> str:
    """The key of a table that a message is about, which begins with it; "" where it names none.

    The label of a component may stand before it, as in `density 'vp': option first = 2 must be`.
    """
    found = NAMED.match(text)
    name = next(filter(None, found.groups()), "") if found else ""
    return name if name in table else ""


def _siblings(model: type[Any], keys: Sequence[str]) -> list[str]:
    """The keys of the model that a dotted key leads to."""
    for key in keys:
        fields = getattr(model, "model_fields", {})
        if key not in fields:
            break
        model = fields[key].annotation
        # `Likelihood | None` has the keys of Likelihood.
        model = next((one for one in get_args(model) if hasattr(one, "model_fields")), model)
    fields = getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {})
    return [name for name in fields if not name.startswith("_")]
